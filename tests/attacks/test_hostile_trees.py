"""EROFS trees that are sealed correctly and lie: cycles, wrong orders, wild nids, sizes and areas (8)."""

import errno
import random
import stat

import pytest
from attacks.sealing import BLOCK, ForgedSection, directory_block, plain_blob, seal
from attacks.surgery import NO_POLICY, RING, check_fails, fails, opened, put, read_everything, read_image
from support.images import build

from rafsfs.errors import FormatError, LimitExceeded, RafsError, UnsupportedVersion
from rafsfs.format import erofs
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import CHUNK_FORMAT_INDEXES, NULL_BLOCK, DataLayout, FileType
from rafsfs.fs.checking import check_image
from rafsfs.limits import DIRECTORY_BYTES_MAX, FILE_SIZE_MAX, SYMLINK_BYTES_MAX

pytestmark = pytest.mark.timeout(60)

REGULAR, DIRECTORY, SYMLINK = FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK
INLINE = erofs.inode_format(DataLayout.FLAT_INLINE)
HUGE = (2**16, 2**31, 2**32 - 1, 2**32, 2**58, 2**59, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.fixture
def section():
    return ForgedSection()


@pytest.fixture
def read(tmp_path):
    """Seal a section and read all that is in it. The full check must see what is wrong with it, too."""

    def read_section(section, *, hostile=True, **fields):
        reference = put(seal(section.pack(**fields)), tmp_path)
        assert check_fails(reference) is hostile
        return read_image(reference)

    return read_section


@pytest.fixture
def mounted(tmp_path):
    """Seal a section and open it; closed at the end of the test. As above, the full check has to notice."""
    images = []

    def open_section(section, blobs=(), *, hostile=True, **fields):
        reference = put(seal(section.pack(**fields), blobs), tmp_path)
        assert check_fails(reference) is hostile
        images.append(opened(reference))
        return images[-1].filesystem

    yield open_section
    for image in images:
        image.close()


def with_file(section, nid, kind=REGULAR):
    """Make the root, with one entry."""
    section.directory([(b"entry", nid, kind)], nid=section.root)
    return section


# --- Graphs that are no trees -------------------------------------------------------------------------------


def test_directory_in_itself(section, read):
    with pytest.raises(FormatError, match="two names"):
        read(with_file(section, section.root, DIRECTORY))


def test_directories_in_each_other(section, mounted):
    below = section.reserve()
    section.directory([(b"back", section.root, DIRECTORY)], nid=below)
    filesystem = mounted(with_file(section, below, DIRECTORY))
    with pytest.raises(FormatError, match="two names"):
        list(filesystem.walk())
    with pytest.raises(FormatError, match="two names"):
        filesystem.find_path(below + 1)


def test_directory_with_two_names(section, read):
    shared = section.directory([])
    section.directory([(b"a", shared, DIRECTORY), (b"b", shared, DIRECTORY)], nid=section.root)
    with pytest.raises(FormatError, match="two names"):
        read(section)


def test_tree_that_doubles_at_every_level(read):
    """Forty levels of two directories with the same content would be 2^40 names."""
    section = ForgedSection(inode_blocks=3)
    pairs = [(section.reserve(), section.reserve()) for _ in range(40)]
    below = []
    for left, right in reversed(pairs):
        for nid in (left, right):
            section.directory(below, nid=nid)
        below = [(b"left", left, DIRECTORY), (b"right", right, DIRECTORY)]
    section.directory(below, nid=section.root)
    with pytest.raises(FormatError, match="two names"):
        read(section)


def test_many_directories_over_one_block_of_names(tmp_path):
    """A name costs its dirent once; shown again by another directory it would cost nothing."""
    count = 2000
    section = ForgedSection(inode_blocks=count * 64 // BLOCK + 2)
    shared_file = section.inode(stat.S_IFREG)
    names = [b"%05d" % number for number in range(200)]
    block = section.block(directory_block([(name, shared_file, REGULAR) for name in names]))
    directories = [section.inode(stat.S_IFDIR | 0o755, size=BLOCK, union=block) for _ in range(count)]
    blocks = b"".join(
        directory_block([(b"%08d" % nid, nid, DIRECTORY) for nid in directories[start : start + 200]])
        for start in range(0, count, 200)
    )
    union = section.block(blocks)
    section.inode(stat.S_IFDIR | 0o755, nid=section.root, size=len(blocks), union=union)
    with opened(put(seal(section.pack()), tmp_path)) as image:
        walked = 0
        with pytest.raises(FormatError, match="more names"):
            for _ in image.filesystem.walk():
                walked += 1
        assert walked < len(section.data) // erofs.DIRENT.size


def test_tree_deeper_than_any_path(tmp_path):
    """One directory in the other, 5,000 times: no recursion, and an end."""
    count = 5000
    section = ForgedSection(inode_blocks=count * 64 // BLOCK + 2)
    nids = [section.root, *(section.reserve() for _ in range(count))]
    for nid, below in zip(nids, [*nids[1:], None], strict=True):
        section.directory([(b"d", below, DIRECTORY)] if below else [], nid=nid)
    error = fails(read_image, put(seal(section.pack()), tmp_path))
    assert isinstance(error, LimitExceeded) and "too deep" in str(error)


@pytest.mark.parametrize("said", [DIRECTORY, REGULAR, SYMLINK, FileType.FIFO])
@pytest.mark.parametrize("true", [DIRECTORY, REGULAR, SYMLINK, FileType.FIFO])
def test_entry_that_says_another_type_than_its_inode(section, read, said, true):
    mode = erofs.MODE_OF_FILE_TYPE[true]
    if true is DIRECTORY:
        nid = section.directory([])
    elif true is SYMLINK:
        nid = section.inode(mode, format=INLINE, size=4, behind=b"to b")
    else:
        nid = section.inode(mode)
    with_file(section, nid, said)
    if said is true:
        assert len(read(section, hostile=False)) == 3
    else:
        with pytest.raises(FormatError, match="type"):
            read(section)


# --- Directory blocks ---------------------------------------------------------------------------------------

BLOCKS = {
    "names out of order": directory_block([(b"b", 36, DIRECTORY), (b"a", 36, DIRECTORY)]),
    "a name twice": directory_block([(b"a", 36, DIRECTORY), (b"a", 36, DIRECTORY)]),
    "an empty name": directory_block([(b"", 36, DIRECTORY), (b"a", 36, DIRECTORY)]),
    "only an empty name": directory_block([(b"", 36, DIRECTORY)]),
    "a slash": directory_block([(b"a/b", 36, DIRECTORY)]),
    "a path to elsewhere": directory_block([(b"../../etc/passwd", 36, DIRECTORY)]),
    "a NUL inside": directory_block([(b"a\0b", 36, DIRECTORY)]),
    "a name of 256 bytes": directory_block([(b"a" * 256, 36, DIRECTORY)]),
    "an unknown type": directory_block([(b"a", 36, 0)]),
    "another unknown type": directory_block([(b"a", 36, 8)]),
    "nothing": bytes(BLOCK),
    "all ones": b"\xff" * BLOCK,
    "first name inside the dirents": erofs.DIRENT.pack(erofs.Dirent(36, 6, 2, 0)).ljust(BLOCK, b"a"),
    "first name between dirents": erofs.DIRENT.pack(erofs.Dirent(36, 13, 2, 0)).ljust(BLOCK, b"a"),
    "first name behind the block": erofs.DIRENT.pack(erofs.Dirent(36, 4096, 2, 0)).ljust(BLOCK, b"a"),
    "first name far behind": erofs.DIRENT.pack(erofs.Dirent(36, 65532, 2, 0)).ljust(BLOCK, b"a"),
    "names go backwards": (
        erofs.DIRENT.pack(erofs.Dirent(36, 24, 2, 0)) + erofs.DIRENT.pack(erofs.Dirent(36, 20, 2, 0))
    ).ljust(BLOCK, b"a"),
    "a name behind the block": (
        erofs.DIRENT.pack(erofs.Dirent(36, 24, 2, 0)) + erofs.DIRENT.pack(erofs.Dirent(36, 9999, 2, 0))
    ).ljust(BLOCK, b"a"),
}


@pytest.mark.parametrize("lie", BLOCKS)
def test_directory_block_that_lies(section, mounted, lie):
    block = section.block(BLOCKS[lie])
    section.inode(stat.S_IFDIR | 0o755, nid=section.root, size=BLOCK, union=block)
    filesystem = mounted(section)
    with pytest.raises(FormatError):
        list(filesystem.walk())
    with pytest.raises(FormatError):
        filesystem.lookup(filesystem.root, b"a")


def test_directory_blocks_out_of_order(section, mounted):
    file = section.inode(stat.S_IFREG)
    blocks = directory_block([(b"m", file, REGULAR)]) + directory_block([(b"b", file, REGULAR)])
    union = section.block(blocks)
    section.inode(stat.S_IFDIR | 0o755, nid=section.root, size=2 * BLOCK, union=union)
    filesystem = mounted(section)
    with pytest.raises(FormatError, match="not in order"):
        list(filesystem.walk())
    for name in (b"a", b"b", b"c", b"m", b"z"):
        assert fails(absent_or_found, filesystem, name) is None


def absent_or_found(filesystem, name):
    try:
        filesystem.lookup(filesystem.root, name)
    except OSError as error:
        assert error.errno == errno.ENOENT


@pytest.mark.parametrize(
    "size", [1, 11, 12, 4095, 4097, 1 << 20, DIRECTORY_BYTES_MAX, DIRECTORY_BYTES_MAX + 1, *HUGE]
)
@pytest.mark.parametrize("layout", [DataLayout.FLAT_PLAIN, DataLayout.FLAT_INLINE])
def test_directory_of_any_size(section, mounted, size, layout):
    """Also eight gigabytes in a section of 32 KiB: the block that is not there is refused when asked for."""
    block = section.block(directory_block([(b"a", section.root, DIRECTORY)]))
    below = section.inode(stat.S_IFDIR | 0o755, size=size, union=block, format=erofs.inode_format(layout))
    filesystem = mounted(with_file(section, below, DIRECTORY))
    with pytest.raises(FormatError):
        list(filesystem.walk())
    assert fails(absent_or_found, filesystem, b"another") is None
    error = fails(lookup_in, filesystem, below, b"name")
    assert error is not None or size <= BLOCK + 1


def lookup_in(filesystem, nid, name):
    try:
        filesystem.lookup(nid, name)
    except FileNotFoundError:
        return


def test_directory_without_any_entry(section, mounted):
    section.inode(stat.S_IFDIR | 0o755, nid=section.root)
    filesystem = mounted(section)
    assert list(filesystem.directory(filesystem.root)) == []
    with pytest.raises(FileNotFoundError):
        filesystem.lookup(filesystem.root, b"a")


@pytest.mark.parametrize("position", [1, 315, 316, 317, *HUGE])
def test_listing_from_any_position(section, mounted, position):
    filesystem = mounted(with_file(section, section.inode(stat.S_IFREG)), hostile=False)
    assert len(list(filesystem.directory(filesystem.root, position))) <= 3


# --- Inodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nid", [0, 1, 31, 32, 35, 1023, 1024, *HUGE])
def test_entry_that_leads_nowhere(section, mounted, nid):
    """Into the superblock, the device table, the data of others, beyond the end."""
    filesystem = mounted(with_file(section, nid))
    with pytest.raises(FormatError):
        read_everything(filesystem)
    with pytest.raises(FormatError):
        filesystem.attributes(nid)


@pytest.mark.parametrize("seed", range(8))
def test_every_nid_of_a_section_of_noise(seed, tmp_path):
    """Whatever is read as an inode, and as what hangs on it: RafsError, POSIX errors, or bounded bytes."""
    noise = random.Random(seed)
    section = ForgedSection(blocks=4, inode_blocks=2)
    section.directory([], nid=section.root)
    section.place(BLOCK, noise.randbytes(BLOCK))
    for nid in range(BLOCK // 32, 2 * BLOCK // 32, 2):  # half of them likely enough to get further
        mode = noise.choice([*erofs.MODE_OF_FILE_TYPE.values()])
        layout = noise.choice([0, 2, 4])
        section.place(nid * 32, bytes((layout << 1 | 1, 0, noise.randrange(256), noise.randrange(3))))
        section.place(nid * 32 + 4, mode.to_bytes(2, "little"))
        section.place(nid * 32 + 8, noise.randrange(5000).to_bytes(8, "little"))
    with opened(put(seal(section.pack(xattr_blkaddr=seed)), tmp_path)) as image:
        for nid in range(1200):
            poke(image.filesystem, nid)


def poke(filesystem, nid):
    """Ask everything of an inode that may be none."""
    for ask in (
        lambda: filesystem.attributes(nid),
        lambda: filesystem.lookup(nid, b"name"),
        lambda: list(filesystem.directory(nid)),
        lambda: filesystem.readlink(nid),
        lambda: filesystem.xattr_names(nid),
        lambda: filesystem.xattr(nid, b"user.a"),
        lambda: filesystem.read(nid, 0, 1 << 20),
        lambda: filesystem.read(nid, 2**62, 4096),
    ):
        try:
            ask()
        except (RafsError, OSError) as error:
            assert str(error)


INODES = {
    "compact": {"format": 0},
    "compressed layout": {"format": 1 | 1 << 1},
    "reserved layout": {"format": 1 | 5 << 1},
    "wild format": {"format": 0xFFFF},
    "no type": {"mode": 0o644},
    "two types": {"mode": 0o170000 | 0o644},
    "nanoseconds": {"mtime_nsec": 1_000_000_000},
    "wild nanoseconds": {"mtime_nsec": 2**32 - 1},
    "size above off_t": {"size": 2**63, "format": erofs.inode_format(DataLayout.CHUNK_BASED)},
    "wild size": {"size": 2**64 - 1, "format": erofs.inode_format(DataLayout.CHUNK_BASED)},
    "bytes in the metadata": {"size": 1},
    "inline bytes of a block": {"size": BLOCK, "format": INLINE},
    "inline bytes of many blocks": {"size": 5 * BLOCK + 1, "format": INLINE},
    "inline directory of whole blocks": {"mode": stat.S_IFDIR, "size": BLOCK, "format": INLINE},
    "inline symlink of a whole block": {"mode": stat.S_IFLNK, "size": BLOCK, "format": INLINE},
    "inline bytes above off_t": {"size": 2**63, "format": INLINE},
    "fifo with inline bytes": {"mode": stat.S_IFIFO, "size": 1, "format": INLINE},
    "fifo with a size": {"mode": stat.S_IFIFO, "size": 1},
    "fifo with chunks": {"mode": stat.S_IFIFO, "format": erofs.inode_format(DataLayout.CHUNK_BASED)},
    "directory with chunks": {
        "mode": stat.S_IFDIR,
        "format": erofs.inode_format(DataLayout.CHUNK_BASED),
    },
}


@pytest.mark.parametrize("lie", INODES)
def test_inode_that_lies(section, mounted, lie):
    nid = section.inode(**{"mode": stat.S_IFREG | 0o644} | INODES[lie])
    filesystem = mounted(with_file(section, nid))
    with pytest.raises(FormatError):
        filesystem.attributes(nid)
    assert [entry.name for entry in filesystem.directory(filesystem.root)] == [b".", b"..", b"entry"]


def test_inline_file_that_crosses_its_block(section, mounted):
    nid = section.reserve()
    room = BLOCK - (nid * 32 + 64) % BLOCK
    section.inode(stat.S_IFREG | 0o644, nid=nid, size=room + 1, format=INLINE)
    filesystem = mounted(with_file(section, nid))
    assert filesystem.attributes(nid).size == room + 1
    for read in (filesystem.try_read, filesystem.read):
        with pytest.raises(FormatError, match="crosses a block boundary"):
            read(nid, 0, 1)


def test_inline_file_shows_no_more_than_its_size(section, mounted):
    """Others' bytes lie behind it; they are authentic, but not the file's."""
    nid = section.inode(stat.S_IFREG | 0o644, size=5, format=INLINE, behind=b"fivesECRET")
    filesystem = mounted(with_file(section, nid), hostile=False)
    for offset, size in ((0, 1 << 62), (0, 10), (4, 10)):
        assert b"".join(filesystem.read(nid, offset, size)) == b"fives"[offset:]
    assert filesystem.read(nid, 5, 10) == filesystem.try_read(nid, 1 << 62, 10) == []


def test_inline_files_that_overlap_end_the_check(mounted, tmp_path):
    """Each one's bytes are the next ones' inodes: together they are larger than the metadata."""
    nids, section = overlapping(200)
    filesystem = mounted(section)
    assert len(filesystem.read(nids[0], 0, 1 << 20)[0]) == BLOCK - (nids[0] * 32 + 64) % BLOCK
    result = check_image(put(seal(section.pack()), tmp_path / "again"), RING, NO_POLICY)
    assert any("overlap" in str(problem.error) for problem in result.problems.kept)


def overlapping(count):
    """So many inline files, each to the end of its block, all with a name; returns (nids, section)."""
    section = ForgedSection(inode_blocks=16)
    nids = [section.reserve() for _ in range(count)]
    for nid in nids:
        size = BLOCK - (nid * 32 + 64) % BLOCK
        section.inode(stat.S_IFREG | 0o644, nid=nid, size=size % BLOCK, format=INLINE)
    names = [(b"%03d" % number, nid, REGULAR) for number, nid in enumerate(nids)]
    section.directory(names, nid=section.root)
    return nids, section


EXTREMES = {
    "mtime": 2**63 - 1,
    "mtime_nsec": 999_999_999,
    "uid": 2**32 - 1,
    "gid": 2**32 - 1,
    "nlink": 2**32 - 1,
    "ino": 2**32 - 1,
    "reserved": 2**16 - 1,
}


@pytest.mark.parametrize("mtime", [2**63 - 1, -(2**63)])
def test_inode_of_extremes(section, mounted, mtime):
    nid = section.inode(stat.S_IFBLK | 0o7777, union=2**32 - 1, **EXTREMES | {"mtime": mtime})
    found = mounted(with_file(section, nid, FileType.BLOCK)).attributes(nid)
    assert (found.uid, found.gid, found.nlink) == (2**32 - 1,) * 3
    assert found.mtime_ns == mtime * 10**9 + 999_999_999


# --- Symlinks -----------------------------------------------------------------------------------------------

SYMLINKS = {
    "empty": {},
    "with a NUL": {"format": INLINE, "size": 3, "behind": b"a\0b"},
    "too long": {"size": SYMLINK_BYTES_MAX + 1, "union": 1},
    "much too long": {"size": 2**40, "union": 1},
    "outside": {"size": 10, "union": 2**32 - 1},
    "just outside": {"size": 10, "union": 8},
    "inline across a block": {"format": INLINE, "size": 4000},
}


@pytest.mark.parametrize("lie", SYMLINKS)
def test_symlink_that_lies(section, mounted, lie):
    nid = section.inode(stat.S_IFLNK | 0o777, **SYMLINKS[lie])
    filesystem = mounted(with_file(section, nid, SYMLINK))
    with pytest.raises(FormatError):
        filesystem.readlink(nid)


# --- Files --------------------------------------------------------------------------------------------------


def test_file_of_the_largest_size_that_is_all_hole(section, mounted):
    """2^63 - 1 bytes out of a few chunk indexes: every read costs what it returns."""
    nid = section.file(FILE_SIZE_MAX, [(0, NULL_BLOCK)] * 4, bits=31)
    filesystem = mounted(with_file(section, nid))
    assert filesystem.attributes(nid).size == FILE_SIZE_MAX
    assert [bytes(part) for part in filesystem.read(nid, 2**43 - 10, 20)] == [bytes(10), bytes(10)]
    with pytest.raises(FormatError, match="outside its section"):
        filesystem.read(nid, FILE_SIZE_MAX - 10, 20)
    assert filesystem.read(nid, FILE_SIZE_MAX, 20) == []


def test_file_of_holes_as_a_dictionary(tmp_path):
    """A build that reads it for what could be shared must not look at 2^53 bytes piece by piece."""
    section = ForgedSection(inode_blocks=4)
    with_file(section, section.file(2**53, [(0, NULL_BLOCK)] * 1024, bits=31))
    dictionary = put(seal(section.pack(feature_incompat=4)), tmp_path / "dictionary")
    assert not check_fails(dictionary)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"anything")
    reference = build(tmp_path / "tree", tmp_path / "image", dictionaries=[dictionary])
    assert len(read_image(reference)) == 3


FILES = {
    "device 0": ([(0, 0)], {}),
    "device that is not there": ([(2, 0)], {}),
    "last device": ([(2**16 - 1, 0)], {}),
    "block behind the blob": ([(1, 1)], {}),
    "last block": ([(1, 2**32 - 2)], {}),
    "no indexes": ([(1, 0)], {"union": 0}),
    "unknown chunk format": ([(1, 0)], {"union": CHUNK_FORMAT_INDEXES | 0x40}),
    "wild chunk format": ([(1, 0)], {"union": 2**32 - 1}),
    "chunk larger than the blob": ([(1, 0)], {"bits": 1, "size": 2 * BLOCK}),
    "indexes that are not there": ([], {"size": 2**40}),
}


@pytest.mark.parametrize("lie", FILES)
def test_file_that_lies(lie, mounted):
    indexes, fields = FILES[lie]
    section = ForgedSection(devices=[1])
    nid = section.file(**{"size": BLOCK, "indexes": indexes} | fields)
    filesystem = mounted(with_file(section, nid), [plain_blob(Suite.AES_256_GCM, bytes(BLOCK))])
    with pytest.raises(FormatError):
        filesystem.read(nid, filesystem.attributes(nid).size - 1, 1)


def test_chunk_index_with_high_bits(mounted):
    section = ForgedSection(devices=[1])
    index = erofs.CHUNK_INDEX.pack(erofs.ChunkIndex(1, 1, 0))
    nid = section.inode(
        stat.S_IFREG,
        format=erofs.inode_format(DataLayout.CHUNK_BASED),
        size=BLOCK,
        union=CHUNK_FORMAT_INDEXES,
        behind=index,
    )
    filesystem = mounted(with_file(section, nid), [plain_blob(Suite.AES_256_GCM, bytes(BLOCK))])
    with pytest.raises(FormatError):
        filesystem.read(nid, 0, 1)


# --- Extended attributes ------------------------------------------------------------------------------------


def xattr(name_length, name_index, value_size, body=b""):
    return erofs.XATTR_ENTRY.pack(erofs.XattrEntry(name_length, name_index, value_size)) + body


def header(shared=0, *ids):
    return erofs.XATTR_HEADER.pack(erofs.XattrHeader(0, shared)) + b"".join(
        number.to_bytes(4, "little") for number in ids
    )


AREAS = {
    "value overruns": header() + xattr(1, 1, 100, b"a"),
    "name overruns": header() + xattr(255, 1, 0, b"a"),
    "cut off inside an entry": header() + xattr(1, 1, 3, b"abcd") + b"\0\0",
    "unknown prefix": header() + xattr(1, 99, 3, b"abcd"),
    "prefix 0": header() + xattr(1, 0, 3, b"abcd"),
    "empty name": header() + xattr(0, 1, 4, b"abcd"),
    "name behind an ACL": header() + xattr(1, 2, 3, b"abcd"),
    "NUL in the name": header() + xattr(2, 1, 2, b"\0bcd"),
    "more shared ones than fit": header(255, 0),
    "shared one far away": header(1, 2**32 - 1),
    "shared one behind the end": header(1, 8 * BLOCK // 4),
    "shared one at the very end": header(1, 8 * BLOCK // 4 - 1),
}


@pytest.mark.parametrize("lie", AREAS)
def test_xattr_area_that_lies(section, mounted, lie):
    area = AREAS[lie].ljust(erofs.align(len(AREAS[lie]), 4), b"\0")
    icount = (len(area) - erofs.XATTR_HEADER.size) // 4 + 1
    nid = section.inode(stat.S_IFREG, xattr_icount=icount, behind=area)
    section.place(8 * BLOCK - 4, xattr(200, 1, 60000))
    filesystem = mounted(with_file(section, nid))
    with pytest.raises(FormatError):
        filesystem.xattr_names(nid)
    with pytest.raises(FormatError):
        filesystem.xattr(nid, b"user.none")
    assert filesystem.attributes(nid).size == 0, "the rest of the inode is fine"


@pytest.mark.parametrize("icount", [200, 2000, 2**16 - 1])
def test_xattr_area_larger_than_its_section(section, mounted, icount):
    nid = section.inode(stat.S_IFREG, xattr_icount=icount)
    filesystem = mounted(with_file(section, nid))
    assert isinstance(fails(filesystem.xattr_names, nid), RafsError | None)
    assert filesystem.attributes(nid).size == 0


def test_all_shared_attributes_at_once_are_bounded(mounted):
    """255 times the largest value is what one inode can ask for."""
    section = ForgedSection()
    entry = xattr(1, 1, 2**16 - 1, b"a") + bytes(2**16)
    block = section.block(entry)
    nid = section.inode(stat.S_IFREG, xattr_icount=256, behind=header(255, *[0] * 255))
    filesystem = mounted(with_file(section, nid), xattr_blkaddr=block)
    assert filesystem.xattr_names(nid) == [b"user.a"] * 255
    assert filesystem.xattr(nid, b"user.a") == bytes(2**16 - 1)


# --- The EROFS superblock -----------------------------------------------------------------------------------

SUPERBLOCKS = {
    "magic": ({"magic": 0}, FormatError),
    "block size": ({"block_bits": 9}, UnsupportedVersion),
    "wild block size": ({"block_bits": 255}, UnsupportedVersion),
    "feature": ({"feature_incompat": 1}, UnsupportedVersion),
    "all features": ({"feature_incompat": 2**32 - 1}, UnsupportedVersion),
    "more devices": ({"extra_devices": 1}, FormatError),
    "wild devices": ({"extra_devices": 2**16 - 1}, FormatError),
    "root in the superblock": ({"root_nid": 32}, FormatError),
    "root 0": ({"root_nid": 0}, FormatError),
    "root behind the end": ({"root_nid": 2**16 - 1}, FormatError),
    "root that is no inode": ({"root_nid": 38}, FormatError),
    "metadata elsewhere": ({"meta_blkaddr": 2**32 - 1}, FormatError),
}


@pytest.mark.parametrize("lie", SUPERBLOCKS)
def test_erofs_superblock_that_lies(section, read, lie):
    fields, expected = SUPERBLOCKS[lie]
    section.directory([], nid=section.root)
    with pytest.raises(expected):
        read(section, **fields)


def test_root_that_is_a_file(section, read):
    section.inode(stat.S_IFREG, nid=section.root)
    with pytest.raises(FormatError, match="not a directory"):
        read(section)


def test_counts_that_nobody_goes_by(section, read):
    section.directory([], nid=section.root)
    assert len(read(section, inode_count=2**64 - 1, blocks=2**32 - 1, xattr_blkaddr=2**32 - 1)) == 2
