"""READDIR and READDIRPLUS: entries byte for byte, cut to every size, listed to the end, damaged."""

import errno
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fuse_wire as wire
from support.fuse_memory import ROOT, MemoryHandler, os_error, small_tree
from support.fuse_wire import dirent, entry, failed, ok, read_in, request

from rafsfs.errors import MacMismatch
from rafsfs.fuse.server import FuseServer, ServerOptions

OPTIONS = ServerOptions(entry_timeout_s=1000, attr_timeout_s=2000)
DT_FIFO, DT_CHR, DT_DIR, DT_REG, DT_LNK, DT_SOCK = 1, 2, 4, 8, 10, 12  # dirent.h


def serving(handler):
    server = FuseServer(handler, OPTIONS)
    wire.joined(server.handle(wire.init()))
    return server


def listing(server, opcode, position, size, node=ROOT):
    message = wire.joined(server.handle(request(opcode, read_in(position, size), node=node)))
    assert struct.unpack_from("<i", message, 4) == (0,)
    return message[16:]


def names_and_positions(body, plus):
    """What a kernel reads out of a listing (fs/fuse/readdir.c)."""
    found, offset, skipped = [], 0, 128 if plus else 0
    while offset < len(body):
        node, position, length, kind = struct.unpack_from("<QQII", body, offset + skipped)
        start = offset + skipped + 24
        found.append((body[start : start + length], node, position, kind))
        offset = start + length + -length % 8
        assert offset % 8 == 0
    assert offset == len(body)
    return found


def test_names_come_with_position_and_type():
    expected = b"".join(
        [
            dirent(3, 10, DT_DIR, b"."),
            dirent(1, 20, DT_DIR, b".."),
            dirent(4, 30, DT_LNK, b"link"),
            dirent(5, 40, DT_REG, b"sparse"),
            dirent(6, 50, DT_CHR, b"null"),
            dirent(7, 60, DT_FIFO, b"pipe"),
            dirent(8, 70, DT_REG, b"n" * 255),
        ]
    )
    question = request(wire.READDIR, read_in(0, 4096), node=3)
    assert wire.joined(serving(small_tree()).handle(question)) == ok(expected)


def test_names_come_with_attributes_where_there_are_any():
    handler = small_tree()
    nothing = bytes(128)

    def with_attributes(node):
        return entry(node, handler.inodes[node], 1000, 2000)

    expected = b"".join(
        [
            nothing + dirent(1, 10, DT_DIR, b"."),
            nothing + dirent(1, 20, DT_DIR, b".."),
            with_attributes(2) + dirent(2, 30, DT_REG, b"hello"),
            with_attributes(3) + dirent(3, 40, DT_DIR, b"dir"),
            with_attributes(9) + dirent(9, 50, DT_REG, b"cold"),
            with_attributes(10) + dirent(10, 60, DT_REG, b"damaged"),
            nothing + dirent(11, 70, DT_SOCK, b"lost"),
        ]
    )
    question = request(wire.READDIRPLUS, read_in(0, 4096))
    assert wire.joined(serving(handler).handle(question)) == ok(expected)
    assert [(node, str(error)) for error, node, *_ in handler.reports] == [(11, "not an inode")]


def test_name_of_another_type_than_its_inode_comes_without_attributes():
    """Whoever looks it up is told by the handler; the kernel must not take the listing's word."""
    handler = small_tree()
    handler.directory = lambda node, position: iter([(b"hello", 2, stat.S_IFDIR, 10)])
    expected = bytes(128) + dirent(2, 10, DT_DIR, b"hello")
    question = request(wire.READDIRPLUS, read_in(0, 4096))
    assert wire.joined(serving(handler).handle(question)) == ok(expected)
    assert handler.reports == []


@pytest.mark.parametrize(("opcode", "smallest"), [(wire.READDIR, 32), (wire.READDIRPLUS, 160)])
def test_listing_never_exceeds_its_size_and_never_ends_early(opcode, smallest):
    server = serving(small_tree())
    plus = opcode == wire.READDIRPLUS
    whole = names_and_positions(listing(server, opcode, 0, 4096), plus)
    for size in range(2000):
        message = wire.joined(server.handle(request(opcode, read_in(0, size))))
        if size < smallest:
            assert message == failed(errno.EINVAL)
            continue
        assert 16 < len(message) <= 16 + size
        found = names_and_positions(message[16:], plus)
        assert found == whole[: len(found)]


@pytest.mark.parametrize("opcode", [wire.READDIR, wire.READDIRPLUS])
@given(
    names=st.lists(st.binary(min_size=1, max_size=255).filter(lambda name: 0 not in name), unique=True),
    size=st.integers(128 + 24 + 256, 3000),
)
def test_listing_goes_on_where_it_ended_in_any_server(opcode, names, size):
    names = [name for name in names if name not in (b".", b"..")]
    handler = MemoryHandler()
    for node, name in enumerate(names, 2):
        handler.add(node, ROOT, name, stat.S_IFREG | 0o644)
    found, position = [], 0
    while body := listing(serving(handler), opcode, position, size):
        found += names_and_positions(body, opcode == wire.READDIRPLUS)
        position = found[-1][2]
    assert [name for name, *_ in found] == [b".", b"..", *names]
    assert [node for _, node, *_ in found] == [1, 1, *range(2, 2 + len(names))]


def test_huge_buffers_are_filled_in_bounded_pieces():
    handler = MemoryHandler()
    for node in range(2, 4000):
        handler.add(node, ROOT, b"%060d" % node, stat.S_IFREG | 0o644)
    server = serving(handler)
    body = listing(server, wire.READDIRPLUS, 0, 2**32 - 1)
    assert 2**16 < len(body) <= 2**17
    found = names_and_positions(body, plus=True)
    following = names_and_positions(listing(server, wire.READDIRPLUS, found[-1][2], 2**32 - 1), plus=True)
    assert int(following[0][0]) == int(found[-1][0]) + 1


@pytest.mark.parametrize("opcode", [wire.READDIR, wire.READDIRPLUS])
@pytest.mark.parametrize(
    ("failure", "code"), [(MacMismatch("page's tag"), errno.EIO), (os_error(errno.EACCES), errno.EACCES)]
)
def test_names_before_a_damage_are_listed_and_the_damage_is_met_behind_them(opcode, failure, code):
    handler = small_tree()
    handler.faults["entry", 9] = failure
    server = serving(handler)
    found = names_and_positions(listing(server, opcode, 0, 4096), opcode == wire.READDIRPLUS)
    assert [name for name, *_ in found] == [b".", b"..", b"hello", b"dir"]
    assert handler.reports == []
    question = request(opcode, read_in(found[-1][2], 4096))
    assert wire.joined(server.handle(question)) == failed(code)


@pytest.mark.parametrize(
    "odd",
    [
        (b"n" * 300, 2, stat.S_IFREG, 10),
        (b"n", -1, stat.S_IFREG, 10),
        (b"n", 2, -1, 10),
        ("n", 2, 0, 10),
        (b"n", 2),
    ],
    ids=str,
)
def test_entry_that_no_record_can_hold_fails_its_request_only(odd):
    handler = small_tree()
    handler.directory = lambda node, position: iter([odd])
    server = serving(handler)
    assert wire.joined(server.handle(request(wire.READDIR, read_in(0, 4096)))) == failed(errno.EIO)
    assert len(handler.reports) == 1
