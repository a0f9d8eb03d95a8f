"""Front ends that come, go, break off and misbehave: others are served on, and notice nothing."""

import errno
import logging
import os
import random
import resource
import socket
import stat
import struct
import threading
from contextlib import ExitStack
from queue import SimpleQueue

import pytest
from support import vhost_frontend as fe
from support.vhost_frontend import FEATURES, FrontEnd, Memory, Queue
from support.vhost_server import Echo, open_files

from vhost import limits
from vhost.model import DeviceModel
from vhost.transport import listen


def transcript(memory, queue, files):
    """Everything that QEMU says up to the first request, to be sent without waiting for replies."""
    index = queue.index
    user = memory.user
    rings = user(queue.descriptors), user(queue.used), user(queue.available)
    return [
        (fe.message(fe.GET_FEATURES), []),
        (fe.message(fe.GET_PROTOCOL_FEATURES), []),
        (fe.message(fe.SET_PROTOCOL_FEATURES, fe.u64(fe.ALL_PROTOCOL)), []),
        (fe.message(fe.GET_QUEUE_NUM), []),
        (fe.message(fe.GET_MAX_MEM_SLOTS), []),
        (fe.message(fe.SET_BACKEND_REQ_FD, flags=9), [files[0]]),
        (fe.message(fe.SET_OWNER), []),
        (fe.message(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, 1, queue.size, 0)), []),
        (fe.message(fe.SET_FEATURES, fe.u64(FEATURES | fe.LOG_ALL)), []),
        (fe.message(fe.SET_LOG_BASE, struct.pack("=QQ", 4096, 0)), [files[1]]),
        (fe.message(fe.SET_MEM_TABLE, struct.pack("=II", 1, 0) + memory.region()), [memory.fd]),
        (fe.message(fe.SET_VRING_NUM, fe.state(index, queue.size)), []),
        (fe.message(fe.SET_VRING_BASE, fe.state(index, 0)), []),
        (fe.message(fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", index, 1, *rings, 0)), []),
        (fe.message(fe.SET_VRING_KICK, fe.u64(index)), [queue.kick]),
        (fe.message(fe.SET_VRING_CALL, fe.u64(index)), [queue.call]),
        (fe.message(fe.SET_VRING_ERR, fe.u64(index)), [queue.err]),
        (fe.message(fe.SET_VRING_ENABLE, fe.state(index, 1)), []),
        (fe.message(fe.SET_DEVICE_STATE_FD, struct.pack("=II", 1, 0)), [files[2]]),
        (fe.message(fe.GET_VRING_BASE, fe.state(index, 0)), []),
    ]


@pytest.mark.parametrize("manner", ["orderly", "abrupt"])
def test_disconnect_at_every_byte_leaves_nothing_behind(echo, connect, share, tally, manner):
    memory, log, state = share(1 << 20), os.memfd_create("log"), os.pipe()
    os.ftruncate(log, 4096)
    queue = Queue(memory, 0)
    cuts = 0
    said = transcript(memory, queue, [log, log, state[0]])
    for number, (last, files) in enumerate(said):
        for cut in range(0, len(last), 1 if len(last) < 30 else 3):
            with FrontEnd(echo) as front_end:
                for whole, with_files in said[:number]:
                    front_end.send_raw(whole, with_files)
                if cut:
                    front_end.send_raw(last[:cut], files)
                if manner == "orderly":  # else what was not received yet is lost together with the socket
                    front_end.socket.shutdown(socket.SHUT_WR)
                    while front_end.socket.recv(4096):
                        pass
            cuts += 1
    with FrontEnd(echo) as front_end:  # the next one is accepted when the last one was cleared away
        front_end.number(fe.GET_FEATURES)
        before = open_files()
    with FrontEnd(echo) as front_end:
        front_end.number(fe.GET_FEATURES)
        assert open_files() == before
    tally("disconnections in the middle", cuts)
    queue.close()
    for descriptor in (log, *state):
        os.close(descriptor)
    assert connect(echo).start(memory)[0].ask(b"x") == b"x"


def test_guest_survives_the_restart_of_its_machine_monitor(echo, memory):
    for turn in range(5):
        with FrontEnd(echo) as front_end:
            front_end.negotiate()
            (queue,) = front_end.start(memory)
            assert queue.ask(b"%d" % turn) == b"%d" % turn


def test_second_front_end_waits_for_the_end_of_the_first(echo, memory, share):
    with FrontEnd(echo) as first, FrontEnd(echo) as second:
        first.negotiate()
        second.send(fe.GET_FEATURES)
        (queue,) = first.start(memory)
        assert queue.ask(b"x") == b"x"
        second.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.socket.recv(1)
        second.socket.settimeout(fe.TIMEOUT_S)
        first.close()
        first.queues = []
        assert second.receive()[0] == fe.GET_FEATURES
        second.negotiate()
        assert second.start(share())[0].ask(b"y") == b"y"


def test_one_shot_ends_with_its_front_end(back_end, tmp_path):
    ended = threading.Event()
    path = back_end.serve(Echo(), ended=ended.set)
    back_end.start()
    with FrontEnd(path) as front_end:
        front_end.negotiate()
        assert not ended.is_set()
    assert ended.wait(fe.TIMEOUT_S)


def test_coming_and_going_fills_no_log(echo, caplog):
    caplog.set_level(logging.INFO, "vhost")
    for _ in range(100):
        with FrontEnd(echo) as front_end:
            front_end.negotiate()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["s0: a front end has connected", "s0: the front end has gone"]
    assert len(lines) < 100  # of 200


def test_answer_for_a_guest_that_has_gone_goes_nowhere(keeper, memory):
    model, path = keeper
    with FrontEnd(path) as front_end:
        front_end.negotiate()
        (queue,) = front_end.start(memory)
        queue.add([b"a"], [10])
        chain = model.next()
    with FrontEnd(path) as front_end:
        front_end.number(fe.GET_FEATURES)
        assert not chain.answer([b"too late"])
        assert model.resets == 0


def test_front_end_that_goes_while_it_waits_for_a_queue_to_stop(keeper, memory, log_lines):
    model, path = keeper
    with FrontEnd(path) as front_end:
        front_end.negotiate()
        (queue,) = front_end.start(memory)
        queue.add([b"a"], [10])
        chain = model.next()
        front_end.send(fe.GET_VRING_BASE, fe.state(0, 0))
        front_end.send(fe.GET_FEATURES)
    with FrontEnd(path) as front_end:
        front_end.number(fe.GET_FEATURES)
        assert not chain.answer([b"too late"])
    (line,) = log_lines()
    assert "while it waited" in line


# --- Two guests -------------------------------------------------------------------------------------------


def lie(front_end, queue, number):
    """One of many things that a hostile guest or its monitor may do."""
    rng = random.Random(number)
    match number % 6:
        case 0:
            front_end.send(rng.randrange(64), os.urandom(rng.randrange(40)), flags=rng.choice([1, 9]))
        case 1:
            front_end.send_raw(os.urandom(20))
        case 2:
            front_end.send(
                fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, *[rng.getrandbits(64) for _ in range(4)])
            )
        case 3:
            queue._available[1] = rng.getrandbits(16)
            os.eventfd_write(queue.kick, 1)
        case 4:
            front_end.send(fe.SET_MEM_TABLE, struct.pack("=II", 1, 0) + os.urandom(32), [queue.memory.fd])
        case 5:
            queue.put_descriptor(
                0, rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(3), rng.getrandbits(16)
            )
            queue.offer(0)
            os.eventfd_write(queue.kick, 1)


