"""Superblocks: what packs parses, and each field's bounds on both sides."""

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import FormatError, LimitExceeded, RafsError, UnsupportedVersion
from rafsfs.format import canonical
from rafsfs.format.chunk import CHUNK_RECORD, Suite
from rafsfs.format.superblock import BlobEntry, Section, Superblock, parse_superblock
from rafsfs.limits import (
    BLOBS_MAX,
    DECODED_BLOCKS_MAX,
    PAGE_SIZE_MAX,
    PAGE_SIZE_MIN,
    PAGES_MAX,
    PREFETCH_RUNS_MAX,
    REQUIRED_FEATURES_MAX,
    SUPERBLOCK_BYTES_MAX,
)

BLOB = BlobEntry(b"\x01" * 32, 10_000, 2, 8, b"\x02" * 32)
SOUND = Superblock(
    suite=Suite.AES_256_GCM,
    image_id=bytes(range(16)),
    name="an image",
    release=7,
    not_after=2_000_000_000,
    page_size=65_536,
    page_count=3,
    page_table_digest=b"\x03" * 32,
    erofs=Section(0, 8192),
    chunk_tables=Section(8192, 2 * CHUNK_RECORD.size),
    prefetch=Section(8192 + 2 * CHUNK_RECORD.size, 0),
    config=Section(8192 + 2 * CHUNK_RECORD.size, 70),
    blobs=(BLOB,),
    key_commitment=b"\x04" * 32,
    page_salt=b"\x05" * 16,
    dedup_domain=b"",
)
FIELDS = msgpack.unpackb(SOUND.pack())


def changed(**fields):
    """The sound superblock's bytes with some fields replaced, and absent where the value is ``...``."""
    merged = {**FIELDS, **fields}
    return canonical.pack({name: value for name, value in merged.items() if value is not ...})


def changed_blob(**fields):
    names = ["blob_id", "size", "chunk_count", "decoded_blocks", "toc_digest"]
    blob = dict(zip(names, FIELDS["blobs"][0], strict=True)) | fields
    return changed(blobs=[list(blob.values())])


def changed_sections(**sections):
    return changed(sections=FIELDS["sections"] | sections)


@pytest.mark.parametrize(
    "superblock",
    [
        SOUND,
        replace(SOUND, not_after=None, name="", release=2**64 - 1),
        replace(SOUND, suite=Suite.INTEGRITY_ONLY, key_commitment=b"", page_salt=b""),
        replace(SOUND, blobs=(), chunk_tables=Section(8192, 0)),
        replace(SOUND, dedup_domain=b"\x05" * 16, suite=Suite.CHACHA20_POLY1305),
        replace(SOUND, page_size=PAGE_SIZE_MIN, page_count=PAGES_MAX),
        replace(SOUND, page_size=PAGE_SIZE_MAX, name="ä" * 255),
    ],
)
def test_what_packs_parses(superblock):
    assert parse_superblock(superblock.pack()) == superblock


def test_largest_that_the_limits_allow_fits_and_parses():
    blobs = tuple(
        BlobEntry(number.to_bytes(32, "big"), 2**64 - 1, 1, DECODED_BLOCKS_MAX, b"\xff" * 32)
        for number in range(BLOBS_MAX)
    )
    largest = replace(
        SOUND,
        name="\U0001f600" * 255,
        page_count=1000,
        blobs=blobs,
        chunk_tables=Section(8192, BLOBS_MAX * CHUNK_RECORD.size),
        config=Section(0, 0),
    )
    packed = largest.pack()
    assert len(packed) < SUPERBLOCK_BYTES_MAX
    assert parse_superblock(packed) == largest


def test_stock_layers():
    layer = replace(BLOB, toc_digest=b"")
    indexed = replace(SOUND, blobs=(layer,), checkpoints=Section(8192 + 2 * CHUNK_RECORD.size + 70, 16))
    assert parse_superblock(indexed.pack()) == indexed
    assert layer.is_layer and not BLOB.is_layer
    overlapping = replace(indexed, checkpoints=Section(8192, 16))
    with pytest.raises(FormatError, match="overlap"):
        parse_superblock(overlapping.pack())


@pytest.mark.parametrize("name", FIELDS)
def test_missing_field_is_refused_by_name(name):
    with pytest.raises(FormatError, match=f"'{name}'"):
        parse_superblock(changed(**{name: ...}))


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(FormatError, match="not known: 'novelty'"):
        parse_superblock(changed(novelty=1))
    with pytest.raises(FormatError, match="not known: 'novelty'"):
        parse_superblock(changed_sections(novelty=[0, 0]))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [None, True, -1, "text", b"bytes", [], {}, [[]]], ids=repr)
