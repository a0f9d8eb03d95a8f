"""A bootstrap's head and page table: places, bounds, truncation."""

from dataclasses import replace

import pytest
from blake3 import blake3

from rafsfs.errors import DigestMismatch, FormatError, LimitExceeded, UnsupportedVersion
from rafsfs.format import bootstrap
from rafsfs.format.chunk import Suite
from rafsfs.format.superblock import Section, Superblock
from rafsfs.limits import ENVELOPE_BYTES_MAX, PAGE_TABLE_BYTES_MAX, SUPERBLOCK_BYTES_MAX

PAGES = [b"first page", b"second", b"x"]
TABLE = bootstrap.pack_page_table(PAGES)
SUPERBLOCK = Superblock(
    suite=Suite.AES_256_GCM,
    image_id=bytes(16),
    name="",
    release=0,
    not_after=None,
    page_size=4096,
    page_count=len(PAGES),
    page_table_digest=bootstrap.page_table_digest(TABLE),
    erofs=Section(0, 4096),
    chunk_tables=Section(4096, 0),
    prefetch=Section(4096, 0),
    config=Section(4096, 0),
    blobs=(),
    key_commitment=bytes(32),
    page_salt=bytes(16),
    dedup_domain=b"",
)


def prefix(magic=b"RAFSBOOT", version=1, length=100):
    return magic + version.to_bytes(4, "little") + length.to_bytes(4, "little")


def test_head_lies_as_the_format_says():
    head = bootstrap.pack_head(b"SUPER", b"ENVEL", TABLE)
    assert head == prefix(length=5) + b"SUPER" + b"\x05\0\0\0" + b"ENVEL" + TABLE
    assert bootstrap.parse_prefix(head) == 5
    assert bootstrap.parse_envelope_length(head[21:]) == 5


@pytest.mark.parametrize("length", [1, SUPERBLOCK_BYTES_MAX])
def test_superblock_length_at_its_limits_is_read(length):
    assert bootstrap.parse_prefix(prefix(length=length)) == length


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (prefix(magic=b"RAFSBLOB"), FormatError, "not a rafsfs bootstrap"),
        (prefix(magic=bytes(8)), FormatError, "not a rafsfs bootstrap"),
        (prefix(version=0), UnsupportedVersion, "found 0"),
        (prefix(version=2), UnsupportedVersion, "found 2; update rafsfs"),
        (prefix(length=0), LimitExceeded, "superblock's length"),
        (prefix(length=SUPERBLOCK_BYTES_MAX + 1), LimitExceeded, "superblock's length"),
        (prefix(length=2**32 - 1), LimitExceeded, "superblock's length"),
    ],
)
def test_hostile_prefix_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        bootstrap.parse_prefix(data)


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (ENVELOPE_BYTES_MAX, True)])
def test_envelope_length_is_bounded(length, fits):
    data = length.to_bytes(4, "little")
    if fits:
        assert bootstrap.parse_envelope_length(data) == length
    else:
        with pytest.raises(LimitExceeded):
            bootstrap.parse_envelope_length(data)
    with pytest.raises(LimitExceeded):
        bootstrap.parse_envelope_length((ENVELOPE_BYTES_MAX + 1).to_bytes(4, "little"))


def test_page_table_tells_where_pages_lie():
    table = bootstrap.check_page_table(TABLE, SUPERBLOCK)
    assert table.page_count == 3
    encoded = b"".join(PAGES)
    for number, page in enumerate(PAGES):
        entry = table.entry(number)
        assert encoded[entry.encoded_offset :][: entry.encoded_length] == page
        assert entry.digest == blake3(page).digest()


@pytest.mark.parametrize("page", [-1, 3, 2**40])
def test_page_that_is_not_there_is_refused(page):
    with pytest.raises(FormatError, match="out of range: expected below 3"):
        bootstrap.check_page_table(TABLE, SUPERBLOCK).entry(page)


def test_page_table_that_was_not_sealed_is_refused():
    for position in range(len(TABLE)):
        changed = bytearray(TABLE)
        changed[position] ^= 1
        with pytest.raises(DigestMismatch, match="page table"):
            bootstrap.check_page_table(bytes(changed), SUPERBLOCK)
    for shorter in (b"", TABLE[:-44], TABLE[:-1], TABLE + TABLE[:44]):
        with pytest.raises(DigestMismatch, match="page table"):
            bootstrap.check_page_table(shorter, SUPERBLOCK)


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (8192, True), (8193, False)])
def test_encoded_length_of_a_page_is_bounded(length, fits):
    table = bootstrap.PAGE_ENTRY.pack(bootstrap.PageEntry(0, length, bytes(32)))
    sealed = replace(SUPERBLOCK, page_count=1, page_table_digest=bootstrap.page_table_digest(table))
    pages = bootstrap.check_page_table(table, sealed)
    if fits:
        assert pages.entry(0).encoded_length == length
    else:
        with pytest.raises(LimitExceeded, match="page 0"):
            pages.entry(0)


def test_page_table_is_bounded_before_it_is_read():
    most = PAGE_TABLE_BYTES_MAX // bootstrap.PAGE_ENTRY.size
    assert bootstrap.page_table_bytes(replace(SUPERBLOCK, page_count=most)) <= PAGE_TABLE_BYTES_MAX
    with pytest.raises(LimitExceeded, match="page table"):
        bootstrap.page_table_bytes(replace(SUPERBLOCK, page_count=most + 1))


def test_what_is_bound_to_a_page_is_as_the_format_says():
    assert bootstrap.page_aad(Suite.AES_256_GCM, 65_536) == b"RAFSPAGE\x01\x01\x01\x00\x00\x00\x01\x00"
    assert bootstrap.page_nonce(0) == bytes(12)
    assert bootstrap.page_nonce(0x0102) == b"\x02\x01" + bytes(10)
