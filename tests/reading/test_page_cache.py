"""The page cache: its budget as a state machine, scans that flush nothing, threads."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rafsfs.reading.page_cache import METADATA, RECENT_BYTES_MAX, PageCache

BUDGET = 100_000
PAGE = 1000

keys = st.tuples(st.integers(METADATA, 2), st.integers(0, 12))
sizes = st.one_of(st.integers(0, 3000), st.sampled_from([BUDGET // 4, BUDGET - 300, BUDGET, BUDGET * 2]))


def content(key, size):
    return (b"%d.%d " % key * (size // 4 + 1))[:size]


class CacheMachine(RuleBasedStateMachine):
    """Whatever is put and asked for: never above the budget, and never anybody else's bytes."""

    def __init__(self):
        super().__init__()
        self.cache = PageCache(BUDGET)
        self.put_sizes = {}

    @rule(key=keys, size=sizes)
    def put(self, key, size):
        present = self.cache.get(key)
        self.cache.put(key, content(key, size))
        if present is None:
            self.put_sizes[key] = size
        fits = size + 1000 < BUDGET
        assert (self.cache.get(key) is not None) or not fits

    @rule(key=keys, size=sizes)
    def offer(self, key, size):
        there = self.cache.holds(key)
        self.cache.offer(key, content(key, size))
        if not there and self.cache.holds(key):
            self.put_sizes[key] = size

    @rule(key=keys)
    def get(self, key):
        data = self.cache.get(key)
        assert data is None or data == content(key, self.put_sizes[key])

    @invariant()
    def stays_within_its_budget(self):
        assert 0 <= self.cache.used_bytes <= BUDGET
        present = [data for key in self.put_sizes if (data := self.cache.get(key)) is not None]
        assert sum(map(len, present)) <= self.cache.used_bytes


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=30, stateful_step_count=60)


def scan(cache, first, count):
    """Read and keep pages one after the other, several reads of each, as a sequential reader does."""
    for number in range(first, first + count):
        for _ in range(4):
            if cache.get((0, number)) is None:
                cache.put((0, number), bytes(PAGE))


def held(cache, numbers):
    return sum(cache.get((0, number)) is not None for number in numbers)


def warm(cache, numbers):
    """Ask for pages, let others push them out, and ask again: now they are known to be asked for again."""
    scan(cache, numbers[0], len(numbers))
    other = 1_000_000
    while held(cache, numbers):
        scan(cache, other, 1)
        other += 1
    scan(cache, numbers[0], len(numbers))


