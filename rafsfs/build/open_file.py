"""One regular file of a source tree while it is read; owns noticing changes, never searches for files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from rafsfs.build.source import Hole, refusal
from rafsfs.build.source_pieces import cut_pieces
from rafsfs.errors import BuildError, SourceChanged, SourceUnreadable

# NONBLOCK: a fifo that took a file's place must not keep us waiting. NOATIME: reading should leave no trace.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_NOATIME: int = getattr(os, "O_NOATIME", 0)
_HAS_FADVISE = hasattr(os, "posix_fadvise")  # not on macOS
_FETCH_AHEAD_BYTES = 1 << 20  # behind that the kernel's own read-ahead of sequential reads does it
_ALLOCATION_UNIT = 512  # of st_blocks, whatever the file system's block size
_CHANGED_HINT = "build from a snapshot, wait until nothing writes to it, or leave it out with --exclude"


class OpenFile:
    """A regular file that is open from before its entry is made to after its content was read.

    A builder may keep entries for as long as it runs, so this holds no more than it needs.
    """

    __slots__ = ("_changed_ns", "_sparse", "fd", "path", "size")

    def __init__(self, fd: int, path: bytes, status: os.stat_result) -> None:
        self.fd = fd
        self.path = path
        self.size = status.st_size
        self._sparse = status.st_blocks * _ALLOCATION_UNIT < status.st_size
        self._changed_ns = (status.st_mtime_ns, status.st_ctime_ns)

    def close(self) -> None:
        """Close it; its content can no longer be had. An interrupt may have a walk close it twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def fetch_ahead(self) -> None:
        """Ask the kernel to have the start of the file in memory when its turn comes."""
        if _HAS_FADVISE and self.size:
            os.posix_fadvise(self.fd, 0, _FETCH_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)

    def content(self, piece_size: int) -> Iterator[bytes | Hole]:
        """See ``source.Content``. Raises BuildError when the file was changed since it became the entry."""
        if self.fd < 0:
            raise AssertionError("content was asked for after the next entry")
        try:
            yield from self._pieces(piece_size)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _pieces(self, piece_size: int) -> Iterator[bytes | Hole]:
        size = self.size
        if 0 < size <= piece_size and not self._sparse:  # most files
            whole = self._read(0, size)
            self._check_same()
            yield whole
            return
        extents = _data_extents(self.fd, size) if self._sparse else iter([(0, size)])
        held: bytes | Hole | None = None  # the last piece is given away only when all is known to be well
        for piece in cut_pieces(size, extents, piece_size, self._read):
            if held is not None:
                yield held
            held = piece
        self._check_same()
        if held is not None:
            yield held

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self.fd, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        while data and (length := length - len(data)):
            offset += len(data)
            data = os.pread(self.fd, length, offset)
            parts.append(data)
        if not data:
            raise changed(self.path)
        return b"".join(parts)

    def _check_same(self) -> None:
        status = os.fstat(self.fd)
        if status.st_size != self.size or (status.st_mtime_ns, status.st_ctime_ns) != self._changed_ns:
            raise changed(self.path)


def open_regular(parent: int, name: bytes, path: bytes) -> tuple[OpenFile, os.stat_result]:
    """Open ``name`` in the directory ``parent``, whoever calls closes it; all that is told is of one inode.

    Raises OSError when it cannot be opened, BuildError when it is not a regular file.
    """
    fd = open_at(name, _FILE_FLAGS, parent)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise changed(path)
    return OpenFile(fd, path, status), status


def _data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Ask the file system which (offset, length) of a file are not holes."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            if error.errno == errno.EINVAL:  # a file system that cannot tell
                yield position, size - position
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end - start
        position = end


def open_at(name: bytes, flags: int, parent: int) -> int:
    """Open ``name`` in the directory ``parent``, leaving its atime alone where that is allowed."""
    try:
        return os.open(name, flags | _NOATIME, dir_fd=parent)
    except PermissionError as error:
        if error.errno != errno.EPERM or not _NOATIME:
            raise
    return os.open(name, flags, dir_fd=parent)  # NOATIME is only for the owner


def changed(path: bytes) -> BuildError:
    """Make the error for what was not what it had been a moment before."""
    return refusal(path, "the source changed while it was read", hint=_CHANGED_HINT, kind=SourceChanged)


def unreadable(path: bytes, error: OSError) -> BuildError:
    """Make the error for what the kernel would not give."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:  # was listed a moment ago, as another kind
        return changed(path)
    hint = "leave it out with --exclude"
    if error.errno in {errno.EACCES, errno.EPERM}:
        hint += ", or build as a user who may read it"
    return refusal(path, "the source cannot be read", found=error.strerror, hint=hint, kind=SourceUnreadable)
