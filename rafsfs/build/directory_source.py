"""A directory tree as a build source; owns the walk and its races, never follows a link out of the root."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rafsfs.build.exclude import Exclude
from rafsfs.build.open_file import OpenFile, changed, open_at, open_regular, unreadable
from rafsfs.build.source import NO_XATTRS_HINT, Entry, check_xattr, refusal, shown
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FILE_TYPE_OF_MODE, FileType
from rafsfs.limits import PATH_DEPTH_MAX

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY
_HAS_XATTRS = hasattr(os, "listxattr")  # not on macOS
_LEVELS_OPEN_MAX = (
    64  # directories held open at once; deeper trees reopen their parents, far below RLIMIT_NOFILE
)
_ENTRIES_AHEAD = (
    16  # files the kernel is asked to fetch before their turn: a cold tree of small files in a third
)

_UNSEEN, _FILE, _DIRECTORY = range(3)  # what a listing tells of a name without asking for its inode


class DirectorySource:
    """The tree below ``root``, each directory's names in byte order, depth first.

    ``exclude``: see ``rafsfs.build.exclude.Exclude``. ``xattrs=False`` leaves all extended attributes out.
    ``one_file_system=True`` keeps mount points below the root as empty directories. Names are hard links of
    each other when their (st_dev, st_ino) are the same.

    Raises BuildError when ``root`` is not a directory that can be opened.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | bytes,
        exclude: Sequence[str] = (),
        *,
        xattrs: bool = True,
        one_file_system: bool = False,
    ) -> None:
        self._exclude = Exclude(exclude) if exclude else None
        self._xattrs = xattrs and _HAS_XATTRS
        self._one_file_system = one_file_system
        if self._xattrs and not Path("/proc/self/fd").exists():
            raise BuildError(
                "extended attributes of links and devices are read through /proc, which is not there",
                hint="mount /proc, or " + NO_XATTRS_HINT,
            )
        name = os.fsencode(root)
        try:
            self._root = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BuildError("the source cannot be read", found=f"{shown(name)}: {error.strerror}") from error

    def close(self) -> None:
        """Close the root; a walk under way must have been ended before."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def entries(self) -> Iterator[Entry]:
        """See ``Source.entries``. May be walked more than once."""
        walk = _Walk(self._root, self._exclude, xattrs=self._xattrs, one_file_system=self._one_file_system)
        ahead: deque[tuple[Entry, OpenFile | None]] = deque()
        try:
            coming = walk.run()
            ahead.extend(islice(coming, _ENTRIES_AHEAD))
            while ahead:
                entry, file = ahead[0]
                yield entry
                if file:
                    file.close()
                ahead.popleft()
                ahead.extend(islice(coming, 1))
        finally:
            for _, file in ahead:
                if file:
                    file.close()
            walk.close()


@dataclass(slots=True)
class _Level:
    """A directory on the way down, and what is left to visit in it, last first."""

    fd: int
    path: bytes
    identity: tuple[int, int]
    names: list[tuple[bytes, int]]

    def close(self) -> None:
        """Close the directory; in this order, so that no interrupt has the same number closed twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Walk:
    """One pass over the tree; owns the open directories from the root down to where it is."""

    def __init__(self, root: int, exclude: Exclude | None, *, xattrs: bool, one_file_system: bool) -> None:
        self._root = root
        self._exclude = exclude
        self._xattrs = xattrs
        self._one_file_system = one_file_system
        self._levels: list[_Level] = []
        self._links: dict[tuple[int, int], bytes] = {}

    def close(self) -> None:
        while self._levels:
            self._levels.pop().close()

    def run(self) -> Iterator[tuple[Entry, OpenFile | None]]:
        """Give every entry, and for a regular file the open file, which becomes the caller's to close."""
        path = b""
        try:
            yield self._enter(b".", path), None
            while self._levels:
                level = self._levels[-1]
                if not level.names:
                    path = level.path
                    self._leave()
                    continue
                name, kind = level.names.pop()
                path = level.path + b"/" + name if level.path else name
                if kind == _DIRECTORY:
                    yield self._enter(name, path), None
                elif kind == _FILE:
                    yield self._file(level.fd, name, path)
                else:
                    yield self._other(level.fd, name, path), None
        except OSError as error:
            raise unreadable(path, error) from error

    def _enter(self, name: bytes, path: bytes) -> Entry:
        """Open and list a directory, and make it the innermost level."""
        levels = self._levels
        if len(levels) >= PATH_DEPTH_MAX:
            raise refusal(
                path[:80], "directories are nested too deeply", expected=f"at most {PATH_DEPTH_MAX} levels"
            )
        level = _Level(
            open_at(name, _DIRECTORY_FLAGS, levels[-1].fd if levels else self._root), path, (-1, -1), []
        )
        levels.append(level)
        status = os.fstat(level.fd)
        level.identity = (status.st_dev, status.st_ino)
        if not self._one_file_system or status.st_dev == levels[0].identity[0]:
            level.names = self._names(level.fd, os.fsdecode(path))
        if len(levels) > _LEVELS_OPEN_MAX:
            levels[-1 - _LEVELS_OPEN_MAX].close()
        return Entry(
            path,
            FileType.DIRECTORY,
            status.st_mode & 0o7777,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            xattrs=self._xattrs_of(level.fd, path),
        )

    def _names(self, fd: int, path: str) -> list[tuple[bytes, int]]:
        prefix = path + "/" if path else ""
        names = []
        with os.scandir(fd) as listing:
            for found in listing:
                is_directory = found.is_dir(follow_symlinks=False)
                if self._exclude and self._exclude(
                    prefix + found.name, found.name, is_directory=is_directory
                ):
                    continue
                kind = (
                    _DIRECTORY if is_directory else _FILE if found.is_file(follow_symlinks=False) else _UNSEEN
                )
                names.append((os.fsencode(found.name), kind))
        names.sort(reverse=True)
        return names

    def _leave(self) -> None:
        """Close the innermost directory; reopen the one around it if it was closed to save descriptors."""
        level = self._levels.pop()
        try:
            if self._levels and self._levels[-1].fd < 0:
                outer = self._levels[-1]
                outer.fd = open_at(b"..", _DIRECTORY_FLAGS, level.fd)
                status = os.fstat(outer.fd)
                if (status.st_dev, status.st_ino) != outer.identity:  # moved: going on could leave the root
                    raise changed(level.path)
        finally:
            level.close()

    def _file(self, parent: int, name: bytes, path: bytes) -> tuple[Entry, OpenFile]:
        file, status = open_regular(parent, name, path)
        try:
            linked = self._linked(status, path)
            if linked is None:
                file.fetch_ahead()
            entry = Entry(
                path,
                FileType.REGULAR,
                status.st_mode & 0o7777,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_size,
                xattrs=() if linked is not None else self._xattrs_of(file.fd, path),
                hard_link_to=linked,
                content=file.content,
            )
        except BaseException:
            file.close()
            raise
        return entry, file

    def _other(self, parent: int, name: bytes, path: bytes) -> Entry:
        """Symbolic links and special files: looked at without opening them, which might set off a device."""
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = FILE_TYPE_OF_MODE.get(stat.S_IFMT(status.st_mode))
        if kind is None or kind in {FileType.REGULAR, FileType.DIRECTORY}:
            raise changed(path)
        linked = self._linked(status, path)
        is_device = kind in {FileType.CHARACTER, FileType.BLOCK}
        return Entry(
            path,
            kind,
            status.st_mode & 0o7777,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
            target=os.readlink(name, dir_fd=parent) if kind == FileType.SYMLINK else b"",
            xattrs=()
            if linked is not None
            else self._xattrs_of(b"/proc/self/fd/%d/%b" % (parent, name), path),
            hard_link_to=linked,
        )

    def _linked(self, status: os.stat_result, path: bytes) -> bytes | None:
        """Tell the path of the inode's first name, or remember that ``path`` is it."""
        if status.st_nlink < 2:
            return None
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        return first if first is not path else None

    def _xattrs_of(self, inode: int | bytes, path: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Read all extended attributes of a descriptor, or of a path without following a link at its end."""
        if not self._xattrs:
            return ()
        follow = isinstance(inode, int)
        try:
            names = os.listxattr(inode, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.ENOTSUP:  # a file system that has none
                return ()
            raise
        found = []
        for name in sorted(map(os.fsencode, names)):
            try:
                value = os.getxattr(inode, name, follow_symlinks=follow)
            except OSError as error:
                raise refusal(
                    path,
                    f"extended attribute {shown(name)} cannot be read",
                    found=error.strerror,
                    hint=NO_XATTRS_HINT,
                ) from error
            check_xattr(path, name, value)
            found.append((name, value))
        return tuple(found)
