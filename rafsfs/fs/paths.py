"""From paths to inodes: symlinks are followed, and stay inside the image; reads no file."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable

from rafsfs.fs.filesystem import FileSystem
from rafsfs.types import Nid

_SYMLINKS_MAX = 40  # MAXSYMLINKS of path_resolution(7)


def components(path: bytes) -> list[bytes]:
    """Names of a path from the root down, as they stand there: with ``..``, without what means nothing."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _spend_nothing(_names: int) -> None:
    pass


def trail(
    filesystem: FileSystem,
    path: bytes,
    *,
    follow_symlinks: bool = True,
    spend: Callable[[int], None] = _spend_nothing,
) -> list[tuple[bytes, Nid]]:
    """Name and inode of every directory below the root that leads to ``path``, and of itself.

    ``spend`` is called with numbers of names before they are looked up, and may raise what it wants.
    Raises FileNotFoundError, NotADirectoryError, or OSError ELOOP, with ``path``.
    """
    found: list[tuple[bytes, Nid]] = []
    pending = deque(components(path))
    spend(len(pending))
    links = 0
    while pending:
        name = pending.popleft()
        if name == b"..":
            del found[-1:]
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
            more = components(target)
            spend(len(more))
            pending.extendleft(reversed(more))
        else:
            found.append((name, nid))
    return found
