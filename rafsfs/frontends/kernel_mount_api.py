"""The kernel's mount API of file descriptors, fsopen(2) to move_mount(2); knows no file system of ours.

Source of the numbers: Linux include/uapi/linux/mount.h and asm-generic/unistd.h; system calls from 424 on
have one number on all architectures but Alpha. Python has no functions for them, older C libraries neither.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

MESSAGE_BYTES_MAX: Final = 4096  # of one message of the kernel about a mount that fails

_AT_FDCWD: Final = -100


class _Call(enum.IntEnum):
    MOVE_MOUNT = 429
    FSOPEN = 430
    FSCONFIG = 431
    FSMOUNT = 432


class _Command(enum.IntEnum):
    """``enum fsconfig_command``."""

    SET_FLAG = 0
    SET_STRING = 1
    CREATE = 6


class MountAttribute(enum.IntFlag):
    """MOUNT_ATTR_*: what holds for one mount of a file system."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8


_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x4_0000
_MNT_DETACH: Final = 2
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_CLONE_FS: Final = 0x200  # linux/sched.h: working directory, root directory and umask


class NewMount:
    """A file system on its way to be mounted; use it in a ``with``.

    All methods raise OSError, whose ``strerror`` also holds what the kernel says beside the errno.
    """

    def __init__(self, kind: str) -> None:
        """Begin with a file system of this type. ENODEV: the kernel has none such; EPERM: not root."""
        self._fd = _call(_Call.FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)

    def __enter__(self) -> NewMount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def set_flag(self, name: str) -> None:
        """Switch on an option."""
        self._configure(_Command.SET_FLAG, name.encode(), None)

    def set_string(self, name: str, value: str | bytes) -> None:
        """Give an option its value; nothing in it needs to be escaped."""
        self._configure(_Command.SET_STRING, name.encode(), os.fsencode(value))

    def create(self, attributes: MountAttribute) -> int:
        """Make the file system; returns the descriptor of a mount of it that is nowhere yet.

        Closing the descriptor unmounts it, unless it was attached.
        """
        self._configure(_Command.CREATE, None, None)
        return _call(_Call.FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, int(attributes))

    def _configure(self, command: _Command, name: bytes | None, value: bytes | None) -> None:
        try:
            _call(_Call.FSCONFIG, self._fd, int(command), name, value, 0)
        except OSError as error:
            if said := self._messages():
                raise OSError(error.errno, f"{error.strerror} ({said})") from None
            raise

    def _messages(self) -> str:
        """What the kernel says about the last step, each with ``e``, ``w`` or ``i`` and a space in front."""
        messages = []
        with suppress(OSError):  # ENODATA after the last one
            while True:
                messages.append(os.read(self._fd, MESSAGE_BYTES_MAX).decode(errors="replace")[2:].strip())
        return "; ".join(messages)


def attach(mount: int, directory: Path) -> None:
    """Put a mount that is nowhere on ``directory``, a real path. Raises OSError."""
    _call(_Call.MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(directory), _MOVE_MOUNT_F_EMPTY_PATH)


def become_root(mount: int, place: Path) -> None:
    """Make a mount that is nowhere the root of this process, in a mount namespace of its own; OSError.

    ``place`` is any real directory, which it covers meanwhile. All other mounts are gone afterwards.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
        raise _error()
    attach(mount, place)
    os.chdir(place)
    # The old root comes to lie over the new one, and is taken off it: pivot_root(2), at the end.
    _call(_PIVOT_ROOT[platform.machine()], b".", b".")
    if libc.umount2(b".", _MNT_DETACH) != 0:
        raise _error()
    os.chdir("/")


def enter(directory: int) -> None:
    """Make an open directory the working directory of the calling thread alone. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_FS) != 0:
        raise _error()
    os.fchdir(directory)


def _call(number: int, *arguments: int | bytes | None) -> int:
    # Variadic, so each argument has to fill a register.
    words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise _error()
    return int(result)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
