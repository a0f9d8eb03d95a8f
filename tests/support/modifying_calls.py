"""Calls that would change a read-only tree, each for names of every kind; says nothing about the answers."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import stat
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from support.asking import BLOCK, Answer, Ask, call, libc, opened, opens, tried

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4  # include/uapi/linux/fs.h
AT_FDCWD: Final = -100
FICLONE: Final = 0x40049409
FS_IOC_SETFLAGS: Final = 0x40086602
MADV_REMOVE: Final = 9

MODIFYING: dict[str, Ask] = {}
"""Name -> question."""


def _modifies(*names: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Ask it of each of these names."""

    def add(ask: Callable[..., Answer]) -> Callable[..., Answer]:
        title = ask.__name__.strip("_")
        for name in names:
            MODIFYING[f"{title} {name}"] = partial(_ask_of, ask, name)
        return ask

    return add


def _ask_of(ask: Callable[..., Answer], name: str, folder: Path) -> Answer:
    return ask(folder / name)


def _open_of(flags: int, name: str, folder: Path) -> Answer:
    return opens(folder / name, flags)


_ANY: Final = (
    *("file", "folder", "link", "dangling", "around"),
    *("nothing", "file/below", "nothing/below", "x" * 300),
)
_FLAGS: Final = {
    "O_WRONLY": os.O_WRONLY,
    "O_RDWR": os.O_RDWR,
    "O_RDONLY|O_TRUNC": os.O_TRUNC,
    "O_WRONLY|O_APPEND": os.O_WRONLY | os.O_APPEND,
    "O_CREAT": os.O_CREAT,
    "O_CREAT|O_EXCL": os.O_CREAT | os.O_EXCL,
    "O_CREAT|O_WRONLY": os.O_CREAT | os.O_WRONLY,
    "O_CREAT|O_WRONLY|O_NOFOLLOW": os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW,
    "O_TMPFILE|O_RDWR": os.O_TMPFILE | os.O_RDWR,
}
for _title, _value in _FLAGS.items():
    for _name in _ANY:
        MODIFYING[f"open {_title} {_name}"] = partial(_open_of, _value, _name)


@_modifies(*_ANY, "folder/below", "empty folder")
def _mkdir(path: Path) -> None:
    path.mkdir()


@_modifies(*_ANY, "empty folder")
def _rmdir(path: Path) -> None:
    path.rmdir()


@_modifies("folder", "empty folder")
def _rmdir_of_dots(path: Path) -> list[Answer]:
    """Paths that pathlib would make shorter."""
    return [tried(call, libc.rmdir, os.fsencode(path) + dots) for dots in (b"/", b"/.", b"/..", b"/./")]


@_modifies(*_ANY, "fifo", "empty folder")
def _unlink(path: Path) -> None:
    path.unlink()


@_modifies(*_ANY)
def _symlink(path: Path) -> None:
    path.symlink_to("anything")


@_modifies(*_ANY)
def _mknod_fifo(path: Path) -> None:
    os.mkfifo(path)


@_modifies(*_ANY)
def _mknod_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@_modifies("new", "file", "nothing/new")
def _bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, opened(path.parent, os.O_PATH) as parent:
        bound.bind(f"/proc/self/fd/{parent}/{path.name}")  # the whole path may be too long for it


@_modifies(*_ANY)
def _link_of_file(path: Path) -> None:
    os.link(path.parent / "small" if path.parent.is_dir() else path.parents[1] / "small", path)


@_modifies("file", "nothing", "folder")
def _link_from_elsewhere(path: Path) -> None:
    with opened(Path("/tmp"), os.O_TMPFILE | os.O_RDWR) as descriptor:
        source = f"/proc/self/fd/{descriptor}"
        os.link(source, path, follow_symlinks=True)


@_modifies("file", "folder", "nothing", "link", "empty folder")
def _rename_to_new(path: Path) -> None:
    path.rename(path.with_name("new"))


@_modifies("file", "folder", "nothing", "empty folder")
def _rename_onto_other(path: Path) -> None:
    path.rename(path.with_name("other name"))


@_modifies("other name")
def _rename_onto_itself(path: Path) -> None:
    path.rename(path.with_name("small"))


@_modifies("folder")
def _rename_into_itself(path: Path) -> None:
    path.rename(path / "below" / "new")


def _renameat2(path: Path, flags: int) -> None:
    source, target = os.fsencode(path), os.fsencode(path.with_name("small"))
    call(libc.renameat2, AT_FDCWD, source, AT_FDCWD, target, flags)


@_modifies("file", "nothing")
def _exchange(path: Path) -> None:
    _renameat2(path, RENAME_EXCHANGE)


@_modifies("file", "nothing")
def _rename_noreplace(path: Path) -> None:
    _renameat2(path, RENAME_NOREPLACE)


@_modifies("file")
def _rename_whiteout(path: Path) -> None:
    _renameat2(path, RENAME_WHITEOUT)


