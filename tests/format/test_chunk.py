"""Chunk records of a sealed table, whose author may still be hostile."""

import pytest

from rafsfs.errors import FormatError, LimitExceeded, UnsupportedVersion
from rafsfs.format.chunk import (
    CHUNK_RECORD,
    ChunkRecord,
    Codec,
    Suite,
    blocks_of,
    check_chunk_record,
    chunk_aad,
)
from rafsfs.limits import CHUNK_DECODED_BYTES_MAX, CHUNK_ENCODED_OVERHEAD_MAX

BLOB_SIZE = 1 << 30
ZSTD = ChunkRecord(5, 10_000, 4096, 700, Codec.ZSTD, 0, b"i" * 32, b"k" * 32)
STORED = ZSTD._replace(codec=Codec.STORED, encoded_length=10_016)


def check(record, suite=Suite.AES_256_GCM, blob_size=BLOB_SIZE):
    return check_chunk_record(record, suite, blob_size)


@pytest.mark.parametrize(
    ("record", "suite"),
    [
        (ZSTD, Suite.AES_256_GCM),
        (ZSTD, Suite.CHACHA20_POLY1305),
        (ZSTD, Suite.INTEGRITY_ONLY),
        (STORED, Suite.AES_256_GCM),
        (STORED._replace(encoded_length=10_000), Suite.INTEGRITY_ONLY),
        (STORED._replace(decoded_length=1, encoded_length=17), Suite.AES_256_GCM),
        (ZSTD._replace(encoded_length=17), Suite.AES_256_GCM),
        (ZSTD._replace(encoded_length=1), Suite.INTEGRITY_ONLY),
        (ZSTD._replace(decoded_length=CHUNK_DECODED_BYTES_MAX), Suite.AES_256_GCM),
        (ZSTD._replace(encoded_length=10_000 + CHUNK_ENCODED_OVERHEAD_MAX), Suite.AES_256_GCM),
        (ZSTD._replace(encoded_offset=BLOB_SIZE - 700), Suite.AES_256_GCM),
        (ZSTD._replace(decoded_block=2**32 - 2), Suite.AES_256_GCM),
    ],
)
def test_sound_record_passes(record, suite):
    assert check(record, suite) is record
    assert CHUNK_RECORD.unpack_from(CHUNK_RECORD.pack(record)) == record


@pytest.mark.parametrize(
    ("record", "suite", "error", "message"),
    [
        (ZSTD._replace(decoded_length=0), Suite.AES_256_GCM, LimitExceeded, "decoded length"),
        (
            ZSTD._replace(decoded_length=CHUNK_DECODED_BYTES_MAX + 1),
            Suite.AES_256_GCM,
            LimitExceeded,
            "decoded length",
        ),
        (ZSTD._replace(decoded_length=2**32 - 1), Suite.AES_256_GCM, LimitExceeded, "decoded length"),
        (ZSTD._replace(codec=2), Suite.AES_256_GCM, UnsupportedVersion, "codec 2"),
        (ZSTD._replace(codec=255), Suite.AES_256_GCM, UnsupportedVersion, "codec 255"),
        (ZSTD._replace(flags=1), Suite.AES_256_GCM, UnsupportedVersion, "flags 0x1"),
        (STORED, Suite.INTEGRITY_ONLY, FormatError, "expected 10000, found 10016"),
        (
            STORED._replace(encoded_length=10_000),
            Suite.AES_256_GCM,
            FormatError,
            "expected 10016, found 10000",
        ),
        (ZSTD._replace(encoded_length=16), Suite.AES_256_GCM, LimitExceeded, "encoded length: expected 17"),
        (ZSTD._replace(encoded_length=0), Suite.INTEGRITY_ONLY, LimitExceeded, "encoded length: expected 1"),
        (
            ZSTD._replace(encoded_length=10_001 + CHUNK_ENCODED_OVERHEAD_MAX),
            Suite.AES_256_GCM,
            LimitExceeded,
            "encoded length",
        ),
        (ZSTD._replace(encoded_length=2**32 - 1), Suite.AES_256_GCM, LimitExceeded, "encoded length"),
        (ZSTD._replace(encoded_offset=BLOB_SIZE - 699), Suite.AES_256_GCM, FormatError, "outside its blob"),
        (ZSTD._replace(encoded_offset=2**64 - 1), Suite.AES_256_GCM, FormatError, "outside its blob"),
    ],
)
def test_hostile_record_is_refused(record, suite, error, message):
    with pytest.raises(error, match=message):
        check(record, suite)


def test_place_in_decoded_space_follows():
    assert (ZSTD.decoded_start, ZSTD.decoded_end) == (5 * 4096, 5 * 4096 + 10_000)


def test_record_shows_no_key():
    secret = ZSTD._replace(key=b"SECRETSECRETSECRETSECRETSECRET!!")
    for shown in (repr(secret), str(secret), f"{secret}"):
        assert "SECRET" not in shown
        assert secret.key.hex() not in shown


def test_what_is_bound_to_a_chunk_is_as_the_format_says():
    aad = chunk_aad(Suite.CHACHA20_POLY1305, Codec.ZSTD, 0x01020304)
    assert aad == b"RAFSCHNK" + bytes((1, 2, 1, 0)) + b"\x04\x03\x02\x01"
    assert len({chunk_aad(suite, codec, 5) for suite in Suite for codec in Codec}) == len(Suite) * len(Codec)


@pytest.mark.parametrize(("length", "blocks"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
def test_blocks_of_counts_whole_blocks(length, blocks):
    assert blocks_of(length) == blocks
