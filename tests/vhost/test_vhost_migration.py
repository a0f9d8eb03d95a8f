"""Migration: pages that were written are noted, nobody's note is lost, and the device's state travels."""

import ctypes
import mmap
import os
import platform
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import vhost_frontend as fe
from support.vhost_frontend import FEATURES, LOG_ALL, TIMEOUT_S

from vhost.dirty_log import DirtyLog
from vhost.errors import RefusedError, VhostError
from vhost.limits import STATE_BYTES_MAX
from vhost.messages import LogArea
from vhost.model import DeviceModel

PAGE = 4096
ROOT = Path(__file__).parents[2]


@pytest.fixture
def file():
    descriptor = os.memfd_create("log", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4 * PAGE)
    yield descriptor
    os.close(descriptor)


def pages_of(bits):
    return {number for number in range(8 * len(bits)) if bits[number >> 3] >> (number & 7) & 1}


# --- The log ----------------------------------------------------------------------------------------------

MARKS = [
    (0, 1, {0}),
    (PAGE - 1, 1, {0}),
    (PAGE - 1, 2, {0, 1}),
    (5 * PAGE, PAGE, {5}),
    (5 * PAGE + 1, PAGE, {5, 6}),
    (31 * PAGE, 3 * PAGE, {31, 32, 33}),
    (799 * PAGE, 2 * PAGE, {799}),  # the log has 800 bits
    (800 * PAGE, PAGE, set()),
    (2**64 - 1, 1, set()),
]


@pytest.mark.parametrize(("address", "size", "expected"), MARKS)
@pytest.mark.parametrize("offset", [0, 4, PAGE + 8])
def test_pages_are_marked_and_no_others(file, offset, address, size, expected):
    log = DirtyLog(LogArea(100, offset), file)
    log.mark(address, size)
    log.close()
    content = os.pread(file, 4 * PAGE, 0)
    assert pages_of(content[offset:]) == expected
    assert content[:offset] == bytes(offset)


def test_only_what_was_written_of_spans_is_marked(file):
    log = DirtyLog(LogArea(PAGE, 0), file)
    log.mark_spans([(3 * PAGE, 0), (PAGE, 10), (2 * PAGE, 10), (9 * PAGE, 10)], 11)
    log.mark_spans([(20 * PAGE, 10)], 0)
    log.close()
    assert pages_of(os.pread(file, PAGE, 0)) == {1, 2}


@pytest.mark.parametrize(
    "area",
    [LogArea(*pair) for pair in ((0, 0), (4 * PAGE + 1, 0), (8, 2), (8, 4 * PAGE), (2**63, 0), (8, 2**63))],
)
def test_log_that_cannot_be_is_refused(file, area):
    with pytest.raises(RefusedError):
        DirtyLog(area, file)


# Marks four pages again and again, each as soon as its bit has been taken away.
MARKER = """
import mmap, sys
from vhost.dirty_log import DirtyLog
from vhost.messages import LogArea
descriptor, first, count = map(int, sys.argv[1:])
log, bits = DirtyLog(LogArea(4096, 0), descriptor), mmap.mmap(descriptor, 4096)
print(flush=True)
for number in range(count):
    page = first + number % 4
    while bits[0] >> page & 1:
        pass
    log.mark(page << 12, 1)
"""
COUNT = 8000


def take_bits_away(bits, processes):
    """What a front end does meanwhile, as atomically (FUTEX_OP_ANDN of linux/futex.h); counts each bit."""
    futex = {"x86_64": 202, "aarch64": 98}[platform.machine()]
    syscall = ctypes.PyDLL(None).syscall
    start = ctypes.c_char.from_buffer(bits)
    word = ctypes.c_void_p(ctypes.addressof(start))
    counts = [0] * 8
    are_over = False
    while not are_over:
        are_over = all(process.poll() is not None for process in processes)
        for _ in range(1000):
            seen = bits[0]
            for page in range(8):
                if seen >> page & 1:
                    operation = ctypes.c_uint((3 | 8) << 28 | page << 12)
                    assert (
                        syscall(ctypes.c_long(futex), word, 5 | 128, 0, ctypes.c_long(0), word, operation)
                        == 0
                    )
                    counts[page] += 1
    del start
    return counts


