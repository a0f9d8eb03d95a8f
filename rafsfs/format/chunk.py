"""Chunk records, the sealed chunk table and the chunk header that the AEAD binds; no keys are used here."""

from __future__ import annotations

import enum
from typing import NamedTuple

from rafsfs.errors import FormatError, LimitExceeded, UnsupportedVersion
from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE
from rafsfs.format.record import RecordCodec, bytes32, u8, u32, u64
from rafsfs.limits import CHUNK_DECODED_BYTES_MAX, CHUNK_ENCODED_OVERHEAD_MAX

CHUNK_MAGIC = b"RAFSCHNK"
CHUNK_VERSION = 1


class Suite(enum.IntEnum):
    """How an image is sealed. XTS is not offered: it authenticates nothing. 4 is reserved for AEGIS-256."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2
    INTEGRITY_ONLY = 3

    @property
    def encrypts(self) -> bool:
        """True for the suites that have keys."""
        return self is not Suite.INTEGRITY_ONLY

    @property
    def tag_bytes(self) -> int:
        """How much longer than its codec's output an encoded chunk is."""
        return 16 if self.encrypts else 0


class Codec(enum.IntEnum):
    """How a chunk is compressed. 2 (lz4) and 3 (zstd with a dictionary) are reserved."""

    STORED = 0
    ZSTD = 1


class ChunkRecord(NamedTuple):
    """One entry of a blob's sealed chunk table; 96 bytes, sorted by ``decoded_block``."""

    decoded_block: u32
    decoded_length: u32
    encoded_offset: u64
    encoded_length: u32
    codec: u8
    flags: u8
    chunk_id: bytes32
    key: bytes32

    @property
    def decoded_start(self) -> int:
        """First byte in decoded space."""
        return self.decoded_block << BLOCK_BITS

    @property
    def decoded_end(self) -> int:
        """One past the last byte in decoded space that this chunk holds."""
        return self.decoded_start + self.decoded_length

    def __repr__(self) -> str:  # the key must not reach a log
        return (
            f"ChunkRecord(block {self.decoded_block}, {self.decoded_length} bytes, "
            f"encoded {self.encoded_length} at {self.encoded_offset}, id {self.chunk_id.hex()[:16]})"
        )


CHUNK_RECORD = RecordCodec(ChunkRecord, size=96)


def check_chunk_record(record: ChunkRecord, suite: Suite, blob_size: int) -> ChunkRecord:
    """Check one record of a sealed table, whose author may still be hostile.

    ``blob_size`` is the sealed size of the blob file in bytes. Raises FormatError or LimitExceeded.
    """
    if not 0 < record.decoded_length <= CHUNK_DECODED_BYTES_MAX:
        raise LimitExceeded(
            "chunk's decoded length", expected=f"1 to {CHUNK_DECODED_BYTES_MAX}", found=record.decoded_length
        )
    if record.codec not in (Codec.STORED, Codec.ZSTD):
        raise UnsupportedVersion(
            f"codec {record.codec} is not known to this release", hint="update rafsfs to read this image"
        )
    if record.flags:
        raise UnsupportedVersion(
            f"chunk flags {record.flags:#x} are not known to this release",
            hint="update rafsfs to read this image",
        )
    tag = suite.tag_bytes
    if record.codec == Codec.STORED and record.encoded_length != record.decoded_length + tag:
        raise FormatError(
            "stored chunk's lengths differ", expected=record.decoded_length + tag, found=record.encoded_length
        )
    if not tag < record.encoded_length <= record.decoded_length + CHUNK_ENCODED_OVERHEAD_MAX:
        raise LimitExceeded(
            "chunk's encoded length",
            expected=f"{tag + 1} to {record.decoded_length + CHUNK_ENCODED_OVERHEAD_MAX}",
            found=record.encoded_length,
        )
    if record.encoded_offset + record.encoded_length > blob_size:
        raise FormatError(
            "chunk lies outside its blob",
            expected=f"an end of at most {blob_size}",
            found=record.encoded_offset + record.encoded_length,
        )
    return record


def chunk_aad(suite: Suite, codec: int, decoded_length: int, flags: int = 0) -> bytes:
    """What the AEAD binds beside the bytes (doc/FORMAT.md, 'Encoded chunk'); 16 bytes."""
    return CHUNK_MAGIC + bytes((CHUNK_VERSION, suite, codec, flags)) + decoded_length.to_bytes(4, "little")


def blocks_of(byte_count: int) -> int:
    """Blocks of decoded space that so many bytes occupy."""
    return -(-byte_count // BLOCK_SIZE)
