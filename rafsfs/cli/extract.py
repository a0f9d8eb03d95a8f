"""``rafsfs extract``: a tree out of an image into a directory, with all its attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from rafsfs.build.pipeline import worker_count
from rafsfs.cli import output
from rafsfs.cli.exit_codes import ExitCode
from rafsfs.cli.looking import (
    about,
    exit_code_of_problems,
    more_problems,
    problem_line,
    problems_json,
    writing_to,
)
from rafsfs.cli.names import absolute, shown, text_fields
from rafsfs.cli.options import ImageAccess, image_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.frontends.extraction import ExtractResult, extract
from rafsfs.frontends.extraction_nodes import Fidelity, Refusal

LINES_MAX: Final = 100
"""Of problems that are shown one by one."""


@click.command()
@click.argument("image")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--force", is_flag=True, help="Allow a DIR that is not empty; replace files that are in the way."
)
@click.option("--no-owner", is_flag=True, help="Leave all files to the user who extracts.")
@click.option("--no-xattrs", is_flag=True, help="Leave out extended attributes, and with them ACLs.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as a JSON object.")
@image_options
def command(
    image: str,
    directory: Path,
    paths: tuple[str, ...],
    force: bool,
    no_owner: bool,
    no_xattrs: bool,
    as_json: bool,
    access: ImageAccess,
) -> int:
    """Copy everything in IMAGE, or what is at and below PATH..., into the directory DIR.

    Without PATH, DIR becomes the image's root, with its mode, owner and time. With PATH, each one comes
    to lie at its place below DIR: `extract IMAGE out /etc/ssl` makes out/etc/ssl. DIR is made when it is
    not there.

    Everything is kept: types, hard links, owners, modes, times, extended attributes, ACLs, capabilities,
    holes. Users other than root cannot give files away or make device nodes; what is left out so is
    counted and told, and set-id bits of files that were somebody else's are dropped. What the file system
    of DIR does not take although you may is told too, with exit code 10: see --no-owner and --no-xattrs.

    Nothing is ever written outside DIR, whatever the image holds. A file with damaged data is not
    written; the others are, and the exit code is 5.

    \b
    Examples:
      rafsfs extract /images/tree /srv/copy --key my.key
      rafsfs extract /images/tree . /etc/ssl /usr/bin/env --force --key my.key
    """
    fidelity = Fidelity(owners=not no_owner, xattrs=not no_xattrs, replace=force)
    with ended_cleanly(), access.open(image) as opened:
        for path in paths:
            with about(path):
                opened.real_path(path, follow_symlinks=False)
        inodes = opened.filesystem.tree.inode_count
        done = 0.0

        def fraction() -> float | None:
            return None if paths else done

        with output.progress("extracting", shown=not as_json, fraction=fraction) as update:

            def report(names: int, byte_count: int) -> None:
                nonlocal done
                done = names / max(inodes, 1)
                if update is not None:
                    update(names, byte_count)

            with writing_to(directory):
                result = extract(
                    opened, directory, paths, fidelity=fidelity, workers=worker_count(), report=report
                )
    if as_json:
        output.print_json(_as_json(result))
    else:
        _print(result)
    if result.problems.count:
        return exit_code_of_problems(result.problems)
    return ExitCode.SYSTEM if result.losses.refused_count else ExitCode.OK


def _print(result: ExtractResult) -> None:
    for problem in result.problems.kept[:LINES_MAX]:
        click.echo(f"rafsfs: not extracted: {problem_line(problem)}", err=True)
    if more := more_problems(result.problems, min(LINES_MAX, len(result.problems.kept))):
        click.echo(f"rafsfs: {more}", err=True)
    for refusal in result.losses.refused[:LINES_MAX]:
        click.echo(f"rafsfs: not kept: {_refusal_line(refusal)}", err=True)
    if (left := result.losses.refused_count - LINES_MAX) > 0:
        click.echo(f"rafsfs: ... and {left:,} more that were not kept", err=True)
    for what, count in sorted(result.losses.skipped.items()):
        click.echo(f"rafsfs: left out, because only root may set them: {count:,} {what}", err=True)
    click.echo(
        f"{result.files:,} files, {result.directories:,} directories, {result.symlinks:,} symlinks, "
        f"{result.hard_links:,} hard links, {result.special:,} others: "
        f"{output.byte_size(result.bytes)} in {result.seconds:.1f} s, "
        f"{output.speed(result.bytes, result.seconds)}"
    )


def _refusal_line(refusal: Refusal) -> str:
    return f"{shown(absolute(refusal.path))}: {shown(refusal.what.encode())}: {refusal.error.strerror}"


def _as_json(result: ExtractResult) -> dict[str, Any]:
    return {
        "files": result.files,
        "directories": result.directories,
        "symlinks": result.symlinks,
        "hard_links": result.hard_links,
        "special": result.special,
        "bytes": result.bytes,
        "data_bytes": result.data_bytes,
        "seconds": round(result.seconds, 3),
        "left_out": dict(result.losses.skipped),
        "not_kept_count": result.losses.refused_count,
        "not_kept": [
            {
                **text_fields("path", absolute(refusal.path)),
                "what": refusal.what,
                "reason": refusal.error.strerror,
            }
            for refusal in result.losses.refused
        ],
        **problems_json(result.problems),
    }