def test_no_mark_is_lost_or_set_again_while_others_change_the_same_byte(file):
    """Two back ends and a front end at one byte: what is not atomic undoes the others' work."""
    command = [sys.executable, "-c", MARKER, str(file)]
    markers = [
        subprocess.Popen(
            [*command, str(first), str(COUNT)],
            pass_fds=[file],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for first in (0, 4)
    ]
    with mmap.mmap(file, PAGE) as bits:
        counts = take_bits_away(bits, markers)
    for marker in markers:
        marker.stdout.close()
        assert marker.wait(TIMEOUT_S) == 0
    assert counts == [COUNT // 4] * 8


def written_pages(memory, before):
    after = memory.map[:]
    return {
        (memory.guest_base + at) // PAGE
        for at in range(0, memory.size, PAGE)
        if after[at : at + PAGE] != before[at : at + PAGE]
    }


@pytest.mark.parametrize("features", [FEATURES, FEATURES & ~fe.EVENT_IDX])
def test_every_page_that_the_device_writes_is_marked(echo, connect, share, file, features):
    """What QEMU does when a migration begins, while the queue runs, and when it is given up."""
    memory = share(1 << 20, guest_base=64 * PAGE)
    front_end = connect(echo)
    (queue,) = front_end.start(memory, features=features)
    assert queue.ask(b"not yet") == b"not yet"

    front_end.ask(fe.SET_LOG_BASE, struct.pack("=QQ", PAGE, PAGE), [file])
    assert front_end.do(fe.SET_FEATURES, fe.u64(features | LOG_ALL)) == 0
    used_as_logged = 0x1000 * PAGE  # it need not be the used ring's address, nor in memory
    logged = front_end.addresses(queue, flags=1, log=used_as_logged)
    assert front_end.do(fe.SET_VRING_ADDR, logged) == 0
    assert pages_of(os.pread(file, PAGE, PAGE)) == set()

    memory.allocate(3 * PAGE)  # away from the rings
    head = queue.add([b"x" * 9000], [10, 5000, 4000, 5000], kick=False)
    before = memory.map[:]
    os.eventfd_write(queue.kick, 1)
    queue.wait()
    used_pages = {queue.used // PAGE, (queue.used + 6 + 8 * queue.size - 1) // PAGE}
    data_pages = written_pages(memory, before) - used_pages
    assert queue.take(head, 9000) == b"x" * 9000
    assert len(data_pages) >= 3
    assert pages_of(os.pread(file, PAGE, PAGE)) == data_pages | {0x1000}

    assert front_end.do(fe.SET_FEATURES, fe.u64(features)) == 0
    assert front_end.do(fe.SET_VRING_ADDR, front_end.addresses(queue)) == 0
    os.pwrite(file, bytes(PAGE), PAGE)
    assert queue.ask(b"no more") == b"no more"
    assert pages_of(os.pread(file, PAGE, PAGE)) == set()


def test_answers_of_other_threads_are_marked(keeper, connect, share, file):
    model, path = keeper
    memory = share(1 << 20, guest_base=64 * PAGE)
    front_end = connect(path)
    (queue,) = front_end.start(memory)
    front_end.ask(fe.SET_LOG_BASE, struct.pack("=QQ", PAGE, 0), [file])
    assert front_end.do(fe.SET_FEATURES, fe.u64(FEATURES | LOG_ALL)) == 0
    start = memory.allocate(PAGE, PAGE)
    head = queue.add_spans([(start, PAGE, fe.D_WRITE)])
    assert model.next().answer([b"y" * PAGE])
    assert queue.wait() == [(head, PAGE)]
    assert pages_of(os.pread(file, PAGE, 0)) == {start // PAGE}


def test_larger_log_takes_the_place_of_the_first(echo, connect, file, memory):
    front_end = connect(echo)
    front_end.start(memory)
    for pages in (1, 2, 4):
        front_end.ask(fe.SET_LOG_BASE, struct.pack("=QQ", pages * PAGE, 0), [file])
    assert front_end.queues[0].ask(b"a") == b"a"


# --- The state --------------------------------------------------------------------------------------------


class Stateful(DeviceModel):
    """Has a state."""

    def __init__(self, state=b""):
        self.state = state

    def handle(self, chain):
        return [self.state[: chain.room]]

    def save(self):
        return self.state

    def load(self, state):
        if state.startswith(b"bad"):
            raise VhostError("not a state of this device")
        self.state = state


def transfer(front_end, direction, descriptor):
    return front_end.number(fe.SET_DEVICE_STATE_FD, struct.pack("=II", direction, 0), [descriptor])


def channel(kind):
    """Ends to read from and to write to."""
    if kind == "pipe":
        return os.pipe()
    left, right = socket.socketpair()
    return left.detach(), right.detach()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("size", [0, 5, 300_000, STATE_BYTES_MAX])
def test_state_travels_from_one_back_end_to_another(back_end, connect, kind, size):
    state = os.urandom(size)
    source, destination = Stateful(state), Stateful(b"another")
    paths = [back_end.serve(source), back_end.serve(destination)]
    back_end.start()

    front_end = connect(paths[0])
    reader, writer = channel(kind)
    assert transfer(front_end, 0, writer) == 0x100
    os.close(writer)
    saved = b""
    while piece := os.read(reader, 1 << 20):
        saved += piece
    os.close(reader)
    assert front_end.number(fe.CHECK_DEVICE_STATE) == 0
    assert saved == state

    front_end = connect(paths[1])
    reader, writer = channel(kind)
    assert transfer(front_end, 1, reader) == 0x100
    os.close(reader)
    front_end.send(fe.CHECK_DEVICE_STATE)  # the answer has to wait for the end
    left = memoryview(saved)
    while left:
        left = left[os.write(writer, left) :]
    os.close(writer)
    assert front_end.receive()[2] == fe.u64(0)
    assert destination.state == state


def test_state_that_is_bad_too_long_or_not_taken_fails_the_check(back_end, connect, log_lines):
    model = Stateful(bytes(1 << 20))
    path = back_end.serve(model)
    back_end.start()
    front_end = connect(path)
    for content in (b"bad", bytes(STATE_BYTES_MAX + 1)):
        with os.fdopen(os.memfd_create("state"), "w+b") as file:
            file.write(content)
            file.seek(0)
            assert transfer(front_end, 1, file.fileno()) == 0x100
            assert front_end.number(fe.CHECK_DEVICE_STATE) == 1
    reader, writer = os.pipe()
    assert transfer(front_end, 0, writer) == 0x100
    os.close(writer)
    os.close(reader)
    assert front_end.number(fe.CHECK_DEVICE_STATE) == 1
    assert len(log_lines()) == 3
    assert model.state == bytes(1 << 20)


def test_transfer_that_cannot_be_is_refused(echo, connect, memory):
    front_end = connect(echo)
    assert front_end.number(fe.CHECK_DEVICE_STATE) == 1  # nothing was transferred
    with os.fdopen(os.memfd_create("state"), "w+b") as file:
        for direction, phase in ((2, 0), (0, 1), (2**32 - 1, 2**32 - 1)):
            payload = struct.pack("=II", direction, phase)
            assert front_end.number(fe.SET_DEVICE_STATE_FD, payload, [file.fileno()]) == 0x101
        front_end.start(memory)
        assert transfer(front_end, 0, file.fileno()) == 0x101
        front_end.stop()
        assert transfer(front_end, 0, file.fileno()) == 0x100
        assert front_end.number(fe.CHECK_DEVICE_STATE) == 0


def test_transfer_that_never_ends_is_given_up_with_its_connection(back_end, connect):
    path = back_end.serve(Stateful())
    back_end.start()
    front_end = connect(path)
    reader, writer = os.pipe()
    assert transfer(front_end, 1, reader) == 0x100
    assert transfer(front_end, 1, reader) == 0x100  # the first one is given up for this
    front_end.send(fe.CHECK_DEVICE_STATE)
    os.close(reader)
    front_end.close()
    assert connect(path).do(fe.SET_OWNER) == 0
    os.close(writer)
