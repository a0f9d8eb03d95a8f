"""Wires an image that is far away: its files through one fetcher, what is fetched ahead; opens nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rafsfs.errors import AuthError, FormatError, StoreError
from rafsfs.format.bootstrap import PageTable
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.fetcher import CountedFile, Fetcher, FetchState, Place
from rafsfs.reading.fetching import PAGES_AHEAD_BYTES, FetchedFile
from rafsfs.reading.prefetching import Prefetch, Prefetcher
from rafsfs.store.base import RemoteFile, StoredFile
from rafsfs.store.node_cache import NodeCache
from rafsfs.store.plain_layer import PlainLayer
from rafsfs.store.settings import StoreSettings
from rafsfs.types import ChunkIndex, PageNumber

T = TypeVar("T")


class _ChunkPlaces:
    """Places of a blob's chunks, as its sealed chunk table has them."""

    def __init__(self, table: ChunkTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int, /) -> Place:
        record = self._table.record(ChunkIndex(index))
        return Place(record.encoded_offset, record.encoded_length, record.chunk_id)


class _PagePlaces:
    """Places of metadata pages in the bootstrap, as the checked page table has them."""

    def __init__(self, table: PageTable, start: int) -> None:
        self._table = table
        self._start = start

    def __len__(self) -> int:
        return self._table.page_count

    def __getitem__(self, index: int, /) -> Place:
        entry = self._table.entry(PageNumber(index))
        return Place(self._start + entry.encoded_offset, entry.encoded_length, entry.digest)


class RemoteImage:
    """The files of one image, if they are far away. Files that are here pass through unchanged."""

    def __init__(self, settings: StoreSettings) -> None:
        """Touches nothing yet, and starts no threads."""
        self._settings = settings
        folder = settings.cache_folder
        self.cache = None if folder is None else NodeCache(folder, settings.cache_bytes)
        self.files: list[FetchedFile] = []
        self._fetcher = Fetcher(self.cache)
        self.prefetcher: Prefetcher | None = None

    def bootstrap(self, file: StoredFile) -> StoredFile:
        """The bootstrap, to be read through the fetcher."""
        if not isinstance(file, RemoteFile):
            return file
        return self._through(FetchedFile(self._counted(file), self._fetcher, ahead_bytes=PAGES_AHEAD_BYTES))

    def opened(self, work: Callable[[], T]) -> T:
        """What ``work`` makes of the bootstrap, whose head no digest was known for when it was fetched.

        When that is not believed, a mirror may have lied, and ``work`` is done once more with what the origin
        itself has. Raises what ``work`` raises.
        """
        try:
            return work()
        except (AuthError, FormatError):
            try:
                is_other = bool(self.files) and self.files[0].distrust()
            except StoreError:
                is_other = False
            if not is_other:
                raise
        return work()

    def use_pages(self, table: PageTable, start: int) -> None:
        """From now on check the bootstrap's pages, which begin at ``start``, and keep them."""
        if self.files:
            self.files[0].use(_PagePlaces(table, start))

    def blob(self, file: StoredFile, table: ChunkTable) -> StoredFile:
        """A blob, to be read through the fetcher."""
        if not isinstance(file, RemoteFile):
            return file
        fetched = self._through(FetchedFile(self._counted(file), self._fetcher))
        fetched.use(_ChunkPlaces(table))
        return fetched

    def layer(
        self, file: StoredFile, size: int, checkpoints: Callable[[int, int], bytes], table: ChunkTable
    ) -> StoredFile:
        """A layer of a stock image, to be read through the fetcher in plain pieces; see ``PlainLayer``."""
        if not isinstance(file, RemoteFile):
            return PlainLayer(file, size, checkpoints)
        layer = PlainLayer(self._counted(file), size, checkpoints, self._settings.deadline_s)
        fetched = self._through(FetchedFile(layer, self._fetcher, is_layer=True))
        fetched.use(_ChunkPlaces(table))
        return fetched

    def _counted(self, file: RemoteFile) -> CountedFile:
        return CountedFile(file, self._fetcher)

    def _through(self, fetched: FetchedFile) -> FetchedFile:
        self.files.append(fetched)
        return fetched

    def start(
        self, runs: list[PrefetchRun], prefetch: Prefetch = Prefetch.NONE, bytes_per_s: float | None = None
    ) -> None:
        """From now on use threads, and fetch ahead: ``runs`` are the image's list. Call it behind a fork.

        Prefetch.WHOLE comes back when everything is here; raises StoreError or DigestMismatch when something
        cannot be had, or when there is no node cache for it.
        """
        self._fetcher.start()
        if prefetch is Prefetch.NONE or (self.cache is None and prefetch is not Prefetch.WHOLE):
            return
        if self.cache is None:
            raise StoreError("a whole image is fetched into the node cache, but there is none")
        self.prefetcher = Prefetcher(self._fetcher, self.files, bytes_per_s)
        if prefetch is Prefetch.WHOLE:
            self.prefetcher.run([], everything=True, blobs_from=1)
            if self.cache.counts().not_stored:
                raise StoreError("the node cache did not take the whole image", hint="see the log")
        else:
            everything = prefetch is Prefetch.ALL
            self.prefetcher.start(runs, everything=everything, blobs_from=1)

    def stop(self) -> None:
        """End prefetching soon."""
        if self.prefetcher is not None:
            self.prefetcher.stop()

    def state(self) -> FetchState:
        """What it cost so far."""
        done = total = 0
        if self.prefetcher is not None:
            done, total = self.prefetcher.progress.done_bytes, self.prefetcher.progress.total_bytes
        cache = None if self.cache is None else self.cache.counts()
        return FetchState(self._fetcher.counts(), cache, done, total)
