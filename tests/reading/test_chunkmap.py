"""Which chunk holds a byte: against a search through all of them; gaps and hostile records refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, LimitExceeded, UnsupportedVersion
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Codec, Suite
from rafsfs.reading.chunkmap import RECORDS_KEPT, ChunkTable

BLOCK = 4096
BLOB_SIZE = 1 << 40


def record(block, length, offset=0):
    return ChunkRecord(block, length, offset, 100, Codec.ZSTD, 0, bytes(32), bytes(32))


def table(records, *, before=b"", blocks=2**32 - 2, reads=None):
    section = before + b"".join(map(CHUNK_RECORD.pack, records))

    def read(offset, length):
        if reads is not None:
            reads.append(offset)
        assert offset + length <= len(section), "read beyond its table"
        return section[offset : offset + length]

    return ChunkTable(read, len(before), len(records), Suite.AES_256_GCM, BLOB_SIZE, blocks)


@st.composite
def layouts(draw):
    """Sorted chunks of odd lengths, some with a gap before them."""
    records, block = [], 0
    for _ in range(draw(st.integers(0, 12))):
        block += draw(st.sampled_from([0, 0, 0, 1, 3]))
        length = draw(st.one_of(st.integers(1, 5 * BLOCK), st.sampled_from([BLOCK, 2 * BLOCK, 64 * BLOCK])))
        records.append(record(block, length))
        block += -(-length // BLOCK)
    return records, block * BLOCK


def linear(records, offset):
    for index, item in enumerate(records):
        if item.decoded_start <= offset < item.decoded_end:
            return index
    return None


@given(layouts(), st.data())
def test_find_agrees_with_a_search_through_all(layout, data):
    """Many look-ups of one table, because it remembers where the last one ended."""
    records, end = layout
    chunks = table(records, before=b"another blob's table" * 5)
    assert len(chunks) == len(records)
    borders = [
        place for item in records for place in (item.decoded_start, item.decoded_end - 1, item.decoded_end)
    ]
    places = st.one_of(st.integers(0, end + BLOCK), st.sampled_from([0, *borders]))
    for offset in data.draw(st.lists(places, min_size=1, max_size=20)):
        wanted = linear(records, offset)
        if wanted is None:
            with pytest.raises(
                FormatError, match=f"no chunk holds this part of decoded space .offset {offset}"
            ):
                chunks.find(offset)
        else:
            assert chunks.find(offset) == wanted
            assert chunks.record(wanted) == records[wanted]


def test_sequential_reader_needs_no_search():
    records = [record(number * 2, 2 * BLOCK) for number in range(1000)]
    reads = []
    chunks = table(records, reads=reads)
    for number in range(1000):
        for offset in (0, BLOCK, 2 * BLOCK - 1):
            assert chunks.find(number * 2 * BLOCK + offset) == number
    assert len(reads) <= 3 * 1000  # of each chunk its record and those beside it


def test_records_kept_are_bounded():
    records = [record(number, BLOCK) for number in range(RECORDS_KEPT + 100)]
    chunks = table(records)
    for number in range(len(records)):
        chunks.record(number)
    assert chunks.record.cache_info().currsize == RECORDS_KEPT


def test_table_without_chunks_holds_nothing():
    with pytest.raises(FormatError, match="no chunk holds"):
        table([]).find(0)


@pytest.mark.parametrize(
    ("hostile", "error"),
    [
        (record(0, 0), LimitExceeded),
        (record(0, 2**32 - 1), LimitExceeded),
        (record(0, BLOCK)._replace(codec=9), UnsupportedVersion),
        (record(0, BLOCK)._replace(flags=9), UnsupportedVersion),
        (record(0, BLOCK)._replace(encoded_offset=BLOB_SIZE), FormatError),
        (record(0, BLOCK)._replace(encoded_length=16), LimitExceeded),
    ],
)
def test_hostile_record_is_refused_where_it_is_met(hostile, error):
    chunks = table([*(record(block, BLOCK) for block in range(5)), hostile._replace(decoded_block=100)])
    for _ in range(2):  # what is refused must not be remembered as sound
        with pytest.raises(error):
            chunks.find(100 * BLOCK)
    assert [chunks.find(block * BLOCK) for block in range(5)] == list(range(5))


@pytest.mark.parametrize(
    ("records", "offset"),
    [
        ([record(0, 2 * BLOCK), record(1, BLOCK)], 0),
        ([record(0, 2 * BLOCK), record(1, BLOCK)], BLOCK),
        ([record(0, BLOCK), record(0, BLOCK)], 0),
        ([record(5, BLOCK), record(4, BLOCK)], 5 * BLOCK),
        ([record(0, BLOCK + 1), record(1, BLOCK)], 0),
    ],
)
def test_chunks_that_share_a_block_are_refused(records, offset):
    with pytest.raises(FormatError, match="overlaps"):
        table(records).find(offset)


def test_chunk_must_end_within_its_blob():
    assert table([record(0, 2 * BLOCK)], blocks=2).find(0) == 0
    with pytest.raises(FormatError, match="behind its end"):
        table([record(0, 2 * BLOCK + 1)], blocks=2).find(0)


@given(st.lists(st.builds(record, st.integers(0, 40), st.integers(1, 5 * BLOCK)), max_size=8), st.data())
def test_unsorted_and_overlapping_tables_end_in_a_chunk_that_holds_the_byte_or_a_refusal(records, data):
    chunks = table(records)
    for offset in data.draw(st.lists(st.integers(0, 50 * BLOCK), min_size=1, max_size=8)):
        try:
            index = chunks.find(offset)
        except FormatError:
            continue
        assert records[index].decoded_start <= offset < records[index].decoded_end
