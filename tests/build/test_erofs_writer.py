"""The EROFS section: how inodes are laid out, indexed and shared; the kernel's opinion is in integration."""

import itertools
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trees import plans

from rafsfs.build.erofs_writer import CHUNK_BITS_MAX, DeviceInfo, count_kinds, write_erofs
from rafsfs.build.source import Entry
from rafsfs.build.tree import NO_BYTES, Body, PlannedBlob, PlannedChunk, Run, Tree
from rafsfs.build.xattr_writer import area_bytes_max
from rafsfs.errors import BuildError
from rafsfs.format import erofs
from rafsfs.format.erofs import BLOCK_SIZE, DataLayout, FileType
from rafsfs.limits import GIB, KIB, MIB
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.tree import Tree as ReadTree

CHUNK = 256 * KIB
DEVICES = [DeviceInfo(b"\x01" * 32, 1 << 20), DeviceInfo(b"\x02" * 32, 1 << 20)]


def entry(path, kind=FileType.REGULAR, **fields):
    return Entry(path, kind, 0o644, 0, 0, 0, **fields)


def tree_of(*entries):
    tree = Tree()
    for item in (entry(b"", FileType.DIRECTORY), *entries):
        if isinstance(item, tuple):
            tree.add(*item)
        else:
            tree.add(item)
    return tree


def opened(section, devices=()):
    space = MetadataSpace(
        lambda page: section[page * 65_536 :][:65_536].ljust(65_536, b"\0"),
        65_536,
        offset=0,
        length=len(section),
    )
    return ReadTree(space, tuple(device.decoded_blocks for device in devices))


def inode_of(tree, *path):
    inode = tree.inode(tree.root)
    for name in path:
        inode = tree.inode(tree.lookup(inode, name).nid)
    return inode


def blob(index):
    return PlannedBlob(index)


def file_of(*runs):
    """A section with one file of these runs; returns its inode and the extents that the reader finds."""
    size = sum(run.length for run in runs)
    section = write_erofs(tree_of((entry(b"file", size=size), Body(tuple(runs)))), DEVICES)
    tree = opened(section, DEVICES)
    inode = inode_of(tree, b"file")
    file_map, extents, offset = tree.file_map(inode), [], 0
    while offset < size:
        extents.append(file_map.extent(offset))
        offset += extents[-1].length
    return inode, extents


def chunk_at(block, index=0):
    return PlannedChunk(blob(index), block, used=True)


# --- The superblock -----------------------------------------------------------------------------------------


