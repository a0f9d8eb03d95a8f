"""From paths to inodes: symlinks are followed, and stay inside the image; reads no file."""

from __future__ import annotations

import errno
import os
import stat

from rafsfs.fs.filesystem import FileSystem
from rafsfs.types import Nid

_SYMLINKS_MAX = 40  # MAXSYMLINKS of path_resolution(7)


def components(path: bytes) -> list[bytes]:
    """Names of a path from the root down, as they stand there: with ``..``, without what means nothing."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def trail(filesystem: FileSystem, path: bytes, *, follow_symlinks: bool = True) -> list[tuple[bytes, Nid]]:
    """Name and inode of every directory below the root that leads to ``path``, and of itself.

    Raises FileNotFoundError, NotADirectoryError, or OSError ELOOP, with ``path``.
    """
    found: list[tuple[bytes, Nid]] = []
    pending = components(path)
    links = 0
    while pending:
        name = pending.pop(0)
        if name == b"..":
            found = found[:-1]
            continue
        try:
            nid = filesystem.lookup(found[-1][1] if found else filesystem.root, name)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
        if (pending or follow_symlinks) and stat.S_ISLNK(filesystem.attributes(nid).mode):
            links += 1
            if links > _SYMLINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
            target = filesystem.readlink(nid)
            if target.startswith(b"/"):
                found = []
            pending = components(target) + pending
        else:
            found.append((name, nid))
    return found
