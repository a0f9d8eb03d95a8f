"""The thread that serves: sleeps when there is nothing to do, misses nothing, survives mistakes of ours."""

import math
import os
import queue
import threading
from contextlib import contextmanager

import pytest
from support.vhost_frontend import TIMEOUT_S

from vhost.poller import Poller


class Source:
    """Does as it is told, and says when it is about to sleep."""

    def __init__(self, poller):
        self.poller = poller
        self.asleep = queue.Queue()
        self.work_left = 0
        self.late_work = 0  # that comes between listening and looking
        self.fails_in = None
        self.failed = threading.Event()
        self.done = 0
        self.others_work = False

    def work(self):
        self._fail("work")
        if not self.work_left:
            return False
        self.work_left -= 1
        self.done += 1
        return True

    def listen(self):
        self._fail("listen")
        self.work_left, self.late_work = self.work_left + self.late_work, 0

    def has_work(self):
        self._fail("has_work")
        if not self.work_left:
            self.asleep.put(self.done)
        return self.work_left > 0

    def is_waiting(self, _now):
        return self.others_work

    def tick(self, _now):
        self._fail("tick")
        return math.inf

    def fail(self):
        self.failed.set()
        raise RuntimeError("and again")

    def _fail(self, where):
        if self.fails_in == where:
            raise RuntimeError(where)

    def until_asleep(self):
        return self.asleep.get(timeout=TIMEOUT_S)


@contextmanager
def running(**options):
    poller = Poller(**options)
    source = Source(poller)
    poller.attach(source)
    thread = threading.Thread(target=poller.run)
    thread.start()
    try:
        yield poller, source
    finally:
        poller.stop()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        poller.close()


@pytest.mark.parametrize("spin_max_s", [0.0, 200e-6])
def test_idle_poller_sleeps_and_wakes_only_for_a_reason(spin_max_s):
    with running(spin_max_s=spin_max_s) as (poller, source):
        assert source.until_asleep() == 0
        for turn in range(1, 21):
            assert source.asleep.empty()  # it is still in the same sleep
            source.work_left = 3
            poller.wake()
            assert source.until_asleep() == 3 * turn


def test_poller_sleeps_at_once_while_other_threads_work_for_a_source():
    with running(spin_max_s=math.inf) as (poller, source):
        assert source.asleep.empty()  # it looks on and on
        source.others_work = True
        source.until_asleep()
        source.work_left = 2
        poller.wake()
        assert source.until_asleep() == 2


def test_work_that_comes_at_the_last_moment_is_done_before_sleeping():
    with running() as (poller, source):
        source.until_asleep()
        source.late_work = 5
        poller.wake()
        assert source.until_asleep() == 5


def test_descriptors_are_watched_until_they_are_not():
    seen = queue.Queue()
    with running() as (poller, source):
        source.until_asleep()
        event = os.eventfd(0)

        def callback(events):
            seen.put((events, os.eventfd_read(event)))

        poller.call_after(0, lambda: poller.watch(event, callback))
        poller.wake()
        source.until_asleep()
        for turn in range(1, 4):
            os.eventfd_write(event, turn)
            assert seen.get(timeout=TIMEOUT_S) == (1, turn)
        poller.call_after(0, lambda: poller.unwatch(event))
        poller.wake()
        source.until_asleep()
    os.eventfd_write(event, 1)
    assert seen.empty()
    os.close(event)


def test_timers_are_called_once_and_in_time():
    called = queue.Queue()
    with running() as (poller, source):
        source.until_asleep()
        for delay_s in (0.03, 0.0, 0.01):
            poller.call_after(delay_s, lambda delay_s=delay_s: called.put(delay_s))
        poller.wake()
        assert [called.get(timeout=TIMEOUT_S) for _ in range(3)] == [0.0, 0.01, 0.03]
    assert called.empty()


@pytest.mark.parametrize("where", ["work", "listen", "has_work", "tick"])
def test_source_that_fails_is_ended_and_others_go_on(where, caplog):
    with running() as (poller, source):
        source.until_asleep()
        other = Source(poller)
        poller.call_after(0, lambda: poller.attach(other))
        poller.wake()
        other.until_asleep()
        source.fails_in = where
        poller.wake()
        assert source.failed.wait(TIMEOUT_S)
        other.work_left = 2
        poller.wake()
        while other.until_asleep() < 2:
            pass
    for record, said in zip(caplog.records, (where, "and again"), strict=True):
        assert "a mistake of ours" in record.getMessage()
        assert str(record.exc_info[1]) == said


def test_callback_that_fails_is_called_no_more(caplog):
    with running() as (poller, source):
        source.until_asleep()
        event = os.eventfd(1)

        def callback(_events):
            raise RuntimeError("oh")

        poller.call_after(0, lambda: poller.watch(event, callback))
        poller.wake()
        source.until_asleep()
        poller.wake()
        source.until_asleep()
    os.close(event)
    assert len(caplog.records) == 1
