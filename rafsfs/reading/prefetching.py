"""Fetches chunks before anybody asks for them, mostly behind all who wait for one; decodes nothing.

In the order of the image's list and then, if wanted, of the files. What it costs a reader is at most the one
request that is under way when he comes; but what leads the list, which he is about to want, comes beside him.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rafsfs.errors import AuthError, RafsError, StoreError
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.reading.fetcher import Fetcher
from rafsfs.reading.fetching import FetchedFile

log = logging.getLogger("rafsfs.reading")

SPAN_BYTES: Final = 1 << 20  # of one request: 80 ms at 100 Mbit/s, by which a reader may be held up
PAGES_BYTES_MAX: Final = 4 << 20
"""Of metadata that comes with the image's list: of some 30,000 files, a third of a second at 100 Mbit/s."""
FEW_PAGES_BYTES: Final = (
    1 << 20
)  # of metadata that comes without a list, too, while nobody waits for anything
FIRST_BYTES: Final = 16 << 20  # of a list that are fetched beside readers: 1.3 s at 100 Mbit/s
FIRST_REQUESTS: Final = 4  # round trips side by side
_CHUNKS_AT_ONCE: Final = 64  # looked up together
_QUIET_WAIT_S: Final = 1.0
_AGAIN_S: Final = 5.0  # after a failure, and twice as long after each without any success between
_AGAIN_MAX_S: Final = 320.0


class Prefetch(enum.Enum):
    """What is fetched of an image that is far away before it is asked for."""

    NONE = "none"
    LIST = "list"
    """The image's prefetch list; the metadata where they are small, with or without a list."""
    ALL = "all"
    """The list, then everything else."""
    WHOLE = "whole"
    """Everything, before the first reader is served: the order of requests then tells nothing."""


@dataclass(slots=True)
class PrefetchProgress:
    """How far it is, in encoded bytes; what was here before counts as done."""

    done_bytes: int = 0
    total_bytes: int = 0


