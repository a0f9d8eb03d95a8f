"""Warming by a list: readers go first, nothing of theirs is evicted, and it ends when it is told to."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from support.images import build, opened
from support.mounts import chunk_place, flip

from rafsfs.errors import AuthError, FormatError, StoreUnavailable
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.reading.demand import Demand
from rafsfs.reading.page_cache import ENTRY_OVERHEAD_BYTES, PageCache
from rafsfs.reading.warming import Warmer

CHUNK = 16 * 1024
CHUNKS = 20
WAIT_S = 60


def in_peace():
    """What a thread prepares where nothing competes with it."""


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "tree").mkdir()
    content = b"".join(number.to_bytes(4, "little") for number in range(CHUNKS * CHUNK // 4))
    (tmp_path / "tree" / "file").write_bytes(content)
    return build(tmp_path / "tree", tmp_path / "image", chunk_size=CHUNK)


class GatedFile:
    """A stored file of which each read waits until it is let through; tells which chunks were asked for."""

    def __init__(self, file):
        self.file = file
        self.name, self.size = file.name, file.size
        self.offsets = []
        self.asked, self.let_through = threading.Semaphore(0), threading.Semaphore(0)

    def read_range(self, offset, length):
        self.offsets.append(offset)
        self.asked.release()
        assert self.let_through.acquire(timeout=WAIT_S)
        return self.file.read_range(offset, length)

    def close(self):
        self.file.close()


def gated(image):
    engine = image.filesystem.engine
    gate = GatedFile(engine.blobs[0].file)
    engine.blobs = (replace(engine.blobs[0], file=gate),)
    return gate


def prefetched(image, *runs):
    """Have these runs warmed to the end."""
    engine = image.filesystem.engine
    warmer = Warmer(engine, lambda: [PrefetchRun(*run) for run in runs], in_peace)
    warmer.start()
    assert warmer.done.wait(WAIT_S)
    return engine.cache.statistics.counts()


def read(image, chunk, size=1):
    filesystem = image.filesystem
    nid = filesystem.lookup(filesystem.root, b"file")
    return b"".join(filesystem.read(nid, chunk * CHUNK, size))


def test_listed_chunks_are_there_and_their_use_is_counted(reference):
    with opened(reference) as image:
        counts = prefetched(image, (0, 5, 3), (0, 2, 1))
        assert (counts.prefetched_chunks, counts.chunks, counts.prefetched_used) == (4, 4, 0)
        filesystem, engine = image.filesystem, image.filesystem.engine
        nid = filesystem.lookup(filesystem.root, b"file")
        for chunk in (2, 5, 6, 7):
            assert filesystem.try_read(nid, chunk * CHUNK, CHUNK) is not None
        assert filesystem.try_read(nid, 3 * CHUNK, 1) is None
        for _ in range(2):
            read(image, 6, CHUNK)
            read(image, 9)
        counts = engine.cache.statistics.counts()
        assert (counts.prefetched_used, counts.chunks) == (4, 5)


def test_what_is_there_already_is_not_decoded_again(reference):
    with opened(reference) as image:
        read(image, 5)
        counts = prefetched(image, (0, 4, 3))
        assert (counts.prefetched_chunks, counts.chunks) == (2, 3)


class WatchedDemand(Demand):
    """Tells how often somebody was about to wait until there is none."""

    def __init__(self):
        super().__init__()
        self.waits = threading.Semaphore(0)

    def wait_for_none(self, given_up):
        self.waits.release()
        super().wait_for_none(given_up)


def test_waiting_reader_goes_first(reference):
    """While a reader waits for his chunk, no further one of the list is begun."""
    with opened(reference) as image, ThreadPoolExecutor(1) as pool:
        engine = image.filesystem.engine
        engine.demand = demand = WatchedDemand()
        gate = gated(image)
        at = [engine.blobs[0].chunks.record(number).encoded_offset for number in range(CHUNKS)]
        reader_waits, events = threading.Event(), []

        def read_range(offset, length):
            events.append(("asked", at.index(offset)))
            gate.asked.release()
            assert (reader_waits if offset == at[9] else gate.let_through).wait(WAIT_S)
            events.append(("had", at.index(offset)))
            return gate.file.read_range(offset, length)

        gate.read_range, gate.let_through = read_range, threading.Event()
        warmer = Warmer(engine, lambda: [PrefetchRun(0, 0, 3)], in_peace)
        warmer.start()
        assert gate.asked.acquire(timeout=WAIT_S)  # chunk 0 is under way
        reading = pool.submit(read, image, 9)
        assert gate.asked.acquire(timeout=WAIT_S)  # and the reader did not wait for it
        gate.let_through.set()
        for _ in range(2):
            assert demand.waits.acquire(timeout=WAIT_S)  # chunk 0 is done, 1 would be next
        assert events == [("asked", 0), ("asked", 9), ("had", 0)]
        reader_waits.set()
        assert reading.result(WAIT_S)
        assert warmer.done.wait(WAIT_S)
        assert events[3:] == [("had", 9), *((what, n) for n in (1, 2) for what in ("asked", "had"))]


def test_reader_who_wants_the_same_chunk_joins(reference):
    with opened(reference) as image, ThreadPoolExecutor(1) as pool:
        gate = gated(image)
        warmer = Warmer(image.filesystem.engine, lambda: [PrefetchRun(0, 3, 1)], in_peace)
        warmer.start()
        assert gate.asked.acquire(timeout=WAIT_S)
        reading = pool.submit(read, image, 3, CHUNK)
        gate.let_through.release(1)
        assert len(reading.result(WAIT_S)) == CHUNK
        assert warmer.done.wait(WAIT_S)
        assert image.filesystem.engine.cache.statistics.counts().chunks == 1


def test_stopping_ends_it_after_the_present_chunk(reference):
    with opened(reference) as image:
        gate = gated(image)
        warmer = Warmer(image.filesystem.engine, lambda: [PrefetchRun(0, 0, CHUNKS)], in_peace)
        warmer.start()
        assert gate.asked.acquire(timeout=WAIT_S)
        warmer.stop()
        gate.let_through.release(CHUNKS)
        assert warmer.done.wait(WAIT_S)
        assert len(gate.offsets) == 1


def test_stopping_ends_it_while_a_reader_waits(reference):
    with opened(reference) as image:
        engine = image.filesystem.engine
        begun = threading.Event()

        def runs():
            begun.set()
            return [PrefetchRun(0, 0, CHUNKS)]

        warmer = Warmer(engine, runs, in_peace)
        with engine.demand:
            warmer.start()
            assert begun.wait(WAIT_S)
            warmer.stop()
            assert warmer.done.wait(WAIT_S)
        assert engine.cache.statistics.counts().chunks == 0


def test_nothing_is_evicted_for_it(reference):
    budget = 10 * (CHUNK + ENTRY_OVERHEAD_BYTES) + 4 * 65_536  # and a few pages of metadata
    with opened(reference, cache_bytes=budget) as image:
        engine = image.filesystem.engine
        read(image, 19)
        counts = prefetched(image, (0, 0, CHUNKS))
        assert 0 < counts.prefetched_chunks < CHUNKS - 1
        assert engine.cache.evictions == 0
        assert engine.cache.holds((0, 19))
        assert engine.cache.used_bytes <= budget - budget // 4
        # and what readers come for next still gets its place
        read(image, 18)
        assert engine.cache.holds((0, 18))
        assert engine.cache.evictions == 0


def test_damaged_chunk_is_left_out_and_its_reader_told(reference):
    file, _, offset, _ = chunk_place(reference, b"file", 3 * CHUNK)
    flip(file, offset)
    with opened(reference) as image:
        counts = prefetched(image, (0, 2, 3))
        assert (counts.prefetched_chunks, counts.failed_authentication) == (2, 1)
        assert not image.filesystem.engine.cache.holds((0, 3))
        with pytest.raises(AuthError):
            read(image, 3)


def test_store_that_fails_ends_it(reference):
    class DeadFile(GatedFile):
        def read_range(self, offset, length):
            self.offsets.append((offset, length))
            raise StoreUnavailable("nobody answers")

    with opened(reference) as image:
        engine = image.filesystem.engine
        dead = DeadFile(engine.blobs[0].file)
        engine.blobs = (replace(engine.blobs[0], file=dead),)
        prefetched(image, (0, 0, CHUNKS))
        assert len(dead.offsets) == 1


def test_list_that_is_malformed_is_said_once(reference, caplog):
    def runs():
        raise FormatError("prefetch list names a chunk twice")

    with opened(reference) as image:
        warmer = Warmer(image.filesystem.engine, runs, in_peace)
        warmer.start()
        assert warmer.done.wait(WAIT_S)
        assert image.filesystem.engine.cache.statistics.counts().chunks == 0
    assert [record.message for record in caplog.records] == [
        "the image's prefetch list is not used: prefetch list names a chunk twice"
    ]


def test_cache_takes_offers_only_where_there_is_room():
    cost = 1000 + ENTRY_OVERHEAD_BYTES
    cache = PageCache(8 * cost)
    for number in range(8):
        assert cache.has_room(1000) == (number < 6)
        cache.offer((0, number), bytes(1000))
    assert [cache.holds((0, number)) for number in range(8)] == [True] * 6 + [False] * 2
    for number in range(10, 12):
        cache.put((0, number), bytes(1000))
    assert cache.evictions == 0
    cache.put((0, 12), bytes(1000))
    assert cache.evictions == 1
    assert not cache.holds((0, 0))  # what nobody came for goes first
    assert cache.chunk_hits == 0


def test_offer_of_what_is_there_changes_nothing():
    cache = PageCache(100_000)
    cache.put((0, 1), b"a")
    used = cache.used_bytes
    cache.offer((0, 1), b"b")
    assert (cache.get((0, 1)), cache.used_bytes) == (b"a", used)


def test_demand_is_over_when_the_last_has_what_he_wants():
    demand = Demand()
    demand.wait_for_none(lambda: False)
    waited = threading.Event()

    def wait():
        demand.wait_for_none(lambda: False)
        waited.set()

    with demand:
        with demand:
            thread = threading.Thread(target=wait)
            thread.start()
        assert not waited.is_set()
    assert waited.wait(WAIT_S)
    thread.join()
