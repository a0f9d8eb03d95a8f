"""A reader of whole trees that speaks FUSE to a server beside it, as a kernel would; never mounts."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Iterator

from support import fuse_wire as wire
from support.trees import Found, Snapshot, settled

from rafsfs.fuse.server import FuseServer, Pending

READ_BYTES = 1 << 17
LISTING_BYTES = 4096  # of old kernels: large directories take many requests
ROOT = 1


class FuseClient:
    """Asks ``server``; OSError for errors. ``waits``: how many reads had to wait."""

    def __init__(self, server: FuseServer) -> None:
        self._server = server
        self._unique = 2
        self.waits = 0
        self.ask(wire.INIT, wire.init()[40:], node=0)

    def ask(self, opcode: int, body: bytes = b"", *, node: int = ROOT) -> bytes:
        """The body of the reply."""
        self._unique += 2
        outcome = self._server.handle(wire.request(opcode, body, node=node, unique=self._unique))
        if isinstance(outcome, Pending):
            self.waits += 1
            outcome = outcome.run()
        message = wire.joined(outcome)
        _, error, unique = struct.unpack_from("<IiQ", message)
        assert unique == self._unique
        if error:
            raise OSError(-error, os.strerror(-error))
        return message[16:]

    def lookup(self, parent: int, name: bytes) -> tuple[int, tuple[int, ...]]:
        """(node, fields of fuse_attr); OSError ENOENT."""
        body = self.ask(wire.LOOKUP, name + b"\0", node=parent)
        if not (node := struct.unpack_from("<Q", body)[0]):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node, attributes(body[40:])

    def find(self, path: bytes) -> int:
        """Node of a path from the root."""
        node = ROOT
        for name in path.split(b"/"):
            node, _ = self.lookup(node, name)
        return node

    def getattr(self, node: int) -> tuple[int, ...]:
        return attributes(self.ask(wire.GETATTR, bytes(16), node=node)[16:])

    def listing(self, node: int) -> Iterator[tuple[bytes, int, tuple[int, ...]]]:
        """(name, node, fields of fuse_attr) of all names but ``.`` and ``..``; node 0 where none came."""
        position = 0
        while body := self.ask(wire.READDIRPLUS, wire.read_in(position, LISTING_BYTES), node=node):
            offset = 0
            while offset < len(body):
                (child,) = struct.unpack_from("<Q", body, offset)
                _, position, length, _ = struct.unpack_from("<QQII", body, offset + 128)
                name = body[offset + 152 : offset + 152 + length]
                if name not in (b".", b".."):
                    yield name, child, attributes(body[offset + 40 :])
                offset += 152 + length + -length % 8

    def read(self, node: int, offset: int, size: int) -> bytes:
        return self.ask(wire.READ, wire.read_in(offset, size), node=node)

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        names = self._xattr(wire.LISTXATTR, b"", node).split(b"\0")
        return {name: self._xattr(wire.GETXATTR, name + b"\0", node) for name in names if name}

    def _xattr(self, opcode: int, name: bytes, node: int) -> bytes:
        (size, _) = struct.unpack("<II", self.ask(opcode, struct.pack("<II", 0, 0) + name, node=node))
        value = self.ask(opcode, struct.pack("<II", max(1, size), 0) + name, node=node)
        assert len(value) == size
        return value

    def digest(self, node: int) -> str:
        """SHA-256 of a file, read until a short answer says that it ends."""
        digest, offset = hashlib.sha256(), 0
        while data := self.read(node, offset, READ_BYTES):
            digest.update(data)
            offset += len(data)
            if len(data) < READ_BYTES:
                break
        return digest.hexdigest()

    def seek(self, node: int, offset: int, whence: int) -> int:
        body = self.ask(wire.LSEEK, struct.pack("<QQII", 0, offset, whence, 0), node=node)
        return int.from_bytes(body, "little")

    def tree(self) -> Snapshot:
        """Everything, listed with attributes and read in order."""
        return dict(settled(self._entries(b"", ROOT, self.getattr(ROOT))))

    def _entries(self, path: bytes, node: int, attr: tuple[int, ...]) -> Iterator[tuple[bytes, Found, int]]:
        _, size, blocks, _, seconds, _, _, nanoseconds, _, mode, nlink, uid, gid, rdev, blksize, flags = attr
        assert (blocks, blksize, flags) == (-(-size // 512), 4096, 0)
        kind = stat.S_IFMT(mode)
        content = ""
        if kind == stat.S_IFREG:
            content = self.digest(node)
        elif kind == stat.S_IFLNK:
            content = os.fsdecode(self.ask(wire.READLINK, node=node))
        is_directory = kind == stat.S_IFDIR
        yield (
            path,
            Found(
                mode=mode,
                uid=uid,
                gid=gid,
                mtime_ns=seconds * 10**9 + nanoseconds,
                size=0 if is_directory else size,
                nlink=0 if is_directory else nlink,
                rdev=rdev,
                content=content,
                xattrs=self.xattrs(node),
            ),
            node,
        )
        if is_directory:
            for name, child, child_attr in self.listing(node):
                yield from self._entries(path + b"/" + name if path else name, child, child_attr)


def attributes(body: bytes) -> tuple[int, ...]:
    """Fields of fuse_attr."""
    return struct.unpack_from("<QQQqqqIIIIIIIIII", body)
