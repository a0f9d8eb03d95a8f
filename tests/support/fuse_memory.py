"""A FUSE handler in memory, the second implementation of its protocol; breaks where it is told to."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from rafsfs.errors import FormatError, MacMismatch, Where
from rafsfs.fuse.handler import Attributes, Entry, StatFs

ROOT = 1
MTIME_NS = 1_700_000_000_123_456_789


def os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class MemoryHandler:
    """Implements ``rafsfs.fuse.handler.Handler``.

    ``faults``: what to raise from a method for a node, by (name, node). ``cold``: nodes whose data only
    ``read`` has. ``reports``: what was reported. Positions of a directory are multiples of 10: nobody counts.
    """

    def __init__(self) -> None:
        self.faults: dict[tuple[str, int], BaseException] = {}
        self.cold: set[int] = set()
        self.reports: list[tuple[Exception, int, int | None, int | None]] = []
        self.content: dict[int, list[bytes]] = {}
        self.runs: dict[int, list[tuple[int, bool]]] = {}
        self.targets: dict[int, bytes] = {}
        self.values: dict[int, dict[bytes, bytes]] = {}
        self.parents: dict[int, int] = {ROOT: ROOT}
        self.children: dict[int, dict[bytes, int]] = {}
        self.inodes: dict[int, Attributes] = {}
        self.add(ROOT, ROOT, b"", stat.S_IFDIR | 0o755)

    def add(
        self,
        node: int,
        parent: int,
        name: bytes,
        mode: int,
        *,
        content: bytes = b"",
        parts: list[bytes] | None = None,
        target: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
        uid: int = 0,
        gid: int = 0,
        rdev: int = 0,
        mtime_ns: int = MTIME_NS,
        size: int | None = None,
    ) -> int:
        parts = [content] if parts is None else parts
        if size is None:
            size = sum(map(len, parts)) + len(target)
        self.inodes[node] = (0, mode, 1, uid, gid, rdev, size, mtime_ns)
        self.values[node] = xattrs or {}
        if stat.S_ISDIR(mode):
            self.children[node] = {}
        elif stat.S_ISLNK(mode):
            self.targets[node] = target
        elif stat.S_ISREG(mode):
            self.content[node] = parts
            self.runs[node] = [(size, True)] if size else []
        self.parents[node] = parent
        if name:
            self.children[parent][name] = node
        return node

    def _check(self, method: str, node: int) -> None:
        if (method, node) in self.faults:
            raise self.faults[method, node]
        if node not in self.inodes:
            raise os_error(errno.ESTALE)

    def lookup(self, parent: int, name: bytes) -> int:
        self._check("lookup", parent)
        if parent not in self.children:
            raise os_error(errno.ENOTDIR)
        if name == b"..":
            return self.parents[parent]
        try:
            return self.children[parent][name]
        except KeyError:
            raise os_error(errno.ENOENT) from None

    def attributes(self, node: int) -> Attributes:
        self._check("attributes", node)
        return self.inodes[node]

    def directory(self, node: int, position: int) -> Iterator[Entry]:
        self._check("directory", node)
        if node not in self.children:
            raise os_error(errno.ENOTDIR)
        names = {b".": node, b"..": self.parents[node], **self.children[node]}
        for number, (name, child) in enumerate(names.items()):
            if ("entry", child) in self.faults:
                raise self.faults["entry", child]
            if 10 * number >= position:
                yield name, child, stat.S_IFMT(self.inodes[child][1]), 10 * (number + 1)

    def readlink(self, node: int) -> bytes:
        self._check("readlink", node)
        if node not in self.targets:
            raise os_error(errno.EINVAL)
        return self.targets[node]

    def xattr(self, node: int, name: bytes) -> bytes:
        self._check("xattr", node)
        try:
            return self.values[node][name]
        except KeyError:
            raise os_error(errno.ENODATA) from None

    def xattr_names(self, node: int) -> list[bytes]:
        self._check("xattr_names", node)
        return list(self.values[node])

    def statfs(self) -> StatFs:
        self._check("statfs", ROOT)
        return 4096, 1000, len(self.inodes), 255

    def try_read(self, node: int, offset: int, size: int) -> list[memoryview] | None:
        self._check("try_read", node)
        return None if node in self.cold else self._parts(node, offset, size)

    def read(self, node: int, offset: int, size: int) -> list[memoryview]:
        self._check("read", node)
        return self._parts(node, offset, size)

    def _parts(self, node: int, offset: int, size: int) -> list[memoryview]:
        if node not in self.content:
            raise os_error(errno.EISDIR if node in self.children else errno.EINVAL)
        parts = []
        for part in self.content[node]:
            view = memoryview(part)[offset : offset + size]
            if view:
                parts.append(view)
            size -= len(view)
            offset = max(0, offset - len(part))
        return parts

    def extents(self, node: int, offset: int) -> Iterator[tuple[int, bool]]:
        self._check("extents", node)
        if node not in self.runs:
            raise os_error(errno.EISDIR if node in self.children else errno.EINVAL)
        for length, has_data in self.runs[node]:
            if offset < length:
                yield length - offset, has_data
            offset = max(0, offset - length)

    def report(self, error: Exception, node: int, offset: int | None, size: int | None) -> None:
        self.reports.append((error, node, offset, size))


def small_tree() -> MemoryHandler:
    """A tree with one of everything; "cold" has to be waited for, "damaged" and "lost" are broken."""
    handler = MemoryHandler()
    add = handler.add
    add(2, ROOT, b"hello", stat.S_IFREG | 0o640, content=b"hello world\n", uid=1000, gid=100)
    handler.values[2] = {b"user.color": b"green", b"user.empty": b""}
    add(3, ROOT, b"dir", stat.S_IFDIR | 0o2755)
    add(4, 3, b"link", stat.S_IFLNK | 0o777, target=b"../hello")
    add(5, 3, b"sparse", stat.S_IFREG | 0o644, parts=[bytes(8192), b"x" * 4096, bytes(4000)])
    handler.runs[5] = [(8192, False), (4096, True), (4000, False)]
    add(6, 3, b"null", stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    add(7, 3, b"pipe", stat.S_IFIFO | 0o600, mtime_ns=-1)
    add(8, 3, b"n" * 255, stat.S_IFREG | 0o444, uid=2**32 - 1, gid=2**32 - 2)
    add(9, ROOT, b"cold", stat.S_IFREG | 0o644, content=b"cold" * 100)
    handler.cold.add(9)
    add(10, ROOT, b"damaged", stat.S_IFREG | 0o644, content=b"?")
    handler.faults["try_read", 10] = MacMismatch("chunk's tag", where=Where(chunk=3))
    add(11, ROOT, b"lost", stat.S_IFSOCK | 0o644)
    handler.faults["attributes", 11] = FormatError("not an inode")
    return handler
