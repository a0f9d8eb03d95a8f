"""What reading an image has cost so far: chunks fetched and opened, failures, read-ahead; decides nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from rafsfs.errors import AuthError, FormatError, RafsError


@dataclass(slots=True)
class ReadCounts:
    """Counts since the image was opened. Bytes ``fetched`` are encoded ones, of chunks and pages.

    Failures are counted where a chunk or page is opened, once however many readers wait for it, and again
    with each new attempt: ``failed_authentication`` is what was tampered with, ``failed_format`` what does
    not parse, ``failed_store`` what could not be had. ``ahead_chunks`` were handed out to be read ahead of a
    reader; ``prefetched_chunks`` are in ``chunks`` too, and for ``prefetched_used`` of them a reader came.
    """

    chunks: int = 0
    chunk_bytes: int = 0
    pages: int = 0
    page_bytes: int = 0
    fetched_bytes: int = 0
    failed_authentication: int = 0
    failed_format: int = 0
    failed_store: int = 0
    ahead_chunks: int = 0
    prefetched_chunks: int = 0
    prefetched_used: int = 0


class ReadStatistics:
    """The counts of one open image. Any thread may count: what is counted costs far more than the lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = ReadCounts()

    def counts(self) -> ReadCounts:
        """All counts of one moment."""
        with self._lock:
            return replace(self._counts)

    def opened_chunk(self, fetched_bytes: int, chunk_bytes: int) -> None:
        """A chunk was verified and decoded."""
        with self._lock:
            self._counts.chunks += 1
            self._counts.chunk_bytes += chunk_bytes
            self._counts.fetched_bytes += fetched_bytes

    def opened_page(self, fetched_bytes: int, page_bytes: int) -> None:
        """A metadata page was verified and decoded."""
        with self._lock:
            self._counts.pages += 1
            self._counts.page_bytes += page_bytes
            self._counts.fetched_bytes += fetched_bytes

    def failed(self, error: RafsError) -> None:
        """A chunk or page could not be had, or is not to be believed."""
        with self._lock:
            if isinstance(error, AuthError):
                self._counts.failed_authentication += 1
            elif isinstance(error, FormatError):
                self._counts.failed_format += 1
            else:
                self._counts.failed_store += 1

    def read_ahead(self, chunks: int) -> None:
        """So many chunks are read ahead."""
        with self._lock:
            self._counts.ahead_chunks += chunks

    def prefetched(self) -> None:
        """A chunk was decoded because a list says that readers will want it."""
        with self._lock:
            self._counts.prefetched_chunks += 1

    def used_prefetched(self) -> None:
        """A reader came for such a chunk."""
        with self._lock:
            self._counts.prefetched_used += 1
