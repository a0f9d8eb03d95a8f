"""The read-only file system object: names, attributes and bytes of inodes. Front ends adapt it and add no
policy.

POSIX outcomes (no such name, not a directory) are OSErrors; what is wrong with an image or its store is a
RafsError. Everything here is synchronous and may be called from any thread; ``try_read`` never waits for
data, ``read`` may.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.format import erofs
from rafsfs.fs.attributes import Attributes, DirectoryEntry, StatFs
from rafsfs.limits import FILE_NAME_BYTES_MAX, PATH_DEPTH_MAX
from rafsfs.metadata.inode import Extent, InlineExtent, Inode
from rafsfs.metadata.tree import Tree
from rafsfs.reading.engine import ReadEngine
from rafsfs.reading.trace import AccessTrace
from rafsfs.types import Nid

_DEVICES = frozenset((stat.S_IFCHR, stat.S_IFBLK))
_ZEROS = memoryview(bytes(1 << 20))


class FileSystem:
    """One image's tree and bytes."""

    def __init__(self, tree: Tree, engine: ReadEngine, blocks: int) -> None:
        """``blocks`` are those of the metadata and of all blobs, decoded, for statfs."""
        self.tree = tree
        self.engine = engine
        self.root = tree.root
        self.trace: AccessTrace | None = None
        """Set by who wants to know what is read first."""
        self._blocks = blocks

    def _directory(self, nid: Nid) -> Inode:
        inode = self.tree.inode(nid)
        if not inode.is_directory:
            raise _os_error(errno.ENOTDIR)
        return inode

    def lookup(self, parent: Nid, name: bytes) -> Nid:
        """Nid of ``name`` in directory ``parent``; OSError ENOENT, ENOTDIR or ENAMETOOLONG.

        FormatError when the name says another type than its inode.
        """
        if len(name) > FILE_NAME_BYTES_MAX:
            raise _os_error(errno.ENAMETOOLONG)
        entry = self.tree.lookup(self._directory(parent), name)
        if entry is None:
            raise _os_error(errno.ENOENT)
        found = self.tree.inode(entry.nid)  # who looks a name up asks for its attributes next
        if stat.S_IFMT(found.mode) != erofs.MODE_OF_FILE_TYPE[entry.file_type]:
            raise _wrong_type(entry.nid)
        return entry.nid

    def attributes(self, nid: Nid) -> Attributes:
        """Attributes of an inode; FormatError when there is none at ``nid``."""
        inode = self.tree.inode(nid)
        rdev = os.makedev(*inode.device_number) if stat.S_IFMT(inode.mode) in _DEVICES else 0
        return Attributes(
            nid, inode.mode, inode.nlink, inode.uid, inode.gid, rdev, inode.size, inode.mtime_ns
        )

    def directory(self, nid: Nid, position: int = 0) -> Iterator[DirectoryEntry]:
        """Names from ``position`` on, in byte order, with ``.`` and ``..``; OSError ENOTDIR."""
        for name, found, file_type, next_position in self.tree.entries(self._directory(nid), position):
            yield DirectoryEntry(name, found, erofs.MODE_OF_FILE_TYPE[file_type], next_position)

    def readlink(self, nid: Nid) -> bytes:
        """Target of a symlink; OSError EINVAL for anything else."""
        inode = self.tree.inode(nid)
        if not stat.S_ISLNK(inode.mode):
            raise _os_error(errno.EINVAL)
        return self.tree.symlink_target(inode)

    def xattr(self, nid: Nid, name: bytes) -> bytes:
        """Value of one extended attribute; OSError ENODATA."""
        for known, value in self.tree.xattrs(self.tree.inode(nid)):
            if known == name:
                return value
        raise _os_error(errno.ENODATA)

    def xattr_names(self, nid: Nid) -> list[bytes]:
        """Names of all extended attributes."""
        return [name for name, _ in self.tree.xattrs(self.tree.inode(nid))]

    def statfs(self) -> StatFs:
        """The image as a whole."""
        return StatFs(erofs.BLOCK_SIZE, self._blocks, self.tree.inode_count, FILE_NAME_BYTES_MAX)

    def extents(self, nid: Nid, offset: int, size: int) -> Iterator[Extent | InlineExtent]:
        """Where bytes ``offset..offset+size`` of a regular file lie, cut at its end.

        OSError EISDIR for a directory, EINVAL for what has no bytes or for a negative range.
        """
        inode = self.tree.inode(nid)
        if not inode.is_regular:
            raise _os_error(errno.EISDIR if inode.is_directory else errno.EINVAL)
        if offset < 0 or size < 0:
            raise _os_error(errno.EINVAL)
        file_map = self.tree.file_map(inode)
        end = min(offset + size, inode.size)
        while offset < end:
            extent = file_map.extent(offset)
            extent = extent._replace(length=min(extent.length, end - offset))
            yield extent
            offset += extent.length

    def try_read(self, nid: Nid, offset: int, size: int) -> list[memoryview] | None:
        """Bytes of a regular file as slices of the cache, without waiting; None when a part is not there.

        Short at the end of the file, ``[]`` behind it. Raises as ``extents`` does.
        """
        parts: list[memoryview] = []
        for extent in self.extents(nid, offset, size):
            if isinstance(extent, InlineExtent) or extent.blob is None:
                parts += self.read_extent(extent)  # always at hand
                continue
            found = self.engine.try_read(extent.blob, extent.start, extent.length)
            if found is None:
                return None
            parts += found
        if self.trace is not None:
            self.trace.file_read(nid, offset, sum(map(len, parts)))
        return parts

    def read(self, nid: Nid, offset: int, size: int) -> list[memoryview]:
        """As ``try_read``, but fetches and decodes what is missing on the caller's thread; never None.

        Raises AuthError, FormatError or StoreError for just the chunks that this range touches.
        """
        parts: list[memoryview] = []
        for extent in self.extents(nid, offset, size):
            parts += self.read_extent(extent)
        if self.trace is not None:
            self.trace.file_read(nid, offset, sum(map(len, parts)))
        return parts

    def read_extent(self, extent: Extent | InlineExtent) -> list[memoryview]:
        """All bytes of one extent, zeros of a hole. Raises as ``read`` does."""
        if isinstance(extent, InlineExtent):
            return [memoryview(self.tree.inline_bytes(extent))]
        if extent.blob is None:
            return _zeros(extent.length)
        return self.engine.read(extent.blob, extent.start, extent.length)

    async def read_async(self, nid: Nid, offset: int, size: int) -> list[memoryview]:
        """``read`` on a worker thread, for trio. Cancellation abandons the thread, which then warms the
        cache.
        """
        import trio

        return await trio.to_thread.run_sync(self.read, nid, offset, size, abandon_on_cancel=True)

    def walk(self) -> Iterator[tuple[bytes, Nid]]:
        """Every name's (path, nid), parents first, the root as ``b""``; FormatError on a cyclic tree."""
        return walk_tree(self, self.root)

    def find_path(self, nid: Nid) -> bytes | None:
        """A path of ``nid``, by walking until it is met: slow, for log lines."""
        return next((path for path, found in self.walk() if found == nid), None)


