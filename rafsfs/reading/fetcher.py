"""What the files of an image that is far away share: node cache, threads, counts; asks no store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from rafsfs.reading.background import Background
from rafsfs.store.base import RemoteFile
from rafsfs.store.node_cache import CacheCounts, NodeCache
from rafsfs.types import EncodedBytes

REQUESTS_MAX: Final = 6  # at once on threads of our own; readers' own threads come to that
SHELF_BYTES: Final = 8 << 20  # what came along with other chunks, when there is no node cache for it


class Place(NamedTuple):
    """Where an encoded chunk or page lies in its file, in bytes, and its BLAKE3."""

    offset: int
    length: int
    chunk_id: bytes

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.offset + self.length


class Places(Protocol):
    """The chunks of a file in the order of their offsets, out of sealed metadata."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Place: ...


@dataclass(slots=True)
class FetchCounts:
    """What an image cost over the network. ``joined`` readers waited for somebody else's request, ``ahead``
    chunks came along with others, ``bad`` chunks were not what their digests say and were fetched again.
    """

    requests: int = 0
    fetched_bytes: int = 0
    cached: int = 0
    joined: int = 0
    ahead: int = 0
    bad: int = 0


@dataclass(frozen=True, slots=True)
class FetchState:
    """One moment's numbers of an image that is far away; ``cache`` is None without a node cache.

    Prefetching is told in encoded bytes, as far as it knows its end.
    """

    counts: FetchCounts
    cache: CacheCounts | None
    prefetched_bytes: int = 0
    prefetch_bytes: int = 0


class Fetcher:
    """What the files of one image share. Any thread may use it."""

    def __init__(self, cache: NodeCache | None) -> None:
        """Starts no threads, so that it may be made before a fork."""
        self.cache = cache
        self._background: Background | None = None
        self._decoding: Background | None = None
        self._counts = FetchCounts()
        self.knows_better = False
        """Set while a list of what readers will want is fetched: then nothing has to be guessed."""
        self._idle = threading.Condition()
        self._readers = 0
        self._shelf: OrderedDict[bytes, bytes] = OrderedDict()
        self._shelf_bytes = 0

    def start(self) -> None:
        """From now on use threads of our own: readers do not wait for what comes behind their chunk."""
        self._background = Background(REQUESTS_MAX)
        self._decoding = Background(REQUESTS_MAX)

    @property
    def ahead_allowed(self) -> bool:
        """Whether more may be fetched than a reader waits for."""
        return self._background is not None and not self.knows_better

    def counts(self) -> FetchCounts:
        """All counts of one moment."""
        with self._idle:
            return replace(self._counts)

    def count(self, **counts: int) -> None:
        """Add to the counts."""
        with self._idle:
            for name, count in counts.items():
                setattr(self._counts, name, getattr(self._counts, name) + count)

    def for_reader(self, work: Callable[[], None], *, wants_metadata: bool = False) -> None:
        """Do what a reader waits for, on a thread of ours if there is one to spare.

        Work that ``wants_metadata`` has threads of its own: if those that bring metadata were all waiting
        for some, nobody would bring any.
        """

        def counted() -> None:
            try:
                work()
            finally:
                with self._idle:
                    self._readers -= 1
                    self._idle.notify_all()

        with self._idle:
            self._readers += 1
        threads = self._decoding if wants_metadata else self._background
        if threads is None or not threads.submit(counted):
            counted()

    def wait_for_quiet(self, timeout_s: float) -> bool:
        """Wait until no request is made for a reader; False when it never was quiet for so long."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._readers, timeout_s)

    def known(self, place: Place) -> EncodedBytes | None:
        """Bytes that are here; None when they are not. Those of the node cache were not checked."""
        with self._idle:
            data = self._shelf.get(place.chunk_id)
        if data is None and self.cache is not None:
            data = self.cache.get(place.chunk_id, place.length)
        return None if data is None else EncodedBytes(data)

    def discard(self, place: Place) -> None:
        """Have no longer what is in the node cache: it is something else."""
        if self.cache is not None:
            self.cache.discard(place.chunk_id)

    def has(self, place: Place) -> bool:
        """Whether it seems to be here."""
        with self._idle:
            if place.chunk_id in self._shelf:
                return True
        return self.cache is not None and self.cache.has(place.chunk_id)

    def keep(self, place: Place, data: bytes) -> None:
        """Keep bytes that were checked: on the disk, or else a few of them in memory."""
        if self.cache is not None and self.cache.put(place.chunk_id, data):
            return
        with self._idle:
            if place.chunk_id not in self._shelf:
                self._shelf[place.chunk_id] = data
                self._shelf_bytes += len(data)
            while self._shelf_bytes > SHELF_BYTES:
                self._shelf_bytes -= len(self._shelf.popitem(last=False)[1])


class CountedFile:
    """A remote file whose requests are counted; see ``RemoteFile``."""

    def __init__(self, file: RemoteFile, fetcher: Fetcher) -> None:
        self.name = file.name
        self.size = file.size
        self.close = file.close
        self._file = file
        self._fetcher = fetcher

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``."""
        self._fetcher.count(requests=1, fetched_bytes=length)
        return self._file.read_range(offset, length)

    def stream_range(
        self, offset: int, length: int, take: Callable[[bytes], None], *, afresh: bool = False
    ) -> None:
        """See ``RemoteFile.stream_range``."""
        self._fetcher.count(requests=1, fetched_bytes=length)
        self._file.stream_range(offset, length, take, afresh=afresh)
