"""Split virtqueues by memory alone: chains of any shape, rings that lie, notifications."""

import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.vhost_frontend import D_INDIRECT, D_NEXT, D_WRITE, EVENT_IDX, FEATURES, TIMEOUT_S, Memory, Queue

from vhost.errors import BadAddressError, BadChainError, BadRingError, GuestError
from vhost.memory import GuestMemory
from vhost.messages import Region, VringAddr
from vhost.virtqueue import LENGTH_SHIFT, QueueOptions, SplitQueue

SIZE = 8


class Pair:
    """Both sides of one queue in one memory."""

    def __init__(self, *, size=SIZE, features=FEATURES, base=0, request_bytes_max=10_000, indirect=True):
        self.memory = Memory()
        self.guest = GuestMemory()
        self.guest.replace([Region(*struct.unpack("=QQQQ", self.memory.region()))], [self.memory.fd])
        self.driver = Queue(self.memory, 0, size, features=features)
        user = self.memory.user
        self.addresses = VringAddr(
            0, 0, user(self.driver.descriptors), user(self.driver.used), user(self.driver.available), 0
        )
        self.options = QueueOptions(bool(features & EVENT_IDX), indirect, request_bytes_max)
        self.device = SplitQueue(self.guest, size, self.addresses, base, self.options)

    def close(self):
        self.device.release()
        self.guest.close()
        self.driver.close()
        self.memory.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def pair():
    with Pair() as made:
        yield made


def at(pair, offset):
    """Guest address that no ring uses."""
    return pair.memory.guest_base + 4 * 2**20 + offset


# --- Chains that are sound --------------------------------------------------------------------------------


@st.composite
def shapes(draw):
    """Readable contents, writable lengths, how many descriptors stand in no indirect table, an order."""
    readable = draw(st.lists(st.binary(max_size=60), max_size=4))
    writable = draw(st.lists(st.integers(0, 60), min_size=0 if readable else 1, max_size=4))
    count = len(readable) + len(writable)
    return readable, writable, draw(st.integers(0, count)), draw(st.permutations(range(SIZE)))


def chained(flags, number, places):
    """Flags and next of a descriptor that is the ``number``-th of a chain in ``places``."""
    return (flags, 0) if number + 1 == len(places) else (flags | D_NEXT, places[number + 1])


@given(shape=shapes())
def test_chain_of_any_shape_is_read_whole(shape):
    readable, writable, direct, order = shape
    with Pair() as pair:
        spans = []
        place = 0
        for content in readable:
            pair.memory.write(at(pair, place), content)
            spans.append((at(pair, place), len(content), 0))
            place += 100
        for length in writable:
            spans.append((at(pair, place), length, D_WRITE))
            place += 100
        # Some descriptors stand in the queue's own table, the others in an indirect one at the chain's end.
        table, inner = list(order), spans[direct:]
        entries = list(spans[:direct])
        if inner:
            places = list(order)[: len(inner)]
            places = [0, *(p for p in places if p)]  # the first one is where a table begins
            raw = bytearray(16 * SIZE)
            for number, (address, length, flags) in enumerate(inner):
                form = address, length, *chained(flags, number, places[: len(inner)])
                struct.pack_into("<QIHH", raw, 16 * places[number], *form)
            pair.memory.write(at(pair, 5000), bytes(raw))
            entries.append((at(pair, 5000), len(raw), D_INDIRECT))
        for number, (address, length, flags) in enumerate(entries):
            form = address, length, *chained(flags, number, table[: len(entries)])
            pair.driver.put_descriptor(table[number], *form)
        pair.driver.offer(table[0])
        (head,) = pair.device.take(32)
        assert head == table[0]
        request, found, room = pair.device.chain(head)
        assert request == b"".join(readable)
        assert found == [(address, length) for address, length, flags in spans if flags & D_WRITE]
        assert room == sum(writable)


def test_indexes_wrap_and_batches_are_bounded():
    with Pair(base=65_530) as pair:
        driver, device = pair.driver, pair.device
        driver.next_available = device.used_index = driver.next_used = 65_530
        driver._used[1] = 65_530
        pair.driver.put_descriptor(3, at(pair, 0), 4)
        done = []
        for turn in range(40):
            heads = [(turn + number) % SIZE for number in range(turn % SIZE + 1)]
            driver.offer(*heads)
            taken = []
            while batch := device.take(3):
                assert len(batch) <= 3
                taken += batch
            assert taken == heads
            device.put([head | (turn << LENGTH_SHIFT) for head in taken])
            assert driver.collect() == [(head, turn) for head in heads]
            done += taken
        assert device.next_available == (65_530 + len(done)) & 0xFFFF
        assert len(done) > 2 * SIZE


