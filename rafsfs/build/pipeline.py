"""Chunks through the encoders and into a blob, over all cores and in order; decides nothing about their
content.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from rafsfs.build.encode import EncodedChunk, Encoder
from rafsfs.build.layout_writer import NewBlob
from rafsfs.build.tree import PlannedBlob, PlannedChunk
from rafsfs.format.blob import TocEntry, pack_tail
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, blocks_of
from rafsfs.format.record import Buffer

_BATCH_BYTES = 1 << 20  # to change threads at once: several chunks of the usual size
_WAITING_PER_WORKER = 6
"""Batches that wait for an encoder: what keeps it busy while a thousand small files are opened, which takes
longer than to encode them. Large files fill the queue again. With more the work leaves the cores' caches."""
_ALLOCATOR_HINT_BYTES = 24 << 20  # below DEFAULT_MMAP_THRESHOLD_MAX of mallopt(3), above any usual chunk


def worker_count() -> int:
    """Threads to encode with: one for each core we may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BlobPipeline:
    """Writes one blob. Used from one thread; encoders run on the pool's, and one more hashes and writes.

    Chunks change threads several at a time, for a change costs as much as a good part of encoding one.
    """

    def __init__(
        self, blob: NewBlob, encoder: Encoder, pool: ThreadPoolExecutor, writer: ThreadPoolExecutor
    ) -> None:
        """``writer`` has one thread, so that chunks are written in the order in which they were submitted."""
        self.planned = PlannedBlob()
        # glibc hands each freed chunk back to the kernel, to have it zeroed and mapped again for the next,
        # until it has seen something larger being freed (mallopt(3), M_MMAP_THRESHOLD).
        bytes(_ALLOCATOR_HINT_BYTES)
        self._blob = blob
        self._encoder = encoder
        self._pool = pool
        self._writer = writer
        self._batch: list[tuple[int, Buffer]] = []
        self._batch_bytes = 0
        self._waiting: deque[Future[None]] = deque()
        self._waiting_max = _WAITING_PER_WORKER * worker_count()
        self._records: list[bytes] = []
        self._toc: list[TocEntry] = []
        self.chunk_count = 0
        self.encoded_bytes = 0
        self.decoded_blocks = 0

    @property
    def stored_bytes(self) -> int:
        """Size of the blob file; a blob without chunks is not kept."""
        return self._blob.size if self._records else 0

    def submit(self, chunk: PlannedChunk, plain: Buffer) -> None:
        """Give ``chunk`` the next place in decoded space and its bytes to the encoders.

        Waits while too many chunks are on their way. Raises what went wrong with an earlier one.
        """
        chunk.start_block = self.decoded_blocks
        chunk.used = True
        self._batch.append((self.decoded_blocks, plain))
        self._batch_bytes += len(plain)
        self.chunk_count += 1
        self.decoded_blocks += blocks_of(len(plain))
        if self._batch_bytes >= _BATCH_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        encoding = self._pool.submit(self._encode, self._batch)
        self._waiting.append(self._writer.submit(self._write, encoding))
        self._batch = []
        self._batch_bytes = 0
        while self._waiting and (len(self._waiting) > self._waiting_max or self._waiting[0].done()):
            self._waiting.popleft().result()

    def _encode(self, batch: list[tuple[int, Buffer]]) -> list[tuple[int, int, EncodedChunk]]:
        return [(start_block, len(plain), self._encoder.chunk(plain)) for start_block, plain in batch]

    def _write(self, encoding: Future[list[tuple[int, int, EncodedChunk]]]) -> None:
        for start_block, length, encoded in encoding.result():
            offset = self._blob.size
            size = len(encoded.data)
            record = ChunkRecord(
                start_block, length, offset, size, encoded.codec, 0, encoded.chunk_id, encoded.key
            )
            self._records.append(CHUNK_RECORD.pack(record))
            self._toc.append(TocEntry(offset, size, encoded.chunk_id))
            self._blob.write(encoded.data)
        self.encoded_bytes = self._blob.size

    def flush(self) -> None:
        """Hand over the rest: nothing more comes. The caller can do other things meanwhile."""
        if self._batch:
            self._hand_over()

    def finish(self) -> tuple[bytes, bytes]:
        """Write the rest and the blob's tail; returns (sealed chunk table, digest of the contents)."""
        self.flush()
        while self._waiting:
            self._waiting.popleft().result()
        tail, digest = pack_tail(self._toc, self.encoded_bytes)
        self._blob.write(tail)
        return b"".join(self._records), digest
