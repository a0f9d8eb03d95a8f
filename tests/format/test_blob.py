"""A blob's tail: table of contents and footer, packed, parsed, and refused when they lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import DigestMismatch, FormatError, RafsError, UnsupportedVersion
from rafsfs.format import blob

ENTRIES = [blob.TocEntry(0, 100, b"\x01" * 32), blob.TocEntry(100, 50, b"\x02" * 32)]
CHUNKS_END = 150
TAIL, DIGEST = blob.pack_tail(ENTRIES, CHUNKS_END)
SIZE = CHUNKS_END + len(TAIL)
FOOTER = blob.FOOTER.unpack_from(TAIL, len(TAIL) - 64)


def packed(**fields):
    return blob.FOOTER.pack(FOOTER._replace(**fields))


def test_tail_parses_as_it_was_packed():
    footer = blob.parse_footer(TAIL, SIZE)
    assert footer == FOOTER
    toc = TAIL[: footer.toc_length]
    assert footer.toc_offset == CHUNKS_END
    assert blob.parse_toc(toc, footer) == ENTRIES
    assert footer.toc_digest == DIGEST == blob.toc_digest(toc)


def test_blob_of_nothing_has_a_tail():
    tail, _ = blob.pack_tail([], 0)
    footer = blob.parse_footer(tail, len(tail))
    assert blob.parse_toc(b"", footer) == []


@pytest.mark.parametrize(
    ("footer", "error", "message"),
    [
        (packed(magic=b"RAFSBOOT"), FormatError, "not a rafsfs blob"),
        (packed(version=0), UnsupportedVersion, "expected 1, found 0"),
        (packed(version=2), UnsupportedVersion, "expected 1, found 2"),
        (packed(entry_count=1), FormatError, "out of place"),
        (packed(entry_count=3), FormatError, "out of place"),
        (packed(toc_offset=CHUNKS_END - 1), FormatError, "out of place"),
        (packed(toc_offset=0, toc_length=SIZE - 64), FormatError, "out of place"),
        (packed(toc_length=44), FormatError, "out of place"),
        (packed(toc_offset=2**64 - 1, toc_length=2**64 - 1), FormatError, "out of place"),
    ],
)
def test_hostile_footer_is_refused(footer, error, message):
    with pytest.raises(error, match=message):
        blob.parse_footer(TAIL[:-64] + footer, SIZE)


@pytest.mark.parametrize("size", [0, 64, SIZE - 1, SIZE + 1, 2**64])
def test_footer_of_a_blob_of_another_size_is_refused(size):
    with pytest.raises(FormatError, match="out of place"):
        blob.parse_footer(TAIL, size)


def test_cut_off_anywhere_it_is_refused():
    for length in range(len(TAIL)):
        with pytest.raises(FormatError):
            blob.parse_footer(TAIL[:length], CHUNKS_END + length)


def test_table_that_the_footer_does_not_name_is_refused():
    toc = bytearray(TAIL[:-64])
    for position in range(len(toc)):
        changed = bytes(toc[:position]) + bytes((toc[position] ^ 0x80,)) + bytes(toc[position + 1 :])
        with pytest.raises(DigestMismatch):
            blob.parse_toc(changed, FOOTER)


@given(st.binary(max_size=200), st.integers(0, 2**64))
def test_any_tail_ends_in_a_footer_or_a_refusal(tail, size):
    try:
        footer = blob.parse_footer(tail, size)
    except RafsError:
        return
    assert footer.magic == b"RAFSBLOB"
