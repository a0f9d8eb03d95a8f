"""Checks the tree of an image: every directory, inode, attribute, link and extent; never decodes a chunk.

Uses the readers' own parsers, so that it finds what they would refuse, and adds what no single read can see.
Memory: a byte for each 32 bytes of metadata, an object for each directory in sight and each linked inode.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.format import erofs
from rafsfs.format.erofs import FILE_TYPE_OF_MODE, FileType
from rafsfs.format.superblock import BlobEntry
from rafsfs.fs.places import ROOT, Place
from rafsfs.fs.problems import Problems
from rafsfs.limits import PATH_DEPTH_MAX
from rafsfs.metadata.inode import InlineExtent, Inode
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.tree import Dirent, Tree
from rafsfs.types import Nid

_UNSEEN = 0
_BAD = 255  # an inode that does not parse; it is reported once, whoever names it


@dataclass(slots=True)
class TreeTotals:
    """What a tree holds. ``bytes`` are the sizes of its regular files, hard links counted once."""

    names: int = 0
    inodes: int = 0
    directories: int = 0
    files: int = 0
    symlinks: int = 0
    special: int = 0
    xattrs: int = 0
    bytes: int = 0


class Coverage:
    """Which bytes of a blob's decoded space its chunks hold, as runs without a gap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add a chunk; they come in rising order."""
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
        else:
            self._starts.append(start)
            self._ends.append(end)

    def holds(self, start: int, length: int) -> bool:
        """Whether all of a range is in chunks."""
        run = bisect_right(self._starts, start) - 1
        return run >= 0 and start + length <= self._ends[run]


@dataclass(slots=True)
class _Links:
    """An inode with several names: how many it claims, how many were met, and the first."""

    claimed: int
    met: int
    place: Place
    name: bytes


@dataclass(frozen=True, slots=True)
class _Directory:
    nid: Nid
    parent: Nid
    place: Place


def check_section(space: MetadataSpace, blobs: Sequence[BlobEntry]) -> None:
    """Check what the EROFS superblock and device slots say, which our reader leaves to other drivers.

    ``space`` is the whole section. Takes as long for any number of files. Raises FormatError.
    """
    raw = space.read(erofs.SUPERBLOCK_OFFSET, erofs.SUPERBLOCK.size)
    superblock = erofs.SUPERBLOCK.unpack_from(raw)
    # Others, those that we have no names for among them, open parts of drivers that no image needs.
    plain = superblock._replace(
        checksum=0, feature_compat=0, extension_slots=0, meta_blkaddr=0, compression_algorithms=0
    )
    if erofs.SUPERBLOCK.pack(plain) != raw:
        raise FormatError("EROFS superblock uses what this format has no use for", expected="zeros")
    if superblock.blocks << erofs.BLOCK_BITS != space.length:
        raise FormatError(
            "EROFS superblock's length", expected=space.length >> erofs.BLOCK_BITS, found=superblock.blocks
        )
    start = superblock.device_table_slot * erofs.DEVICE_SLOT.size
    table = space.read(start, superblock.extra_devices * erofs.DEVICE_SLOT.size)
    for number, (slot, blob) in enumerate(zip(erofs.DEVICE_SLOT.iter_unpack(table), blobs, strict=True), 1):
        expected = erofs.DeviceSlot(blob.blob_id.hex().encode(), blob.decoded_blocks, 0)
        if slot != expected:
            raise FormatError(
                f"EROFS device slot {number} is not of its blob", expected=tuple(expected), found=tuple(slot)
            )