def walk_tree(filesystem: FileSystem, start: Nid, path: bytes = b"") -> Iterator[tuple[bytes, Nid]]:
    """Every name at and under ``start``, depth first in byte order.

    A directory that is met twice is a cycle or a hard link to a directory; directories that show the same
    bytes as their names show more names than the metadata has room for. Both raise FormatError, so that a
    hostile tree ends the walk.
    """
    seen = {start}
    names_left = filesystem.tree.names_max
    yield path, start
    pending = [(path, filesystem.directory(start))]
    while pending:
        directory_path, entries = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
            continue
        if not names_left:
            raise FormatError(
                "directories show more names than the metadata can hold",
                expected=f"at most {filesystem.tree.names_max}",
            ).at(path=os.fsdecode(directory_path))
        names_left -= 1
        if entry.name in (b".", b".."):
            continue
        entry_path = directory_path + b"/" + entry.name if directory_path else entry.name
        yield entry_path, entry.nid
        if stat.S_ISDIR(entry.mode_type):
            if entry.nid in seen:
                raise FormatError("a directory has two names", found=f"nid {entry.nid}").at(
                    path=os.fsdecode(entry_path)
                )
            if len(pending) >= PATH_DEPTH_MAX:
                raise LimitExceeded("tree is too deep", expected=f"at most {PATH_DEPTH_MAX} levels")
            if not stat.S_ISDIR(filesystem.attributes(entry.nid).mode):
                raise _wrong_type(entry.nid).at(path=os.fsdecode(entry_path))
            seen.add(entry.nid)
            pending.append((entry_path, filesystem.directory(entry.nid)))


def _zeros(length: int) -> list[memoryview]:
    whole, rest = divmod(length, len(_ZEROS))
    return [_ZEROS] * whole + ([_ZEROS[:rest]] if rest else [])


def _wrong_type(nid: Nid) -> RafsError:
    return FormatError("name says another type of file than its inode").at(nid=nid)


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
