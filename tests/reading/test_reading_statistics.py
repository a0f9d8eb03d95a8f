"""What is counted while an image is read: hits, decoded bytes, failures by kind, read-ahead and its use."""

import pytest
from support.images import build, opened
from support.mounts import chunk_place, flip

from rafsfs.errors import AuthError, FormatError, LengthMismatch, MacMismatch
from rafsfs.reading.page_cache import PageCache
from rafsfs.reading.statistics import ReadCounts, ReadStatistics

CHUNK = 16 * 1024
CHUNKS = 40


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "tree").mkdir()
    content = b"".join(number.to_bytes(4, "little") for number in range(CHUNKS * CHUNK // 4))
    (tmp_path / "tree" / "file").write_bytes(content)
    return build(tmp_path / "tree", tmp_path / "image", chunk_size=CHUNK)


def read(image, offset, size):
    filesystem = image.filesystem
    return b"".join(filesystem.read(filesystem.lookup(filesystem.root, b"file"), offset, size))


def test_each_chunk_is_counted_once_and_then_hit(reference):
    with opened(reference) as image:
        cache = image.filesystem.engine.cache
        read(image, 0, 2 * CHUNK)
        counts, hits, page_hits = cache.statistics.counts(), cache.chunk_hits, cache.page_hits
        assert (counts.chunks, counts.chunk_bytes) == (2, 2 * CHUNK)
        assert counts.pages > 0
        assert counts.page_bytes >= 4096 * counts.pages
        assert 0 < counts.fetched_bytes < counts.chunk_bytes + counts.page_bytes
        read(image, 0, 2 * CHUNK)
        assert cache.chunk_hits == hits + 2
        assert cache.page_hits > page_hits
        assert cache.statistics.counts() == counts


def test_counts_that_were_handed_out_do_not_change():
    statistics = ReadStatistics()
    before = statistics.counts()
    statistics.opened_chunk(1, 2)
    assert before == ReadCounts()
    assert statistics.counts() == ReadCounts(chunks=1, chunk_bytes=2, fetched_bytes=1)


def test_damage_is_counted_with_every_attempt(reference):
    file, _, offset, _ = chunk_place(reference, b"file", 3 * CHUNK)
    flip(file, offset)
    with opened(reference) as image:
        for attempts in (1, 2):
            with pytest.raises(AuthError):
                read(image, 3 * CHUNK, 1)
            counts = image.filesystem.engine.cache.statistics.counts()
            assert counts.failed_authentication == attempts
            assert (counts.chunks, counts.failed_format, counts.failed_store) == (0, 0, 0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MacMismatch("m"), "failed_authentication"),
        (FormatError("f"), "failed_format"),
        (LengthMismatch("l"), "failed_store"),
    ],
)
def test_failures_are_told_apart_by_who_must_act(error, kind):
    statistics = ReadStatistics()
    statistics.failed(error)
    assert statistics.counts() == ReadCounts(**{kind: 1})


def test_read_ahead_and_its_use(reference):
    with opened(reference) as image:
        engine = image.filesystem.engine
        engine.read_ahead(1, lambda: None)
        for number in range(CHUNKS):
            read(image, number * CHUNK, 1)
        counts = engine.cache.statistics.counts()
        assert counts.chunks == CHUNKS
        # the first two chunks make the stream, all others are handed out, to their end and no further
        assert counts.ahead_chunks == engine.ahead_used == CHUNKS - 2


def test_read_ahead_of_a_reader_that_jumps_away_is_of_no_use(reference):
    with opened(reference) as image:
        engine = image.filesystem.engine
        assert engine.ahead_used == 0
        engine.read_ahead(1, lambda: None)
        for number in (0, 1, 20, 21):
            read(image, number * CHUNK, 1)
        assert engine.cache.statistics.counts().ahead_chunks >= 4
        assert engine.ahead_used == 0


def test_evictions_are_counted():
    cache = PageCache(3 * 4396)
    for number in range(5):
        cache.put((0, number), bytes(4096))
    assert cache.evictions == 2
    assert cache.get((0, 0)) is None
    assert cache.get((0, 4)) is not None
    assert (cache.chunk_hits, cache.page_hits) == (1, 0)