def test_superblock_says_what_kernels_look_at():
    section = write_erofs(tree_of(entry(b"a"), entry(b"b", FileType.DIRECTORY)), DEVICES)
    superblock = erofs.SUPERBLOCK.unpack_from(section, erofs.SUPERBLOCK_OFFSET)
    assert superblock.magic == 0xE0F5E1E2
    assert superblock.block_bits == 12
    assert superblock.feature_incompat == 0x4 | 0x8
    assert superblock.feature_compat == 0
    assert (superblock.inode_count, superblock.blocks) == (3, len(section) // BLOCK_SIZE)
    assert (superblock.extra_devices, superblock.device_table_slot) == (2, 9)
    for number, device in enumerate(DEVICES):
        slot = erofs.DEVICE_SLOT.unpack_from(section, (9 + number) * 128)
        assert (slot.tag, slot.blocks) == (device.blob_id.hex().encode(), device.decoded_blocks)


def test_image_without_data_has_no_device_table():
    superblock = erofs.SUPERBLOCK.unpack_from(write_erofs(tree_of(), []), erofs.SUPERBLOCK_OFFSET)
    assert (superblock.feature_incompat, superblock.extra_devices, superblock.device_table_slot) == (4, 0, 0)


def test_most_devices_leave_the_root_where_its_16_bits_reach():
    devices = [DeviceInfo(number.to_bytes(32, "big"), 1) for number in range(4095)]
    section = write_erofs(tree_of(entry(b"a")), devices)
    assert inode_of(opened(section, devices), b"a").is_regular


def test_section_follows_from_the_tree_alone():
    entries = [entry(b"b", FileType.DIRECTORY), entry(b"b/c"), entry(b"a"), entry(b"b/a")]
    shuffled = [entries[index] for index in (2, 0, 3, 1)]
    first, second = (write_erofs(tree_of(*order), []) for order in (entries, shuffled))
    assert first == second
    other = write_erofs(tree_of(*entries, entry(b"z")), [])
    uuids = [erofs.SUPERBLOCK.unpack_from(section, 1024).uuid for section in (first, other)]
    assert uuids[0] != uuids[1]


# --- Where inodes lie ---------------------------------------------------------------------------------------


def body_of(item):
    """Inline wherever the bytes fit behind the inode."""
    if not item.size:
        return NO_BYTES
    if 64 + area_bytes_max(item.xattrs) + item.size > BLOCK_SIZE:
        return Body((Run(item.size),))
    return Body(inline=b"i" * item.size)


@given(plans(on_disk=False, max_names=30))
@settings(max_examples=50)
def test_inodes_overlap_nothing_and_their_inline_parts_stay_in_a_block(plan):
    tree = Tree()
    for item in plan:
        fields = {"rdev": item.rdev, "target": item.target, "xattrs": item.xattrs}
        tree.add(
            Entry(
                item.path, item.kind, 0o644, 0, 0, 0, size=item.size, hard_link_to=item.hard_link_to, **fields
            ),
            body_of(item),
        )
    section = write_erofs(tree, [])
    read = opened(section)
    taken = [(0, erofs.SUPERBLOCK_OFFSET + erofs.SUPERBLOCK.size)]
    pending, seen = [read.root], set()
    while pending:
        inode = read.inode(pending.pop())
        if inode.nid in seen:
            continue
        seen.add(inode.nid)
        start, end = inode.nid * 32, inode.body
        assert start % 32 == 0
        if inode.layout is DataLayout.FLAT_INLINE:
            tail = inode.size % BLOCK_SIZE
            assert inode.body // BLOCK_SIZE == (inode.body + tail - 1) // BLOCK_SIZE
            end += tail
        elif inode.layout is DataLayout.CHUNK_BASED:
            bits = 12 + (inode.union & 0x1F)
            end = erofs.align(end, 8) + 8 * -(-inode.size >> bits)
        if inode.layout is not DataLayout.CHUNK_BASED and inode.size >= BLOCK_SIZE:
            blocks = (
                inode.size // BLOCK_SIZE
                if inode.layout is DataLayout.FLAT_INLINE
                else -(-inode.size // BLOCK_SIZE)
            )
            taken.append((inode.union * BLOCK_SIZE, (inode.union + blocks) * BLOCK_SIZE))
        taken.append((start, end))
        if inode.is_directory:
            pending += [found.nid for found in read.entries(inode)]
    assert len(seen) == read.inode_count
    for (_, end), (start, _) in itertools.pairwise(sorted(taken)):
        assert end <= start
    assert max(end for _, end in taken) <= len(section)


def test_children_of_a_directory_lie_together():
    names = [b"%s/%d" % (folder, number) for folder in (b"a", b"b", b"c") for number in range(20)]
    folders = [entry(folder, FileType.DIRECTORY) for folder in (b"a", b"b", b"c")]
    # given one from each directory in turn, as a tar may have them
    interleaved = [entry(name) for number in range(20) for name in names[number::20]]
    tree = opened(write_erofs(tree_of(*folders, *interleaved), []))
    for folder in (b"a", b"b", b"c"):
        nids = sorted(inode_of(tree, folder, b"%d" % number).nid for number in range(20))
        assert nids[-1] - nids[0] == 19 * 2  # inodes of 64 bytes, back to back


@pytest.mark.parametrize("length", [1, 2000, BLOCK_SIZE - 64, BLOCK_SIZE - 63, BLOCK_SIZE - 1])
def test_symlinks_are_inline_as_long_as_they_fit_a_block(length):
    tree = opened(write_erofs(tree_of(entry(b"link", FileType.SYMLINK, target=b"t" * length)), []))
    link = inode_of(tree, b"link")
    assert link.layout is (DataLayout.FLAT_INLINE if length <= BLOCK_SIZE - 64 else DataLayout.FLAT_PLAIN)
    assert tree.symlink_target(link) == b"t" * length


@given(plans(on_disk=False, max_names=30), st.integers(1, BLOCK_SIZE - 64))
@settings(max_examples=50)
def test_small_files_come_out_of_the_block_of_their_inode(plan, size):
    """Whatever attributes they have, shared ones among them: the bound that the chunker goes by holds."""
    small = [item for item in plan if 64 + area_bytes_max(item.xattrs) + size <= BLOCK_SIZE]
    entries = [
        (entry(b"%d" % number, size=size, xattrs=item.xattrs), Body(inline=bytes([number + 1]) * size))
        for number, item in enumerate(small)
    ]
    tree = opened(write_erofs(tree_of(*entries), []))
    for number in range(len(small)):
        inode = inode_of(tree, b"%d" % number)
        assert inode.layout is DataLayout.FLAT_INLINE and inode.size == size
        extent = tree.file_map(inode).extent(0)
        assert tree.inline_bytes(extent) == bytes([number + 1]) * size


# --- Chunk indexes ------------------------------------------------------------------------------------------


def index_count(inode):
    return -(-inode.size >> 12 + (inode.union & 0x1F))


def test_file_that_lies_unbroken_has_one_index():
    runs = [Run(CHUNK, chunk_at(number * 64)) for number in range(40)] + [Run(999, chunk_at(40 * 64))]
    inode, extents = file_of(*runs)
    assert index_count(inode) == 1
    assert [(extent.blob, extent.start, extent.length) for extent in extents] == [(0, 0, 40 * CHUNK + 999)]


def test_file_of_scattered_chunks_has_an_index_for_each():
    inode, extents = file_of(
        *(Run(CHUNK, chunk_at(block)) for block in (64, 0, 640)), Run(1, chunk_at(5, 1), 3)
    )
    assert index_count(inode) == 4
    assert [(extent.blob, extent.start) for extent in extents] == [
        (0, 64 * BLOCK_SIZE),
        (0, 0),
        (0, 640 * BLOCK_SIZE),
        (1, 8 * BLOCK_SIZE),
    ]


def test_border_between_runs_decides_the_size_of_all_indexes():
    inode, extents = file_of(Run(3 * BLOCK_SIZE, chunk_at(50)), Run(8 * BLOCK_SIZE), Run(5, chunk_at(7)))
    assert inode.union & 0x1F == 0
    assert index_count(inode) == 12
    assert [extent.blob for extent in extents] == [0, 0, 0, *[None] * 8, 0]


@pytest.mark.parametrize("size", [1, BLOCK_SIZE, 5 * GIB, 1 << 40, (1 << 40) + 1])
def test_holes_cost_an_index_for_each_gibibyte(size):
    inode, extents = file_of(Run(size))
    assert index_count(inode) == max(1, -(-size // (1 << CHUNK_BITS_MAX)))
    assert {extent.blob for extent in extents} == {None}


def test_data_behind_four_gibibytes_is_found():
    hole = 5 * GIB
    _, extents = file_of(Run(hole), Run(10 * MIB, chunk_at(3, 1)))
    assert sum(extent.length for extent in extents) == hole + 10 * MIB
    assert sum(extent.length for extent in extents if extent.blob is None) == hole
    first = next(extent for extent in extents if extent.blob is not None)
    assert (first.blob, first.start) == (1, 3 * BLOCK_SIZE)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=8),
    st.integers(0, BLOCK_SIZE - 1),
)
def test_any_runs_come_back(drawn, short):
    """(0 for a hole or 1 + blob, place, length) in blocks; the last run may end inside one."""
    runs = []
    for kind, block, blocks in drawn:
        place = chunk_at(block * 6, kind % 2) if kind else None
        runs.append(Run(blocks * BLOCK_SIZE, place))
    runs[-1] = Run(runs[-1].length - short, runs[-1].chunk)
    _, extents = file_of(*runs)

    def by_block(parts):
        return [
            None if start is None else (index, start + number)
            for index, start, blocks in parts
            for number in range(blocks)
        ]

    wanted = [
        (run.chunk.blob.index, run.chunk.start_block, -(-run.length // BLOCK_SIZE))
        if run.chunk
        else (None, None, -(-run.length // BLOCK_SIZE))
        for run in runs
    ]
    found = [
        (
            extent.blob,
            extent.start // BLOCK_SIZE if extent.blob is not None else None,
            -(-extent.length // BLOCK_SIZE),
        )
        for extent in extents
    ]
    assert by_block(found) == by_block(wanted)


@pytest.mark.parametrize("size", [1 << 60, (1 << 63) - 1])
def test_file_that_needs_too_many_indexes_is_refused_at_once(size):
    """Else a sparse file, which costs its maker nothing, would cost us all memory."""
    with pytest.raises(BuildError, match=r"file is too large for its chunks.*path sparse"):
        write_erofs(tree_of((entry(b"sparse", size=size), Body((Run(size),)))), [])
    short = 4 * GIB * 1024
    broken = Body((Run(BLOCK_SIZE, chunk_at(1)), Run(short - BLOCK_SIZE)))
    with pytest.raises(BuildError, match="path sparse"):
        write_erofs(tree_of((entry(b"sparse", size=short), broken)), DEVICES)


# --- Attributes and devices ---------------------------------------------------------------------------------


def test_common_attributes_are_written_once():
    common = ((b"security.selinux", b"system_u:object_r:usr_t:s0\0"),)
    plain = len(write_erofs(tree_of(*(entry(b"%d" % number) for number in range(1000))), []))
    shared = write_erofs(tree_of(*(entry(b"%d" % number, xattrs=common) for number in range(1000))), [])
    tree = opened(shared)
    assert len(shared) - plain <= 1000 * 32 + 2 * BLOCK_SIZE  # a slot for the id, and the shared area
    for number in (0, 500, 999):
        assert list(tree.xattrs(inode_of(tree, b"%d" % number))) == list(common)


def test_inode_may_share_more_attributes_than_its_count_can_say():
    many = tuple((b"user.%03d" % number, b"v" * 20) for number in range(300))
    tree = opened(write_erofs(tree_of(entry(b"a", xattrs=many), entry(b"b", xattrs=many)), []))
    for name in (b"a", b"b"):
        assert sorted(tree.xattrs(inode_of(tree, name))) == sorted(many)


def test_largest_attributes_come_back():
    xattrs = tuple((b"user." + letter * 255, letter * 65_535) for letter in (b"a", b"b", b"c"))
    tree = opened(write_erofs(tree_of(entry(b"file", xattrs=xattrs)), []))
    assert sorted(tree.xattrs(inode_of(tree, b"file"))) == sorted(xattrs)


def test_more_attributes_than_an_inode_can_have_are_refused():
    xattrs = tuple((b"user.%d" % number, b"v" * 65_000) for number in range(5))
    with pytest.raises(BuildError, match=r"extended attributes of one file.*path file"):
        write_erofs(tree_of(entry(b"file", xattrs=xattrs)), [])


@pytest.mark.parametrize("numbers", [(4096, 0), (0, 1 << 20), (2**32 - 1, 0)])
def test_device_number_that_does_not_fit_is_refused(numbers):
    with pytest.raises(BuildError, match=r"device number does not fit.*path device"):
        write_erofs(tree_of(entry(b"device", FileType.CHARACTER, rdev=numbers)), [])


def test_kinds_are_counted_by_inode():
    tree = tree_of(
        entry(b"d", FileType.DIRECTORY),
        entry(b"d/file"),
        entry(b"link", hard_link_to=b"d/file"),
        entry(b"fifo", FileType.FIFO),
    )
    write_erofs(tree, [])
    assert count_kinds(tree) == {FileType.DIRECTORY: 2, FileType.REGULAR: 1, FileType.FIFO: 1}


def test_modes_have_their_type():
    tree = opened(
        write_erofs(tree_of(*(entry(kind.name.encode(), kind, target=b"t") for kind in FileType)), [])
    )
    for kind in FileType:
        mode = inode_of(tree, kind.name.encode()).mode
        assert stat.S_IFMT(mode) == erofs.MODE_OF_FILE_TYPE[erofs.FileType(kind)]
