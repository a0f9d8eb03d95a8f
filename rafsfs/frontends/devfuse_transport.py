"""One FUSE connection over /dev/fuse: who serves it, how replies leave, what becomes of requests that hang.

One thread at a time takes requests (``devfuse_leader``). It may hang: a store of images is a file system as
well, perhaps one behind a network. While there is something to do a timer calls ``look_after``, which lets
another thread serve when the first has made no step; a request that hangs gets an error after its deadline,
or when the kernel interrupts it. Nobody waits for a thread that hangs.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from rafsfs.errors import MountError
from rafsfs.frontends.devfuse_leader import Leader
from rafsfs.frontends.devfuse_workers import Workers
from rafsfs.fuse import abi, reply
from rafsfs.fuse.abi import NotifyCode, Opcode
from rafsfs.fuse.pending import Pending
from rafsfs.fuse.reply import Reply
from rafsfs.fuse.server import FuseServer

log = logging.getLogger("rafsfs.mount")

PATIENCE_S: Final = 0.05
"""A request that takes longer, up to twice that, no longer keeps the others waiting."""

HELD_UP_MAX: Final = 64
"""Threads that a store which hangs may cost; the next request that hangs holds up all others."""

FIRST_REQUEST_S: Final = 10.0  # it lies there when the mount is made
IOV_MAX: Final = 1024  # parts that writev(2) takes
_ANSWERED_LOOK_S: Final = 0.002

_UNWANTED: Final = frozenset((errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN))
"""What writing a reply gives when nobody waits for it any more (Linux fs/fuse/dev.c, fuse_dev_do_write)."""

_REPLY: Final = struct.Struct("<" + abi.OUT_HEADER.layout("unique"))
_INTERRUPT_BYTES: Final = abi.IN_HEADER.size + abi.INTERRUPT_IN.size
_REQUEST: Final = struct.Struct("<" + abi.IN_HEADER.layout("opcode", "unique"))


class Transport:
    """``negotiate``, ``start``, then ``look_after`` whenever the timer says so, and ``stop`` at the end.

    Where another server has negotiated, ``start`` comes first. A connection that another server is to have is
    given up by ``pause`` and ``release``, or kept by ``resume``.
    """

    def __init__(
        self,
        fd: int,
        server: FuseServer,
        *,
        alarm: Callable[[float], object],
        ended: Callable[[], object],
        cores: int,
        others_work: Callable[[], bool] = lambda: False,
    ) -> None:
        """``fd`` is /dev/fuse, mounted; it stays the caller's to close.

        ``alarm`` sets a timer to so many seconds; when they are over somebody has to call ``look_after``.
        ``ended`` is called when the connection has come to an end by itself. ``others_work`` tells whether
        threads that are not the transport's need the cores.
        """
        self.fd = fd
        self.server = server
        self.workers = Workers(self.send, cores)
        self.wake_fd, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.is_stopped = False
        self.has_ended = False
        self.others_work = others_work
        self.failure: BaseException | None = None  # a mistake of ours that ended it
        self._alarm = alarm
        self._ended = ended
        self._cores = cores
        self._leader = self._new_leader()  # while paused the next one, not started
        self._is_paused = False
        self._is_watched = False  # the timer runs
        self._steps_seen = -1  # of the leader, when it was over last
        self._held_up: dict[Leader, Pending] = {}  # former leaders and the requests that they hang in
        self._lock = threading.Lock()  # around who leads and who has ended
        os.set_blocking(fd, False)

    def negotiate(self) -> None:
        """Answer the kernel's first request; raises MountError when it and we have no protocol in common."""
        buffer = memoryview(bytearray(self.server.options.request_bytes_max))
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        while self.server.negotiated is None:
            if not poller.poll(FIRST_REQUEST_S * 1000):
                raise MountError("the kernel does not begin to speak", expected="its request INIT")
            try:
                length = os.readv(self.fd, [buffer])
            except OSError as error:
                raise MountError("the mount has gone again", found=error.strerror) from error
            outcome = self.server.handle(buffer[:length])
            if isinstance(outcome, list):
                self.send(outcome)
                if len(outcome[0]) == reply.HEADER_BYTES:  # an error
                    raise MountError("the kernel and rafsfs have no FUSE protocol in common")

    def start(self) -> None:
        """Serve, on threads, from now on."""
        self._leader.thread.start()
        self.watch()

    def stop(self, wait_s: float) -> bool:
        """End serving, and wait for that no longer than ``wait_s``: threads may hang.

        Returns whether all have ended. Others may still write to the descriptor, so its number must not
        come to mean something else.
        """
        with self._lock:
            self.is_stopped = self._leader.is_done = True
        os.write(self._wake_write, b"\0")
        if self._leader.thread.ident is not None:
            self._leader.thread.join(wait_s)
            if self._leader.thread.is_alive():
                return False
        os.close(self.wake_fd)
        os.close(self._wake_write)
        return self.workers.stop() and not self._held_up

    # --- Giving the connection to another server ----------------------------------------------------------

    def pause(self, wait_s: float) -> bool:
        """Take no more requests. Those taken are answered as before, later than ``wait_s`` where they hang.

        Returns False when the connection has come to its end. On a thread of nobody's else.
        """
        with self._lock:
            if self.has_ended or self.is_stopped:
                return False
            leader, self._leader = self._leader, self._new_leader()
            self._is_paused = leader.is_done = True
        os.write(self._wake_write, b"\0")
        leader.thread.join(wait_s)
        os.read(self.wake_fd, 1)
        with self._lock:
            if not leader.is_over:
                self._hold_up(leader)
        return True

    def wait_until_answered(self, wait_s: float, is_given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait, while paused, until all requests that were taken have an answer; returns whether they have.

        Waits no longer than ``wait_s``, and only until ``is_given_up``. They meet their deadlines meanwhile.
        """
        end = time.perf_counter() + wait_s
        while self.workers.is_busy:
            now = time.perf_counter()
            if now >= end or is_given_up():
                return False
            self.workers.check(now)
            time.sleep(_ANSWERED_LOOK_S)
        return True

    def resume(self) -> None:
        """Take requests again after ``pause``."""
        with self._lock:
            self._is_paused = False
            if not self.is_stopped:
                self._leader.thread.start()
        self.watch()

    def release(self) -> None:
        """Come to an end while paused, as if the connection had: another server has it."""
        with self._lock:
            self.is_stopped = self.has_ended = True
        self._ended()

    def resend(self) -> None:
        """Have the kernel ask again what it was not answered yet: who took those requests will not.

        Needs Linux 6.9. Requests that somebody answers at the same time get one answer all the same.
        """
        os.writev(self.fd, reply.notification(NotifyCode.RESEND))

    # --- Replies, on any thread ---------------------------------------------------------------------------

    def send(self, parts: Reply | None) -> None:
        """Write a reply, unless somebody else has answered. Never raises: the asker would wait for ever."""
        if parts is None:
            return
        try:
            os.writev(self.fd, parts if len(parts) <= IOV_MAX else [b"".join(parts)])
        except OSError as error:
            if error.errno not in _UNWANTED:
                self._send_refusal(parts, error)

    def _send_refusal(self, parts: Reply, error: OSError) -> None:
        """Fail the request whose reply the kernel did not take; mostly it has done so by itself."""
        (unique,) = _REPLY.unpack_from(parts[0])
        log.error("the kernel refused a reply of %d bytes: %s", sum(map(len, parts)), error.strerror)
        try:
            os.writev(self.fd, reply.error(unique, errno.EIO))
        except OSError as again:
            if again.errno not in _UNWANTED:
                log.error("and the error as well: %s", again.strerror)  # noqa: TRY400  # no traceback wanted

    # --- Requests that hang -------------------------------------------------------------------------------

    def watch(self) -> None:
        """See that the timer runs; the leader calls it when it wakes up."""
        if not self._is_watched and not self.is_stopped:
            self._is_watched = True
            self._alarm(PATIENCE_S)

    def look_after(self) -> None:
        """Let another thread serve if the one that does has not made a step since the last call."""
        leader = self._leader
        self._is_watched = False
        if leader.is_asleep:  # looked at after the line above: it calls ``watch`` after it has said otherwise
            return
        if leader.steps == self._steps_seen:
            if len(self._held_up) < HELD_UP_MAX:
                self._relieve(leader)
            else:
                self.workers.check(time.perf_counter())
        self._steps_seen = self._leader.steps
        self.watch()

    def _relieve(self, leader: Leader) -> None:
        successor = self._new_leader()
        with self._lock:
            if self.has_ended or self._is_paused or leader is not self._leader:
                return
            if leader.is_asleep or leader.steps != self._steps_seen:
                return  # it has come back meanwhile, and hangs in nothing
            self._hold_up(leader)  # before the successor may meet an INTERRUPT for its request
            try:
                successor.thread.start()
            except RuntimeError as error:
                log.warning("no thread for requests while one hangs: %s", error)
                self.workers.forget(self._held_up.pop(leader))
                return
            self._leader = successor
            leader.is_done = True
            self._hold_up(leader)  # it may have gone on to another request while its successor was started

    def _hold_up(self, leader: Leader) -> None:
        """Watch over the request that a leader is at, with the lock held."""
        pending = leader.reading
        if pending is None:
            _, unique = _REQUEST.unpack_from(leader.request)
            pending = Pending(unique, lambda: leader.made, lambda _: None)
        before = self._held_up.get(leader)
        if before is not None:
            if before.unique == pending.unique:
                return
            self.workers.forget(before)
        self._held_up[leader] = pending
        self.workers.adopt(pending)

    def interrupt(self, request: memoryview) -> None:
        """Give up the request that hangs in a former leader, if this is an INTERRUPT for it."""
        if not self._held_up or len(request) < _INTERRUPT_BYTES:
            return
        opcode, _ = _REQUEST.unpack_from(request)
        if opcode != Opcode.INTERRUPT:
            return
        target = abi.INTERRUPT_IN.unpack_from(request, abi.IN_HEADER.size).unique
        with self._lock:
            hanging = next((pending for pending in self._held_up.values() if pending.unique == target), None)
        if hanging is not None:
            self.send(hanging.interrupted())

    def late_reply(self, leader: Leader, made: Reply) -> Reply | None:
        """Return what a leader has made after all, unless its request has been answered meanwhile."""
        leader.made = made
        _, unique = _REQUEST.unpack_from(leader.request)
        with self._lock:
            pending = self._held_up.get(leader)
        # One more request may have come in between: nobody else answers that.
        return made if pending is None or pending.unique != unique else pending.run()

    def finished(self, leader: Leader) -> None:
        """Take note of a leader's end."""
        with self._lock:
            leader.is_over = True
            if leader is self._leader:
                self.failure = leader.failure
                self.has_ended = not self.is_stopped
                if self.has_ended:
                    self._ended()
                return
            hung_in = self._held_up.pop(leader, None)
            if hung_in is not None:
                self.workers.forget(hung_in)
        if leader.failure is not None:
            log.error("serving failed: %s", leader.failure)

    def _new_leader(self) -> Leader:
        return Leader(self, self.server.options.request_bytes_max, self._cores)
