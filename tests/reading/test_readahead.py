"""What is read ahead, for whom and how far: the decisions alone."""

import random

from hypothesis import given
from hypothesis import strategies as st

from rafsfs.reading.readahead import DEPTH_MIN, SKIP_MAX, STEADY_STEPS, STREAMS_MAX, ReadAhead


def asked_for(ahead, indexes, blob=0, *, is_there=False):
    return [ahead.asked(blob, index, is_there=is_there) for index in indexes]


def reach_of(ahead, indexes, *, is_there):
    """How far ahead of the reader each step goes that reads ahead."""
    reach = []
    for index in indexes:
        wanted = ahead.asked(0, index, is_there=is_there)
        if wanted:
            reach.append(wanted.stop - 1 - index)
    return reach


def test_nothing_for_the_first_chunk_and_more_with_every_step():
    ahead = ReadAhead(depth_max=8)
    wanted = [chunk for step in asked_for(ahead, range(40)) for chunk in step]
    assert wanted == list(range(2, 2 + len(wanted)))  # every chunk once, in order, none left out
    assert wanted[-1] >= 39
    assert max(wanted) <= 39 + 8


def test_depth_doubles_up_to_its_bound_for_one_who_has_to_wait():
    reach = reach_of(ReadAhead(depth_max=8), range(30), is_there=False)
    assert reach == sorted(reach)
    assert reach[0] == DEPTH_MIN
    assert reach[-1] == 8


def test_depth_stays_small_for_one_who_never_waits():
    ahead = ReadAhead(depth_max=16)
    reach = reach_of(ahead, range(100), is_there=True)
    assert set(reach) == {DEPTH_MIN}
    assert len(reach) > 90  # a chunk with each step, not many at once


def test_depth_comes_back_once_nobody_waits_any_more():
    ahead = ReadAhead(depth_max=16)
    assert max(reach_of(ahead, range(30), is_there=False)) == 16
    steady = range(30, 30 + 4 * STEADY_STEPS)
    assert reach_of(ahead, steady, is_there=True)[-1] == DEPTH_MIN
    assert max(reach_of(ahead, range(steady.stop, steady.stop + 30), is_there=False)) == 16


def test_the_same_chunk_again_is_not_news():
    ahead = ReadAhead(depth_max=8)
    asked_for(ahead, range(4))
    assert not any(asked_for(ahead, [3] * 100))


def test_a_walk_that_leaves_chunks_out_goes_on():
    ahead = ReadAhead(depth_max=8)
    assert any(asked_for(ahead, range(0, 100, SKIP_MAX)))


def test_random_readers_get_nothing():
    generator = random.Random(7)
    ahead = ReadAhead(depth_max=8)
    steps = asked_for(ahead, [generator.randrange(100_000) for _ in range(5_000)])
    assert sum(map(len, steps)) < 50


def test_several_streams_are_told_apart():
    ahead = ReadAhead(depth_max=8)
    seen = {stream: set() for stream in range(STREAMS_MAX)}
    for step in range(50):
        for stream in range(STREAMS_MAX):
            seen[stream].update(ahead.asked(stream % 2, stream * 10_000 + step, is_there=step % 3 > 0))
    for stream, wanted in seen.items():
        assert wanted >= set(range(stream * 10_000 + 2, stream * 10_000 + 50))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.booleans()), max_size=200),
    st.integers(0, 20),
)
def test_no_chunk_behind_the_reader_and_none_beyond_the_depth(steps, depth_max):
    ahead = ReadAhead(depth_max)
    for blob, index, is_there in steps:
        wanted = ahead.asked(blob, index, is_there=is_there)
        assert all(index < chunk <= index + max(2, depth_max) for chunk in wanted)


def test_parts_that_come_in_another_order_stay_one_stream():
    generator = random.Random(7)
    ahead = ReadAhead(depth_max=16)
    asked_for(ahead, range(8))
    wanted = []
    for first in range(8, 400, 8):
        part = list(range(first, first + 8))
        generator.shuffle(part)
        wanted += [chunk for step in asked_for(ahead, part) for chunk in step]
    assert len(wanted) == len(set(wanted))
    assert set(wanted) >= set(range(40, 400))
