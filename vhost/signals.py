"""Eventfds, or pipes in their place, that say kick and call: never waits in one, whatever it really is.

O_NONBLOCK is set on all of them, and not relied on: it belongs to the front end as well, which can take it
away at any time. Each call says by itself that it must not wait (RWF_NOWAIT, preadv2(2)).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Final

from vhost.errors import RefusedError
from vhost.kernel_signals import KernelSignal, KernelSignals

_ONE: Final = (1).to_bytes(8, sys.byteorder)
"""What is written to an eventfd, and to a pipe in its place (QEMU docs/interop/vhost-user.rst)."""

_HERE: Final = -1  # in the place of an offset: where the descriptor stands


def adopt(descriptor: int, *, may_be_file: bool = False) -> int:
    """Own a descriptor that can signal, or carry bytes; returns it.

    ``may_be_file``: regular files do too. Nothing keeps those of some file systems from waiting for ever.
    Raises RefusedError, having closed it, when it is of no use.
    """
    what = "a descriptor that cannot signal"
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, False)
    except OSError as error:
        os.close(descriptor)
        raise RefusedError(what, found=error) from error
    if is_file and not may_be_file:
        os.close(descriptor)
        raise RefusedError(what, found="a file")
    return descriptor


def read(descriptor: int, size: int) -> bytes:
    """Read what is there; raises BlockingIOError when nothing is, OSError."""
    buffer = bytearray(size)
    try:
        length = os.preadv(descriptor, [buffer], _HERE, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        _forbid_to_wait(descriptor)
        return os.read(descriptor, size)
    return bytes(buffer[:length])


def write(descriptor: int, data: bytes | memoryview) -> int:
    """Write what there is room for; raises BlockingIOError when there is none, OSError."""
    try:
        return os.pwritev(descriptor, [data], _HERE, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        _forbid_to_wait(descriptor)
        return os.write(descriptor, data)


def _forbid_to_wait(descriptor: int) -> None:
    """Where a call cannot say it: pipes before Linux 6.4, files in memory. Others are refused: OSError."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or _is_anonymous(mode)):
        raise OSError(errno.EOPNOTSUPP, "not without waiting")
    os.set_blocking(descriptor, False)


def _is_anonymous(mode: int) -> bool:
    """Whether it is of those that have no name and no kind, as eventfds are."""
    return not stat.S_IFMT(mode)


def clear(descriptor: int) -> None:
    """Take the signals that are there. Raises OSError when none can come any more."""
    try:
        if not read(descriptor, len(_ONE)):
            raise BrokenPipeError("the other end was closed")
    except BlockingIOError:
        return


class Bell:
    """Somebody else's descriptor to signal; or none, then nobody wants to hear."""

    def __init__(self, kernel: KernelSignals) -> None:
        self._kernel = kernel
        self._descriptor: int | None = None
        self._request: KernelSignal | None = None  # of an eventfd, where the kernel takes it

    def replace(self, descriptor: int | None) -> None:
        """Signal this one from now on; owns it. Raises RefusedError when it is of no use."""
        self.close()
        if descriptor is not None:
            self._descriptor = adopt(descriptor)
            if self._kernel.is_available and _is_anonymous(os.fstat(descriptor).st_mode):
                self._request = self._kernel.prepared(descriptor)

    def ring(self) -> None:
        """Signal; one that is full of signals has been signalled. Raises OSError once nobody can hear it."""
        if self._descriptor is None:
            return
        try:
            if self._request is not None:
                self._kernel.signal(self._request)
            else:
                write(self._descriptor, _ONE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Signal nobody."""
        descriptor, self._descriptor = self._descriptor, None
        self._request = None
        if descriptor is not None:
            os.close(descriptor)
