"""Notes on requests under way: what a back end that was killed anywhere leaves to the next one."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost.errors import RefusedError
from vhost.inflight import InflightMemory, QueueInflight, region_bytes
from vhost.messages import InflightArea
from vhost.shared_memory import create_sealed

SIZE = 8


def notes(region=None):
    return QueueInflight(memoryview(bytearray(region_bytes(SIZE)) if region is None else region), SIZE)


def test_region_is_laid_out_as_the_specification_has_it():
    region = bytearray(region_bytes(SIZE))
    made = notes(region)
    assert made.recover(7) == []
    made.claim([3, 5])
    made.finish([5])
    assert struct.unpack_from("=QHHHH", region) == (0, 1, SIZE, 5, 7)
    assert struct.unpack_from("=B5xHQ", region, 16 + 3 * 16) == (1, 0, 0)
    assert struct.unpack_from("=B5xHQ", region, 16 + 5 * 16) == (1, 0, 1)
    made.finished([5], 8)
    assert struct.unpack_from("=QHHHH", region) == (0, 1, SIZE, 5, 8)
    assert struct.unpack_from("=B5xHQ", region, 16 + 5 * 16) == (0, 0, 1)
    assert len(region) % 64 == 0


@given(
    steps=st.lists(
        st.tuples(st.integers(1, SIZE), st.integers(1, SIZE), st.randoms()), min_size=1, max_size=12
    ),
    start=st.sampled_from([0, 5, 0xFFFA]),
    phase=st.integers(0, 3),
)
def test_what_was_not_given_back_is_recovered_in_order_wherever_it_ends(steps, start, phase):
    """Chains are taken and given back in any order; the process ends somewhere within the last batch."""
    region = bytearray(region_bytes(SIZE))
    made = notes(region)
    used = start
    made.recover(used)
    free, under_way = list(range(SIZE)), []
    for number, (takes, gives, random) in enumerate(steps):
        heads = random.sample(free, min(takes, len(free)))
        made.claim(heads)
        free = [head for head in free if head not in heads]
        under_way += heads
        batch = random.sample(under_way, min(gives, len(under_way)))
        is_last = number + 1 == len(steps)
        if is_last and phase == 0:
            break
        made.finish(batch)
        if is_last and phase == 1:
            break
        used = (used + len(batch)) & 0xFFFF
        under_way = [head for head in under_way if head not in batch]
        if is_last and phase == 2:
            break
        made.finished(batch, used)
        free += batch
    assert notes(region).recover(used) == under_way
    # And once more: recovering is nothing that is done halfway.
    again = notes(region)
    assert again.recover(used) == under_way
    again.claim(free[:1])
    assert notes(region).recover(used) == under_way + free[:1]


@given(
    region=st.binary(min_size=region_bytes(SIZE), max_size=region_bytes(SIZE)), used=st.integers(0, 0xFFFF)
)
def test_any_bytes_are_heads_or_refused(region, used):
    for version, size in ((0, 0), (1, SIZE), (1, SIZE + 1), (2, SIZE), (None, None)):
        changed = bytearray(region)
        if version is not None:
            struct.pack_into("=HH", changed, 8, version, size)
        made = notes(changed)
        try:
            heads = made.recover(used)
        except RefusedError:
            assert (version, size) not in [(0, 0), (1, SIZE)]
        else:
            assert len(set(heads)) == len(heads) <= SIZE
            assert all(head < SIZE for head in heads)
            made.claim(heads)
            made.finish(heads)
            made.finished(heads, used)
            assert notes(changed).recover(used) == []


@pytest.mark.parametrize(
    "area",
    [
        InflightArea(0, 0, 1, SIZE),
        InflightArea(region_bytes(SIZE) - 1, 0, 1, SIZE),
        InflightArea(2 * region_bytes(SIZE) - 1, 0, 2, SIZE),
        InflightArea(2**40, 0, 0, SIZE),
        InflightArea(2**40, 0, 1, 0),
        InflightArea(2**40, 0, 257, SIZE),
        InflightArea(2**40, 0, 1, 0xFFFF),
        InflightArea(2**40, 0, 256, 4096),  # the file is not that long
        InflightArea(2**40, 2**63, 1, SIZE),
        InflightArea(2**64 - 1, 2**64 - 1, 1, SIZE),
    ],
)
def test_area_that_cannot_be_is_refused(area):
    descriptor = create_sealed("notes", 2 * region_bytes(SIZE))
    with pytest.raises(RefusedError):
        InflightMemory(area, descriptor)
    os.close(descriptor)


def test_each_queue_has_a_region_of_its_own():
    size = region_bytes(SIZE)
    descriptor = create_sealed("notes", 3 * size)
    made = InflightMemory(InflightArea(2 * size, size, 2, SIZE), descriptor)
    for index in (0, 1):
        queue = made.queue(index)
        queue.recover(0)
        queue.claim([index])
        queue.close()
    assert made.queue(2) is None
    made.close()
    content = os.pread(descriptor, 3 * size, 0)
    assert content[:size] == bytes(size)
    for index in (0, 1):
        region = content[(1 + index) * size :]
        assert [region[16 + 16 * head] for head in range(SIZE)] == [
            int(head == index) for head in range(SIZE)
        ]
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
