"""What the private mount of the kernel EROFS mode shows: sizes, bytes, zeros where there are none, errors."""

import errno
import shutil
import stat

import pytest
from blake3 import blake3
from support.fuse_client import FuseClient
from support.images import build, export_erofs, opened
from support.mounts import chunk_place, flip
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import DigestMismatch, FormatError
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Codec, Suite
from rafsfs.format.erofs import FileType
from rafsfs.frontends.kernel_erofs import meta_path_of
from rafsfs.frontends.kernel_erofs_devices import FLAT_SUFFIX, Devices
from rafsfs.frontends.kernel_erofs_faults import FaultReporter, find_holder
from rafsfs.frontends.kernel_erofs_spaces import DecodedSpace, Part
from rafsfs.fuse.server import FuseServer, ServerOptions
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.engine import Blob, ReadEngine
from rafsfs.reading.page_cache import PageCache
from rafsfs.store.reference import Reference

BLOCK = 4096
CHUNK = 16 * 1024
META_PATH = b"rafsfs:/images/tree:latest"
ROOT = 1


def planned(path, *segments):
    return Planned(path, FileType.REGULAR, segments=tuple(Segment(*segment) for segment in segments))


TREE = (
    Planned(b"", FileType.DIRECTORY),
    planned(b"large", (9 * CHUNK + 100, 1)),
    planned(b"shared one", (3 * CHUNK, 3)),
    planned(b"shared two", (CHUNK, 5), (3 * CHUNK, 3)),
    *(planned(b"small%02d" % number, (100 * number + 1, number)) for number in range(40)),
)
BASE = (Planned(b"", FileType.DIRECTORY), planned(b"base", (20 * CHUNK + 5, 7)), planned(b"other", (7000, 9)))
DERIVED = (
    *TREE,
    # All but a piece in the middle is in the dictionary already, so parts of its decoded space are nobody's.
    planned(b"derived", (CHUNK * 4, 7)),
)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    base = build(PlannedSource(BASE), folder / "base", chunk_size=CHUNK)
    return (
        build(PlannedSource(TREE), folder / "tree", chunk_size=CHUNK),
        build(PlannedSource(DERIVED), folder / "derived", chunk_size=CHUNK, dictionaries=[base]),
    )


@pytest.fixture(params=[0, 1], ids=["one blob", "a dictionary's blob as well"])
def image(references, request):
    with opened(references[request.param]) as image:
        yield image


def served(image):
    """A client of the devices of an image, and the list of what is reported."""
    reports = []
    devices = Devices(image, META_PATH, lambda error, parts: reports.append((error, parts)))
    return FuseClient(FuseServer(devices, ServerOptions(xattrs=False))), reports


