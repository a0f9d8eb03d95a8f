"""The plain tar in a stock image's compressed layer, read anywhere in it; believes none of it.

What comes out is believed as little as what went in: readers compare it with the digests that were sealed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from rafsfs.errors import DigestMismatch, LengthMismatch
from rafsfs.format.checkpoints import GzipPoints
from rafsfs.limits import READ_DEADLINE_S
from rafsfs.store.base import StoredFile
from rafsfs.store.gzip_layer import GzipLayer
from rafsfs.store.pieces import OriginFile, Pieces
from rafsfs.store.zstd_layer import ZSTD_MAGIC, ZstdLayer
from rafsfs.types import EncodedBytes

_STEP_BYTES: Final = 64 << 10


class _Packing(Protocol):
    """One way of compressing layers; ``read`` gives fewer bytes where they end."""

    def read(self, pieces: Pieces, offset: int, length: int) -> bytes: ...


class _Stored:
    """A layer that is not compressed."""

    def read(self, pieces: Pieces, offset: int, length: int) -> bytes:
        return pieces.read(offset, min(length, max(0, pieces.size - offset)))


class _Source:
    """What came of the stored layer until now, and what was made of that."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.packing: _Packing | None = None


class PlainLayer:
    """A file of a layer's plain bytes; see ``StoredFile`` and ``RemoteFile``. Any thread may read it."""

    def __init__(
        self,
        file: StoredFile,
        size: int,
        checkpoints: Callable[[int, int], bytes],
        deadline_s: float = READ_DEADLINE_S,
    ) -> None:
        """``size`` is that of the plain tar; ``checkpoints(offset, length)`` reads what ``gzip_checkpoints``
        made of the layer, and gives less where that ends.
        """
        # at the first read a server in its sandbox could not do it any more
        import indexed_gzip  # type: ignore[import-untyped]  # noqa: F401  # ships no types
        import zstandard  # noqa: F401

        self.name = file.name
        self.size = size
        self._file = file
        self._checkpoints = checkpoints
        self._deadline_s = deadline_s
        self._source = _Source(Pieces(file, deadline_s))

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``. Raises DigestMismatch when it cannot be decompressed."""
        return self._read(self._source, offset, length)

    def stream_range(
        self, offset: int, length: int, take: Callable[[bytes], None], *, afresh: bool = False
    ) -> None:
        """See ``RemoteFile.stream_range``. ``afresh`` also forgets all that came of the layer until now."""
        if not afresh:
            take(self._read(self._source, offset, length))
            return
        origin = OriginFile(self._file)
        source = self._source = _Source(Pieces(origin, self._deadline_s))
        try:
            # what is before the damage is good: whoever wants that gets it
            for start in range(offset, offset + length, _STEP_BYTES):
                take(self._read(source, start, min(_STEP_BYTES, offset + length - start)))
        finally:
            origin.is_asked = False

    def _read(self, source: _Source, offset: int, length: int) -> EncodedBytes:
        if offset + length > self.size:
            raise LengthMismatch(
                "layer ends too early", expected=f"{offset + length} plain bytes", found=self.size
            ).at(blob=self.name, offset=offset)
        if source.packing is None:
            source.packing = self._packing(source.pieces)  # two at once make two, and one of them is kept
        data = source.packing.read(source.pieces, offset, length)
        if len(data) != length:
            raise DigestMismatch(
                "layer ends too early", expected=f"{length} plain bytes", found=len(data)
            ).at(blob=self.name, offset=offset)
        return EncodedBytes(data)

    def _packing(self, pieces: Pieces) -> _Packing:
        if self._checkpoints(0, 1):
            return GzipLayer(GzipPoints(self._checkpoints))
        if pieces.read(0, min(len(ZSTD_MAGIC), pieces.size)) == ZSTD_MAGIC:
            return ZstdLayer(self.size, self._deadline_s)
        return _Stored()

    def close(self) -> None:
        """See ``StoredFile.close``."""
        self._file.close()
