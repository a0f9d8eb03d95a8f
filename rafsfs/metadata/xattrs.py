"""Extended attributes of one inode, inline and shared; checked, never interpreted."""

from __future__ import annotations

from collections.abc import Iterator

from rafsfs.errors import FormatError
from rafsfs.format import erofs
from rafsfs.format.erofs import XATTR_ENTRY, XATTR_HEADER
from rafsfs.metadata.inode import Inode
from rafsfs.metadata.space import MetadataSpace


def read_xattrs(space: MetadataSpace, inode: Inode, shared_start: int) -> Iterator[tuple[bytes, bytes]]:
    """All (full name, value) of an inode, shared ones first; raises FormatError.

    ``shared_start`` is the byte offset of the shared area (``xattr_blkaddr``); shared ids count 4-byte units
    from it.
    """
    if not inode.xattr_bytes:
        return
    area = space.read(inode.xattr_offset, inode.xattr_bytes)
    header = XATTR_HEADER.unpack_from(area)
    position = XATTR_HEADER.size + header.shared_count * erofs.XATTR_SHARED_ID_BYTES
    if position > len(area):
        raise FormatError("inode's shared attributes overrun their area").at(nid=inode.nid)
    for start in range(XATTR_HEADER.size, position, erofs.XATTR_SHARED_ID_BYTES):
        shared_id = int.from_bytes(area[start : start + erofs.XATTR_SHARED_ID_BYTES], "little")
        yield _read_shared(space, shared_start + shared_id * erofs.XATTR_SHARED_ID_BYTES)
    while position < len(area):
        entry = XATTR_ENTRY.unpack_from(area, position)
        end = position + XATTR_ENTRY.size + entry.name_length + entry.value_size
        if end > len(area):
            raise FormatError("inode's attribute overruns its area").at(nid=inode.nid)
        yield _split(entry, area[position + XATTR_ENTRY.size : end])
        position = erofs.align(end, erofs.XATTR_ALIGNMENT)


def _read_shared(space: MetadataSpace, offset: int) -> tuple[bytes, bytes]:
    entry = XATTR_ENTRY.unpack_from(space.read(offset, XATTR_ENTRY.size))
    return _split(entry, space.read(offset + XATTR_ENTRY.size, entry.name_length + entry.value_size))


def _split(entry: erofs.XattrEntry, body: bytes) -> tuple[bytes, bytes]:
    prefix = erofs.XATTR_PREFIXES.get(entry.name_index)
    name = body[: entry.name_length]
    if prefix is None or b"\0" in name or prefix.endswith(b".") != bool(name):
        raise FormatError(
            "attribute's name is not one", found=f"index {entry.name_index}, {entry.name_length} bytes"
        )
    return prefix + name, body[entry.name_length :]
