"""The address spaces that the kernel's EROFS reads, as files of whole blocks; knows neither names nor nodes.

All are made of verified bytes. What no chunk holds reads as zeros: EROFS refers to none of it, but it reads
the last blocks of files whole, and who looks for partitions on a loop device reads anything.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE, DEVICE_SLOT, SUPERBLOCK, SUPERBLOCK_OFFSET, align
from rafsfs.format.record import Buffer
from rafsfs.metadata.space import MetadataSpace
from rafsfs.reading.engine import ReadEngine
from rafsfs.reading.trace import AccessTrace
from rafsfs.types import BlobIndex, ChunkIndex, DecodedOffset

_ZEROS: Final = memoryview(bytes(1 << 20))

ReadBlob: TypeAlias = Callable[[BlobIndex, DecodedOffset, int], Sequence[memoryview] | None]


class Part(NamedTuple):
    """A piece of an address space: ``size`` bytes at ``offset`` of a blob's decoded space.

    ``blob`` is None for the metadata.
    """

    blob: BlobIndex | None
    offset: int
    size: int


class Space(Protocol):
    """A file. Reads give less than is asked for only at its end, which is at ``size``, a whole block."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def try_read(self, offset: int, size: int) -> Sequence[Buffer] | None:
        """What is at hand without waiting for data, or None. Raises AuthError, FormatError or StoreError."""

    def read(self, offset: int, size: int) -> Sequence[Buffer]:
        """As ``try_read``, but decodes what is missing on this thread."""

    def parts(self, offset: int, size: int) -> list[Part]:
        """What a range is made of."""


class Metadata:
    """The image's EROFS metadata, perhaps with other bytes in one place; always at hand."""

    def __init__(self, space: MetadataSpace, patch: tuple[int, bytes] = (0, b"")) -> None:
        """``patch`` is (offset, bytes) of what is shown in the place of the image's own."""
        self.size = align(space.length, BLOCK_SIZE)
        self._space = space
        self._patch_start, self._patch = patch

    def try_read(self, offset: int, size: int) -> Sequence[Buffer]:
        """Bytes out of verified pages."""
        end = min(offset + size, self.size)
        held_end = min(end, self._space.length)
        parts: list[Buffer] = []
        if offset < held_end:
            parts.append(self._patched(offset, self._space.read(offset, held_end - offset)))
        if (start := max(offset, held_end)) < end:
            parts += _zeros(end - start)
        return parts

    read = try_read

    def parts(self, offset: int, size: int) -> list[Part]:
        """All is metadata."""
        return [Part(None, offset, size)]

    def _patched(self, offset: int, content: bytes) -> bytes:
        start = max(offset, self._patch_start)
        end = min(offset + len(content), self._patch_start + len(self._patch))
        if start >= end:
            return content
        patch = self._patch[start - self._patch_start : end - self._patch_start]
        return content[: start - offset] + patch + content[end - offset :]


class DecodedSpace:
    """One blob's decoded space."""

    def __init__(
        self, engine: ReadEngine, blob: BlobIndex, blocks: int, trace: AccessTrace | None = None
    ) -> None:
        """``blocks`` is the size of the decoded space."""
        self.size = blocks << BLOCK_BITS
        self._engine = engine
        self._blob = blob
        self._trace = trace
        self._chunks = engine.blobs[blob].chunks
        self._hint = 0

    def try_read(self, offset: int, size: int) -> Sequence[Buffer] | None:
        """Out of the cache of verified chunks, or None."""
        return self._read(self._engine.try_read, offset, size)

    def read(self, offset: int, size: int) -> Sequence[Buffer]:
        """As ``try_read``, but decodes what is missing on this thread. Raises as ``ReadEngine.read``."""
        parts = self._read(self._engine.read, offset, size)
        assert parts is not None
        return parts

    def parts(self, offset: int, size: int) -> list[Part]:
        """All is the blob's."""
        return [Part(self._blob, offset, size)]

    def _read(self, read: ReadBlob, offset: int, size: int) -> Sequence[Buffer] | None:
        end = min(offset + size, self.size)
        parts: list[memoryview] = []
        while offset < end:
            is_held, run_end = self._run(offset)
            length = min(run_end, end) - offset
            found = read(self._blob, DecodedOffset(offset), length) if is_held else _zeros(length)
            if found is None:
                return None
            parts += found
            offset += length
        if self._trace is not None:
            size_read = sum(map(len, parts))
            self._trace.blob_read(self._blob, offset - size_read, size_read)
        return parts

    def _run(self, offset: int) -> tuple[bool, int]:
        """Whether a chunk holds this byte, and where that changes. FormatError for a chunk that cannot be."""
        # A reader mostly stays in a chunk or goes on to the next one.
        for index in (self._hint, self._hint + 1):
            if self._starts_before(index, offset) and not self._starts_before(index + 1, offset):
                break
        else:
            index = bisect_right(self._chunks, offset >> BLOCK_BITS) - 1
        self._hint = max(0, index)
        if index >= 0 and offset < (end := self._chunks.record(ChunkIndex(index)).decoded_end):
            return True, end
        if index + 1 < len(self._chunks):
            return False, self._chunks.record(ChunkIndex(index + 1)).decoded_start
        return False, self.size

    def _starts_before(self, index: int, offset: int) -> bool:
        return index < len(self._chunks) and self._chunks[index] << BLOCK_BITS <= offset


