"""Counting of requests: what lands in which bucket, and that the server counts each request once."""

import pytest
from support import fuse_wire as wire
from support.fuse_memory import small_tree
from support.fuse_wire import read, request

from rafsfs.fuse.pending import Pending
from rafsfs.fuse.server import FuseServer, ServerOptions
from rafsfs.fuse.statistics import SUM, WAITED, RequestStatistics

HELLO, NOWHERE = 2, 999


@pytest.mark.parametrize(
    ("took_ns", "bound_us"),
    [(0, 1), (999, 1), (1000, 2), (1999, 2), (2000, 4), (3_999, 4), (1_000_000, 1024), (1 << 62, 1 << 53)],
)
def test_bucket_is_the_next_power_of_two_microseconds(took_ns, bound_us):
    statistics = RequestStatistics()
    statistics.add("read", took_ns)
    assert statistics.row("read")[SUM] == took_ns
    assert statistics.latencies()["read"].buckets == ((bound_us, 1),)


def test_rows_are_kept_by_name_and_shown_when_something_was_counted():
    statistics = RequestStatistics()
    assert statistics.row("read") is statistics.row("read")
    statistics.row("lookup")
    for took_ns in (500, 700, 5_000):
        statistics.add("read", took_ns)
    assert list(statistics.latencies()) == ["read"]
    read_latencies = statistics.latencies()["read"]
    assert read_latencies.requests == 3
    assert read_latencies.seconds == pytest.approx(6.2e-6)
    assert read_latencies.buckets == ((1, 2), (8, 1))


@pytest.fixture
def tree():
    return small_tree()


@pytest.fixture
def server(tree):
    server = FuseServer(tree, ServerOptions())
    server.handle(wire.init())
    return server


def counted(server):
    return {name: found.requests for name, found in server.statistics.latencies().items()}


def test_each_request_counts_once_under_its_opcode_and_failures_as_well(server):
    server.handle(request(wire.LOOKUP, b"hello\0"))
    server.handle(request(wire.LOOKUP, b"nothing\0"))
    server.handle(request(wire.GETATTR, bytes(16), node=NOWHERE))
    server.handle(read(HELLO, 0, 5))
    assert counted(server) == {"init": 1, "lookup": 2, "getattr": 1, "read": 1}


def test_what_is_no_request_of_ours_is_not_counted(server):
    before = counted(server)
    server.handle(b"")
    server.handle(request(wire.WRITE, bytes(40)))
    server.handle(request(2**32 - 1))
    assert counted(server) == before


@pytest.mark.parametrize("end", ["run", "interrupted"])
def test_a_read_that_waits_counts_when_it_is_answered_and_only_then(server, tree, end):
    tree.cold.add(HELLO)
    pending = server.handle(read(HELLO, 0, 5))
    assert isinstance(pending, Pending)
    assert counted(server) == {"init": 1}
    getattr(pending, end)()
    pending.run()
    assert counted(server) == {"init": 1, WAITED: 1}
