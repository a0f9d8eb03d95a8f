"""A back end that is killed with requests under way: the next one answers each of them, and none twice."""

import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import vhost_frontend as fe
from support.vhost_frontend import FrontEnd

ROOT = Path(__file__).parents[2]
COUNT = 40

# Answers only so many requests, in random order, from another thread; those that begin with "now" at once.
PROGRAM = """
import random, sys, threading
from pathlib import Path
from vhost.model import LATER, DeviceModel
from vhost.poller import Poller
from vhost.transport import Listener, listen

path, seed, wanted, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
kept = []

def answer():
    random.Random(seed).shuffle(kept)
    for chain in kept[:count]:
        assert chain.answer([b"from %d: " % seed, chain.request])
    print("answered", len(kept[:count]), flush=True)

class Model(DeviceModel):
    def handle(self, chain):
        if chain.request.startswith(b"now"):
            return [b"from %d: " % seed, chain.request]
        kept.append(chain)
        if len(kept) == wanted:
            threading.Thread(target=answer).start()
        return LATER

poller = Poller()
listener = Listener(poller, listen(path), Model(), name="killed")
print("listening", flush=True)
poller.run()
"""


class Killable:
    """A back end in a process of its own."""

    def __init__(self, path, seed, *, wanted, answers):
        words = [str(path), str(seed), str(wanted), str(answers)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def expect(self, line):
        assert self.process.stdout.readline().decode().split() == line.split()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(fe.TIMEOUT_S)
        self.process.stdout.close()


def begin(path, memory, queue, area, descriptor, features):
    """Connect, pass the notes on, and start the queue from what the used ring says, as QEMU does."""
    front_end = FrontEnd(path)
    front_end.negotiate()
    if descriptor is None:
        front_end.send(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, 1, queue.size, 0))
        _, _, area, (descriptor,) = front_end.receive()
    assert front_end.do(fe.SET_INFLIGHT_FD, area, [descriptor]) == 0
    front_end.queues = [queue]
    front_end.restart(memory, base=queue._used[1], features=features)
    return front_end, area, descriptor


@pytest.mark.parametrize("features", [fe.FEATURES, fe.FEATURES & ~fe.EVENT_IDX])
def test_every_request_is_answered_once_though_back_ends_are_killed(tmp_path, memory, features):
    path = tmp_path / "s"
    queue = fe.Queue(memory, 0, features=features)
    area = descriptor = None
    left = {}
    for seed in range(4):
        answers = random.Random(seed).randrange(5, 30) if seed < 3 else COUNT
        heads = {
            queue.add([b"%d %d" % (seed, n)], [40]): b"%d %d" % (seed, n) for n in range(COUNT - len(left))
        }
        left |= heads
        with Killable(path, seed, wanted=COUNT, answers=answers) as back_end:
            back_end.expect("listening")
            front_end, area, descriptor = begin(path, memory, queue, area, descriptor, features)
            back_end.expect(f"answered {answers}")
            came = queue.collect()
            assert len(came) == answers
            for head, length in came:
                assert queue.take(head, length) == b"from %d: " % seed + left.pop(head)
            if seed == 3:
                assert queue.ask(b"now") == b"from 3: now"
                assert front_end.stop() == [queue.next_available]
        front_end.queues = []
        front_end.close()
    assert left == {}
    queue.close()
    os.close(descriptor)


def test_notes_that_are_lies_hurt_only_their_queue(echo, connect, memory):
    front_end = connect(echo)
    front_end.send(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, 2, 128, 0))
    _, _, area, (descriptor,) = front_end.receive()
    size = struct.unpack_from("=Q", area)[0]
    front_end.queues = [fe.Queue(memory, index) for index in (0, 1)]
    rng = random.Random(7)
    for _ in range(20):
        for start in (0, size // 2):
            os.pwrite(descriptor, rng.randbytes(size // 2), start)
            os.pwrite(descriptor, struct.pack("=QHH", 0, 1, 128), start)
        assert front_end.do(fe.SET_INFLIGHT_FD, area, [descriptor]) == 0
        front_end.restart(memory)
        assert front_end.do(fe.SET_INFLIGHT_FD, area, [descriptor]) == 1  # not while they run
        front_end.stop()
    os.pwrite(descriptor, bytes(size), 0)
    assert front_end.do(fe.SET_INFLIGHT_FD, area, [descriptor]) == 0
    for queue in front_end.queues:
        queue.close()
    queue, _ = front_end.start(memory, 2)
    assert queue.ask(b"x") == b"x"
    os.close(descriptor)


def test_queue_does_not_begin_with_notes_of_another_version(echo, connect, memory, log_lines):
    front_end = connect(echo)
    front_end.send(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, 1, 128, 0))
    _, _, area, (descriptor,) = front_end.receive()
    (queue,) = front_end.start(memory)
    front_end.stop()
    os.pwrite(descriptor, struct.pack("=QHH", 0, 7, 128), 0)
    assert front_end.do(fe.SET_INFLIGHT_FD, area, [descriptor]) == 0
    front_end.send(fe.SET_VRING_ENABLE, fe.state(0, 1))
    front_end.send(fe.SET_VRING_KICK, fe.u64(0), [queue.kick])
    assert front_end.is_closed()
    (line,) = log_lines()
    assert "notes on requests of another queue" in line
    os.close(descriptor)


def test_reset_device_has_nothing_under_way(keeper, connect, memory):
    model, path = keeper
    front_end = connect(path)
    front_end.send(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, 1, 128, 0))
    _, _, area, (descriptor,) = front_end.receive()
    assert front_end.do(fe.SET_INFLIGHT_FD, area, [descriptor]) == 0
    (queue,) = front_end.start(memory)
    queue.add([b"old"], [10])
    model.next()
    assert front_end.do(fe.RESET_DEVICE) == 0
    queue.close()
    (queue,) = front_end.start(memory)
    queue.add([b"new"], [10])
    chain = model.next()
    assert chain.request == b"new"
    assert chain.answer([b"x"])
    assert queue.wait() == [(0, 1)]
    os.close(descriptor)


@pytest.mark.parametrize("shape", [(0, 128), (1, 0), (257, 128), (1, 0xFFFF), (0xFFFF, 0xFFFF)])
def test_notes_for_impossible_queues_are_not_made(echo, connect, shape):
    front_end = connect(echo)
    assert front_end.ask(fe.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, *shape, 0)) == bytes(24)
    assert front_end.do(fe.SET_OWNER) == 0
