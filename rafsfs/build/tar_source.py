"""A tar archive as a build source; owns paths, parents and links between members, never seeks or writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rafsfs.build.acl import acl_mode
from rafsfs.build.source import POSIX_ACL_ACCESS, Entry, Hole, check_name, refusal, shown
from rafsfs.build.source_pieces import cut_pieces
from rafsfs.build.tar_format import Extents
from rafsfs.build.tar_members import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    GNU_DUMP_DIRECTORY,
    GNU_VOLUME_LABEL,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
    MemberReader,
)
from rafsfs.build.tar_stream import TarStream
from rafsfs.build.tar_xattrs import xattrs_of
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FileType
from rafsfs.limits import PATH_DEPTH_MAX, SYMLINK_BYTES_MAX

_KINDS = {
    SYMLINK: FileType.SYMLINK,
    CHARACTER: FileType.CHARACTER,
    BLOCK: FileType.BLOCK,
    DIRECTORY: FileType.DIRECTORY,
    GNU_DUMP_DIRECTORY: FileType.DIRECTORY,
    FIFO: FileType.FIFO,
}
_ID_MAX = 2**32 - 1
_DEVICE_MAX = (2**12 - 1, 2**20 - 1)  # linux/kdev_t.h: new_encode_dev() packs major and minor into 32 bits
_SECONDS_MAX = 2**63 - 1  # erofs_inode_extended.i_mtime

_Node = dict[bytes, "_Node | None"]  # a directory by its names; None for all that is not one


class TarSource:
    """The members of a tar archive in their order: plain, gzip or zstd (told by its first bytes), pipes too.

    Leading slashes and ``./`` are dropped. Parents that are not in the archive, the root among them, are made
    as directories 0755 of user and group 0, last changed at time 0. ``xattrs=False`` leaves extended
    attributes and ACLs out. Numeric owners are taken, never names. ``file`` stays the caller's to close.

    Raises BuildError, here and in ``entries``, when it is no archive, is damaged or cut off, or holds what an
    image cannot say.
    """

    def __init__(self, file: BinaryIO, *, xattrs: bool = True) -> None:
        self._stream: TarStream | None = TarStream(file)
        self._xattrs = xattrs
        self._root: _Node = {}
        self._root_given = False

    def close(self) -> None:
        """Let go of the decompressor."""
        self._stream = None

    def entries(self) -> Iterator[Entry]:
        """See ``Source.entries``. Only once: an archive on a pipe has gone by then."""
        stream, self._stream = self._stream, None
        if stream is None:
            raise AssertionError("a tar is read once")
        for member in MemberReader(stream):
            if member.kind == GNU_VOLUME_LABEL:
                continue
            try:
                entries = self._entries_of(member, stream)
            except BuildError as error:
                error.at(path=shown(member.path), offset=member.offset)
                raise
            yield from entries
        if not self._root_given:
            yield made_directory(b"")

    def _entries_of(self, member: Member, stream: TarStream) -> list[Entry]:
        """Give the member's entry, after those of parents that the archive left out."""
        names = path_names(member.path)
        path = b"/".join(names)
        entry = entry_of(member, path, stream, xattrs=self._xattrs)
        if entry.hard_link_to is not None:
            if entry.hard_link_to == path:  # tars that were appended to can say so; it is true already
                return []
            self._check_link(path, entry.hard_link_to)
        made = self._place(names, is_directory=entry.kind == FileType.DIRECTORY)
        return [*made, entry]

    def _place(self, names: list[bytes], *, is_directory: bool) -> list[Entry]:
        """Put a path into the tree of what was given so far; gives the parents that had to be made."""
        made = []
        if names and not self._root_given:
            made.append(made_directory(b""))
        self._root_given = True
        if not names:
            if not is_directory:
                raise BuildError("the root of a tar archive is not a directory")
            return made
        node = self._root
        for depth, name in enumerate(names[:-1], 1):
            if name not in node:
                node[name] = {}
                made.append(made_directory(b"/".join(names[:depth])))
            below = node[name]
            if below is None:
                raise BuildError("a parent is not a directory", found=shown(b"/".join(names[:depth])))
            node = below
        if not is_directory:
            node[names[-1]] = None
        elif node.get(names[-1]) is None:
            node[names[-1]] = {}
        return made

    def _check_link(self, path: bytes, target: bytes) -> None:
        node: _Node | None = self._root
        for name in target.split(b"/"):
            if node is None or name not in node:
                raise BuildError(
                    "a hard link leads to what is not in the archive before it", found=shown(target)
                )
            node = node[name]
        if node is not None:
            raise BuildError("a hard link leads to a directory", found=shown(target))
        if target.startswith(path + b"/"):
            raise BuildError("a hard link would replace a directory above its target", found=shown(target))


