"""The plain bytes of a zstd layer: front to back, from a frame's start or from where a reader stopped.

Frames are taken apart into their blocks here (RFC 8878, 3.1.1), and blocks are decompressed one by one: each
is at most 128 KiB then, whatever it claims, and a store that fails between two of them costs nothing that
was decompressed before.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from rafsfs.errors import DigestMismatch, StoreUnavailable, Where
from rafsfs.limits import ZSTD_EMPTY_STEPS_MAX
from rafsfs.store.pieces import Pieces
from rafsfs.store.retry import Deadline

if TYPE_CHECKING:
    from zstandard import ZstdDecompressionObj

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
DECODERS_MAX: Final = 3  # of one layer: each holds a window, of up to 128 MiB in the worst of layers
START_SPACING_BYTES: Final = 1 << 20  # of plain data between frame starts that are noted

_SKIPPABLE_MAGIC: Final = range(0x184D2A50, 0x184D2A60)
_FRAME_HEADER_BYTES_MAX: Final = 18
_AHEAD_BYTES_MIN: Final = 128 << 10
_RLE: Final = 1  # a block that stands for one byte, repeated


class _Start(NamedTuple):
    """Where a frame begins, in bytes of the plain tar and of the layer."""

    plain: int
    stored: int


class ZstdLayer:
    """One layer. Any thread may read it; who reads on goes on where a decoder stands."""

    def __init__(self, plain_bytes: int, deadline_s: float) -> None:
        self._plain_bytes = plain_bytes
        self._deadline_s = deadline_s
        self._changed = threading.Condition()
        self._decoders: list[_Decoder] = []  # that which was used last is last
        self._starts = [_Start(0, 0)]
        self._waiting: list[int] = []

    def read(self, pieces: Pieces, offset: int, length: int) -> bytes:
        """The plain bytes, or fewer where they end; raises DigestMismatch, or what ``pieces`` raises.

        StoreUnavailable when the deadline comes first; the next read then goes on from there.
        """
        deadline = Deadline(self._deadline_s)
        with self._decoder(pieces, offset, length, deadline) as decoder:
            stored = decoder.stored + max(0, offset + length - decoder.plain) * pieces.size // max(
                1, self._plain_bytes
            )
            until = max(stored, decoder.stored + _AHEAD_BYTES_MIN)
            parts = bytearray()
            while True:
                parts += decoder.taken(offset + len(parts), length - len(parts))
                if len(parts) == length:
                    return bytes(parts)
                if deadline.left_s() <= 0:
                    raise _too_late(self._deadline_s)
                if not decoder.decode_block(until, self._note):
                    return bytes(parts)

    def _note(self, start: _Start) -> None:
        with self._changed:
            if start.plain >= self._starts[-1].plain + START_SPACING_BYTES:
                self._starts.append(start)

    @contextmanager
    def _decoder(self, pieces: Pieces, offset: int, length: int, deadline: Deadline) -> Iterator[_Decoder]:
        """The decoder that has the least to skip, as soon as nobody else uses it."""
        with self._changed:
            self._waiting.append(offset)
            try:
                while (decoder := self._chosen(pieces, offset)) is None:
                    if not self._changed.wait(deadline.left_s()):
                        raise _too_late(self._deadline_s)
            finally:
                self._waiting.remove(offset)
                self._changed.notify_all()
            decoder.busy_until = offset + length
        try:
            yield decoder
        except DigestMismatch:
            decoder.is_broken = True
            raise
        finally:
            with self._changed:
                decoder.busy_until = None
                self._decoders.remove(decoder)
                if not decoder.is_broken:
                    self._decoders.append(decoder)
                self._changed.notify_all()

    def _chosen(self, pieces: Pieces, offset: int) -> _Decoder | None:
        """A free decoder, perhaps a new one; None when it is better, or there is no way but, to wait."""
        start = self._starts[bisect_right(self._starts, offset, key=lambda start: start.plain) - 1]
        best = max(
            (decoder for decoder in self._decoders if decoder.will_be_at <= offset),
            key=lambda decoder: decoder.will_be_at,
            default=None,
        )
        if best is not None and best.will_be_at >= start.plain:
            is_next = not any(best.will_be_at <= other < offset for other in self._waiting)
            return best if best.busy_until is None and is_next else None
        if len(self._decoders) == DECODERS_MAX:
            idle = next((decoder for decoder in self._decoders if decoder.busy_until is None), None)
            if idle is None:
                return None
            self._decoders.remove(idle)
        decoder = _Decoder(pieces, start)
        self._decoders.append(decoder)
        return decoder


class _Decoder:
    """Goes forward through a layer, block by block; for one thread at a time."""

    def __init__(self, pieces: Pieces, start: _Start) -> None:
        self.plain = start.plain
        """Where the last block that was decompressed begins, in the plain tar."""
        self.stored = start.stored
        """Where the next block, or frame, begins in the layer."""
        self.busy_until: int | None = None
        self.is_broken = False
        self._pieces = pieces
        self._block = b""
        self._frame: ZstdDecompressionObj | None = None
        self._has_checksum = False
        self._empty_steps = 0

    @property
    def will_be_at(self) -> int:
        """The first plain byte that it will have when nobody uses it any more."""
        return self.plain if self.busy_until is None else self.busy_until

    def taken(self, offset: int, length: int) -> bytes:
        """What of these plain bytes is in the last block."""
        return self._block[offset - self.plain :][:length] if offset >= self.plain else b""

    def decode_block(self, until: int, note: Callable[[_Start], None]) -> bool:
        """Go on by a block, or by the header of a frame; False at the layer's end.

        ``until`` is how far the layer is wanted. Raises DigestMismatch when it is damaged.
        """
        self._empty_steps += 1
        if self._empty_steps > ZSTD_EMPTY_STEPS_MAX:
            raise self._damaged("nothing but empty blocks")
        if self._frame is None:
            if self.stored >= self._pieces.size:
                return False
            note(_Start(self.plain + len(self._block), self.stored))
            self._begin_frame(until)
            return True
        header = int.from_bytes(self._read(self.stored, 3, until), "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        length = 3 + (1 if kind == _RLE else size) + (4 if is_last and self._has_checksum else 0)
        data = self._decompressed(self._frame, self._read(self.stored, length, until))
        self.plain += len(self._block)
        self._block = data
        self.stored += length
        if data:
            self._empty_steps = 0
        if is_last:
            self._frame = None
        return True

    def _begin_frame(self, until: int) -> None:
        import zstandard

        length = min(_FRAME_HEADER_BYTES_MAX, self._pieces.size - self.stored)
        data = self._read(self.stored, length, until)
        if int.from_bytes(data[:4], "little") in _SKIPPABLE_MAGIC:
            self.stored += 8 + int.from_bytes(data[4:8], "little")
            return
        try:
            header_bytes = zstandard.frame_header_size(data)
            self._has_checksum = zstandard.get_frame_parameters(data).has_checksum
        except zstandard.ZstdError as error:
            raise self._damaged(str(error)) from None
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._decompressed(self._frame, data[:header_bytes])
        self.stored += header_bytes

    def _decompressed(self, frame: ZstdDecompressionObj, data: bytes) -> bytes:
        import zstandard

        try:
            return frame.decompress(data)
        except (zstandard.ZstdError, EOFError) as error:
            raise self._damaged(str(error)) from None

    def _read(self, offset: int, length: int, until: int) -> bytes:
        if offset + length > self._pieces.size:
            raise self._damaged("it ends in the middle")
        return self._pieces.read(offset, length, until)

    def _damaged(self, found: str) -> DigestMismatch:
        return DigestMismatch(
            "a layer cannot be decompressed",
            found=found,
            where=Where(blob=self._pieces.name),
            hint="fetch the image again",
        )


def _too_late(deadline_s: float) -> StoreUnavailable:
    return StoreUnavailable("read took too long", expected=f"at most {deadline_s:g} s")