class FlatSpace:
    """The metadata and all decoded spaces, one behind the other: an image for EROFS on a single device.

    The device slots in its metadata say where each blob begins (``mapped_blkaddr``); the image's own do not.
    """

    def __init__(self, metadata: MetadataSpace, blobs: Sequence[DecodedSpace]) -> None:
        """``metadata`` was parsed before, so it has a superblock and as many device slots as ``blobs``."""
        self._metadata = metadata
        self._blobs = blobs
        self._starts = [0]
        self.size = align(metadata.length, BLOCK_SIZE)
        for blob in blobs:
            self._starts.append(self.size)
            self.size += blob.size

    @functools.cached_property
    def _spaces(self) -> list[Space]:
        """All parts, in order. Made when they are wanted, which they seldom are."""
        return [Metadata(self._metadata, self._device_slots()), *self._blobs]

    def _device_slots(self) -> tuple[int, bytes]:
        superblock = SUPERBLOCK.unpack_from(self._metadata.read(SUPERBLOCK_OFFSET, SUPERBLOCK.size))
        assert superblock.extra_devices == len(self._blobs)
        start = superblock.device_table_slot * DEVICE_SLOT.size
        table = self._metadata.read(start, len(self._blobs) * DEVICE_SLOT.size)
        slots = (
            slot._replace(mapped_blkaddr=address >> BLOCK_BITS)
            for slot, address in zip(DEVICE_SLOT.iter_unpack(table), self._starts[1:], strict=True)
        )
        return start, b"".join(map(DEVICE_SLOT.pack, slots))

    def try_read(self, offset: int, size: int) -> Sequence[Buffer] | None:
        """Out of the cache of verified chunks, or None."""
        buffers: list[Buffer] = []
        for space, start, length in self._pieces(offset, size):
            found = space.try_read(start, length)
            if found is None:
                return None
            buffers += found
        return buffers

    def read(self, offset: int, size: int) -> Sequence[Buffer]:
        """As ``try_read``, but decodes what is missing on this thread. Raises as ``ReadEngine.read``."""
        buffers: list[Buffer] = []
        for space, start, length in self._pieces(offset, size):
            buffers += space.read(start, length)
        return buffers

    def parts(self, offset: int, size: int) -> list[Part]:
        """Mostly one: a file's bytes lie in one blob."""
        return [part for space, *piece in self._pieces(offset, size) for part in space.parts(*piece)]

    def _pieces(self, offset: int, size: int) -> list[tuple[Space, int, int]]:
        """(space, offset in it, length) of a range."""
        end = min(offset + size, self.size)
        pieces = []
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            space, start = self._spaces[number], self._starts[number]
            length = min(end, start + space.size) - offset
            pieces.append((space, offset - start, length))
            offset += length
        return pieces


def _zeros(length: int) -> list[memoryview]:
    whole, rest = divmod(length, len(_ZEROS))
    return [_ZEROS] * whole + ([_ZEROS[:rest]] if rest else [])
