"""Extended attributes of an inode, inline and shared, out of areas put together here."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, RafsError
from rafsfs.format import erofs
from rafsfs.format.erofs import DataLayout
from rafsfs.metadata.inode import Inode
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.xattrs import read_xattrs

AREA = 2048
SHARED = 8192


def entry(index, suffix, value):
    raw = erofs.XATTR_ENTRY.pack(erofs.XattrEntry(len(suffix), index, len(value))) + suffix + value
    return raw + bytes(-len(raw) % 4)


def read(inline=b"", shared_ids=(), shared=b"", *, header=None, area_bytes=None):
    if header is None:
        header = erofs.XATTR_HEADER.pack(erofs.XattrHeader(0, len(shared_ids)))
    area = header + b"".join(number.to_bytes(4, "little") for number in shared_ids) + inline
    data = bytearray(4 * 4096)
    data[AREA : AREA + len(area)] = area
    data[SHARED : SHARED + len(shared)] = shared
    space = MetadataSpace(lambda page: bytes(data[page * 4096 :][:4096]), 4096, offset=0, length=len(data))
    length = len(area) if area_bytes is None else area_bytes
    inode = Inode(40, stat.S_IFREG, DataLayout.FLAT_PLAIN, 0, 0, 0, 0, 0, 1, AREA, length, AREA + length)
    return list(read_xattrs(space, inode, SHARED))


NAMES = [
    (1, b"user.", b"mime_type"),
    (2, b"system.posix_acl_access", b""),
    (3, b"system.posix_acl_default", b""),
    (4, b"trusted.", b"overlay.opaque"),
    (6, b"security.", b"capability"),
]


@pytest.mark.parametrize(("index", "prefix", "suffix"), NAMES)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 2000])
def test_each_namespace_comes_back(index, prefix, suffix, length):
    value = b"v" * length
    assert read(entry(index, suffix, value)) == [(prefix + suffix, value)]


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=30)), max_size=8),
    st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=30)), max_size=8),
)
def test_shared_come_before_inline_ones(own, common):
    own = [(name.replace(b"\0", b"."), value) for name, value in own]
    common = [(name.replace(b"\0", b"."), value) for name, value in common]
    shared, ids = b"\xff" * 8, []
    for name, value in common:
        ids.append(len(shared) // 4)
        shared += entry(4, name, value)
    found = read(b"".join(entry(1, name, value) for name, value in own), ids, shared)
    assert found == [(b"trusted." + name, value) for name, value in common] + [
        (b"user." + name, value) for name, value in own
    ]


def test_inode_without_attributes_has_none():
    assert read(area_bytes=0) == []
    assert read() == []


REFUSED = {
    "name overruns": {"inline": erofs.XATTR_ENTRY.pack(erofs.XattrEntry(200, 1, 0)) + b"short..."},
    "value overruns": {"inline": erofs.XATTR_ENTRY.pack(erofs.XattrEntry(1, 1, 60_000)) + b"a..."},
    "unknown namespace 0": {"inline": entry(0, b"abc", b"")},
    "unknown namespace 5, lustre": {"inline": entry(5, b"abc", b"")},
    "long prefix": {"inline": entry(0x80, b"abc", b"")},
    "no name": {"inline": entry(1, b"", b"value")},
    "ACL with a name": {"inline": entry(2, b"abc", b"")},
    "NUL in a name": {"inline": entry(1, b"a\0b", b"")},
    "half an entry": {"inline": b"\x01\x01"},
    "more shared than fit": {"header": erofs.XATTR_HEADER.pack(erofs.XattrHeader(0, 200))},
    "shared outside": {"shared_ids": [2**32 - 1]},
    "shared overruns the section": {"shared_ids": [(4 * 4096 - SHARED - 4) // 4], "shared": b""},
}


@pytest.mark.parametrize("area", REFUSED.values(), ids=REFUSED.keys())
def test_hostile_area_is_refused(area):
    if "shared" in area:
        last = erofs.XATTR_ENTRY.pack(erofs.XattrEntry(9, 1, 9))
        area = area | {"shared": bytes(4 * 4096 - SHARED - 4) + last}
    with pytest.raises(FormatError):
        read(**area)


@given(st.binary(max_size=120), st.binary(max_size=64))
def test_any_area_ends_in_names_or_a_refusal(area, shared):
    try:
        found = read(header=area.ljust(12, b"\0"), shared=shared)
    except RafsError:
        return
    for name, _ in found:
        assert name.startswith(tuple(erofs.XATTR_PREFIXES.values()))
        assert b"\0" not in name
