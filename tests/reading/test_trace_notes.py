"""What a trace notes: exact blocks, pieces in order of first access, each once, up to a bound."""

import random

from rafsfs.reading.trace import AccessTrace, DecodedRange, FileRange

KIB = 1024
PIECE = 256 * KIB


def noted(trace):
    return [tuple(found) for found in trace.ranges()]


def test_order_is_that_of_first_access():
    trace = AccessTrace()
    trace.file_read(9, PIECE, 10)
    trace.file_read(7, 0, 1)
    trace.file_read(9, PIECE + 8 * KIB, 4 * KIB)
    trace.file_read(7, 0, 4096)
    assert list(trace.ranges()) == [
        FileRange(9, PIECE, PIECE + 4 * KIB),
        FileRange(9, PIECE + 8 * KIB, PIECE + 12 * KIB),
        FileRange(7, 0, 4 * KIB),
    ]


def test_long_reads_are_cut_into_pieces():
    trace = AccessTrace()
    trace.file_read(1, PIECE - 1, 2 * PIECE)
    assert noted(trace) == [
        (1, PIECE - 4 * KIB, PIECE),
        (1, PIECE, 2 * PIECE),
        (1, 2 * PIECE, 3 * PIECE),
    ]


def test_blobs_are_told_from_files():
    trace = AccessTrace()
    trace.blob_read(0, 4 * KIB, 4 * KIB)
    trace.file_read(0, 4 * KIB, 4 * KIB)
    assert [type(found) for found in trace.ranges()] == [DecodedRange, FileRange]


def test_nothing_read_is_nothing_noted():
    trace = AccessTrace()
    trace.file_read(1, 0, 0)
    trace.file_read(1, 5000, 0)
    assert noted(trace) == []


def test_blocks_are_exact():
    chosen = random.Random(1)
    for _ in range(50):
        trace, blocks = AccessTrace(), set()
        for _ in range(chosen.randrange(1, 12)):
            start, size = chosen.randrange(600 * KIB), chosen.choice([1, 4096, 20_000, 300_000])
            trace.file_read(1, start, size)
            blocks |= set(range(start // 4096, (start + size - 1) // 4096 + 1))
        found = [block for _, start, end in noted(trace) for block in range(start // 4096, end // 4096)]
        assert sorted(found) == sorted(blocks)


def test_bound():
    trace = AccessTrace(pieces_max=2)
    for nid in (1, 2):
        trace.file_read(nid, 0, 1)
    assert not trace.is_full
    trace.file_read(3, 0, 1)
    assert trace.is_full
    trace.file_read(1, 4096, 1)
    assert noted(trace) == [(1, 0, 8192), (2, 0, 4096)]
