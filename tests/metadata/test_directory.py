"""Directory blocks: what is packed parses, and each way in which one can be wrong is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, RafsError
from rafsfs.format.erofs import BLOCK_SIZE, DIRENT, Dirent, FileType
from rafsfs.metadata.directory import ENTRIES_PER_BLOCK_MAX, parse_directory_block


def block(names, *, nids=None, types=None, pad=0):
    """A directory block as erofs-utils lays it out: dirents, then the names back to back."""
    position = len(names) * DIRENT.size
    dirents = b""
    for number, name in enumerate(names):
        nid = nids[number] if nids else 36 + number
        dirents += DIRENT.pack(Dirent(nid, position, types[number] if types else FileType.REGULAR, 0))
        position += len(name)
    return dirents + b"".join(names) + bytes(pad)


names = st.sets(
    st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name and b"/" not in name),
    min_size=1,
    max_size=40,
).map(sorted)


@given(names, st.sampled_from([0, 1, 500]), st.data())
def test_names_come_back_in_order(listed, pad, data):
    types = data.draw(st.lists(st.sampled_from(FileType), min_size=len(listed), max_size=len(listed)))
    nids = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=len(listed), max_size=len(listed)))
    parsed = parse_directory_block(block(listed, nids=nids, types=types, pad=pad))
    assert (parsed.names, parsed.nids, parsed.types) == (listed, nids, types)
    for index, name in enumerate(listed):
        assert parsed.find(name) == index
    for other in (b"", b"\xff" * 31, listed[0] + b"x" * 40):
        assert parsed.find(other) is None


def test_as_many_names_as_fit_are_read():
    listed = [
        bytes((number >> 8, number & 0xFF)).replace(b"\0", b"\x01") for number in range(0x101, 0x101 + 200)
    ]
    listed = sorted(set(listed) - {b"/"} - {name for name in listed if b"/" in name})
    assert parse_directory_block(block(listed)).names == listed
    shortest = sorted(bytes((number,)) for number in range(1, 256) if number != ord("/"))
    assert len(shortest) <= ENTRIES_PER_BLOCK_MAX == BLOCK_SIZE // 13
    assert parse_directory_block(block(shortest)).names == shortest


def with_offset(position, offset):
    raw = bytearray(block([b"a", b"bb", b"ccc"]))
    raw[position * 12 + 8 : position * 12 + 10] = offset.to_bytes(2, "little")
    return bytes(raw)


REFUSED = {
    "nothing": b"",
    "half a dirent": bytes(11),
    "zeros": bytes(4096),
    "no dirents": with_offset(0, 0),
    "first name inside the dirents": with_offset(0, 13),
    "first name too early": with_offset(0, 24),
    "first name too late": with_offset(0, 48),
    "first name outside": with_offset(0, 12 * 400),
    "first name at the end": block([b"a"])[:12],
    "name outside": with_offset(2, 4000),
    "name before the one before": with_offset(2, 36),
    "name of no bytes": with_offset(1, 36),
    "empty last name": block([b"a", b"b"])[:-1] + b"\0",
    "name of NULs": block([b"\0\0"]),
    "NUL inside": block([b"a\0b", b"c"]),
    "NUL inside the last": block([b"a", b"b\0c"]),
    "slash": block([b"a/b"]),
    "slash alone": block([b"/"]),
    "long name": block([b"x" * 256]),
    "long name before another": block([b"x" * 256, b"y"]),
    "twice the same": block([b"a", b"a"]),
    "wrong order": block([b"b", b"a"]),
    "order of letters instead of bytes": block([b"a", b"B"]),
    "prefix behind": block([b"ab", b"a"]),
    "type 0": block([b"a"], types=[0]),
    "type 8": block([b"a"], types=[8]),
    "type 255": block([b"a", b"b"], types=[1, 255]),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_hostile_block_is_refused(data):
    with pytest.raises(FormatError):
        parse_directory_block(data)


def test_longest_name_is_read():
    assert parse_directory_block(block([b"x" * 255, b"y" * 255])).names == [b"x" * 255, b"y" * 255]


@given(st.one_of(st.binary(max_size=300), names.map(block)), st.data())
def test_any_block_ends_in_sorted_names_or_a_refusal(data, chosen):
    data = bytearray(data)
    for _ in range(chosen.draw(st.integers(0, 3))):
        if data:
            data[chosen.draw(st.integers(0, len(data) - 1))] = chosen.draw(st.integers(0, 255))
    try:
        parsed = parse_directory_block(bytes(data))
    except RafsError:
        return
    assert parsed.names == sorted(set(parsed.names))
    assert len(parsed.names) == len(parsed.nids) == len(parsed.types)
