"""Chunks, pages and tables that are sealed correctly and lie: bombs, wild lengths, overlaps (promise 8)."""

import tracemalloc

import pytest
import zstandard
from attacks.conftest import keyring_for
from attacks.sealing import (
    BLOCK,
    ForgedBlob,
    ForgedSection,
    compressed,
    forge_blob,
    plain_blob,
    seal,
    seal_chunk,
)
from attacks.surgery import NO_KEYS, check_fails, opened, put, read_everything, read_image

from rafsfs.errors import DigestMismatch, FormatError, LengthMismatch, LimitExceeded, UnsupportedVersion
from rafsfs.format.bootstrap import PAGE_ENTRY, PageEntry
from rafsfs.format.chunk import Codec, Suite
from rafsfs.format.erofs import FileType
from rafsfs.format.superblock import Section
from rafsfs.limits import CHUNK_DECODED_BYTES_MAX, MIB

GIB = 1 << 30
MEMORY_MAX = 48 * MIB
"""What hostile bytes may cost: the largest chunk, encoded and decoded, with room to spare."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=list(Suite), ids=lambda suite: suite.name)
def suite(request):
    return request.param


@pytest.fixture
def bounded():
    """Fail if what Python allocated meanwhile was ever more than ``MEMORY_MAX``."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY_MAX


def one_file(suite, blob, folder, size=BLOCK, indexes=((1, 0),), **options):
    """An image with one file, whose bytes lie in ``blob``."""
    section = ForgedSection(devices=[blob.decoded_blocks])
    nid = section.file(size, indexes)
    section.directory([(b"file", nid, FileType.REGULAR)], nid=section.root)
    return put(seal(section.pack(), [blob], suite=suite, **options), folder)


def read_one(suite, blob, folder, *, hostile=True, **options):
    """Read everything. The full check must see what is wrong with it, too."""
    reference = one_file(suite, blob, folder, **options)
    assert check_fails(reference, keyring_for(suite)) is hostile
    return read_image(reference, keyring_for(suite))


def test_what_the_forger_makes_of_honest_parts_is_read(suite, tmp_path):
    assert len(read_one(suite, plain_blob(suite, b"honest" * 600), tmp_path, size=3600, hostile=False)) == 3


# --- What a chunk decompresses to ---------------------------------------------------------------------------


