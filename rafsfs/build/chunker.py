"""Cuts files into chunks and finds what is stored already; hands chunks on and knows nothing of their
encoding.

Pieces of exactly the chunk size become a chunk each. Shorter ones, small files and the tails of large ones,
are packed in tree order, each at the start of a block, into shared chunks that hold at most as many bytes. A
piece with the digest of an earlier one, in this image or in a dictionary, is not stored again; a piece of
zeros is a hole. The smallest files become part of the metadata (doc/adr/0014-small-files-inline.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from rafsfs.build.pipeline import BlobPipeline
from rafsfs.build.source import Entry, Hole, refusal
from rafsfs.build.tree import Body, PlannedChunk, Run
from rafsfs.build.xattr_writer import area_bytes_max
from rafsfs.errors import SourceChanged
from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE, EXTENDED_INODE, align
from rafsfs.limits import CHUNK_DECODED_BYTES_MAX, INLINE_BYTES_MAX

SHARED_CHUNK_SPAN = 4
"""How many times the chunk size a shared chunk may be long in decoded space: files of a quarter of a block
still fill it. The gaps behind small files take next to no room in the blob, but room in a reader's cache."""

Place = tuple[PlannedChunk, int]
"""A chunk, and the block inside it where a piece starts."""


@dataclass(slots=True)
class ChunkerTotals:
    """Bytes of regular files: all of them, those in holes, those that were stored already."""

    read: int = 0
    holes: int = 0
    deduplicated: int = 0


class Chunker:
    """Turns file contents into runs. ``known`` maps digests of plain pieces to where they are stored."""

    def __init__(
        self, pipeline: BlobPipeline, chunk_size: int, inline_size: int, known: dict[bytes, Place]
    ) -> None:
        """Files of at most ``inline_size`` bytes stay out of chunks, until they are ``INLINE_BYTES_MAX``."""
        self._pipeline = pipeline
        self._chunk_size = chunk_size
        self._inline_size = inline_size
        self._inline_bytes_left = INLINE_BYTES_MAX
        self._known = known
        self._zeros = bytes(chunk_size)
        self._span_max = min(SHARED_CHUNK_SPAN * chunk_size, CHUNK_DECODED_BYTES_MAX)
        self._pack = bytearray(self._span_max)
        self._pack_end = 0
        self._pack_bytes = 0
        self._pack_chunk: PlannedChunk | None = None
        self.totals = ChunkerTotals()

    def add_file(self, entry: Entry) -> Body:
        """Read one file's content to its end; returns where its bytes went."""
        assert entry.content is not None
        most = min(self._inline_size, self._inline_bytes_left)
        goes_inline = entry.size <= most and _fits_behind_inode(entry)
        length = 0
        runs = []
        inline = b""
        for piece in entry.content(self._chunk_size):
            piece_length = piece.length if isinstance(piece, Hole) else len(piece)
            length += piece_length
            self.totals.read += piece_length
            if isinstance(piece, Hole) or self._is_zeros(piece):
                self.totals.holes += piece_length
                runs.append(Run(piece_length))
            elif goes_inline:
                inline += piece
            else:
                runs.append(self._add_piece(piece))
        if length != entry.size:
            raise refusal(
                entry.path,
                "file changed while it was read",
                expected=entry.size,
                found=length,
                hint="build again, when nothing writes to it",
                kind=SourceChanged,
            )
        assert not (runs and inline)  # what is that small is one piece
        self._inline_bytes_left -= len(inline)
        return Body(tuple(runs), inline)

    def _is_zeros(self, piece: bytes) -> bool:
        # the first byte is looked at first because comparing a slice would copy it
        return piece[0] == 0 and piece == self._zeros[: len(piece)]

    def _add_piece(self, piece: bytes) -> Run:
        digest = blake3(piece).digest()
        place = self._known.get(digest)
        if place is None:
            place = self._known[digest] = self._store(piece)
        else:
            self.totals.deduplicated += len(piece)
            place[0].used = True
        return Run(len(piece), *place)

    def _store(self, piece: bytes) -> Place:
        if len(piece) == self._chunk_size:
            chunk = PlannedChunk(self._pipeline.planned)
            self._pipeline.submit(chunk, piece)
            return chunk, 0
        start = align(self._pack_end, BLOCK_SIZE)
        if self._pack_bytes + len(piece) > self._chunk_size or start + len(piece) > self._span_max:
            self.flush()
            start = 0
        if self._pack_chunk is None:
            self._pack_chunk = PlannedChunk(self._pipeline.planned)
        self._pack_end = start + len(piece)
        self._pack_bytes += len(piece)
        self._pack[start : self._pack_end] = piece
        return self._pack_chunk, start >> BLOCK_BITS

    def flush(self) -> None:
        """Hand on the shared chunk that is being filled."""
        if self._pack_chunk is not None:
            self._pipeline.submit(self._pack_chunk, memoryview(self._pack)[: self._pack_end])
            self._pack = bytearray(self._span_max)
            self._pack_end = 0
            self._pack_bytes = 0
            self._pack_chunk = None


def _fits_behind_inode(entry: Entry) -> bool:
    """Whether a block surely has room for an inode, its attributes and all bytes of its file."""
    return EXTENDED_INODE.size + area_bytes_max(entry.xattrs) + entry.size <= BLOCK_SIZE
