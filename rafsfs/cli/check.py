"""``rafsfs check``: reads and verifies everything in an image, and tells all that is wrong with it."""

from __future__ import annotations

from typing import Any, Final

import click

from rafsfs.build.pipeline import worker_count
from rafsfs.cli import output
from rafsfs.cli.looking import exit_code_of_problems, more_problems, problem_line, problems_json, write_line
from rafsfs.cli.options import ImageAccess, image_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.fs.checking import CheckProgress, CheckResult, check_image

LINES_MAX: Final = 100
"""Of problems that are shown one by one; --json has more."""


@click.command()
@click.argument("image")
@click.option(
    "--quick",
    is_flag=True,
    help="Check metadata only, and the small files in it: no chunks, no digests of blobs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@image_options
def command(image: str, quick: bool, as_json: bool, access: ImageAccess) -> int:
    """Read and verify everything in IMAGE, and tell all that is wrong with it, one line for each.

    Checked are the documents of the image layout; the superblock, its signatures and the image's age as
    the options ask for; every metadata page; every directory, name, link count, attribute, symlink and
    inode; that every byte of every file is in a hole, a chunk or the metadata; the order of chunk tables,
    and that the blobs' own tables of contents agree with them; the SHA-256 of every file of the image; and
    every chunk by decoding it. A damaged chunk is told with the files that lie in it.

    \b
    Exit code: 0 when all is well; else of what was found, the first of
      5  something is not authentic: changed, swapped or cut
      6  something is authentic, but malformed
      3  a blob is missing
      7  a blob cannot be read, or is too short

    \b
    Examples:
      rafsfs check /images/tree --key my.key
      rafsfs check /images/tree:v2 --key my.key --quick
      rafsfs check /images/tree --key my.key --verify-key release.pub --json
    """
    request = access.request(image)
    progress = _Progress()
    with (
        ended_cleanly(),
        output.progress("checking", shown=not as_json, fraction=lambda: progress.fraction) as update,
    ):

        def report(state: CheckProgress) -> None:
            progress.note(state)
            if update is not None:
                update(progress.inodes, progress.bytes)

        result = check_image(
            request.reference,
            request.keyring,
            request.policy,
            stores=access.stores,
            quick=quick,
            workers=worker_count(),
            cache_bytes=access.cache_bytes,
            report=report,
        )
    if as_json:
        output.print_json(_as_json(result))
    else:
        _print(result)
    return exit_code_of_problems(result.problems)


class _Progress:
    """What the bar shows: inodes, bytes, and the part of the present stage that is done."""

    def __init__(self) -> None:
        self.inodes = 0
        self.bytes = 0
        self.fraction: float | None = None

    def note(self, state: CheckProgress) -> None:
        """Take in how far the check is."""
        self.fraction = min(1.0, state.done / state.total) if state.total else None
        if state.unit == "inodes":
            self.inodes = state.done
        elif state.unit == "bytes":
            self.bytes = state.done


def _print(result: CheckResult) -> None:
    problems = result.problems
    for problem in problems.kept[:LINES_MAX]:
        write_line(problem_line(problem))
    if more := more_problems(problems, min(LINES_MAX, len(problems.kept))):
        write_line(more)
    verdict = f"{problems.count:,} problems" if problems.count else "all is well"
    write_line(f"{result.reference}: {verdict}{' (metadata only)' if result.quick else ''}")
    tree = result.tree
    if tree is not None:
        write_line(
            f"  {tree.inodes:,} inodes: {tree.directories:,} directories, {tree.files:,} files, "
            f"{tree.symlinks:,} symlinks, {tree.special:,} others; {tree.names:,} names, "
            f"{tree.xattrs:,} extended attributes"
        )
        listed = f", {result.prefetch_chunks:,} chunks to prefetch" if result.prefetch_chunks else ""
        write_line(f"  {result.pages:,} metadata pages, {result.blobs:,} blobs{listed}")
    if not result.quick:
        write_line(
            f"  {result.chunks:,} chunks of {output.byte_size(result.chunk_bytes)} decoded, "
            f"{output.byte_size(result.stored_bytes)} of stored files hashed"
        )
    write_line(
        f"  {result.seconds:.1f} s"
        + ("" if result.quick else f", {output.speed(result.chunk_bytes, result.seconds)}")
    )


def _as_json(result: CheckResult) -> dict[str, Any]:
    tree = result.tree
    return {
        "image": result.reference,
        "ok": not result.problems.count,
        "exit_code": int(exit_code_of_problems(result.problems)),
        "quick": result.quick,
        "tree": None if tree is None else {name: getattr(tree, name) for name in tree.__dataclass_fields__},
        "metadata_pages": result.pages,
        "blobs": result.blobs,
        "chunks": result.chunks,
        "chunk_bytes": result.chunk_bytes,
        "prefetch_chunks": result.prefetch_chunks,
        "stored_bytes": result.stored_bytes,
        "seconds": round(result.seconds, 3),
        **problems_json(result.problems),
    }