@_modifies(*_ANY, "fifo")
def _chmod(path: Path) -> None:
    path.chmod(0o600)


@_modifies(*_ANY, "fifo")
def _chown(path: Path) -> None:
    os.chown(path, 1, 1)


@_modifies("link", "dangling", "file")
def _lchown(path: Path) -> None:
    os.lchown(path, 1, 1)


@_modifies(*_ANY)
def _utime(path: Path) -> None:
    os.utime(path)


@_modifies("link", "file")
def _lutime_ns(path: Path) -> None:
    os.utime(path, ns=(1, 1), follow_symlinks=False)


@_modifies(*_ANY, "fifo")
def _truncate(path: Path) -> None:
    os.truncate(path, 1)


@_modifies("file", "folder", "nothing")
def _set_xattr(path: Path) -> None:
    os.setxattr(path, "user.new", b"value")


@_modifies("small")
def _replace_xattr(path: Path) -> None:
    os.setxattr(path, "user.color", b"red", os.XATTR_REPLACE)


@_modifies("small", "file", "nothing")
def _remove_xattr(path: Path) -> None:
    os.removexattr(path, "user.color")


@_modifies("file")
def _set_acl(path: Path) -> None:
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2))


@_modifies("file", "folder", "nothing")
def _access_w_ok(path: Path) -> bool:
    return not call(libc.access, os.fsencode(path), os.W_OK)


# Through a descriptor that was opened for reading.


@_modifies("file", "folder")
def _fchmod(path: Path) -> None:
    with opened(path) as descriptor:
        os.fchmod(descriptor, 0o600)


@_modifies("file", "folder")
def _fchown(path: Path) -> None:
    with opened(path) as descriptor:
        os.fchown(descriptor, 1, 1)


@_modifies("file", "folder")
def _futimens(path: Path) -> None:
    with opened(path) as descriptor:
        os.utime(descriptor)


@_modifies("file", "folder")
def _fsetxattr(path: Path) -> None:
    with opened(path) as descriptor:
        os.setxattr(descriptor, "user.new", b"value")


@_modifies("file", "folder")
def _write(path: Path) -> None:
    with opened(path) as descriptor:
        os.write(descriptor, b"changed")


@_modifies("file", "folder")
def _ftruncate(path: Path) -> None:
    with opened(path) as descriptor:
        os.ftruncate(descriptor, 0)


@_modifies("file", "folder")
def _fallocate(path: Path) -> None:
    with opened(path) as descriptor:
        os.posix_fallocate(descriptor, 0, 4096)


@_modifies("file")
def _copy_file_range_into(path: Path) -> None:
    with opened(path) as source, opened(path.with_name("small")) as target:
        os.copy_file_range(source, target, 10)


@_modifies("file")
def _splice_into(path: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"changed")
        with opened(path) as descriptor:
            os.splice(reading, descriptor, 7)
    finally:
        os.close(reading)
        os.close(writing)


@_modifies("file")
def _sendfile_into(path: Path) -> None:
    with opened(path) as descriptor, opened(path.with_name("small")) as source:
        os.sendfile(descriptor, source, 0, 5)


@_modifies("file", "folder")
def _ioctl_clone(path: Path) -> None:
    with opened(path) as descriptor, opened(path.with_name("small")) as source:
        fcntl.ioctl(descriptor, FICLONE, source)


@_modifies("file", "folder")
def _ioctl_set_flags(path: Path) -> None:
    with opened(path) as descriptor:
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("l", 0x10))  # FS_IMMUTABLE_FL


@_modifies("file")
def _mmap_shared_writable(path: Path) -> None:
    with opened(path) as descriptor:
        mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


@_modifies("file")
def _mprotect_to_writable(path: Path) -> None:
    with opened(path) as descriptor:
        address = _map(descriptor, mmap.MAP_SHARED)
        try:
            call(libc.mprotect, ctypes.c_void_p(address), BLOCK, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            libc.munmap(ctypes.c_void_p(address), BLOCK)


@_modifies("file")
def _madvise_remove(path: Path) -> None:
    with opened(path) as descriptor:
        address = _map(descriptor, mmap.MAP_SHARED)
        try:
            call(libc.madvise, ctypes.c_void_p(address), BLOCK, MADV_REMOVE)
        finally:
            libc.munmap(ctypes.c_void_p(address), BLOCK)


@_modifies("file")
def _write_lock(path: Path) -> None:
    with opened(path) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@_modifies("file")
def _swapon(path: Path) -> None:
    call(libc.swapon, os.fsencode(path), 0)


@_modifies("file", "nothing")
def _acct(path: Path) -> None:
    call(libc.acct, os.fsencode(path))


def _map(descriptor: int, flags: int) -> int:
    libc.mmap.restype = ctypes.c_void_p
    length, offset = ctypes.c_size_t(BLOCK), ctypes.c_long(0)
    address: int = libc.mmap(None, length, mmap.PROT_READ, flags, descriptor, offset)
    assert address != ctypes.c_void_p(-1).value
    return address
