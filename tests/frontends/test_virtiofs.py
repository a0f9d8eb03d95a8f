"""The virtio-fs device over a real socket and shared memory: whole trees, late replies, hostile guests."""

import errno
import logging
import os
import queue
import struct
import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import fuse_wire as wire
from support import vhost_frontend as fe
from support.fuse_client import FuseClient
from support.fuse_memory import small_tree
from support.images import build, opened
from support.mounts import chunk_place, flip
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected
from support.vhost_frontend import D_WRITE, TIMEOUT_S
from support.vhost_server import BackEnd, open_files
from support.virtiofs_guest import HIPRIO, REQUESTS, Guest

from rafsfs.errors import WouldWait
from rafsfs.format.erofs import FileType
from rafsfs.frontends.fault_log import FaultLog, reporter
from rafsfs.frontends.fuse_handler import FileSystemHandler
from rafsfs.frontends.mount_options import Owner
from rafsfs.frontends.virtiofs import VirtioFs
from rafsfs.fuse.statistics import RequestStatistics
from rafsfs.limits import KIB
from vhost.model import LATER, Chain
from vhost.poller import Poller

PLAN = (
    Planned(b"", FileType.DIRECTORY, mtime_ns=5),
    Planned(
        b"big", FileType.REGULAR, 0o640, uid=7, gid=8, mtime_ns=-1, segments=(Segment(700_000, 2),),
        xattrs=((b"user.colour", b"green"),),
    ),
    Planned(b"sparse", FileType.REGULAR, segments=(Segment(64 * KIB, None), Segment(9, 3))),
    Planned(b"dir", FileType.DIRECTORY, 0o2775),
    Planned(b"dir/link", FileType.SYMLINK, 0o777, target=b"../big"),
    Planned(b"dir/null", FileType.CHARACTER, 0o666, rdev=(1, 3)),
    Planned(b"many", FileType.DIRECTORY),
    *(Planned(b"many/%03d" % number, FileType.FIFO, uid=number) for number in range(300)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def every_file_is_closed():
    before = open_files()
    yield
    assert open_files() == before


@pytest.fixture
def serve(tmp_path):
    """Serve handlers, each to the guests of one socket; returns the paths."""
    back_end = BackEnd(tmp_path)
    devices = []

    def served(*handlers, **options):
        devices.extend(VirtioFs(handler, back_end.poller, **options) for handler in handlers)
        paths = [back_end.serve(device) for device in devices]
        back_end.start()
        return paths

    yield served
    back_end.stop()
    for device in devices:
        device.stop()


@pytest.fixture
def log_lines(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


class Gated:
    """A tree whose cold files are there once the gate is open; ``entered`` counts who waits."""

    def __init__(self):
        self.tree = small_tree()
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def __getattr__(self, name):
        return getattr(self.tree, name)

    def read(self, node, offset, size):
        self.entered.release()
        assert self.gate.wait(TIMEOUT_S)
        return self.tree.read(node, offset, size)


@pytest.fixture
def gated():
    handler = Gated()
    yield handler
    handler.gate.set()


def begin(guest):
    """Mount: INIT has to be the first."""
    return wire.joined(guest.handle(wire.init()))


# --- Whole trees --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("virtiofs") / "image")


def handler_of(image):
    faults = FaultLog(image.filesystem.find_path)
    return FileSystemHandler(image.filesystem, Owner(), reporter(faults)), faults


@pytest.mark.parametrize("queues", [1, 4])
def test_a_guest_sees_the_whole_tree_again_and_again(reference, serve, queues):
    with opened(reference) as image:
        handler, _ = handler_of(image)
        (path,) = serve(handler, request_queues=queues)
        for _ in range(2):  # reconnects, and finds what was read before
            with Guest(path, queues=queues) as guest:
                assert_same_tree(FuseClient(guest).tree(), expected(PLAN))
        assert image.filesystem.engine.cache.statistics.counts().chunk_bytes < 900_000  # each one once


def test_a_read_that_meets_damage_fails_and_the_others_do_not(tmp_path, serve, log_lines):
    reference = build(PlannedSource(PLAN), tmp_path / "image")
    file, _, place, _ = chunk_place(reference, b"big")
    flip(file, place)
    with opened(reference) as image:
        handler, faults = handler_of(image)
        (path,) = serve(handler)
        with Guest(path) as guest:
            client = FuseClient(guest)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                client.read(client.find(b"big"), 0, 4096)
            assert client.read(client.find(b"sparse"), 0, 4096) == bytes(4096)
        faults.close()
    assert any("/big" in line for line in log_lines())


# --- Late replies -------------------------------------------------------------------------------------------


def test_others_are_answered_while_a_read_waits(gated, serve):
    (path,) = serve(gated)
    with Guest(path) as guest:
        begin(guest)
        queue = guest.queues[REQUESTS]
        spans = guest.spans(wire.read(9, 0, 4096, unique=10), 16 + 4096)
        late = queue.add_spans(spans)
        assert gated.entered.acquire(timeout=TIMEOUT_S)
        getattr_request = queue.add([wire.request(wire.GETATTR, bytes(16), node=2, unique=12)], [16 + 104])
        ((found, length),) = queue.wait()
        assert found == getattr_request
        assert struct.unpack_from("<IiQ", queue.take(found, length))[1:] == (0, 12)
        gated.gate.set()
        ((found, length),) = queue.wait()
        assert found == late
        assert queue.take(found, length) == wire.ok(b"cold" * 100, unique=10)


def test_no_guest_waits_for_another_s_metadata(tmp_path, serve):
    """The thread that serves gets no page that is not at hand, whatever it asks for."""
    reference = build(PlannedSource(PLAN), tmp_path / "image", page_size=4096)
    with opened(reference) as image:
        handler, _ = handler_of(image)
        refused = []

        class Impatient:
            """Has the thread that serves get no page that was not read before."""

            def __getattr__(self, name):
                def called(*arguments):
                    image.metadata.impatient.add(server)
                    try:
                        return getattr(handler, name)(*arguments)
                    except WouldWait:
                        refused.append(name)
                        raise

                server = threading.get_ident() if threading.current_thread().name == "poller" else 0
                return called

        (path,) = serve(Impatient())
        with Guest(path) as guest:
            assert_same_tree(FuseClient(guest).tree(), expected(PLAN))
        assert refused


def test_a_lookup_that_would_wait_lets_others_go_first(gated, serve):
    """A request of any kind goes to a worker, and its reply is its own."""
    tree = gated.tree
    lookup = tree.lookup

    def patient_lookup(parent, name):
        if threading.current_thread().name == "poller":
            raise WouldWait
        gated.entered.release()
        assert gated.gate.wait(TIMEOUT_S)
        return lookup(parent, name)

    tree.lookup = patient_lookup
    (path,) = serve(gated)
    with Guest(path) as guest:
        begin(guest)
        queue = guest.queues[REQUESTS]
        found = queue.add([wire.request(wire.LOOKUP, b"hello\0", unique=10)], [16 + 128])
        missing = queue.add([wire.request(wire.LOOKUP, b"gone\0", unique=12)], [16 + 128])
        assert gated.entered.acquire(timeout=TIMEOUT_S)
        assert wire.joined(guest.handle(wire.read(2, 0, 5))) == wire.ok(b"hello")
        gated.gate.set()
        answers = dict(queue.wait(2))
        assert struct.unpack_from("<IiQQ", queue.take(found, answers[found])) == (16 + 128, 0, 10, 2)
        assert struct.unpack_from("<IiQQ", queue.take(missing, answers[missing]))[2:] == (12, 0)


def test_an_interrupt_ends_a_read_that_waits(gated, serve):
    (path,) = serve(gated)
    with Guest(path) as guest:
        begin(guest)
        queue = guest.queues[REQUESTS]
        queue.add_spans(guest.spans(wire.read(9, 0, 4096, unique=10), 16 + 4096))
        assert gated.entered.acquire(timeout=TIMEOUT_S)
        assert guest.queues[HIPRIO].ask(wire.interrupt(10), room=()) == b""
        ((found, length),) = queue.wait()
        assert queue.take(found, length) == wire.failed(errno.EINTR, unique=10)


def test_a_queue_that_stops_gives_up_a_read_that_hangs(gated, serve, monkeypatch):
    monkeypatch.setattr("vhost.limits.DRAIN_S", 0.05)
    (path,) = serve(gated)
    with Guest(path) as guest:
        begin(guest)
        queue = guest.queues[REQUESTS]
        queue.add_spans(guest.spans(wire.read(9, 0, 4096, unique=10), 16 + 4096))
        assert gated.entered.acquire(timeout=TIMEOUT_S)
        assert guest.front_end.stop() == [0, 2]
        ((found, length),) = queue.collect()
        assert queue.take(found, length) == wire.failed(errno.EIO, unique=10)


def test_a_guest_that_goes_while_a_read_waits_disturbs_nobody(gated, serve, log_lines):
    (path,) = serve(gated)
    with Guest(path) as guest:
        begin(guest)
        guest.queues[REQUESTS].add_spans(guest.spans(wire.read(9, 0, 4096), 16 + 4096))
        assert gated.entered.acquire(timeout=TIMEOUT_S)
    with Guest(path) as guest:
        begin(guest)
        gated.gate.set()
        assert wire.joined(guest.handle(wire.read(9, 0, 8))) == wire.ok(b"coldcold")
    assert log_lines() == []


def test_a_guest_that_was_rebooted_begins_anew(serve):
    (path,) = serve(small_tree())
    with Guest(path) as guest:
        for _ in range(3):  # no DESTROY: the power went off
            begin(guest)
            assert wire.joined(guest.handle(wire.read(2, 0, 5))) == wire.ok(b"hello")


# --- Hostile guests -----------------------------------------------------------------------------------------


def test_forgets_come_back_with_nothing_written(serve):
    (path,) = serve(small_tree())
    with Guest(path) as guest:
        begin(guest)
        queue = guest.queues[HIPRIO]
        head = queue.add([wire.request(wire.FORGET, struct.pack("<Q", 1), node=2)])
        assert queue.wait() == [(head, 0)]


@pytest.mark.parametrize(
    ("room", "answer"),
    [(15, b""), (16, wire.failed(errno.EIO)), (16 + 11, wire.failed(errno.EIO)), (16 + 12, None)],
)
def test_a_reply_without_room(serve, log_lines, room, answer):
    (path,) = serve(small_tree())
    with Guest(path) as guest:
        begin(guest)
        found = guest.handle(wire.read(2, 0, 4096), room=room)
        assert (found or [b""])[0] == (wire.ok(b"hello world\n") if answer is None else answer)
        assert len(log_lines()) == (answer is not None)


def test_hostile_chains_are_returned_and_the_next_guest_notices_nothing(serve, log_lines):
    hostile, honest = serve(small_tree(), small_tree())
    with Guest(hostile) as bad, Guest(honest) as good:
        begin(bad)
        begin(good)
        queue = bad.queues[REQUESTS]
        read = wire.read(2, 0, 4096)
        chains = [
            [],  # nothing to read at all
            [(b"", 0)],
            [(read[:39], 0)],
            [(read[:-1], 0)],
            [(read + b"x", 0)],
            [(bytes(80), 0)],
            [(b"\xff" * 80, 0)],
            [(wire.read(2**64 - 1, 2**64 - 1, 2**32 - 1), 0)],
            [(wire.request(wire.LOOKUP, b"x" * 5000 + b"\0"), 0)],
            [(wire.request(wire.WRITE, bytes(40 + 5000)), 0)],
            [(wire.request(4096), 0)],
        ]
        for parts in chains:
            spans = []
            for content, flags in parts:
                address = bad.memory.allocate(max(1, len(content)))
                bad.memory.write(address, content)
                spans.append((address, len(content), flags))
            spans.append((bad.memory.allocate(4096), 4096, D_WRITE))
            head = queue.add_spans(spans)
            ((found, length),) = queue.wait()
            assert found == head
            answer = queue.take(found, length)
            if answer:
                assert struct.unpack_from("<i", answer, 4)[0] < 0
            assert wire.joined(good.handle(wire.read(2, 0, 5))) == wire.ok(b"hello")
        # Addresses outside the memory, for the reply and for the request.
        for request, reply in [(bad.memory.guest_base, 1 << 60), (1 << 60, bad.memory.guest_base)]:
            bad.memory.write(bad.memory.guest_base, read)
            queue.add_spans([(request, len(read), 0), (reply, 8192, D_WRITE)])
            assert queue.wait()[0][1] == 0
            assert wire.joined(good.handle(wire.read(2, 0, 5))) == wire.ok(b"hello")
        queue.offer(60_000)  # a ring that contradicts itself stops its queue only
        queue.notify(0)
        os.eventfd_write(queue.kick, 1)
        assert fe.select.select([queue.err], [], [], TIMEOUT_S)[0]
        assert wire.joined(good.handle(wire.read(2, 0, 5))) == wire.ok(b"hello")
    assert all("s0" in line for line in log_lines())


# --- Statistics ---------------------------------------------------------------------------------------------


def test_all_guests_are_counted_together(serve):
    statistics = RequestStatistics()
    tree = small_tree()
    paths = serve(tree, tree, statistics=statistics)
    for path in paths:
        with Guest(path) as guest:
            begin(guest)
            guest.handle(wire.read(2, 0, 5))
            guest.handle(wire.read(9, 0, 5))
    counted = {name: found.requests for name, found in statistics.latencies().items()}
    assert counted == {"init": 2, "read": 2, "read_waited": 2}


# --- The configuration --------------------------------------------------------------------------------------


def config(front_end, offset, size):
    """A part of the configuration space, as a front end that does not know it asks for it."""
    head = struct.pack("=III", offset, size, 0)
    reply = front_end.ask(fe.GET_CONFIG, head + bytes(size))
    assert reply[:12] == head[: len(reply)]
    return reply[12:]


def test_the_tag_is_told_to_front_ends_that_ask(serve):
    (path,) = serve(small_tree(), tag="tree", request_queues=3)
    with fe.FrontEnd(path) as front_end:
        front_end.negotiate(fe.ALL_PROTOCOL | fe.CONFIG)
        assert front_end.protocol_features & fe.CONFIG
        whole = b"tree".ljust(36, b"\0") + struct.pack("<II", 3, 0)
        assert config(front_end, 0, 44) == whole
        assert config(front_end, 36, 4) == whole[36:40]
        assert config(front_end, 40, 256) == bytes(256)
        assert front_end.do(fe.SET_CONFIG, struct.pack("=III", 0, 4, 0) + b"root") == 1
        assert config(front_end, 0, 4) == b"tree"


def test_without_a_tag_no_configuration_is_offered(serve):
    (path,) = serve(small_tree())
    with fe.FrontEnd(path) as front_end:
        front_end.negotiate(fe.ALL_PROTOCOL | fe.CONFIG)
        assert not front_end.protocol_features & fe.CONFIG
        assert front_end.do(fe.SET_CONFIG, struct.pack("=III", 0, 0, 0)) == 1
        assert front_end.ask(fe.GET_CONFIG, struct.pack("=III", 0, 4, 0) + bytes(4)) == b""


# --- Migration ----------------------------------------------------------------------------------------------


def moved(path, state, direction):
    """Have a device's state written to a pipe, or read from it; returns it, and whether that went well."""
    with fe.FrontEnd(path) as front_end:
        front_end.negotiate()
        reading, writing = os.pipe()
        ours, theirs = (reading, writing) if direction == SAVE else (writing, reading)
        front_end.send(fe.SET_DEVICE_STATE_FD, struct.pack("=II", direction, 0), [theirs])
        front_end.receive()
        os.close(theirs)
        if direction == SAVE:
            with os.fdopen(ours, "rb") as stream:
                state = stream.read()
        else:
            with os.fdopen(ours, "wb") as stream:
                stream.write(state)
        failed = front_end.number(fe.CHECK_DEVICE_STATE)
    return state, failed


SAVE, LOAD = 0, 1


def test_a_guest_that_migrates_goes_on_without_mounting_again(serve):
    before, after = serve(small_tree(), small_tree(), image="sha256:one")
    with Guest(before) as guest:
        begin(guest)
    state, failed = moved(before, b"", SAVE)
    assert not failed
    with Guest(after) as guest:
        assert wire.joined(guest.handle(wire.read(2, 0, 5))) == wire.failed(
            errno.EIO
        )  # nobody has mounted it
    assert moved(after, state, LOAD)[1] == 0
    with Guest(after) as guest:
        assert wire.joined(guest.handle(wire.read(2, 0, 5))) == wire.ok(b"hello")


@pytest.mark.parametrize(
    "bend",
    [
        lambda state: state.replace(b":one", b":two"),
        lambda state: state[:-1],
        lambda state: state.decode().encode("utf-16-be"),
        lambda _: b"",
        lambda _: b"[" * 100_000,
        lambda _: b'{"image": 1, "negotiated": null}',
        lambda _: b'{"image": "sha256:one", "negotiated": {}}',
        lambda state: state.replace(b'"minor": 41', b'"minor": -1'),
        lambda state: state.replace(b'"minor": 41', b'"minor": true'),
    ],
)
def test_a_state_of_another_image_or_of_nobody_s_making_is_refused(serve, bend, log_lines):
    (path,) = serve(small_tree(), image="sha256:one")
    with Guest(path) as guest:
        begin(guest)
    state, _ = moved(path, b"", SAVE)
    bent = bend(state)
    assert bent != state
    assert moved(path, bent, LOAD)[1] == 1
    assert len(log_lines()) == 1
    with Guest(path) as guest:
        begin(guest)


# --- Anything at all ----------------------------------------------------------------------------------------


OPCODES = [value for name, value in vars(wire).items() if name.isupper() and name != "UNIQUE"]
NUMBERS = st.sampled_from([0, 1, 11, 4096, 2**63 - 1, 2**64 - 1]) | st.integers(0, 2**64 - 1)
SIZES = st.sampled_from([0, 1, 4096, 1 << 20, (1 << 24) + 1, 2**32 - 1])
REQUESTS_OF_ANY_KIND = st.binary(max_size=120) | st.builds(
    lambda opcode, body, node: wire.request(opcode, body, node=node),
    st.sampled_from(OPCODES) | st.integers(0, 2**32 - 1),
    st.binary(max_size=60) | st.builds(wire.read_in, NUMBERS, SIZES),
    st.integers(0, 12) | NUMBERS,
)


@settings(max_examples=200)
@given(st.lists(REQUESTS_OF_ANY_KIND, min_size=1, max_size=8))
def test_whatever_a_guest_asks_for_it_gets_an_answer(requests):
    """Bytes of all kinds, in the middle of a mount; none makes the device raise, or make up a reply."""
    answers = queue.Queue()
    with closing(Poller()) as poller:
        device = VirtioFs(small_tree(), poller)
        assert wire.joined(device.handle(Chain(1, 0, (wire.init(), [], 4096), None)))
        for request in requests:
            chain = Chain(1, 0, (request, [], 4096), lambda _, parts: answers.put(parts) or True)
            parts = device.handle(chain)
            if parts is LATER:
                parts = answers.get(timeout=TIMEOUT_S)
            assert not parts or wire.joined(list(parts))
            assert sum(map(len, device.cut_short(chain))) in (0, 16)
        device.stop()
