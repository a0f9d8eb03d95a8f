"""Images served by the FUSE server, read by its messages alone: equal trees, waits, damage, any node."""

import errno
import os
import random
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fuse_wire as wire
from support.fuse_client import ROOT, FuseClient
from support.images import build, opened
from support.mounts import chunk_place, flip
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, plans

from rafsfs.errors import MacMismatch, RafsError
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.frontends.fuse_handler import FileSystemHandler
from rafsfs.frontends.mount_options import Owner
from rafsfs.fuse.server import FuseServer, Pending, ServerOptions
from rafsfs.limits import KIB

CHUNK = 8 * KIB
BIG = Segment(100_000, 2)
TINY = Segment(100, 5)
PLAN = (
    Planned(b"", FileType.DIRECTORY, mtime_ns=5),
    Planned(b"big", FileType.REGULAR, 0o640, uid=7, gid=8, mtime_ns=-1, segments=(BIG,)),
    Planned(
        b"sparse",
        FileType.REGULAR,
        segments=(Segment(64 * KIB, None), Segment(64 * KIB, 1), Segment(60 * KIB, None), Segment(9, 3)),
    ),
    Planned(b"tiny", FileType.REGULAR, segments=(TINY,)),
    Planned(b"dir", FileType.DIRECTORY, 0o2775),
    Planned(b"dir/link", FileType.SYMLINK, 0o777, target=b"../big"),
    Planned(b"dir/null", FileType.CHARACTER, 0o666, rdev=(1, 3)),
    Planned(b"dir/last", FileType.BLOCK, 0o600, rdev=(0xFFF, 0xFFFFF)),
    Planned(b"many", FileType.DIRECTORY),
    *(Planned(b"many/%03d" % number, FileType.FIFO, uid=number) for number in range(300)),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), chunk_size=CHUNK)


@pytest.fixture
def image(reference):
    with opened(reference) as image:
        yield image


def serving(image, owner=None, reports=None):
    reports = [] if reports is None else reports
    handler = FileSystemHandler(image.filesystem, owner or Owner(), lambda *report: reports.append(report))
    return FuseServer(handler, ServerOptions())


def client(image, **options):
    return FuseClient(serving(image, **options))


def test_tree_is_the_planned_one(image):
    reports = []
    assert_same_tree(client(image, reports=reports).tree(), expected(PLAN))
    assert reports == []


@settings(max_examples=25)
@given(plan=plans(on_disk=False), suite=st.sampled_from(Suite))
def test_any_tree_is_the_planned_one(plan, suite):
    with tempfile.TemporaryDirectory() as folder:
        reference = build(PlannedSource(plan), Path(folder), suite=suite, chunk_size=CHUNK)
        with opened(reference) as image:
            assert_same_tree(client(image).tree(), expected(plan))


def test_inode_numbers_are_node_ids(image):
    reader = client(image)
    assert reader.getattr(ROOT)[0] == ROOT
    for name, node, attr in reader.listing(ROOT):
        assert (
            attr[0]
            == node
            == reader.lookup(ROOT, name)[0]
            == image.filesystem.lookup(image.filesystem.root, name)
        )
        if stat.S_ISDIR(attr[9]):
            assert reader.lookup(node, b"..")[0] == ROOT


@pytest.mark.parametrize("owner", [Owner(uid=1), Owner(gid=2**32 - 2), Owner(0, 0)])
def test_owner_of_the_mount_replaces_the_images(image, owner):
    found = client(image, owner=owner).tree()
    plan = expected(PLAN)
    for path, item in plan.items():
        assert found[path].uid == (item.uid if owner.uid is None else owner.uid)
        assert found[path].gid == (item.gid if owner.gid is None else owner.gid)
        assert found[path].mode == item.mode


def test_read_waits_once(image):
    reader = client(image)
    node = reader.find(b"big")
    content = BIG.plain()
    assert reader.read(node, 5000, 7000) == content[5000:12_000]
    assert reader.waits == 1
    assert reader.read(node, 5001, 100) == content[5001:5101]
    assert reader.waits == 1
    assert reader.read(node, 99_990, 4096) == content[99_990:]
    assert reader.waits == 2
    assert reader.read(node, 100_000, 4096) == b""
    assert reader.waits == 2


def test_cached_bytes_are_passed_on_uncopied(image):
    server = serving(image)
    node = FuseClient(server).find(b"big")
    question = wire.read(node, 0, 4096)
    pending = server.handle(question)
    assert isinstance(pending, Pending)
    assert b"".join(pending.run()[1:]) == BIG.plain()[:4096]
    _, part = server.handle(question)
    _, again = server.handle(question)
    assert part.obj is again.obj
    assert len(part.obj) == CHUNK