# --- Chains that are not ----------------------------------------------------------------------------------

NOWHERE = 0x10


def indirect(pair, *descriptors, length=None, flags=D_INDIRECT, where=5000):
    """Descriptors (address, length, flags, next) in a table, and descriptor 0 that points at it."""
    raw = b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)
    pair.memory.write(at(pair, where), raw)
    pair.driver.put_descriptor(0, at(pair, where), len(raw) if length is None else length, flags)


def direct(pair, *descriptors):
    for number, descriptor in enumerate(descriptors):
        pair.driver.put_descriptor(number, *descriptor)


BAD_CHAINS = {
    "a loop of one": lambda p: direct(p, (at(p, 0), 4, D_NEXT, 0)),
    "a loop of two": lambda p: direct(p, (at(p, 0), 4, D_NEXT, 1), (at(p, 0), 4, D_NEXT, 0)),
    "a loop of nothing": lambda p: direct(p, (at(p, 0), 0, D_NEXT, 0)),
    "a loop of writable ones": lambda p: direct(p, (at(p, 0), 4, D_WRITE | D_NEXT, 0)),
    "next beyond the table": lambda p: direct(p, (at(p, 0), 4, D_NEXT, SIZE)),
    "next far beyond": lambda p: direct(p, (at(p, 0), 4, D_NEXT, 0xFFFF)),
    "readable behind writable": lambda p: direct(p, (at(p, 0), 4, D_WRITE | D_NEXT, 1), (at(p, 0), 4)),
    "a request too long": lambda p: direct(p, (at(p, 0), 10_001)),
    "a request too long in pieces": lambda p: direct(p, (at(p, 0), 9_999, D_NEXT, 1), (at(p, 0), 2)),
    "a request of 4 GiB": lambda p: direct(p, (at(p, 0), 2**32 - 1)),
    "readable nowhere": lambda p: direct(p, (NOWHERE, 4)),
    "readable over the end": lambda p: direct(p, (p.memory.guest_base + p.memory.size - 2, 4)),
    "readable over all ends": lambda p: direct(p, (2**64 - 2, 4)),
    "an empty table": lambda p: indirect(p),
    "half a descriptor": lambda p: indirect(p, (at(p, 0), 4, 0, 0), length=8),
    "one and a half": lambda p: indirect(p, (at(p, 0), 4, 0, 0), (at(p, 0), 4, 0, 0), length=24),
    "a huge table": lambda p: indirect(p, (at(p, 0), 4, 0, 0), length=16 * 1025),
    "a table of 4 GiB": lambda p: indirect(p, (at(p, 0), 4, 0, 0), length=2**32 - 16),
    "a table nowhere": lambda p: direct(p, (NOWHERE, 16, D_INDIRECT)),
    "a table over the end": lambda p: direct(p, (p.memory.guest_base + p.memory.size - 16, 32, D_INDIRECT)),
    "a table that goes on": lambda p: indirect(p, (at(p, 0), 4, 0, 0), flags=D_INDIRECT | D_NEXT),
    "a table in a table": lambda p: indirect(p, (at(p, 5000), 16, D_INDIRECT, 0)),
    "a table in a table, later": lambda p: indirect(
        p, (at(p, 0), 4, D_NEXT, 1), (at(p, 5000), 16, D_INDIRECT, 0)
    ),
    "next beyond an indirect table": lambda p: indirect(p, (at(p, 0), 4, D_NEXT, 1)),
    "a loop in an indirect table": lambda p: indirect(p, (at(p, 0), 4, D_NEXT, 1), (at(p, 0), 4, D_NEXT, 0)),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_bad_chain_is_refused(pair, name):
    BAD_CHAINS[name](pair)
    with pytest.raises(GuestError):
        pair.device.chain(0)


def test_indirect_table_must_have_been_negotiated():
    with Pair(indirect=False) as pair:
        indirect(pair, (at(pair, 0), 4, 0, 0))
        with pytest.raises(BadChainError, match="none may be"):
            pair.device.chain(0)


def test_indirect_table_must_not_span_regions_though_buffers_may(pair):
    with Memory(8192, guest_base=pair.memory.guest_base + pair.memory.size) as more:
        record = struct.unpack("=QQQQ", more.region())
        pair.guest.add(Region(record[0], record[1], 1 << 50, 0), more.fd)
        end = more.guest_base
        pair.memory.write(end - 4, b"abcd")
        more.write(end, b"efgh")
        direct(pair, (end - 4, 8))
        assert pair.device.chain(0)[0] == b"abcdefgh"
        direct(pair, (end - 16, 32, D_INDIRECT))
        with pytest.raises(BadAddressError, match="within one region"):
            pair.device.chain(0)
        # Wholly in the second region it is as good as elsewhere.
        more.write(end, struct.pack("<QIHH", end - 4, 8, 0, 0))
        direct(pair, (end, 16, D_INDIRECT))
        assert pair.device.chain(0)[0][:4] == b"abcd"


def test_longest_table_and_longest_request_are_served(pair):
    indirect(
        pair, *((at(pair, 0), 1, D_NEXT, n + 1) for n in range(1023)), (at(pair, 0), 1, 0, 0), where=10_000
    )
    assert len(pair.device.chain(0)[0]) == 1024
    direct(pair, (at(pair, 0), 10_000))
    assert len(pair.device.chain(0)[0]) == 10_000


@pytest.mark.parametrize("ahead", [SIZE + 1, 2 * SIZE, 0x7FFF, 0x8000, 0xFFFF])
def test_available_index_that_runs_wild_is_refused(pair, ahead):
    pair.driver._available[1] = ahead
    with pytest.raises(BadRingError, match="wild"):
        pair.device.take(32)


@pytest.mark.parametrize("head", [SIZE, SIZE + 1, 0x8000, 0xFFFF])
def test_chain_that_begins_nowhere_is_refused(pair, head):
    pair.driver.offer(0, head)
    with pytest.raises(BadRingError, match="nowhere"):
        pair.device.take(32)


@pytest.mark.parametrize("which", ["descriptors", "available", "used"])
def test_ring_that_is_not_in_memory_is_refused(pair, which):
    end = pair.memory.user_base + pair.memory.size
    for address in (0, end, end - 8, pair.memory.user_base - 1, 2**64 - 8):
        wrong = pair.addresses._replace(**{which: address})
        with pytest.raises(BadAddressError):
            SplitQueue(pair.guest, SIZE, wrong, 0, pair.options)


def test_rings_upon_each_other_hurt_nobody_else(pair):
    """The used ring lies on the others: what is written there is read as anything."""
    user = pair.memory.user(pair.driver.descriptors)
    device = SplitQueue(pair.guest, SIZE, VringAddr(0, 0, user, user, user, 0), 0, pair.options)
    before = pair.memory.map[4096:]
    for turn in range(2000):
        try:
            for head in device.take(32):
                with suppress(GuestError):
                    device.chain(head)
                device.put([head | turn << LENGTH_SHIFT])
        except BadRingError:
            device.next_available = (turn * 7) & 0xFFFF
        device.listen()
    device.release()
    assert pair.memory.map[4096:] == before


REWRITER = """
import itertools, mmap, sys
memory = mmap.mmap(int(sys.argv[1]), 0)
places = [(int(place), [bytes.fromhex(form) for form in forms.split(",")])
          for place, forms in (word.split("=") for word in sys.argv[2:])]
print(flush=True)
for number in itertools.count():
    for place, forms in places:
        form = forms[number % len(forms)]
        memory[place : place + 16] = form
"""


def test_memory_that_changes_under_the_reader_is_survived(pair):
    """Another process, as another processor of the guest, rewrites descriptors and a table all the time."""
    table = at(pair, 5000)
    direct(pair, (table, 32, D_INDIRECT))
    forms = [
        *((at(pair, 0), 32, D_NEXT, 1), (at(pair, 0), 32, 0, 0), (NOWHERE, 32, D_NEXT, 7)),
        *((at(pair, 0), 2**32 - 1, D_NEXT, 1), (table, 32, D_INDIRECT, 0), (at(pair, 0), 8, D_WRITE, 0)),
    ]
    spelled = [struct.pack("<QIHH", *form).hex() for form in forms]
    words = []
    for number, address in enumerate(
        (pair.driver.descriptors, pair.driver.descriptors + 16, table, table + 16)
    ):
        place = address - pair.memory.guest_base
        words.append(f"{place}={','.join(spelled[number:] + spelled[:number])}")
    command = [sys.executable, "-c", REWRITER, str(pair.memory.fd), *words]
    with subprocess.Popen(command, pass_fds=[pair.memory.fd], stdout=subprocess.PIPE) as process:
        outcomes = Counter()
        try:
            process.stdout.readline()
            end = time.monotonic() + TIMEOUT_S
            while outcomes.total() < 30_000 or (len(outcomes) < 3 and time.monotonic() < end):
                try:
                    request, spans, room = pair.device.chain(0)
                except GuestError as error:
                    outcomes[type(error)] += 1
                else:
                    assert len(request) <= 10_000
                    assert room == sum(size for _, size in spans)
                    outcomes["served"] += 1
        finally:
            process.kill()
    assert outcomes.keys() == {"served", BadChainError, BadAddressError}


# --- Notifications ----------------------------------------------------------------------------------------


def needs_event(event, new, old):
    """vring_need_event of linux/virtio_ring.h, in its own words: has the index passed the event?"""
    return any((old + step) & 0xFFFF == event for step in range((new - old) & 0xFFFF))


@example(start=0xFFFF, count=2, event=-1)
@example(start=0xFFFF, count=2, event=0)
@example(start=0xFFFF, count=2, event=1)
@example(start=0xFFFF, count=2, event=2)
@given(start=st.integers(0, 0xFFFF), count=st.integers(1, SIZE), event=st.integers(-10, 10))
def test_guest_is_called_when_the_used_index_passes_its_event(start, count, event):
    with Pair() as pair:
        pair.driver._used[1] = start
        device = SplitQueue(pair.guest, SIZE, pair.addresses, start, pair.options)
        event = (start + event) & 0xFFFF
        pair.driver._available[2 + SIZE] = event
        assert device.put([0] * count) == needs_event(event, (start + count) & 0xFFFF, start)
        assert pair.driver._used[1] == (start + count) & 0xFFFF
        device.release()


def test_guest_without_events_is_called_unless_it_says_so():
    with Pair(features=0) as pair:
        assert pair.device.put([0])
        pair.driver._available[0] = 1
        assert not pair.device.put([0])


def test_guest_with_events_kicks_only_for_the_chain_that_was_listened_for(pair):
    driver, device = pair.driver, pair.device
    driver.put_descriptor(0, at(pair, 0), 4)
    kicks = []
    for turn in range(30):
        if turn % 10 == 0:
            device.listen()
        old = driver.next_available
        driver.offer(0)
        kicks.append(driver.notify(old))
        assert device.take(32) == [0]
    assert kicks == [True, *[False] * 9] * 3


def test_guest_without_events_is_quiet_from_the_first_chain_until_listening():
    with Pair(features=0) as pair:
        driver, device = pair.driver, pair.device
        driver.put_descriptor(0, at(pair, 0), 4)
        for _ in range(3):
            assert driver._used[0] == 0
            for _ in range(3):
                driver.offer(0)
                assert device.take(32) == [0]
                assert driver._used[0] == 1
            device.listen()


def test_guest_that_was_told_not_to_kick_by_a_former_back_end_is_told_to():
    with Pair(features=0) as pair:
        pair.driver.put_descriptor(0, at(pair, 0), 4)
        pair.driver.offer(0)
        assert pair.device.take(32) == [0]
        device = SplitQueue(pair.guest, SIZE, pair.addresses, 1, pair.options)
        assert pair.driver._used[0] == 1
        device.listen()
        assert pair.driver._used[0] == 0
        device.release()


def test_used_index_of_a_former_back_end_is_gone_on_from(pair):
    pair.device.put([1, 2, 3])
    device = SplitQueue(pair.guest, SIZE, pair.addresses, 3, pair.options)
    device.put([5 | 9 << LENGTH_SHIFT])
    assert pair.driver.collect() == [(1, 0), (2, 0), (3, 0), (5, 9)]
    device.release()
