"""A device end to end, over a real socket: guests are answered, whatever they and their drivers do."""

import os
import random
import struct
import threading

import pytest
from support import vhost_frontend as fe
from support.vhost_frontend import D_NEXT, D_WRITE, EVENT_IDX, FEATURES, INDIRECT, MIB, TIMEOUT_S, FrontEnd

from vhost import limits
from vhost.model import LATER, DeviceModel


class Custom(DeviceModel):
    """Does what a function says."""

    queues = 2

    def __init__(self, function):
        self.handle = function


@pytest.fixture
def serve(back_end):
    def served(function):
        path = back_end.serve(Custom(function))
        back_end.start()
        return path

    return served


# --- Requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "features", [FEATURES, FEATURES & ~EVENT_IDX, FEATURES & ~INDIRECT, fe.PROTOCOL_FEATURES]
)
def test_queues_answer(echo, connect, memory, features):
    front_end = connect(echo)
    queues = front_end.start(memory, 4, size=16, features=features)
    for turn in range(40):
        for queue in queues:
            parts = [os.urandom(turn), b"", os.urandom(3 * turn)]
            assert queue.ask(*parts, room=(1, turn, 0, 4 * turn)) == b"".join(parts)
    assert front_end.stop() == [40] * 4


def test_many_requests_at_once_are_answered_each_with_its_own(echo, connect, share):
    memory = share(64 * MIB)
    front_end = connect(echo)
    queues = front_end.start(memory, 4, size=256)
    sent, came = {}, {}
    for _ in range(12):
        for queue in queues:
            for _ in range(200):
                content = os.urandom(random.randrange(1, 300))
                sent[queue.index, queue.add([content], [300])] = content
        for queue in queues:
            for head, length in queue.wait(200):
                came[queue.index, head] = queue.take(head, length)
        assert came == sent
    assert front_end.stop() == [2400] * 4


