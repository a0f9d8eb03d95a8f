"""``rafsfs cache``: what the node cache holds, and keeping it small and sound; needs no key."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from rafsfs.cli import output
from rafsfs.cli.exit_codes import ExitCode
from rafsfs.cli.looking import write_line
from rafsfs.cli.options import node_cache_folder, size_callback
from rafsfs.errors import StoreError
from rafsfs.store.node_cache import NodeCache, verified
from rafsfs.store.node_cache_room import Room

R = TypeVar("R")


def _cache_options(function: Callable[..., R]) -> Callable[..., R]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object."),
        click.option("--node-cache", metavar="DIR", help="The cache's folder, as of `rafsfs mount`."),
    ):
        function = option(function)
    return function


def _chunks(node_cache: str | None) -> NodeCache:
    folder = node_cache_folder(node_cache)
    if folder is None:
        raise click.UsageError("none is no folder")
    return NodeCache(folder, 0)


@click.group()
def command() -> None:
    """Look after the node cache: chunks of images that are not here, kept as they are stored there.

    All mounts of this machine share it, also while these commands run. It can be removed at any time.

    \b
    Examples:
      rafsfs cache ls
      rafsfs cache gc --size 2G
    """


@command.command("ls")
@_cache_options
def ls(as_json: bool, node_cache: str | None) -> None:
    """Show how much the cache holds, and when it was used.

    \b
    Example:
      rafsfs cache ls
    """
    cache = _chunks(node_cache)
    found = list(cache.entries())
    now = time.time()
    ages = sorted(now - entry.used for entry in found)
    size = sum(entry.size for entry in found)
    if as_json:
        names = [{"id": entry.chunk_id.hex(), "bytes": entry.size, "used": entry.used} for entry in found]
        output.print_json({"folder": os.fspath(cache.folder), "bytes": size, "chunks": names})
        return
    write_line(f"{cache.folder}: {len(found):,} chunks, {output.byte_size(size)}")
    if ages:
        latest, oldest = (output.duration(1e6 * age) for age in (ages[0], ages[-1]))
        write_line(f"  last used {latest} ago, the oldest {oldest}")


@command.command("gc")
@click.option(
    "--size", "bytes_max", callback=size_callback, default="10G", metavar="SIZE", show_default=True,
    help="What may stay; 0 empties the cache.",
)  # fmt: skip
@_cache_options
def gc(bytes_max: int, as_json: bool, node_cache: str | None) -> None:
    """Remove what was used longest ago, until the cache holds no more than SIZE, and what crashes left.

    Mounts do it by themselves. A reader that needs a removed chunk fetches it again.

    \b
    Examples:
      rafsfs cache gc --size 2G
      rafsfs cache gc --size 0
    """
    cache = _chunks(node_cache)
    if not cache.folder.is_dir():
        raise FileNotFoundError(2, os.strerror(2), os.fspath(cache.folder))
    made = Room(cache.folder, cache.chunks, bytes_max).make()
    if made is None:
        raise StoreError("another process is removing chunks just now", hint="there is nothing to do")
    if as_json:
        output.print_json(asdict(made))
        return
    write_line(
        f"{cache.folder}: removed {made.removed:,} chunks, {output.byte_size(made.removed_bytes)}; "
        f"{made.files:,} stay, {output.byte_size(made.size)}"
    )


@command.command("verify")
@_cache_options
def verify(as_json: bool, node_cache: str | None) -> Any:
    """Read all that is in the cache, and remove what is not what its name says.

    Mounts check everything they take out of the cache, so this is for disks that are in doubt. The exit code
    is 5 when something was damaged. What cannot be removed is named, and no mount takes it.

    \b
    Example:
      rafsfs cache verify
    """
    cache = _chunks(node_cache)
    good = bad = stuck = byte_count = 0
    with output.progress("verifying", shown=not as_json) as update:
        for entry in cache.entries():
            if verified(Path(entry.path), entry.chunk_id):
                good += 1
            else:
                bad += 1
                try:
                    Path(entry.path).unlink(missing_ok=True)
                except OSError as error:
                    stuck += 1
                    click.echo(f"rafsfs: {entry.path} cannot be removed: {error.strerror}", err=True)
            byte_count += entry.size
            if update is not None:
                update(good + bad, byte_count)
    if as_json:
        output.print_json({"sound": good, "removed": bad - stuck, "left": stuck})
    else:
        outcome = f", but {stuck:,} cannot be removed" if stuck else " and are removed"
        write_line(f"{cache.folder}: {good:,} chunks are sound, {bad:,} were damaged{outcome}")
    return ExitCode.AUTHENTICATION if bad else ExitCode.OK
