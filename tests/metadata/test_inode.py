"""Inodes, their inline bytes and the extents of files, out of sections put together here."""

import os
import stat

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.format import erofs
from rafsfs.format.erofs import BLOCK_SIZE, DataLayout
from rafsfs.limits import DIRECTORY_BYTES_MAX, FILE_SIZE_MAX, SYMLINK_BYTES_MAX
from rafsfs.metadata.inode import FileMap, InlineExtent, parse_inode, read_flat
from rafsfs.metadata.space import MetadataSpace

NID = 40
OFFSET = NID * 32
REGULAR = stat.S_IFREG | 0o644


def section(*parts, size=16 * BLOCK_SIZE):
    """A metadata section with bytes at some offsets."""
    data = bytearray(size)
    for offset, content in parts:
        data[offset : offset + len(content)] = content
    return MetadataSpace(
        lambda page: bytes(data[page * 4096 : (page + 1) * 4096]), 4096, offset=0, length=size
    )


def packed(**fields):
    sound = {
        "format": erofs.inode_format(DataLayout.FLAT_PLAIN),
        "xattr_icount": 0,
        "mode": REGULAR,
        "reserved": 0,
        "size": 0,
        "union": 0,
        "ino": 1,
        "uid": 1000,
        "gid": 100,
        "mtime": 1_700_000_000,
        "mtime_nsec": 123_456_789,
        "nlink": 1,
    }
    return erofs.EXTENDED_INODE.pack(erofs.ExtendedInode(**(sound | fields)))


def parsed(**fields):
    return parse_inode(section((OFFSET, packed(**fields))), 0, NID)


def layout(kind):
    return erofs.inode_format(kind)


def test_fields_come_out():
    inode = parsed(uid=2**32 - 1, gid=2**32 - 2, nlink=7, mode=stat.S_IFREG | 0o7777)
    assert (inode.nid, inode.uid, inode.gid, inode.nlink) == (NID, 2**32 - 1, 2**32 - 2, 7)
    assert inode.mode == stat.S_IFREG | 0o7777
    assert inode.mtime_ns == 1_700_000_000_123_456_789
    assert inode.is_regular
    assert not inode.is_directory
    assert inode.body == OFFSET + 64


@pytest.mark.parametrize("seconds", [-(2**63), -1, 0, 2**63 - 1])
def test_time_is_signed(seconds):
    assert parsed(mtime=seconds, mtime_nsec=5).mtime_ns == seconds * 10**9 + 5


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_device_numbers_come_out(kind):
    inode = parsed(mode=kind | 0o600, union=erofs.encode_device_number(0xFFF, 0xABCDE))
    assert inode.device_number == (0xFFF, 0xABCDE)
    assert os.makedev(*inode.device_number)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG])
def test_only_devices_have_device_numbers(kind):
    assert parsed(mode=kind | 0o600, union=77).device_number == (0, 0)


def test_attributes_move_the_body():
    assert parsed(xattr_icount=3).body == OFFSET + 64 + 12 + 8


