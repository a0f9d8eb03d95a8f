"""One EROFS inode: its fields checked, and where its bytes lie; never follows a name."""

from __future__ import annotations

import stat
from struct import Struct
from typing import NamedTuple

from rafsfs.errors import FormatError, LimitExceeded
from rafsfs.format import erofs
from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE, NULL_BLOCK, DataLayout
from rafsfs.limits import DIRECTORY_BYTES_MAX, FILE_SIZE_MAX, SYMLINK_BYTES_MAX
from rafsfs.metadata.space import MetadataSpace
from rafsfs.types import BlobIndex, DecodedOffset, Nid


class Inode(NamedTuple):
    """A checked inode. ``body`` is the offset behind inode and xattrs, where inline data or chunk indexes
    start.
    """

    nid: Nid
    mode: int
    layout: DataLayout
    size: int
    union: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    xattr_offset: int
    xattr_bytes: int
    body: int

    @property
    def is_directory(self) -> bool:
        """True for directories."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """True for regular files."""
        return stat.S_ISREG(self.mode)

    @property
    def device_number(self) -> tuple[int, int]:
        """(major, minor) of a device node, (0, 0) of anything else."""
        if stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode):
            return erofs.decode_device_number(self.union)
        return (0, 0)


class Extent(NamedTuple):
    """A run of a file: ``length`` bytes at ``start`` of a blob's decoded space, or a hole when ``blob`` is
    None.
    """

    blob: BlobIndex | None
    start: DecodedOffset
    length: int

    @property
    def is_hole(self) -> bool:
        """True when its bytes are zeros that lie nowhere."""
        return self.blob is None


class InlineExtent(NamedTuple):
    """A run of a file that lies behind its inode: ``length`` bytes at ``start`` of the EROFS section."""

    start: int
    length: int

    @property
    def is_hole(self) -> bool:
        """Always false: what is in the metadata is data."""
        return False


_LAYOUTS_OF_TYPE = dict.fromkeys(erofs.FILE_TYPE_OF_MODE, (DataLayout.FLAT_PLAIN,)) | {
    stat.S_IFREG: (DataLayout.CHUNK_BASED, DataLayout.FLAT_PLAIN, DataLayout.FLAT_INLINE),
    stat.S_IFDIR: (DataLayout.FLAT_PLAIN, DataLayout.FLAT_INLINE),
    stat.S_IFLNK: (DataLayout.FLAT_PLAIN, DataLayout.FLAT_INLINE),
}
_SIZE_MAX_OF_TYPE = dict.fromkeys(erofs.FILE_TYPE_OF_MODE, 0) | {
    stat.S_IFREG: FILE_SIZE_MAX,
    stat.S_IFDIR: DIRECTORY_BYTES_MAX,
    stat.S_IFLNK: SYMLINK_BYTES_MAX,
}
_LAYOUT_OF_FORMAT = {erofs.inode_format(layout): layout for layout in DataLayout}

_RAW = Struct(
    "<"
    + erofs.EXTENDED_INODE.layout(
        *("format", "xattr_icount", "mode", "size", "union", "uid", "gid", "mtime", "mtime_nsec", "nlink")
    )
)
"""What is looked at of an inode. Every walk comes by here, and a record and an enum cost as much again."""


def parse_inode(space: MetadataSpace, meta_start: int, nid: Nid) -> Inode:
    """Read and check the inode at ``nid``; raises FormatError or LimitExceeded."""
    offset = meta_start + nid * erofs.NID_SLOT_BYTES
    if offset < erofs.FIRST_NID * erofs.NID_SLOT_BYTES:
        raise FormatError("nid lies inside the superblock", expected=f"at least {erofs.FIRST_NID}", found=nid)
    format_, xattr_icount, mode, size, union, uid, gid, mtime, mtime_nsec, nlink = _RAW.unpack(
        space.read(offset, _RAW.size)
    )
    layout = _LAYOUT_OF_FORMAT.get(format_)
    kind = stat.S_IFMT(mode)
    layouts = _LAYOUTS_OF_TYPE.get(kind)
    if layout is None or layouts is None:
        raise FormatError("not an inode", found=f"format {format_:#x}, mode {mode:#o}").at(nid=nid)
    if layout not in layouts:
        raise FormatError("inode's layout does not suit its type", found=f"{layout.name}, mode {mode:#o}").at(
            nid=nid
        )
    if size > (most := _SIZE_MAX_OF_TYPE[kind]):
        raise LimitExceeded("inode's size", expected=f"at most {most}", found=size).at(nid=nid)
    if size and layout is not DataLayout.CHUNK_BASED:
        _check_flat(nid, kind, layout, size)
    if mtime_nsec >= 1_000_000_000:
        raise FormatError("inode's nanoseconds", expected="below 10^9", found=mtime_nsec).at(nid=nid)
    xattr_offset = offset + _RAW.size
    xattr_bytes = erofs.xattr_area_bytes(xattr_icount)
    body = xattr_offset + xattr_bytes
    mtime_ns = mtime * 1_000_000_000 + mtime_nsec
    return Inode(nid, mode, layout, size, union, uid, gid, mtime_ns, nlink, xattr_offset, xattr_bytes, body)


def _check_flat(nid: Nid, kind: int, layout: DataLayout, size: int) -> None:
    """Refuse whole blocks of a regular file, and inline data without a partial block.

    Of the latter Linux takes the last whole block from behind the inode, and would show another directory.
    """
    is_inline = layout is DataLayout.FLAT_INLINE
    if kind == stat.S_IFREG and not (is_inline and size < BLOCK_SIZE):
        raise FormatError(
            "regular file's bytes lie in blocks of the metadata", found=f"{size} bytes, {layout.name}"
        ).at(nid=nid)
    if is_inline and not size & (BLOCK_SIZE - 1):
        raise FormatError("inline data is a whole number of blocks", found=f"{size} bytes").at(nid=nid)


def read_flat(space: MetadataSpace, inode: Inode, offset: int, length: int) -> bytes:
    """Bytes of an inode that lie in the metadata; the range must lie inside ``inode.size``.

    Flat layouts keep whole blocks at block ``union``; FLAT_INLINE keeps the last, partial one behind the
    inode, inside the same block (Linux fs/erofs/data.c, erofs_map_blocks_flatmode).
    """
    assert offset >= 0 and offset + length <= inode.size
    start = inode.union << BLOCK_BITS
    if inode.layout is DataLayout.FLAT_PLAIN:
        return space.read(start + offset, length)
    tail_start = inode.size & ~(BLOCK_SIZE - 1)
    _check_tail(inode)
    if offset >= tail_start:
        return space.read(inode.body + offset - tail_start, length)
    head = min(length, tail_start - offset)
    data = space.read(start + offset, head)
    return data if head == length else data + space.read(inode.body, length - head)


def _check_tail(inode: Inode) -> None:
    """Refuse inline data that crosses a block boundary, as Linux does."""
    if (inode.body & (BLOCK_SIZE - 1)) + (inode.size & (BLOCK_SIZE - 1)) > BLOCK_SIZE:
        raise FormatError("inline data crosses a block boundary").at(nid=inode.nid, offset=inode.body)


class FileMap:
    """Where a regular file's bytes lie; reads a chunk index for each look-up, keeps only the inode."""

    def __init__(self, space: MetadataSpace, inode: Inode, blob_blocks: tuple[int, ...]) -> None:
        """``blob_blocks`` is the size of each blob's decoded space in blocks."""
        assert inode.is_regular
        self._space = space
        self._inode = inode
        self._blob_blocks = blob_blocks
        if not inode.size:
            return
        if inode.layout is DataLayout.FLAT_INLINE:
            _check_tail(inode)
            return
        chunk_format = inode.union & 0xFFFF
        if chunk_format & ~erofs.CHUNK_FORMAT_BLKBITS_MASK != erofs.CHUNK_FORMAT_INDEXES:
            raise FormatError("file's chunk format", expected="chunk indexes", found=f"{chunk_format:#x}").at(
                nid=inode.nid
            )
        self._chunk_bits = BLOCK_BITS + (chunk_format & erofs.CHUNK_FORMAT_BLKBITS_MASK)
        self._indexes = erofs.align(inode.body, erofs.CHUNK_INDEX.size)

    def extent(self, offset: int) -> Extent | InlineExtent:
        """The extent that holds byte ``offset`` of the file (which must lie inside it), from there on."""
        inode = self._inode
        assert 0 <= offset < inode.size
        if inode.layout is DataLayout.FLAT_INLINE:
            return InlineExtent(inode.body + offset, inode.size - offset)
        number = offset >> self._chunk_bits
        position = self._indexes + number * erofs.CHUNK_INDEX.size
        index = erofs.CHUNK_INDEX.unpack_from(self._space.read(position, erofs.CHUNK_INDEX.size))
        chunk_start = number << self._chunk_bits
        chunk_length = min(1 << self._chunk_bits, inode.size - chunk_start)
        length = chunk_length - (offset - chunk_start)
        if index.start_block == NULL_BLOCK:
            return Extent(None, DecodedOffset(0), length)
        blob = index.device - 1
        if not 0 <= blob < len(self._blob_blocks) or index.start_block_high:
            raise FormatError(
                "file's chunk names a device that is not there",
                expected=f"1 to {len(self._blob_blocks)}",
                found=index.device,
            ).at(nid=inode.nid, offset=offset)
        end_block = index.start_block + -(-chunk_length >> BLOCK_BITS)
        if end_block > self._blob_blocks[blob]:
            raise FormatError(
                "file's chunk lies outside its blob",
                expected=f"blocks below {self._blob_blocks[blob]}",
                found=end_block,
            ).at(nid=inode.nid, offset=offset)
        start = (index.start_block << BLOCK_BITS) + (offset - chunk_start)
        return Extent(BlobIndex(blob), DecodedOffset(start), length)
