"""The log of damaged places: what it says, how seldom, and that it stands in nobody's way."""

import logging
import threading

import pytest

from rafsfs.errors import FormatError, MacMismatch, Where
from rafsfs.frontends.fault_log import PENDING_MAX, PLACES_MAX, QUIET_S, FaultLog, place_of
from rafsfs.types import Nid

LONG_S = 30  # longer than anything takes that comes to an end


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Lines(logging.Handler):
    """Error lines, and a way to wait for them: another thread writes them."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self._changed = threading.Condition()
        self._lines = []

    def emit(self, record):
        with self._changed:
            self._lines.append(record.getMessage())
            self._changed.notify_all()

    def now(self):
        with self._changed:
            return list(self._lines)

    def after(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._lines) >= count, LONG_S)
        return self.now()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    logger, handler = logging.getLogger("rafsfs.mount"), Lines()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def fault_log():
    """Make logs; close what the test has left open."""
    made = []

    def make(*arguments):
        made.append(FaultLog(*arguments))
        return made[-1]

    yield make
    for log in made:
        log.close(LONG_S)


def damage(chunk, blob="sha256:ab"):
    return MacMismatch("the chunk was changed", where=Where(blob=blob, chunk=chunk, offset=4096))


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "rafsfs-faults"]


def test_a_line_names_blob_chunk_offset_and_path(lines, fault_log):
    fault_log(lambda nid: b"usr/bin/%d" % nid).report(damage(7), Nid(99), 12_345)
    (line,) = lines.after(1)
    for part in (
        "the chunk was changed",
        "blob sha256:ab",
        "chunk 7",
        "/usr/bin/99",
        "inode 99",
        "offset 12345",
    ):
        assert part in line


def test_when_closed_it_has_written_every_line_and_path(lines, fault_log):
    log = fault_log(lambda nid: b"%d" % nid)
    for chunk in range(5):
        log.report(damage(chunk), Nid(chunk))
    log.close(LONG_S)
    assert [f"/{chunk} (inode {chunk})" in line for chunk, line in enumerate(lines.now())] == [True] * 5
    assert threads() == []


def test_what_is_reported_after_the_end_is_written_without_its_path(lines, fault_log):
    log = fault_log(lambda nid: b"a")
    log.close(LONG_S)
    log.report(damage(1), Nid(2))
    assert "path is not known" in lines.now()[0]
    assert threads() == []


def test_the_path_is_looked_for_on_another_thread_which_only_damage_starts(lines, fault_log):
    found = []

    def find_path(nid):
        found.append(threading.current_thread())
        return b"a"

    log = fault_log(find_path)
    assert threads() == []
    log.report(damage(1), Nid(2))
    log.report(damage(2), Nid(2))
    lines.after(2)
    assert len(found) == 2
    assert set(found) == set(threads())
    assert all(thread.daemon for thread in found)


@pytest.mark.parametrize(
    "error", [FormatError("cyclic"), MacMismatch("page"), OSError(5, "io"), ZeroDivisionError()]
)
def test_a_path_that_cannot_be_found_costs_only_the_path(lines, fault_log, error):
    def find_path(nid):
        raise error

    log = fault_log(find_path)
    log.report(damage(1), Nid(2))
    log.report(damage(2), Nid(2))
    log.close(LONG_S)
    first, second = [line for line in lines.now() if "met in" in line]
    assert "chunk 1" in first
    assert "chunk 2" in second
    assert "path is not known" in first


def test_a_place_is_named_once_a_minute(lines, fault_log, clock):
    log = fault_log(lambda nid: None, clock)
    for _ in range(100):
        log.report(damage(1), Nid(2), 0)
        log.report(damage(1), Nid(3), 8192)
    log.report(damage(2), Nid(2), 0)
    log.report(damage(1, "sha256:cd"), Nid(2), 0)
    assert len(lines.after(3)) == 3
    clock.now += QUIET_S - 1
    log.report(damage(1), Nid(2), 0)
    clock.now += 1
    log.report(damage(1), Nid(2), 0)
    log.report(damage(1), Nid(2), 0)
    log.close(LONG_S)
    assert [line.count("chunk 1") for line in lines.now()] == [1, 0, 1, 1]


def test_many_threads_that_meet_one_damage_make_one_line(lines, fault_log):
    log = fault_log(lambda nid: None)
    start = threading.Barrier(8)

    def meet():
        start.wait(LONG_S)
        for chunk in range(20):
            log.report(damage(chunk), Nid(2), 0)

    readers = [threading.Thread(target=meet) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    log.close(LONG_S)
    named = sorted(int(line.split("chunk ")[2].split(",")[0]) for line in lines.now())
    assert named == list(range(20))


def test_memory_and_lines_are_bounded_however_much_is_broken(lines, fault_log, clock):
    log = fault_log(lambda nid: None, clock)
    for chunk in range(3 * PLACES_MAX):
        log.report(damage(chunk), Nid(2), 0)
    found = lines.after(PLACES_MAX + 1)
    assert len(found) == PLACES_MAX + 1
    assert sum("not named for now" in line for line in found) == 1
    assert len(log._last_named) == PLACES_MAX
    clock.now += QUIET_S
    log.report(damage(3 * PLACES_MAX), Nid(2), 0)
    assert f"chunk {3 * PLACES_MAX}" in lines.after(PLACES_MAX + 2)[-1]
    assert len(log._last_named) == 1


def test_reports_never_wait_for_a_slow_search_and_are_written_at_the_end(lines, fault_log):
    started, enough = threading.Event(), threading.Event()

    def find_path(nid):
        started.set()
        return b"a" if enough.wait(2 * LONG_S) else None

    log = fault_log(find_path)
    try:
        log.report(damage(0), Nid(2))
        assert started.wait(LONG_S)
        for chunk in range(1, PENDING_MAX + 6):
            log.report(damage(chunk), Nid(2))
        # those that find no room any more are written at once, the others when they are given up
        assert len(lines.now()) == 5
        log.close(0)
        found = lines.now()
    finally:
        enough.set()
    assert len(found) == PENDING_MAX + 6
    assert all("path is not known" in line for line in found)
    log.close(LONG_S)  # the search has ended by now, and nothing is written twice
    assert lines.now() == found


def test_places():
    blob, nid = "sha256:ab", Nid(5)
    assert place_of(damage(1), nid) == place_of(damage(1), Nid(6))
    assert place_of(damage(1), nid) != place_of(damage(2), nid)
    page = MacMismatch("page", where=Where(file=blob, page=3))
    assert place_of(page, nid) == place_of(page, Nid(6))
    assert place_of(page, nid) != place_of(MacMismatch("page", where=Where(file=blob, page=4)), nid)
    assert place_of(FormatError("x"), nid) != place_of(FormatError("x"), Nid(6))
