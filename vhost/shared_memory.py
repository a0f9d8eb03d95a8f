"""Maps files that somebody else has shared, and makes sure that no access to them can kill this process.

A mapping ends with its file: who truncates the file makes the next access a SIGBUS, which ends a process that
serves others as well. Files that are sealed against shrinking cannot be truncated.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from vhost.errors import RefusedError

F_GET_SEALS: Final = 1034  # linux/fcntl.h
F_SEAL_SHRINK: Final = 0x0002
F_SEAL_GROW: Final = 0x0004
F_SEAL_SEAL: Final = 0x0001
F_ADD_SEALS: Final = 1033


class Mapping:
    """``size`` bytes of a file, to read and write; ``skip`` is where they begin in ``map``."""

    __slots__ = ("map", "size", "skip")

    def __init__(self, descriptor: int, *, offset: int, size: int, sealed_only: bool = False) -> None:
        """Map; the descriptor stays the caller's. ``sealed_only`` refuses files that can be truncated.

        Raises RefusedError: a file that ends earlier, cannot be mapped, or cannot be trusted to stay.
        """
        if size <= 0:
            raise RefusedError("an area without a size", found=size)
        if sealed_only:
            _check_sealed(descriptor)
        try:
            status = os.fstat(descriptor)
            # Huge pages are mapped whole; their size is the block size of their file system.
            page = max(mmap.ALLOCATIONGRANULARITY, _power_of_two(status.st_blksize))
            start = offset - offset % page
            self.skip = offset - start
            length = self.skip + size
            if page > mmap.ALLOCATIONGRANULARITY and start + length < status.st_size:
                length = min(-(-length // page) * page, status.st_size - start)
            self.map = mmap.mmap(descriptor, length, offset=start)
            # Whoever debugs this process wants no guest's memory in the core file.
            self.map.madvise(mmap.MADV_DONTDUMP)
        except (OSError, ValueError, OverflowError) as error:  # ValueError: longer than its file
            raise RefusedError("shared memory cannot be mapped", found=error) from error
        self.size = size

    def close(self) -> None:
        """Unmap. BufferError says that somebody still has a view, which is a mistake of ours."""
        self.map.close()


def create_sealed(name: str, size: int) -> int:
    """A new file in memory, of ``size`` zeros for good, to be shared; returns its descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_sealed(descriptor: int) -> None:
    try:
        seals = fcntl.fcntl(descriptor, F_GET_SEALS)
    except OSError:  # not a file in memory at all: a file system that hangs would hang this process
        seals = 0
    if not seals & F_SEAL_SHRINK:
        raise RefusedError("shared memory that can be truncated", expected="a memfd with F_SEAL_SHRINK")


def _power_of_two(size: int) -> int:
    return size if size > 0 and not size & (size - 1) else 1
