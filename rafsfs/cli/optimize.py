"""``rafsfs optimize``: gives an image that is there another prefetch list; reads no file data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rafsfs.cli import output, sealing
from rafsfs.cli.keys_change import tagged_reference
from rafsfs.cli.options import ImageAccess, file_name, image_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.frontends.logs import one_line
from rafsfs.trust.keys import forbid_core_dumps

if TYPE_CHECKING:
    from rafsfs.build.optimize import Optimized
    from rafsfs.build.prefetch import PrefetchPlan


@click.command()
@click.argument("image")
@click.option(
    "--prefetch",
    "traces",
    multiple=True,
    type=file_name,
    metavar="TRACE",
    help="Trace of `rafsfs mount --trace`: what was read. May be repeated; the first comes first.",
)
@click.option("--no-prefetch", is_flag=True, help="Take the prefetch list out of the image.")
@click.option(
    "--sign",
    multiple=True,
    type=file_name,
    metavar="FILE",
    help="Sign the changed image with this signing key. May be repeated.",
)
@click.option(
    "--drop-signatures", is_flag=True, help="Let a signed image go unsigned: its signatures do not hold."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@image_options
def command(
    image: str,
    traces: tuple[Path, ...],
    no_prefetch: bool,
    sign: tuple[Path, ...],
    drop_signatures: bool,
    as_json: bool,
    access: ImageAccess,
) -> None:
    """Have mounts of IMAGE read ahead what was read in an earlier run: give it a prefetch list.

    The list names chunks in the order in which they were wanted. It takes the place of an earlier list.
    `rafsfs mount` decodes them in the background, as soon as it serves, while nobody waits for anything else.

    Only the image's metadata file is written anew; data is not touched, everybody who could open the image
    still can. The image gets another digest. Signatures do not hold for it: sign it again with --sign. With
    --verify-key it is changed, and signed, only if it was signed with that key until now.

    A trace says paths, so one of an earlier image will do; files that are gone are left out.

    \b
    Examples:
      rafsfs mount /images/tree /mnt --key my.key --trace start.trace
      rafsfs optimize /images/tree --key my.key --prefetch start.trace
      rafsfs optimize /images/tree --key my.key --prefetch start.trace --sign release.key
      rafsfs optimize /images/tree --key my.key --no-prefetch
    """
    if bool(traces) == no_prefetch:
        raise click.UsageError("give either --prefetch TRACE or --no-prefetch")
    if sign and drop_signatures:
        raise click.UsageError("give either --sign FILE or --drop-signatures")
    from rafsfs.build.optimize import optimize
    from rafsfs.build.prefetch import load_traces

    forbid_core_dumps()
    target = tagged_reference(image)
    assert target.tag is not None
    ranges = load_traces(traces)
    signers = [sealing.load_signing_key(path) for path in sign]
    with ended_cleanly(), access.open(image) as opened:
        done = optimize(opened.sealed, target.tag, ranges, signers=signers, drop_signatures=drop_signatures)
    if as_json:
        output.print_json(_as_json(str(target), done))
    else:
        output.print_line(f"{one_line(str(target))}: {prefetch_text(done.plan)}")
        output.print_line(f"digest {done.manifest_digest}")
    for algorithm, key_id in done.signatures_gone:
        click.echo(
            f"rafsfs: warning: the signature of {one_line(algorithm)} {key_id.hex()} is gone; "
            "`rafsfs keys sign` makes it again",
            err=True,
        )


def prefetch_text(plan: PrefetchPlan) -> str:
    """Tell a user what list came of a trace."""
    text = f"{plan.chunks:,} chunks to prefetch ({output.byte_size(plan.bytes)}) for {plan.paths:,} files"
    if plan.paths_gone:
        text += f", of which {plan.paths_gone:,} are not there"
    if plan.chunks_left_out:
        text += f"; {plan.chunks_left_out:,} chunks left out: the list is full"
    return text


def prefetch_json(plan: PrefetchPlan) -> dict[str, Any]:
    """Tell a program what list came of a trace."""
    return {
        "runs": len(plan.runs),
        "chunks": plan.chunks,
        "bytes": plan.bytes,
        "files": plan.paths,
        "files_gone": plan.paths_gone,
        "chunks_left_out": plan.chunks_left_out,
    }


def _as_json(image: str, done: Optimized) -> dict[str, Any]:
    return {
        "image": image,
        "digest": done.manifest_digest,
        "prefetch": prefetch_json(done.plan),
        "signatures_gone": [
            {"algorithm": algorithm, "key_id": key_id.hex()} for algorithm, key_id in done.signatures_gone
        ],
    }
