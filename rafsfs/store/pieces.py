"""The pieces of a stored file that were read last, and those on their way; never believes or decodes them.

For layers of stock images, which are decompressed from places other than where a read begins: neighbours
need the same stored bytes, and a store is asked for these once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Final

from rafsfs.errors import RafsError, StoreUnavailable
from rafsfs.store.base import RemoteFile, StoredFile
from rafsfs.types import EncodedBytes

PIECE_BYTES: Final = 64 << 10
REQUEST_PIECES: Final = 17  # 1 MiB, as the fetcher asks for, wherever it begins
_KEPT: Final = 64  # 4 MiB for each layer: what a stream of several requests goes back to


class Pieces:
    """One file's. Any thread may read; who wants what another one asked for waits for that."""

    def __init__(self, file: StoredFile, deadline_s: float) -> None:
        self.name = file.name
        self.size = file.size
        self._file = file
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._here: OrderedDict[int, bytes] = OrderedDict()
        self._flights: dict[int, Future[bytes]] = {}

    def read(self, offset: int, length: int, until: int = 0) -> bytes:
        """Exactly these bytes. What follows up to ``until`` comes with the same request if it is missing.

        Raises as ``StoredFile.read_range``.
        """
        first, stop = offset // PIECE_BYTES, _pieces(offset + length)
        wanted = max(stop, _pieces(min(until, self.size)))
        data = b"".join(self._piece(number, wanted) for number in range(first, stop))
        return data[offset - first * PIECE_BYTES :][:length]

    def _piece(self, number: int, stop: int) -> bytes:
        mine: dict[int, Future[bytes]] = {}
        with self._lock:
            data = self._here.get(number)
            if data is not None:
                self._here.move_to_end(number)
                return data
            flight = self._flights.get(number)
            if flight is None:
                for missing in range(number, min(stop, number + REQUEST_PIECES)):
                    if missing in self._here or missing in self._flights:
                        break
                    mine[missing] = self._flights[missing] = Future()
        if flight is None:
            self._bring(mine)
            flight = mine[number]
        try:
            return flight.result(self._deadline_s)
        except TimeoutError:
            limit = f"at most {self._deadline_s:g} s"
            raise StoreUnavailable("read took too long", expected=limit) from None
        except RafsError as error:
            raise error.copy() from None

    def _bring(self, flights: dict[int, Future[bytes]]) -> None:
        """Ask for adjacent pieces; a failure goes to all who wait, and is forgotten."""
        start = min(flights) * PIECE_BYTES
        try:
            data = self._file.read_range(start, min(self.size, start + len(flights) * PIECE_BYTES) - start)
        except BaseException as error:
            self._end(flights)
            for flight in flights.values():
                flight.set_exception(error)
            if not isinstance(error, RafsError):
                raise
            return
        found = {number: data[number * PIECE_BYTES - start :][:PIECE_BYTES] for number in flights}
        with self._lock:
            self._here.update(found)
            while len(self._here) > _KEPT:
                self._here.popitem(last=False)
        self._end(flights)
        for number, flight in flights.items():
            flight.set_result(found[number])

    def _end(self, numbers: Iterable[int]) -> None:
        with self._lock:
            for number in numbers:
                del self._flights[number]


class OriginFile:
    """A file that is asked for at the origin itself, past mirrors and caches, while ``is_asked``."""

    def __init__(self, file: StoredFile) -> None:
        self.name = file.name
        self.size = file.size
        self.is_asked = True
        self._file = file

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``."""
        if not self.is_asked or not isinstance(self._file, RemoteFile):
            return self._file.read_range(offset, length)
        body = bytearray()
        self._file.stream_range(offset, length, body.extend, afresh=True)
        return EncodedBytes(bytes(body))

    def close(self) -> None:
        """See ``StoredFile.close``; the file is somebody else's."""


def _pieces(end: int) -> int:
    """How many pieces there are before this offset, the last one perhaps in part."""
    return -(-end // PIECE_BYTES)
