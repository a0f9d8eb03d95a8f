"""Calls that look at a tree in ways that programs seldom do; says nothing about the answers."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from support.asking import BIG_BYTES, BLOCK, MIB, Answer, Ask, call, libc, opened, opens, tried

IN_ALL_EVENTS: Final = 0xFFF  # include/uapi/linux/inotify.h

OFFSETS: Final = (0, MIB - 1, MIB, MIB + 5, 2 * MIB, 3 * MIB, 2**40, -1)
"""Where data and holes are looked for."""

LOOKING: dict[str, Ask] = {}
"""Name -> question."""


def _looks(ask: Ask) -> Ask:
    LOOKING[ask.__name__.strip("_")] = ask
    return ask


@_looks
def _read_in_odd_pieces(folder: Path) -> bytes:
    with opened(folder / "file") as descriptor:
        return b"".join(iter(lambda: os.read(descriptor, 77_777), b""))


@_looks
def _pread_at_and_behind_the_end(folder: Path) -> list[bytes]:
    with opened(folder / "file") as descriptor:
        return [os.pread(descriptor, 100, offset) for offset in (BIG_BYTES - 10, BIG_BYTES, 2**40, 2**62)]


@_looks
def _readv(folder: Path) -> list[bytes]:
    parts = [bytearray(size) for size in (1, 5000, 0, 300_000)]
    with opened(folder / "file") as descriptor:
        assert os.preadv(descriptor, parts, 12_345) == 305_001
    return [bytes(part) for part in parts]


@_looks
def _seek_data_and_hole(folder: Path) -> list[Answer]:
    found: list[Answer] = []
    for name in ("hole", "file", "empty"):
        with opened(folder / name) as descriptor:
            for whence in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END):
                for offset in OFFSETS:
                    found.append(tried(os.lseek, descriptor, offset, whence))
    return found


@_looks
def _statvfs_flags(folder: Path) -> tuple[bool, int]:
    found = os.statvfs(folder)
    return bool(found.f_flag & os.ST_RDONLY), found.f_namemax


@_looks
def _sync_calls(folder: Path) -> list[Answer]:
    with opened(folder / "file") as file, opened(folder / "folder") as directory:
        return [
            tried(os.fsync, file),
            tried(os.fdatasync, file),
            tried(os.fsync, directory),
            tried(call, libc.syncfs, file),
            tried(call, libc.sync_file_range, file, ctypes.c_long(0), ctypes.c_long(0), 7),
        ]


@_looks
def _advice(folder: Path) -> list[Answer]:
    with opened(folder / "file") as file:
        given = [tried(os.posix_fadvise, file, 0, 0, advice) for advice in range(6)]
        given.append(tried(call, libc.readahead, file, ctypes.c_long(0), 1 << 20))
        given.append(os.pread(file, 10, MIB))
        return given


@_looks
def _sendfile_to_memory(folder: Path) -> bytes:
    target = os.memfd_create("copy")
    try:
        with opened(folder / "file") as source:
            while os.sendfile(target, source, None, MIB):
                pass
        return os.pread(target, 4 * MIB, 0)
    finally:
        os.close(target)


@_looks
def _copy_file_range_out(folder: Path) -> Answer:
    with opened(folder / "file") as source, opened(Path("/tmp"), os.O_TMPFILE | os.O_RDWR) as target:
        while os.copy_file_range(source, target, MIB):
            pass
        return os.pread(target, 4 * MIB, 0)


@_looks
def _splice_to_a_pipe(folder: Path) -> bytes:
    reading, writing = os.pipe()
    try:
        parts = []
        with opened(folder / "file") as source:
            while count := os.splice(source, writing, 50_000):
                parts.append(os.read(reading, count))
        return b"".join(parts)
    finally:
        os.close(reading)
        os.close(writing)


@_looks
def _mapped(folder: Path) -> bytes:
    with opened(folder / "file") as file, mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        return mapped[:]


@_looks
def _mapped_private_and_changed(folder: Path) -> tuple[bytes, bytes]:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with opened(folder / "file") as file, mmap.mmap(file, 0, mmap.MAP_PRIVATE, protection) as mapped:
        mapped[0:5] = b"mine!"
        return mapped[:10], os.pread(file, 10, 0)


@_looks
def _locks(folder: Path) -> list[Answer]:
    with opened(folder / "file") as one, opened(folder / "file") as two:
        return [
            tried(fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB),
            tried(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB),
            tried(fcntl.flock, one, fcntl.LOCK_UN),
            tried(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB),
            tried(fcntl.lockf, one, fcntl.LOCK_SH | fcntl.LOCK_NB),
        ]


@_looks
def _lease(folder: Path) -> list[Answer]:
    with opened(folder / "file") as file:
        return [
            tried(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_RDLCK),
            fcntl.fcntl(file, fcntl.F_GETLEASE),
            tried(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_UNLCK),
        ]


@_looks
def _inotify(folder: Path) -> list[tuple[int, bytes]]:
    """Watch a folder while its file is opened, read and closed."""
    descriptor = call(libc.inotify_init1, os.O_CLOEXEC)
    try:
        call(libc.inotify_add_watch, descriptor, os.fsencode(folder), IN_ALL_EVENTS)
        (folder / "small").read_bytes()
        events = []
        data = os.read(descriptor, BLOCK)
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            events.append((mask, data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
        return events
    finally:
        os.close(descriptor)


@_looks
def _direct(folder: Path) -> list[Answer]:
    """Aligned reads that bypass the cache, up to and over the end."""
    with opened(folder / "file", os.O_DIRECT) as file, mmap.mmap(-1, MIB) as buffer:
        found: list[Answer] = []
        for offset in (0, BLOCK, 3 * MIB, 4 * MIB):
            count = os.preadv(file, [buffer], offset)
            found.append(bytes(buffer[:count]))
        return found


@_looks
def _direct_unaligned(folder: Path) -> Answer:
    with opened(folder / "file", os.O_DIRECT) as file, mmap.mmap(-1, MIB) as buffer:
        count = os.preadv(file, [memoryview(buffer)[3:1003]], 5)
        return bytes(buffer[3 : 3 + count])


@_looks
def _oddopens(folder: Path) -> dict[str, Answer]:
    flags = {
        "O_NOATIME": os.O_NOATIME,
        "O_SYNC": os.O_SYNC,
        "O_NONBLOCK": os.O_NONBLOCK,
        "O_DIRECTORY": os.O_DIRECTORY,
        "O_NOFOLLOW": os.O_NOFOLLOW,
        "O_PATH": os.O_PATH,
        "O_PATH|O_NOFOLLOW": os.O_PATH | os.O_NOFOLLOW,
        "O_ASYNC": os.O_ASYNC,
    }
    plain = ("file", "folder", "link", "around", "dangling", "nothing")
    names = (*plain, "file/", "file/.", "folder/..", "x" * 300)
    return {
        f"{title} {name}": tried(opens, f"{folder}/{name}", value)
        for title, value in flags.items()
        for name in names
    }


@_looks
def _fifo_works(folder: Path) -> bytes:
    """The pipe is the kernel's, so it can be written to."""
    with opened(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reading:
        with opened(folder / "fifo", os.O_WRONLY) as writing:
            os.write(writing, b"through")
        return os.read(reading, 100)


@_looks
def _xattr_sizes(folder: Path) -> list[Answer]:
    path, buffer = os.fsencode(folder / "small"), ctypes.create_string_buffer(100)
    names = (b"user.color", b"trusted.more", b"user.none", b"system.posix_acl_access", b"security.selinux")
    sized = [
        tried(call, libc.getxattr, path, name, buffer, size) for name in names for size in (0, 1, 5, 100)
    ]
    listed = [tried(call, libc.listxattr, path, buffer, size) for size in (0, 5, 100)]
    return [*sized, *listed, sorted(os.listxattr(folder / "small")), os.listxattr(folder / "file")]


@_looks
def _xattrs_of_no_namespace(folder: Path) -> list[Answer]:
    return [tried(os.getxattr, folder / "small", name) for name in ("odd", "user.", "other.name")]


@_looks
def _readlink_of_anything(folder: Path) -> list[Answer]:
    names = ("link", "dangling", "around", "file", "folder", "nothing", "file/x")
    return [tried(os.readlink, f"{folder}/{name}") for name in names]


@_looks
def _executed(folder: Path) -> int:
    return os.spawnv(os.P_WAIT, folder / "program", ["program"])


@_looks
def _listed_twice_with_a_rewind(folder: Path) -> tuple[set[str], set[str]]:
    with opened(folder, os.O_DIRECTORY) as descriptor:
        first = set(os.listdir(descriptor))  # noqa: PTH208  # of a descriptor
        return first, set(os.listdir(descriptor))  # noqa: PTH208


@_looks
def _read_of_a_directory(folder: Path) -> list[Answer]:
    with opened(folder / "folder") as descriptor:
        return [tried(os.read, descriptor, 10), tried(os.pread, descriptor, 10, 0)]


@_looks
def _polled(folder: Path) -> list[int]:
    poller = select.poll()
    with opened(folder / "file") as descriptor:
        poller.register(descriptor)
        return [events for _, events in poller.poll(0)]


@_looks
def _times_after_reading(folder: Path) -> tuple[int, int]:
    (folder / "small").read_bytes()
    found = (folder / "small").stat()
    return found.st_mtime_ns, found.st_nlink


@_looks
def _access_of_a_user(folder: Path) -> list[Answer]:
    """As somebody else: a child with other rights, as the kernel checks them."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        with suppress(BaseException):
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            tries = [
                tried((folder / "secret").read_bytes),
                tried((folder / "small").read_bytes),
                tried(os.getxattr, folder / "small", "trusted.more"),
                tried(opens, folder / "file", os.O_NOATIME),
            ]
            os.write(writing, repr(tries).encode())
        os._exit(0)
    os.close(writing)
    try:
        return [os.read(reading, BLOCK), os.waitpid(child, 0)[1]]
    finally:
        os.close(reading)
