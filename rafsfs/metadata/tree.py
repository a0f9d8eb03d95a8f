"""The EROFS tree of an image: inodes by nid, names by directory. Reads lazily; never leaves the metadata
section.

Its bytes are authentic, yet their author may be hostile: every offset is checked where it is used, every loop
is bounded by a size that was checked, and what is wrong raises FormatError.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Iterator
from typing import NamedTuple

from rafsfs.errors import FormatError, RafsError, UnsupportedVersion
from rafsfs.format import erofs
from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE
from rafsfs.metadata.directory import ENTRIES_PER_BLOCK_MAX, DirectoryBlock, parse_directory_block
from rafsfs.metadata.inode import FileMap, InlineExtent, Inode, parse_inode, read_flat
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.xattrs import read_xattrs
from rafsfs.types import Nid

DIRECTORY_BLOCKS_KEPT = 256  # parsed ones, ~20 KiB each: what lookups in a few busy directories touch
INODES_KEPT = 1024  # parsed ones, ~300 bytes each


class Dirent(NamedTuple):
    """One name in a directory. ``next_position`` resumes behind it and is the same in every mount of the
    image.
    """

    name: bytes
    nid: Nid
    file_type: int
    next_position: int


class Tree:
    """All inodes and names of one image. Any thread may use it: it caches only immutable values."""

    def __init__(self, space: MetadataSpace, blob_blocks: tuple[int, ...]) -> None:
        """``blob_blocks``: decoded blocks of each blob, from the image's superblock. Raises FormatError."""
        self._space = space
        self._blob_blocks = blob_blocks
        superblock = erofs.SUPERBLOCK.unpack_from(space.read(erofs.SUPERBLOCK_OFFSET, erofs.SUPERBLOCK.size))
        _check_superblock(superblock, len(blob_blocks))
        self.inode_count = superblock.inode_count
        self.names_max = space.length // (erofs.DIRENT.size + 1)  # each has a dirent and a byte of its own
        self._meta_start = superblock.meta_blkaddr << BLOCK_BITS
        self._shared_xattrs_start = superblock.xattr_blkaddr << BLOCK_BITS
        self.root = Nid(superblock.root_nid)
        self.inode = functools.lru_cache(INODES_KEPT)(self._inode)
        self._block = functools.lru_cache(DIRECTORY_BLOCKS_KEPT)(self._load_block)
        if not self.inode(self.root).is_directory:
            raise FormatError("root inode is not a directory").at(nid=self.root)

    def _inode(self, nid: Nid) -> Inode:
        return parse_inode(self._space, self._meta_start, nid)

    def _load_block(self, nid: Nid, number: int) -> DirectoryBlock:
        directory = self.inode(nid)
        start = number << BLOCK_BITS
        try:
            return parse_directory_block(
                read_flat(self._space, directory, start, min(BLOCK_SIZE, directory.size - start))
            )
        except RafsError as error:
            raise error.at(nid=nid, offset=start) from None

    def lookup(self, directory: Inode, name: bytes) -> Dirent | None:
        """Find one name by binary search over blocks and then inside one; None when it is not there."""
        low, high = 0, _block_count(directory)
        while high - low > 1:
            middle = (low + high) // 2
            if self._block(directory.nid, middle).names[0] <= name:
                low = middle
            else:
                high = middle
        if low == high:
            return None
        block = self._block(directory.nid, low)
        index = block.find(name)
        if index is None:
            return None
        return Dirent(name, block.nids[index], block.types[index], _position(low, index) + 1)

    def entries(self, directory: Inode, position: int = 0) -> Iterator[Dirent]:
        """All names from ``position`` on, in byte order, with ``.`` and ``..``; raises FormatError."""
        start, first = divmod(position, ENTRIES_PER_BLOCK_MAX + 1)
        for number in range(start, _block_count(directory)):
            block = self._block(directory.nid, number)
            if number and self._block(directory.nid, number - 1).names[-1] >= block.names[0]:
                raise FormatError("directory's blocks are not in order").at(nid=directory.nid)
            names = zip(block.names[first:], block.nids[first:], block.types[first:], strict=True)
            for next_position, (name, nid, file_type) in enumerate(names, _position(number, first) + 1):
                yield Dirent(name, nid, file_type, next_position)
            first = 0

    def symlink_target(self, inode: Inode) -> bytes:
        """Target of a symlink; raises FormatError when it is empty or holds a NUL."""
        assert stat.S_ISLNK(inode.mode)
        target = read_flat(self._space, inode, 0, inode.size)
        if not target or b"\0" in target:
            raise FormatError("symlink's target cannot be one", found=f"{len(target)} bytes").at(
                nid=inode.nid
            )
        return target

    def xattrs(self, inode: Inode) -> Iterator[tuple[bytes, bytes]]:
        """All (full name, value) of an inode."""
        return read_xattrs(self._space, inode, self._shared_xattrs_start)

    def file_map(self, inode: Inode) -> FileMap:
        """Where a regular file's bytes lie."""
        return FileMap(self._space, inode, self._blob_blocks)

    def inline_bytes(self, extent: InlineExtent) -> bytes:
        """Bytes of a regular file that lie behind its inode; FormatError when that is outside the section."""
        return self._space.read(extent.start, extent.length)


def _block_count(directory: Inode) -> int:
    assert directory.is_directory
    return -(-directory.size >> BLOCK_BITS)


def _position(block: int, index: int) -> int:
    return block * (ENTRIES_PER_BLOCK_MAX + 1) + index


def _check_superblock(superblock: erofs.Superblock, blob_count: int) -> None:
    if superblock.magic != erofs.SUPERBLOCK_MAGIC:
        raise FormatError(
            "EROFS magic", expected=f"{erofs.SUPERBLOCK_MAGIC:#x}", found=f"{superblock.magic:#x}"
        )
    if superblock.block_bits != BLOCK_BITS:
        raise UnsupportedVersion(
            "EROFS block size", expected=BLOCK_SIZE, found=f"1 << {superblock.block_bits}"
        )
    if unknown := superblock.feature_incompat & ~erofs.FEATURE_INCOMPAT_OURS:
        raise UnsupportedVersion("EROFS features", found=f"{unknown:#x}")
    if superblock.extra_devices != blob_count:
        raise FormatError("EROFS device slots", expected=blob_count, found=superblock.extra_devices)
