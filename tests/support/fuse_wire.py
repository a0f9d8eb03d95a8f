"""FUSE requests and replies as bytes, by hand from linux/fuse.h; shares nothing with the server it tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence

UNIQUE = 0x1122334455667788

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 2, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT = 20, 21, 22, 23, 24, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW, ACCESS = 27, 28, 29, 30, 31, 32, 33, 34
CREATE, INTERRUPT, BMAP, DESTROY, IOCTL, POLL, NOTIFY_REPLY = 35, 36, 37, 38, 39, 40, 41
BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK = 42, 43, 44, 45, 46
COPY_FILE_RANGE, SETUPMAPPING, REMOVEMAPPING, SYNCFS, TMPFILE, STATX = 47, 48, 49, 50, 51, 52
COPY_FILE_RANGE_64, CUSE_INIT = 53, 4096

ALL_FLAGS = 0xFFFF_FFFF
INIT_EXT = 1 << 30


def request(opcode: int, body: bytes = b"", *, node: int = 1, unique: int = UNIQUE) -> bytes:
    """A whole request: fuse_in_header, body. User 1000, group 1000, process 4321 ask."""
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 1000, 1000, 4321, 0, 0) + body


def init(
    major: int = 7,
    minor: int = 45,
    *,
    readahead: int = 1 << 17,
    flags: int = ALL_FLAGS,
    flags2: int = ALL_FLAGS,
    unique: int = 2,
) -> bytes:
    """INIT as kernels since 5.17 send it."""
    body = struct.pack("<IIIII", major, minor, readahead, flags, flags2) + bytes(44)
    return request(INIT, body, node=0, unique=unique)


def old_init(minor: int, flags: int, *, readahead: int = 1 << 17) -> bytes:
    """INIT as kernels before 5.17 send it."""
    return request(INIT, struct.pack("<IIII", 7, minor, readahead, flags), node=0, unique=2)


def read_in(offset: int, size: int) -> bytes:
    """fuse_read_in: of READ, READDIR and READDIRPLUS."""
    return struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0o100000, 0)


def read(node: int, offset: int, size: int, *, unique: int = UNIQUE) -> bytes:
    return request(READ, read_in(offset, size), node=node, unique=unique)


def interrupt(target: int) -> bytes:
    """INTERRUPT: its own unique is the target's with the lowest bit set (fs/fuse/dev.c)."""
    return request(INTERRUPT, struct.pack("<Q", target), node=0, unique=target | 1)


def joined(reply: object) -> bytes:
    """A reply's buffers as one message; fails for what is no reply, or says a wrong length or errno."""
    assert isinstance(reply, list), reply
    message = b"".join(reply)
    length, error, unique = struct.unpack_from("<IiQ", message)
    assert length == len(message)
    assert unique != 0
    assert -511 <= error <= 0
    assert length == 16 or error == 0
    assert len(reply[0]) >= 16
    return message


def ok(body: bytes = b"", *, unique: int = UNIQUE) -> bytes:
    """The reply with ``body``."""
    return struct.pack("<IiQ", 16 + len(body), 0, unique) + body


def failed(code: int, *, unique: int = UNIQUE) -> bytes:
    """The reply with errno ``code``."""
    return struct.pack("<IiQ", 16, -code, unique)


def attr(node: int, attributes: Sequence[int]) -> bytes:
    """fuse_attr of a handler's attributes."""
    _, mode, nlink, uid, gid, rdev, size, mtime_ns = attributes
    seconds, nanoseconds = mtime_ns // 10**9, mtime_ns % 10**9
    return struct.pack(
        "<QQQqqqIIIIIIIIII",
        node,
        size,
        -(-size // 512),
        *(seconds, seconds, seconds),
        *(nanoseconds, nanoseconds, nanoseconds),
        mode,
        nlink,
        uid,
        gid,
        rdev,
        4096,
        0,
    )


def entry(node: int, attributes: Sequence[int], entry_s: int, attr_s: int) -> bytes:
    """fuse_entry_out."""
    return struct.pack("<QQQQII", node, 0, entry_s, attr_s, 0, 0) + attr(node, attributes)


def dirent(node: int, position: int, kind: int, name: bytes) -> bytes:
    """fuse_dirent with its name, padded."""
    padding = bytes(-len(name) % 8)
    return struct.pack("<QQII", node, position, len(name), kind) + name + padding
