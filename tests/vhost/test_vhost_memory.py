"""Guest memory: which addresses are in it, and that nothing else is ever touched."""

import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vhost_frontend import Memory

from vhost.errors import BadAddressError, RefusedError
from vhost.limits import REGIONS_MAX
from vhost.memory import GuestMemory
from vhost.messages import Region
from vhost.shared_memory import F_ADD_SEALS, F_SEAL_SHRINK

PAGE = 4096
TOP = 2**64


@pytest.fixture
def guest():
    made = GuestMemory()
    yield made
    made.close()


@pytest.fixture
def file():
    descriptor = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 16 * PAGE)
    yield descriptor
    os.close(descriptor)


def region(guest_address, pages, file_page=0, *, user_address=None):
    user = guest_address + (1 << 40) if user_address is None else user_address
    return Region(guest_address, pages * PAGE, user, file_page * PAGE)


TWO_AND_A_HOLE = [region(2 * PAGE, 2, 0), region(4 * PAGE, 1, 8), region(8 * PAGE, 1, 4)]

READABLE = [  # address, size, what is there, as (place in the file, size)
    (2 * PAGE, 1, [(0, 1)]),
    (2 * PAGE + 7, 9, [(7, 9)]),
    (2 * PAGE, 2 * PAGE, [(0, 2 * PAGE)]),
    (4 * PAGE - 1, 2, [(2 * PAGE - 1, 1), (8 * PAGE, 1)]),  # across regions that touch
    (2 * PAGE, 3 * PAGE, [(0, 2 * PAGE), (8 * PAGE, PAGE)]),
    (9 * PAGE - 1, 1, [(5 * PAGE - 1, 1)]),
]
UNREADABLE = [
    *((0, 1), (2 * PAGE - 1, 1), (2 * PAGE - 1, 2), (5 * PAGE, 1), (5 * PAGE - 1, 2), (2 * PAGE, 7 * PAGE)),
    *((8 * PAGE - 1, 2), (9 * PAGE, 1), (9 * PAGE - 1, 2), (TOP - 1, 1), (TOP - 1, 2**32), (TOP - 8, 16)),
]


def fill(file):
    content = os.urandom(16 * PAGE)
    os.pwrite(file, content, 0)
    return content


@pytest.mark.parametrize(("address", "size", "places"), READABLE)
def test_range_within_is_read_and_written(guest, file, address, size, places):
    guest.replace(TWO_AND_A_HOLE, [file] * 3)
    content = bytearray(fill(file))
    assert guest.read(address, size) == b"".join(content[at : at + length] for at, length in places)

    new = os.urandom(size)
    assert guest.scatter([new], [(address, size)]) == size
    done = 0
    for at, length in places:
        content[at : at + length] = new[done : done + length]
        done += length
    assert os.pread(file, 16 * PAGE, 0) == content


@pytest.mark.parametrize(("address", "size"), UNREADABLE)
def test_range_that_is_not_wholly_within_is_refused(guest, file, address, size):
    guest.replace(TWO_AND_A_HOLE, [file] * 3)
    with pytest.raises(BadAddressError):
        guest.read(address, size)
    with pytest.raises(BadAddressError):
        guest.read_whole(address, size)
    before = fill(file)
    with pytest.raises(BadAddressError):
        guest.scatter([b"x" * min(size, 8 * PAGE)], [(address, size)])
    after = os.pread(file, 16 * PAGE, 0)
    touched = {at // PAGE for at in range(16 * PAGE) if after[at] != before[at]}
    assert touched <= {0, 1, 8, 4}


def test_range_across_regions_is_not_whole(guest, file):
    guest.replace(TWO_AND_A_HOLE, [file] * 3)
    content = fill(file)
    assert guest.read_whole(4 * PAGE - 16, 16) == content[2 * PAGE - 16 : 2 * PAGE]
    with pytest.raises(BadAddressError, match="within one region"):
        guest.read_whole(4 * PAGE - 16, 17)


def test_nothing_is_in_memory_that_was_not_shared(guest):
    for address in (0, 1, TOP - 1):
        with pytest.raises(BadAddressError):
            guest.read(address, 1)
    assert guest.read(0, 0) == b""


def test_ring_is_found_by_the_address_of_the_front_end(guest, file):
    guest.replace(
        [region(0, 2, 3, user_address=0x7000), region(TOP - 2 * PAGE, 2, user_address=0)], [file] * 2
    )
    with guest.user_view(0x7010, 16) as view:
        view[:] = b"0123456789abcdef"
    assert os.pread(file, 16, 3 * PAGE + 0x10) == b"0123456789abcdef"
    for address, size in ((0x7000, 2 * PAGE + 1), (0x6FFF, 2), (0x9000, 1), (TOP - 1, 1), (2 * PAGE, 1)):
        with pytest.raises(BadAddressError):
            guest.user_view(address, size)


REFUSED_TABLES = [
    [region(0, 2), region(PAGE, 2, user_address=1 << 50)],  # overlap for the guest
    [region(0, 2, user_address=0), region(8 * PAGE, 2, user_address=PAGE)],  # and for the front end
    [region(0, 2), region(0, 2)],
    [region(0, 8), region(PAGE, 1, user_address=1 << 50)],  # one within the other
    [region(0, 0)],
    [Region(TOP - PAGE, 2 * PAGE, 0, 0)],
    [Region(0, 2 * PAGE, TOP - PAGE, 0)],
    [Region(0, 2 * PAGE, 0, TOP - PAGE)],
    [region(0, 17)],  # longer than its file
    [region(0, 1, 16)],  # behind the end of its file
    [region(0, 1, 1 << 48)],
    [Region(0, TOP - 1, 0, 0)],
    [Region(0, 1 << 62, 0, 0)],
    [Region(0, 3 << 40, 0, 0), Region(1 << 50, 3 << 40, 1 << 50, 0)],  # more than a process should map
]


@pytest.mark.parametrize("table", REFUSED_TABLES)
def test_table_that_cannot_be_is_refused_and_changes_nothing(guest, file, table):
    before = region(0x100 * PAGE, 1, 15, user_address=1 << 45)
    guest.replace([before], [file])
    content = fill(file)
    with pytest.raises(RefusedError):
        guest.replace(table, [file] * len(table))
    assert guest.read(0x100 * PAGE, PAGE) == content[15 * PAGE :]
    if len(table) == 1:
        with pytest.raises(RefusedError):
            guest.add(table[0], file)
    assert len(guest) == 1


@pytest.mark.parametrize("kind", ["pipe", "read-only", "directory", "path", "closed"])
def test_file_that_cannot_be_memory_is_refused(guest, tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * PAGE))
    others = []
    if kind == "pipe":
        descriptor, other = os.pipe()
        others.append(other)
    else:
        where = tmp_path if kind == "directory" else path
        descriptor = os.open(where, os.O_PATH if kind == "path" else os.O_RDONLY)
    if kind == "closed":
        os.close(descriptor)
    else:
        others.append(descriptor)
    with pytest.raises(RefusedError, match="cannot be mapped"):
        guest.replace([region(0, 1)], [descriptor])
    for other in others:
        os.close(other)


