"""Trees for tests: plans of them, one on disk with something of everything, and what an image holds."""

# Names are bytes here, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH123, PTH211

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

# Most tests of trees want all of these; they lie apart for the sake of guests, which have no other packages.
from support.snapshot import (  # noqa: F401
    SIZE_MAX,
    Found,
    Snapshot,
    assert_same_tree,
    differences,
    read_folder,
    settled,
)

from rafsfs.build.source import Entry, Hole
from rafsfs.format import erofs
from rafsfs.format.erofs import FileType
from rafsfs.fs.filesystem import FileSystem

READ_BYTES = 1 << 20
SPARSE_BYTES = 30 << 20
BLOCK = 4096


def read_image(filesystem: FileSystem, *, content_max: int = SIZE_MAX) -> Snapshot:
    """Everything in an image, through our reader, as ``read_folder`` tells it."""

    def entries() -> Iterator[tuple[bytes, Found, int]]:
        for path, nid in filesystem.walk():
            attributes = filesystem.attributes(nid)
            kind = stat.S_IFMT(attributes.mode)
            what = ""
            if kind == stat.S_IFLNK:
                what = os.fsdecode(filesystem.readlink(nid))
            elif kind == stat.S_IFREG and attributes.size <= content_max:
                what = _image_digest(filesystem, nid, attributes.size)
            found = Found(
                mode=attributes.mode,
                uid=attributes.uid,
                gid=attributes.gid,
                mtime_ns=attributes.mtime_ns,
                size=0 if kind == stat.S_IFDIR else attributes.size,
                nlink=0 if kind == stat.S_IFDIR else attributes.nlink,
                rdev=attributes.rdev,
                content=what,
                xattrs={name: filesystem.xattr(nid, name) for name in filesystem.xattr_names(nid)},
            )
            yield path, found, nid

    return dict(settled(entries()))


