"""Plain chunks to encoded ones: compress, derive or draw the key, seal, name. Pure but for the randomness of
keys.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from blake3 import blake3

from rafsfs.decode import aead
from rafsfs.decode.codec import Compressor
from rafsfs.format.bootstrap import page_aad, page_nonce
from rafsfs.format.chunk import Codec, Suite, chunk_aad
from rafsfs.format.record import Buffer
from rafsfs.trust.derive import convergent_chunk_key
from rafsfs.types import ChunkId, PageNumber

PAGE_ZSTD_LEVEL = 3  # when file data is not to be compressed, the metadata still is
_WORTH_IT = 64  # compression has to save one part in so many, or reading pays for nothing

_local = threading.local()


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """What goes into the blob, and what its sealed record says of it."""

    data: Buffer = field(repr=False)
    codec: Codec
    chunk_id: ChunkId
    key: bytes = field(repr=False)


class Encoder:
    """Encodes chunks and pages for one image; any thread may use it."""

    def __init__(self, suite: Suite, zstd_level: int | None, convergent_key: bytes | None) -> None:
        """``zstd_level`` None stores file data as it is; ``convergent_key`` None draws a random key for each
        chunk.
        """
        self.suite = suite
        self._level = zstd_level
        self._convergent_key = convergent_key

    def chunk(self, plain: Buffer) -> EncodedChunk:
        """Encode one chunk, whose bytes must stay as they are: stored ones are not copied."""
        codec = Codec.STORED
        payload: Buffer = plain
        if self._level is not None:
            compressed = _compressor(self._level).compress(plain)
            if len(compressed) + len(plain) // _WORTH_IT < len(plain):
                codec, payload = Codec.ZSTD, compressed
        key = bytes(aead.KEY_BYTES)
        if self.suite.encrypts:
            aad = chunk_aad(self.suite, codec, len(plain))
            if self._convergent_key is None:
                key = os.urandom(aead.KEY_BYTES)
            else:
                key = convergent_chunk_key(self._convergent_key, aad, payload)
            payload = aead.seal(self.suite, key, aead.ZERO_NONCE, aad, payload)
        return EncodedChunk(payload, codec, ChunkId(blake3(payload).digest()), key)

    def compress_page(self, plain: Buffer) -> bytes:
        """Compress one metadata page; the first half of encoding it, because the page key may depend on all
        of them.
        """
        return _compressor(PAGE_ZSTD_LEVEL if self._level is None else self._level).compress(plain)

    def seal_page(self, compressed: bytes, page: PageNumber, page_key: bytes, page_size: int) -> Buffer:
        """Seal one compressed page under its number; as it is in the integrity-only suite."""
        if not self.suite.encrypts:
            return compressed
        return aead.seal(self.suite, page_key, page_nonce(page), page_aad(self.suite, page_size), compressed)


def _compressor(level: int) -> Compressor:
    compressors: dict[int, Compressor] = _local.__dict__.setdefault("compressors", {})
    if level not in compressors:
        compressors[level] = Compressor(level)
    return compressors[level]
