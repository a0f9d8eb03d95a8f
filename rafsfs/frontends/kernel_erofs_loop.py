"""Loop devices on files of the private mount, for kernels whose EROFS wants block devices; mounts nothing.

Source: Linux include/uapi/linux/loop.h (LOOP_CONFIGURE since 5.8) and loop(4).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from rafsfs.errors import MountError, Where
from rafsfs.format.erofs import BLOCK_SIZE
from rafsfs.format.record import RecordCodec, bytes32, bytes64, u32, u64

CONTROL: Final = "/dev/loop-control"
ATTEMPTS_MAX: Final = 64  # others may take the device that was free a moment ago, but not for ever

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A

_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4  # the last close detaches it: that of EROFS at its end, or ours
_DIRECT_IO: Final = 16  # FUSE would else cache what is cached above it already


class _Config(NamedTuple):
    """``struct loop_config`` with its ``struct loop_info64``."""

    fd: u32
    block_size: u32
    device: u64
    inode: u64
    rdevice: u64
    offset: u64
    size_limit: u64
    number: u32
    encrypt_type: u32
    encrypt_key_size: u32
    flags: u32
    file_name: bytes64
    crypt_name: bytes64
    encrypt_key: bytes32
    init: u64
    init2: u64


_CONFIG: Final = RecordCodec(_Config, size=304)


@contextmanager
def attached(folder: int, name: bytes) -> Iterator[str]:
    """Give the path of a read-only loop device on a file; it goes with its last user after the ``with``.

    ``name`` is relative to the open directory ``folder``. Raises OSError, and MountError when there are no
    loop devices to be had.
    """
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        path, device = _attach(file, name)
    finally:
        os.close(file)
    try:
        yield path
    finally:
        os.close(device)


def _attach(file: int, name: bytes) -> tuple[str, int]:
    config = _CONFIG.pack(
        _Config(
            fd=file,
            block_size=BLOCK_SIZE,
            **dict.fromkeys(("device", "inode", "rdevice", "offset", "size_limit", "number"), 0),
            encrypt_type=0,
            encrypt_key_size=0,
            flags=_READ_ONLY | _AUTOCLEAR | _DIRECT_IO,
            file_name=name[-63:].ljust(64, b"\0"),
            crypt_name=bytes(64),
            encrypt_key=bytes(32),
            init=0,
            init2=0,
        )
    )
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_loops(CONTROL, error) from error
    try:
        for _ in range(ATTEMPTS_MAX):
            try:
                path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            except OSError as error:
                raise _no_loops(CONTROL, error) from error
            try:
                device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _no_loops(path, error) from error
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, device
    finally:
        os.close(control)
    raise _no_loops(CONTROL, OSError(errno.EBUSY, f"none stays free ({ATTEMPTS_MAX} attempts)"))


def _no_loops(path: str, error: OSError) -> MountError:
    return MountError(
        "this kernel's EROFS takes no files (Linux 6.12 does), and there are no loop devices",
        found=error.strerror,
        where=Where(file=path),
        hint="modprobe loop, give the container its devices, or use --frontend devfuse",
    )
