"""Has the kernel signal eventfds that others share, which never waits; reads none and keeps none.

A write(2) to an eventfd waits while its counter is full, unless O_NONBLOCK is set. That flag belongs to all
who have the eventfd, so whoever gave it to us can fill it and take the flag away between two calls of ours,
and RWF_NOWAIT is not for writes to eventfds. The kernel's own signals never wait: a counter that is full
stays full (eventfd_signal). It sends one when an asynchronous request with IOCB_FLAG_RESFD is done, and to
read nothing from /dev/null is done at once (io_submit(2), linux/aio_abi.h).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

_NUMBERS: Final = {"x86_64": (206, 207, 209), "aarch64": (0, 1, 2), "riscv64": (0, 1, 2)}
"""io_setup, io_destroy and io_submit in asm/unistd.h."""

_SETUP, _DESTROY, _SUBMIT = _NUMBERS.get(platform.machine(), (0, 0, 0))

_REQUEST: Final = struct.Struct("=QIIHhIQQqQII")
"""``struct iocb`` of a little-endian machine: data, key, rw_flags, opcode, priority, file, buffer, bytes,
offset, reserved, flags, eventfd."""

_PREAD: Final = 0  # IOCB_CMD_PREAD
_SIGNALS: Final = 1  # IOCB_FLAG_RESFD
_EVENTS: Final = 64  # of which nobody takes notice: they are thrown away when there is no more room
_HEAD, _TAIL = 2, 3  # places of 32 bits in the ring of events, struct aio_ring in fs/aio.c

_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter lock: it never waits
_syscall.argtypes = (ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
_syscall.restype = ctypes.c_long


class KernelSignals:
    """What it takes to have eventfds signalled; any thread may. Does not outlive a fork(2)."""

    def __init__(self) -> None:
        """Make ready. Where a kernel or its administrator does not let us, ``is_available`` says so."""
        context = ctypes.c_ulong(0)
        self.is_available = (
            platform.machine() in _NUMBERS and _syscall(_SETUP, _EVENTS, ctypes.addressof(context), None) == 0
        )
        self._context = context.value
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if self.is_available:
            self._ring = (ctypes.c_uint32 * 4).from_address(self._context)

    def close(self) -> None:
        """Give it back; the end of the process does that too, where a filter of system calls forbids it."""
        os.close(self._null)
        if self.is_available:
            self.is_available = False
            del self._ring
            _syscall(_DESTROY, self._context, 0, None)

    def signal(self, request: KernelSignal) -> None:
        """Raise OSError when its descriptor is no eventfd, or this was closed."""
        if not self.is_available:
            raise OSError("no more signals")
        if _syscall(_SUBMIT, self._context, 1, request.address) != 1:
            self._ring[_HEAD] = self._ring[_TAIL]  # perhaps the ring of events was full
            if _syscall(_SUBMIT, self._context, 1, request.address) != 1:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))

    def prepared(self, descriptor: int) -> KernelSignal:
        """A request that signals this eventfd, whenever it is made."""
        return KernelSignal(_REQUEST.pack(0, 0, 0, _PREAD, 0, self._null, 0, 0, 0, 0, _SIGNALS, descriptor))


class KernelSignal:
    """A request to signal one eventfd, laid out in memory at ``address``."""

    __slots__ = ("_pointer", "_record", "address")

    def __init__(self, record: bytes) -> None:
        self._record = ctypes.create_string_buffer(record, len(record))
        self._pointer = ctypes.c_void_p(ctypes.addressof(self._record))
        self.address = ctypes.addressof(self._pointer)
