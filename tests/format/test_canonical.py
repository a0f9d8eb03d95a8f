"""Canonical msgpack: round trips, and every other spelling of a value refused."""

import contextlib
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.format import canonical
from rafsfs.limits import MSGPACK_DEPTH_MAX

MAX = 1 << 16

scalars = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.binary(max_size=300),
)
keys = st.text("abcdefgh_", min_size=1, max_size=6)


def nested(depth):
    if not depth:
        return scalars
    inner = nested(depth - 1)
    return st.one_of(scalars, st.lists(inner, max_size=5), st.dictionaries(keys, inner, max_size=5))


documents = st.dictionaries(keys, nested(MSGPACK_DEPTH_MAX - 1), max_size=6)


def unpack(data, max_bytes=MAX):
    return canonical.unpack(data, what="document", max_bytes=max_bytes)


@given(documents)
def test_what_is_packed_comes_back(value):
    assert unpack(canonical.pack(value)) == value


@given(documents, st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter_to_the_bytes(value, chosen):
    shuffled = list(value.items())
    chosen.shuffle(shuffled)
    assert canonical.pack(dict(shuffled)) == canonical.pack(value)


@given(documents, st.data())
def test_truncated_anywhere_it_is_refused(value, data):
    packed = canonical.pack(value)
    with pytest.raises(FormatError):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


@given(documents, st.binary(min_size=1, max_size=9))
def test_bytes_behind_it_are_refused(value, more):
    with pytest.raises(FormatError):
        unpack(canonical.pack(value) + more)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_a_refusal(data):
    try:
        value = unpack(data)
    except RafsError:
        return
    assert canonical.pack(value) == data


@given(documents, st.data())
def test_changed_byte_gives_another_value_or_a_refusal(value, data):
    packed = bytearray(canonical.pack(value))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(RafsError):
        assert unpack(bytes(packed)) != value


A = b"\xa1a"

OTHER_SPELLINGS = {
    "map16": b"\xde\x00\x01" + A + b"\x01",
    "map32": b"\xdf\x00\x00\x00\x01" + A + b"\x01",
    "int in 8 bits": b"\x81" + A + b"\xcc\x01",
    "int in 16 bits": b"\x81" + A + b"\xcd\x00\x01",
    "int in 32 bits": b"\x81" + A + b"\xce\x00\x00\x00\x01",
    "int in 64 bits": b"\x81" + A + b"\xcf" + bytes(7) + b"\x01",
    "signed int of a positive number": b"\x81" + A + b"\xd0\x01",
    "int64 of a small negative number": b"\x81" + A + b"\xd3" + b"\xff" * 8,
    "str8 key": b"\x81\xd9\x01a\x01",
    "str16 value": b"\x81" + A + b"\xda\x00\x01x",
    "str32 value": b"\x81" + A + b"\xdb\x00\x00\x00\x01x",
    "bin16 value": b"\x81" + A + b"\xc5\x00\x01x",
    "bin32 value": b"\x81" + A + b"\xc6\x00\x00\x00\x01x",
    "array16": b"\x81" + A + b"\xdc\x00\x01\x01",
    "array32": b"\x81" + A + b"\xdd\x00\x00\x00\x01\x01",
    "unsorted keys": b"\x82\xa1b\x01\xa1a\x01",
    "unsorted keys inside": b"\x81" + A + b"\x82\xa1b\x01\xa1a\x01",
    "key twice": b"\x82" + A + b"\x01" + A + b"\x02",
    "same key and value twice": b"\x82" + A + b"\x01" + A + b"\x01",
    "bytes as a key": b"\x81\xc4\x01a\x01",
    "bytes as a key inside": b"\x81" + A + b"\x81\xc4\x01a\x01",
    "int as a key": b"\x81\x01\x01",
    "nil as a key": b"\x81\xc0\x01",
    "text that is not UTF-8": b"\x81" + A + b"\xa2\xff\xfe",
    "text with a surrogate": b"\x81" + A + b"\xa3\xed\xa0\x80",
    "reserved byte": b"\x81" + A + b"\xc1",
    "true": b"\x81" + A + b"\xc3",
    "false inside": b"\x81" + A + b"\x91\xc2",
    "float32": b"\x81" + A + b"\xca" + struct.pack(">f", 1.0),
    "float64": b"\x81" + A + b"\xcb" + struct.pack(">d", 1.5),
    "NaN": b"\x81" + A + b"\xcb" + struct.pack(">d", float("nan")),
    "fixext1": b"\x81" + A + b"\xd4\x05x",
    "fixext16": b"\x81" + A + b"\xd8\x05" + bytes(16),
    "ext8 of nothing": b"\x81" + A + b"\xc7\x00\x05",
    "ext8": b"\x81" + A + b"\xc7\x03\x05abc",
    "ext32": b"\x81" + A + b"\xc9\x00\x00\x00\x01\x05x",
    "timestamp 32": b"\x81" + A + b"\xd6\xff" + bytes(4),
    "timestamp 96": b"\x81" + A + b"\xc7\x0c\xff" + bytes(12),
    "a list": b"\x91\x01",
    "an integer": b"\x01",
    "nothing": b"",
    "two maps": b"\x80\x80",
}


@pytest.mark.parametrize("data", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS.keys())
def test_other_spelling_is_refused(data):
    with pytest.raises(FormatError):
        unpack(data)


HUGE = {
    "str32": b"\x81" + A + b"\xdb\xff\xff\xff\xff",
    "bin32": b"\x81" + A + b"\xc6\xff\xff\xff\xff",
    "array32": b"\x81" + A + b"\xdd\xff\xff\xff\xff",
    "map32": b"\xdf\xff\xff\xff\xff",
    "ext32": b"\x81" + A + b"\xc9\xff\xff\xff\xff\x05",
    "nested arrays": b"\x81" + A + b"\xdd\xff\xff\xff\xff" * 300,
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE.keys())
def test_length_that_is_not_there_costs_nothing(data):
    with pytest.raises(FormatError):
        unpack(data)


@pytest.mark.parametrize("level", [b"\x91", b"\x81\xa1a"], ids=["lists", "maps"])
def test_deep_nesting_is_refused_whatever_the_depth(level):
    for depth in [*range(MSGPACK_DEPTH_MAX, 1200, 7), 10_000, 60_000]:
        with pytest.raises(FormatError):
            unpack(b"\x81" + A + level * depth + b"\xc0", max_bytes=1 << 20)


def test_depth_at_the_limit_is_read():
    value = {"a": [[["leaf"]]]}
    assert unpack(canonical.pack(value)) == value
    for deeper in ([[[["leaf"]]]], [[[[]]]], [[[{}]]]):
        with pytest.raises(LimitExceeded, match="nested too deeply"):
            unpack(canonical.pack({"a": deeper}))


def test_size_at_the_limit_is_read():
    packed = canonical.pack({"a": b"x" * 100})
    assert unpack(packed, max_bytes=len(packed))
    with pytest.raises(LimitExceeded, match="too long"):
        unpack(packed, max_bytes=len(packed) - 1)


def test_numbers_of_items_at_the_limit_are_read():
    most = {"a": [0] * canonical.ARRAY_ITEMS_MAX, **{f"k{n}": 0 for n in range(canonical.MAP_KEYS_MAX - 1)}}
    assert unpack(canonical.pack(most)) == most
    with pytest.raises(FormatError):
        unpack(canonical.pack({"a": [0] * (canonical.ARRAY_ITEMS_MAX + 1)}))
    with pytest.raises(FormatError):
        unpack(canonical.pack({**most, "one more": 0}))


def test_other_implementations_spell_it_the_same():
    value = {"version": 1, "list": [b"bytes", "text", None, 2**40, -5], "map": {"b": 1, "a": 2}}
    theirs = msgpack.Packer(use_bin_type=True)
    ordered = {"list": value["list"], "map": {"a": 2, "b": 1}, "version": 1}
    assert canonical.pack(value) == theirs.pack(ordered)


class TestFields:
    def fields(self):
        return canonical.Fields({"number": 5, "text": "t", "octets": b"four", "flag": True}, "document")

    def test_takes_by_name_and_type(self):
        fields = self.fields()
        assert fields.take("text", str) == "t"
        assert fields.integer("number", 5, 5) == 5
        assert fields.octets("octets", 0, 4) == b"four"
        with pytest.raises(FormatError, match="not known: 'flag'"):
            fields.end()

    def test_ends_when_all_is_taken(self):
        fields = canonical.Fields({"a": 1}, "document")
        fields.take("a", int)
        fields.end()

    @pytest.mark.parametrize(
        ("take", "message"),
        [
            (lambda fields: fields.take("missing", int), "no field 'missing'"),
            (lambda fields: fields.take("text", int), "type of 'text': expected int, found str"),
            (lambda fields: fields.take("flag", int), "type of 'flag': expected int, found bool"),
            (lambda fields: fields.integer("number", 6, 9), "expected 6 to 9, found 5"),
            (lambda fields: fields.integer("number", 0, 4), "expected 0 to 4, found 5"),
            (lambda fields: fields.octets("octets", 3, 5), "expected 3 or 5 bytes, found 4"),
            (lambda fields: fields.octets("text", 1), "expected bytes, found str"),
        ],
    )
    def test_refuses(self, take, message):
        with pytest.raises(FormatError, match=message):
            take(self.fields())

    @pytest.mark.parametrize("value", [None, [], b"", 7])
    def test_refuses_what_is_no_map(self, value):
        with pytest.raises(FormatError, match="not a map"):
            canonical.Fields(value, "document")