class _Kinds:
    """A byte for each possible nid, zero at first; in pieces, as a small image can claim billions of them."""

    _PIECE = 2048  # nids in 64 KiB of metadata

    def __init__(self, count: int) -> None:
        self._count = count
        self._pieces: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, nid: int) -> int:
        piece = self._pieces.get(nid // self._PIECE)
        return piece[nid % self._PIECE] if piece is not None else _UNSEEN

    def __setitem__(self, nid: int, kind: int) -> None:
        number, place = divmod(nid, self._PIECE)
        if number not in self._pieces:
            self._pieces[number] = bytearray(self._PIECE)
        self._pieces[number][place] = kind


class TreeCheck:
    """One walk over everything. ``run`` it once; what is wrong goes into ``problems``."""

    def __init__(
        self,
        tree: Tree,
        section_bytes: int,
        coverage: Sequence[Coverage],
        problems: Problems,
        report: Callable[[int], None],
    ) -> None:
        """``coverage`` of each blob; ``report`` gets the number of inodes done, after each directory."""
        self._tree = tree
        self._coverage = coverage
        self._problems = problems
        self._report = report
        self._seen = _Kinds(section_bytes // erofs.NID_SLOT_BYTES)
        self._links: dict[Nid, _Links] = {}
        self._whole = True
        # Inodes and directories of an honest image share no bytes, so that all of them fit the section. In a
        # hostile one a million of them can overlap, each with a million extents or names.
        self._extents_left = section_bytes // erofs.CHUNK_INDEX.size
        self._flat_bytes_left = section_bytes
        self.totals = TreeTotals()

    def run(self) -> TreeTotals:
        """Check everything that can be reached from the root."""
        root = self._tree.root
        self._inode(root, ROOT, b"")
        pending = [_Directory(root, root, ROOT)]
        while pending:
            pending.extend(reversed(self._directory(pending.pop())))
            self._report(self.totals.inodes)
        if self._whole:  # else names are missing, and nothing can be said of counts
            self._counts()
        return self.totals

    def _counts(self) -> None:
        for nid, links in self._links.items():
            if links.claimed != links.met:
                error = FormatError("inode's link count", expected=f"{links.met} names", found=links.claimed)
                self._problems.add(error.at(nid=nid), links.place.path(links.name))
        if self.totals.inodes != self._tree.inode_count:
            self._problems.add(
                FormatError(
                    "EROFS superblock's inode count",
                    expected=self.totals.inodes,
                    found=self._tree.inode_count,
                )
            )

    # --- Directories --------------------------------------------------------------------------------------

    def _directory(self, directory: _Directory) -> list[_Directory]:
        """Check one directory's names and the inodes behind them; returns the directories among these."""
        nid, place = directory.nid, directory.place
        below: list[_Directory] = []
        dots = subdirectories = 0
        try:
            inode = self._tree.inode(nid)
            self._spend_flat(inode.size)
            for entry in self._tree.entries(inode):
                if entry.name in (b".", b".."):
                    dots += 1
                    self._dot(entry, directory)
                    continue
                self.totals.names += 1
                if self._entry(entry, directory, below) == FileType.DIRECTORY:
                    subdirectories += 1
        except RafsError as error:
            self._fault(error.at(nid=nid), place.path())
            return below
        if dots != 2:
            self._problems.add(FormatError("directory lacks '.' or '..'").at(nid=nid), place.path())
        if self._whole and inode.nlink != subdirectories + 2:
            count = FormatError("directory's link count", expected=subdirectories + 2, found=inode.nlink)
            self._problems.add(count.at(nid=nid), place.path())
        return below

    def _spend_flat(self, size: int) -> None:
        self._flat_bytes_left -= size
        if self._flat_bytes_left < 0:
            raise FormatError(
                "directories and files in the metadata overlap: together they are larger than it"
            )

    def _dot(self, entry: Dirent, directory: _Directory) -> None:
        expected = directory.nid if entry.name == b"." else directory.parent
        if entry.nid != expected or entry.file_type != FileType.DIRECTORY:
            error = FormatError(
                f"directory's {entry.name.decode()!r} leads elsewhere",
                expected=f"directory {expected}",
                found=f"nid {entry.nid}, type {entry.file_type}",
            )
            self._problems.add(error.at(nid=directory.nid), directory.place.path())

    def _entry(self, entry: Dirent, directory: _Directory, below: list[_Directory]) -> int:
        """Check one name; returns the type of its inode."""
        nid, name, place = entry.nid, entry.name, directory.place
        kind = self._seen[nid] if nid < len(self._seen) else _UNSEEN
        if kind == _UNSEEN:
            kind = self._inode(nid, place, name)
            if kind == FileType.DIRECTORY:
                if place.depth + 1 < PATH_DEPTH_MAX:
                    below.append(_Directory(nid, directory.nid, place.below(name)))
                else:
                    deep = LimitExceeded("tree is too deep", expected=f"at most {PATH_DEPTH_MAX} levels")
                    self._fault(deep.at(nid=nid), place.path(name))
        elif kind == FileType.DIRECTORY:
            error = FormatError("a directory has two names: a cycle, or a hard link")
            self._fault(error.at(nid=nid), place.path(name))
        elif kind != _BAD:
            self._links.setdefault(nid, _Links(1, 1, place, name)).met += 1
        if kind not in (_BAD, entry.file_type):
            error = FormatError(
                "name's type is not its inode's",
                expected=FileType(kind).name,
                found=FileType(entry.file_type).name,
            )
            self._problems.add(error.at(nid=nid), place.path(name))
        return kind

    # --- Inodes -------------------------------------------------------------------------------------------

    def _inode(self, nid: Nid, place: Place, name: bytes) -> int:
        """Check an inode at its first name; returns its type, or ``_BAD``."""
        try:
            inode = self._tree.inode(nid)
        except RafsError as error:
            if nid < len(self._seen):
                self._seen[nid] = _BAD
            self._fault(error.at(nid=nid), place.path(name))
            return _BAD
        kind = FILE_TYPE_OF_MODE[stat.S_IFMT(inode.mode)]
        self._seen[nid] = kind
        totals = self.totals
        totals.inodes += 1
        try:
            if kind is FileType.REGULAR:
                totals.files += 1
                totals.bytes += inode.size
                if inode.size:
                    self._extents(inode)
            elif kind is FileType.DIRECTORY:
                totals.directories += 1
            elif kind is FileType.SYMLINK:
                totals.symlinks += 1
                self._tree.symlink_target(inode)
            else:
                totals.special += 1
        except RafsError as error:
            self._problems.add(error.at(nid=nid), place.path(name))
        if inode.xattr_bytes:
            self._xattrs(inode, place, name)
        if inode.nlink != 1 and kind is not FileType.DIRECTORY:
            self._links[nid] = _Links(inode.nlink, 1, place, name)
        return kind

    def _extents(self, inode: Inode) -> None:
        """Check that every byte of a file is in a hole, a chunk or the metadata; raises FormatError."""
        file_map = self._tree.file_map(inode)
        offset = 0
        while offset < inode.size:
            extent = file_map.extent(offset)
            self._extents_left -= 1
            if self._extents_left < 0:
                raise FormatError("files' chunk indexes overlap: together they are larger than the metadata")
            if isinstance(extent, InlineExtent):
                self._spend_flat(extent.length)
                self._tree.inline_bytes(extent)
            elif extent.blob is not None and not self._coverage[extent.blob].holds(
                extent.start, extent.length
            ):
                raise FormatError(
                    "no chunk holds a part of the file",
                    found=f"{extent.length} bytes at {extent.start} of blob {extent.blob}",
                ).at(offset=offset)
            offset += extent.length

    def _xattrs(self, inode: Inode, place: Place, name: bytes) -> None:
        try:
            names = [attribute for attribute, _ in self._tree.xattrs(inode)]
            self.totals.xattrs += len(names)
            if len(set(names)) != len(names):
                raise FormatError("inode has an attribute twice")
        except RafsError as error:
            self._problems.add(error.at(nid=inode.nid), place.path(name))

    def _fault(self, error: RafsError, path: bytes) -> None:
        """Note a problem that hides names from the walk, or lets it meet some twice."""
        self._whole = False
        self._problems.add(error, path)
