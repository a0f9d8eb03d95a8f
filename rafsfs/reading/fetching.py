"""Encoded chunks and pages of files that lie far away: out of the node cache, or by few and large requests.

Nothing is decoded here and no key is used: what comes over the network is compared with the digest in sealed
metadata, once that is known, before anybody gets it or it is kept. What the node cache has is compared by
whoever decodes it, who asks ``again`` when it is something else. Adjacent chunks that are missing come with
one request; readers who want the same one wait for one request; each gets its chunk as soon as that has
arrived.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Final

from blake3 import blake3

from rafsfs.errors import DigestMismatch, RafsError, StoreUnavailable
from rafsfs.limits import READ_DEADLINE_S
from rafsfs.reading.ends import Ends
from rafsfs.reading.fetcher import Fetcher, Place, Places
from rafsfs.store.base import RemoteFile
from rafsfs.types import EncodedBytes

log = logging.getLogger("rafsfs.reading")

PAGES_AHEAD_BYTES: Final = 128 << 10  # a round trip at 100 Mbit/s and 10 ms; a dozen pages
GUESS_BYTES: Final = 256 << 10  # behind a chunk out of order, while that proves right: a round trip's worth
GUESS_CREDIT: Final = 4 << 20  # bytes that may be guessed wrong
GUESS_REWARD: Final = 4  # times the bytes of a right guess may be guessed wrong for it
STREAM_BYTES_MIN: Final = 256 << 10  # on their way for who reads on where he left off, and then
STREAM_SHARE: Final = 2  # half of what he took, so that at most that is fetched in vain
STREAM_BYTES_MAX: Final = 4 << 20  # a third of a second at 100 Mbit/s: round trips are hidden behind it
REQUEST_BYTES_MAX: Final = 1 << 20  # so that several are under way
LAYER_GAP_BYTES: Final = (
    64 << 10
)  # of plain bytes: headers of files, and small files that an upper layer hides
_STREAMS_KEPT: Final = 8  # readers told apart
_STEPS_BACK: Final = 2  # chunks: threads that read one file side by side come in any order


class _Stream:
    """A reader who goes on: behind the last chunk that he asked for, the bytes he took, and where looking for
    what he will want is to go on.
    """

    __slots__ = ("end", "looked_to", "taken_bytes")

    def __init__(self, end: int) -> None:
        self.end = self.looked_to = end
        self.taken_bytes = 0


class FetchedFile:
    """A blob or bootstrap that is read through a fetcher; see ``StoredFile``."""

    def __init__(
        self, file: RemoteFile, fetcher: Fetcher, *, ahead_bytes: int = 0, is_layer: bool = False
    ) -> None:
        """``ahead_bytes`` are fetched with every request at least, as what follows is small. Without them
        that is a guess, and made as long as guesses are right often enough.

        ``is_layer`` is for a stock image's: what lies between its chunks is decompressed in any case, and
        sealed metadata are wanted for that.
        """
        self.name = file.name
        self.size = file.size
        self.places: Places | None = None
        self._file = file
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._flights: dict[int, Future[EncodedBytes]] = {}
        self._ends = Ends(file)
        self._hint = 0
        self._streams: deque[_Stream] = deque(maxlen=_STREAMS_KEPT)  # the one used last is the last
        self._ahead_bytes = ahead_bytes
        self._guessed: set[int] = set()
        self._credit = GUESS_CREDIT
        self._is_layer = is_layer

    def use(self, places: Places) -> None:
        """From now on check and keep what is fetched, and what was: ``places`` are sealed."""
        self.places = places
        for place, data in self._ends.dropped(places):
            if not self._fetcher.has(place) and blake3(data).digest() == place.chunk_id:
                self._fetcher.keep(place, data)

    def distrust(self) -> bool:
        """See ``Ends.distrust``; for what was read before the digests were known."""
        return self._ends.distrust()

    def close(self) -> None:
        """See ``StoredFile.close``."""
        self._file.close()

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``. Raises DigestMismatch when the origin has something else."""
        if self.places is None:
            return self._ends.read(offset, length)
        wanted = self._run(offset, length)
        if wanted is None:
            return self._file.read_range(offset, length)
        if len(wanted) == 1:
            return self._chunks(wanted)[0]
        return EncodedBytes(b"".join(self._chunks(wanted)))

    def again(self, offset: int, length: int) -> EncodedBytes | None:
        """See ``Recoverable.again``: what the node cache has of it is removed, and fetched."""
        wanted = None if self.places is None else self._run(offset, length)
        if wanted is None:
            return None
        for place in wanted.values():
            self._fetcher.discard(place)
        return EncodedBytes(b"".join(self._chunks(wanted, from_cache=False)))

    def at_hand(self, offset: int, length: int) -> EncodedBytes | None:
        """See ``Distant.at_hand``. Reading on is noticed by ``read_range`` alone."""
        wanted = None if self.places is None else self._run(offset, length)
        parts = []
        for place in (wanted or {}).values():
            data = self._fetcher.known(place) if self._fetcher.has(place) else None
            if data is None:
                return None
            parts.append(data)
        return EncodedBytes(b"".join(parts)) if parts else None

    def missing(self, indexes: Sequence[int]) -> list[int]:
        """Which of these chunks are neither here nor on their way."""
        assert self.places is not None
        places = [self.places[index] for index in indexes]
        return [
            index
            for index, place in zip(indexes, places, strict=True)
            if index not in self._flights and not self._fetcher.has(place)
        ]

    def fetch(self, indexes: Sequence[int]) -> None:
        """Fetch what is still missing of adjacent chunks, for nobody who waits, on this thread.

        Raises RafsError.
        """
        assert self.places is not None
        places = {index: self.places[index] for index in self.missing(indexes)}
        claimed, _ = self._claim(places)
        with self._ended_on_error(claimed):
            for span in self._spans(sorted(claimed), places):
                self._fetch(span, places)
        for flight in claimed.values():
            flight.result(0)

    # --- Chunks -------------------------------------------------------------------------------------------

    def _run(self, offset: int, length: int) -> dict[int, Place] | None:
        """The chunks that make up a range exactly, by index; None when it is no run of whole chunks."""
        assert self.places is not None
        places = self.places
        index = self._find(offset, places)
        if index is None:
            return None
        self._hint = index
        found: dict[int, Place] = {}
        position, end = offset, offset + length
        while position < end and index < len(places):
            place = places[index]
            if place.offset != position:
                return None
            found[index] = place
            position = place.end
            index += 1
        return found if position == end and found else None

    def _find(self, offset: int, places: Places) -> int | None:
        for index in (self._hint, self._hint + 1):
            if index < len(places) and places[index].offset == offset:
                return index
        index = bisect_left(range(len(places)), offset, key=lambda number: places[number].offset)
        return index if index < len(places) and places[index].offset == offset else None

    def _chunks(self, wanted: dict[int, Place], *, from_cache: bool = True) -> list[EncodedBytes]:
        """The bytes of these chunks; those of the node cache were not checked."""
        here: dict[int, EncodedBytes] = {}
        for index, place in wanted.items():
            data = self._fetcher.known(place) if from_cache else None
            if data is not None:
                here[index] = data
        missing = {index: place for index, place in wanted.items() if index not in here}
        ahead = self._ahead(min(wanted), max(wanted), is_asked_for=bool(missing))
        self._fetcher.count(cached=len(here), ahead=len(ahead))
        if missing or ahead:
            both = missing | ahead
            claimed, joined = self._claim(both, afresh=not from_cache)
            self._fetcher.count(joined=sum(index in missing for index in joined))
            with self._ended_on_error(claimed):
                for span in self._spans(sorted(claimed), both):
                    self._fetcher.for_reader(partial(self._fetch, span, both), wants_metadata=self._is_layer)
            for index in missing:
                here[index] = _landed(claimed.get(index) or joined[index])
        return [here[index] for index in wanted]

    def _ahead(self, first: int, last: int, *, is_asked_for: bool) -> dict[int, Place]:
        """The chunks behind ``last`` to fetch now for who reads one after the other; mostly none.

        Nothing is guessed where no request is made in any case (``is_asked_for``): no round trip is saved.
        """
        assert self.places is not None
        taken_bytes = self.places[last].end - self.places[first].offset
        with self._lock:
            stream, goes_on, is_late = self._follow(first, last, taken_bytes)
            for index in self._guessed.intersection(range(first, last + 1)):
                self._guessed.remove(index)
                self._credit += GUESS_REWARD * self.places[index].length
            is_guess = not goes_on and not self._ahead_bytes
            may_guess = is_asked_for and self._credit >= GUESS_BYTES
        if not self._fetcher.ahead_allowed or is_late or (is_guess and not may_guess):
            return {}
        ahead_bytes = self._ahead_bytes or GUESS_BYTES
        if goes_on:
            share = 1 if self._is_layer else STREAM_SHARE  # layers are read from their start in any case
            ahead_bytes = min(STREAM_BYTES_MAX, max(STREAM_BYTES_MIN, stream.taken_bytes // share))
        limit = self.places[last].end + ahead_bytes
        if self.places[max(last, stream.looked_to - 1)].end > limit - ahead_bytes // 2:
            return {}  # a request for each step would be many small ones
        found: dict[int, Place] = {}
        for index in range(max(last + 1, stream.looked_to), len(self.places)):
            place = self.places[index]
            if not self.places[last].end <= place.offset or place.end > limit:
                break
            if index not in self._flights and not self._fetcher.has(place):
                found[index] = place
            stream.looked_to = index + 1
        if is_guess:
            with self._lock:
                self._guessed.update(found)
                self._credit = min(GUESS_CREDIT, self._credit) - sum(place.length for place in found.values())
        return found

    def _follow(self, first: int, last: int, taken_bytes: int) -> tuple[_Stream, bool, bool]:
        """The stream that chunks ``first`` to ``last`` are asked for in; whether it was there before, and is
        further than that already.
        """
        stream = next((found for found in self._streams if -_STEPS_BACK <= first - found.end <= 1), None)
        goes_on, is_late = stream is not None, stream is not None and first < stream.end
        if stream is None:
            stream = _Stream(last + 1)
        else:
            self._streams.remove(stream)
        self._streams.append(stream)
        stream.end = max(stream.end, last + 1)
        stream.taken_bytes += 0 if is_late else taken_bytes
        return stream, goes_on, is_late

    def _claim(
        self, places: dict[int, Place], *, afresh: bool = False
    ) -> tuple[dict[int, Future[EncodedBytes]], dict[int, Future[EncodedBytes]]]:
        """Flights that are ours to bring home, and those of others, by index.

        One that has landed since the caller looked is one of others, unless ``afresh``.
        """
        claimed: dict[int, Future[EncodedBytes]] = {}
        joined: dict[int, Future[EncodedBytes]] = {}
        with self._lock:
            for index in places:
                flight = self._flights.get(index)
                if flight is None:
                    claimed[index] = self._flights[index] = Future()
                else:
                    joined[index] = flight
        if not afresh:
            for index in tuple(claimed):
                place = places[index]
                data = self._fetcher.known(place) if self._fetcher.has(place) else None
                if data is not None and (flight := self._ended(index)) is not None:
                    flight.set_result(data)
                    joined[index] = claimed.pop(index)
        return claimed, joined

    def _fetch(self, span: Sequence[int], places: dict[int, Place]) -> None:
        """Bring adjacent chunks home, each as soon as it is there; failures go to who waits."""
        left = list(span)
        try:
            try:
                self._stream(left, places)
            except DigestMismatch as error:  # of a layer that does not even decompress
                log.debug("%s", error)
            if left:
                where = places[left[0]].offset
                log.warning("%s: bytes at %d are not the sealed ones; asking the origin", self.name, where)
                self._fetcher.count(bad=len(left))
                wrong = self._stream(left, places, afresh=True)
                for index in tuple(left):
                    left.remove(index)
                    self._crash(index, self._mismatch(places[index], wrong.get(index, b"")))
        except BaseException as error:
            for index in left:
                self._crash(index, error)
            if not isinstance(error, RafsError):
                raise

    def _stream(self, left: list[int], places: dict[int, Place], *, afresh: bool = False) -> dict[int, bytes]:
        """Ask for these chunks and land those that are right, which takes them out of ``left``.

        Returns the digests of what came in place of the others.
        """
        waiting = deque(left)
        wrong: dict[int, bytes] = {}
        buffer = bytearray()
        position, end = places[left[0]].offset, places[left[-1]].end

        def take(data: bytes) -> None:
            nonlocal position
            buffer.extend(data)
            while waiting and position + len(buffer) >= places[waiting[0]].end:
                index = waiting.popleft()
                place = places[index]
                chunk = bytes(buffer[place.offset - position : place.end - position])
                del buffer[: place.end - position]
                position = place.end
                if (found := blake3(chunk).digest()) == place.chunk_id:
                    self._land(index, place, chunk)
                    left.remove(index)
                else:
                    wrong[index] = found

        self._file.stream_range(position, end - position, take, afresh=afresh)
        return wrong

    def _mismatch(self, place: Place, found: bytes) -> RafsError:
        return DigestMismatch(
            "what the store has is not what was sealed", expected=place.chunk_id.hex(), found=found.hex()
        ).at(blob=self.name, offset=place.offset)

    def _spans(self, indexes: Sequence[int], places: dict[int, Place]) -> list[list[int]]:
        """Runs of chunks that lie one behind the other in the file, no longer than one request."""
        gap_bytes = LAYER_GAP_BYTES if self._is_layer else 0
        found: list[list[int]] = []
        for index in indexes:
            place = places[index]
            if (
                found
                and found[-1][-1] == index - 1
                and 0 <= place.offset - places[index - 1].end <= gap_bytes
                and place.end - places[found[-1][0]].offset <= REQUEST_BYTES_MAX
            ):
                found[-1].append(index)
            else:
                found.append([index])
        return found

    @contextmanager
    def _ended_on_error(self, claimed: dict[int, Future[EncodedBytes]]) -> Iterator[None]:
        """Let nobody wait for spans that were not begun because something went wrong with one before them."""
        try:
            yield
        except BaseException as error:
            for index, flight in claimed.items():
                if self._flights.get(index) is flight:
                    self._crash(index, error)
            raise

    def _land(self, index: int, place: Place, data: bytes) -> None:
        self._fetcher.keep(place, data)
        if (flight := self._ended(index)) is not None:
            flight.set_result(EncodedBytes(data))

    def _crash(self, index: int, error: BaseException) -> None:
        if (flight := self._ended(index)) is not None:
            flight.set_exception(error)

    def _ended(self, index: int) -> Future[EncodedBytes] | None:
        """A flight that is over; None when it was ended already, because its reader failed."""
        with self._lock:
            return self._flights.pop(index, None)


def _landed(flight: Future[EncodedBytes]) -> EncodedBytes:
    try:
        return flight.result(READ_DEADLINE_S)
    except TimeoutError:
        raise StoreUnavailable("read took too long", expected=f"at most {READ_DEADLINE_S:g} s") from None
    except RafsError as error:
        raise error.copy().at(**_place_of(error)) from None


def _place_of(error: RafsError) -> dict[str, str | int]:
    where = error.where
    return {name: value for name in ("file", "blob", "offset") if (value := getattr(where, name)) is not None}
