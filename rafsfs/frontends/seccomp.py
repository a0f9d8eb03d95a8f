"""A filter of system calls for a server that has opened all it needs; knows neither files nor guests.

An allow list: what serves guests that are connected or will be, over descriptors that are open. Everything
else fails with EPERM, first of all whatever names a file, makes a socket or a process, or looks into another
one. Numbers: Linux asm/unistd_64.h and asm-generic/unistd.h; filters: seccomp(2), linux/bpf_common.h.

Written out because no Python library for this is kept up that does not need libseccomp (doc/adr/0008).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final, NamedTuple

_ALLOWED: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "preadv": (295, 69), "preadv2": (327, 286), "pwritev2": (328, 287), "io_submit": (209, 2),
    "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "dup": (32, 23), "fcntl": (72, 25), "ftruncate": (77, 46), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "futex": (202, 98), "munmap": (11, 215),
    "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "membarrier": (324, 283),
    "accept": (43, 202), "accept4": (288, 242), "recvfrom": (45, 207), "recvmsg": (47, 212),
    "sendto": (44, 206), "sendmsg": (46, 211), "shutdown": (48, 210), "getsockname": (51, 204),
    "getsockopt": (55, 209), "setsockopt": (54, 208), "eventfd2": (290, 19), "memfd_create": (319, 279),
    "set_robust_list": (273, 99), "rseq": (334, 293), "exit": (60, 93), "exit_group": (231, 94),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "getpid": (39, 172), "gettid": (186, 178),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getrandom": (318, 278), "getrusage": (98, 165), "getcpu": (309, 168), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sysinfo": (99, 179), "getpriority": (140, 141),
    "setpriority": (141, 140),
}  # fmt: skip
"""Name -> its number on x86-64 and on aarch64, None where there is no such call."""


class _Limited(NamedTuple):
    """A call that is allowed for some values of one argument: those with ``value`` under ``mask``."""

    numbers: tuple[int, int]
    argument: int
    mask: int
    values: tuple[int, ...]


_CLONE_THREAD: Final = 0x10000
_PROT_EXEC: Final = 0x4
_AT_EMPTY_PATH: Final = 0x1000
_FIONBIO: Final = 0x5421
_FIOCLEX: Final = 0x5451
_FIONCLEX: Final = 0x5450

_LIMITED: Final = (
    _Limited((56, 220), 0, _CLONE_THREAD, (_CLONE_THREAD,)),  # clone: threads, no processes
    _Limited((9, 222), 2, _PROT_EXEC, (0,)),  # mmap
    _Limited((10, 226), 2, _PROT_EXEC, (0,)),  # mprotect
    _Limited((262, 79), 3, _AT_EMPTY_PATH, (_AT_EMPTY_PATH,)),  # newfstatat: how glibc does fstat
    _Limited((16, 29), 1, 0xFFFF_FFFF, (_FIONBIO, _FIOCLEX, _FIONCLEX)),  # ioctl: Python's own
)
_CLONE3: Final = 435  # its flags lie in memory; without it the C library takes clone(2)

_ARCHITECTURES: Final = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}
"""``AUDIT_ARCH_*`` of a little-endian 64-bit machine, and its place in the numbers."""

_LD_W_ABS, _JEQ, _AND, _RET = 0x20, 0x15, 0x54, 0x06
_ALLOW: Final = 0x7FFF_0000  # SECCOMP_RET_ALLOW
_ERRNO: Final = 0x0005_0000  # SECCOMP_RET_ERRNO
_KILL: Final = 0x8000_0000  # SECCOMP_RET_KILL_PROCESS
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data

_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER: Final = 1
_TSYNC: Final = 1  # all threads of the process
_SPEC_ALLOW: Final = 4  # no strange code runs here: do not switch off what makes the processor quick


def is_known() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


def allow_serving_only() -> None:
    """Forbid this process, for good, all that ``_ALLOWED`` does not have; wants no_new_privs. OSError."""
    machine = platform.machine()
    program = _program(machine)
    code = ctypes.create_string_buffer(program, len(program))
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(
        ctypes.c_long(_SECCOMP[machine]),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(_TSYNC | _SPEC_ALLOW),
        ctypes.c_char_p(descriptor),
    )
    if result != 0:
        number = ctypes.get_errno() if result < 0 else errno.EAGAIN
        raise OSError(number, os.strerror(number))


def _program(machine: str) -> bytes:
    """The filter, as ``struct sock_filter`` one after the other."""
    architecture, place = _ARCHITECTURES[machine]
    steps = [(_LD_W_ABS, 0, 0, _ARCH), (_JEQ, 1, 0, architecture), (_RET, 0, 0, _KILL)]
    steps.append((_LD_W_ABS, 0, 0, _NR))
    for numbers in _ALLOWED.values():
        number = numbers[place]
        if number is not None:
            steps += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ALLOW)]
    for call in _LIMITED:
        # The lower half of the argument: a kernel with 64 bits looks at no more of an int, and these fit.
        test = [(_LD_W_ABS, 0, 0, _ARGUMENTS + 8 * call.argument), (_AND, 0, 0, call.mask)]
        for value in call.values:
            test += [(_JEQ, 0, 1, value), (_RET, 0, 0, _ALLOW)]
        test.append((_RET, 0, 0, _ERRNO | errno.EPERM))
        steps += [(_JEQ, 0, len(test), call.numbers[place]), *test]
    steps += [(_JEQ, 0, 1, _CLONE3), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    steps.append((_RET, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