def _image_digest(filesystem: FileSystem, nid: int, size: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, size, READ_BYTES):
        for part in filesystem.read(nid, offset, READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


# --- Plans --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """A run of a file: ``seed`` None is a hole, else it chooses the bytes; equal seeds give equal bytes."""

    length: int
    seed: int | None

    def plain(self) -> bytes:
        if self.seed is None:
            return bytes(self.length)
        chosen = random.Random(self.seed)
        if self.seed % 2:  # every other one does not compress
            return chosen.randbytes(self.length)
        return (chosen.randbytes(7) * (self.length // 7 + 1))[: self.length]


@dataclass(frozen=True)
class Planned:
    """One name of a tree that is to be made; the meaning of the fields is that of ``build.source.Entry``."""

    path: bytes
    kind: FileType
    permissions: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    segments: tuple[Segment, ...] = ()
    rdev: tuple[int, int] = (0, 0)
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    hard_link_to: bytes | None = None

    @property
    def size(self) -> int:
        return sum(segment.length for segment in self.segments)

    def plain(self) -> bytes:
        return b"".join(segment.plain() for segment in self.segments)


Plan = tuple[Planned, ...]
"""The root first, parents before children, links after what they link to."""


def write_plan(plan: Plan, root: Path) -> None:
    """Make the tree on disk; ``root`` is there and empty. Times last, for making names changes them."""
    top = os.fsencode(root)
    for item in plan:
        place = top + b"/" + item.path if item.path else top
        if item.hard_link_to is not None:
            os.link(top + b"/" + item.hard_link_to, place, follow_symlinks=False)
            continue
        _make(item, place)
    for item in reversed(plan):
        if item.hard_link_to is None:
            place = top + b"/" + item.path if item.path else top
            _dress(item, place)


def _make(item: Planned, place: bytes) -> None:
    match item.kind:
        case FileType.DIRECTORY if item.path:
            os.mkdir(place)
        case FileType.REGULAR:
            with open(place, "wb") as file:
                for segment in item.segments:
                    if segment.seed is None:
                        file.seek(segment.length, os.SEEK_CUR)
                    else:
                        file.write(segment.plain())
                file.truncate(item.size)
        case FileType.SYMLINK:
            os.symlink(item.target, place)
        case FileType.SOCKET:
            os.mknod(place, stat.S_IFSOCK | 0o600)
        case FileType.FIFO:
            os.mkfifo(place)
        case FileType.CHARACTER | FileType.BLOCK:
            kind = stat.S_IFCHR if item.kind is FileType.CHARACTER else stat.S_IFBLK
            os.mknod(place, kind | 0o600, os.makedev(*item.rdev))


def _dress(item: Planned, place: bytes) -> None:
    os.chown(place, item.uid, item.gid, follow_symlinks=False)
    for name, value in item.xattrs:
        os.setxattr(place, name, value, follow_symlinks=False)
    if item.kind is not FileType.SYMLINK:
        os.chmod(place, item.permissions)
    os.utime(place, ns=(item.mtime_ns, item.mtime_ns), follow_symlinks=False)


class PlannedSource:
    """A plan as a build source without a file system: a second implementation of ``build.source.Source``."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def entries(self) -> Iterator[Entry]:
        for item in self._plan:
            has_content = item.kind is FileType.REGULAR and item.hard_link_to is None
            yield Entry(
                item.path,
                item.kind,
                item.permissions,
                item.uid,
                item.gid,
                item.mtime_ns,
                item.size,
                item.rdev,
                item.target,
                tuple(sorted(item.xattrs)),
                item.hard_link_to,
                _Content(item.segments) if has_content else None,
            )

    def close(self) -> None:
        pass


class _Content:
    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self._segments = segments

    def __call__(self, piece_size: int) -> Iterator[bytes | Hole]:
        size = sum(segment.length for segment in self._segments)
        data, position = [], 0
        for segment in self._segments:
            if segment.seed is not None:
                data.append((position, segment.plain()))
            position += segment.length
        hole = 0
        for start in range(0, size, piece_size):
            end = min(start + piece_size, size)
            piece, touched = bytearray(end - start), False
            for offset, plain in data:
                first, last = max(offset, start), min(offset + len(plain), end)
                if first < last:
                    piece[first - start : last - start] = plain[first - offset : last - offset]
                    touched = True
            if touched:
                if hole:
                    yield Hole(hole)
                    hole = 0
                yield bytes(piece)
            else:
                hole += end - start
        if hole:
            yield Hole(hole)


def expected(plan: Plan) -> Snapshot:
    """What an image of ``plan`` has to hold, worked out of the plan alone."""
    inodes = {item.path: item for item in plan}
    links: dict[bytes, list[bytes]] = {}
    for item in plan:
        links.setdefault(item.hard_link_to or item.path, []).append(item.path)
    found = {}
    for inode, paths in links.items():
        item = inodes[inode]
        is_directory = item.kind is FileType.DIRECTORY
        content = ""
        if item.kind is FileType.REGULAR:
            content = hashlib.sha256(item.plain()).hexdigest()
        elif item.kind is FileType.SYMLINK:
            content = os.fsdecode(item.target)
        for path in paths:
            found[path] = Found(
                mode=erofs.MODE_OF_FILE_TYPE[erofs.FileType(item.kind)] | item.permissions,
                uid=item.uid,
                gid=item.gid,
                mtime_ns=item.mtime_ns,
                size=len(item.target) if item.kind is FileType.SYMLINK else item.size,
                nlink=0 if is_directory else len(paths),
                rdev=os.makedev(*item.rdev),
                content=content,
                xattrs=dict(item.xattrs),
                same_as=b"" if is_directory else min(paths),
            )
    return found


# --- Strategies ---------------------------------------------------------------------------------------------

ACL_VERSION = 2
ACL = struct.pack("<I", ACL_VERSION) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in (
        (0x01, 6, 0xFFFF_FFFF),  # ACL_USER_OBJ
        (0x02, 4, 1234),  # ACL_USER
        (0x04, 4, 0xFFFF_FFFF),  # ACL_GROUP_OBJ
        (0x10, 6, 0xFFFF_FFFF),  # ACL_MASK
        (0x20, 0, 0xFFFF_FFFF),  # ACL_OTHER
    )
)
"""A POSIX ACL as linux/posix_acl_xattr.h has it: u:1234:r on top of the three classes."""
CAPABILITY = struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep, as linux/capability.h has it: VFS_CAP_REVISION_2, effective."""

ROOT = os.geteuid() == 0
_ID_MAX = 2**32 - 2  # -1 means 'leave alone' to chown(2)
_EXT4_TIME = (-(2**31), 15_032_385_535)  # seconds that an inode of 256 bytes can say
_SIZES = (1, 7, 4095, 4096, 4097, 8191, 8192, 12_289, 20_480)

names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"A", b"-", b" ", b"...", b"\xff\xfe", b"\n", "ä".encode()]),
    st.binary(min_size=1, max_size=9),
    st.builds(lambda letter: letter * 255, st.sampled_from([b"x", b"\x80", b"~"])),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))

segments = st.builds(
    Segment,
    length=st.one_of(st.sampled_from(_SIZES), st.integers(1, 9000)),
    seed=st.one_of(st.none(), st.integers(0, 5)),
)
files = st.lists(segments, max_size=4).map(tuple)

_plain_xattrs = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [b"user.a", b"user.rather.long.name", b"trusted.overlay.opaque", b"security.selinux"]
        ),
        st.binary(min_size=1, max_size=20).map(lambda name: b"trusted." + name.replace(b"\0", b"_")),
    ),
    st.one_of(st.sampled_from([b"", b"y", b"common" * 20]), st.binary(max_size=80)),
    max_size=4,
)