def test_all_bytes_are_those_of_the_exported_devices(image, tmp_path):
    metadata, devices = export_erofs(image, tmp_path)
    client, reports = served(image)
    names = {META_PATH: metadata} | {b"%d" % number: device for number, device in enumerate(devices)}
    for name, file in names.items():
        content = file.read_bytes().ljust(-(-file.stat().st_size // BLOCK) * BLOCK, b"\0")
        node = client.find(name)
        for size in (BLOCK, 3 * BLOCK, 1 << 20):
            read = b"".join(client.read(node, offset, size) for offset in range(0, len(content), size))
            assert read == content, (name, size)
        for offset, size in ((1, 1), (BLOCK - 1, 2), (CHUNK - 3, 7), (len(content) - 5, 100)):
            assert client.read(node, offset, size) == content[offset : offset + size]
        assert client.read(node, len(content), BLOCK) == b""
        assert client.read(node, 1 << 62, BLOCK) == b""
    assert reports == []


def test_all_in_one_is_the_parts_one_behind_the_other_and_says_where_they_begin(image, tmp_path):
    metadata, devices = export_erofs(image, tmp_path)
    client, reports = served(image)
    parts = [bytearray(metadata.read_bytes()), *(device.read_bytes() for device in devices)]
    address = 0
    for number, part in enumerate(parts):
        assert len(part) % BLOCK == 0
        if number:
            # struct erofs_deviceslot: tag, blocks, mapped_blkaddr; the table starts behind the superblock.
            slot = 1024 + 128 + 128 * (number - 1)
            assert int.from_bytes(parts[0][slot + 64 : slot + 68], "little") * BLOCK == len(part)
            parts[0][slot + 68 : slot + 72] = (address // BLOCK).to_bytes(4, "little")
        address += len(part)
    content = b"".join(parts)
    node = client.find(META_PATH + FLAT_SUFFIX)
    assert client.getattr(node)[1] == len(content)
    for size in (512, 3 * BLOCK, 1 << 20):
        for start in (0, 1):
            read = b"".join(client.read(node, offset, size) for offset in range(start, len(content), size))
            assert read == content[start:]
    assert client.read(node, len(content), BLOCK) == b""
    assert reports == []


def test_the_dictionary_s_blob_has_parts_that_no_chunk_of_the_image_holds(references):
    with opened(references[1]) as image:
        dictionary = image.filesystem.engine.blobs[0].chunks
        held = sum(dictionary.record(index).decoded_length for index in range(len(dictionary)))
        assert held < image.opened.superblock.blobs[0].decoded_blocks * BLOCK - CHUNK


def test_sizes_are_whole_blocks_and_all_is_root_s(image):
    client, _ = served(image)
    blobs = image.opened.superblock.blobs
    for number, blob in enumerate(blobs):
        _, fields = client.lookup(ROOT, b"%d" % number)
        assert fields[1] == blob.decoded_blocks * BLOCK
    # The mount table shows the path of the metadata as the source, so each of its names has to be there.
    node, *nodes = [ROOT]
    for name in META_PATH.split(b"/"):
        node, fields = client.lookup(node, name)
        nodes.append(fields)
    assert nodes[-1][1] % BLOCK == 0
    assert nodes[-1][1] - image.opened.superblock.erofs.length in range(BLOCK)


def test_names_that_are_not_there(image):
    client, _ = served(image)
    for parent, name in ((ROOT, b"x"), (ROOT, b"%d" % len(image.opened.superblock.blobs)), (ROOT, b"images")):
        with pytest.raises(FileNotFoundError):
            client.lookup(parent, name)
    with pytest.raises(FileNotFoundError):
        client.lookup(client.find(b"rafsfs:"), b"0")


def test_every_request_about_every_node_is_answered(image):
    """Whatever is asked of whatever node: an answer or one of these errors, and nothing to report."""
    devices = Devices(image, META_PATH, lambda error, parts: pytest.fail(f"{error}, {parts}"))
    expected = {errno.EISDIR, errno.ESTALE, errno.EINVAL, errno.ENODATA, errno.ENOENT, errno.ENOTDIR}
    asked = (
        lambda node: devices.lookup(node, b"0"),
        lambda node: stat.filemode(devices.attributes(node)[1]),
        lambda node: list(devices.directory(node, 0)),
        devices.readlink,
        lambda node: devices.xattr(node, b"user.a"),
        lambda node: devices.try_read(node, 0, BLOCK),
        lambda node: devices.read(node, 0, BLOCK),
        lambda node: list(devices.extents(node, 0)),
    )
    for node in (0, *range(1, 12), 2**32, 2**64 - 1):
        for ask in asked:
            try:
                ask(node)
            except OSError as error:
                assert error.errno in expected
    assert devices.statfs()[0] == BLOCK
    names = [name for name, *_ in devices.directory(ROOT, 0)]
    assert names[:2] == [b".", b".."]
    assert {b"0", b"rafsfs:"} < set(names)
    assert [name for name, *_ in devices.directory(ROOT, 3)] == names[3:]


SOURCES = {
    "/images/tree:latest": b"rafsfs:/images/tree:latest",
    "/a//b/../c/./d@sha256:0": b"rafsfs:/a/b/c/d@sha256:0",
    "relative": b"rafsfs:/relative",
    "/\udcff\n": b"rafsfs:/\xff\n",
    "/" + "n" * 255 + ":latest": b"rafsfs:/.../" + b"n" * 221 + b":latest",
    "/d" * 2000: b"rafsfs:/..." + b"/d" * 114,
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_mount_table_shows_as_much_of_the_source_as_it_can(source):
    path = meta_path_of(source)
    assert path == SOURCES[source]
    assert len(path + FLAT_SUFFIX) <= 255
    assert all(0 < len(name) <= 255 and name not in (b".", b"..") for name in path.split(b"/"))


# --- Parts that no chunk holds ------------------------------------------------------------------------------


class MemoryFile:
    """A stored file in memory."""

    def __init__(self, content):
        self.name = "sha256:" + "0" * 64
        self.size = len(content)
        self._content = content

    def read_range(self, offset, length):
        return self._content[offset : offset + length]


class Gaps:
    """A blob of chunks at given places, (first block, length in bytes), and what its decoded space holds."""

    def __init__(self, chunks, blocks):
        self.content = bytearray(blocks * BLOCK)
        stored, records = b"", b""
        for number, (block, length) in enumerate(chunks):
            plain = bytes([number + 1]) * length
            self.content[block * BLOCK : block * BLOCK + length] = plain
            records += CHUNK_RECORD.pack(
                ChunkRecord(
                    block, length, len(stored), length, Codec.STORED, 0, blake3(plain).digest(), bytes(32)
                )
            )
            stored += plain
        suite = Suite.INTEGRITY_ONLY
        table = ChunkTable(
            lambda at, size: records[at : at + size], 0, len(chunks), suite, len(stored), blocks
        )
        engine = ReadEngine([Blob(MemoryFile(stored), table)], suite, PageCache(1 << 20))
        self.space = DecodedSpace(engine, 0, blocks)


LAYOUTS = {
    "no chunk": ((), 5),
    "all held": (((0, 3 * BLOCK), (3, 2 * BLOCK)), 5),
    "a gap at the start": (((2, BLOCK),), 3),
    "a gap at the end": (((0, BLOCK),), 4),
    "ends of blocks": (((0, 5), (1, BLOCK + 1), (3, 1)), 4),
    "gaps all over": (((1, 100), (3, 2 * BLOCK + 9), (7, BLOCK), (8, 1), (11, BLOCK)), 13),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_what_no_chunk_holds_reads_as_zeros(name, order):
    gaps = Gaps(*LAYOUTS[name])
    size = len(gaps.content)
    steps = sorted(
        {0, size, *(edge + d for edge in range(0, size, BLOCK) for d in (0, 1, 5, 100, BLOCK - 1))}
    )
    ranges = [(start, end) for start in steps for end in steps if start < end <= size]
    for start, end in ranges if order == "forwards" else reversed(ranges):
        for read in (gaps.space.read, gaps.space.try_read):  # the first one leaves it in the cache
            assert b"".join(read(start, end - start)) == gaps.content[start:end], (start, end)
    assert gaps.space.size == size


def test_a_record_that_cannot_be_is_an_error_and_no_gap():
    space = Gaps(((0, 2 * BLOCK), (1, BLOCK)), 5).space  # they overlap
    for read in (space.read, space.try_read):
        for block in (0, 1):
            with pytest.raises(FormatError, match="overlaps"):
                read(block * BLOCK, BLOCK)


def test_what_is_not_in_the_cache_is_not_there_without_waiting():
    space = Gaps(((1, BLOCK), (3, BLOCK)), 5).space
    assert space.try_read(0, 5 * BLOCK) is None
    assert b"".join(space.read(BLOCK, BLOCK)) == b"\x01" * BLOCK
    assert space.try_read(0, 3 * BLOCK) is not None
    assert space.try_read(0, 4 * BLOCK) is None


# --- Damage -------------------------------------------------------------------------------------------------


class FaultLines:
    """Stands for the log, and searches at once."""

    def __init__(self):
        self.found = []

    def report_search(self, error, place, met_in, search):
        self.found.append((met_in, search()))


def test_damage_is_reported_with_its_place_and_its_holder_is_found(tmp_path):
    reference = build(PlannedSource(TREE), tmp_path / "img", chunk_size=CHUNK)
    blob, index, offset, _ = chunk_place(reference, b"large", 2 * CHUNK)
    flip(blob, offset)
    with opened(reference) as image:
        client, reports = served(image)
        node = client.find(b"0")
        start = image.filesystem.engine.blobs[0].chunks.record(index).decoded_start
        with pytest.raises(OSError, match="Input/output error"):
            client.read(node, start - BLOCK, 3 * BLOCK)
        assert client.read(node, start - BLOCK, BLOCK)
        ((error, parts),) = reports
        assert isinstance(error, DigestMismatch)
        assert (error.where.chunk, error.where.offset) == (index, offset)
        assert parts == [Part(0, start - BLOCK, 3 * BLOCK)]
        nid = image.filesystem.lookup(image.filesystem.root, b"large")
        assert find_holder(image.filesystem, 0, start, start + 1) == (b"large", nid, 2 * CHUNK)


def test_damage_in_all_in_one_is_reported_with_the_blob_that_has_it(references, tmp_path):
    folder = tmp_path / "img"
    shutil.copytree(references[1].folder, folder)
    reference = Reference(folder, references[1].tag)
    blob, index, offset, _ = chunk_place(reference, b"small39")
    flip(blob, offset)
    reports = []
    with opened(reference) as image:
        devices = Devices(image, META_PATH, lambda error, parts: reports.append((error, parts)))
        client = FuseClient(FuseServer(devices, ServerOptions(xattrs=False)))
        node = client.find(META_PATH + FLAT_SUFFIX)
        sizes = [blob.decoded_blocks * BLOCK for blob in image.opened.superblock.blobs]
        end_of_first = client.getattr(node)[1] - sizes[1]
        chunk = image.filesystem.engine.blobs[1].chunks.record(index)
        with pytest.raises(OSError, match="Input/output error"):
            client.read(node, end_of_first - BLOCK, BLOCK + chunk.decoded_end)
        ((error, parts),) = reports
        assert parts == [Part(0, sizes[0] - BLOCK, BLOCK), Part(1, 0, chunk.decoded_end)]
        lines = FaultLines()
        FaultReporter(image.filesystem, lines)(error, parts)
        ((_, found),) = lines.found
        assert found.startswith("/small")


def test_damage_of_the_metadata_is_reported_as_such(tmp_path):
    reference = build(PlannedSource(TREE), tmp_path / "img", chunk_size=CHUNK)
    with opened(reference, cache_bytes=0) as image:
        client, reports = served(image)
        node = client.find(META_PATH)
        assert client.read(node, 0, BLOCK)
        stored = image.stored.manifest.bootstrap.digest.replace(":", "/")
        bootstrap = tmp_path / "img" / "blobs" / stored
        flip(bootstrap, bootstrap.stat().st_size - 20)
        with pytest.raises(OSError, match="Input/output error"):
            client.read(node, 0, BLOCK)
        ((error, parts),) = reports
        assert error.where.page is not None
        assert parts == [Part(None, 0, BLOCK)]


def test_other_trouble_is_reported_without_a_place(image):
    reports = []
    devices = Devices(image, META_PATH, lambda error, parts: reports.append((error, parts)))
    error = ValueError("x")
    devices.report(error, ROOT, None, None)
    devices.report(error, ROOT, 0, 1)
    assert reports == [(error, ())] * 2


def test_the_holder_is_the_first_file_of_those_that_share(image):
    find = image.filesystem.lookup
    nid = find(image.filesystem.root, b"shared one")
    extent = next(image.filesystem.extents(nid, CHUNK, 1))
    assert find_holder(image.filesystem, extent.blob, extent.start + 7, extent.start + 9) == (
        b"shared one",
        nid,
        CHUNK + 7,
    )
    small = find(image.filesystem.root, b"small39")
    extent = next(image.filesystem.extents(small, 0, 1))
    found = find_holder(image.filesystem, extent.blob, extent.start, extent.start + BLOCK)
    assert found == (b"small39", small, 0)
    assert find_holder(image.filesystem, extent.blob, 1 << 43, 1 << 44) is None
