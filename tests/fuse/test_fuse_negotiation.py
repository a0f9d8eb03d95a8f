"""INIT with old, new and odd kernels: what is agreed on, byte for byte."""

import errno
import json
import struct

import pytest
from support import fuse_wire as wire
from support.fuse_memory import small_tree
from support.fuse_wire import failed, ok

from rafsfs.fuse.abi import InitFlag
from rafsfs.fuse.negotiation import WANTED, Negotiated, ServerOptions
from rafsfs.fuse.server import FuseServer

LOW_WANTED = (
    *(0, 4, 13, 15, 17, 18, 20, 21, 22, 23, 24, 30),  # bits of linux/fuse.h, see WANTED
)
FLAGS = sum(1 << bit for bit in LOW_WANTED)
FLAGS2 = 1 << 8  # ALLOW_IDMAP is bit 40


def init_out(
    minor, readahead, flags, flags2, *, max_pages=256, max_write=60 * 1024, background=64, congested=48
):
    return struct.pack(
        "<IIIIHHIIHHIIH22x",
        *(7, minor, readahead, flags, background, congested, max_write, 1, max_pages, 0, flags2, 0, 0),
    )


def answered(question, options=None):
    handler = small_tree()
    server = FuseServer(handler, options or ServerOptions())
    outcome = server.handle(question)
    return server, wire.joined(outcome), handler.reports


KERNELS = [
    ("newest", wire.init(7, 45), init_out(41, 1 << 17, FLAGS, FLAGS2)),
    ("ours", wire.init(7, 41), init_out(41, 1 << 17, FLAGS, FLAGS2)),
    ("5.17", wire.init(7, 36), init_out(36, 1 << 17, FLAGS, FLAGS2)),
    ("of years to come", wire.init(7, 2**32 - 1), init_out(41, 1 << 17, FLAGS, FLAGS2)),
    ("reads far ahead", wire.init(readahead=2**32 - 1), init_out(41, 1 << 20, FLAGS, FLAGS2)),
    ("reads not ahead", wire.init(readahead=0), init_out(41, 0, FLAGS, FLAGS2)),
    (
        "longer INIT than we know",
        wire.request(wire.INIT, wire.init()[40:] + bytes(192), node=0, unique=2),
        init_out(41, 1 << 17, FLAGS, FLAGS2),
    ),
    (
        "without ACLs",  # then idmapped mounts would fail the mount
        wire.init(flags=wire.ALL_FLAGS & ~(1 << 20)),
        init_out(41, 1 << 17, FLAGS & ~(1 << 20), 0),
    ),
    ("flags2 without its flag", wire.init(flags=1), init_out(41, 1 << 17, 1, 0, max_pages=0)),
    ("5.4", wire.old_init(31, 0x03FF_FFFF), init_out(31, 1 << 17, FLAGS & ~wire.INIT_EXT, 0)),
    (
        "4.4",  # before MAX_PAGES, CACHE_SYMLINKS, POSIX_ACL, PARALLEL_DIROPS
        wire.old_init(23, 0x0003_FFFF),
        init_out(23, 1 << 17, 1 << 0 | 1 << 4 | 1 << 13 | 1 << 15 | 1 << 17, 0, max_pages=0),
    ),
    ("offers nothing", wire.old_init(23, 0), init_out(23, 1 << 17, 0, 0, max_pages=0)),
]


@pytest.mark.parametrize(("question", "body"), [row[1:] for row in KERNELS], ids=[row[0] for row in KERNELS])
def test_kernel_is_told_what_is_agreed_on(question, body):
    server, message, reports = answered(question)
    assert message == ok(body, unique=2)
    assert reports == []
    agreed = server.negotiated
    (_, minor, readahead, flags, background, congested, max_write, _, pages, _, flags2) = struct.unpack_from(
        "<IIIIHHIIHHI", body
    )
    assert agreed == Negotiated(
        minor=minor,
        offered=agreed.offered,
        flags=flags | flags2 << 32,
        max_readahead_bytes=readahead,
        max_write_bytes=max_write,
        max_pages=pages or 32,
        max_background=background,
        congestion_threshold=congested,
    )
    assert agreed.flags & ~agreed.offered == 0


