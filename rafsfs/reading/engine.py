"""Bytes of decoded space: out of the cache at once, or fetched, checked and decoded once for all who wait.

The caller's own thread does the work of a miss; the native libraries release the interpreter lock while they
digest, decrypt and decompress, so as many chunks are decoded side by side as there are threads that ask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident

from rafsfs.decode.pipeline import decode_chunk, decode_page
from rafsfs.errors import DigestMismatch, RafsError, StoreError, WouldWait
from rafsfs.format.bootstrap import PageTable
from rafsfs.format.chunk import Suite
from rafsfs.limits import READ_DEADLINE_S
from rafsfs.reading.background import Background
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.demand import Demand
from rafsfs.reading.fetcher import FetchState
from rafsfs.reading.inflight import Inflight
from rafsfs.reading.page_cache import METADATA, Key, PageCache
from rafsfs.reading.readahead import ReadAhead
from rafsfs.store.base import Distant, Recoverable, StoredFile
from rafsfs.types import BlobIndex, ChunkIndex, DecodedOffset, EncodedBytes, PageNumber, VerifiedBytes

log = logging.getLogger("rafsfs.reading")

READ_AHEAD_BYTES = 4 << 20
"""How far a stream is decoded ahead: what a reader takes in while one hand-over to a worker takes effect."""

FETCH_BYTES_MAX = 1 << 20
"""What is fetched at once when encoded chunks lie side by side: more gains nothing on a disk."""


class MetadataPages:
    """Verified metadata pages of one bootstrap, through the cache."""

    def __init__(
        self, file: StoredFile, start: int, table: PageTable, suite: Suite, page_key: bytes, cache: PageCache
    ) -> None:
        """``start`` is where the encoded pages begin in the bootstrap file, in bytes."""
        self._file = file
        self._start = start
        self._table = table
        self._suite = suite
        self._page_key = page_key
        self._cache = cache
        self.impatient: set[int] = set()
        """Threads, by ``threading.get_ident``, that get WouldWait in place of a page that is not at hand."""

    def load(self, page: PageNumber) -> VerifiedBytes:
        """One page; raises AuthError, FormatError or StoreError."""
        cached = self._cache.get((METADATA, page))
        if cached is not None:
            return cached
        if self.impatient and get_ident() in self.impatient:
            raise WouldWait
        try:
            entry = self._table.entry(page)
            start, length = self._start + entry.encoded_offset, entry.encoded_length
            decode = partial(
                decode_page,
                entry=entry,
                page=page,
                suite=self._suite,
                page_key=self._page_key,
                page_size=self._table.page_size,
            )
            encoded = self._file.read_range(start, length)
            plain = _decoded(self._file, start, length, encoded, decode)
        except RafsError as error:
            self._cache.statistics.failed(error)
            raise error.at(file=self._file.name, page=page) from None
        self._cache.statistics.opened_page(length, len(plain))
        self._cache.put((METADATA, page), plain)
        return plain


@dataclass(frozen=True, slots=True)
class Blob:
    """One data blob: its file, not believed, and its sealed chunk table."""

    file: StoredFile
    chunks: ChunkTable


class ReadEngine:
    """Reads ranges of the blobs' decoded spaces. Any number of threads may call it."""

    def __init__(self, blobs: Sequence[Blob], suite: Suite, cache: PageCache) -> None:
        self.blobs = tuple(blobs)
        self.cache = cache
        self._suite = suite
        self._inflight: Inflight[Key, VerifiedBytes] = Inflight(READ_DEADLINE_S)
        self._ahead: ReadAhead | None = None
        self._background: Background | None = None
        self._last_asked: Key = (METADATA, 0)
        self.fetch_state: Callable[[], FetchState] | None = None
        """What fetching cost so far, for an image that is far away."""
        self.demand = Demand()
        self._warmed: set[Key] = set()

    def read_ahead(self, threads: int, prepare: Callable[[], object]) -> None:
        """Decode ahead of sequential readers, on so many threads, which call ``prepare`` first."""
        chunk_count = sum(len(blob.chunks) for blob in self.blobs)
        decoded_bytes = sum(blob.chunks.decoded_bytes for blob in self.blobs)
        chunk_bytes = decoded_bytes // max(1, chunk_count)
        self._background = Background(threads, prepare)
        self._ahead = ReadAhead(READ_AHEAD_BYTES // max(1, chunk_bytes))

    @property
    def is_reading_ahead(self) -> bool:
        """Whether chunks that nobody waits for yet are being decoded right now."""
        return self._background is not None and self._background.is_busy

    @property
    def ahead_used(self) -> int:
        """How many chunks a reader came for after they were read ahead."""
        return self._ahead.used if self._ahead is not None else 0

    def try_read(self, blob: BlobIndex, start: DecodedOffset, length: int) -> list[memoryview] | None:
        """The range as slices of cached chunks, without waiting; None when a part of it is not cached."""
        chunks = self.blobs[blob].chunks
        parts: list[memoryview] = []
        while length > 0:
            index = chunks.find(start)
            if self._last_asked != (blob, index):
                self._asked(blob, index, is_there=self.cache.holds((blob, index)))
            data = self.cache.get((blob, index))
            if data is None:
                return None
            part = _slice(data, start - chunks.record(index).decoded_start, length)
            parts.append(part)
            start = DecodedOffset(start + len(part))
            length -= len(part)
        return parts

    def read(self, blob: BlobIndex, start: DecodedOffset, length: int) -> list[memoryview]:
        """The range as slices of verified chunks; fetches and decodes what is missing on this thread.

        Raises AuthError, FormatError or StoreError that say which chunk, and where in the blob file it lies.
        """
        chunks = self.blobs[blob].chunks
        parts: list[memoryview] = []
        late: list[ChunkIndex] = []
        if isinstance(self.blobs[blob].file, Distant):
            late = self._fetch_together(blob, start, length)
        while length > 0:
            index = chunks.find(start)
            if self._last_asked != (blob, index):
                self._asked(blob, index, is_there=index not in late and self.cache.holds((blob, index)))
            part = _slice(self.chunk(blob, index), start - chunks.record(index).decoded_start, length)
            parts.append(part)
            start = DecodedOffset(start + len(part))
            length -= len(part)
        return parts

    def _fetch_together(self, blob: BlobIndex, start: DecodedOffset, length: int) -> list[ChunkIndex]:
        """Have a range in the cache by as few requests as possible, where each takes a round trip.

        Returns what was not there. Raises StoreError; what is not to be believed meets the reader when he
        asks for it by itself.
        """
        chunks = self.blobs[blob].chunks
        indexes = []
        position, end = start, start + length
        while position < end:
            index = chunks.find(position)
            indexes.append(index)
            position = DecodedOffset(chunks.record(index).decoded_end)
        missing = [index for index in indexes if not self.cache.holds((blob, index))]
        late = missing.copy()
        if len(missing) < 2:
            return late
        with self.demand:
            try:
                for index, encoded in self._fetched(blob, missing):
                    self._inflight.get((blob, index), partial(self._load_fetched, blob, index, encoded))
            except StoreError as error:
                raise self._failed(error, blob, missing[0]) from None
            except RafsError as error:
                log.debug("chunks are fetched one by one: %s", error)
        return late

    def _asked(self, blob: BlobIndex, index: ChunkIndex, *, is_there: bool) -> None:
        self._last_asked = (blob, index)
        if self._warmed and (blob, index) in self._warmed:
            self._warmed.discard((blob, index))
            self.cache.statistics.used_prefetched()
        if self._ahead is None or self._background is None:
            return
        wanted = self._ahead.asked(blob, index, is_there=is_there)
        if not wanted:
            return
        wanted = range(wanted.start, min(wanted.stop, len(self.blobs[blob].chunks)))
        self.cache.statistics.read_ahead(len(wanted))
        share = -(-len(wanted) // self._background.threads_max) or 1
        for start in range(wanted.start, wanted.stop, share):
            part = range(start, min(start + share, wanted.stop))
            self._background.submit(partial(self._decode_ahead, blob, part))

    def _decode_ahead(self, blob: BlobIndex, indexes: range) -> None:
        try:
            missing = [ChunkIndex(index) for index in indexes if not self.cache.holds((blob, index))]
            is_distant = isinstance(self.blobs[blob].file, Distant)
            for index, encoded in (
                self._at_hand(blob, missing) if is_distant else self._fetched(blob, missing)
            ):
                key = (blob, index)
                if not self.cache.holds(key):  # its reader was faster
                    self._inflight.get(key, partial(self._load_fetched, blob, index, encoded))
        except RafsError as error:
            # nobody has asked for it yet; who does meets the same error, and is told
            log.debug("read-ahead stopped: %s", error)

    def _at_hand(
        self, blob: BlobIndex, missing: list[ChunkIndex]
    ) -> Iterator[tuple[ChunkIndex, EncodedBytes]]:
        """Of a file that is far away what was fetched already: what else to fetch is not for us to say."""
        source = self.blobs[blob]
        assert isinstance(source.file, Distant)
        for index in missing:
            record = source.chunks.record(index)
            encoded = source.file.at_hand(record.encoded_offset, record.encoded_length)
            if encoded is None:
                return
            yield index, encoded

    def _fetched(
        self, blob: BlobIndex, missing: list[ChunkIndex]
    ) -> Iterator[tuple[ChunkIndex, EncodedBytes]]:
        """These chunks, with one call to the store where several lie side by side."""
        source = self.blobs[blob]
        while missing:
            first = source.chunks.record(missing[0])
            start = end = first.encoded_offset
            run: list[tuple[ChunkIndex, int, int]] = []
            for index in missing:
                record = source.chunks.record(index)
                if record.encoded_offset != end or (
                    run and end + record.encoded_length > start + FETCH_BYTES_MAX
                ):
                    break
                run.append((index, end - start, end := end + record.encoded_length))
            encoded = source.file.read_range(start, end - start)
            for index, offset, stop in run:
                yield index, EncodedBytes(encoded[offset : stop - start])
            del missing[: len(run)]

    def chunk(self, blob: BlobIndex, index: ChunkIndex) -> VerifiedBytes:
        """One whole decoded chunk, through the cache."""
        key = (blob, index)
        data = self.cache.get(key)
        if data is not None:
            return data
        with self.demand:
            return self._inflight.get(key, lambda: self._load(blob, index))

    def warm(self, blob: BlobIndex, index: ChunkIndex) -> bool:
        """Have one chunk in the cache before it is asked for; False when there is no room, or none was left.

        Raises as ``read`` does. ``demand`` tells when it is nobody's turn.
        """
        key = (blob, index)
        if self.cache.holds(key):
            return True
        if not self.cache.has_room(self.blobs[blob].chunks.record(index).decoded_length):
            return False
        self._inflight.get(key, lambda: self._load_for_later(blob, index))
        return self.cache.holds(key)

    def _load_for_later(self, blob: BlobIndex, index: ChunkIndex) -> VerifiedBytes:
        key = (blob, index)
        self._warmed.add(key)  # before it is there, for a reader may be waiting for it already
        data = self.decode(blob, index)
        self.cache.statistics.prefetched()
        self.cache.offer(key, data)
        return data

    def _load(self, blob: BlobIndex, index: ChunkIndex) -> VerifiedBytes:
        key = (blob, index)
        data = self.cache.get(key)  # the flight before ours may have landed since the caller looked
        if data is None:
            data = self.decode(blob, index)
            self.cache.put(key, data)
        return data

    def _load_fetched(self, blob: BlobIndex, index: ChunkIndex, encoded: EncodedBytes) -> VerifiedBytes:
        data = self._open(blob, index, encoded)
        self.cache.put((blob, index), data)
        return data

    def decode(self, blob: BlobIndex, index: ChunkIndex) -> VerifiedBytes:
        """Fetch and open one chunk without the cache, as a check of everything wants it."""
        source = self.blobs[blob]
        record = source.chunks.record(index)
        try:
            encoded = source.file.read_range(record.encoded_offset, record.encoded_length)
        except RafsError as error:
            raise self._failed(error, blob, index) from None
        return self._open(blob, index, encoded)

    def _open(self, blob: BlobIndex, index: ChunkIndex, encoded: EncodedBytes) -> VerifiedBytes:
        file, chunks = self.blobs[blob].file, self.blobs[blob].chunks
        try:
            record = chunks.record(index)
            decode = partial(decode_chunk, record=record, suite=chunks.suite)
            data = _decoded(file, record.encoded_offset, record.encoded_length, encoded, decode)
        except RafsError as error:
            raise self._failed(error, blob, index) from None
        self.cache.statistics.opened_chunk(len(encoded), len(data))
        return data

    def _failed(self, error: RafsError, blob: BlobIndex, index: ChunkIndex) -> RafsError:
        self.cache.statistics.failed(error)
        source = self.blobs[blob]
        offset = source.chunks.record(index).encoded_offset
        return error.at(blob=source.file.name, chunk=index, offset=offset)


def _decoded(
    file: StoredFile,
    offset: int,
    length: int,
    encoded: EncodedBytes,
    decode: Callable[[EncodedBytes], VerifiedBytes],
) -> VerifiedBytes:
    """What ``decode`` makes of a range of a file, or else of what the file gives when it is asked again."""
    try:
        return decode(encoded)
    except DigestMismatch:
        anew = file.again(offset, length) if isinstance(file, Recoverable) else None
        if anew is None:
            raise
        return decode(anew)


def _slice(data: VerifiedBytes, within: int, length: int) -> memoryview:
    return memoryview(data)[within : within + length]
