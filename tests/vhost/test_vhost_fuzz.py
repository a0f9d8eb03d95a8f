"""Random messages and random rings: errors are fine; a crash, a hang, or a file left open is a bug.

``RAFSFS_EXAMPLES`` sets how long to look; the seed of a failure is in its message.
"""

import os
import random
import struct
from contextlib import suppress

import pytest
from support import vhost_frontend as fe
from support.vhost_frontend import FEATURES, FrontEnd, Memory
from support.vhost_server import Echo, open_files

EXAMPLES = int(os.environ.get("RAFSFS_EXAMPLES", "100"))
NUMBERS = [0, 1, 2, 3, 7, 8, 255, 256, 4095, 4096, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1]


@pytest.fixture
def guests(back_end, connect, share):
    """The path for whoever lies, and a check that an honest guest is served as ever."""
    paths = [back_end.serve(Echo()), back_end.serve(Echo())]
    back_end.start()
    (queue,) = connect(paths[0]).start(share(256 * fe.MIB))
    asked = iter(range(1 << 62))

    def honest():
        content = b"%d" % next(asked)
        assert queue.ask(content, room=(len(content),)) == content

    return paths[1], honest


def number(rng, bits):
    return (rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64)) & ((1 << bits) - 1)


def payload(rng, request, memory, queue):
    """One that is right, or nearly, or nothing like it."""
    addresses = [memory.user(at) for at in (queue.descriptors, queue.used, queue.available)]
    if rng.random() < 0.3:
        addresses[rng.randrange(3)] = number(rng, 64)
    right = {
        fe.SET_FEATURES: fe.u64(FEATURES | rng.choice([0, fe.LOG_ALL])),
        fe.SET_PROTOCOL_FEATURES: fe.u64(fe.ALL_PROTOCOL),
        fe.SET_MEM_TABLE: struct.pack("=II", 1, 0) + memory.region(),
        fe.SET_VRING_ADDR: struct.pack(
            "=IIQQQQ", rng.randrange(5), rng.randrange(2), *addresses, number(rng, 64)
        ),
        fe.SET_VRING_NUM: fe.state(rng.randrange(5), rng.choice([queue.size, 1, 4096, number(rng, 32)])),
        fe.SET_LOG_BASE: struct.pack(
            "=QQ", rng.choice([4096, number(rng, 64)]), rng.choice([0, number(rng, 64)])
        ),
        fe.GET_INFLIGHT_FD: struct.pack("=QQHHI", 0, 0, number(rng, 16), number(rng, 16), 0),
        fe.SET_INFLIGHT_FD: struct.pack("=QQHHI", *[number(rng, 64) for _ in range(2)], 2, 64, 0),
        fe.ADD_MEM_REG: fe.u64(0) + struct.pack("=QQQQ", *[number(rng, 64) for _ in range(4)]),
        fe.REM_MEM_REG: fe.u64(0) + memory.region(),
        fe.SET_DEVICE_STATE_FD: struct.pack("=II", rng.randrange(3), rng.randrange(2)),
        fe.SET_STATUS: fe.u64(number(rng, 64)),
    }
    if request in right:
        made = right[request]
    elif request in (fe.SET_VRING_BASE, fe.GET_VRING_BASE, fe.SET_VRING_ENABLE):
        made = fe.state(rng.randrange(5), rng.choice([0, 1, number(rng, 32)]))
    elif request in (fe.SET_VRING_KICK, fe.SET_VRING_CALL, fe.SET_VRING_ERR):
        made = fe.u64(rng.randrange(5) | rng.choice([0, 0, fe.NO_FD]))
    else:
        made = b""
    if rng.random() < 0.1 and made:
        made = bytearray(made)
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.03:
        made = made[:-1] if rng.random() < 0.5 else bytes(made) + b"\0"
    return bytes(made)


WITH_FILE = {
    *(fe.SET_MEM_TABLE, fe.SET_LOG_BASE, fe.SET_LOG_FD, fe.SET_BACKEND_REQ_FD, fe.SET_INFLIGHT_FD),
    *(fe.ADD_MEM_REG, fe.SET_DEVICE_STATE_FD),
}
REQUESTS = [*range(1, 19), 21, 31, 32, 34, *range(36, 41), 42, 43]


