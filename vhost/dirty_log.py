"""Notes which pages of a guest were written, for a front end that migrates it meanwhile; writes no page.

One bit for each page, from guest address 0 (QEMU docs/interop/vhost-user.rst, Migration). The front end takes
bits away and other back ends set theirs at the same time, so a bit is set by one atomic operation. Python has
none for shared memory, but Linux does one on behalf of whoever asks: FUTEX_WAKE_OP (futex(2)).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from typing import Final

from vhost.errors import RefusedError
from vhost.limits import LOG_BYTES_MAX
from vhost.messages import LogArea
from vhost.ordering import fence
from vhost.shared_memory import Mapping

PAGE_BITS: Final = 12  # VHOST_LOG_PAGE

_FUTEX_NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}  # asm/unistd.h
_FUTEX_WAKE_OP_PRIVATE: Final = 5 | 128  # linux/futex.h
_FUTEX_OP_OR_BIT: Final = (2 | 8) << 28  # FUTEX_OP_OR of 1 << operand; the operand is in bits 12 to 23

IS_AVAILABLE: Final = platform.machine() in _FUTEX_NUMBERS
"""Whether bits can be set on this machine; where not, migration must not be offered."""

_NUMBER: Final = _FUTEX_NUMBERS.get(platform.machine(), 0)
_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter lock: it never waits
_syscall.argtypes = (
    *(ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_long, ctypes.c_void_p, ctypes.c_uint),
)
_syscall.restype = ctypes.c_long


class DirtyLog:
    """The bits of all pages of a guest. Any thread may mark."""

    def __init__(self, area: LogArea, descriptor: int, *, sealed_only: bool = False) -> None:
        """Map; the descriptor stays the caller's. Raises RefusedError."""
        if area.size > LOG_BYTES_MAX:
            raise RefusedError("a log that is too long", expected=f"at most {LOG_BYTES_MAX}", found=area.size)
        if area.file_offset % 4:
            raise RefusedError("a log that is not aligned", expected="multiples of 4", found=area.file_offset)
        self._mapping = Mapping(descriptor, offset=area.file_offset, size=area.size, sealed_only=sealed_only)
        self._pages = area.size * 8
        self._start = ctypes.c_char.from_buffer(self._mapping.map, self._mapping.skip)
        self._address = ctypes.addressof(self._start)

    def close(self) -> None:
        """Unmap."""
        del self._start
        self._mapping.close()

    def mark(self, address: int, size: int) -> None:
        """Note that ``size`` bytes at a guest address were written just now."""
        self._set(range(address >> PAGE_BITS, ((address + size - 1) >> PAGE_BITS) + 1))

    def mark_spans(self, spans: Iterable[tuple[int, int]], written: int) -> None:
        """Note that the first ``written`` bytes of spans (address, size) were written just now."""
        pages: set[int] = set()
        for address, room in spans:
            size = min(room, written)
            if size:
                pages.update(range(address >> PAGE_BITS, ((address + size - 1) >> PAGE_BITS) + 1))
            written -= size
            if not written:
                break
        self._set(pages)

    def _set(self, pages: Iterable[int]) -> None:
        bits, skip = self._mapping.map, self._mapping.skip
        # What was written has to be visible before a bit is found set: else it could be taken away, and the
        # page copied, in between.
        fence()
        for page in pages:
            # Pages that the log has no bit for are not the guest's memory: a lie of the driver.
            if page < self._pages and not bits[skip + (page >> 3)] >> (page & 7) & 1:
                self._set_one(page)

    def _set_one(self, page: int) -> None:
        word = self._address + (page >> 5) * 4
        operation = _FUTEX_OP_OR_BIT | (page & 31) << 12
        if _syscall(_NUMBER, word, _FUTEX_WAKE_OP_PRIVATE, 0, 0, word, operation) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
