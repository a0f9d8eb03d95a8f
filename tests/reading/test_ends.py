"""The ends of a far bootstrap: what comes before its digests are known, and which pages are in it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import StoreUnavailable
from rafsfs.reading.ends import HEAD_BYTES, TAIL_BYTES, Ends
from rafsfs.reading.fetcher import Place

BOTH = HEAD_BYTES + TAIL_BYTES


class Remote:
    """A file in memory, which fails where it is told to."""

    name = "sha256:remote"

    def __init__(self, size):
        self.content = bytes(number * 7 & 0xFF for number in range(1021)) * (size // 1021 + 1)
        self.content = self.content[:size]
        self.size = size
        self.asked = []
        self.fails_from = size

    def read_range(self, offset, length):
        raise AssertionError("ends are streamed")

    def stream_range(self, offset, length, take, *, afresh=False):
        self.asked.append((offset, length, afresh))
        if offset >= self.fails_from:
            raise StoreUnavailable("gone")
        take(self.content[offset : offset + length])

    def close(self):
        pass


@pytest.mark.parametrize("size", [1, HEAD_BYTES, HEAD_BYTES + 1, BOTH - 1, BOTH, BOTH + 1, 3 * BOTH])
def test_one_read_brings_both_ends_and_no_byte_twice(size):
    remote = Remote(size)
    ends = Ends(remote)
    threads = threading.active_count()
    assert ends.read(0, 1) == remote.content[:1]
    covered = sorted((offset, offset + length) for offset, length, _ in remote.asked)
    assert covered[0] == (0, min(size, HEAD_BYTES))
    assert covered[1:] == ([(max(HEAD_BYTES, size - TAIL_BYTES), size)] if size > HEAD_BYTES else [])
    assert ends.read(0, min(size, HEAD_BYTES)) == remote.content[:HEAD_BYTES]
    assert len(remote.asked) == len(covered)  # out of memory
    assert threading.active_count() == threads  # a fork may follow


@given(
    size=st.integers(1, 3 * BOTH),
    lengths=st.lists(st.integers(1, 90_000), min_size=1, max_size=40),
)
def test_pages_that_lie_in_the_ends_come_out_of_them(size, lengths):
    remote = Remote(size)
    places, position = [], 0
    for length in lengths:
        places.append(Place(position, length, b""))
        position += length
    ends = Ends(remote)
    ends.read(0, 0)
    tail_start = max(HEAD_BYTES, size - TAIL_BYTES)
    found = dict(ends.dropped(places))
    expected = {
        place
        for place in places
        if place.end <= min(size, HEAD_BYTES) or (place.offset >= tail_start and place.end <= size)
    }
    if places[-1].end > size:  # a table that names pages behind the end: nothing of the tail is believed
        expected = {place for place in expected if place.end <= HEAD_BYTES}
    assert set(found) == expected
    assert all(data == remote.content[place.offset : place.end] for place, data in found.items())
    assert list(ends.dropped(places)) == []  # and are kept no longer


def test_a_tail_that_does_not_come_is_no_failure():
    remote = Remote(3 * BOTH)
    remote.fails_from = HEAD_BYTES
    ends = Ends(remote)
    assert ends.read(10, 20) == remote.content[10:30]
    assert list(ends.dropped([Place(remote.size - 100, 100, b"")])) == []
    with pytest.raises(StoreUnavailable):
        ends.read(remote.size - 100, 100)


def test_a_head_that_does_not_come_is_one():
    remote = Remote(3 * BOTH)
    remote.fails_from = 0
    ends = Ends(remote)
    with pytest.raises(StoreUnavailable):
        ends.read(0, 16)
    remote.fails_from = remote.size
    assert ends.read(0, 16) == remote.content[:16]


def test_distrust_asks_the_origin_for_both():
    remote = Remote(3 * BOTH)
    ends = Ends(remote)
    ends.read(0, 16)
    assert not ends.distrust()  # it has the same
    remote.content = b"other" + remote.content[5:]
    assert ends.distrust()
    assert ends.read(0, 5) == b"other"
    assert [afresh for _, _, afresh in remote.asked] == [False] * 2 + [True] * 4
