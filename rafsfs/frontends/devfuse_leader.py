"""The thread that takes requests off a FUSE connection and answers what it can; workers read what waits.

A read that is not cached is done right here when nobody else waits, since handing it over costs as much as
decoding 100 KiB. When another request is there already, or reads were slow lately, it goes to a worker.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from rafsfs.frontends.devfuse_lookout import SPIN_MAX_S, Lookout
from rafsfs.frontends.devfuse_workers import STALL_S
from rafsfs.fuse.pending import Interrupted, Pending
from rafsfs.fuse.reply import Reply

if TYPE_CHECKING:
    from rafsfs.frontends.devfuse_transport import Transport

log = logging.getLogger("rafsfs.mount")

_GONE: Final = frozenset((errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN))
"""What reading /dev/fuse gives after the unmount (Linux fs/fuse/dev.c, fuse_dev_do_read)."""

_TAKEN_BACK: Final = frozenset((errno.EINTR, errno.ENOENT))
"""What reading gives when the request was interrupted just then; the next one is as good."""

_NEVER: Final = float("inf")


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


class Leader:
    """Serves until ``is_done``, or the end of the connection.

    ``steps`` grows with everything that it does, so that others see when it hangs: in ``reading``, else in
    the request that lies in ``request``. It says when it ``is_asleep``.
    """

    def __init__(self, transport: Transport, request_bytes_max: int, cores: int) -> None:
        self.steps = 0
        self.is_asleep = False
        self.is_done = False
        self.is_over = False  # its thread is, or will be at once
        self.reading: Pending | None = None
        self.request = bytearray(request_bytes_max)
        self.made: Reply = []  # what a request that hung has come to
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="rafsfs-serve", daemon=True)
        self._transport = transport
        self._workers = transport.workers
        self._spin_max_s = SPIN_MAX_S if cores > 1 else 0.0
        self._check_at = 0.0  # when to look after the workers
        self._poller = select.poll()
        for descriptor in (transport.fd, transport.wake_fd):
            self._poller.register(descriptor, select.POLLIN)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            log.debug("serving failed", exc_info=error)
            self.failure = error
        self._transport.finished(self)

    def _serve(self) -> None:
        self._lookout = Lookout(time.perf_counter(), _switches, self._spin_max_s)
        fd, buffers, view, readv = self._transport.fd, [self.request], memoryview(self.request), os.readv
        mine: Pending | None = None  # a read that is done on this thread unless a request is there already
        while not self.is_done:
            try:
                length = readv(fd, buffers)
            except BlockingIOError:
                if mine is None:
                    self._wait()
                    continue
                self._read_here(mine)
                mine = None
            except OSError as error:
                if error.errno in _GONE:
                    return
                if error.errno not in _TAKEN_BACK:
                    raise
            else:
                if mine is not None:
                    self._hand_over(mine)
                mine = self._answer(view[:length])
                if mine is not None and not self._workers.is_quick:
                    self._hand_over(mine)
                    mine = None
            self._step()
        if mine is not None and not self._transport.is_stopped:
            self._read_here(mine)

    def _answer(self, request: memoryview) -> Pending | None:
        """Answer a request; returns the read that it is when that has to wait."""
        outcome = self._transport.server.handle(request)
        if type(outcome) is list:
            self._transport.send(self._transport.late_reply(self, outcome) if self.is_done else outcome)
        elif isinstance(outcome, Pending):
            return outcome
        elif isinstance(outcome, Interrupted):
            self._transport.send(outcome.pending.interrupted())
        else:
            self._transport.interrupt(request)
        return None

    def _hand_over(self, pending: Pending) -> None:
        if not self._workers.submit(pending):
            self._read_here(pending)
        self._check_at = min(self._check_at, time.perf_counter() + STALL_S)

    def _read_here(self, pending: Pending) -> None:
        begun = time.perf_counter()
        self.reading = pending
        self._transport.send(pending.run())
        self.reading = None
        self._workers.finished(pending, time.perf_counter() - begun)

    def _step(self) -> None:
        """Something was done."""
        self.steps += 1
        now = time.perf_counter()
        self._lookout.answered(now)
        if now >= self._check_at:
            self._check_at = self._workers.check(now)

    def _wait(self) -> None:
        """There is no request: come back when it is time to look again."""
        now = time.perf_counter()
        # While others are at work nobody looks: they need the interpreter lock, and the core.
        if not (self._workers.is_busy or self._transport.others_work()) and self._lookout.looks_again(now):
            return
        if now >= self._check_at:
            self._check_at = self._workers.check(now)
        self.is_asleep = True
        self._poller.poll(None if self._check_at == _NEVER else max(0.0, self._check_at - now) * 1000)
        self.is_asleep = False
        self.steps += 1
        self._transport.watch()
        self._lookout.slept(time.perf_counter())
