"""Reads that wait: answered once, whoever is first of data, deadline and interrupt."""

import errno
import threading

import pytest
from support import fuse_wire as wire
from support.fuse_memory import small_tree
from support.fuse_wire import failed, ok, read, request

from rafsfs.errors import DigestMismatch
from rafsfs.fuse.server import FuseServer, Interrupted, Pending, ServerOptions

COLD = 9
CONTENT = b"cold" * 100


def serving(handler=None):
    server = FuseServer(handler or small_tree(), ServerOptions())
    wire.joined(server.handle(wire.init()))
    return server


def waiting(server, *, offset=0, size=4096, unique=wire.UNIQUE):
    pending = server.handle(read(COLD, offset, size, unique=unique))
    assert isinstance(pending, Pending)
    assert pending.unique == unique
    return pending


def test_data_comes_when_it_is_there():
    assert wire.joined(waiting(serving(), offset=4, size=10).run()) == ok(CONTENT[4:14])


def test_read_that_fails_is_answered_and_reported():
    handler = small_tree()
    failure = handler.faults["read", COLD] = DigestMismatch("chunk is not the sealed one")
    assert wire.joined(waiting(serving(handler), offset=4, size=10).run()) == failed(errno.EIO)
    assert handler.reports == [(failure, COLD, 4, 10)]


def test_mistake_in_a_read_is_answered_and_reported():
    handler = small_tree()
    failure = handler.faults["read", COLD] = ZeroDivisionError()
    assert wire.joined(waiting(serving(handler)).run()) == failed(errno.EIO)
    assert handler.reports == [(failure, COLD, 0, 4096)]


def test_nothing_is_kept_of_the_request():
    buffer = bytearray(read(COLD, 0, 8))
    pending = serving().handle(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert wire.joined(pending.run()) == ok(CONTENT[:8])


def test_interrupt_names_the_read_that_waits_and_is_the_only_answer():
    handler = small_tree()
    server = serving(handler)
    other = waiting(server, unique=10)
    pending = waiting(server, unique=20)
    outcome = server.handle(wire.interrupt(20))
    assert outcome == Interrupted(pending)
    assert wire.joined(outcome.pending.interrupted()) == failed(errno.EINTR, unique=20)
    handler.faults["read", COLD] = AssertionError("nobody waits for it")
    assert pending.run() is None
    assert pending.error(errno.EIO) is None
    assert pending.interrupted() is None
    assert server.handle(wire.interrupt(20)) is None
    del handler.faults["read", COLD]
    assert wire.joined(other.run()) == ok(CONTENT, unique=10)
    assert handler.reports == []


def test_interrupt_after_the_answer_is_ignored():
    server = serving()
    pending = waiting(server)
    assert wire.joined(pending.run()) == ok(CONTENT)
    assert server.handle(wire.interrupt(wire.UNIQUE)) is None
    assert pending.run() is None


def test_deadline_beats_a_read_that_hangs():
    handler = small_tree()
    entered, go_on = threading.Event(), threading.Event()

    def read_when_told(node, offset, size):
        entered.set()
        assert go_on.wait(60)
        return [CONTENT]

    handler.read = read_when_told
    server = serving(handler)
    pending = waiting(server)
    late = []
    worker = threading.Thread(target=lambda: late.append(pending.run()))
    worker.start()
    assert entered.wait(60)
    assert wire.joined(pending.error(errno.ETIMEDOUT)) == failed(errno.ETIMEDOUT)
    go_on.set()
    worker.join(60)
    assert late == [None]


def test_same_unique_twice_confuses_nobody():
    """Kernels never do it; a guest can."""
    server = serving()
    first, second = waiting(server), waiting(server)
    assert wire.joined(first.run()) == ok(CONTENT)
    assert server.handle(wire.interrupt(wire.UNIQUE)) == Interrupted(second)
    assert wire.joined(second.interrupted()) == failed(errno.EINTR)


def test_nothing_is_kept_of_answered_reads():
    server = serving()
    for unique in range(2, 2000, 2):
        pending = waiting(server, unique=unique)
        assert (pending.run if unique % 4 else pending.interrupted)() is not None
    assert server._pending == {}


@pytest.mark.parametrize("rounds", [200])
def test_many_threads_get_one_answer(rounds):
    server = serving()
    for number in range(rounds):
        pending = waiting(server, unique=2 * number + 2)
        barrier = threading.Barrier(3)
        answers = []

        def race(call, barrier=barrier, answers=answers):
            barrier.wait(60)
            answers.append(call())

        racers = [
            threading.Thread(target=race, args=(call,))
            for call in (pending.run, pending.interrupted, pending.run)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60)
        assert len(answers) == 3
        [only] = [answer for answer in answers if answer is not None]
        wire.joined(only)


def test_reads_wait_through_a_destroy():
    server = serving()
    pending = waiting(server)
    assert wire.joined(server.handle(request(wire.DESTROY, node=0, unique=4))) == ok(unique=4)
    assert wire.joined(pending.run()) == ok(CONTENT)
