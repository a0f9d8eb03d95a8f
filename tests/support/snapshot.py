"""What a tree of files holds, and how two trees differ; imports nothing but the standard library.

Guests run it, too: ``snapshot.py FOLDER`` prints what the folder holds; ``unpacked`` is the other end.
"""

# Names are bytes here, which pathlib does not take.
# ruff: noqa: PTH123, PTH115, PTH208

from __future__ import annotations

import base64
import hashlib
import os
import pickle
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

SIZE_MAX = 2**63 - 1


@dataclass(frozen=True)
class Found:
    """One name and its inode; sizes and link counts of directories are each file system's own business."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    rdev: int
    content: str = ""
    """SHA-256 of a regular file, or the target of a symlink."""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    same_as: bytes = b""
    """First path, in byte order of all paths, with the same inode; of what is no directory."""


Snapshot = dict[bytes, Found]


def read_folder(root: str | bytes | os.PathLike[str], *, content_max: int = SIZE_MAX) -> Snapshot:
    """Everything below ``root`` as the kernel tells it; ``b""`` is the root.

    Files of more than ``content_max`` bytes are not read.
    """
    top = os.fsencode(root)
    return dict(settled(_folder_entries(top, b"", content_max)))


def _folder_entries(top: bytes, path: bytes, content_max: int) -> Iterator[tuple[bytes, Found, int]]:
    place = top + b"/" + path if path else top
    status = os.lstat(place)
    kind = stat.S_IFMT(status.st_mode)
    what = ""
    if kind == stat.S_IFLNK:
        what = os.fsdecode(os.readlink(place))
    elif kind == stat.S_IFREG and status.st_size <= content_max:
        with open(place, "rb") as file:
            what = hashlib.file_digest(file, "sha256").hexdigest()
    names = os.listxattr(place, follow_symlinks=False)
    found = Found(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=0 if kind == stat.S_IFDIR else status.st_size,
        nlink=0 if kind == stat.S_IFDIR else status.st_nlink,
        rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        content=what,
        xattrs={os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in names},
    )
    yield path, found, status.st_ino
    if kind == stat.S_IFDIR:
        for name in sorted(os.listdir(place)):
            yield from _folder_entries(top, path + b"/" + name if path else name, content_max)


def settled(entries: Iterator[tuple[bytes, Found, int]]) -> Iterator[tuple[bytes, Found]]:
    """Name the first path of each inode that has several."""
    first: dict[int, bytes] = {}
    for path, found, inode in sorted(entries, key=lambda item: item[0]):
        if stat.S_ISDIR(found.mode):
            yield path, found
        else:
            yield path, replace(found, same_as=first.setdefault(inode, path))


def differences(left: Snapshot, right: Snapshot) -> list[str]:
    """One line for everything in which two trees differ."""
    lines = [f"{path!r}: only in the first" for path in sorted(left.keys() - right.keys())]
    lines += [f"{path!r}: only in the second" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for name in Found.__dataclass_fields__:
            first, second = getattr(left[path], name), getattr(right[path], name)
            if first != second:
                lines.append(f"{path!r}: {name}: {first!r} and {second!r}")
    return lines


def assert_same_tree(left: Snapshot, right: Snapshot) -> None:
    """Fail with a list of what differs."""
    found = differences(left, right)
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:20])


def packed(snapshot: Snapshot) -> str:
    """A snapshot as text."""
    rows = {path: vars(found) for path, found in snapshot.items()}
    return base64.b64encode(zlib.compress(pickle.dumps(rows))).decode()


def unpacked(text: str) -> Snapshot:
    """The snapshot that ``packed`` made text of."""
    rows = pickle.loads(zlib.decompress(base64.b64decode(text)))
    return {path: Found(**fields) for path, fields in rows.items()}


if __name__ == "__main__":
    print(packed(read_folder(sys.argv[1])))