def test_honest_guest_notices_nothing_of_a_hostile_one(back_end, connect, share):
    paths = [back_end.serve(Echo()), back_end.serve(Echo())]
    back_end.start()
    honest = connect(paths[0])
    queues = honest.start(share(64 * fe.MIB), 2)
    asked = 0
    for number in range(300):
        with FrontEnd(paths[1]) as hostile, Memory(1 << 20) as memory:
            try:
                hostile.negotiate()
                (queue,) = hostile.start(memory)
                for step in range(3):
                    lie(hostile, queue, number + step)
            except (ConnectionError, AssertionError):
                pass  # it was thrown out
            for queue in hostile.queues:
                queue.close()
            hostile.queues = []
        for queue in queues:
            asked += 1
            content = b"%d" % asked
            assert queue.ask(content, room=(16,)) == content
    assert honest.stop() == [300, 300]


def test_two_guests_work_at_once(back_end, connect, share):
    paths = [back_end.serve(Echo()), back_end.serve(Echo())]
    back_end.start()
    guests = [connect(path).start(share(32 * fe.MIB), 2) for path in paths]
    failures = []

    def work(queues, name):
        for turn in range(500):
            for queue in queues:
                content = b"%s %d" % (name, turn)
                if queue.ask(content, room=(30,)) != content:
                    failures.append(content)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(guests, (b"one", b"two"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


class Ordered(DeviceModel):
    """Notes what it serves; waits at the first chain of all until ``gate`` is opened."""

    queues = 4

    def __init__(self, name, order, gate):
        self.name = name
        self.order = order
        self.gate = gate

    def handle(self, chain):
        self.order.put((self.name, chain.queue))
        assert self.gate.wait(fe.TIMEOUT_S)
        return [chain.request]


@pytest.mark.parametrize("is_bad", [False, True])
def test_a_device_has_one_turn_for_all_its_queues(back_end, connect, share, monkeypatch, is_bad):
    monkeypatch.setattr(limits, "TURN_S", -1.0)  # each turn is over with its first chain
    order, gate = SimpleQueue(), threading.Event()
    paths = [back_end.serve(Ordered(name, order, gate)) for name in "gh"]
    back_end.start()
    greedy = connect(paths[0]).start(share(), 4)
    (honest,) = connect(paths[1]).start(share())
    greedy[0].add([b"first"], [8])
    assert order.get(timeout=fe.TIMEOUT_S) == ("g", 0)
    for each in greedy[1:]:
        if is_bad:  # such chains take time as well
            each.add_spans([(1 << 60, 8, 0)], kick=False)
        each.add([b"more"], [8], kick=False)
        each.add([b"more"], [8], kick=False)
    for _ in range(9):
        honest.add([b"some"], [8], kick=False)
    gate.set()
    served = [order.get(timeout=fe.TIMEOUT_S) for _ in range(15)]
    in_turn = [turn for index in (1, 2, 3, 1, 2, 3) for turn in (("h", 0), ("g", index))]
    alone = [("h", 0)] * 3
    assert served == ([*alone, *in_turn] if is_bad else [*in_turn, *alone])


# --- Sockets ----------------------------------------------------------------------------------------------


def test_more_files_than_any_message_has_end_the_connection(echo, connect, memory, log_lines):
    regions = [struct.pack("=QQQQ", at << 20, 4096, at << 20, 0) for at in range(8)]
    table = struct.pack("=II", 8, 0) + b"".join(regions)
    front_end = connect(echo)
    assert front_end.do(fe.SET_MEM_TABLE, table, [memory.fd] * 8) == 0
    front_end.close()
    for count in (9, 40, 200):
        front_end = connect(echo)
        front_end.send(fe.SET_MEM_TABLE, table, [memory.fd] * count, flags=9)
        assert front_end.is_closed()
    assert len(log_lines()) == 3


def test_front_end_that_takes_no_replies_is_given_up(echo, connect, log_lines):
    front_end = connect(echo)
    front_end.socket.setblocking(False)
    with pytest.raises(OSError):  # our own end is full, or it was closed
        while True:
            front_end.socket.send(fe.message(fe.GET_FEATURES))
    front_end.socket.settimeout(fe.TIMEOUT_S)
    with pytest.raises(ConnectionError):
        while True:
            front_end.socket.sendall(fe.message(fe.GET_FEATURES))
    (line,) = log_lines()
    assert "does not take its reply" in line


def test_front_end_that_cannot_be_accepted_for_want_of_files_is_accepted_later(echo, monkeypatch, log_lines):
    monkeypatch.setattr(limits, "ACCEPT_PAUSE_S", 0.0)
    front_end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    fillers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                fillers.append(os.dup(0))
        front_end.connect(os.fspath(echo))
        while not log_lines():
            pass
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    front_end.settimeout(fe.TIMEOUT_S)
    front_end.sendall(fe.message(fe.GET_FEATURES))
    assert len(front_end.recv(20)) == 20
    front_end.close()
    assert "could not be accepted" in log_lines()[0]


def test_only_sealed_memory_is_taken_when_asked_for(back_end, connect, memory):
    path = back_end.serve(Echo(), sealed_only=True)
    back_end.start()
    front_end = connect(path)
    assert front_end.do(fe.ADD_MEM_REG, fe.u64(0) + memory.region(), [memory.fd]) == 1
    reply = front_end.ask(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, 1, 128, 0))
    assert struct.unpack_from("=Q", reply)[0] > 0


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_socket_that_somebody_has_is_left_alone(tmp_path, kind):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as owner, ExitStack() as waiting:
        owner.bind(os.fspath(path))
        inode = path.stat().st_ino
        if kind != socket.SOCK_DGRAM:
            owner.listen(0)
            with pytest.raises(BlockingIOError):  # nobody accepts, until its backlog is full
                while True:
                    client = waiting.enter_context(socket.socket(socket.AF_UNIX, kind))
                    client.setblocking(False)
                    client.connect(os.fspath(path))
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            listen(path)
        assert path.stat().st_ino == inode
    with listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_socket_is_made_in_the_place_of_a_dead_one(tmp_path):
    path = tmp_path / "s"
    listen(path).close()
    assert path.is_socket()
    with listen(path, mode=0o660, group=os.getgid()) as listening:
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        with pytest.raises(OSError, match="in use"):
            listen(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            listening.accept()[0].close()
    assert stat.S_IMODE((tmp_path / "t").parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["file", "folder", "missing"])
def test_socket_is_not_made_in_the_place_of_something_else(tmp_path, kind):
    path = tmp_path / "s"
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path = path / "deeper"
    with pytest.raises(OSError, match=r"in use|No such file"):
        listen(path)
    if kind == "file":
        assert path.read_bytes() == b"precious"