REFUSED = {
    "compact": ({"format": 0}, FormatError, "not an inode"),
    "layout 1, compressed": ({"format": 1 | 1 << 1}, FormatError, "not an inode"),
    "layout 3, compressed": ({"format": 1 | 3 << 1}, FormatError, "not an inode"),
    "layout 7": ({"format": 1 | 7 << 1}, FormatError, "not an inode"),
    "unknown bits of the format": ({"format": 1 | 1 << 4}, FormatError, "not an inode"),
    "no type": ({"mode": 0o644}, FormatError, "not an inode"),
    "unknown type": ({"mode": 0o030644}, FormatError, "not an inode"),
    "whiteout type": ({"mode": 0o160644}, FormatError, "not an inode"),
    "inline file of a block": (
        {"format": layout(DataLayout.FLAT_INLINE), "size": BLOCK_SIZE},
        FormatError,
        "blocks of the metadata",
    ),
    "inline directory of a block": (
        {"format": layout(DataLayout.FLAT_INLINE), "mode": stat.S_IFDIR | 0o755, "size": BLOCK_SIZE},
        FormatError,
        "whole number of blocks",
    ),
    "inline file of blocks": (
        {"format": layout(DataLayout.FLAT_INLINE), "size": 2 * BLOCK_SIZE + 1},
        FormatError,
        "blocks of the metadata",
    ),
    "directory in chunks": (
        {"format": layout(DataLayout.CHUNK_BASED), "mode": stat.S_IFDIR | 0o755},
        FormatError,
        "layout",
    ),
    "symlink in chunks": (
        {"format": layout(DataLayout.CHUNK_BASED), "mode": stat.S_IFLNK | 0o777},
        FormatError,
        "layout",
    ),
    "inline device": (
        {"format": layout(DataLayout.FLAT_INLINE), "mode": stat.S_IFCHR | 0o600},
        FormatError,
        "layout",
    ),
    "fifo in chunks": (
        {"format": layout(DataLayout.CHUNK_BASED), "mode": stat.S_IFIFO | 0o600},
        FormatError,
        "layout",
    ),
    "file in blocks of the metadata": ({"size": 1}, FormatError, "blocks of the metadata"),
    "device with a size": ({"mode": stat.S_IFBLK | 0o600, "size": 1}, LimitExceeded, "size"),
    "socket with a size": ({"mode": stat.S_IFSOCK | 0o600, "size": 1}, LimitExceeded, "size"),
    "file beyond off_t": (
        {"format": layout(DataLayout.CHUNK_BASED), "size": FILE_SIZE_MAX + 1},
        LimitExceeded,
        "size",
    ),
    "long symlink": ({"mode": stat.S_IFLNK | 0o777, "size": SYMLINK_BYTES_MAX + 1}, LimitExceeded, "size"),
    "endless directory": (
        {"mode": stat.S_IFDIR | 0o755, "size": DIRECTORY_BYTES_MAX + 1},
        LimitExceeded,
        "size",
    ),
    "nanoseconds": ({"mtime_nsec": 10**9}, FormatError, "nanoseconds"),
}


