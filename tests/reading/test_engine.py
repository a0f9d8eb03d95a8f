"""Ranges of decoded space: right bytes, one decode for all, failures that say where and are not kept."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.build.encode import Encoder
from rafsfs.errors import AuthError, DigestMismatch, FormatError, LengthMismatch, StoreUnavailable, WouldWait
from rafsfs.format.bootstrap import PageEntry, PageTable, pack_page_table
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Suite, blocks_of
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.engine import Blob, MetadataPages, ReadEngine
from rafsfs.reading.page_cache import PageCache

BLOCK = 4096
SUITE = Suite.AES_256_GCM
PATIENCE_S = 30


class MemoryFile:
    """A stored file in memory that counts its readers and can be made to fail or to wait."""

    def __init__(self, data):
        self.name = "sha256:test"
        self.data = bytearray(data)
        self.reads = []
        self.failure = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    @property
    def size(self):
        return len(self.data)

    def read_range(self, offset, length):
        self.reads.append((offset, length))
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        data = bytes(self.data[offset : offset + length])
        if len(data) != length:
            raise LengthMismatch("blob ends too early", expected=length, found=len(data))
        return data

    def close(self):
        pass


def blob_of(plains):
    """A blob of these chunks; returns its file, its engine part and its decoded space with gaps as None."""
    encoder = Encoder(SUITE, 3, None)
    data, records, space, block = b"", b"", bytearray(), 0
    for plain in plains:
        encoded = encoder.chunk(plain)
        records += CHUNK_RECORD.pack(
            ChunkRecord(
                block,
                len(plain),
                len(data),
                len(encoded.data),
                encoded.codec,
                0,
                encoded.chunk_id,
                encoded.key,
            )
        )
        data += encoded.data
        space += bytes(block * BLOCK - len(space)) + plain
        block += blocks_of(len(plain))
    file = MemoryFile(data)
    table = ChunkTable(
        lambda offset, length: records[offset : offset + length], 0, len(plains), SUITE, len(data), block
    )
    return file, Blob(file, table), bytes(space)


PLAINS = [bytes((number,)) * (BLOCK * (number % 3 + 1)) for number in range(1, 10)]


def engine_of(plains=PLAINS, cache_bytes=1 << 20):
    file, blob, space = blob_of(plains)
    return ReadEngine([blob], SUITE, PageCache(cache_bytes)), file, space


@given(st.lists(st.tuples(st.integers(0, 20 * BLOCK), st.integers(0, 8 * BLOCK)), min_size=1, max_size=8))
def test_any_range_is_the_slice(ranges):
    engine, _, space = engine_of(cache_bytes=20_000)
    for start, length in ranges:
        wanted = space[start : start + length]
        if start + length > len(space):
            if length:
                with pytest.raises(FormatError, match="no chunk holds"):
                    engine.read(0, start, length)
            continue
        assert b"".join(engine.read(0, start, length)) == wanted


def test_fast_path_answers_only_what_is_cached():
    engine, file, space = engine_of()
    assert engine.try_read(0, 0, 100) is None
    engine.read(0, 0, 100)
    before = len(file.reads)
    assert b"".join(engine.try_read(0, 50, 1000)) == space[50:1050]
    assert engine.try_read(0, 0, len(space)) is None
    assert engine.try_read(0, 0, 0) == []
    assert len(file.reads) == before


def test_cached_chunks_are_not_fetched_again():
    engine, file, space = engine_of()
    for _ in range(3):
        assert b"".join(engine.read(0, 0, len(space))) == space
    assert len(file.reads) == len(PLAINS)


def test_parts_cannot_be_written_to():
    engine, _, _ = engine_of()
    (part,) = engine.read(0, 0, 10)
    with pytest.raises(TypeError):
        part[0] = 0


def test_one_fetch_however_many_threads_wait():
    engine, file, space = engine_of()
    file.gate.clear()
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(engine.read, 0, 10, 100) for _ in range(16)]
        assert file.entered.acquire(timeout=PATIENCE_S)
        file.gate.set()
        for future in futures:
            assert b"".join(future.result(PATIENCE_S)) == space[10:110]
    assert len(file.reads) == 1


def test_failure_reaches_all_and_is_not_cached():
    engine, file, space = engine_of()
    file.gate.clear()
    file.failure = StoreUnavailable("the disk is gone")
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(engine.read, 0, 10, 100) for _ in range(16)]
        assert file.entered.acquire(timeout=PATIENCE_S)
        file.gate.set()
        for future in futures:
            with pytest.raises(StoreUnavailable, match="the disk is gone"):
                future.result(PATIENCE_S)
    file.failure = None
    assert b"".join(engine.read(0, 10, 100)) == space[10:110]


def test_damaged_chunk_fails_alone_says_where_and_heals():
    engine, file, space = engine_of()
    record = engine.blobs[0].chunks.record(3)
    file.data[record.encoded_offset + 5] ^= 1
    for _ in range(2):
        with pytest.raises(DigestMismatch) as caught:
            engine.read(0, 0, len(space))
        where = caught.value.where
        assert (where.blob, where.chunk, where.offset) == ("sha256:test", 3, record.encoded_offset)
        assert engine.try_read(0, record.decoded_start, 1) is None
    before, after = space[: record.decoded_start], space[record.decoded_end :]
    assert b"".join(engine.read(0, 0, len(before))) == before
    assert b"".join(engine.read(0, record.decoded_end, len(after))) == after
    file.data[record.encoded_offset + 5] ^= 1
    assert b"".join(engine.read(0, 0, len(space))) == space


def test_bytes_that_change_between_two_reads_are_checked_at_each():
    engine, file, space = engine_of(cache_bytes=0)
    assert b"".join(engine.read(0, 0, 100)) == space[:100]
    file.data[3] ^= 1
    with pytest.raises(AuthError):
        engine.read(0, 0, 100)


def test_truncated_blob_fails_only_where_it_ends():
    engine, file, space = engine_of()
    del file.data[-1]
    last = engine.blobs[0].chunks.record(len(PLAINS) - 1)
    assert b"".join(engine.read(0, 0, last.decoded_start)) == space[: last.decoded_start]
    with pytest.raises(LengthMismatch, match=f"chunk {len(PLAINS) - 1}"):
        engine.read(0, last.decoded_start, 1)


def test_blobs_are_told_apart():
    first_file, first, first_space = blob_of([b"1" * BLOCK])
    second_file, second, second_space = blob_of([b"2" * BLOCK])
    engine = ReadEngine([first, second], SUITE, PageCache(1 << 20))
    for _ in range(2):
        assert b"".join(engine.read(0, 0, BLOCK)) == first_space
        assert b"".join(engine.read(1, 0, BLOCK)) == second_space
    assert len(first_file.reads) == len(second_file.reads) == 1


PAGE_SIZE = 4096


def pages_of(contents, start=100):
    encoder = Encoder(SUITE, 3, None)
    key = b"p" * 32
    encoded = [
        bytes(encoder.seal_page(encoder.compress_page(plain), number, key, PAGE_SIZE))
        for number, plain in enumerate(contents)
    ]
    file = MemoryFile(bytes(start) + b"".join(encoded))
    table = PageTable(pack_page_table(encoded), PAGE_SIZE)
    return file, MetadataPages(file, start, table, SUITE, key, PageCache(1 << 20))


def test_pages_come_through_the_cache():
    contents = [bytes((number,)) * PAGE_SIZE for number in range(3)]
    file, pages = pages_of(contents)
    for _ in range(3):
        assert [pages.load(number) for number in range(3)] == contents
    assert len(file.reads) == 3
    with pytest.raises(FormatError, match="out of range"):
        pages.load(3)


def test_a_thread_that_must_not_wait_gets_only_pages_that_are_at_hand():
    contents = [bytes((number,)) * PAGE_SIZE for number in range(2)]
    file, pages = pages_of(contents)
    pages.load(0)
    pages.impatient.add(threading.get_ident())
    assert pages.load(0) == contents[0]
    with pytest.raises(WouldWait):
        pages.load(1)
    assert len(file.reads) == 1
    with ThreadPoolExecutor(1) as other:
        assert other.submit(pages.load, 1).result() == contents[1]
    assert pages.load(1) == contents[1]


def test_damaged_page_says_where_it_is_and_is_not_cached():
    file, pages = pages_of([bytes(PAGE_SIZE)] * 2)
    file.data[-1] ^= 1
    for _ in range(2):
        with pytest.raises(DigestMismatch, match=r"\(file sha256:test, page 1\)"):
            pages.load(1)
    file.data[-1] ^= 1
    assert pages.load(1) == bytes(PAGE_SIZE)


def test_pages_in_each_others_place_are_refused():
    file, _ = pages_of([b"a" * PAGE_SIZE, b"b" * PAGE_SIZE], start=0)
    entries = [
        PageEntry(0, len(file.data) // 2, b""),
        PageEntry(len(file.data) // 2, len(file.data) // 2, b""),
    ]
    first, second = (bytes(file.data[entry.encoded_offset :][: entry.encoded_length]) for entry in entries)
    assert len(first) == len(second)
    swapped = MemoryFile(second + first)
    table = PageTable(pack_page_table([second, first]), PAGE_SIZE)
    pages = MetadataPages(swapped, 0, table, SUITE, b"p" * 32, PageCache(1 << 20))
    assert blake3(second).digest() == table.entry(0).digest
    for number in range(2):
        with pytest.raises(AuthError):
            pages.load(number)


def read_ahead_of(engine, file, chunk_numbers):
    """Reads chunks one after the other, then waits until what was read ahead is cached."""
    prepared = threading.Semaphore(0)
    engine.read_ahead(1, prepared.release)
    table = engine.blobs[0].chunks
    for number in chunk_numbers:
        engine.read(0, table.record(number).decoded_start, 1)
    assert prepared.acquire(timeout=PATIENCE_S)
    marker = threading.Event()
    engine._background.submit(marker.set)  # one thread does one thing after the other
    assert marker.wait(PATIENCE_S)


def test_neighbours_are_read_ahead_with_one_call_to_the_store():
    engine, file, space = engine_of()
    read_ahead_of(engine, file, [0, 1])
    ahead = [number for number in range(2, len(PLAINS)) if engine.cache.holds((0, number))]
    assert len(ahead) >= 2
    before = list(file.reads)
    records = [engine.blobs[0].chunks.record(number) for number in ahead]
    whole = (records[0].encoded_offset, sum(record.encoded_length for record in records))
    assert before.count(whole) == 1
    assert len(before) == 3
    end = records[-1].decoded_end
    assert b"".join(engine.read(0, 0, end)) == space[:end]
    assert file.reads == before


class DistantFile(MemoryFile):
    """A far file of which all has been fetched already."""

    def at_hand(self, offset, length):
        return bytes(self.data[offset : offset + length])


def test_far_readers_are_late_for_what_was_fetched_and_not_decoded():
    """Who reads several chunks at a time has them decoded for him, farther and farther ahead."""
    count, together = 256, 4
    _, blob, _ = blob_of([bytes([number]) * BLOCK for number in range(count)])
    file = DistantFile(blob.file.data)
    engine = ReadEngine([Blob(file, blob.chunks)], SUITE, PageCache(64 << 20))
    engine.read_ahead(1, lambda: None)
    decoded_by_reader = 0
    for first in range(0, count, together):
        record = engine.blobs[0].chunks.record(first)
        decoded_by_reader += sum(not engine.cache.holds((0, first + step)) for step in range(together))
        engine.read(0, record.decoded_start, together * BLOCK)
        marker = threading.Event()
        engine._background.submit(marker.set)
        assert marker.wait(PATIENCE_S)  # a reader who takes his time
    assert decoded_by_reader <= 4 * together


def test_damage_that_is_read_ahead_costs_nobody_else_anything():
    engine, file, space = engine_of()
    record = engine.blobs[0].chunks.record(3)
    file.data[record.encoded_offset] ^= 1
    read_ahead_of(engine, file, [0, 1])
    assert not engine.cache.holds((0, 3))
    for number in range(len(PLAINS)):
        found = engine.blobs[0].chunks.record(number)
        if number == 3:
            with pytest.raises(DigestMismatch) as caught:
                engine.read(0, found.decoded_start, 1)
            assert caught.value.where.chunk == 3
        else:
            whole = b"".join(engine.read(0, found.decoded_start, found.decoded_length))
            assert whole == space[found.decoded_start : found.decoded_end]
