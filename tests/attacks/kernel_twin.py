"""One image through our reader and through the kernel's EROFS: what each shows of its names, bounded."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rafsfs.errors import RafsError
from rafsfs.frontends.kernel_mount_api import MountAttribute, NewMount
from rafsfs.fs.filesystem import FileSystem

NAMES_MAX = 400
DEPTH_MAX = 8
READ_BYTES = 64 << 10
OVERFLOW_ID = 65534  # /proc/sys/kernel/overflowuid

Shown = dict[bytes, dict[str, object]]
"""Path -> question -> answer. An answer that is an ``Refusal`` is an error."""


class Refusal(str):
    """An error, by name."""

    __slots__ = ()


def _tried(ask: Callable[..., object], *arguments: Any) -> object:
    try:
        return ask(*arguments)
    except RafsError as error:
        return Refusal(type(error).__name__)
    except OSError as error:
        return Refusal(errno.errorcode.get(error.errno or 0, str(error.errno)))


@contextmanager
def kernel_mount(metadata: Path, devices: list[Path]) -> Iterator[Path]:
    """Mount files where nobody sees it. Raises OSError when the kernel refuses them."""
    with NewMount("erofs") as new:
        new.set_flag("ro")
        new.set_string("source", str(metadata))
        for device in devices:
            new.set_string("device", str(device))
        mount = new.create(MountAttribute.NODEV | MountAttribute.NOSUID | MountAttribute.RDONLY)
    try:
        yield Path(f"/proc/self/fd/{mount}")
    finally:
        os.close(mount)


def _pieces(size: int) -> list[int]:
    """Offsets at which a file is read: its beginning, a place inside, its end."""
    return sorted({0, size // 2, max(0, size - READ_BYTES)})


def shown_by_kernel(root: Path) -> Shown:
    """What the kernel shows, breadth first."""
    shown: Shown = {}
    todo = [b""]
    for path in islice(todo, NAMES_MAX):
        place = os.fsencode(root) + b"/" + path
        shown[path] = found = {"attributes": _tried(_kernel_attributes, place)}
        if isinstance(found["attributes"], Refusal):
            continue
        mode = found["attributes"][0]
        found["xattrs"] = _tried(_kernel_xattrs, place)
        if stat.S_ISDIR(mode):
            names = found["names"] = _tried(lambda place: sorted(os.listdir(place)), place)  # noqa: PTH208
            if not isinstance(names, Refusal) and path.count(b"/") < DEPTH_MAX:
                todo += [path + b"/" + name if path else name for name in names]
        elif stat.S_ISLNK(mode):
            found["target"] = _tried(os.readlink, place)
        elif stat.S_ISREG(mode):
            for offset in _pieces(found["attributes"][1]):
                found[f"bytes at {offset}"] = _tried(_kernel_bytes, place, offset)
    return shown


def _kernel_attributes(place: bytes) -> tuple[int, ...]:
    status = os.lstat(place)
    kind = stat.S_IFMT(status.st_mode)
    size = 0 if kind == stat.S_IFDIR else status.st_size
    device = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return status.st_mode, size, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink, device


def _kernel_xattrs(place: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(place, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in names}


def _kernel_bytes(place: bytes, offset: int) -> bytes:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(descriptor, READ_BYTES, offset)
    finally:
        os.close(descriptor)


def shown_by_us(filesystem: FileSystem) -> Shown:
    """What our reader shows, as ``shown_by_kernel``."""
    shown: Shown = {}
    todo = [(b"", filesystem.root)]
    for path, nid in islice(todo, NAMES_MAX):
        shown[path] = found = {"attributes": _tried(_our_attributes, filesystem, nid)}
        if isinstance(found["attributes"], Refusal):
            continue
        mode = found["attributes"][0]
        found["xattrs"] = _tried(_our_xattrs, filesystem, nid)
        if stat.S_ISDIR(mode):
            entries = _tried(lambda nid: list(filesystem.directory(nid)), nid)
            if isinstance(entries, Refusal):
                found["names"] = entries
                continue
            # The C library leaves out names whose inode number is 0.
            real = [entry for entry in entries if entry.nid and entry.name not in (b".", b"..")]
            found["names"] = sorted(entry.name for entry in real)
            if path.count(b"/") < DEPTH_MAX:
                todo += [(path + b"/" + entry.name if path else entry.name, entry.nid) for entry in real]
        elif stat.S_ISLNK(mode):
            found["target"] = _tried(filesystem.readlink, nid)
        elif stat.S_ISREG(mode):
            for offset in _pieces(found["attributes"][1]):
                found[f"bytes at {offset}"] = _tried(_our_bytes, filesystem, nid, offset)
    return shown


def _our_attributes(filesystem: FileSystem, nid: Any) -> tuple[int, ...]:
    found = filesystem.attributes(nid)
    kind = stat.S_IFMT(found.mode)
    size = 0 if kind == stat.S_IFDIR else found.size
    device = found.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    # (uid_t)-1 is nobody's number; the kernel shows another in its place.
    uid, gid = (OVERFLOW_ID if owner == 2**32 - 1 else owner for owner in (found.uid, found.gid))
    return found.mode, size, uid, gid, found.mtime_ns, found.nlink, device


def _our_xattrs(filesystem: FileSystem, nid: Any) -> dict[bytes, bytes]:
    return {name: filesystem.xattr(nid, name) for name in filesystem.xattr_names(nid)}


def _our_bytes(filesystem: FileSystem, nid: Any, offset: int) -> bytes:
    return b"".join(map(bytes, filesystem.read(nid, offset, READ_BYTES)))
