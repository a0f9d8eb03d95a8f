"""Makes one inode of a tree at a time under an open directory, with everything that an image says of it.

Names are given to the kernel one component at a time, relative to a descriptor, and never followed: whatever
an image holds and whatever lay in the target before, nothing is written outside the target.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from rafsfs.fs.attributes import Attributes
from rafsfs.limits import PROBLEMS_MAX

R = TypeVar("R")

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE_DIRECTORY = 0o700  # until it is complete
_PRIVATE_FILE = 0o600
_SET_ID = stat.S_ISUID | stat.S_ISGID
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_CAPABILITY = b"security.capability"
_KERNEL_XATTRS = (b"trusted.", b"security.")  # xattr(7): for CAP_SYS_ADMIN, or what a security module allows
_HAS_XATTRS = hasattr(os, "setxattr")  # of Python's os: on Linux only

Xattrs = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Which attributes are to be written; ``replace`` lets names that are in the way be replaced."""

    owners: bool = True
    xattrs: bool = True
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attribute or inode that the target's file system or kernel would not take, and why."""

    path: bytes
    what: str
    error: OSError


@dataclass(slots=True)
class Losses:
    """What was left out: ``skipped`` because the caller may not, by kind; ``refused`` though he may.

    Any thread may add to it. The first ``PROBLEMS_MAX`` refusals are kept, ``refused_count`` counts them all.
    """

    skipped: Counter[str] = field(default_factory=Counter)
    refused: list[Refusal] = field(default_factory=list)
    refused_count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def skip(self, what: str) -> None:
        """Count one thing that was not tried."""
        with self._lock:
            self.skipped[what] += 1

    def refuse(self, path: bytes, what: str, error: OSError) -> None:
        """Note one thing that failed."""
        with self._lock:
            self.refused_count += 1
            if len(self.refused) < PROBLEMS_MAX:
                self.refused.append(Refusal(path, what, error))


class _Handle(Protocol):
    """One inode, to write attributes of; every method raises OSError."""

    def chown(self, uid: int, gid: int) -> None: ...
    def chmod(self, mode: int) -> None: ...
    def set_xattr(self, name: bytes, value: bytes) -> None: ...
    def set_time(self, mtime_ns: int) -> None: ...