@pytest.mark.parametrize(("fields", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_hostile_inode_is_refused_by_name(fields, error, message):
    with pytest.raises(error, match=message) as caught:
        parsed(**fields)
    assert caught.value.where.nid == NID


@pytest.mark.parametrize("nid", [0, 31, 35, 16 * 4096 // 32 - 1, 16 * 4096 // 32, 2**64 - 1])
def test_nid_that_leads_nowhere_is_refused(nid):
    with pytest.raises(FormatError):
        parse_inode(section((OFFSET, packed())), 0, nid)


@given(st.binary(min_size=64, max_size=64))
def test_any_64_bytes_end_in_an_inode_or_a_refusal(raw):
    try:
        inode = parse_inode(section((OFFSET, raw)), 0, NID)
    except RafsError:
        return
    assert stat.S_IFMT(inode.mode) in erofs.FILE_TYPE_OF_MODE


# --- Bytes in the metadata ----------------------------------------------------------------------------------


def flat(size, kind=DataLayout.FLAT_INLINE, block=4, nid=NID, xattr_icount=0, mode=stat.S_IFDIR | 0o755):
    """A directory of ``size`` bytes whose content is known, whole blocks at ``block``, the rest inline."""
    content = bytes(number * 31 % 256 for number in range(size))
    raw = packed(mode=mode, format=layout(kind), size=size, union=block, xattr_icount=xattr_icount)
    whole = size if kind is DataLayout.FLAT_PLAIN else size - size % BLOCK_SIZE
    body = nid * 32 + 64 + erofs.xattr_area_bytes(xattr_icount)
    space = section(
        (nid * 32, raw), (block * BLOCK_SIZE, content[:whole]), (body, content[whole:]), size=32 * BLOCK_SIZE
    )
    return space, parse_inode(space, 0, nid), content


@given(
    st.sampled_from([0, 1, 100, 2000, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 700]),
    st.sampled_from([DataLayout.FLAT_INLINE, DataLayout.FLAT_PLAIN]),
    st.data(),
)
def test_any_range_of_flat_bytes_is_the_slice(size, kind, data):
    assume(kind is DataLayout.FLAT_PLAIN or not size or size % BLOCK_SIZE)
    space, inode, content = flat(size, kind)
    start = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - start))
    assert read_flat(space, inode, start, length) == content[start : start + length]


@pytest.mark.parametrize(("tail", "fits"), [(BLOCK_SIZE - 64, True), (BLOCK_SIZE - 63, False)])
def test_inline_bytes_end_with_their_block(tail, fits):
    """The kernel maps one block for them (erofs_map_blocks)."""
    space, inode, content = flat(tail, nid=128)
    if fits:
        assert read_flat(space, inode, 0, tail) == content
    else:
        with pytest.raises(FormatError, match="crosses a block boundary"):
            read_flat(space, inode, 0, tail)


@pytest.mark.parametrize("kind", [DataLayout.FLAT_INLINE, DataLayout.FLAT_PLAIN])
def test_blocks_outside_the_section_are_refused(kind):
    space = section(
        (OFFSET, packed(mode=stat.S_IFDIR | 0o755, format=layout(kind), size=2 * 4096 + 1, union=2**32 - 2))
    )
    inode = parse_inode(space, 0, NID)
    with pytest.raises(FormatError, match="outside its section"):
        read_flat(space, inode, 0, 4096)


# --- Files behind their inodes ------------------------------------------------------------------------------


@given(st.integers(1, BLOCK_SIZE - 64 - 12 - 8), st.sampled_from([0, 1, 3]), st.data())
def test_any_range_of_an_inline_file_is_the_slice(size, icount, data):
    space, inode, content = flat(size, nid=128, xattr_icount=icount, mode=REGULAR)
    start = data.draw(st.integers(0, size - 1))
    extent = FileMap(space, inode, ()).extent(start)
    assert isinstance(extent, InlineExtent) and not extent.is_hole
    assert space.read(extent.start, extent.length) == content[start:]


@pytest.mark.parametrize(("size", "fits"), [(BLOCK_SIZE - 64, True), (BLOCK_SIZE - 63, False)])
def test_inline_file_ends_with_its_block(size, fits):
    space, inode, _ = flat(size, nid=128, mode=REGULAR)
    if fits:
        assert FileMap(space, inode, ()).extent(0) == InlineExtent(128 * 32 + 64, size)
    else:
        with pytest.raises(FormatError, match="crosses a block boundary"):
            FileMap(space, inode, ())


def test_inline_file_outside_the_section_is_refused():
    """Its attributes end where the section does: what would follow is somebody else's."""
    start = 16 * BLOCK_SIZE - 64
    raw = packed(format=layout(DataLayout.FLAT_INLINE), size=10)
    space = section((start, raw))
    extent = FileMap(space, parse_inode(space, 0, start // 32), ()).extent(0)
    with pytest.raises(FormatError, match="outside its section"):
        space.read(extent.start, extent.length)


# --- Extents of files ---------------------------------------------------------------------------------------

HOLE = erofs.ChunkIndex(0, 0, erofs.NULL_BLOCK)
BLOB_BLOCKS = (100, 50)


def file_map(size, indexes, *, bits=0, blob_blocks=BLOB_BLOCKS, xattr_icount=0, chunk_format=None):
    union = erofs.CHUNK_FORMAT_INDEXES | bits if chunk_format is None else chunk_format
    raw = packed(format=layout(DataLayout.CHUNK_BASED), size=size, union=union, xattr_icount=xattr_icount)
    start = erofs.align(OFFSET + 64 + erofs.xattr_area_bytes(xattr_icount), 8)
    space = section((OFFSET, raw), (start, b"".join(map(erofs.CHUNK_INDEX.pack, indexes))))
    return FileMap(space, parse_inode(space, 0, NID), blob_blocks)


@st.composite
def mapped_files(draw):
    bits = draw(st.integers(0, 4))
    chunk_blocks = 1 << bits
    count = draw(st.integers(1, 6))
    indexes = []
    for _ in range(count):
        blob = draw(st.integers(0, len(BLOB_BLOCKS)))
        start = draw(st.integers(0, BLOB_BLOCKS[blob - 1] - chunk_blocks)) if blob else 0
        indexes.append(erofs.ChunkIndex(0, blob, start) if blob else HOLE)
    chunk_bytes = chunk_blocks * BLOCK_SIZE
    size = chunk_bytes * (count - 1) + draw(st.integers(1, chunk_bytes))
    return bits, indexes, size


@given(mapped_files(), st.sampled_from([0, 1, 2]), st.data())
def test_extent_of_any_offset_is_the_rest_of_its_chunk(mapped, icount, data):
    bits, indexes, size = mapped
    extents = file_map(size, indexes, bits=bits, xattr_icount=icount)
    offset = data.draw(st.integers(0, size - 1))
    number, within = divmod(offset, BLOCK_SIZE << bits)
    extent = extents.extent(offset)
    assert extent.length == min(size, (number + 1) * (BLOCK_SIZE << bits)) - offset
    if indexes[number] is HOLE:
        assert extent.blob is None
    else:
        assert extent.blob == indexes[number].device - 1
        assert extent.start == indexes[number].start_block * BLOCK_SIZE + within


@pytest.mark.parametrize(
    ("size", "index", "message"),
    [
        (1, erofs.ChunkIndex(0, 0, 5), "device that is not there"),
        (1, erofs.ChunkIndex(0, 3, 5), "device that is not there"),
        (1, erofs.ChunkIndex(0, 0xFFFF, 5), "device that is not there"),
        (1, erofs.ChunkIndex(1, 1, 5), "device that is not there"),
        (1, erofs.ChunkIndex(0, 1, 100), "outside its blob"),
        (BLOCK_SIZE + 1, erofs.ChunkIndex(0, 1, 99), "outside its blob"),
        (2 * BLOCK_SIZE, erofs.ChunkIndex(0, 2, 49), "outside its blob"),
        (1, erofs.ChunkIndex(0, 1, 2**32 - 2), "outside its blob"),
    ],
)
def test_hostile_chunk_index_is_refused(size, index, message):
    with pytest.raises(FormatError, match=message) as caught:
        file_map(size, [index], bits=1).extent(0)
    assert (caught.value.where.nid, caught.value.where.offset) == (NID, 0)


def test_last_block_of_a_blob_is_reached():
    assert file_map(BLOCK_SIZE, [erofs.ChunkIndex(0, 1, 99)]).extent(0).start == 99 * BLOCK_SIZE
    assert file_map(1, [erofs.ChunkIndex(0, 2, 49)], bits=4).extent(0).start == 49 * BLOCK_SIZE


@pytest.mark.parametrize("chunk_format", [0, 5, 0x40, 0x60, 0x8020])
def test_other_chunk_formats_are_refused(chunk_format):
    with pytest.raises(FormatError, match="chunk format"):
        file_map(1, [HOLE], chunk_format=chunk_format)


def test_indexes_outside_the_section_are_refused():
    extents = file_map(FILE_SIZE_MAX, [HOLE], bits=0)
    assert extents.extent(0).blob is None
    with pytest.raises(FormatError, match="outside its section"):
        extents.extent(FILE_SIZE_MAX - 1)


def test_largest_chunks_do_not_overflow():
    extents = file_map(FILE_SIZE_MAX, [HOLE], bits=31)
    assert extents.extent(0).length == 4096 << 31
    assert extents.extent(12345).length == (4096 << 31) - 12345