def test_chain_is_told_its_queue_room_and_request(serve, connect, memory):
    seen = []

    def handle(chain):
        seen.append((chain.queue, chain.request, chain.room))
        return ()

    front_end = connect(serve(handle))
    queues = front_end.start(memory, 2)
    assert queues[1].ask(b"ab", b"c", room=(5, 6)) == b""
    assert queues[0].ask(b"no room at all", room=()) == b""
    assert queues[0].ask(room=(7,)) == b""
    assert seen == [(1, b"abc", 11), (0, b"no room at all", 0), (0, b"", 7)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_answer_in_parts_is_written_with_its_exact_length(serve, connect, memory, kind):
    front_end = connect(serve(lambda chain: [kind(b"12"), b"", kind(b"3"), kind(b"45678")]))
    (queue,) = front_end.start(memory)
    assert queue.ask(room=(1, 4, 3)) == b"12345678"
    assert queue.ask(room=(100,)) == b"12345678"


def test_answers_come_later_in_any_order_from_any_thread(keeper, connect, memory):
    model, path = keeper
    front_end = connect(path)
    (queue,) = front_end.start(memory)
    heads = {queue.add([str(number).encode()], [10]): str(number).encode() for number in range(30)}
    chains = [model.next() for _ in heads]
    random.shuffle(chains)
    threads = [
        threading.Thread(target=lambda part: [c.answer([c.request]) for c in part], args=(chains[n::3],))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    came = queue.wait(30)
    assert {head: queue.take(head, length) for head, length in came} == heads
    for chain in chains:
        assert not chain.answer([b"again"])
    queue.add([b"and"], [10])
    assert model.next().answer([b"on"])
    assert queue.wait() == [(30, 2)]


def test_answer_given_before_the_device_returns_is_the_one(serve, connect, memory):
    def handle(chain):
        assert chain.answer([b"first"])
        assert not chain.answer([b"second"])
        return LATER if chain.request == b"later" else [b"third"]

    front_end = connect(serve(handle))
    (queue,) = front_end.start(memory)
    assert queue.ask(b"later") == b"first"
    assert queue.ask(b"now") == b"first"
    assert front_end.stop() == [2]


def test_batch_that_takes_too_long_goes_on_in_the_next_turn(echo, connect, memory, monkeypatch):
    monkeypatch.setattr(limits, "TURN_S", -1.0)
    front_end = connect(echo)
    (queue,) = front_end.start(memory)
    contents = [str(number).encode() for number in range(100)]
    heads = [queue.add([content], [10], kick=False) for content in contents]
    os.eventfd_write(queue.kick, 1)
    came = queue.wait(100)
    assert [head for head, _ in came] == heads
    assert [queue.take(head, length) for head, length in came] == contents
    assert front_end.stop() == [100]


# --- Devices that fail ------------------------------------------------------------------------------------


def test_failure_of_the_device_is_an_empty_answer_and_a_line(serve, connect, memory, log_lines):
    answers = [ValueError("oh"), [b"x" * 11], [object()], 5, None, ["text"], [b"good"]]

    def handle(chain):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    front_end = connect(serve(handle))
    (queue,) = front_end.start(memory)
    count = len(answers)
    assert [queue.ask(room=(10,)) for _ in range(count)] == [b""] * (count - 1) + [b"good"]
    lines = log_lines()
    assert len(lines) == count - 1
    assert "10 bytes of room for an answer of 11" in lines[1]


def test_answer_from_another_thread_that_does_not_fit_is_empty(keeper, connect, memory, log_lines):
    model, path = keeper
    (queue,) = connect(path).start(memory)
    queue.add([b"a"], [3])
    assert model.next().answer([b"four"])
    assert queue.wait() == [(0, 0)]
    assert len(log_lines()) == 1


# --- Drivers that lie -------------------------------------------------------------------------------------


def test_bad_chain_is_returned_empty_and_the_next_is_served(echo, connect, memory, log_lines):
    front_end = connect(echo)
    queue, other = front_end.start(memory, 2)
    bad = [
        [(0x10, 4, 0)],
        [(memory.guest_base + memory.size - 1, 2, 0)],
        [(2**64 - 1, 2**32 - 1, 0)],
        [(memory.guest_base, 2**31, 0), (memory.guest_base, 2**31, 0)],
        [(memory.guest_base, 1, D_WRITE), (memory.guest_base, 1, 0)],
        [(memory.guest_base, 4, 0), (0x10, 4, D_WRITE)],  # the answer cannot be written
        [(memory.guest_base, 4, 0), (memory.guest_base, 3, D_WRITE)],  # nor can this
    ]
    for spans in bad:
        head = queue.add_spans(spans)
        assert queue.wait() == [(head, 0)]
        assert other.ask(b"as ever") == b"as ever"
    assert queue.ask(b"and now") == b"and now"
    assert len(log_lines()) == len(bad)


def test_lines_about_a_guest_are_bounded(echo, connect, share, log_lines):
    (queue,) = connect(echo).start(share())
    for _ in range(50):
        for _ in range(20):
            queue.put_descriptor(0, 0x10, 4)
            queue.offer(0)
            queue.notify(queue.next_available - 1)
            queue.wait()
    assert limits.COMPLAINTS_MAX <= len(log_lines()) <= limits.COMPLAINTS_MAX + 5


BROKEN_RINGS = {
    "index runs wild": lambda queue: queue._available.__setitem__(1, queue.next_available + queue.size + 1),
    "chain begins nowhere": lambda queue: queue.offer(queue.size),
    "chain twice in one batch": lambda queue: queue.offer(0, 0),
}


@pytest.mark.parametrize("how", BROKEN_RINGS)
def test_queue_with_a_broken_ring_rests_until_its_driver_starts_anew(echo, connect, memory, log_lines, how):
    front_end = connect(echo)
    queue, other = front_end.start(memory, 2)
    assert queue.ask(b"before") == b"before"
    queue.put_descriptor(0, memory.guest_base, 4)
    BROKEN_RINGS[how](queue)
    os.eventfd_write(queue.kick, 1)
    assert fe.select.select([queue.err], [], [], TIMEOUT_S)[0]
    for _ in range(3):
        os.eventfd_write(queue.kick, 1)
        assert other.ask(b"as ever") == b"as ever"
    assert queue.collect() == []
    (line,) = log_lines()
    assert "queue 0 rests" in line

    front_end.stop()
    for old in front_end.queues:
        old.close()
    queue, _ = front_end.start(memory, 2)
    assert queue.ask(b"anew") == b"anew"


def test_chain_under_way_that_is_offered_again_breaks_the_ring_and_still_is_answered(keeper, connect, memory):
    model, path = keeper
    front_end = connect(path)
    (queue,) = front_end.start(memory)
    head = queue.add([b"a"], [10])
    chain = model.next()
    queue.offer(head)
    os.eventfd_write(queue.kick, 1)
    assert fe.select.select([queue.err], [], [], TIMEOUT_S)[0]
    assert model.chains.empty()
    assert chain.answer([b"b"])
    assert queue.wait() == [(head, 1)]


# --- Start, stop, reset -----------------------------------------------------------------------------------


def test_stopped_guest_goes_on_where_it_was(echo, connect, memory):
    front_end = connect(echo)
    (queue,) = front_end.start(memory)
    for turn in range(5):
        assert queue.ask(b"%d" % turn) == b"%d" % turn
        (base,) = front_end.stop()
        assert base == turn + 1
        front_end.restart(memory, base=base)


def test_guest_that_boots_again_begins_at_zero(echo, connect, memory):
    front_end = connect(echo)
    for _ in range(3):
        queues = front_end.start(memory, 2)
        assert [queue.ask(b"hello") for queue in queues] == [b"hello"] * 2
        front_end.stop()
        for queue in queues:
            queue.close()
        front_end.queues = []


def test_requests_from_before_the_start_are_served(echo, connect, memory):
    front_end = connect(echo)
    (queue,) = front_end.start(memory)
    front_end.stop()
    head = queue.add([b"early"], [10], kick=False)
    front_end.restart(memory)
    assert queue.wait() == [(head, 5)]


def test_disabled_queue_waits(echo, connect, memory):
    front_end = connect(echo)
    queue, other = front_end.start(memory, 2)
    assert front_end.do(fe.SET_VRING_ENABLE, fe.state(0, 0)) == 0
    head = queue.add([b"patience"], [10])
    assert other.ask(b"x") == b"x"
    assert queue.collect() == []
    assert front_end.do(fe.SET_VRING_ENABLE, fe.state(0, 1)) == 0
    assert queue.wait() == [(head, 8)]
    assert front_end.do(fe.RESET_OWNER) == 0  # disables all
    queue.add([b"for ever"], [10])
    other.add([b"and ever"], [10])
    assert struct.unpack("=II", front_end.ask(fe.GET_VRING_BASE, fe.state(0, 0))) == (0, 1)
    assert queue.collect() == other.collect() == []


def test_queues_are_enabled_at_once_where_that_cannot_be_said(echo, memory):
    """What a front end does that knows nothing of protocol features."""
    with FrontEnd(echo) as front_end:
        front_end.queues = [fe.Queue(memory, 0, features=fe.VERSION_1)]
        front_end.number(fe.GET_FEATURES)
        front_end.send(fe.SET_OWNER)
        front_end.send(fe.SET_FEATURES, fe.u64(fe.VERSION_1))
        front_end.share(memory)
        front_end.start_queue(front_end.queues[0])
        assert front_end.queues[0].ask(b"x") == b"x"


def test_stop_waits_for_what_is_under_way_while_others_are_served(keeper, connect, memory):
    model, path = keeper
    front_end = connect(path)
    queue, other = front_end.start(memory, 2)
    heads = [queue.add([b"slow"], [10]) for _ in range(3)]
    chains = [model.next() for _ in heads]

    front_end.send(fe.GET_VRING_BASE, fe.state(0, 0))
    front_end.send(fe.GET_FEATURES)  # has to wait as well
    other.add([b"fast"], [10])
    assert model.next().answer([b"a"])
    assert other.wait() == [(0, 1)]
    for chain in chains:
        queue.add([b"not any more"], [10])
        assert chain.answer([b"b"])
    assert sorted(queue.wait(3)) == [(head, 1) for head in heads]
    assert front_end.receive()[2] == fe.state(0, 3)
    assert front_end.receive()[0] == fe.GET_FEATURES
    assert model.chains.empty()


def test_what_is_under_way_for_too_long_is_given_up(keeper, connect, memory, monkeypatch, log_lines):
    monkeypatch.setattr(limits, "DRAIN_S", 0.0)
    model, path = keeper
    front_end = connect(path)
    (queue,) = front_end.start(memory)
    for last_words in ([b"given up"], [b"too long" * 100], None):
        model.last_words = last_words
        head = queue.add([b"slow"], [10])
        chain = model.next()
        (base,) = front_end.stop()
        expected = b"given up" if last_words == [b"given up"] else b""
        assert queue.wait() == [(head, len(expected))]
        assert queue.take(head, len(expected)) == expected
        assert not chain.answer([b"late"])
        front_end.restart(memory, base=base)
    assert sum("is given up" in line for line in log_lines()) == 3


def test_reset_forgets_everything_at_once(keeper, connect, memory):
    model, path = keeper
    front_end = connect(path)
    (queue,) = front_end.start(memory)
    queue.add([b"a"], [10])
    chain = model.next()
    assert front_end.do(fe.RESET_DEVICE) == 0
    assert model.resets == 1
    assert not chain.answer([b"late"])
    assert queue.collect() == []
    assert front_end.stop() == [0]
    queue.close()
    (queue,) = front_end.start(memory)
    queue.add([b"b"], [10])
    assert model.next().answer([b"c"])
    assert queue.wait() == [(0, 1)]


def test_status_is_kept_and_resets_nothing(keeper, connect, memory):
    """QEMU sets it to zero whenever a device stops, also when the guest is only paused."""
    model, path = keeper
    front_end = connect(path)
    front_end.start(memory)
    assert front_end.number(fe.GET_STATUS) == 0xF
    front_end.stop()
    assert front_end.do(fe.SET_STATUS, fe.u64(0)) == 0
    assert front_end.number(fe.GET_STATUS) == 0
    assert model.resets == 0


# --- Kick and call ----------------------------------------------------------------------------------------


def test_queue_without_a_kick_descriptor_is_looked_at(echo, connect, memory):
    front_end = connect(echo)
    (queue,) = front_end.start(memory)
    assert front_end.do(fe.SET_VRING_KICK, fe.u64(fe.NO_FD)) == 0
    for turn in range(3):
        head = queue.add([b"x"], [10], kick=False)
        assert queue.wait() == [(head, 1)], turn


def test_guest_that_looks_by_itself_is_not_called(echo, connect, memory):
    front_end = connect(echo)
    (queue,) = front_end.start(memory)
    assert front_end.do(fe.SET_VRING_CALL, fe.u64(fe.NO_FD)) == 0
    head = queue.add([b"x"], [10])
    found = []
    while not found:
        found = queue.collect()
    assert found == [(head, 1)]


def test_new_call_descriptor_is_called_at_once(echo, connect, memory):
    """The back end before may have ended between an answer and its call."""
    front_end = connect(echo)
    front_end.start(memory)
    new = os.eventfd(0)
    assert front_end.do(fe.SET_VRING_CALL, fe.u64(0), [new]) == 0
    assert os.eventfd_read(new) == 1
    os.close(new)


def test_pipes_do_in_the_place_of_eventfds_and_their_end_is_survived(echo, connect, memory, log_lines):
    front_end = connect(echo)
    queue, other = front_end.start(memory, 2, features=FEATURES & ~EVENT_IDX)
    kicked, kicks = os.pipe()
    called, calls = os.pipe()
    assert front_end.do(fe.SET_VRING_KICK, fe.u64(0), [kicked]) == 0
    assert front_end.do(fe.SET_VRING_CALL, fe.u64(0), [calls]) == 0
    os.close(kicked)
    os.close(calls)
    os.read(called, 8)
    queue.add([b"x"], [10], kick=False)
    os.write(kicks, bytes(8))
    os.read(called, 8)
    assert queue.collect() == [(0, 1)]

    os.close(called)
    queue.add([b"y"], [10], kick=False)
    os.write(kicks, bytes(8))
    assert other.ask(b"as ever") == b"as ever"
    os.close(kicks)
    while len(log_lines()) < 2:
        front_end.number(fe.GET_FEATURES)
    assert other.ask(b"as ever") == b"as ever"
    assert front_end.stop() == [2, 2]


@pytest.mark.parametrize("request_", [fe.SET_VRING_KICK, fe.SET_VRING_CALL, fe.SET_VRING_ERR])
def test_descriptor_that_is_full_closed_or_of_no_use_hangs_nobody(echo, connect, memory, request_):
    front_end = connect(echo)
    queue, other = front_end.start(memory, 2)
    full_end, full = os.pipe()
    os.set_blocking(full, False)
    while True:
        try:
            os.write(full, bytes(65536))
        except BlockingIOError:
            break
    os.set_blocking(full, True)
    zeros = os.open("/dev/zero", os.O_RDWR)
    useless = os.open("/", os.O_PATH)
    folder = os.open("/", os.O_RDONLY)
    full_event = os.eventfd(0)
    os.eventfd_write(full_event, 2**64 - 2)
    for descriptor in (full, full_end, zeros, folder, full_event):
        assert front_end.do(request_, fe.u64(0), [descriptor]) == 0
        os.set_blocking(descriptor, True)  # it is the front end's as well
        queue.offer(0)
        os.eventfd_write(queue.kick, 1)
        assert other.ask(b"as ever") == b"as ever"
    assert front_end.do(request_, fe.u64(0), [useless]) == 1
    assert other.ask(b"as ever") == b"as ever"
    for descriptor in (full, full_end, zeros, useless, folder, full_event):
        os.close(descriptor)


def test_a_kick_that_never_ends_is_listened_to_no_more_until_it_is_set_again(
    echo, connect, memory, log_lines
):
    front_end = connect(echo)
    queue, other = front_end.start(memory, 2)
    zeros = os.open("/dev/zero", os.O_RDWR)
    assert front_end.do(fe.SET_VRING_KICK, fe.u64(0), [zeros]) == 0
    os.close(zeros)
    while not log_lines():
        assert other.ask(b"as ever") == b"as ever"
    assert "queue 0 is kicked again and again for nothing" in log_lines()[0]
    assert front_end.do(fe.SET_VRING_KICK, fe.u64(0), [queue.kick]) == 0
    assert queue.ask(b"again") == b"again"
    assert len(log_lines()) == 1


def test_kicks_that_bring_no_chain_are_no_trouble_between_those_that_do(
    echo, connect, memory, log_lines, monkeypatch
):
    monkeypatch.setattr(limits, "IDLE_KICKS_MAX", 4)
    (queue,) = connect(echo).start(memory)
    for _ in range(20):
        os.eventfd_write(queue.kick, 1)
        assert queue.ask(b"still") == b"still"
    assert log_lines() == []


# --- Memory that changes ----------------------------------------------------------------------------------


def region(memory):
    return fe.u64(0) + memory.region()


@pytest.fixture
def two(share):
    """Memory for the rings, and memory for what is asked."""
    rings = share()
    return rings, share(MIB, guest_base=rings.guest_base + rings.size, user_base=1 << 44)


def test_regions_come_and_go_while_a_queue_runs(echo, connect, two):
    rings, data = two
    front_end = connect(echo)
    (queue,) = front_end.start(rings)
    for _ in range(3):
        head = queue.add_spans([(data.guest_base, 4, 0), (data.guest_base + 8, 4, D_WRITE)])
        assert queue.wait() == [(head, 0)]
        assert front_end.do(fe.ADD_MEM_REG, region(data), [data.fd]) == 0
        data.write(data.guest_base, b"data....----")
        head = queue.add_spans([(data.guest_base, 4, 0), (data.guest_base + 8, 4, D_WRITE)])
        assert queue.wait() == [(head, 4)]
        assert data.read(data.guest_base, 12) == b"data....data"
        assert front_end.do(fe.ADD_MEM_REG, region(data), [data.fd]) == 1
        assert front_end.do(fe.REM_MEM_REG, region(data)) == 0
        assert front_end.do(fe.REM_MEM_REG, region(data), [data.fd]) == 1


def test_answer_into_memory_that_was_taken_away_is_not_written(keeper, connect, two):
    model, path = keeper
    rings, data = two
    front_end = connect(path)
    (queue,) = front_end.start(rings)
    assert front_end.do(fe.ADD_MEM_REG, region(data), [data.fd]) == 0
    gone, stays = queue.add_spans([(data.guest_base, 8, D_WRITE)]), queue.add([], [8])
    chains = {chain.head: chain for chain in (model.next(), model.next())}
    assert front_end.do(fe.REM_MEM_REG, region(data)) == 0
    assert chains[gone].answer([b"too late"])
    assert chains[stays].answer([b"in time!"])
    assert queue.wait(2) == [(gone, 0), (stays, 8)]
    assert data.map[:] == bytes(MIB)


def test_requests_under_way_survive_another_memory_table(keeper, connect, two):
    model, path = keeper
    rings, data = two
    front_end = connect(path)
    (queue,) = front_end.start(rings)
    head = queue.add([b"a"], [10])
    chain = model.next()
    front_end.share(rings, data)
    assert chain.answer([b"b"])
    assert queue.wait() == [(head, 1)]
    head = queue.add_spans([(data.guest_base, 4, D_WRITE)])
    assert model.next().answer([b"c"])
    assert queue.wait() == [(head, 1)]
    assert front_end.stop() == [2]


def test_queue_whose_rings_are_taken_away_ends_and_can_be_started_anew(keeper, connect, two, log_lines):
    model, path = keeper
    rings, data = two
    front_end = connect(path)
    (queue,) = front_end.start(rings)
    queue.add([b"a"], [10])
    chain = model.next()
    front_end.share(data)
    front_end.number(fe.GET_FEATURES)
    assert not chain.answer([b"late"])
    os.eventfd_write(queue.kick, 1)
    front_end.stop()
    (line,) = log_lines()
    assert "lost its memory" in line
    queue.close()
    (queue,) = front_end.start(rings)
    queue.add([b"b"], [10])
    assert model.next().answer([b"c"])
    assert queue.wait() == [(0, 1)]


def test_table_that_is_refused_changes_nothing(echo, connect, two):
    rings, data = two
    front_end = connect(echo)
    (queue,) = front_end.start(rings)
    table = struct.pack("=II", 2, 0) + 2 * data.region()
    assert front_end.do(fe.SET_MEM_TABLE, table, [data.fd] * 2) == 1
    assert queue.ask(b"as ever") == b"as ever"


# --- Messages that are refused ----------------------------------------------------------------------------

REFUSED = {
    "no such queue": (fe.SET_VRING_NUM, fe.state(4, 16)),
    "no such queue, far": (fe.SET_VRING_BASE, fe.state(2**32 - 1, 0)),
    "no such queue to enable": (fe.SET_VRING_ENABLE, fe.state(4, 1)),
    "no such queue to call": (fe.SET_VRING_CALL, fe.u64(4 | fe.NO_FD)),
    "a size of nothing": (fe.SET_VRING_NUM, fe.state(1, 0)),
    "an odd size": (fe.SET_VRING_NUM, fe.state(1, 100)),
    "a huge size": (fe.SET_VRING_NUM, fe.state(1, 1 << 31)),
    "a size while it runs": (fe.SET_VRING_NUM, fe.state(0, 16)),
    "a base while it runs": (fe.SET_VRING_BASE, fe.state(0, 0)),
    "a base of other queues": (fe.SET_VRING_BASE, fe.state(1, 0x1_0000)),
    "addresses before the size": (fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", 1, 0, 0, 0, 0, 0)),
    "addresses nowhere": (fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, 0, 0, 0, 0)),
    "addresses not aligned": (fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, *[fe.USER_BASE + 1] * 3, 0)),
    "addresses beyond all": (fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, *[2**64 - 16] * 3, 0)),
    "strange features": (fe.SET_FEATURES, fe.u64(1 << 63)),
    "a region that is not there": (fe.REM_MEM_REG, struct.pack("=QQQQQ", 0, 1, 1, 1, 0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_message_is_said_so_or_ends_the_connection(echo, connect, memory, log_lines, name):
    request, payload = REFUSED[name]
    front_end = connect(echo)
    (queue,) = front_end.start(memory)
    for _ in range(2):
        assert front_end.do(request, payload) == 1
        assert queue.ask(b"as ever") == b"as ever"
    before = len(log_lines())
    front_end.send(request, payload)
    assert front_end.is_closed()
    assert len(log_lines()) == before + 1


def test_base_of_no_queue_ends_the_connection(echo, connect, log_lines):
    front_end = connect(echo)
    front_end.send(fe.GET_VRING_BASE, fe.state(4, 0), flags=1 | fe.NEED_REPLY)
    assert front_end.is_closed()
    assert len(log_lines()) == 1


def test_everything_may_be_said_twice(echo, connect, memory):
    front_end = connect(echo)
    front_end.negotiate()
    (queue,) = front_end.start(memory)
    front_end.send(fe.SET_OWNER)
    front_end.share(memory)
    front_end.send(fe.SET_VRING_ADDR, front_end.addresses(queue))
    front_end.send(fe.SET_VRING_KICK, fe.u64(0), [queue.kick])
    front_end.send(fe.SET_VRING_ENABLE, fe.state(0, 1))
    assert queue.ask(b"x") == b"x"
    assert front_end.stop() == front_end.stop() == [1]
    for _ in range(2):
        assert front_end.do(fe.RESET_DEVICE) == 0
    front_end.restart(memory)


def test_message_order_is_free_up_to_the_start(echo, connect, memory):
    """Kick and enable before the addresses: the queue starts when all is there."""
    front_end = connect(echo)
    queue = fe.Queue(memory, 1)
    front_end.queues = [queue]
    front_end.send(fe.SET_VRING_ENABLE, fe.state(1, 1))
    front_end.send(fe.SET_VRING_KICK, fe.u64(1), [queue.kick])
    front_end.send(fe.SET_VRING_NUM, fe.state(1, queue.size))
    front_end.send(fe.SET_FEATURES, fe.u64(FEATURES))
    front_end.send(fe.SET_VRING_CALL, fe.u64(1), [queue.call])
    front_end.share(memory)
    assert front_end.do(fe.SET_VRING_ADDR, front_end.addresses(queue)) == 0
    assert queue.ask(b"x") == b"x"


def test_indirect_tables_only_where_they_were_negotiated(echo, connect, memory):
    front_end = connect(echo)
    (queue,) = front_end.start(memory, features=FEATURES & ~INDIRECT)
    queue.put_descriptor(5, memory.guest_base, 16, fe.D_INDIRECT)
    queue.offer(5)
    os.eventfd_write(queue.kick, 1)
    assert queue.wait() == [(5, 0)]
    queue.put_descriptor(6, memory.guest_base, 4, D_NEXT, 7)
    queue.put_descriptor(7, memory.allocate(8), 8, D_WRITE)
    queue.offer(6)
    os.eventfd_write(queue.kick, 1)
    assert queue.wait() == [(6, 4)]
