"""The plain bytes of a gzip layer, from the checkpoint before them on; no reader of it waits for another one.

indexed_gzip starts at a checkpoint for each read in any case. So a reader is made for each one, out of that
one checkpoint, and no others are read of the sealed metadata. What was decompressed lately is kept, for small
files lie side by side.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rafsfs.errors import DigestMismatch, RafsError
from rafsfs.format.checkpoints import GzipPoints
from rafsfs.limits import READ_DEADLINE_S
from rafsfs.store.base import StoredFile
from rafsfs.store.pieces import Pieces

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

GZIP_MAGIC: Final = b"\x1f\x8b"
GZIP_SPACING_BYTES: Final = 1 << 20
"""Of plain data between checkpoints: what one read may decompress for nothing."""

_KEPT_BYTES_MAX: Final = 4 << 20  # from one checkpoint to the next: blocks may be longer than the spacing
_KEPT_MAX: Final = 4  # of one layer
_BUFFER_BYTES: Final = 256 << 10  # of compressed data, taken at once
_BEYOND_BYTES: Final = 4 << 10  # behind where a read should end: a member's trailer and the next one's header


class GzipLayer:
    """One layer. Any thread may read it."""

    def __init__(self, points: GzipPoints) -> None:
        self._points = points
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # from a checkpoint on, by its number

    def read(self, pieces: Pieces, offset: int, length: int) -> bytes:
        """The plain bytes, or fewer where they end; raises DigestMismatch, or what ``pieces`` raises."""
        number, between = self._points.before(offset)
        end = offset + length
        if end > between.stop or between.stop - between.start > _KEPT_BYTES_MAX:
            return self._decompressed(pieces, number, offset, length)
        with self._lock:
            data = self._kept.get(number, b"")
        if len(data) < end - between.start:
            # who comes again reads on, and would have it decompressed from the checkpoint on for each file
            stop = between.stop if data else end
            try:
                data = self._decompressed(pieces, number, between.start, stop - between.start)
            except DigestMismatch:
                if stop == end:
                    raise
                # the damage may be behind what is wanted
                return self._decompressed(pieces, number, offset, length)
            with self._lock:
                self._kept[number] = data
                while len(self._kept) > _KEPT_MAX:
                    self._kept.popitem(last=False)
        return data[offset - between.start :][:length]

    def _decompressed(self, pieces: Pieces, number: int, offset: int, length: int) -> bytes:
        index = self._points.index_of(number)
        stored = _StoredStream(pieces, self._points.stored_end(offset + length) + _BEYOND_BYTES)
        with _damage_told(stored):
            # a buffer would be filled beyond the read, from the checkpoint on once more
            reader = _indexed_gzip(stored, auto_build=False, buffer_size=1)
            reader.import_index(fileobj=io.BytesIO(index))
            reader.seek(offset)
            data: bytes = reader.read(length)
            return data


def gzip_checkpoints(file: StoredFile) -> bytes:
    """Read a gzip layer to its end and note where one can start in the middle; empty for other layers.

    The format is that of indexed_gzip's ``export_index``. Raises DigestMismatch for damaged data, StoreError.
    """
    if not file.read_range(0, min(4, file.size)).startswith(GZIP_MAGIC):
        return b""
    index = io.BytesIO()
    stored = _StoredStream(Pieces(file, READ_DEADLINE_S), file.size)
    with _damage_told(stored):
        reader = _indexed_gzip(stored, buffer_size=_BUFFER_BYTES)
        reader.build_full_index()
        reader.export_index(fileobj=index)
    return index.getvalue()


def _indexed_gzip(stored: _StoredStream, **options: int) -> Any:
    import indexed_gzip  # type: ignore[import-untyped]  # ships no types

    return indexed_gzip.IndexedGzipFile(
        fileobj=stored, spacing=GZIP_SPACING_BYTES, readbuf_size=_BUFFER_BYTES, **options
    )


@contextmanager
def _damage_told(stored: _StoredStream) -> Iterator[None]:
    """Tell damaged data from a store that failed: indexed_gzip passes on no error of ours."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        if stored.error is not None:
            raise stored.error.copy() from None
        raise DigestMismatch(
            "a layer cannot be decompressed", found=type(error).__name__, hint="fetch the image again"
        ).at(blob=stored.name) from None
    if stored.error is not None:
        raise stored.error.copy()


class _StoredStream(io.RawIOBase):
    """Stored bytes as a file that can be moved in; remembers the error that ended it."""

    def __init__(self, pieces: Pieces, until: int) -> None:
        """Behind ``until`` no more is taken at once than is needed."""
        super().__init__()
        self.name = pieces.name
        self.error: RafsError | None = None
        self._pieces = pieces
        self._until = until
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._pieces.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if self.error is not None:
            raise OSError(str(self.error))
        target = memoryview(buffer).cast("B")
        length = min(len(target), max(self._until - self._position, _BEYOND_BYTES))
        length = max(0, min(length, self._pieces.size - self._position))
        try:
            data = self._pieces.read(self._position, length, self._until) if length else b""
        except RafsError as error:
            self.error = error
            # nothing but an OSError ends a read: indexed_gzip asks for ever where 0 bytes come before the end
            raise OSError(str(error)) from None
        target[: len(data)] = data
        self._position += len(data)
        return len(data)
