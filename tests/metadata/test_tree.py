"""Trees out of sections that the builder wrote: look-ups, listings that go on where they stopped."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafsfs.build.erofs_writer import write_erofs
from rafsfs.build.source import Entry
from rafsfs.build.tree import Tree as PlannedTree
from rafsfs.errors import FormatError, UnsupportedVersion
from rafsfs.format import erofs
from rafsfs.format.erofs import FileType
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.tree import Tree

PAGE = 65_536


def entry(path, kind=FileType.FIFO, **fields):
    return Entry(path, kind, 0o755, 0, 0, 0, **fields)


def section_of(*entries):
    planned = PlannedTree()
    for item in (entry(b"", FileType.DIRECTORY), *entries):
        planned.add(item)
    return write_erofs(planned, [])


def read(section, blob_blocks=()):
    def load(page):
        return section[page * PAGE : (page + 1) * PAGE].ljust(PAGE, b"\0")

    return Tree(MetadataSpace(load, PAGE, offset=0, length=len(section)), blob_blocks)


def superblock_of(section):
    return erofs.SUPERBLOCK.unpack_from(section, erofs.SUPERBLOCK_OFFSET)


def with_superblock(section, **fields):
    packed = erofs.SUPERBLOCK.pack(superblock_of(section)._replace(**fields))
    start = erofs.SUPERBLOCK_OFFSET
    return section[:start] + packed + section[start + len(packed) :]


names = st.sets(
    st.one_of(
        st.binary(min_size=1, max_size=12),
        st.builds(lambda first, length: bytes((first,)) * length, st.integers(1, 255), st.integers(1, 255)),
    ).filter(lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..")),
    max_size=80,
).map(sorted)


@given(names)
@settings(max_examples=50)
def test_every_name_is_found_and_no_other(listed):
    tree = read(section_of(*(entry(name) for name in listed)))
    root = tree.inode(tree.root)
    nids = {name: tree.lookup(root, name).nid for name in listed}
    assert len(set(nids.values())) == len(listed)
    assert [item.name for item in tree.entries(root)] == sorted([b".", b"..", *listed])
    for item in tree.entries(root):
        assert tree.lookup(root, item.name) == item
    for name in (
        b"",
        b"\0",
        b"\xff" * 256,
        *(name + b"!" for name in listed),
        *(name[:-1] for name in listed),
    ):
        if name not in (*listed, b".", b".."):
            assert tree.lookup(root, name) is None


@pytest.mark.parametrize("count", [0, 1, 200, 3000])
def test_listing_goes_on_wherever_it_stopped(count):
    """Blocks hold some 200 of these names, so that most positions are inside one and some at its end."""
    tree = read(section_of(*(entry(b"name %05d" % number) for number in range(count))))
    root = tree.inode(tree.root)
    whole = list(tree.entries(root))
    assert len(whole) == count + 2
    assert len({item.next_position for item in whole}) == len(whole)
    for index in range(0, len(whole), len(whole) // 50 + 1):
        assert list(tree.entries(root, whole[index].next_position)) == whole[index + 1 :]
    assert list(tree.entries(root, 0)) == whole


@pytest.mark.parametrize("position", [10**6, 2**31, 2**62, 2**64 - 1])
def test_position_behind_the_end_lists_nothing(position):
    tree = read(section_of(entry(b"a")))
    assert list(tree.entries(tree.inode(tree.root), position)) == []


def test_dots_lead_where_they_should():
    tree = read(section_of(entry(b"a", FileType.DIRECTORY), entry(b"a/b", FileType.DIRECTORY)))
    root = tree.inode(tree.root)
    outer = tree.inode(tree.lookup(root, b"a").nid)
    inner = tree.inode(tree.lookup(outer, b"b").nid)
    assert [tree.lookup(root, name).nid for name in (b".", b"..")] == [tree.root, tree.root]
    assert [tree.lookup(inner, name).nid for name in (b".", b"..")] == [inner.nid, outer.nid]


@pytest.mark.parametrize("target", [b"a", b"../b", b"\xff" * 4095, b"x" * 4032, b"x" * 4033, b" "])
def test_symlink_targets_come_back(target):
    tree = read(section_of(entry(b"link", FileType.SYMLINK, target=target)))
    link = tree.inode(tree.lookup(tree.inode(tree.root), b"link").nid)
    assert tree.symlink_target(link) == target


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_symlink_target_that_cannot_be_one_is_refused(target):
    section = section_of(entry(b"link", FileType.SYMLINK, target=target))
    tree = read(section)
    link = tree.inode(tree.lookup(tree.inode(tree.root), b"link").nid)
    with pytest.raises(FormatError, match="target cannot be one"):
        tree.symlink_target(link)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"magic": 0}, FormatError),
        ({"block_bits": 9}, UnsupportedVersion),
        ({"block_bits": 16}, UnsupportedVersion),
        ({"feature_incompat": 0x1}, UnsupportedVersion),
        ({"feature_incompat": 0x4 | 0x80}, UnsupportedVersion),
        ({"extra_devices": 1}, FormatError),
        ({"root_nid": 0}, FormatError),
        ({"root_nid": 0xFFFF}, FormatError),
        ({"meta_blkaddr": 2**32 - 1}, FormatError),
    ],
)
def test_hostile_superblock_is_refused(fields, error):
    section = section_of(entry(b"a"))
    assert read(with_superblock(section)).inode_count == 2
    with pytest.raises(error):
        read(with_superblock(section, **fields))


def test_device_slots_must_be_as_many_as_blobs():
    section = section_of(entry(b"a"))
    with pytest.raises(FormatError, match="device slots: expected 2, found 0"):
        read(section, (10, 20))


def test_root_must_be_a_directory():
    section = section_of(entry(b"a"))
    nid = read(section).lookup(read(section).inode(superblock_of(section).root_nid), b"a").nid
    with pytest.raises(FormatError, match="root inode is not a directory"):
        read(with_superblock(section, root_nid=nid))


def test_blocks_out_of_order_are_refused():
    section = section_of(*(entry(b"name %05d" % number) for number in range(1000)))
    tree = read(section)
    block = tree.inode(tree.root).union
    first, second = (section[(block + number) * 4096 :][:4096] for number in (1, 2))
    swapped = section[: (block + 1) * 4096] + second + first + section[(block + 3) * 4096 :]
    tree = read(swapped)
    with pytest.raises(FormatError, match="blocks are not in order"):
        list(tree.entries(tree.inode(tree.root)))


def test_hard_links_share_an_inode():
    first = entry(b"first")
    second = replace(entry(b"second"), hard_link_to=b"first")
    tree = read(section_of(first, second))
    root = tree.inode(tree.root)
    assert tree.lookup(root, b"first").nid == tree.lookup(root, b"second").nid
    assert tree.inode(tree.lookup(root, b"first").nid).nlink == 2
