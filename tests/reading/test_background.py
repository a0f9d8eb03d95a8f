"""Work that nobody waits for: done side by side, dropped when there is too much, survived when it fails."""

import logging
import threading

from support.fuse_kernel import wait_until

from rafsfs.reading.background import WAITING_MAX, Background

WAIT_S = 30


def test_work_is_done_on_other_threads():
    background = Background(2)
    seen = []
    done = threading.Event()

    def work():
        seen.append(threading.current_thread())
        done.set()

    assert background.submit(work)
    assert done.wait(WAIT_S)
    assert seen[0] is not threading.current_thread()
    assert seen[0].daemon


def test_as_many_threads_as_allowed_work_at_once():
    background = Background(3)
    together = threading.Barrier(3 + 1)
    for _ in range(3):
        assert background.submit(lambda: together.wait(WAIT_S))
    together.wait(WAIT_S)


def test_it_is_busy_while_a_thread_works():
    background = Background(1)
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(WAIT_S)

    assert not background.is_busy
    background.submit(work)
    assert begun.wait(WAIT_S)
    assert background.is_busy
    background.submit(over.set)
    go_on.set()
    assert over.wait(WAIT_S)
    wait_until(lambda: not background.is_busy)


def test_too_much_work_is_dropped_and_the_rest_is_done():
    background = Background(1)
    begun, go_on, done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def hang():
        begun.set()
        go_on.wait(WAIT_S)

    background.submit(hang)
    assert begun.wait(WAIT_S)
    taken = [background.submit(done.release) for _ in range(WAITING_MAX + 5)]
    assert taken == [True] * WAITING_MAX + [False] * 5
    go_on.set()
    for _ in range(WAITING_MAX):
        assert done.acquire(timeout=WAIT_S)
    assert not done.acquire(blocking=False)


def test_a_failure_is_logged_and_ends_nothing(caplog):
    background = Background(1)
    done = threading.Event()

    def fail():
        raise ValueError("on purpose")

    with caplog.at_level(logging.ERROR):
        background.submit(fail)
        background.submit(done.set)
        assert done.wait(WAIT_S)
    assert "work in the background failed" in caplog.text


def test_every_thread_prepares_itself_before_its_first_work():
    seen = []
    background = Background(1, prepare=lambda: seen.append(threading.current_thread()))
    done = threading.Event()
    background.submit(lambda: (seen.append(threading.current_thread()), done.set()))
    assert done.wait(WAIT_S)
    assert seen == [seen[0]] * 2
    assert seen[0] is not threading.current_thread()