class _OpenHandle:
    """An open file or directory."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def chown(self, uid: int, gid: int) -> None:
        os.fchown(self._fd, uid, gid)

    def chmod(self, mode: int) -> None:
        os.fchmod(self._fd, mode)

    def set_xattr(self, name: bytes, value: bytes) -> None:
        os.setxattr(self._fd, name, value)

    def set_time(self, mtime_ns: int) -> None:
        os.utime(self._fd, ns=(mtime_ns, mtime_ns))


class _NameHandle:
    """A name in an open directory, of what is not opened: a symlink, or a node whose driver would notice."""

    def __init__(self, directory_fd: int, name: bytes) -> None:
        self._directory_fd = directory_fd
        self._name = name

    def chown(self, uid: int, gid: int) -> None:
        os.chown(self._name, uid, gid, dir_fd=self._directory_fd, follow_symlinks=False)

    def chmod(self, mode: int) -> None:
        """For nodes only: a symlink has no mode."""
        if os.chmod in os.supports_follow_symlinks:
            os.chmod(self._name, mode, dir_fd=self._directory_fd, follow_symlinks=False)
            return
        # Linux got such a call in 6.6 only; O_PATH opens the node itself, and none that is put in its place
        fd = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory_fd)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            os.chmod(b"/proc/self/fd/%d" % fd, mode)  # noqa: PTH101  # a name of bytes
        finally:
            os.close(fd)

    def set_xattr(self, name: bytes, value: bytes) -> None:
        path = b"/proc/self/fd/%d/%s" % (self._directory_fd, self._name)
        os.setxattr(path, name, value, follow_symlinks=False)

    def set_time(self, mtime_ns: int) -> None:
        os.utime(self._name, ns=(mtime_ns, mtime_ns), dir_fd=self._directory_fd, follow_symlinks=False)


class NodeWriter:
    """Makes inodes and writes their attributes; any thread may use it.

    What the target does not take of an attribute is noted in ``losses``; an inode or content that it does not
    take raises OSError.
    """

    def __init__(self, fidelity: Fidelity, losses: Losses, root_fd: int) -> None:
        """``root_fd`` is the target directory."""
        self._fidelity = fidelity
        self._losses = losses
        self._uid = os.geteuid()
        self._groups = {os.getegid(), *os.getgroups()}
        # a default ACL of the target would be inherited by everything that is made in it: acl(5)
        self._inherits = _HAS_XATTRS and (fidelity.replace or _ACLS[1] in _xattr_names(root_fd))

    # --- Inodes ---------------------------------------------------------------------------------------------

    def make_directory(self, directory_fd: int, name: bytes) -> None:
        """Make a directory that is private until it is dressed; with ``replace``, take one that is there."""
        try:
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=directory_fd)
        except FileExistsError:
            if not self._fidelity.replace:
                raise
            if stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
                return
            os.unlink(name, dir_fd=directory_fd)
            os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=directory_fd)
        if self._inherits:
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=directory_fd)
            try:
                self.clear_acls(fd)
            finally:
                os.close(fd)

    def create_file(self, directory_fd: int, name: bytes) -> int:
        """Create an empty file that only we can open; returns it, open for writing."""
        fd = self._make(
            directory_fd, name, lambda: os.open(name, _CREATE_FILE, _PRIVATE_FILE, dir_fd=directory_fd)
        )
        if self._inherits:
            self.clear_acls(fd)
        return fd

    def make_symlink(self, directory_fd: int, name: bytes, target: bytes) -> None:
        """Make a symlink, whatever it points to."""
        self._make(directory_fd, name, lambda: os.symlink(target, name, dir_fd=directory_fd))

    def make_special(self, directory_fd: int, name: bytes, attributes: Attributes, path: bytes) -> bool:
        """Make a fifo, socket or device node; False when it was left out."""
        kind = stat.S_IFMT(attributes.mode)
        is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        if is_device and self._uid != 0:
            self._losses.skip("device nodes")
            return False

        def make() -> None:
            if kind == stat.S_IFIFO:
                os.mkfifo(name, _PRIVATE_FILE, dir_fd=directory_fd)
            else:
                os.mknod(name, kind | _PRIVATE_FILE, attributes.rdev, dir_fd=directory_fd)

        try:
            self._make(directory_fd, name, make)
        except PermissionError as error:
            if not is_device:
                raise
            self._losses.refuse(path, "device node", error)  # in a user namespace not even root may
            return False
        return True

    def make_link(self, from_fd: int, from_name: bytes, directory_fd: int, name: bytes) -> None:
        """Give an inode another name."""
        self._make(
            directory_fd,
            name,
            lambda: os.link(
                from_name, name, src_dir_fd=from_fd, dst_dir_fd=directory_fd, follow_symlinks=False
            ),
        )

    def _make(self, directory_fd: int, name: bytes, make: Callable[[], R]) -> R:
        try:
            return make()
        except FileExistsError:
            if not self._fidelity.replace:
                raise
            os.unlink(name, dir_fd=directory_fd)
            return make()

    # --- Attributes -----------------------------------------------------------------------------------------

    def clear_acls(self, fd: int) -> None:
        """Take away the ACLs of an inode, which it has from the directory that it was made in."""
        for name in set(_ACLS).intersection(_xattr_names(fd)):
            os.removexattr(fd, name)

    def dress_open(self, fd: int, attributes: Attributes, xattrs: Xattrs, path: bytes) -> None:
        """Give an open file or directory its attributes; ``path`` is for what is noted."""
        self._dress(_OpenHandle(fd), attributes, xattrs, path)

    def dress_name(
        self, directory_fd: int, name: bytes, attributes: Attributes, xattrs: Xattrs, path: bytes
    ) -> None:
        """Give a symlink, fifo, socket or device node its attributes."""
        self._dress(_NameHandle(directory_fd, name), attributes, xattrs, path)

    def _dress(self, handle: _Handle, attributes: Attributes, xattrs: Xattrs, path: bytes) -> None:
        """In the order that keeps all: chown clears set-id bits and capabilities, and changes no time."""
        owned = self._chown(handle, attributes, path)
        if not stat.S_ISLNK(attributes.mode):
            mode = stat.S_IMODE(attributes.mode)
            if not owned and not stat.S_ISDIR(attributes.mode) and mode & _SET_ID:
                mode &= ~_SET_ID  # it would run as us, not as its owner
                self._losses.skip("set-id bits")
            self._attempt(path, "mode", lambda: handle.chmod(mode))
        if xattrs:
            self._set_xattrs(handle, xattrs, path)
        self._attempt(path, "time", lambda: handle.set_time(attributes.mtime_ns))

    def _chown(self, handle: _Handle, attributes: Attributes, path: bytes) -> bool:
        """Set the owner; returns whether it is right now."""
        uid, gid = attributes.uid, attributes.gid
        ours = uid == self._uid and gid in self._groups
        if self._uid != 0 and not ours:
            self._losses.skip("owners")
            return False
        if not self._fidelity.owners:
            return ours
        return self._attempt(path, "owner", lambda: handle.chown(uid, gid))

    def _set_xattrs(self, handle: _Handle, xattrs: Xattrs, path: bytes) -> None:
        if not self._fidelity.xattrs:
            return
        for name, value in sorted(xattrs, key=lambda item: item[0] == _CAPABILITY):  # others may clear it
            if not _HAS_XATTRS or (self._uid != 0 and name.startswith(_KERNEL_XATTRS)):
                self._losses.skip("extended attributes")
            else:
                self._set_xattr(handle, name, value, path)

    def _set_xattr(self, handle: _Handle, name: bytes, value: bytes, path: bytes) -> None:
        what = f"attribute {os.fsdecode(name)}"
        self._attempt(path, what, lambda: handle.set_xattr(name, value))

    def _attempt(self, path: bytes, what: str, change: Callable[[], None]) -> bool:
        """Change an attribute; False, and noted, when the target does not take it."""
        try:
            change()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise  # the target cannot go on, for whatever comes next either
            self._losses.refuse(path, what, error)
            return False
        return True


def _xattr_names(fd: int) -> list[str]:
    """Names of an open inode's attributes; none where the file system has no such thing."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []
