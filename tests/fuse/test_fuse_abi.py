"""Records, opcodes and flags of FUSE against linux/fuse.h, written down here a second time."""

import ctypes

import pytest
from support import fuse_wire

from rafsfs.fuse import abi

u16, u32, u64, i32, i64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64


def c_struct(name, *fields):
    """A C struct as the compiler lays it out: no padding is ours to forget."""
    return type(name, (ctypes.LittleEndianStructure,), {"_fields_": fields})


ATTR = c_struct(
    "fuse_attr",
    *((name, u64) for name in ("ino", "size", "blocks")),
    *((name, i64) for name in ("atime", "mtime", "ctime")),
    *((name, u32) for name in ("atimensec", "mtimensec", "ctimensec", "mode", "nlink", "uid", "gid")),
    *((name, u32) for name in ("rdev", "blksize", "flags")),
)

# Ours, size of the whole C struct, the C struct. fuse_entry_out and fuse_attr_out end in a fuse_attr.
STRUCTS = [
    (
        abi.IN_HEADER,
        40,
        c_struct(
            "fuse_in_header",
            *(("len", u32), ("opcode", u32), ("unique", u64), ("nodeid", u64)),
            *(("uid", u32), ("gid", u32), ("pid", u32), ("total_extlen", u16), ("padding", u16)),
        ),
    ),
    (abi.OUT_HEADER, 16, c_struct("fuse_out_header", ("len", u32), ("error", i32), ("unique", u64))),
    (abi.INIT_VERSION, 8, c_struct("fuse_init_in_head", ("major", u32), ("minor", u32))),
    (
        abi.INIT_IN,
        16,
        c_struct("fuse_init_in_7_35", ("major", u32), ("minor", u32), ("max_readahead", u32), ("flags", u32)),
    ),
    (
        abi.INIT_IN_EXTENDED,
        64,
        c_struct(
            "fuse_init_in",
            *((name, u32) for name in ("major", "minor", "max_readahead", "flags", "flags2")),
            ("unused", u32 * 11),
        ),
    ),
    (
        abi.INIT_OUT,
        64,
        c_struct(
            "fuse_init_out",
            *((name, u32) for name in ("major", "minor", "max_readahead", "flags")),
            *(("max_background", u16), ("congestion_threshold", u16), ("max_write", u32)),
            *(("time_gran", u32), ("max_pages", u16), ("map_alignment", u16), ("flags2", u32)),
            *(("max_stack_depth", u32), ("request_timeout", u16), ("unused", u16 * 11)),
        ),
    ),
    (
        abi.ENTRY_OUT,
        128,
        c_struct(
            "fuse_entry_out",
            *((name, u64) for name in ("nodeid", "generation", "entry_valid", "attr_valid")),
            *(("entry_valid_nsec", u32), ("attr_valid_nsec", u32), ("attr", ATTR)),
        ),
    ),
    (
        abi.ATTR_OUT,
        104,
        c_struct(
            "fuse_attr_out", ("attr_valid", u64), ("attr_valid_nsec", u32), ("dummy", u32), ("attr", ATTR)
        ),
    ),
    (abi.ATTR, 88, ATTR),
    (abi.GETATTR_IN, 16, c_struct("fuse_getattr_in", ("getattr_flags", u32), ("dummy", u32), ("fh", u64))),
    (abi.GETXATTR_IN, 8, c_struct("fuse_getxattr_in", ("size", u32), ("padding", u32))),
    (abi.GETXATTR_OUT, 8, c_struct("fuse_getxattr_out", ("size", u32), ("padding", u32))),
    (
        abi.KSTATFS,
        80,
        c_struct(
            "fuse_kstatfs",
            *((name, u64) for name in ("blocks", "bfree", "bavail", "files", "ffree")),
            *((name, u32) for name in ("bsize", "namelen", "frsize", "padding")),
            ("spare", u32 * 6),
        ),
    ),
    (abi.OPEN_IN, 8, c_struct("fuse_open_in", ("flags", u32), ("open_flags", u32))),
    (abi.OPEN_OUT, 16, c_struct("fuse_open_out", ("fh", u64), ("open_flags", u32), ("backing_id", i32))),
    (
        abi.READ_IN,
        40,
        c_struct(
            "fuse_read_in",
            *(("fh", u64), ("offset", u64), ("size", u32), ("read_flags", u32), ("lock_owner", u64)),
            *(("flags", u32), ("padding", u32)),
        ),
    ),
    (
        abi.RELEASE_IN,
        24,
        c_struct("fuse_release_in", ("fh", u64), ("flags", u32), ("release_flags", u32), ("lock_owner", u64)),
    ),
    (abi.DIRENT, 24, c_struct("fuse_dirent", ("ino", u64), ("off", u64), ("namelen", u32), ("type", u32))),
    (
        abi.LSEEK_IN,
        24,
        c_struct("fuse_lseek_in", ("fh", u64), ("offset", u64), ("whence", u32), ("padding", u32)),
    ),
    (abi.LSEEK_OUT, 8, c_struct("fuse_lseek_out", ("offset", u64))),
    (abi.INTERRUPT_IN, 8, c_struct("fuse_interrupt_in", ("unique", u64))),
]


@pytest.mark.parametrize(("codec", "size", "c_type"), STRUCTS, ids=[row[2].__name__ for row in STRUCTS])
def test_record_lies_as_the_c_struct(codec, size, c_type):
    assert ctypes.sizeof(c_type) == size
    names = [name for name, kind in c_type._fields_ if kind is not ATTR]
    embedded = ctypes.sizeof(ATTR) if len(names) < len(c_type._fields_) else 0
    assert codec.size == size - embedded
    value = c_type()
    record = codec.unpack_from(bytes(codec.size))
    ours = record._fields
    assert ours == tuple(names[: len(ours)])
    for number, name in enumerate(ours, 1):
        record = record._replace(**{name: number})
        setattr(value, name, number)
    assert codec.pack(record) == bytes(value)[: codec.size]
    assert codec.unpack_from(bytes(value)) == record


@pytest.mark.parametrize("codec", [row[0] for row in STRUCTS], ids=[row[2].__name__ for row in STRUCTS])
def test_layout_of_some_fields_skips_the_others(codec):
    import struct

    record = codec.unpack_from(bytes(range(1, codec.size + 1)))
    whole = codec.pack(record)
    for name in record._fields:
        one = struct.Struct("<" + codec.layout(name))
        assert one.size == codec.size
        assert one.unpack(whole) == (getattr(record, name),)
    assert struct.unpack("<" + codec.layout(*record._fields), whole) == tuple(record)
    with pytest.raises(AssertionError, match="no such fields"):
        codec.layout("nothing")


def test_every_opcode_of_the_header_has_its_name():
    numbers = {name: value for name, value in vars(fuse_wire).items() if name in abi.Opcode.__members__}
    assert numbers == {opcode.name: opcode.value for opcode in abi.Opcode}
    assert sorted(numbers.values()) == [*range(1, 7), *range(8, 19), *range(20, 54)]


def test_flags_have_the_bits_of_the_header():
    bits = {flag.name: flag.bit_length() - 1 for flag in abi.InitFlag}
    assert bits == {
        "ASYNC_READ": 0,
        "EXPORT_SUPPORT": 4,
        "DO_READDIRPLUS": 13,
        "READDIRPLUS_AUTO": 14,
        "ASYNC_DIO": 15,
        "NO_OPEN_SUPPORT": 17,
        "PARALLEL_DIROPS": 18,
        "POSIX_ACL": 20,
        "ABORT_ERROR": 21,
        "MAX_PAGES": 22,
        "CACHE_SYMLINKS": 23,
        "NO_OPENDIR_SUPPORT": 24,
        "INIT_EXT": 30,
        "PASSTHROUGH": 37,
        "HAS_RESEND": 39,
        "ALLOW_IDMAP": 40,
    }
    assert {flag.name: int(flag) for flag in abi.OpenFlag} == {"KEEP_CACHE": 2, "CACHE_DIR": 8}
