"""A FUSE connection whose kernel is this test: who serves when threads hang; everybody is answered."""

import errno
import select
import threading
import time
from pathlib import Path

import pytest
from support import fuse_wire as wire
from support.fuse_kernel import COLD, LONG_S, PARTS, lookup, threads, wait_until

from rafsfs.errors import MountError
from rafsfs.frontends import devfuse_transport
from rafsfs.frontends.devfuse_transport import HELD_UP_MAX, IOV_MAX, PATIENCE_S


class AnnouncedLock:
    """A lock that says when somebody asks for it."""

    def __init__(self, lock):
        self._lock = lock
        self.is_asked_for = threading.Event()

    def __enter__(self):
        self.is_asked_for.set()
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()


# --- The first request --------------------------------------------------------------------------------------


def test_a_kernel_that_is_too_old_gets_an_error_and_so_does_who_mounts(connect):
    kernel = connect()
    kernel.send(wire.old_init(20, 0))
    with pytest.raises(MountError, match="no FUSE protocol in common"):
        kernel.transport.negotiate()
    assert kernel.answer() == (2, errno.EPROTO)


def test_a_kernel_of_the_next_protocol_asks_again(connect):
    kernel = connect()
    kernel.send(wire.init(major=8), wire.init(unique=4))
    kernel.transport.negotiate()
    assert kernel.answer() == (2, 0)
    assert kernel.answer() == (4, 0)
    assert kernel.server.negotiated is not None


def test_a_kernel_that_says_nothing_is_not_waited_for_for_ever(connect, monkeypatch):
    monkeypatch.setattr(devfuse_transport, "FIRST_REQUEST_S", 0.01)
    with pytest.raises(MountError, match="does not begin"):
        connect().transport.negotiate()


# --- Who does what ------------------------------------------------------------------------------------------


def test_requests_are_answered_in_their_order(kernel):
    kernel.send(*(lookup(b"hello", unique) for unique in range(10, 60, 2)))
    assert [kernel.answer() for _ in range(25)] == [(unique, 0) for unique in range(10, 60, 2)]


def test_a_slow_read_that_is_alone_is_done_by_who_serves(kernel):
    kernel.send(wire.read(COLD, 0, 4096, unique=10))
    assert kernel.reply() == wire.ok(b"cold" * 100, unique=10)
    assert kernel.handler.readers == ["rafsfs-serve"]
    assert threads("rafsfs-read") == []


def test_a_slow_read_behind_which_another_request_waits_goes_to_a_worker(connect):
    kernel = connect()
    kernel.negotiate()
    kernel.handler.gate.clear()
    kernel.send(wire.read(COLD, 0, 4096, unique=10), lookup(b"hello", 12))
    kernel.transport.start()
    assert kernel.answer() == (12, 0)  # out of order: the read still hangs
    assert kernel.handler.hanging.acquire(timeout=LONG_S)
    assert kernel.handler.readers == ["rafsfs-read"]
    kernel.handler.gate.set()
    assert kernel.reply() == wire.ok(b"cold" * 100, unique=10)


def test_after_a_read_that_was_not_quick_the_next_goes_to_a_worker(kernel):
    kernel.transport.workers.is_quick = False
    kernel.send(wire.read(COLD, 0, 4096, unique=10))
    assert kernel.answer() == (10, 0)
    assert kernel.handler.readers == ["rafsfs-read"]
    wait_until(lambda: kernel.transport.workers.is_quick)
    kernel.wait_until_asleep()
    kernel.send(wire.read(COLD, 0, 4096, unique=12))
    assert kernel.answer() == (12, 0)
    assert kernel.handler.readers[1:] == ["rafsfs-serve"]


def test_where_no_worker_is_to_be_had_who_serves_reads(connect, monkeypatch, caplog):
    kernel = connect()
    kernel.start()
    monkeypatch.setattr(kernel.transport.workers, "_count", 0)
    kernel.transport.workers.is_quick = False
    kernel.send(wire.read(COLD, 0, 4096, unique=10))
    assert kernel.answer() == (10, 0)
    assert kernel.handler.readers == ["rafsfs-serve"]


def test_a_reply_of_more_parts_than_writev_takes(kernel):
    kernel.send(wire.read(PARTS, 0, 1 << 20, unique=10))
    assert kernel.reply() == wire.ok(b"p" * (IOV_MAX + 500), unique=10)


