"""Fixed-size records: their places and sizes against the C structs, truncation at every byte."""

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError
from rafsfs.format import blob, bootstrap, chunk, erofs


def c_struct(name, *fields):
    """A C struct without padding of the compiler's: all of erofs_fs.h is laid out so."""
    body = {"_pack_": 1, "_fields_": fields}
    return type(name, (ctypes.LittleEndianStructure,), body)


u8, u16, u32, u64, i64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64

# Linux fs/erofs/erofs_fs.h, written down here a second time. The names on the right of each pair are ours.
EROFS_STRUCTS = [
    (
        erofs.SUPERBLOCK,
        128,
        c_struct(
            "erofs_super_block",
            ("magic", u32),
            ("checksum", u32),
            ("feature_compat", u32),
            ("block_bits", u8),
            ("extension_slots", u8),
            ("root_nid", u16),
            ("inode_count", u64),
            ("epoch", u64),
            ("fixed_nsec", u32),
            ("blocks", u32),
            ("meta_blkaddr", u32),
            ("xattr_blkaddr", u32),
            ("uuid", u8 * 16),
            ("volume_name", u8 * 16),
            ("feature_incompat", u32),
            ("compression_algorithms", u16),
            ("extra_devices", u16),
            ("device_table_slot", u16),
            ("reserved", u8 * 38),
        ),
    ),
    (
        erofs.EXTENDED_INODE,
        64,
        c_struct(
            "erofs_inode_extended",
            ("format", u16),
            ("xattr_icount", u16),
            ("mode", u16),
            ("reserved", u16),
            ("size", u64),
            ("union", u32),
            ("ino", u32),
            ("uid", u32),
            ("gid", u32),
            ("mtime", i64),
            ("mtime_nsec", u32),
            ("nlink", u32),
            ("reserved2", u8 * 16),
        ),
    ),
    (
        erofs.DIRENT,
        12,
        c_struct("erofs_dirent", ("nid", u64), ("name_offset", u16), ("file_type", u8), ("reserved", u8)),
    ),
    (
        erofs.CHUNK_INDEX,
        8,
        c_struct("erofs_inode_chunk_index", ("start_block_high", u16), ("device", u16), ("start_block", u32)),
    ),
    (
        erofs.DEVICE_SLOT,
        128,
        c_struct(
            "erofs_deviceslot",
            ("tag", u8 * 64),
            ("blocks", u32),
            ("mapped_blkaddr", u32),
            ("reserved", u8 * 56),
        ),
    ),
    (
        erofs.XATTR_HEADER,
        12,
        c_struct(
            "erofs_xattr_ibody_header", ("name_filter", u32), ("shared_count", u8), ("reserved", u8 * 7)
        ),
    ),
    (
        erofs.XATTR_ENTRY,
        4,
        c_struct("erofs_xattr_entry", ("name_length", u8), ("name_index", u8), ("value_size", u16)),
    ),
]
EROFS_IDS = [layout.__name__ for _, _, layout in EROFS_STRUCTS]

OURS = [
    (chunk.CHUNK_RECORD, 96),
    (blob.TOC_ENTRY, 44),
    (blob.FOOTER, 64),
    (bootstrap.PREFIX, 16),
    (bootstrap.PAGE_ENTRY, 44),
    (bootstrap.LENGTH, 4),
]
CODECS = [codec for codec, *_ in [*EROFS_STRUCTS, *OURS]]
CODEC_IDS = [codec.unpack_from(bytes(256)).__class__.__name__ for codec in CODECS]


@pytest.mark.parametrize(("codec", "size", "layout"), EROFS_STRUCTS, ids=EROFS_IDS)
def test_record_has_the_size_of_its_c_struct(codec, size, layout):
    assert codec.size == ctypes.sizeof(layout) == size


@pytest.mark.parametrize(("codec", "size", "layout"), EROFS_STRUCTS, ids=EROFS_IDS)
def test_each_field_lies_where_the_c_struct_has_it(codec, size, layout):
    """Every byte of the struct is different, so a field read from elsewhere or in another width shows."""
    raw = bytes(range(1, size + 1))
    ours = codec.unpack_from(raw)
    theirs = layout.from_buffer_copy(raw)
    for name in ours._fields:
        value = getattr(theirs, name)
        assert getattr(ours, name) == (bytes(value) if isinstance(value, ctypes.Array) else value), name
    named = {name for name, _ in layout._fields_}
    assert named - set(ours._fields) <= {"reserved", "reserved2"}


