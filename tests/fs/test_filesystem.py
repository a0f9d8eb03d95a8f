"""The file system object over a real image: POSIX outcomes, attributes, reads at every edge."""

import errno
import os
import stat

import pytest
import trio
from support.images import build, opened
from support.trees import ACL, Planned, PlannedSource, Segment, expected

from rafsfs.errors import DigestMismatch, FormatError
from rafsfs.format.erofs import FileType
from rafsfs.fs.filesystem import walk_tree
from rafsfs.store.oci_layout import blob_path

CHUNK = 4096
LARGE = (Segment(3 * CHUNK + 100, 1), Segment(5 * CHUNK, None), Segment(10, 3))
PLAN = (
    Planned(b"", FileType.DIRECTORY, permissions=0o751, uid=1, gid=2, mtime_ns=3),
    Planned(b"block", FileType.BLOCK, rdev=(8, 1)),
    Planned(b"directory", FileType.DIRECTORY, mtime_ns=-1),
    Planned(b"directory/empty", FileType.REGULAR),
    Planned(b"directory/inner", FileType.DIRECTORY),
    Planned(b"fifo", FileType.FIFO),
    Planned(
        b"large", FileType.REGULAR, permissions=0o4755, segments=LARGE, mtime_ns=1_500_000_000_987_654_321
    ),
    Planned(b"link", FileType.SYMLINK, permissions=0o777, target=b"directory/../large"),
    Planned(b"same", FileType.REGULAR, hard_link_to=b"large"),
    Planned(b"socket", FileType.SOCKET),
    Planned(
        b"with attributes",
        FileType.REGULAR,
        segments=(Segment(5, 0),),
        xattrs=((b"system.posix_acl_access", ACL), (b"user.empty", b""), (b"user.long", b"x" * 60_000)),
    ),
)
PLAIN = b"".join(segment.plain() for segment in LARGE)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    with opened(build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), chunk_size=CHUNK)) as image:
        yield image


@pytest.fixture
def filesystem(image):
    return image.filesystem


@pytest.fixture
def find(filesystem):
    def find(path):
        nid = filesystem.root
        for name in path.split(b"/"):
            nid = filesystem.lookup(nid, name)
        return nid

    return find


def refused(code, call, *arguments):
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        call(*arguments)
    assert caught.value.errno == code


def test_names_lead_to_inodes(filesystem, find):
    assert find(b".") == find(b"..") == filesystem.root
    assert find(b"directory/inner/..") == find(b"directory")
    assert find(b"same") == find(b"large")


def test_names_that_lead_nowhere(filesystem, find):
    refused(errno.ENOENT, find, b"nothing")
    refused(errno.ENOENT, find, b"Large")
    refused(errno.ENOENT, find, b"")
    refused(errno.ENOENT, find, b"x" * 255)
    refused(errno.ENAMETOOLONG, find, b"x" * 256)
    for path in (b"large/x", b"fifo/x", b"link/large"):
        refused(errno.ENOTDIR, find, path)


@pytest.mark.parametrize("nid", [0, 1, 2**40, 2**64 - 1])
def test_inode_that_is_not_there_is_a_fault_of_the_image(filesystem, nid):
    for call in (filesystem.attributes, filesystem.readlink, filesystem.xattr_names):
        with pytest.raises(FormatError):
            call(nid)
    with pytest.raises(FormatError):
        filesystem.read(nid, 0, 1)
    with pytest.raises(FormatError):
        list(filesystem.directory(nid))


def test_attributes_are_those_of_the_source(filesystem, find):
    for path, wanted in expected(PLAN).items():
        found = filesystem.attributes(find(path or b"."))
        assert (found.mode, found.uid, found.gid, found.mtime_ns, found.rdev) == (
            wanted.mode,
            wanted.uid,
            wanted.gid,
            wanted.mtime_ns,
            wanted.rdev,
        )


def test_links_are_counted(filesystem, find):
    counts = {
        path: filesystem.attributes(find(path)).nlink for path in (b"large", b"fifo", b".", b"directory")
    }
    assert counts == {b"large": 2, b"fifo": 1, b".": 3, b"directory": 3}


def test_listing_has_dots_types_and_positions(filesystem, find):
    entries = list(filesystem.directory(filesystem.root))
    assert [entry.name for entry in entries] == sorted(
        [b".", b"..", *(item.path for item in PLAN if item.path and b"/" not in item.path)]
    )
    for entry in entries:
        assert entry.mode_type == stat.S_IFMT(filesystem.attributes(entry.nid).mode)
    for index, entry in enumerate(entries):
        assert list(filesystem.directory(filesystem.root, entry.next_position)) == entries[index + 1 :]
    refused(errno.ENOTDIR, lambda: list(filesystem.directory(find(b"large"))))


def test_symlinks_and_only_they_are_read(filesystem, find):
    assert filesystem.readlink(find(b"link")) == b"directory/../large"
    for path in (b"large", b".", b"fifo"):
        refused(errno.EINVAL, filesystem.readlink, find(path))


def test_xattrs_by_name(filesystem, find):
    nid = find(b"with attributes")
    assert sorted(filesystem.xattr_names(nid)) == [b"system.posix_acl_access", b"user.empty", b"user.long"]
    assert filesystem.xattr(nid, b"user.long") == b"x" * 60_000
    assert filesystem.xattr(nid, b"user.empty") == b""
    refused(errno.ENODATA, filesystem.xattr, nid, b"user.other")
    refused(errno.ENODATA, filesystem.xattr, find(b"large"), b"user.long")
    assert filesystem.xattr_names(find(b"large")) == []