class Prefetcher:
    """Works through chunks of an image's files. ``run`` is for one thread."""

    def __init__(self, fetcher: Fetcher, files: Sequence[FetchedFile], bytes_per_s: float | None) -> None:
        """``files`` have their places; ``bytes_per_s`` bounds what is taken of the network."""
        self.progress = PrefetchProgress()
        self._fetcher = fetcher
        self._files = files
        self._bytes_per_s = bytes_per_s
        self._stop = threading.Event()
        self.ended = threading.Event()
        """Set when everything is here, or when it gave up."""
        self._free_at = 0.0
        self._spans_fetched = 0
        self._skips = False

    def start(self, runs: Sequence[PrefetchRun], *, everything: bool, blobs_from: int) -> None:
        """Run on a thread of its own, which holds up no exit. ``blobs_from``: blob 0's index in the files."""
        arguments = runs, everything, blobs_from
        threading.Thread(
            target=self._run_and_log, args=arguments, name="rafsfs-prefetch", daemon=True
        ).start()

    def stop(self) -> None:
        """End soon."""
        self._stop.set()

    def _run_and_log(self, runs: Sequence[PrefetchRun], everything: bool, blobs_from: int) -> None:
        try:
            self._run_until_done(runs, everything, blobs_from)
        finally:
            self.ended.set()

    def _run_until_done(self, runs: Sequence[PrefetchRun], everything: bool, blobs_from: int) -> None:
        self._skips = True
        wait_s = _AGAIN_S
        while not self._stop.is_set():
            spans_before = self._spans_fetched
            try:
                self.run(runs, everything=everything, blobs_from=blobs_from)
            except StoreError as error:
                # a refusal passes, too: a login is renewed, a registry mended; readers try meanwhile
                if self._spans_fetched > spans_before:
                    wait_s = _AGAIN_S
                log.info("prefetching is held up for %g s: %s", wait_s, error)
                self._stop.wait(wait_s)
                wait_s = min(2 * wait_s, _AGAIN_MAX_S)
            except RafsError as error:
                log.warning("prefetching ended: %s", error)
                return
            else:
                return

    def run(self, runs: Sequence[PrefetchRun], *, everything: bool, blobs_from: int) -> None:
        """Fetch it all; returns early when stopped. Raises RafsError at the first failure."""
        ranges = [
            (blobs_from + run.blob, range(run.first_chunk, run.first_chunk + run.chunk_count)) for run in runs
        ]
        # Names and the smallest files are in the metadata, and the list does not say on which pages.
        pages = [(number, range(_count(file))) for number, file in enumerate(self._files[:blobs_from])]
        pages_max = PAGES_BYTES_MAX if runs else 0 if everything else FEW_PAGES_BYTES
        if self._total(pages) <= pages_max:
            ranges = pages + ranges
        if everything:
            ranges += [(number, range(_count(file))) for number, file in enumerate(self._files)]
        self.progress.total_bytes = self._total(ranges)
        self.progress.done_bytes = 0
        spans = (
            (self._files[number], span)
            for number, indexes in ranges
            for span in self._spans(self._files[number], indexes)
        )
        if runs:
            self._fetch_first(spans)
        for file, span in spans:
            self._give_way()
            if self._stop.is_set():
                return
            self._fetch(file, span)

    def _fetch_first(self, spans: Iterator[tuple[FetchedFile, list[int]]]) -> None:
        """What leads the list, several requests at once and beside those of readers, who will want it soon.

        Behind them it would come when they have fetched it themselves, a round trip for each chunk.
        """
        lock = threading.Lock()
        failures: list[RafsError] = []
        left = FIRST_BYTES

        def take() -> tuple[FetchedFile, list[int]] | None:
            nonlocal left
            with lock:
                found = next(spans, None) if left > 0 and not failures and not self._stop.is_set() else None
                if found is not None:
                    places = found[0].places
                    assert places is not None
                    left -= sum(places[index].length for index in found[1])
                return found

        def work() -> None:
            try:
                while (found := take()) is not None:
                    self._fetch(*found)
            except RafsError as error:  # of metadata, too: the spans come out of chunk tables
                failures.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(FIRST_REQUESTS)]
        self._fetcher.knows_better = True
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._fetcher.knows_better = False
        if failures:
            raise failures[0]

    def _fetch(self, file: FetchedFile, span: Sequence[int]) -> None:
        try:
            file.fetch(span)
        except AuthError as error:
            if not self._skips:
                raise
            log.warning("prefetching leaves out what is not to be believed: %s", error)
        self._spans_fetched += 1

    def _total(self, ranges: Iterable[tuple[int, range]]) -> int:
        total = 0
        for number, indexes in ranges:
            places = self._files[number].places
            assert places is not None
            total += sum(places[index].length for index in indexes)
        return total

    def _spans(self, file: FetchedFile, indexes: range) -> Iterator[list[int]]:
        """Adjacent chunks that are missing, up to a request's size; notes the progress."""
        assert file.places is not None
        for first in range(indexes.start, indexes.stop, _CHUNKS_AT_ONCE):
            some = range(first, min(first + _CHUNKS_AT_ONCE, indexes.stop))
            missing = set(file.missing(some))
            span: list[int] = []
            size = 0
            for index in some:
                place = file.places[index]
                self.progress.done_bytes += place.length
                if span and (index not in missing or size + place.length > SPAN_BYTES):
                    yield span
                    self._pay(size)
                    span, size = [], 0
                if index in missing:
                    span.append(index)
                    size += place.length
            if span:
                yield span
                self._pay(size)

    def _give_way(self) -> None:
        while not self._stop.is_set() and not self._fetcher.wait_for_quiet(_QUIET_WAIT_S):
            pass

    def _pay(self, count: int) -> None:
        """Wait until the bandwidth limit allows for what was fetched."""
        if self._bytes_per_s is None:
            return
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + count / self._bytes_per_s
        self._stop.wait(self._free_at - now)


def _count(file: FetchedFile) -> int:
    assert file.places is not None
    return len(file.places)
