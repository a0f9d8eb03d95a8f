"""``rafsfs prune``: says what was removed from a folder of images, or would be; decides nothing itself."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rafsfs.cli import output
from rafsfs.cli.looking import write_line
from rafsfs.cli.options import file_name
from rafsfs.frontends.logs import one_line


@click.command()
@click.argument("folder", type=file_name)
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(folder: Path, dry_run: bool, as_json: bool) -> None:
    """Remove from FOLDER, an OCI image layout, all blobs that no image in it needs.

    A tag that is moved to a new image leaves the earlier one in the folder: mounts of it go on, and its
    digest still opens it. This removes what neither a tag nor another entry of index.json leads to, and what
    killed builds left. Images, indexes and signatures of other tools stay, with all that they refer to.

    Only the digest opened a removed image, so nothing can bring it back. A mount of it goes on, but `rafsfs
    upgrade` and `rafsfs supervise` cannot begin it anew: unmount it first. Blobs that another folder shares
    by hard links (`rafsfs build --chunk-dict`) are removed here and stay there; they free nothing.

    Refuses while rafsfs writes into FOLDER. Other tools take no lock: wait for them. When a manifest is
    missing or damaged nothing is removed, for nobody knows what it needs.

    \b
    Examples:
      rafsfs prune /images --dry-run
      rafsfs prune /images
      rafsfs prune /images --json | jq .freed_bytes
    """
    from rafsfs.build.pruning import prune

    done = prune(folder, dry_run=dry_run)
    if as_json:
        told: dict[str, Any] = {"folder": os.fspath(folder), "dry_run": dry_run}
        output.print_json(told | asdict(done))
        return
    if dry_run:
        for item in done.removed:
            write_line(f"{item.digest}  {output.byte_size(item.size)}")
    verb = "would remove" if dry_run else "removed"
    litter = f" and {done.litter:,} files of killed builds" if done.litter else ""
    write_line(
        f"{one_line(str(folder))}: {verb} {len(done.removed):,} blobs{litter}, "
        f"{output.byte_size(done.freed_bytes)}; {done.kept:,} stay, {output.byte_size(done.kept_bytes)}"
    )