def test_field_of_another_type_is_refused(name, value):
    allowed = {("not_after", "None"), ("name", "'text'"), ("required", "[]"), ("dedup_domain", "b''")}
    if (name, repr(value)) in allowed:
        return
    with pytest.raises(FormatError):
        parse_superblock(msgpack.packb(dict(sorted((FIELDS | {name: value}).items()))))


REFUSED = {
    "version 0": (changed(version=0), UnsupportedVersion, "expected 1, found 0; update rafsfs"),
    "version 2": (changed(version=2), UnsupportedVersion, "expected 1, found 2; update rafsfs"),
    "suite 0": (changed(suite=0), UnsupportedVersion, "suite"),
    "suite 4, reserved": (changed(suite=4), UnsupportedVersion, "found 4"),
    "a required feature": (changed(required=["wings"]), UnsupportedVersion, "requires feature 'wings'"),
    "a required number": (changed(required=[1]), UnsupportedVersion, "requires feature '1'"),
    "too many features": (
        changed(required=["a"] * (REQUIRED_FEATURES_MAX + 1)),
        LimitExceeded,
        "required features",
    ),
    "short image id": (changed(image_id=bytes(15)), FormatError, "expected 16 bytes, found 15"),
    "long image id": (changed(image_id=bytes(17)), FormatError, "expected 16 bytes, found 17"),
    "long name": (changed(name="x" * 256), LimitExceeded, "255"),
    "name with a newline": (changed(name="a\nb"), LimitExceeded, "printable"),
    "name with an escape": (changed(name="\x1b[2J"), LimitExceeded, "printable"),
    "negative release": (changed(release=-1), LimitExceeded, "release"),
    "negative not-after": (changed(not_after=-1), LimitExceeded, "not_after"),
    "not-after beyond all time": (changed(not_after=2**40 + 1), LimitExceeded, "not_after"),
    "page of 2 KiB": (changed(page_size=2048), LimitExceeded, "page_size"),
    "page of 2 MiB": (changed(page_size=2 << 20), LimitExceeded, "page_size"),
    "odd page": (changed(page_size=65_535), FormatError, "power of two"),
    "page of three blocks": (changed(page_size=3 * 4096), FormatError, "power of two"),
    "no pages": (changed(page_count=0), LimitExceeded, "page_count"),
    "too many pages": (changed(page_count=PAGES_MAX + 1), LimitExceeded, "page_count"),
    "short digest": (changed(page_table_digest=bytes(31)), FormatError, "32 bytes"),
    "sections in a list": (changed(sections=[]), FormatError, "'sections'"),
    "no prefetch": (
        changed(sections={"erofs": [0, 8192], "chunk_tables": [8192, 192]}),
        FormatError,
        "no field 'prefetch'",
    ),
    "section of three numbers": (changed_sections(erofs=[0, 8192, 0]), FormatError, "'erofs'"),
    "section of text": (changed_sections(erofs=["0", "8192"]), FormatError, "'erofs'"),
    "negative section": (changed_sections(erofs=[0, -4096]), FormatError, "'erofs'"),
    "EROFS not at 0": (changed_sections(erofs=[4096, 4096]), FormatError, "whole number of blocks at 0"),
    "EROFS of nothing": (changed_sections(erofs=[0, 0]), FormatError, "whole number of blocks"),
    "EROFS of half a block": (changed_sections(erofs=[0, 2048]), FormatError, "whole number of blocks"),
    "EROFS beyond the pages": (changed_sections(erofs=[0, 4 * 65_536]), FormatError, "outside the metadata"),
    "tables beyond the pages": (changed_sections(chunk_tables=[3 * 65_536, 192]), FormatError, "outside"),
    "tables inside EROFS": (changed_sections(chunk_tables=[8191, 192]), FormatError, "overlap"),
    "prefetch inside EROFS": (changed_sections(prefetch=[0, 1]), FormatError, "overlap"),
    "prefetch inside the tables": (changed_sections(prefetch=[8192 + 191, 1]), FormatError, "overlap"),
    "prefetch beyond the pages": (changed_sections(prefetch=[3 * 65_536, 1]), FormatError, "outside"),
    "prefetch at the end of numbers": (
        changed_sections(prefetch=[2**64 - 1, 2**64 - 1]),
        FormatError,
        "outside",
    ),
    "no config": (
        changed(sections={name: place for name, place in FIELDS["sections"].items() if name != "config"}),
        FormatError,
        "no field 'config'",
    ),
    "checkpoints without the feature": (changed_sections(checkpoints=[0, 0]), FormatError, "not known"),
    "feature without checkpoints": (changed(required=["stock-layers"]), FormatError, "'checkpoints'"),
    "feature twice": (changed(required=["stock-layers"] * 2), FormatError, "twice"),
    "layer without the feature": (changed_blob(toc_digest=b""), FormatError, "table of contents"),
    "config inside the tables": (changed_sections(config=[8192 + 191, 1]), FormatError, "overlap"),
    "config beyond the pages": (changed_sections(config=[3 * 65_536, 1]), FormatError, "outside"),
    "short tables": (
        changed_sections(chunk_tables=[8192, 96]),
        FormatError,
        "expected 192, found 96",
    ),
    "blobs in a map": (changed(blobs={}), FormatError, "'blobs'"),
    "blob of four fields": (changed(blobs=[FIELDS["blobs"][0][:4]]), FormatError, "malformed"),
    "blob in a map": (changed(blobs=[{"id": 1}]), FormatError, "malformed"),
    "short blob id": (changed_blob(blob_id=bytes(31)), FormatError, "malformed"),
    "blob id as text": (changed_blob(blob_id="x" * 32), FormatError, "malformed"),
    "short table digest": (changed_blob(toc_digest=bytes(33)), FormatError, "malformed"),
    "negative blob": (changed_blob(size=-1), FormatError, "malformed"),
    "more chunks than blocks": (changed_blob(chunk_count=9), FormatError, "malformed"),
    "too many blocks": (changed_blob(decoded_blocks=DECODED_BLOCKS_MAX + 1), FormatError, "malformed"),
    "blob twice": (
        changed(blobs=FIELDS["blobs"] * 2, sections=FIELDS["sections"] | {"chunk_tables": [8192, 384]}),
        FormatError,
        "twice",
    ),
    "no commitment": (changed(key_commitment=b""), FormatError, "key commitment: expected 32, found 0"),
    "commitment without a key": (changed(suite=3), FormatError, "key commitment: expected 0, found 32"),
    "no salt": (changed(page_salt=b""), FormatError, "page salt: expected 16, found 0"),
    "salt without a key": (
        changed(suite=3, key_commitment=b""),
        FormatError,
        "page salt: expected 0, found 16",
    ),
    "half a run to prefetch": (
        changed_sections(prefetch=[16_384, 18]),
        FormatError,
        "not a whole number of runs.*12",
    ),
    "more to prefetch than anybody reads": (
        changed(
            page_count=100, sections=FIELDS["sections"] | {"prefetch": [16_384, 12 * (PREFETCH_RUNS_MAX + 1)]}
        ),
        LimitExceeded,
        "prefetch list: expected at most 65536 runs",
    ),
    "short commitment": (changed(key_commitment=bytes(16)), FormatError, "key_commitment"),
    "short domain": (changed(dedup_domain=bytes(15)), FormatError, "dedup_domain"),
}


