"""The first and the last bytes of a bootstrap that is far away, fetched before any digest of it is known.

Opening wants what is at the start; chunk tables, prefetch list and configuration are the end of the metadata
(``build/layout_writer.py``). Both come side by side, so that they cost one round trip. Nothing here is
believed: whoever reads before the digests are known checks by himself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rafsfs.errors import RafsError
from rafsfs.reading.fetcher import Place, Places
from rafsfs.store.base import RemoteFile
from rafsfs.types import EncodedBytes

log = logging.getLogger("rafsfs.reading")

HEAD_BYTES: Final = 256 << 10
"""What opening needs, and most small images' metadata."""

TAIL_BYTES: Final = 128 << 10
"""A dozen milliseconds of 100 Mbit/s, for two round trips; the chunk tables of some 2,000 chunks."""


class Ends:
    """Both ends of one file, in memory until they are ``dropped``. Any thread may use it."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._head: bytes | None = None
        self._tail = b""
        self._is_distrusted = False
        self._was_read_behind_head = False

    def read(self, offset: int, length: int) -> EncodedBytes:
        """These bytes, which nobody has checked; raises as ``StoredFile.read_range``."""
        end = min(self._file.size, HEAD_BYTES)
        if offset + length > end:
            self._was_read_behind_head = True
            return EncodedBytes(self._fetch(offset, length))
        with self._lock:
            if self._head is None:
                self._head = self._fetch_both(end)
            return EncodedBytes(self._head[offset : offset + length])

    def distrust(self) -> bool:
        """Ask the origin for them anew; False when it has the same. Raises StoreError."""
        with self._lock:
            before, self._head = self._head, None
            self._is_distrusted = True
        self.read(0, 0)
        return self._head != before or self._was_read_behind_head

    def dropped(self, places: Places) -> Iterator[tuple[Place, bytes]]:
        """What came of ``places``, unchecked; keeps nothing of it. Looks at no place if nothing came."""
        with self._lock:
            head, self._head = self._head or b"", None
            tail, self._tail = self._tail, b""
        if not head and not tail:
            return
        tail_start = self._file.size - len(tail)
        behind_head = 0
        for index in range(len(places)):
            place = places[index]
            if place.end > len(head):
                break
            behind_head = index + 1
            yield place, head[place.offset : place.end]
        for index in range(len(places) - 1, behind_head - 1, -1):
            place = places[index]
            if place.offset < tail_start or place.end > self._file.size:
                break
            yield place, tail[place.offset - tail_start : place.end - tail_start]

    def _fetch_both(self, end: int) -> bytes:
        """The head; the tail is set when it came as well. No thread is left: a fork may follow.

        So a store that stalls holds this up until its deadline, whichever of the two it stalls with.
        """
        start = max(end, self._file.size - TAIL_BYTES)
        if start == self._file.size:
            return self._fetch(0, end)
        with ThreadPoolExecutor(1) as beside:
            tail = beside.submit(self._fetch, start, self._file.size - start)
            head = self._fetch(0, end)
            try:
                self._tail = tail.result()
            except RafsError as error:  # who needs it will ask for it, and be told
                log.debug("the end of %s did not come with its head: %s", self._file.name, error)
            return head

    def _fetch(self, offset: int, length: int) -> bytes:
        body = bytearray()
        self._file.stream_range(offset, length, body.extend, afresh=self._is_distrusted)
        return bytes(body)
