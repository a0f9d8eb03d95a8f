"""Does reads that have to wait on threads of their own: as many as cores, and more when these hang.

Every read is answered: by its data, by an error, or with EIO when its deadline has passed. A thread that
hangs in a store stays behind; nobody waits for it.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

from rafsfs.fuse.reply import Reply

log = logging.getLogger("rafsfs.mount")

DEADLINE_S: Final = 90.0
"""After this a reader gets an error, whatever a thread hangs in. Most reads give up earlier by themselves."""

STALL_S: Final = 0.02
"""When no read was begun for this long although some wait, all threads hang, and one more is started."""

THREADS_MAX: Final = 64
"""What a store that hangs may cost; as many reads as the kernel asks for in the background."""

QUICK_S: Final = 0.01
"""A read that takes less has not waited for a network, so the next may hold up the thread that serves."""

Send = Callable[[Reply | None], None]


class Job(Protocol):
    """What waits for its turn: a ``Pending``, or what has its way of answering."""

    def run(self) -> Reply | None:
        """Do it, and return the reply that is to be sent; never raises."""

    def error(self, code: int) -> Reply | None:
        """Give up with an errno, unless it was answered; returns the reply that says so."""


class Workers:
    """A queue of reads and the threads that do them. Any thread may call anything here."""

    def __init__(self, send: Send, count: int, deadline_s: float = DEADLINE_S) -> None:
        """``send`` sends a reply unless it is None, and never raises; ``count`` threads do what is normal."""
        self.is_quick = True  # whether the last slow read was quick after all
        self._send = send
        self._count = count
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Job | None] = SimpleQueue()  # None ends a thread
        self._deadlines: dict[Job, float] = {}  # in the order of time, so the first ends first
        self._threads = 0
        self._idle = 0
        self._begun = 0
        self._begun_before = 0  # at the last check

    @property
    def is_busy(self) -> bool:
        """Whether a read is under way or waits."""
        return bool(self._deadlines)

    def submit(self, pending: Job) -> bool:
        """Have ``pending`` run and its reply sent; False when no thread is to be had for it."""
        with self._lock:
            if self._queue.qsize() >= self._idle and self._threads < self._count:
                self._start()
            if not self._threads:
                return False
            self._deadlines[pending] = time.perf_counter() + self._deadline_s
            self._queue.put(pending)
        return True

    def adopt(self, pending: Job) -> None:
        """Watch the deadline of a request that hangs on another thread, which calls ``forget`` at the end."""
        self.is_quick = False
        with self._lock:
            self._deadlines[pending] = time.perf_counter() + self._deadline_s

    def finished(self, pending: Job, took_s: float) -> None:
        """Take note that a read has come to its end after ``took_s`` of work."""
        self.is_quick = took_s < QUICK_S
        self.forget(pending)

    def forget(self, pending: Job) -> None:
        """Watch its deadline no longer."""
        with self._lock:
            self._deadlines.pop(pending, None)

    def check(self, now: float) -> float:
        """Answer reads whose time is up, and see that the others are begun.

        Returns when to check again, by ``time.perf_counter``; infinity when nobody waits.
        """
        late = []
        again = float("inf")
        with self._lock:
            for pending, deadline in self._deadlines.items():
                if deadline > now:
                    again = deadline
                    break
                late.append(pending)
            for pending in late:
                del self._deadlines[pending]
            if not self._queue.empty() and self._threads < THREADS_MAX:
                if self._begun == self._begun_before:
                    self._start()
                self._begun_before = self._begun
                again = min(again, now + STALL_S)
        for pending in late:
            reply = pending.error(errno.EIO)
            if reply is not None:
                log.error("a request was given up after %g s: the store does not answer", self._deadline_s)
                self._send(reply)
        return again

    def stop(self) -> bool:
        """Let all threads end with the read that they are at; returns whether none is under way."""
        with self._lock:
            for _ in range(self._threads):
                self._queue.put(None)
        return not self.is_busy

    def _start(self) -> None:
        """Start a thread, with the lock held; where none is to be had, reads wait for those there are."""
        try:
            threading.Thread(target=self._work, name="rafsfs-read", daemon=True).start()
        except RuntimeError as error:
            log.warning("no further thread for reads: %s", error)
        else:
            self._threads += 1

    def _work(self) -> None:
        clock = time.perf_counter
        while True:
            with self._lock:
                if self._threads > self._count and self._queue.empty():
                    self._threads -= 1
                    return
                self._idle += 1
            pending = self._queue.get()
            with self._lock:
                self._idle -= 1
                self._begun += 1
                if pending is None:
                    self._threads -= 1
                    return
            begun = clock()
            self._send(pending.run())
            self.finished(pending, clock() - begun)
