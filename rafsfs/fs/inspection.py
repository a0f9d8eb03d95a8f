"""What an open image is made of, in numbers: chunks, codecs, sizes of each blob; reads metadata only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rafsfs.format.chunk import CHUNK_RECORD, Codec
from rafsfs.fs.image import OpenImage
from rafsfs.metadata.space import MetadataSpace
from rafsfs.types import ChunkIndex

_RECORDS_AT_ONCE = 4096  # 384 KiB of sealed table


@dataclass(slots=True)
class ChunkNumbers:
    """Of one blob, what this image uses of it. ``decoded_bytes`` and ``encoded_bytes`` are sums over chunks.

    ``codecs`` counts chunks by the codec's number: the image may come from a later release.
    """

    chunks: int = 0
    decoded_bytes: int = 0
    encoded_bytes: int = 0
    codecs: Counter[int] = field(default_factory=Counter)


def codec_name(number: int) -> str:
    """Name a codec, also one that this release does not know."""
    return Codec(number).name.lower() if number in set(Codec) else f"codec {number}"


@dataclass(frozen=True, slots=True)
class PrefetchNumbers:
    """The prefetch list: its runs, their chunks, and the bytes of those."""

    runs: int
    chunks: int
    decoded_bytes: int
    encoded_bytes: int


def prefetch_numbers(image: OpenImage) -> PrefetchNumbers:
    """Add up the prefetch list; raises RafsError."""
    runs = image.prefetch_runs()
    decoded_bytes = encoded_bytes = 0
    for run in runs:
        chunks = image.filesystem.engine.blobs[run.blob].chunks
        for number in range(run.first_chunk, run.first_chunk + run.chunk_count):
            record = chunks.record(ChunkIndex(number))
            decoded_bytes += record.decoded_length
            encoded_bytes += record.encoded_length
    return PrefetchNumbers(len(runs), sum(run.chunk_count for run in runs), decoded_bytes, encoded_bytes)


def chunk_numbers(image: OpenImage) -> list[ChunkNumbers]:
    """Count the chunks of every blob out of the sealed chunk tables; raises RafsError."""
    superblock = image.opened.superblock
    section = superblock.chunk_tables
    space = MetadataSpace(
        image.metadata.load, superblock.page_size, offset=section.offset, length=section.length
    )
    found = []
    position = 0
    for blob in superblock.blobs:
        numbers = ChunkNumbers(chunks=blob.chunk_count)
        end = position + blob.chunk_count * CHUNK_RECORD.size
        while position < end:
            length = min(end - position, _RECORDS_AT_ONCE * CHUNK_RECORD.size)
            for record in CHUNK_RECORD.iter_unpack(space.read(position, length)):
                numbers.decoded_bytes += record.decoded_length
                numbers.encoded_bytes += record.encoded_length
                numbers.codecs[record.codec] += 1
            position += length
        found.append(numbers)
    return found