# --- What hangs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [lookup(b"hang", 10), wire.read(COLD, 0, 4096, unique=10)])
def test_who_hangs_holds_up_nobody_else_and_answers_in_the_end(kernel, request_):
    kernel.hang(request_)
    kernel.send(lookup(b"hello", 12), wire.request(wire.GETATTR, bytes(16), unique=14))
    kernel.relieve()
    assert {kernel.answer(), kernel.answer()} == {(12, 0), (14, 0)}
    assert len(threads("rafsfs-serve")) == 2
    kernel.handler.gate.set()
    assert kernel.answer() == (10, 0)
    wait_until(lambda: len(threads("rafsfs-serve")) == 1)
    wait_until(lambda: not kernel.transport.workers.is_busy)
    kernel.send(lookup(b"hello", 16))
    assert kernel.answer() == (16, 0)


def test_who_comes_back_while_it_is_relieved_loses_no_reply(kernel, monkeypatch):
    """Starting the other thread takes its time on a busy machine; the first one goes on until that serves."""
    kernel.hang(wire.read(COLD, 0, 8, unique=10))
    new_leader = kernel.transport._new_leader

    def slowly_started():
        leader = new_leader()
        start = leader.thread.start

        def start_late():
            kernel.handler.gate.set()
            assert kernel.answer() == (10, 0)
            kernel.hang(lookup(b"hang", 12))
            start()

        monkeypatch.setattr(leader.thread, "start", start_late)
        return leader

    monkeypatch.setattr(kernel.transport, "_new_leader", slowly_started)
    kernel.relieve()
    kernel.send(lookup(b"hello", 14))
    assert kernel.answer() == (14, 0)
    kernel.handler.gate.set()
    assert kernel.answer() == (12, 0)


@pytest.mark.parametrize("request_", [lookup(b"hang", 10), wire.read(COLD, 0, 4096, unique=10)])
def test_a_hanging_request_that_is_interrupted_is_answered_at_once_and_only_once(kernel, request_):
    kernel.hang(request_)
    kernel.relieve()
    kernel.send(wire.interrupt(8), wire.interrupt(10))
    assert kernel.answer() == (10, errno.EINTR)
    kernel.handler.gate.set()
    wait_until(lambda: len(threads("rafsfs-serve")) == 1)
    kernel.send(lookup(b"hello", 12))
    assert kernel.answer() == (12, 0)


@pytest.mark.parametrize("request_", [lookup(b"hang", 10), wire.read(COLD, 0, 4096, unique=10)])
def test_a_hanging_request_gets_an_error_when_its_time_is_up(kernel, request_):
    kernel.hang(request_)
    kernel.relieve()
    kernel.transport.workers.check(time.perf_counter() + 3600)
    assert kernel.answer() == (10, errno.EIO)
    kernel.handler.gate.set()
    wait_until(lambda: len(threads("rafsfs-serve")) == 1)
    kernel.send(lookup(b"hello", 12))
    assert kernel.answer() == (12, 0)


def test_a_thread_that_comes_back_just_then_goes_on(kernel):
    """After somebody saw that it hangs, and before he may do something about it."""
    transport = kernel.transport
    leader = transport._leader
    kernel.hang(lookup(b"hang", 10))
    transport.look_after()
    lock = transport._lock
    transport._lock = AnnouncedLock(lock)
    with lock:
        looking = threading.Thread(target=transport.look_after)
        looking.start()
        assert transport._lock.is_asked_for.wait(LONG_S)
        kernel.handler.gate.set()
        assert kernel.answer() == (10, 0)
        kernel.wait_until_asleep()
    looking.join(LONG_S)
    assert transport._leader is leader
    assert not leader.is_done
    kernel.send(lookup(b"hello", 12))
    assert kernel.answer() == (12, 0)


def test_while_one_read_hangs_others_go_to_workers(kernel):
    kernel.hang(wire.read(COLD, 0, 4096, unique=10))
    kernel.relieve()
    kernel.send(wire.read(COLD, 0, 8, unique=12))
    assert kernel.handler.hanging.acquire(timeout=LONG_S)
    assert kernel.handler.readers == ["rafsfs-serve", "rafsfs-read"]
    kernel.send(lookup(b"hello", 14))
    assert kernel.answer() == (14, 0)
    kernel.handler.gate.set()
    assert {kernel.answer(), kernel.answer()} == {(10, 0), (12, 0)}


def test_a_second_and_a_third_may_hang_as_well(kernel):
    for unique in (10, 12, 14):
        kernel.hang(lookup(b"hang", unique))
        kernel.relieve()
    kernel.send(lookup(b"hello", 16))
    assert kernel.answer() == (16, 0)
    kernel.handler.gate.set()
    assert {kernel.answer() for _ in range(3)} == {(10, 0), (12, 0), (14, 0)}