def entry_of(member: Member, path: bytes, stream: TarStream, *, xattrs: bool = True) -> Entry:
    """Make the entry of one member. Raises BuildError when it is what no image can say."""
    kind = _KINDS.get(member.kind, FileType.REGULAR)
    if member.kind in REGULAR and member.path.endswith(b"/"):  # directories, before there was a type
        kind = FileType.DIRECTORY
    _check_range("user id", member.uid, _ID_MAX)
    _check_range("group id", member.gid, _ID_MAX)
    _check_range("modification time", abs(member.mtime_ns) // 1_000_000_000, _SECONDS_MAX)
    entry = Entry(path, kind, member.permissions, member.uid, member.gid, member.mtime_ns)
    if member.kind == HARD_LINK:
        entry.hard_link_to = b"/".join(path_names(member.link))
        return entry
    if xattrs:
        entry.xattrs = xattrs_of(path, member.records)
        for xattr, value in entry.xattrs:
            if xattr == POSIX_ACL_ACCESS:  # libarchive leaves the mask out of the mode; kernels put it in
                entry.permissions = entry.permissions & 0o7000 | acl_mode(value)
    if kind == FileType.SYMLINK:
        entry.target = member.link
        if not 0 < len(member.link) <= SYMLINK_BYTES_MAX or b"\0" in member.link:
            raise BuildError(
                "a symbolic link's target cannot be stored",
                expected=f"1 to {SYMLINK_BYTES_MAX} bytes",
                found=len(member.link),
            )
    elif kind in {FileType.CHARACTER, FileType.BLOCK}:
        entry.rdev = member.device
        for name, found, most in zip(("major", "minor"), member.device, _DEVICE_MAX, strict=True):
            _check_range(f"{name} device number", found, most)
    elif kind == FileType.REGULAR:
        entry.size = member.size
        entry.content = _FileInStream(stream, stream.offset, path, member.size, member.extents).content
    return entry


@dataclass(slots=True)
class _FileInStream:
    """A regular file whose data are the next in the stream. It holds no more than it needs: see OpenFile."""

    stream: TarStream
    position: int
    path: bytes
    size: int
    extents: Extents | None

    def content(self, piece_size: int) -> Iterator[bytes | Hole]:
        """See ``source.Content``. Raises BuildError when the archive is damaged or cut off."""
        extents = [(0, self.size)] if self.extents is None else self.extents
        try:
            yield from cut_pieces(self.size, extents, piece_size, self._read)
        except BuildError as error:
            error.at(path=shown(self.path))
            raise

    def _read(self, _offset: int, length: int) -> bytes:
        if self.stream.offset != self.position:
            raise AssertionError("content is read once, before the next entry is asked for")
        self.position += length
        return self.stream.read(length)


def path_names(path: bytes) -> list[bytes]:
    """Split a member's path into its components. Raises BuildError on one that no tree can have."""
    names = [name for name in path.split(b"/") if name not in {b"", b"."}]
    if len(names) >= PATH_DEPTH_MAX:  # the root is a level, too
        raise refusal(
            path[:80], "directories are nested too deeply", expected=f"at most {PATH_DEPTH_MAX} levels"
        )
    for name in names:
        check_name(path, name)
    return names


def _check_range(what: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise BuildError(f"a {what} is out of range", expected=f"0 to {most}", found=value)


def made_directory(path: bytes) -> Entry:
    """A directory that an archive has files in, but not itself."""
    return Entry(path, FileType.DIRECTORY, 0o755, 0, 0, 0)
