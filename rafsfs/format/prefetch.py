"""The prefetch list: runs of chunks in the order in which a reader wants them; fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from rafsfs.errors import FormatError
from rafsfs.format.record import Buffer, RecordCodec, u32


class PrefetchRun(NamedTuple):
    """``chunk_count`` chunks of one blob's sealed chunk table, one after the other; 12 bytes.

    ``blob`` is the position in the superblock's list, ``first_chunk`` that in the image's table for it.
    """

    blob: u32
    first_chunk: u32
    chunk_count: u32


PREFETCH_RUN = RecordCodec(PrefetchRun, size=12)


def pack_prefetch_list(runs: Iterable[PrefetchRun]) -> bytes:
    """Spell a list as it lies in the metadata space."""
    return b"".join(map(PREFETCH_RUN.pack, runs))


def parse_prefetch_list(data: Buffer, chunk_counts: Sequence[int]) -> list[PrefetchRun]:
    """Read a whole list, whose author may be hostile; ``chunk_counts`` are those of the image's blobs.

    Raises FormatError for a run that is empty or reaches outside its blob's table, and for a chunk that is
    listed twice: nobody is to be kept busy by more chunks than there are.
    """
    runs = list(PREFETCH_RUN.iter_unpack(data))
    for number, run in enumerate(runs):
        chunk_count = chunk_counts[run.blob] if run.blob < len(chunk_counts) else 0
        if not 0 < run.chunk_count <= chunk_count - run.first_chunk:
            raise FormatError(
                f"prefetch list: run {number} names chunks that are not there",
                expected=f"some of the {chunk_count} of blob {run.blob}",
                found=f"{run.chunk_count} from {run.first_chunk} on",
            )
    in_order = sorted(runs)
    for before, run in pairwise(in_order):
        if run.blob == before.blob and run.first_chunk < before.first_chunk + before.chunk_count:
            raise FormatError("prefetch list names a chunk twice").at(chunk=run.first_chunk)
    return runs