def test_a_store_that_hangs_costs_a_bounded_number_of_threads(kernel):
    uniques = range(10, 10 + 2 * (HELD_UP_MAX + 3), 2)
    kernel.handler.gate.clear()
    kernel.send(*(lookup(b"hang", unique) for unique in uniques))
    for _ in range(HELD_UP_MAX + 1):
        assert kernel.handler.hanging.acquire(timeout=LONG_S)
        kernel.relieve()
    kernel.relieve()
    assert len(threads("rafsfs-serve")) == HELD_UP_MAX + 1
    kernel.handler.gate.set()
    assert {kernel.answer() for _ in uniques} == {(unique, 0) for unique in uniques}


def test_where_no_thread_is_to_be_had_others_wait_until_it_is(kernel, monkeypatch, caplog):
    """As in a container whose number of processes is bounded."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    kernel.hang(lookup(b"hang", 10))
    kernel.send(lookup(b"hello", 12))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        kernel.relieve()
    assert "no thread for requests" in caplog.text
    assert len(threads("rafsfs-serve")) == 1
    kernel.relieve()
    assert kernel.answer() == (12, 0)


def test_who_makes_steps_is_left_alone(kernel):
    for unique in range(10, 30, 2):
        kernel.send(lookup(b"hello", unique))
        assert kernel.answer() == (unique, 0)
        kernel.transport.look_after()
    assert len(threads("rafsfs-serve")) == 1


def test_the_timer_runs_only_while_there_is_something_to_do(kernel):
    kernel.wait_until_asleep()
    kernel.transport.look_after()
    before = len(kernel.alarms)
    kernel.send(lookup(b"hello", 10))
    assert kernel.answer() == (10, 0)
    kernel.wait_until_asleep()
    kernel.send(lookup(b"hello", 12))
    assert kernel.answer() == (12, 0)
    kernel.wait_until_asleep()
    assert kernel.alarms[before:] == [PATIENCE_S]  # once, until it has gone off
    kernel.transport.look_after()
    assert len(kernel.alarms) == before + 1
    kernel.hang(lookup(b"hang", 14))
    assert len(kernel.alarms) == before + 2
    kernel.transport.look_after()
    assert len(kernel.alarms) == before + 3


def test_a_thread_that_sleeps_costs_nothing(kernel):
    kernel.wait_until_asleep()
    (leader,) = threads("rafsfs-serve")

    status = Path(f"/proc/self/task/{leader.native_id}/status")

    def switches():
        return [line for line in status.read_text().splitlines() if "ctxt_switches" in line]

    wait_until(lambda: "sleeping" in status.read_text())
    before = switches()
    select.select([], [], [], 0.5)  # time has to pass, or there is nothing to be seen
    assert switches() == before


def test_a_thread_that_waits_for_workers_sleeps_too(connect):
    kernel = connect()
    kernel.negotiate()
    kernel.handler.gate.clear()
    kernel.send(wire.read(COLD, 0, 4096, unique=10), lookup(b"hello", 12))
    kernel.transport.start()
    assert kernel.answer() == (12, 0)
    (leader,) = threads("rafsfs-serve")
    kernel.wait_until_asleep()
    wait_until(lambda: kernel.transport._leader._check_at - time.perf_counter() > 60)
    steps = kernel.transport._leader.steps
    select.select([], [], [], 0.5)
    assert kernel.transport._leader.steps == steps
    assert leader.is_alive()


# --- The end ------------------------------------------------------------------------------------------------


def test_it_stops_when_it_is_told_to(kernel):
    kernel.wait_until_asleep()
    assert kernel.stop(LONG_S)
    assert threads("rafsfs-serve") == []
    assert not kernel.transport.has_ended


@pytest.mark.parametrize("request_", [lookup(b"hang", 10), wire.read(COLD, 0, 4096, unique=10)])
def test_nobody_waits_for_a_thread_that_hangs(kernel, request_):
    kernel.hang(request_)
    assert kernel.stop(0.01) is False
    alarms = len(kernel.alarms)
    kernel.handler.gate.set()
    wait_until(lambda: threads("rafsfs-serve") == [])
    assert not kernel.ended.is_set()  # by then nobody may be told any more
    assert len(kernel.alarms) == alarms


def test_nobody_waits_for_a_thread_that_was_relieved_either(kernel):
    kernel.hang(lookup(b"hang", 10))
    kernel.relieve()
    kernel.wait_until_asleep()
    assert kernel.stop(LONG_S) is False


def test_a_mistake_ends_the_mount_and_is_not_lost(kernel, monkeypatch):
    mistake = ZeroDivisionError("ours")

    def handle(request):
        raise mistake

    kernel.wait_until_asleep()
    assert not kernel.transport.has_ended
    monkeypatch.setattr(kernel.server, "handle", handle)
    kernel.send(lookup(b"hello", 10))
    assert kernel.ended.wait(LONG_S)
    assert kernel.transport.has_ended
    assert kernel.transport.failure is mistake
