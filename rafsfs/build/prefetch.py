"""From access traces to the prefetch list of an image: paths become runs of its chunks; reads no chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rafsfs.errors import BuildError, LimitExceeded, RafsError, Where
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.format.trace import TracedRange, parse_trace
from rafsfs.limits import PREFETCH_RUNS_MAX, TRACE_BYTES_MAX, TRACE_EXTENTS_MAX
from rafsfs.metadata.inode import InlineExtent, Inode
from rafsfs.metadata.tree import Tree
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.types import BlobIndex, ChunkIndex, DecodedOffset


@dataclass(frozen=True, slots=True)
class PrefetchPlan:
    """A prefetch list, and how it came about.

    ``chunks`` and ``bytes`` (decoded) are those of all ``runs``. Of the paths in the traces, ``paths_gone``
    lead to no regular file of this image; ``chunks_left_out`` had no place in the list any more.
    """

    runs: tuple[PrefetchRun, ...] = ()
    chunks: int = 0
    bytes: int = 0
    paths: int = 0
    paths_gone: int = 0
    chunks_left_out: int = 0


def load_traces(paths: Iterable[Path]) -> list[TracedRange]:
    """Read trace files, one behind the other.

    Raises BuildError for one that cannot be read, FormatError or LimitExceeded with file and line.
    """
    ranges: list[TracedRange] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(TRACE_BYTES_MAX + 1)
            ranges += parse_trace(data)
        except OSError as error:
            raise BuildError(
                "the trace cannot be read", found=error.strerror, where=Where(path=str(path))
            ) from error
        except RafsError as error:
            raise error.at(file=str(path)) from None
    return ranges


def plan_prefetch(ranges: Sequence[TracedRange], tree: Tree, tables: Sequence[ChunkTable]) -> PrefetchPlan:
    """Find the chunks of what was read; each once, where it was wanted first.

    ``tables`` are those of the image's blobs. Symlinks are not followed: a trace names the files themselves.
    Raises LimitExceeded when ranges touch more pieces of files than is bearable, and FormatError for an image
    whose metadata do not parse.
    """
    gone: set[bytes] = set()
    files: dict[bytes, Inode] = {}
    taken: set[tuple[BlobIndex, ChunkIndex]] = set()
    runs: list[PrefetchRun] = []
    decoded_bytes = left_out = 0
    steps_left = TRACE_EXTENTS_MAX
    for path, offset, length in ranges:
        if path in gone:
            continue
        if path not in files:
            inode = _find(tree, path)
            if inode is None:
                gone.add(path)
                continue
            files[path] = inode
        for found in _chunks(tree, files[path], offset, length, tables):
            steps_left -= 1
            if not steps_left:
                raise LimitExceeded(
                    "the trace touches too many pieces of files",
                    expected=f"at most {TRACE_EXTENTS_MAX}",
                    hint="shorten the trace: a list is for what is wanted first",
                )
            if found is None or found in taken:
                continue
            taken.add(found)
            blob, chunk = found
            last = runs[-1] if runs else None
            if last is not None and last.blob == blob and last.first_chunk + last.chunk_count == chunk:
                runs[-1] = last._replace(chunk_count=last.chunk_count + 1)
            elif len(runs) < PREFETCH_RUNS_MAX:
                runs.append(PrefetchRun(blob, chunk, 1))
            else:
                left_out += 1
                continue
            decoded_bytes += tables[blob].record(chunk).decoded_length
    chunks = len(taken) - left_out
    return PrefetchPlan(tuple(runs), chunks, decoded_bytes, len(files) + len(gone), len(gone), left_out)


def _find(tree: Tree, path: bytes) -> Inode | None:
    """The regular file at a path; None when there is none."""
    inode = tree.inode(tree.root)
    for name in path.split(b"/"):
        entry = tree.lookup(inode, name) if inode.is_directory else None
        if entry is None:
            return None
        inode = tree.inode(entry.nid)
    return inode if inode.is_regular else None


def _chunks(
    tree: Tree, inode: Inode, offset: int, length: int, tables: Sequence[ChunkTable]
) -> Iterator[tuple[BlobIndex, ChunkIndex] | None]:
    """The chunks of a range of a file, cut at its end, one after the other; None for what is in none."""
    file_map = tree.file_map(inode)
    end = min(offset + length, inode.size)
    while offset < end:
        extent = file_map.extent(offset)
        if isinstance(extent, InlineExtent) or extent.blob is None:
            yield None
            offset += extent.length
            continue
        chunks = tables[extent.blob]
        index = chunks.find(DecodedOffset(extent.start))
        yield extent.blob, index
        offset += min(extent.length, chunks.record(index).decoded_end - extent.start)