def test_region_need_not_begin_at_a_page_of_its_file(guest, file):
    content = fill(file)
    guest.replace([Region(0x1234, 1000, 0x10, 777)], [file])
    assert guest.read(0x1234, 1000) == content[777:1777]
    for address in (0x1233, 0x1234 + 1000):
        with pytest.raises(BadAddressError):
            guest.read(address, 1)
    with guest.user_view(0x10, 8) as view:
        assert view == content[777:785]


def test_regions_come_and_go(guest, file):
    content = fill(file)
    first, second = region(0, 1, 1), region(PAGE, 1, 2)
    guest.add(second, file)
    guest.add(first, file)
    assert guest.read(0, 2 * PAGE) == content[PAGE : 3 * PAGE]
    with pytest.raises(RefusedError, match="overlap"):
        guest.add(first, file)
    for wrong in (first._replace(size=1), first._replace(user_address=0), first._replace(guest_address=1)):
        with pytest.raises(RefusedError, match="not there"):
            guest.remove(wrong)
    guest.remove(first._replace(file_offset=0x77))  # the offset says nothing
    with pytest.raises(BadAddressError):
        guest.read(0, 1)
    assert guest.read(PAGE, PAGE) == content[2 * PAGE : 3 * PAGE]
    with pytest.raises(RefusedError, match="not there"):
        guest.remove(first)


def test_regions_are_bounded(guest, file):
    for number in range(REGIONS_MAX):
        guest.add(region(2 * number * PAGE, 1, number % 16), file)
    with pytest.raises(RefusedError, match="too many"):
        guest.add(region(TOP // 2, 1), file)
    assert len(guest) == REGIONS_MAX


def test_only_memory_that_stays_is_taken_when_asked_for(file, tmp_path):
    guest = GuestMemory(sealed_only=True)
    with pytest.raises(RefusedError, match="truncated"):
        guest.add(region(0, 1), file)
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as on_disk, pytest.raises(RefusedError, match="truncated"):
        guest.add(region(0, 1), on_disk.fileno())
    fcntl.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK)
    guest.add(region(0, 1), file)
    guest.close()


SPANS = st.lists(st.tuples(st.integers(0, 3 * PAGE - 1), st.integers(0, 300)), max_size=8)


@given(
    spans=SPANS,
    parts=st.lists(st.binary(max_size=400), max_size=8),
    kind=st.sampled_from([bytes, memoryview]),
)
def test_parts_are_scattered_into_spans_byte_by_byte(spans, parts, kind):
    spans = [(2 * PAGE + start, min(size, 3 * PAGE - start)) for start, size in spans]
    room = sum(size for _, size in spans)
    whole = b"".join(parts)
    with Memory(4 * PAGE, guest_base=2 * PAGE) as memory:
        guest = GuestMemory()
        # Two regions that touch, so that spans lie across them.
        guest.replace([region(2 * PAGE, 1, 0), region(3 * PAGE, 2, 1)], [memory.fd] * 2)
        expected = bytearray(4 * PAGE)
        if len(whole) <= room:
            places = [start - 2 * PAGE + number for start, size in spans for number in range(size)]
            for place, byte in zip(places, whole, strict=False):
                expected[place] = byte
            assert guest.scatter([kind(part) for part in parts], spans) == len(whole)
            assert memory.map[:] == expected
        else:
            with pytest.raises(IndexError):
                guest.scatter(parts, spans)
        guest.close()