def frame(*, content_size, window_exponent=0, dictionary=b"", blocks=b"\x01\x00\x00"):
    """A zstd frame by hand (RFC 8878, section 3.1.1), one empty last block unless told otherwise."""
    has_dictionary = {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    header = bytes((0x80 | has_dictionary, window_exponent << 3)) + dictionary
    return b"\x28\xb5\x2f\xfd" + header + content_size.to_bytes(4, "little") + blocks


def lying_header():
    """16 MiB of zeros that say they are 4 KiB."""
    made = compressed(bytes(16 * MIB))
    assert zstandard.get_frame_parameters(made).content_size == 16 * MIB
    at = made.index((16 * MIB).to_bytes(4, "little"))
    return made[:at] + BLOCK.to_bytes(4, "little") + made[at + 4 :]


def repeated_block(count, length=128 * 1024):
    """RLE blocks: four bytes in, 128 KiB out, for each."""
    block = (length << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (length << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return block * (count - 1) + last


BOMBS = {
    "states a gigabyte": frame(content_size=GIB, window_exponent=10),
    "states 4 KiB, holds 16 MiB": lying_header(),
    "states 4 KiB, holds 128 MiB": frame(content_size=BLOCK, window_exponent=10, blocks=repeated_block(1024)),
    "states no size": compressed(bytes(BLOCK), write_content_size=False),
    "states zero": compressed(b""),
    "states less": compressed(bytes(BLOCK - 1)),
    "states 4 KiB, holds nothing": frame(content_size=BLOCK),
    "wants a window of 2 GiB": frame(content_size=BLOCK, window_exponent=21),
    "wants a dictionary": frame(content_size=BLOCK, dictionary=b"\x01"),
    "two frames": compressed(bytes(BLOCK)) + compressed(bytes(BLOCK)),
    "bytes behind the frame": compressed(bytes(BLOCK)) + b"\0",
    "a skippable frame": b"\x50\x2a\x4d\x18" + BLOCK.to_bytes(4, "little") + bytes(BLOCK),
    "cut off": compressed(bytes(range(256)) * 16)[:-1],
    "not zstd": b"not zstd at all",
    "legacy zstd": b"\x27\xb5\x2f\xfd" + bytes(100),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_chunk_that_decompresses_to_something_else(suite, bomb, tmp_path, bounded):
    blob = forge_blob([seal_chunk(suite, BOMBS[bomb], BLOCK)])
    with pytest.raises(FormatError):
        read_one(suite, blob, tmp_path)


@pytest.mark.parametrize("bomb", BOMBS)
def test_page_that_decompresses_to_something_else(suite, bomb, tmp_path, bounded, monkeypatch):
    monkeypatch.setattr("attacks.sealing.compressed", lambda plain: BOMBS[bomb])
    reference = put(seal(bytes(BLOCK), suite=suite, page_size=BLOCK), tmp_path)
    with pytest.raises(FormatError):
        read_image(reference, keyring_for(suite))


def test_largest_chunk_is_read_within_the_bound(suite, tmp_path, bounded):
    blob = plain_blob(suite, bytes(CHUNK_DECODED_BYTES_MAX))
    found = read_one(suite, blob, tmp_path, hostile=False)
    assert len(found) == 3


# --- What a chunk record says -------------------------------------------------------------------------------

RECORDS = {
    "decoded length 0": ({"decoded_length": 0}, LimitExceeded),
    "decoded length above the limit": ({"decoded_length": CHUNK_DECODED_BYTES_MAX + 1}, LimitExceeded),
    "decoded length 4 GiB": ({"decoded_length": 2**32 - 1}, LimitExceeded),
    "encoded length 0": ({"encoded_length": 0}, LimitExceeded),
    "encoded length of a tag": ({"encoded_length": 16}, FormatError),
    "encoded length 4 GiB": ({"encoded_length": 2**32 - 1}, LimitExceeded),
    "encoded offset behind the blob": ({"encoded_offset": 1 << 20}, FormatError),
    "encoded offset 2^64": ({"encoded_offset": 2**64 - 1}, FormatError),
    "unknown codec": ({"codec": 2}, UnsupportedVersion),
    "unknown flag": ({"flags": 1}, UnsupportedVersion),
    "stored, of other length": ({"codec": Codec.STORED}, FormatError),
    "another id": ({"chunk_id": bytes(32)}, DigestMismatch),
    "starts later": ({"decoded_block": 1}, FormatError),
    "starts at the end of the address space": ({"decoded_block": 2**32 - 1}, FormatError),
}


@pytest.mark.parametrize("lie", RECORDS)
def test_chunk_record_that_lies(suite, lie, tmp_path, bounded):
    changes, expected = RECORDS[lie]
    honest = plain_blob(suite, b"honest" * 600)
    blob = ForgedBlob(honest.data, [honest.records[0]._replace(**changes)], 1)
    if lie == "encoded length of a tag" and suite is Suite.INTEGRITY_ONLY:
        expected = DigestMismatch
    with pytest.raises(expected):
        read_one(suite, blob, tmp_path)


def two_chunks(suite):
    return plain_blob(suite, b"a" * 2 * BLOCK, b"b" * 2 * BLOCK)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_chunks_that_overlap_in_decoded_space(suite, tmp_path, first):
    """One byte must not come from one chunk today and from another tomorrow, as the cache happens to be."""
    honest = two_chunks(suite)
    a, b = honest.records
    blob = ForgedBlob(honest.data, [a, b._replace(decoded_block=1)], 3)
    reference = one_file(suite, blob, tmp_path, size=3 * BLOCK, indexes=[(1, 0), (1, 1), (1, 2)])
    assert check_fails(reference, keyring_for(suite))
    with opened(reference, keyring_for(suite)) as image:
        nid = image.filesystem.lookup(image.filesystem.root, b"file")
        for offset in [*range(first, 3), *range(first)]:
            with pytest.raises(FormatError, match="overlap"):
                image.filesystem.read(nid, offset * BLOCK, 1)


def test_chunk_that_ends_behind_its_blobs_decoded_space(suite, tmp_path):
    honest = two_chunks(suite)
    blob = ForgedBlob(honest.data, honest.records, 3)
    with pytest.raises(FormatError, match="decoded space"):
        read_one(suite, blob, tmp_path, size=3 * BLOCK, indexes=[(1, 0), (1, 1), (1, 2)])


def test_chunk_records_out_of_order(suite, tmp_path):
    honest = two_chunks(suite)
    a, b = honest.records
    blob = ForgedBlob(honest.data, [b, a], 4)
    with pytest.raises(FormatError):
        read_one(suite, blob, tmp_path, size=4 * BLOCK, indexes=[(1, n) for n in range(4)])


def test_decoded_space_with_a_hole_in_it(suite, tmp_path):
    honest = two_chunks(suite)
    a, b = honest.records
    blob = ForgedBlob(honest.data, [a, b._replace(decoded_block=4)], 6)
    with pytest.raises(FormatError, match="no chunk holds"):
        read_one(suite, blob, tmp_path, size=6 * BLOCK, indexes=[(1, n) for n in range(6)])


def test_file_that_is_one_chunk_again_and_again(suite, tmp_path, bounded):
    """Allowed: it is what deduplication makes. It costs one chunk of memory however long the file."""
    blob = plain_blob(suite, bytes(BLOCK))
    reference = one_file(suite, blob, tmp_path, size=200 * BLOCK, indexes=[(1, 0)] * 200)
    assert not check_fails(reference, keyring_for(suite))
    assert len(read_image(reference, keyring_for(suite))) == 3


# --- Pages --------------------------------------------------------------------------------------------------

PAGE_LIES = {
    "offset 2^64": {"encoded_offset": 2**64 - 1},
    "offset 2^63": {"encoded_offset": 2**63},
    "offset 2^63 - 1": {"encoded_offset": 2**63 - 1},
    "offset behind the file": {"encoded_offset": 1 << 40},
    "length 0": {"encoded_length": 0},
    "length 4 GiB": {"encoded_length": 2**32 - 1},
    "length of less than a tag": {"encoded_length": 1},
}


@pytest.mark.parametrize("lie", PAGE_LIES)
def test_page_table_that_lies(suite, lie, tmp_path, bounded):
    section = ForgedSection()
    section.directory([], nid=section.root)
    honest = seal(section.pack(), suite=suite).bootstrap.page_table
    entry = PAGE_ENTRY.unpack_from(honest)
    table = PAGE_ENTRY.pack(PageEntry(**(entry._asdict() | PAGE_LIES[lie])))
    reference = put(seal(section.pack(), suite=suite, page_table=table), tmp_path)
    assert check_fails(reference, keyring_for(suite))
    with pytest.raises((FormatError, LengthMismatch, DigestMismatch)):
        read_image(reference, keyring_for(suite))


def test_all_pages_at_one_place(tmp_path):
    """The number of a page is its nonce, so one stored page cannot stand for many."""
    section = ForgedSection(blocks=8)
    section.directory([], nid=section.root)
    stored = seal(section.pack(), page_size=BLOCK)
    first = stored.bootstrap.page_table[: PAGE_ENTRY.size]
    table = first * (len(stored.bootstrap.page_table) // PAGE_ENTRY.size)
    reference = put(seal(section.pack(), page_size=BLOCK, page_table=table), tmp_path)
    with opened(reference) as image, pytest.raises(Exception, match="tag does not match"):
        read_everything(image.filesystem)


def test_small_image_that_claims_much_metadata(tmp_path, bounded):
    """In the integrity-only suite one stored page can stand for many: 16 GiB out of 700 KB. Reading is lazy,
    and the full check has a byte for each inode that it met, not for each that there could be.
    """
    section = ForgedSection()
    section.directory([], nid=section.root)
    options = {"suite": Suite.INTEGRITY_ONLY, "page_size": MIB}
    count = 16 * 1024
    length = count * MIB
    table = seal(section.pack(), **options).bootstrap.page_table * count
    sections = {
        "erofs": Section(0, length),
        "chunk_tables": Section(length, 0),
        "prefetch": Section(length, 0),
        "config": Section(length, 0),
    }
    stored = seal(section.pack(), **options, page_table=table, page_count=count, **sections)
    reference = put(stored, tmp_path)
    assert len(stored.bootstrap.pack()) < MIB
    assert len(read_image(reference, NO_KEYS)) == 2
    assert check_fails(reference, NO_KEYS)
