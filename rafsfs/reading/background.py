"""Threads for work that nobody waits for: started when there is some, never joined, dropped when too much."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, Full, Queue

log = logging.getLogger("rafsfs.reading")

IDLE_S = 30.0  # after this without work a thread ends
WAITING_MAX = 32  # pieces of work; what does not fit is not done, for its reader may come sooner


class Background:
    """``submit`` from any thread. The threads are daemons: one that hangs in a store holds up no exit."""

    def __init__(self, threads_max: int, prepare: Callable[[], object] = lambda: None) -> None:
        """Starts nothing yet, so that it may be made before a fork. Each thread calls ``prepare`` first."""
        self.threads_max = threads_max
        self._prepare = prepare
        self._queue: Queue[Callable[[], None]] = Queue(WAITING_MAX)
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0

    @property
    def is_busy(self) -> bool:
        """Whether a thread is at work; looked at in passing, so it may have just changed."""
        return self._threads > self._idle

    def submit(self, work: Callable[[], None]) -> bool:
        """Have ``work`` done soon; False when there is too much to do already. What it raises is logged."""
        try:
            self._queue.put_nowait(work)
        except Full:
            return False
        with self._lock:
            if self._idle >= self._queue.qsize() or self._threads >= self.threads_max:
                return True
            self._threads += 1
        threading.Thread(target=self._run, name="rafsfs-ahead", daemon=True).start()
        return True

    def _run(self) -> None:
        self._prepare()
        while True:
            with self._lock:
                self._idle += 1
            try:
                work = self._queue.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    self._idle -= 1
                    if self._queue.empty():  # nothing was put since, or who put it saw us as idle
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            try:
                work()
            except Exception:
                log.exception("work in the background failed")  # the thread has to live on for the next
