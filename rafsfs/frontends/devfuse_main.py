"""What the main thread does while others serve a FUSE connection: it waits for signals; mounts nothing.

It does only that, so that a store which hangs holds up neither a signal nor the unmount.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rafsfs.frontends.devfuse_transport import Transport
from rafsfs.frontends.mount_options import STOP_SIGNALS
from rafsfs.fuse.server import FuseServer
from rafsfs.reading.engine import ReadEngine

log = logging.getLogger("rafsfs.mount")

STOP_WAIT_S: Final = 0.25
"""How long the unmount waits for the thread that serves; only one that hangs in a read takes longer."""

_ALARM: Final = signal.SIGALRM
"""Of the timer that watches over requests, and the main thread's bell."""


@contextmanager
def signals_blocked() -> Iterator[set[signal.Signals]]:
    """Block, in this thread and those that it starts, the signals to wait for; gives them.

    None of them then ends us between mounting and unmounting, which would leave a dead mount behind. What
    the caller ignores stays ignored: nohup(1) wants it so. What comes too late has had its way.
    """
    awaited = {number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    awaited.add(_ALARM)
    handlers = {number: signal.signal(number, lambda *_: None) for number in awaited}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        yield awaited
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def transport_of(fd: int, server: FuseServer, engine: ReadEngine) -> Transport:
    """Make the transport of a connection that the main thread, the caller, is to wait for.

    ``engine`` is what the server reads with.
    """
    main_thread = threading.get_ident()
    return Transport(
        fd,
        server,
        alarm=lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds),
        ended=lambda: signal.pthread_kill(main_thread, _ALARM),
        cores=len(os.sched_getaffinity(0)),
        others_work=lambda: engine.is_reading_ahead,
    )


def wait_for_end(transport: Transport, awaited: set[signal.Signals]) -> None:
    """Return when the connection has come to an end, or a signal asks for one."""
    while True:
        number = signal.sigwait(awaited)
        if transport.has_ended:
            return
        if number != _ALARM:
            log.info("unmounting, as signal %s asks", signal.Signals(number).name)
            return
        transport.look_after()


def let_go(fd: int, nobody_writes: bool) -> None:
    """Close the connection, which gives an error to whoever still waits."""
    if nobody_writes:
        os.close(fd)
        return
    # A read that hangs may still send its reply, to whatever has this number by then.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd, inheritable=False)
    os.close(null)
