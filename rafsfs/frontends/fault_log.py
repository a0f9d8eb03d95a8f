"""One log line for each damaged place that a reader met; bounded in lines, memory and work; fails no read."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from rafsfs.errors import RafsError
from rafsfs.types import Nid

log = logging.getLogger("rafsfs.mount")

QUIET_S: Final = 60.0
"""A damaged place is named at most once in this time; readers like to try again."""

PLACES_MAX: Final = 1_024
"""Places remembered at once; a wholly broken store names this many in a minute and is then quiet."""

PENDING_MAX: Final = 16
"""Lines that may wait for their path; finding one walks the tree, so further lines go out without."""

LAST_LINES_S: Final = 0.5
"""How long, after the unmount, lines may still look for the paths they name."""

Place = tuple[str | int | None, ...]

Search = Callable[[], str]
"""Says where an error was met, path and all; may be slow, and may fail with a RafsError or an OSError."""


class _Fault(NamedTuple):
    error: RafsError
    met_in: str  # without a search
    search: Search


def place_of(error: RafsError, nid: Nid) -> Place:
    """Return what makes two errors one damage: the chunk or the metadata page, else kind and inode."""
    where = error.where
    if where.chunk is not None:
        return (where.blob, where.chunk)
    if where.page is not None:
        return (where.blob, None, where.page)
    return (type(error).__name__, where.blob, nid)


class FaultLog:
    """Takes errors from request handlers, on any thread, and logs them from a thread of its own.

    ``find_path`` may be slow; the reader has had its error long before. The thread starts with the first
    error, so that a sound image costs none.
    """

    def __init__(
        self, find_path: Callable[[Nid], bytes | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find_path = find_path
        self._clock = clock
        self._last_named: dict[Place, float] = {}  # in the order of time, so the oldest is the first
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[_Fault] = deque()  # the first one's path is being looked for
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def report(self, error: RafsError, nid: Nid, offset: int | None = None) -> None:
        """Log ``error``, met at byte ``offset`` of inode ``nid``, unless its place was named a while ago."""
        self.report_search(
            error,
            place_of(error, nid),
            inode_met(None, nid, offset),
            lambda: inode_met(self._find_path(nid), nid, offset),
        )

    def report_search(self, error: RafsError, place: Place, met_in: str, search: Search) -> None:
        """Log ``error`` at ``place``; ``met_in`` says where as long as ``search`` has not, or cannot."""
        fault = _Fault(error, met_in, search)
        if self.is_due(place) and not self._queue(fault):
            _write(fault, None)

    def report_mistake(self, request: str, node: int, error: Exception) -> None:
        """Log what no request should meet; its readers ask again and again, so once in a while."""
        kind = type(error).__name__
        if self.is_due((request, kind, node)):
            log.error("%s of node %d failed with %s: %s", request, node, kind, error)
            log.debug("its traceback", exc_info=error)

    def is_due(self, place: Place) -> bool:
        """Say whether a line about ``place`` may be written now, and take it as written."""
        now = self._clock()
        with self._lock:
            while self._last_named:
                oldest = next(iter(self._last_named))
                if self._last_named[oldest] + QUIET_S > now:
                    break
                del self._last_named[oldest]
            if place in self._last_named or len(self._last_named) >= PLACES_MAX:
                return False
            self._last_named[place] = now
            is_last = len(self._last_named) == PLACES_MAX
        if is_last:
            log.error("%d damaged places within a minute; further ones are not named for now", PLACES_MAX)
        return True

    def close(self, timeout_s: float = LAST_LINES_S) -> None:
        """Write what still waits: with its path if that is found within ``timeout_s``, then without."""
        with self._lock:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        while (fault := self._take()) is not None:
            _write(fault, None)

    def _queue(self, fault: _Fault) -> bool:
        """Put ``fault`` into the queue; False when there is no room or nobody left to look at it."""
        with self._lock:
            if self._is_closed or len(self._waiting) > PENDING_MAX:
                return False
            self._waiting.append(fault)
            self._changed.notify()
            if self._thread is None:
                # Nobody waits for it: a search in a large or unreachable image must not hold up the end.
                self._thread = threading.Thread(target=self._run, name="rafsfs-faults", daemon=True)
                self._thread.start()
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                fault = self._waiting[0]
            found = _found(fault)
            if self._take(fault) is not None:
                _write(fault, found)

    def _take(self, expected: _Fault | None = None) -> _Fault | None:
        """Take the first of the queue, if it still is the expected one: each line is written once."""
        with self._lock:
            if not self._waiting or (expected is not None and self._waiting[0] is not expected):
                return None
            return self._waiting.popleft()


def reporter(faults: FaultLog) -> Callable[[Exception, Nid, int | None, int | None], None]:
    """Make the function that a ``FileSystemHandler`` tells of its failures."""

    def report(error: Exception, nid: Nid, offset: int | None, _size: int | None) -> None:
        if isinstance(error, RafsError):
            faults.report(error, nid, offset)
        else:
            faults.report_mistake("request" if offset is None else "read", nid, error)

    return report


def inode_met(path: bytes | None, nid: Nid, offset: int | None) -> str:
    """Say in a line where an error was met: at byte ``offset`` of an inode whose path may be known."""
    name = "a file whose path is not known"
    if path is not None:
        name = "/" + path.lstrip(b"/").decode("utf-8", "backslashreplace")
    return f"{name} (inode {nid})" + ("" if offset is None else f" at offset {offset}")


def _found(fault: _Fault) -> str | None:
    try:
        return fault.search()
    except (RafsError, OSError) as error:
        # The directories above may be as damaged as the file; the line about the file counts.
        log.debug("no path for %s: %s", fault.met_in, error)
    except Exception:
        log.exception("looking for the path of %s", fault.met_in)
    return None


def _write(fault: _Fault, found: str | None) -> None:
    log.error("%s; met in %s", fault.error, found or fault.met_in)
