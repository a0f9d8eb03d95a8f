"""EROFS on-disk records, as the Linux kernel and erofs-utils define them (``erofs_fs.h``); never walks a
tree.

Only what an image of ours uses is declared: uncompressed files, chunk-based or inline, and a device table.
Byte offsets inside the metadata section: the superblock is at 1024, an inode is at ``32 * nid``
(``meta_blkaddr`` is 0).
"""

from __future__ import annotations

import enum
import stat
from typing import Final, NamedTuple

from rafsfs.format.record import RecordCodec, bytes16, bytes64, i64, u8, u16, u32, u64

SUPERBLOCK_OFFSET = 1024  # EROFS_SUPER_OFFSET
SUPERBLOCK_MAGIC = 0xE0F5E1E2  # EROFS_SUPER_MAGIC_V1
BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS
NID_SLOT_BYTES = 32  # EROFS_ISLOTBITS 5

FEATURE_INCOMPAT_CHUNKED_FILE = 0x4
FEATURE_INCOMPAT_DEVICE_TABLE = 0x8
FEATURE_INCOMPAT_OURS = FEATURE_INCOMPAT_CHUNKED_FILE | FEATURE_INCOMPAT_DEVICE_TABLE

CHUNK_FORMAT_BLKBITS_MASK = 0x1F
CHUNK_FORMAT_INDEXES = 0x20
NULL_BLOCK = 0xFFFF_FFFF  # EROFS_NULL_ADDR in 32 bits: a hole


class DataLayout(enum.IntEnum):
    """Where an inode's bytes are (``i_format`` bits 1-3)."""

    FLAT_PLAIN = 0
    FLAT_INLINE = 2
    CHUNK_BASED = 4


class FileType(enum.IntEnum):
    """``erofs_dirent.file_type`` (EROFS_FT_*), the same numbers as the kernel's FT_*."""

    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7


MODE_OF_FILE_TYPE: Final[dict[int, int]] = {
    FileType.REGULAR: stat.S_IFREG,
    FileType.DIRECTORY: stat.S_IFDIR,
    FileType.CHARACTER: stat.S_IFCHR,
    FileType.BLOCK: stat.S_IFBLK,
    FileType.FIFO: stat.S_IFIFO,
    FileType.SOCKET: stat.S_IFSOCK,
    FileType.SYMLINK: stat.S_IFLNK,
}
"""S_IFMT bits by number, which need not be made a ``FileType`` first."""
FILE_TYPE_OF_MODE: Final = {mode: FileType(kind) for kind, mode in MODE_OF_FILE_TYPE.items()}


class Superblock(NamedTuple):
    """``struct erofs_super_block``, 128 bytes at offset 1024."""

    magic: u32
    checksum: u32
    feature_compat: u32
    block_bits: u8
    extension_slots: u8
    root_nid: u16
    inode_count: u64
    epoch: u64
    fixed_nsec: u32
    blocks: u32
    meta_blkaddr: u32
    xattr_blkaddr: u32
    uuid: bytes16
    volume_name: bytes16
    feature_incompat: u32
    compression_algorithms: u16
    extra_devices: u16
    device_table_slot: u16


SUPERBLOCK = RecordCodec(Superblock, size=128)


class DeviceSlot(NamedTuple):
    """``struct erofs_deviceslot``, 128 bytes: one data blob. ``tag`` holds the blob's SHA-256 in hex."""

    tag: bytes64
    blocks: u32
    mapped_blkaddr: u32


DEVICE_SLOT = RecordCodec(DeviceSlot, size=128)
DEVICE_TABLE_SLOT = (SUPERBLOCK_OFFSET + SUPERBLOCK.size) // DEVICE_SLOT.size
FIRST_NID = (SUPERBLOCK_OFFSET + SUPERBLOCK.size) // NID_SLOT_BYTES
"""No inode of ours lies below this; nids under it would read the superblock as an inode."""


class ExtendedInode(NamedTuple):
    """``struct erofs_inode_extended``, 64 bytes."""

    format: u16
    xattr_icount: u16
    mode: u16
    reserved: u16
    size: u64
    union: u32
    ino: u32
    uid: u32
    gid: u32
    mtime: i64
    mtime_nsec: u32
    nlink: u32


EXTENDED_INODE = RecordCodec(ExtendedInode, size=64)
INODE_VERSION_EXTENDED = 1


def inode_format(layout: DataLayout) -> int:
    """The ``i_format`` of an extended inode with this layout."""
    return INODE_VERSION_EXTENDED | layout << 1


class Dirent(NamedTuple):
    """``struct erofs_dirent``, 12 bytes; a directory block is an array of these, then the names."""

    nid: u64
    name_offset: u16
    file_type: u8
    reserved: u8


DIRENT = RecordCodec(Dirent, size=12)


class ChunkIndex(NamedTuple):
    """``struct erofs_inode_chunk_index``, 8 bytes: where one chunk of a file starts."""

    start_block_high: u16
    device: u16
    start_block: u32


CHUNK_INDEX = RecordCodec(ChunkIndex, size=8)


class XattrHeader(NamedTuple):
    """``struct erofs_xattr_ibody_header``, 12 bytes, followed by ``shared_count`` u32 ids."""

    name_filter: u32
    shared_count: u8


XATTR_HEADER = RecordCodec(XattrHeader, size=12)
XATTR_SHARED_ID_BYTES = 4
XATTR_ALIGNMENT = 4


class XattrEntry(NamedTuple):
    """``struct erofs_xattr_entry``, 4 bytes, followed by name suffix and value, padded to 4."""

    name_length: u8
    name_index: u8
    value_size: u16


XATTR_ENTRY = RecordCodec(XattrEntry, size=4)

XATTR_PREFIXES: dict[int, bytes] = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


def split_xattr_name(name: bytes) -> tuple[int, bytes] | None:
    """Split a full attribute name into EROFS name index and suffix; None when EROFS cannot say it."""
    for index, prefix in XATTR_PREFIXES.items():
        if prefix.endswith(b"."):
            if name.startswith(prefix) and len(name) > len(prefix):
                return index, name[len(prefix) :]
        elif name == prefix:
            return index, b""
    return None


def xattr_area_bytes(icount: int) -> int:
    """Bytes of the inline xattr area behind an inode, from ``i_xattr_icount`` (erofs_xattr_ibody_size)."""
    return XATTR_HEADER.size + (icount - 1) * XATTR_SHARED_ID_BYTES if icount else 0


def align(value: int, to: int) -> int:
    """Round up to a multiple of ``to``."""
    return -(-value // to) * to


def encode_device_number(major: int, minor: int) -> int:
    """``new_encode_dev`` of linux/kdev_t.h: 12 bits of major, 20 of minor."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_device_number(encoded: int) -> tuple[int, int]:
    """``new_decode_dev`` of linux/kdev_t.h: (major, minor)."""
    return (encoded & 0xFFF00) >> 8, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00)
