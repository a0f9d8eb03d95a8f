"""The prefetch list: what packs parses, and every lie about chunks is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError
from rafsfs.format.prefetch import PREFETCH_RUN, PrefetchRun, pack_prefetch_list, parse_prefetch_list

COUNTS = (5, 0, 3)
RUNS = [PrefetchRun(2, 1, 2), PrefetchRun(0, 4, 1), PrefetchRun(0, 0, 4), PrefetchRun(2, 0, 1)]


def test_order_is_kept():
    data = pack_prefetch_list(RUNS)
    assert data[:12] == b"\x02\0\0\0\x01\0\0\0\x02\0\0\0"
    assert parse_prefetch_list(data, COUNTS) == RUNS
    assert parse_prefetch_list(b"", COUNTS) == []


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ((0, 0, 0), "some of the 5 of blob 0, found 0 from 0 on"),
        ((0, 5, 1), "some of the 5"),
        ((0, 4, 2), "found 2 from 4 on"),
        ((0, 1, 2**32 - 1), "found 4294967295"),
        ((0, 2**32 - 1, 1), "from 4294967295"),
        ((1, 0, 1), "some of the 0 of blob 1"),
        ((3, 0, 1), "some of the 0 of blob 3"),
        ((2**32 - 1, 0, 1), "of blob 4294967295"),
    ],
)
def test_chunks_that_are_not_there(run, message):
    with pytest.raises(FormatError, match=f"run 1 .*{message}"):
        parse_prefetch_list(pack_prefetch_list([RUNS[3], PrefetchRun(*run)]), COUNTS)


@pytest.mark.parametrize("again", [(0, 4, 1), (0, 3, 1), (2, 0, 3), (2, 2, 1)])
def test_chunks_that_are_listed_twice(again):
    with pytest.raises(FormatError, match="twice"):
        parse_prefetch_list(pack_prefetch_list([PrefetchRun(*again), *RUNS]), COUNTS)


def test_list_that_is_cut_off():
    with pytest.raises(FormatError, match="multiple of 12"):
        parse_prefetch_list(pack_prefetch_list(RUNS)[:-1], COUNTS)


@given(st.lists(st.builds(PrefetchRun, *[st.integers(0, 7)] * 3), max_size=6))
def test_what_is_taken_names_each_chunk_once(runs):
    data = b"".join(map(PREFETCH_RUN.pack, runs))
    chunks = [(blob, first + number) for blob, first, count in runs for number in range(count)]
    sound = (
        all(blob < len(COUNTS) and chunk < COUNTS[blob] for blob, chunk in chunks)
        and len(set(chunks)) == len(chunks)
        and all(run.chunk_count for run in runs)
    )
    if sound:
        assert parse_prefetch_list(data, COUNTS) == runs
    else:
        with pytest.raises(FormatError):
            parse_prefetch_list(data, COUNTS)
