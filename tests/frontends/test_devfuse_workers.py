"""Reads on worker threads: all answered once, by data, error or deadline, also while threads hang."""

import errno
import logging
import struct
import threading
import time

import pytest

from rafsfs.frontends import devfuse_workers
from rafsfs.frontends.devfuse_workers import QUICK_S, STALL_S, THREADS_MAX, Workers
from rafsfs.fuse.pending import Pending

LONG_S = 30  # longer than anything takes that comes to an end
NEVER = float("inf")


class Replies:
    """Where replies go: error by unique; waits for them."""

    def __init__(self):
        self._changed = threading.Condition()
        self._found = []

    def send(self, reply):
        if reply is None:
            return
        _, error, unique = struct.unpack_from("<IiQ", reply[0])
        with self._changed:
            self._found.append((unique, -error))
            self._changed.notify_all()

    def after(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._found) >= count, LONG_S), self._found
            return dict(self._found), len(self._found)


@pytest.fixture
def replies():
    return Replies()


@pytest.fixture
def gate():
    """Reads hang until it opens, at the latest at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def workers(replies, gate):
    """Make workers; end their threads, for which the gate has to be open."""
    made = []

    def make(count=2, deadline_s=3600.0):
        made.append(Workers(replies.send, count, deadline_s))
        return made[-1]

    yield make
    gate.set()
    for each in made:
        each.stop()
    wait_until(lambda: threads() == [])


def reply(unique):
    return [struct.pack("<IiQ", 16, 0, unique)]


def read(unique, gate=None, started=None):
    def work():
        if started is not None:
            started.release()
        if gate is not None:
            assert gate.wait(LONG_S)
        return reply(unique)

    return Pending(unique, work, lambda _: None)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "rafsfs-read"]


def wait_until(condition):
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_every_read_is_answered_once_and_threads_are_as_many_as_cores(workers, replies):
    pool = workers(count=2)
    for unique in range(1, 501):
        assert pool.submit(read(unique))
    assert replies.after(500) == (dict.fromkeys(range(1, 501), 0), 500)
    assert len(threads()) == 2
    wait_until(lambda: not pool.is_busy)
    assert pool.check(time.perf_counter()) == NEVER


def test_threads_are_started_when_they_are_needed_and_end_at_the_end(workers, replies):
    pool = workers(count=8)
    assert threads() == []
    pool.submit(read(1))
    replies.after(1)
    assert len(threads()) == 1
    assert all(thread.daemon for thread in threads())
    wait_until(lambda: not pool.is_busy)
    assert pool.stop()
    wait_until(lambda: threads() == [])


def test_a_read_that_hangs_is_given_up_at_its_deadline_and_never_answered_again(
    workers, replies, gate, caplog
):
    pool = workers(count=1, deadline_s=1.0)
    started = threading.Semaphore(0)
    pool.submit(read(7, gate, started))
    assert started.acquire(timeout=LONG_S)
    now = time.perf_counter()
    assert 0 < pool.check(now) - now <= 1.0
    assert pool.is_busy
    with caplog.at_level(logging.ERROR):
        assert pool.check(now + 2) == NEVER
    assert replies.after(1) == ({7: errno.EIO}, 1)
    assert "given up after 1 s" in caplog.text
    assert not pool.is_busy
    gate.set()
    pool.submit(read(8))
    assert replies.after(2) == ({7: errno.EIO, 8: 0}, 2)


def test_deadlines_end_in_the_order_in_which_they_began(workers, replies, gate):
    pool = workers(count=2, deadline_s=100.0)
    started = threading.Semaphore(0)
    pool.submit(read(1, gate, started))
    assert started.acquire(timeout=LONG_S)
    first_at = pool.check(time.perf_counter())
    pool.submit(read(2, gate, started))
    assert started.acquire(timeout=LONG_S)
    assert pool.check(first_at) > first_at
    assert replies.after(1) == ({1: errno.EIO}, 1)


def test_a_read_that_was_interrupted_is_not_given_up_as_well(workers, replies, gate, caplog):
    pool = workers(deadline_s=1.0)
    pending = read(3, gate)
    pool.submit(pending)
    replies.send(pending.interrupted())
    pool.check(time.perf_counter() + 2)
    assert replies.after(1) == ({3: errno.EINTR}, 1)
    assert caplog.text == ""


def test_more_threads_are_started_while_all_hang_and_they_end_afterwards(workers, replies, gate):
    pool = workers(count=2)
    started = threading.Semaphore(0)
    for unique in (1, 2, 3):
        pool.submit(read(unique, gate, started))
    assert [started.acquire(timeout=LONG_S) for _ in range(2)] == [True] * 2
    assert len(threads()) == 2
    now = time.perf_counter()
    assert pool.check(now) <= now + STALL_S  # takes note of what was begun so far
    pool.check(now + STALL_S)
    assert started.acquire(timeout=LONG_S)  # the third, although nothing has ended
    assert len(threads()) == 3
    gate.set()
    assert replies.after(3) == ({1: 0, 2: 0, 3: 0}, 3)
    wait_until(lambda: len(threads()) == 2)


def test_a_queue_that_moves_gets_no_further_threads(workers, replies, gate):
    pool = workers(count=1)
    started = threading.Semaphore(0)
    first = threading.Event()
    pool.submit(read(1, first, started))
    for unique in (2, 3):
        pool.submit(read(unique, gate, started))
    assert started.acquire(timeout=LONG_S)
    now = time.perf_counter()
    pool.check(now)
    first.set()
    assert started.acquire(timeout=LONG_S)  # the second was begun between the checks
    pool.check(now + STALL_S)
    assert len(threads()) == 1
    gate.set()
    replies.after(3)


def test_a_store_that_hangs_costs_a_bounded_number_of_threads(workers, replies, gate):
    pool = workers(count=2)
    for unique in range(1, 2 * THREADS_MAX):
        pool.submit(read(unique, gate))
    now = time.perf_counter()
    for step in range(20 * THREADS_MAX):
        pool.check(now + step * STALL_S)
    assert len(threads()) <= THREADS_MAX
    gate.set()
    assert replies.after(2 * THREADS_MAX - 1)[1] == 2 * THREADS_MAX - 1


def test_where_no_thread_is_to_be_had_the_caller_has_to_do_it(workers, replies, monkeypatch, caplog):
    """As in a container whose number of processes is bounded."""

    class NoThreads:
        Lock = threading.Lock

        class Thread(threading.Thread):
            def start(self):
                raise RuntimeError("can't start new thread")

    pool = workers()
    with monkeypatch.context() as patched:
        patched.setattr(devfuse_workers, "threading", NoThreads)
        assert not pool.submit(read(1))
    assert "no further thread" in caplog.text
    assert not pool.is_busy
    assert pool.submit(read(2))
    assert replies.after(1) == ({2: 0}, 1)


def test_it_knows_whether_the_last_slow_read_was_quick(workers):
    pool = workers()
    assert pool.is_quick
    hanging = read(1)
    pool.adopt(hanging)
    assert not pool.is_quick
    assert pool.is_busy
    pool.forget(hanging)
    assert not pool.is_busy
    pool.finished(read(2), QUICK_S / 2)
    assert pool.is_quick
    pool.finished(read(3), QUICK_S * 2)
    assert not pool.is_quick


def test_the_end_waits_for_no_read_that_hangs(workers, replies, gate):
    pool = workers()
    started = threading.Semaphore(0)
    pool.submit(read(1, gate, started))
    assert started.acquire(timeout=LONG_S)
    assert not pool.stop()
    gate.set()
    wait_until(lambda: threads() == [])