@pytest.mark.parametrize(("data", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_hostile_superblock_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        parse_superblock(data)


@pytest.mark.parametrize("field", ["size", "chunk_count", "decoded_blocks"])
def test_truth_is_no_number(field):
    names = ["blob_id", "size", "chunk_count", "decoded_blocks", "toc_digest"]
    blob = dict(zip(names, FIELDS["blobs"][0], strict=True)) | {field: True}
    data = msgpack.packb(dict(sorted((FIELDS | {"blobs": [list(blob.values())]}).items())))
    with pytest.raises(FormatError):
        parse_superblock(data)


def test_blobs_are_bounded():
    blobs = [[number.to_bytes(32, "big"), 1, 0, 0, bytes(32)] for number in range(BLOBS_MAX + 1)]
    with pytest.raises(FormatError):
        parse_superblock(msgpack.packb(dict(sorted((FIELDS | {"blobs": blobs}).items()))))


def test_length_is_bounded():
    with pytest.raises(LimitExceeded, match="too long"):
        parse_superblock(bytes(SUPERBLOCK_BYTES_MAX + 1))


def test_cut_off_anywhere_it_is_refused():
    packed = SOUND.pack()
    for length in range(len(packed)):
        with pytest.raises(FormatError):
            parse_superblock(packed[:length])


@given(st.data())
def test_changed_byte_never_parses_as_the_same(data):
    packed = bytearray(SOUND.pack())
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert parse_superblock(bytes(packed)) != SOUND
    except RafsError:
        return
