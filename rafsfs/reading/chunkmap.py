"""Which chunk holds a byte of decoded space; looks into the sealed chunk tables in place, makes no copy of
them.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable

from rafsfs.errors import FormatError
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Suite, blocks_of, check_chunk_record
from rafsfs.format.erofs import BLOCK_BITS
from rafsfs.types import ChunkIndex, DecodedOffset

RECORDS_KEPT = 2048  # checked records of all blobs, ~400 bytes each: half a gigabyte that is being read
RECORDS_KEPT_MIN = 16  # of one blob, however many there are: what a few readers go back and forth between


class ChunkTable:
    """The sealed chunk table of one blob. Any thread may use it."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        offset: int,
        count: int,
        suite: Suite,
        blob_size: int,
        decoded_blocks: int,
        *,
        blob_count: int = 1,
    ) -> None:
        """``read(offset, length)`` gives verified bytes of the chunk table section, this table starts at
        ``offset``. ``blob_size`` is in bytes, ``decoded_blocks`` the size of the blob's decoded space;
        ``blob_count`` tables share the memory for checked records.
        """
        self._read = read
        self._offset = offset
        self._count = count
        self.suite = suite
        """How the blob's chunks are sealed."""
        self._blob_size = blob_size
        self._decoded_blocks = decoded_blocks
        self._hint = 0
        kept = max(RECORDS_KEPT_MIN, RECORDS_KEPT // blob_count)
        self.record = functools.lru_cache(kept)(self._load_record)

    @property
    def decoded_bytes(self) -> int:
        """Size of the blob's decoded space."""
        return self._decoded_blocks << BLOCK_BITS

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        """First decoded block of chunk ``index``: the table is a sorted sequence to bisect."""
        position = self._offset + index * CHUNK_RECORD.size
        return int.from_bytes(self._read(position, 4), "little")

    def _unpack(self, index: int) -> ChunkRecord:
        return CHUNK_RECORD.unpack_from(
            self._read(self._offset + index * CHUNK_RECORD.size, CHUNK_RECORD.size)
        )

    def _load_record(self, index: ChunkIndex) -> ChunkRecord:
        record = check_chunk_record(self._unpack(index), self.suite, self._blob_size)
        # Were overlaps let through, one byte could come from either chunk, as the cache happens to be.
        start = _end_block(self._unpack(index - 1)) if index else 0
        end = self[index + 1] if index + 1 < self._count else self._decoded_blocks
        if not start <= record.decoded_block < _end_block(record) <= end:
            raise FormatError(
                "chunk overlaps others in decoded space, or reaches behind its end",
                expected=f"blocks {start} to {end}",
                found=f"{record.decoded_block} to {_end_block(record)}",
            ).at(chunk=index)
        return record

    def find(self, offset: DecodedOffset) -> ChunkIndex:
        """The chunk that holds this byte; raises FormatError when none does."""
        hint = self._hint  # a reader mostly stays in a chunk or goes on to the next one
        for index in (hint, hint + 1):
            if index < self._count and self._holds(ChunkIndex(index), offset):
                self._hint = index
                return ChunkIndex(index)
        index = bisect_right(self, offset >> BLOCK_BITS) - 1
        if index < 0 or not self._holds(ChunkIndex(index), offset):
            raise FormatError("no chunk holds this part of decoded space").at(offset=offset)
        self._hint = index
        return ChunkIndex(index)

    def _holds(self, index: ChunkIndex, offset: DecodedOffset) -> bool:
        record = self.record(index)
        return record.decoded_start <= offset < record.decoded_end


def _end_block(record: ChunkRecord) -> int:
    """One past the last block of decoded space that the chunk occupies, wholly or in part."""
    return record.decoded_block + blocks_of(record.decoded_length)
