"""Notes what is read first and in which order, while it is read; knows no paths, writes nothing.

A note is one bit for each block of 4 KiB, in a word for each piece of 256 KiB. The order is that in which the
pieces were first met, and what is read again changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

from rafsfs.format.erofs import BLOCK_BITS
from rafsfs.limits import TRACE_PIECES_MAX
from rafsfs.types import BlobIndex, Nid

_PIECE_BITS = 6  # blocks of a piece, as bits of a word of 64
_BLOCK_MASK = (1 << _PIECE_BITS) - 1


class FileRange(NamedTuple):
    """Bytes ``start..end`` of a file that were read; whole blocks, so ``end`` may lie behind the file's."""

    nid: Nid
    start: int
    end: int


class DecodedRange(NamedTuple):
    """Bytes ``start..end`` of a blob's decoded space that were read; whole blocks."""

    blob: BlobIndex
    start: int
    end: int


class AccessTrace:
    """What readers of one image came for. Any thread may note."""

    def __init__(self, pieces_max: int = TRACE_PIECES_MAX) -> None:
        self.is_full = False
        """Set when something was not noted, because there are ``pieces_max`` pieces already."""
        self._pieces_max = pieces_max
        self._lock = threading.Lock()
        self._blocks: dict[tuple[int, int], int] = {}

    def file_read(self, nid: Nid, offset: int, size: int) -> None:
        """So many bytes of a file were read."""
        self._note(nid, offset, size)

    def blob_read(self, blob: BlobIndex, offset: int, size: int) -> None:
        """So many bytes of a blob's decoded space were read, by somebody who knows no files."""
        self._note(~blob, offset, size)

    def _note(self, space: int, offset: int, size: int) -> None:
        if not size:
            return
        first, end = offset >> BLOCK_BITS, (offset + size - 1 >> BLOCK_BITS) + 1
        while first < end:
            piece = first >> _PIECE_BITS
            stop = min(end, (piece + 1) << _PIECE_BITS)
            blocks = ((1 << (stop - first)) - 1) << (first & _BLOCK_MASK)
            key = (space, piece)
            with self._lock:
                noted = self._blocks.get(key, 0)
                if noted | blocks != noted:
                    if not noted and len(self._blocks) >= self._pieces_max:
                        self.is_full = True
                        return
                    self._blocks[key] = noted | blocks
            first = stop

    def ranges(self) -> Iterator[FileRange | DecodedRange]:
        """What was read until now, in order of first access to each piece; ranges of a piece in its order."""
        with self._lock:
            noted = list(self._blocks.items())
        for (space, piece), blocks in noted:
            base = piece << _PIECE_BITS
            for first, end in _runs(blocks):
                start_byte, end_byte = (base + first) << BLOCK_BITS, (base + end) << BLOCK_BITS
                if space < 0:
                    yield DecodedRange(BlobIndex(~space), start_byte, end_byte)
                else:
                    yield FileRange(Nid(space), start_byte, end_byte)


def _runs(blocks: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of ones, lowest first."""
    position = 0
    while blocks:
        zeros = (blocks & -blocks).bit_length() - 1
        blocks >>= zeros
        ones = (~blocks & (blocks + 1)).bit_length() - 1
        yield position + zeros, position + zeros + ones
        blocks >>= ones
        position += zeros + ones