def test_holes_are_found(image):
    reader = client(image)
    node = reader.find(b"sparse")
    data, hole = 64 * KIB, 128 * KIB
    assert reader.seek(node, 0, 3) == data
    assert reader.seek(node, 5, 4) == 5
    assert reader.seek(node, data + 1, 3) == data + 1
    assert reader.seek(node, data + 1, 4) == hole
    tail = reader.seek(node, hole, 3)
    assert hole < tail <= 188 * KIB
    assert reader.seek(node, tail, 4) == 188 * KIB + 9
    for offset in (188 * KIB + 9, 2**63, 2**64 - 1):
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            reader.seek(node, offset, 3)


def test_what_lies_in_the_metadata_is_answered_at_once(image):
    server = serving(image)
    reader = FuseClient(server)
    node = reader.find(b"tiny")
    answer = server.handle(wire.read(node, 10, 4096))
    assert not isinstance(answer, Pending)
    assert b"".join(answer[1:]) == TINY.plain()[10:]
    assert (reader.seek(node, 10, 3), reader.seek(node, 10, 4)) == (10, 100)


def test_damaged_chunk_costs_its_readers_an_error_and_nobody_else(tmp_path):
    reference = build(PlannedSource(PLAN), tmp_path, chunk_size=CHUNK)
    blob, chunk, start, length = chunk_place(reference, b"big", 3 * CHUNK)
    flip(blob, start + length // 2)
    reports = []
    with opened(reference) as image:
        reader = client(image, reports=reports)
        node = reader.find(b"big")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            reader.read(node, 3 * CHUNK - 10, 100)
        [(error, nid, offset, size)] = reports
        assert isinstance(error, RafsError)
        assert error.where.chunk == chunk
        assert (nid, offset, size) == (node, 3 * CHUNK - 10, 100)
        assert reader.read(node, 4 * CHUNK, 100) == BIG.plain()[4 * CHUNK : 4 * CHUNK + 100]


def test_damaged_inode_keeps_its_name_and_hides_no_other(image, monkeypatch):
    reader = client(image, reports=(reports := []))
    broken = reader.find(b"many/123")
    attributes = image.filesystem.attributes

    def attributes_but_one(nid):
        if nid == broken:
            raise MacMismatch("page's tag")
        return attributes(nid)

    monkeypatch.setattr(image.filesystem, "attributes", attributes_but_one)
    found = {name: node for name, node, _ in reader.listing(reader.find(b"many"))}
    assert list(found) == [b"%03d" % number for number in range(300)]
    assert [name for name, node in found.items() if not node] == [b"123"]
    assert [(nid, type(error)) for error, nid, *_ in reports] == [(broken, MacMismatch)]


def test_listing_goes_on_in_the_server_after_a_restart(reference):
    found, position = [], 0
    while True:
        with opened(reference) as image:
            reader = client(image)
            node = reader.find(b"many")
            body = reader.ask(wire.READDIR, wire.read_in(position, 500), node=node)
        if not body:
            break
        while body:
            _, position, length, _ = struct.unpack_from("<QQII", body)
            found.append(body[24 : 24 + length])
            body = body[24 + length + -length % 8 :]
    assert found == [b".", b"..", *(b"%03d" % number for number in range(300))]


def test_any_node_is_survived(image):
    """A guest may ask for any number; what is no inode is an error, and the server goes on."""
    server = serving(image, reports=(reports := []))
    reader = FuseClient(server)
    chance = random.Random(1)
    inodes = {
        ROOT,
        int(image.filesystem.root),
        *(node for _, node, _ in reader.listing(reader.find(b"many"))),
    }
    nodes = [*range(70), 2**31, 2**32, 2**58, 2**59, 2**63, 2**64 - 1]
    nodes += [chance.randrange(2 ** chance.randrange(1, 65)) for _ in range(200)]
    questions = [
        (wire.LOOKUP, b"x\0"),
        (wire.LOOKUP, b"..\0"),
        (wire.GETATTR, bytes(16)),
        (wire.READLINK, b""),
        (wire.READ, wire.read_in(0, 4096)),
        (wire.READ, wire.read_in(2**64 - 1, 4096)),
        (wire.READDIRPLUS, wire.read_in(0, 4096)),
        (wire.READDIR, wire.read_in(2**64 - 1, 4096)),
        (wire.LISTXATTR, bytes(8)),
        (wire.GETXATTR, bytes(8) + b"user.a\0"),
        (wire.LSEEK, struct.pack("<QQII", 0, 2**64 - 1, 3, 0)),
    ]
    for node in nodes:
        for opcode, body in questions:
            outcome = server.handle(wire.request(opcode, body, node=node))
            wire.joined(outcome.run() if isinstance(outcome, Pending) else outcome)
    mistakes = [error for error, *_ in reports if not isinstance(error, RafsError)]
    assert mistakes == []
    for node in inodes:
        reader.getattr(node)


def test_import_needs_no_fuse_library_and_no_event_loop():
    """They cost half a second of a mount that does without them."""
    program = (
        "import sys, rafsfs.fuse.server, rafsfs.frontends.fuse_handler\n"
        "print(sorted({'pyfuse3', 'trio', 'asyncio'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