def files(rng, request, said, memory, queue):
    """Descriptors to send: most often as many as there have to be."""
    is_wanted = request in WITH_FILE or (
        request in (fe.SET_VRING_KICK, fe.SET_VRING_CALL, fe.SET_VRING_ERR) and said[1:2] != b"\1"
    )
    count = int(is_wanted) if rng.random() < 0.97 else rng.randrange(4)
    right = memory.fd if request in WITH_FILE else queue.kick
    return [right if rng.random() < 0.8 else rng.choice([memory.fd, queue.kick, 0]) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_random_messages(guests, seed, tally):
    path, honest = guests
    rng = random.Random(seed)
    sent = 0
    before = None
    for _ in range(EXAMPLES):
        with Memory(1 << 20) as memory, FrontEnd(path) as front_end:
            queue = fe.Queue(memory, 0, 64)
            with suppress(ConnectionError):
                front_end.negotiate()
                if rng.random() < 0.5:
                    front_end.queues = [queue]
                    front_end.restart(memory)
                for _ in range(rng.randrange(1, 30)):
                    request = rng.choice(REQUESTS) if rng.random() < 0.95 else rng.getrandbits(8)
                    said = payload(rng, request, memory, queue)
                    front_end.send(
                        request,
                        said,
                        files(rng, request, said, memory, queue),
                        flags=9 if rng.random() < 0.9 else rng.choice([1, 1, 5, 0]),
                    )
                    sent += 1
                    if rng.random() < 0.2:
                        queue.offer(rng.randrange(64))
                        os.eventfd_write(queue.kick, 1)
            front_end.queues = []
            queue.close()
        honest()
        with FrontEnd(path) as front_end:  # what was there before is cleared away when this one is served
            front_end.number(fe.GET_FEATURES)
            before = before or open_files()
            assert open_files() == before
    tally("random messages", sent)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("features", [FEATURES, FEATURES & ~fe.EVENT_IDX])
def test_random_rings(guests, seed, features, tally):
    """Descriptors, tables and rings are random, or nearly right, while the queue is served."""
    path, honest = guests
    rng = random.Random(seed)
    offered = 0
    with Memory(1 << 20) as memory, FrontEnd(path) as front_end:
        front_end.negotiate()
        for _ in range(3 * EXAMPLES):
            memory._next = 0
            (queue,) = front_end.start(memory, size=64, features=features)
            for _ in range(rng.randrange(1, 8)):
                offered += scribble(rng, memory, queue)
                os.eventfd_write(queue.kick, 1)
            honest()
            bases = front_end.stop()
            assert bases[0] < 1 << 16
            front_end.queues = []
            queue.close()
        memory._next = 0
        memory.map[:] = bytes(1 << 20)
        assert front_end.start(memory)[0].ask(b"as ever") == b"as ever"
    tally("random chains", offered)


def scribble(rng, memory, queue):
    """Offer some chains that hardly one driver would."""
    table = memory.guest_base + (1 << 19)
    for _ in range(rng.randrange(20)):
        near = memory.guest_base + rng.randrange(memory.size)
        place = (
            queue.descriptors + 16 * rng.randrange(64)
            if rng.random() < 0.5
            else table + 16 * rng.randrange(64)
        )
        address = rng.choice([near, near, near, table, queue.used, queue.descriptors, number(rng, 64)])
        length = rng.choice([rng.randrange(300), 16, 16 * rng.randrange(64), number(rng, 32)])
        following = rng.randrange(64) if rng.random() < 0.95 else rng.getrandbits(16)
        flags = rng.choice([0, 0, 1, 1, 2, 2, 3, 3, 4, rng.getrandbits(16)])
        memory.write(place, struct.pack("<QIHH", address, length, flags, following))
    heads = rng.sample(range(64), rng.randrange(8))
    queue.offer(*heads)
    if rng.random() < 0.05:
        queue._available[rng.randrange(67)] = rng.getrandbits(16)
    if rng.random() < 0.05:
        queue._used[rng.randrange(len(queue._used))] = rng.getrandbits(16)
    return len(heads)
