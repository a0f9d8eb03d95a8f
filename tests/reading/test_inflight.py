"""One piece of work for all who ask at the same time, and its failure for all of them, once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rafsfs.errors import DigestMismatch, StoreUnavailable
from rafsfs.reading.inflight import Inflight

WAITERS = 16
PATIENCE_S = 30


class Work:
    """Blocks until told to go on, and counts its callers."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.calls = 0

    def __call__(self):
        self.calls += 1
        self.started.set()
        assert self.go_on.wait(PATIENCE_S)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def gather(inflight, work, key="chunk"):
    """Let one thread start ``work`` and the others join; returns the futures of all."""
    pool = ThreadPoolExecutor(WAITERS + 1)
    futures = [pool.submit(inflight.get, key, work)]
    assert work.started.wait(PATIENCE_S)
    joined = threading.Semaphore(0)

    def join():
        joined.release()
        return inflight.get(key, work)

    futures += [pool.submit(join) for _ in range(WAITERS)]
    for _ in range(WAITERS):
        assert joined.acquire(timeout=PATIENCE_S)
    pool.shutdown(wait=False)
    return futures


def wait_for_joiners(inflight, key, count):
    """Until so many threads wait on the flight: whoever has not joined yet would start another one."""
    flight = inflight._flights[key]
    while True:
        with flight._condition:
            if len(flight._condition._waiters) >= count:
                return


def test_one_decode_however_many_wait():
    inflight = Inflight(PATIENCE_S)
    result = object()
    work = Work(result)
    futures = gather(inflight, work)
    wait_for_joiners(inflight, "chunk", WAITERS)
    work.go_on.set()
    assert [future.result(PATIENCE_S) for future in futures] == [result] * (WAITERS + 1)
    assert work.calls == 1
    assert inflight._flights == {}


def test_failure_reaches_all_and_is_forgotten():
    inflight = Inflight(PATIENCE_S)
    failure = DigestMismatch("chunk id", expected="a", found="b").at(blob="sha256:0", chunk=7)
    work = Work(failure)
    futures = gather(inflight, work)
    wait_for_joiners(inflight, "chunk", WAITERS)
    work.go_on.set()
    raised = []
    for future in futures:
        with pytest.raises(
            DigestMismatch, match=r"chunk id: expected a, found b \(blob sha256:0, chunk 7\)"
        ) as caught:
            future.result(PATIENCE_S)
        raised.append(caught.value)
    assert work.calls == 1
    # one object raised in several threads would grow everybody's traceback
    assert len({id(error) for error in raised}) == len(raised)
    assert inflight.get("chunk", lambda: "healed") == "healed"


def test_keys_do_not_wait_for_each_other():
    inflight = Inflight(PATIENCE_S)
    slow = Work("slow")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(inflight.get, "slow", slow)
        assert slow.started.wait(PATIENCE_S)
        assert inflight.get("quick", lambda: "quick") == "quick"
        slow.go_on.set()
        assert future.result(PATIENCE_S) == "slow"


def test_work_is_done_anew_after_it_has_ended():
    inflight = Inflight(PATIENCE_S)
    outcomes = iter([1, 2, 3])
    assert [inflight.get("chunk", lambda: next(outcomes)) for _ in range(3)] == [1, 2, 3]


def test_waiting_has_a_deadline_and_the_owner_goes_on():
    inflight = Inflight(0.01)
    work = Work("late")
    with ThreadPoolExecutor(1) as pool:
        owner = pool.submit(inflight.get, "chunk", work)
        assert work.started.wait(PATIENCE_S)
        with pytest.raises(StoreUnavailable, match="took too long"):
            inflight.get("chunk", work)
        work.go_on.set()
        assert owner.result(PATIENCE_S) == "late"
    assert work.calls == 1


@pytest.mark.parametrize("failure", [OSError("disk"), MemoryError(), KeyboardInterrupt()])
def test_no_failure_leaves_a_flight_behind(failure):
    inflight = Inflight(PATIENCE_S)

    def fail():
        raise failure

    with pytest.raises(type(failure)):
        inflight.get("chunk", fail)
    assert inflight.get("chunk", lambda: "healed") == "healed"