EDGES = sorted(
    {
        place + step
        for place in (0, CHUNK, 3 * CHUNK, 3 * CHUNK + 100, 4 * CHUNK, 8 * CHUNK, 8 * CHUNK + 100, len(PLAIN))
        for step in (-1, 0, 1)
        if place + step >= 0
    }
)


def test_reads_at_every_edge(filesystem, find):
    nid = find(b"large")
    for start in EDGES:
        for end in [*EDGES, len(PLAIN) + 10_000]:
            if start <= end:
                wanted = PLAIN[start:end]
                assert b"".join(filesystem.read(nid, start, end - start)) == wanted
                assert b"".join(filesystem.try_read(nid, start, end - start)) == wanted


def test_reads_behind_the_end_are_empty(filesystem, find):
    nid = find(b"large")
    for offset in (len(PLAIN), len(PLAIN) + 1, 2**62, 2**63 - 1):
        assert filesystem.read(nid, offset, 1000) == []
        assert filesystem.try_read(nid, offset, 2**62) == []
    assert filesystem.read(find(b"directory/empty"), 0, 100) == []


def test_reads_of_what_has_no_bytes(filesystem, find):
    for read in (filesystem.read, filesystem.try_read):
        refused(errno.EISDIR, read, filesystem.root, 0, 1)
        for path in (b"link", b"fifo", b"socket", b"block"):
            refused(errno.EINVAL, read, find(path), 0, 1)
        refused(errno.EINVAL, read, find(b"large"), -1, 1)
        refused(errno.EINVAL, read, find(b"large"), 0, -1)


def test_extents_follow_each_other_without_a_gap(filesystem, find):
    nid = find(b"large")
    for start, size in ((0, len(PLAIN)), (100, 9000), (len(PLAIN) - 1, 100), (5, 0)):
        extents = list(filesystem.extents(nid, start, size))
        assert sum(extent.length for extent in extents) == max(0, min(size, len(PLAIN) - start))
        assert all(extent.length for extent in extents)
    holes = sum(extent.length for extent in filesystem.extents(nid, 0, len(PLAIN)) if extent.blob is None)
    assert holes == 4 * CHUNK  # the whole chunks in the hole


def test_statfs_counts_blocks_and_inodes(image, filesystem):
    found = filesystem.statfs()
    assert (found.block_size, found.name_max) == (4096, 255)
    assert found.files == len(PLAN) - 1  # one of them is a hard link
    superblock = image.opened.superblock
    data = sum(blob.decoded_blocks for blob in superblock.blobs)
    assert found.blocks == superblock.erofs.length // 4096 + data


def test_walk_meets_every_name_once_parents_first(filesystem, find):
    walked = list(filesystem.walk())
    assert [path for path, _ in walked] == sorted(
        expected(PLAN), key=lambda path: path.split(b"/") if path else []
    )
    assert [path for path, _ in walk_tree(filesystem, find(b"directory"), b"directory")] == [
        b"directory",
        b"directory/empty",
        b"directory/inner",
    ]


def test_path_of_an_inode_is_found(filesystem, find):
    assert filesystem.find_path(find(b"directory/inner")) == b"directory/inner"
    assert filesystem.find_path(filesystem.root) == b""
    assert filesystem.find_path(1) is None


async def test_read_async_gives_the_same(filesystem, find):
    nid = find(b"large")
    assert b"".join(await filesystem.read_async(nid, 10, 10_000)) == PLAIN[10:10_010]
    with pytest.raises(OSError, match="directory"):
        await filesystem.read_async(filesystem.root, 0, 1)


async def test_cancelled_read_ends_at_once(filesystem, find):
    with trio.CancelScope() as scope:
        scope.cancel()
        await filesystem.read_async(find(b"large"), 0, 100)
    assert scope.cancelled_caught


def test_damage_is_met_by_just_the_reads_that_touch_it(tmp_path):
    reference = build(PlannedSource(PLAN), tmp_path, chunk_size=CHUNK, zstd_level=None)
    with opened(reference) as image:
        record = image.filesystem.engine.blobs[0].chunks.record(1)  # bytes 4096 to 8191 of the large file
        descriptor = image.stored.manifest.blobs[0]
    with blob_path(tmp_path, descriptor.digest).open("r+b") as file:
        file.seek(record.encoded_offset + 7)
        changed = file.read(1)[0] ^ 1
        file.seek(record.encoded_offset + 7)
        file.write(bytes((changed,)))
    with opened(reference) as image:
        filesystem = image.filesystem
        nid = filesystem.lookup(filesystem.root, b"large")
        for offset, size in ((0, CHUNK), (2 * CHUNK, 10 * CHUNK), (0, 0)):
            assert b"".join(filesystem.read(nid, offset, size)) == PLAIN[offset : offset + size]
        for offset, size in ((CHUNK - 1, 2), (CHUNK, 1), (2 * CHUNK - 1, 1), (0, len(PLAIN))):
            with pytest.raises(DigestMismatch, match=f"blob {descriptor.digest}, chunk 1, offset"):
                filesystem.read(nid, offset, size)
            assert filesystem.try_read(nid, offset, size) is None