def test_offered_flags_are_kept_for_the_front_end():
    server, *_ = answered(wire.init(flags=1 << 30, flags2=1 << 5))
    assert server.negotiated.offered == InitFlag.INIT_EXT | InitFlag.PASSTHROUGH
    assert not server.negotiated.opens_without_message
    assert not server.negotiated.opens_directories_without_message


def test_kernel_of_a_newer_major_asks_again():
    server, message, reports = answered(wire.init(8, 3))
    assert struct.unpack_from("<II", message, 16) == (7, 41)
    assert message[24:] == bytes(56)
    assert server.negotiated is None
    assert wire.joined(server.handle(wire.request(wire.STATFS))) == failed(errno.EIO)
    assert wire.joined(server.handle(wire.init(7, 45))) == ok(init_out(41, 1 << 17, FLAGS, FLAGS2), unique=2)
    assert reports == []


@pytest.mark.parametrize(
    "question", [wire.init(6, 99), wire.init(0, 0), wire.old_init(22, 0), wire.init(7, 0)]
)
def test_kernel_that_is_too_old_is_refused_with_words(question):
    server, message, reports = answered(question)
    assert message == failed(errno.EPROTO, unique=2)
    assert server.negotiated is None
    [(error, *_)] = reports
    assert "expected 7.23 or newer" in str(error)
    # It may be asked again, say by a guest that was updated.
    assert len(wire.joined(server.handle(wire.init()))) == 80


@pytest.mark.parametrize("question", [wire.init(), wire.init(7, 30), wire.old_init(35, wire.ALL_FLAGS)])
def test_cut_init_is_refused(question):
    needed = 104 if question[52] & 0x40 or len(question) == 104 else 56
    for length in range(40, needed):
        cut = struct.pack("<I", length) + question[4:length]
        server, message, reports = answered(cut)
        assert message == failed(errno.EINVAL, unique=2)
        assert server.negotiated is None
        assert reports == []


def test_connection_may_begin_again():
    server, *_ = answered(wire.init())
    for _ in range(3):
        assert wire.joined(server.handle(wire.init(unique=8))) == failed(errno.EIO, unique=8)
        assert wire.joined(server.handle(wire.request(wire.DESTROY, node=0))) == ok()
        assert len(wire.joined(server.handle(wire.old_init(31, 0)))) == 80
        assert server.negotiated.minor == 31


def test_options_bound_what_is_agreed_on():
    options = ServerOptions(
        max_readahead_bytes=4096,
        max_write_bytes=4096,
        max_pages=16,
        max_background=3,
        congestion_threshold=2,
        wanted=InitFlag.MAX_PAGES | InitFlag.ASYNC_READ | InitFlag.ALLOW_IDMAP,
    )
    _, message, _ = answered(wire.init(), options)
    body = init_out(41, 4096, 1 << 22 | 1, 0, max_pages=16, max_write=4096, background=3, congested=2)
    assert message == ok(body, unique=2)


@pytest.mark.parametrize(
    "bad",
    [
        {"entry_timeout_s": -1},
        {"attr_timeout_s": 2**32},
        {"max_write_bytes": 4095},
        {"max_pages": 0},
        {"max_pages": 2**16},
        {"congestion_threshold": 65},
        {"max_background": 2**16},
        {"max_readahead_bytes": 2**32},
    ],
)
def test_options_that_no_record_can_hold_are_a_mistake(bad):
    with pytest.raises(AssertionError):
        ServerOptions(**bad)


def test_buffers_have_room_for_the_largest_request():
    """Linux fs/fuse/dev.c, fuse_dev_do_read: header, fuse_write_in and max_write, at least 8192."""
    assert ServerOptions().request_bytes_max >= 40 + 40 + ServerOptions().max_write_bytes
    assert ServerOptions(max_write_bytes=4096).request_bytes_max == 8192


def test_agreement_can_be_handed_over_as_numbers():
    server, *_ = answered(wire.init())
    numbers = json.loads(json.dumps(server.negotiated))
    assert Negotiated(*numbers) == server.negotiated


def test_nothing_is_wanted_that_invalidates_caches():
    assert not WANTED & (1 << 12 | 1 << 14 | 1 << 16 | 1 << 25)  # AUTO_INVAL, PLUS_AUTO, WRITEBACK, EXPLICIT
