"""Lets the FUSE server serve a file system: node ids become nids, owners are exchanged; adds nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, TypeAlias

from rafsfs.frontends.mount_options import Owner
from rafsfs.fs.attributes import Attributes, StatFs
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.mapping import NodeMap
from rafsfs.fuse.handler import Entry
from rafsfs.limits import FILE_SIZE_MAX
from rafsfs.types import Nid

Report: TypeAlias = Callable[[Exception, Nid, int | None, int | None], None]
"""(error, inode, byte offset, size): is told of every request that failed for no fault of who asked."""

_ANSWERS_TO_READ: Final = frozenset((errno.EISDIR, errno.EINVAL, errno.ESTALE))
"""What a file system says of a node that it is to read. Any other ``OSError`` is the server's own trouble:
what is read has been found and opened long ago."""


class FileSystemHandler:
    """The handler (``rafsfs.fuse.handler.Handler``) of one ``FileSystem``. Inode numbers are node ids."""

    def __init__(self, filesystem: FileSystem, owner: Owner, report: Report) -> None:
        self._filesystem = filesystem
        self._uid = owner.uid
        self._gid = owner.gid
        self._report = report
        self._nodes = NodeMap(filesystem.root)

    def lookup(self, parent: int, name: bytes) -> int:
        """Node id of a name."""
        return self._nodes.node(self._filesystem.lookup(self._nodes.nid(parent), name))

    def attributes(self, node: int) -> Attributes:
        """Attributes of a node, with the mount's owner."""
        found = self._filesystem.attributes(self._nodes.nid(node))
        if self._uid is not None:
            found = found._replace(uid=self._uid)
        if self._gid is not None:
            found = found._replace(gid=self._gid)
        return found

    def directory(self, node: int, position: int) -> Iterator[Entry]:
        """Entries from ``position`` on."""
        entries = self._filesystem.directory(self._nodes.nid(node), position)
        for name, nid, mode_type, next_position in entries:
            yield name, self._nodes.node(nid), mode_type, next_position

    def readlink(self, node: int) -> bytes:
        """Target of a symlink."""
        return self._filesystem.readlink(self._nodes.nid(node))

    def xattr(self, node: int, name: bytes) -> bytes:
        """Value of an extended attribute."""
        return self._filesystem.xattr(self._nodes.nid(node), name)

    def xattr_names(self, node: int) -> list[bytes]:
        """Names of all extended attributes."""
        return self._filesystem.xattr_names(self._nodes.nid(node))

    def statfs(self) -> StatFs:
        """The image as a whole."""
        return self._filesystem.statfs()

    def try_read(self, node: int, offset: int, size: int) -> list[memoryview] | None:
        """Bytes out of the cache of verified pages, or None."""
        try:
            return self._filesystem.try_read(self._nodes.nid(node), offset, size)
        except OSError as error:
            _fail_read(error)

    def read(self, node: int, offset: int, size: int) -> list[memoryview]:
        """Bytes, fetched and decoded on the caller's thread where they have to be."""
        try:
            return self._filesystem.read(self._nodes.nid(node), offset, size)
        except OSError as error:
            _fail_read(error)

    def extents(self, node: int, offset: int) -> Iterator[tuple[int, bool]]:
        """Runs of data and holes, a chunk at a time."""
        for extent in self._filesystem.extents(self._nodes.nid(node), offset, FILE_SIZE_MAX):
            yield extent.length, not extent.is_hole

    def report(self, error: Exception, node: int, offset: int | None, size: int | None) -> None:
        """Pass it on, with the nid that a log can find a path for."""
        self._report(error, self._nodes.nid(node), offset, size)


def _fail_read(error: OSError) -> NoReturn:
    if error.errno in _ANSWERS_TO_READ:
        raise error
    raise RuntimeError(f"{type(error).__name__}: {error}") from error