@pytest.mark.parametrize("rounds", [1, 10])
def test_scan_of_ten_budgets_flushes_nothing_that_was_used_twice(rounds):
    cache = PageCache(BUDGET)
    often = range(20)
    warm(cache, often)
    for number in range(rounds):
        scan(cache, 20_000 + 1000 * number, 10 * BUDGET // PAGE)
        assert held(cache, often) == len(often)


def test_what_is_used_again_later_takes_the_place_of_what_is_not():
    cache = PageCache(BUDGET)
    warm(cache, range(20))
    for first in range(1000, 1200, 10):
        warm(cache, range(first, first + 10))
    assert held(cache, range(20)) == 0
    assert held(cache, range(1190, 1200)) == 10


def test_what_was_just_put_is_there_even_in_a_scan():
    cache = PageCache(BUDGET)
    for number in range(1000):
        cache.put((0, number), bytes(PAGE))
        assert cache.get((0, number)) is not None


@pytest.mark.parametrize("share", [0.2, 0.26, 0.5, 0.9])
def test_large_chunk_is_kept_while_it_is_read(share):
    """Else a reader of 4 KiB pieces would have it decoded anew for each of them."""
    cache = PageCache(BUDGET)
    warm(cache, range(50))
    size = int(BUDGET * share)
    for number in range(5):
        cache.put((1, number), bytes(size))
        assert cache.get((1, number)) is not None
    for number in range(5):
        cache.put((1, number), bytes(size))
        assert cache.get((1, number)) is not None


def test_scan_uses_the_same_memory_again_whatever_the_budget():
    cache = PageCache(100 * RECENT_BYTES_MAX)
    size = RECENT_BYTES_MAX // 50
    for number in range(500):
        cache.put((0, number), bytes(size))
        assert cache.used_bytes <= RECENT_BYTES_MAX
    assert held(cache, range(460, 500)) == 40


def test_what_is_asked_for_again_fills_the_budget():
    size = RECENT_BYTES_MAX // 10
    cache = PageCache(4 * RECENT_BYTES_MAX)
    for number in (*range(15), *range(15), *range(15)):
        if cache.get((0, number)) is None:
            cache.put((0, number), bytes(size))
    assert held(cache, range(15)) == 15


def decoded_by(cache, readers, count, size):
    """How many chunks readers of one stream of ``count`` put in, each so many chunks behind the first."""
    decoded = 0
    for step in range(count + max(readers)):
        for behind in readers:
            number = step - behind
            if 0 <= number < count and cache.get((0, number)) is None:
                cache.put((0, number), bytes(size))
                decoded += 1
    return decoded


def test_readers_who_lag_behind_have_nothing_decoded_for_each_of_them():
    size = RECENT_BYTES_MAX // 32
    count = 1000
    cache = PageCache(8 * RECENT_BYTES_MAX)
    assert decoded_by(cache, [0, 48], count, size) < count + 100  # half a queue farther than it reaches
    assert decoded_by(PageCache(8 * RECENT_BYTES_MAX), [0, 16], count, size) == count


@pytest.mark.parametrize("behind", [200, 10_000])
def test_the_queue_never_takes_more_than_half_of_the_budget(behind):
    size = RECENT_BYTES_MAX // 32
    cache = PageCache(4 * RECENT_BYTES_MAX)
    warm(cache, range(-40, 0))
    decoded_by(cache, [0, behind], 1000, size)
    assert cache.used_bytes <= cache.budget_bytes
    assert cache._recent.cost <= cache.budget_bytes // 2


def test_chunk_larger_than_the_queue_is_kept_while_it_is_read():
    cache = PageCache(4 * RECENT_BYTES_MAX)
    cache.put((0, 1), bytes(2 * RECENT_BYTES_MAX))
    assert cache.get((0, 1)) is not None
    cache.put((0, 2), b"next")
    assert held(cache, [1, 2]) == 1


def test_scan_pushes_out_nothing_that_was_put_in_for_later():
    cache = PageCache(4 * RECENT_BYTES_MAX)
    size = RECENT_BYTES_MAX // 10
    for number in range(20):
        cache.offer((1, number), bytes(size))
    for number in range(100):
        cache.put((0, number), bytes(size))
    assert all(cache.get((1, number)) is not None for number in range(20))


@pytest.mark.parametrize("budget", [0, 1, 299])
def test_cache_without_a_budget_keeps_nothing(budget):
    cache = PageCache(budget)
    cache.put((0, 0), b"x")
    assert cache.get((0, 0)) is None
    assert cache.used_bytes == 0


def test_metadata_and_chunks_are_told_apart():
    cache = PageCache(BUDGET)
    cache.put((METADATA, 1), b"page")
    cache.put((0, 1), b"chunk")
    assert (cache.get((METADATA, 1)), cache.get((0, 1))) == (b"page", b"chunk")


def test_first_bytes_of_a_key_stay():
    cache = PageCache(BUDGET)
    cache.put((0, 0), b"first")
    cache.put((0, 0), b"second, much longer")
    assert cache.get((0, 0)) == b"first"


def test_threads_never_break_the_budget_or_mix_up_bytes():
    cache = PageCache(BUDGET)
    stop = threading.Event()
    watched = []

    def watch():
        while not stop.is_set():
            watched.append(cache.used_bytes)

    def work(seed):
        chosen = random.Random(seed)
        for _ in range(1500):
            key = (chosen.randrange(3), chosen.randrange(200))
            data = cache.get(key)
            if data is None:
                cache.put(key, content(key, PAGE + key[1]))
            else:
                assert data == content(key, PAGE + key[1])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stop.set()
    watcher.join()
    assert watched
    assert max(watched) <= BUDGET
