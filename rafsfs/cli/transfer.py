"""What ``rafsfs push``, ``pull`` and ``copy`` share: a bar, and what is told in the end; copies nothing."""

from __future__ import annotations

from dataclasses import asdict

from rafsfs.cli import output
from rafsfs.cli.looking import write_line
from rafsfs.cli.signals import ended_cleanly
from rafsfs.frontends.logs import one_line
from rafsfs.store.reference import ImageReference
from rafsfs.store.settings import StoreSettings


def transfer(
    what: str, source: ImageReference, target: ImageReference, stores: StoreSettings, as_json: bool
) -> None:
    """Copy an image and say what was done; raises what ``copy_image`` raises."""
    from rafsfs.build.copying import copy_image

    state = [0, 0]
    with (
        ended_cleanly(),
        output.progress(
            what, shown=not as_json, fraction=lambda: state[0] / state[1] if state[1] else None
        ) as update,
    ):

        def report(done: int, total: int) -> None:
            state[:] = done, total
            if update is not None:
                update(1, done)

        copied = copy_image(source, target, stores, report)
    if as_json:
        output.print_json({"source": str(source), "target": str(target), **asdict(copied)})
        return
    there = [f"{copied.present} there already"] if copied.present else []
    there += [f"{copied.mounted} from another repository there"] if copied.mounted else []
    write_line(
        f"{one_line(str(target))}: {copied.blobs} blobs, "
        + ", ".join([f"{copied.sent} copied ({output.byte_size(copied.sent_bytes)})", *there])
    )
    write_line(f"digest {copied.digest}")