@pytest.mark.parametrize(("codec", "size"), OURS)
def test_record_of_our_own_has_the_size_that_the_format_states(codec, size):
    assert codec.size == size


@pytest.mark.parametrize("codec", CODECS, ids=CODEC_IDS)
def test_packing_is_the_inverse_of_unpacking(codec):
    record = codec.unpack_from(bytes(range(1, codec.size + 1)))
    packed = codec.pack(record)
    assert len(packed) == codec.size
    assert codec.unpack_from(packed) == record


@pytest.mark.parametrize("codec", CODECS, ids=CODEC_IDS)
def test_record_that_is_cut_off_anywhere_is_refused(codec):
    whole = bytes(codec.size)
    for length in range(codec.size):
        with pytest.raises(FormatError, match=f"expected {codec.size} bytes, found {length} bytes"):
            codec.unpack_from(whole[:length])
        with pytest.raises(FormatError, match="cut off"):
            codec.unpack_from(b"before" + whole[:length], 6)
    with pytest.raises(FormatError, match="found 0 bytes"):
        codec.unpack_from(whole, 3 * codec.size)


@pytest.mark.parametrize("codec", CODECS, ids=CODEC_IDS)
def test_table_that_is_cut_off_anywhere_is_refused(codec):
    assert list(codec.iter_unpack(b"")) == []
    assert len(list(codec.iter_unpack(bytes(3 * codec.size)))) == 3
    for length in set(range(3 * codec.size)) - {0, codec.size, 2 * codec.size}:
        with pytest.raises(FormatError, match="cut off"):
            codec.iter_unpack(bytes(length))


def test_value_that_does_not_fit_its_field_is_a_mistake_of_ours():
    entry = blob.TocEntry(2**64, 0, bytes(32))
    with pytest.raises(struct.error):
        blob.TOC_ENTRY.pack(entry)


@given(st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))
def test_device_numbers_come_back(major, minor):
    encoded = erofs.encode_device_number(major, minor)
    assert encoded < 2**32
    assert erofs.decode_device_number(encoded) == (major, minor)


@pytest.mark.parametrize(
    ("major", "minor", "encoded"),
    [
        (0, 0, 0),
        (1, 3, 0x103),
        (8, 255, 0x8FF),
        (8, 256, 0x100800),
        (0xFFF, 0xFFFFF, 0xFFFFFFFF),
        (0, 0x12345, 0x12300045),
    ],
)
def test_device_numbers_are_spelled_as_the_kernel_does(major, minor, encoded):
    """``new_encode_dev`` of linux/kdev_t.h by hand: /dev/null is 0x103."""
    assert erofs.encode_device_number(major, minor) == encoded


@given(st.integers(0, 2**32 - 1))
def test_any_device_number_decodes(encoded):
    assert erofs.encode_device_number(*erofs.decode_device_number(encoded)) == encoded


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (b"user.mime_type", (1, b"mime_type")),
        (b"user.", None),
        (b"user", None),
        (b"trusted.overlay.opaque", (4, b"overlay.opaque")),
        (b"security.capability", (6, b"capability")),
        (b"system.posix_acl_access", (2, b"")),
        (b"system.posix_acl_default", (3, b"")),
        (b"system.posix_acl_accessory", None),
        (b"system.nfs4_acl", None),
        (b"", None),
    ],
)
def test_attribute_names_split_as_erofs_indexes_them(name, split):
    assert erofs.split_xattr_name(name) == split
    if split is not None:
        index, suffix = split
        assert erofs.XATTR_PREFIXES[index] + suffix == name


@pytest.mark.parametrize(("icount", "size"), [(0, 0), (1, 12), (2, 16), (65_535, 12 + 65_534 * 4)])
def test_attribute_area_is_counted_as_the_kernel_does(icount, size):
    assert erofs.xattr_area_bytes(icount) == size


@given(st.integers(0, 2**40), st.sampled_from([1, 4, 8, 32, 4096]))
def test_align_rounds_up(value, to):
    aligned = erofs.align(value, to)
    assert value <= aligned < value + to
    assert aligned % to == 0