@st.composite
def plans(draw: st.DrawFn, *, on_disk: bool, max_names: int = 12) -> Plan:
    """A tree of any shape. ``on_disk`` keeps to what the test's own file system and user can make."""
    plan = [Planned(b"", FileType.DIRECTORY, **_attributes(draw, FileType.DIRECTORY, on_disk))]
    directories, linkable, taken = [b""], [], {b""}
    kinds = [
        kind for kind in FileType if ROOT or not on_disk or kind not in (FileType.BLOCK, FileType.CHARACTER)
    ]
    for _ in range(draw(st.integers(0, max_names))):
        parent = draw(st.sampled_from(directories))
        name = draw(names)
        path = parent + b"/" + name if parent else name
        if path in taken or len(path) > 3000:
            continue
        taken.add(path)
        if linkable and draw(st.integers(0, 5)) == 0:
            target = draw(st.sampled_from(linkable))
            plan.append(Planned(path, target.kind, hard_link_to=target.path))
            continue
        kind = draw(st.sampled_from(kinds))
        item = Planned(path, kind, **_attributes(draw, kind, on_disk))
        if kind is FileType.DIRECTORY:
            directories.append(path)
        else:
            linkable.append(item)
        plan.append(item)
    return tuple(plan)


def _attributes(draw: st.DrawFn, kind: FileType, on_disk: bool) -> dict[str, object]:
    seconds = st.integers(*_EXT4_TIME) if on_disk else st.integers(-(2**63), 2**63 - 1)
    owners = st.integers(0, _ID_MAX) if ROOT or not on_disk else st.just(os.geteuid())
    xattrs = draw(_plain_xattrs) if ROOT or not on_disk else {}
    permissions = draw(st.integers(0, 0o7777))
    if on_disk and not ROOT:
        permissions |= 0o700
    if kind is not FileType.REGULAR and kind is not FileType.DIRECTORY:
        xattrs = {name: value for name, value in xattrs.items() if not name.startswith(b"user.")}
    elif xattrs and draw(st.booleans()):
        xattrs[b"system.posix_acl_access"] = ACL
    if kind is FileType.REGULAR and xattrs and draw(st.booleans()):
        xattrs[b"security.capability"] = CAPABILITY
    attributes: dict[str, object] = {
        "permissions": 0o777 if kind is FileType.SYMLINK else permissions,
        "uid": draw(owners),
        "gid": draw(owners) if ROOT or not on_disk else os.getegid(),
        "mtime_ns": draw(seconds) * 1_000_000_000 + draw(st.integers(0, 999_999_999)),
        "xattrs": tuple(sorted(xattrs.items())),
    }
    if kind is FileType.REGULAR:
        attributes["segments"] = draw(files)
    elif kind is FileType.SYMLINK:
        lengths = st.one_of(st.integers(1, 40), st.sampled_from([255, 1000, 4090, 4095]))
        attributes["target"] = draw(st.sampled_from([b"t", b"../", b"\xff"])) * draw(lengths)
        attributes["target"] = attributes["target"][:4095]
    elif kind in (FileType.CHARACTER, FileType.BLOCK):
        attributes["rdev"] = (draw(st.integers(0, 2**12 - 1)), draw(st.integers(0, 2**20 - 1)))
    return attributes


# --- A tree on disk ---------------------------------------------------------------------------------------


def enrich(root: Path) -> None:
    """What every tree should have: each kind of inode and attribute, whatever else is in it."""
    place = root / "enriched"
    place.mkdir(mode=0o1777)
    (place / "random").write_bytes(os.urandom((3 << 20) + 17))
    (place / "copy of random").write_bytes((place / "random").read_bytes())
    (place / "text").write_text("the same line again\n" * 100_000)
    (place / "empty").touch(0o400)
    with (place / "sparse").open("wb") as file:
        file.seek(10 << 20)
        file.write(b"in the middle")
        file.truncate(SPARSE_BYTES)
    for number in range(300):
        (place / f"small {number}").write_bytes(b"%d" % number * number)
        os.setxattr(place / f"small {number}", "user.number", b"%d" % (number % 7))
    os.link(place / "random", place / "link to random")
    (place / "long symlink").symlink_to("x" * 4000)
    (place / os.fsdecode(b"not \xff UTF-8 \n" + b"n" * 240)).touch()
    os.mkfifo(place / "fifo", 0o640)
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(place / "disk", stat.S_IFBLK | 0o660, os.makedev(8, 300))
    program = place / "program"
    shutil.copy("/bin/true", program)
    os.chown(program, 12_345, 2**32 - 2)
    program.chmod(0o6755)
    for name, value in {
        "security.capability": CAPABILITY,
        "system.posix_acl_access": ACL,
        "trusted.overlay.opaque": b"y",
        "user.long": b"v" * 2000,
    }.items():
        os.setxattr(program, name, value)
    (place / "acl").mkdir()
    os.setxattr(place / "acl", "system.posix_acl_default", ACL)
    os.utime(place / "text", ns=(0, 1_234_567_890_123_456_789))
    os.utime(place / "long symlink", ns=(0, -1_000_000_001), follow_symlinks=False)
