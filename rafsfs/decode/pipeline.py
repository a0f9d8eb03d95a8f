"""Encoded chunk or page to ``VerifiedBytes``: digest, MAC, then decompression, in that order and nowhere
else.

Nothing leaves this file before its digest and (in the sealed suites) its tag were checked. Pure: gets bytes
that are private copies, gives bytes; knows no store and no file.
"""

from __future__ import annotations

import threading

from blake3 import blake3

from rafsfs.decode import aead
from rafsfs.decode.codec import decompress
from rafsfs.errors import COPY_AGAIN, DigestMismatch, FormatError, LengthMismatch
from rafsfs.format.bootstrap import PageEntry, page_aad, page_nonce
from rafsfs.format.chunk import ChunkRecord, Codec, Suite, chunk_aad
from rafsfs.types import EncodedBytes, PageNumber, VerifiedBytes

_local = threading.local()
_SCRATCH_KEPT_BYTES = 1 << 20  # larger chunks are rare; their scratch is not worth keeping for each thread


def decode_chunk(encoded: EncodedBytes, record: ChunkRecord, suite: Suite) -> VerifiedBytes:
    """Check and open one chunk; returns exactly ``record.decoded_length`` bytes.

    Raises LengthMismatch or DigestMismatch when the store's bytes are not the sealed ones, MacMismatch when
    they do not fit the sealed key, FormatError when their author lied about them.
    """
    _check(encoded, record.encoded_length, record.chunk_id, "chunk id")
    if not suite.encrypts:
        return _expand(encoded, record)
    scratch = _scratch(len(encoded) - aead.TAG_BYTES)
    aad = chunk_aad(suite, record.codec, record.decoded_length, record.flags)
    aead.open_into(suite, record.key, aead.ZERO_NONCE, aad, encoded, scratch)
    return _expand(scratch, record)


def decode_page(
    encoded: EncodedBytes, entry: PageEntry, page: PageNumber, suite: Suite, page_key: bytes, page_size: int
) -> VerifiedBytes:
    """Check and open one metadata page; gives ``page_size`` bytes. Raises as ``decode_chunk`` does."""
    _check(encoded, entry.encoded_length, entry.digest, "metadata page")
    if not suite.encrypts:
        return VerifiedBytes(decompress(encoded, page_size))
    if len(encoded) <= aead.TAG_BYTES:
        raise FormatError("metadata page is shorter than its tag", found=len(encoded))
    scratch = _scratch(len(encoded) - aead.TAG_BYTES)
    aead.open_into(suite, page_key, page_nonce(page), page_aad(suite, page_size), encoded, scratch)
    return VerifiedBytes(decompress(scratch, page_size))


def _check(encoded: EncodedBytes, length: int, digest: bytes, what: str) -> None:
    if len(encoded) != length:
        raise LengthMismatch(f"{what}: stored length", expected=length, found=len(encoded), hint=COPY_AGAIN)
    if (found := blake3(encoded).digest()) != digest:
        raise DigestMismatch(
            f"{what} does not match", expected=digest.hex(), found=found.hex(), hint=COPY_AGAIN
        )


def _expand(compressed: bytes | memoryview, record: ChunkRecord) -> VerifiedBytes:
    if record.codec == Codec.ZSTD:
        return VerifiedBytes(decompress(compressed, record.decoded_length))
    assert (
        record.codec == Codec.STORED and len(compressed) == record.decoded_length
    )  # check_chunk_record saw to it
    return VerifiedBytes(bytes(compressed))


def _scratch(length: int) -> memoryview:
    """Private memory of this thread for text that is not verified yet."""
    if length > _SCRATCH_KEPT_BYTES:
        return memoryview(bytearray(length))
    try:
        scratch: memoryview = _local.scratch
    except AttributeError:
        scratch = _local.scratch = memoryview(bytearray(_SCRATCH_KEPT_BYTES))
    return scratch[:length]
