"""The text of access traces: any path comes back, and every bad line is named by its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.format.trace import TracedRange, pack_trace, parse_trace
from rafsfs.limits import FILE_SIZE_MAX, TRACE_BYTES_MAX, TRACE_LINE_BYTES_MAX

HEAD = b"rafsfs-trace-1\n"

names = st.binary(min_size=1, max_size=9).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
ranges = st.builds(
    lambda path, offset, length: TracedRange(path, offset, min(length, FILE_SIZE_MAX - offset)),
    paths,
    st.integers(0, FILE_SIZE_MAX - 1),
    st.integers(1, FILE_SIZE_MAX),
)


@given(st.lists(ranges, max_size=5))
def test_any_path_comes_back(found):
    text = pack_trace(found, comment="a comment")
    assert parse_trace(text) == found
    assert text.isascii()
    assert len(text.splitlines()) == len(found) + 2


def test_text_can_be_written_by_hand():
    text = HEAD + b"\n# the shell\n0 4096 /bin/sh\n0 1 /a%20b%25%c3%A4\n10 9223372036854775797 /lib/libc.so.6"
    assert parse_trace(text) == [
        TracedRange(b"bin/sh", 0, 4096),
        TracedRange(b"a b%\xc3\xa4", 0, 1),
        TracedRange(b"lib/libc.so.6", 10, FILE_SIZE_MAX - 10),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"0 1", "OFFSET LENGTH /PATH"),
        (b"0 1 relative", "OFFSET LENGTH /PATH, found '0 1 relative'"),
        (b"-1 1 /a", "OFFSET LENGTH"),
        (b"0 1  /a", "OFFSET LENGTH"),
        (b"0 1 /a b", "OFFSET LENGTH"),
        (b"0 1 /a\r", "OFFSET LENGTH"),
        (b"0 1 /a%", "OFFSET LENGTH"),
        (b"0 1 /a%4", "OFFSET LENGTH"),
        (b"0 1 /a%gg", "OFFSET LENGTH"),
        (b"0 1 /\xff", "OFFSET LENGTH"),
        (b"0 1 /\x1b[2J", "OFFSET LENGTH"),
        ("٣ 1 /a".encode(), "OFFSET LENGTH"),
        (b"0 99999999999999999999 /a", "OFFSET LENGTH"),
        (b"0 0 /a", "no range.*found 0 bytes at 0"),
        (b"1 9223372036854775807 /a", "no range"),
        (b"9999999999999999999 1 /a", "no range"),
        (b"0 1 /", "no path"),
        (b"0 1 //a", "no path"),
        (b"0 1 /a/", "no path"),
        (b"0 1 /a/../b", "no path"),
        (b"0 1 /a/%2e/b", "no path"),
        (b"0 1 /a%00", "no path"),
    ],
)
def test_bad_lines_are_named(line, message):
    with pytest.raises(FormatError, match=f"line 3.*{message}") as caught:
        parse_trace(HEAD + b"0 1 /good\n" + line + b"\n0 1 /good\n")
    assert str(caught.value).isprintable()


def test_something_else_is_no_trace():
    for data in (b"", b"\x7fELF", b"rafsfs-trace-2\n", b"#!/bin/sh\n", HEAD[:-2]):
        with pytest.raises(FormatError, match=r"not an access trace.*--trace FILE"):
            parse_trace(data)


def test_bounds():
    line = b"0 1 /" + b"a" * (TRACE_LINE_BYTES_MAX - 5)
    assert len(parse_trace(HEAD + line)) == 1
    with pytest.raises(LimitExceeded, match="line 2"):
        parse_trace(HEAD + line + b"a")
    with pytest.raises(LimitExceeded, match="too long"):
        parse_trace(HEAD.ljust(TRACE_BYTES_MAX + 1, b"\n"))


def test_what_no_reader_would_take_is_not_written():
    long = TracedRange(b"a" * TRACE_LINE_BYTES_MAX, 0, 1)
    short = TracedRange(b"b", 0, 1)
    assert parse_trace(pack_trace([long, short])) == [short]
    many = [TracedRange(b"a" * 12_000, 0, 1)] * (TRACE_BYTES_MAX // 12_000 + 10)
    assert 5000 < len(parse_trace(pack_trace(many))) < len(many)


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_or_refused(data):
    for text in (data, HEAD + data):
        try:
            found = parse_trace(text)
        except RafsError:
            continue
        assert parse_trace(pack_trace(found)) == found
