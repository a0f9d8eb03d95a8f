"""Reads all of an image into the cache of verified bytes, so that no later read shows; starts no mount."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from rafsfs.errors import MountError
from rafsfs.fs.image import OpenImage
from rafsfs.fs.inspection import chunk_numbers
from rafsfs.fs.parallel import WAITING, in_order
from rafsfs.reading.page_cache import ENTRY_OVERHEAD_BYTES
from rafsfs.types import BlobIndex, ChunkIndex, PageNumber

_PIECES_AT_ONCE = 16  # pages or chunks that one task loads, so that tasks cost little


def load_all(image: OpenImage, workers: int) -> None:
    """Fetch, verify and keep every metadata page and every chunk, in the order in which they are stored.

    Afterwards no read asks the store. Raises MountError when the cache is too small for that, and what a
    reader of the damaged part would meet.
    """
    superblock = image.opened.superblock
    engine = image.filesystem.engine
    numbers = chunk_numbers(image)
    entries = superblock.page_count + sum(found.chunks for found in numbers)
    needed = superblock.metadata_bytes + sum(found.decoded_bytes for found in numbers)
    needed += entries * ENTRY_OVERHEAD_BYTES
    if needed > engine.cache.budget_bytes:
        raise MountError(
            "the cache is too small for the whole image",
            expected=f"{needed} bytes",
            found=engine.cache.budget_bytes,
            hint=f"give --cache-size {-(-needed >> 20)}M",
        )

    engine.cache.keep_all()

    def load_pages(first: int) -> None:
        for number in range(first, min(first + _PIECES_AT_ONCE, superblock.page_count)):
            image.metadata.load(PageNumber(number))

    def load_chunks(batch: tuple[BlobIndex, range]) -> None:
        blob, indexes = batch
        for index in indexes:
            engine.chunk(blob, ChunkIndex(index))

    with ThreadPoolExecutor(workers, thread_name_prefix="rafsfs-load") as pool:
        try:
            pages = range(0, superblock.page_count, _PIECES_AT_ONCE)
            for _ in in_order(pool, load_pages, pages, waiting=WAITING):
                pass
            for _ in in_order(pool, load_chunks, _batches(image), waiting=WAITING):
                pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    assert not engine.cache.evictions


def _batches(image: OpenImage) -> Iterator[tuple[BlobIndex, range]]:
    for number, blob in enumerate(image.filesystem.engine.blobs):
        for first in range(0, len(blob.chunks), _PIECES_AT_ONCE):
            yield BlobIndex(number), range(first, min(first + _PIECES_AT_ONCE, len(blob.chunks)))
