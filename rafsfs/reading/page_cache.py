"""The verified page cache: decoded chunks and metadata pages within a byte budget; holds nothing unverified.

Eviction is 2Q (Johnson and Shasha, VLDB 1994): what was read once lives in a first-in-first-out queue, and
only what is asked for again after it left that queue enters the main, least-recently-used one. Several reads
of one chunk in a row, as a scan makes them, count as one; so a scan of any length passes through the queue
and flushes nothing. The queue is short even where the budget has room: what was read once is in the cache of
the kernel above us, and memory that was used before is faster than memory that was not (doc/adr/0013). It
becomes longer when that was wrong: when what has left it is asked for again, as by readers who share a tree.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from rafsfs.limits import MIB
from rafsfs.reading.statistics import ReadStatistics
from rafsfs.types import VerifiedBytes

Key = tuple[int, int]
"""(blob index, chunk index) of a chunk; (METADATA, page number) of a metadata page."""

METADATA = -1

RECENT_BYTES_MAX = 32 * MIB
"""What the queue holds at most, to begin with: eight streams of read-ahead."""

_RECENT_GROWTH = 4  # times what was asked for again: 32 chunks that were decoded twice make it twice as long
_RECENT_MOST = 2  # at the longest, half of the budget

_RECENT_SHARE = 4  # the queue gives up its entries first once it holds a quarter of the budget (2Q's Kin)
_GHOST_SHARE = 2  # keys are remembered for half a budget's worth of what left the queue (2Q's Kout)
_WARM_SHARE = 4  # of the budget a quarter is left to readers: what is put in for later stops there
ENTRY_OVERHEAD_BYTES = 300  # key, dict slots and the bytes object's header, as sys.getsizeof has them


class _Queue:
    """Entries in the order in which they came, or were moved to the end, and what all of them cost."""

    __slots__ = ("cost", "entries")

    def __init__(self) -> None:
        self.entries: OrderedDict[Key, VerifiedBytes] = OrderedDict()
        self.cost = 0

    def add(self, key: Key, data: VerifiedBytes) -> None:
        self.entries[key] = data
        self.cost += _cost(data)

    def remove(self, key: Key) -> VerifiedBytes:
        data = self.entries.pop(key)
        self.cost -= _cost(data)
        return data

    def oldest_but(self, key: Key) -> Key | None:
        """The first to go; None where it is ``key``, or there is none."""
        first = next(iter(self.entries), key)
        return None if first == key else first


class PageCache:
    """Maps keys to verified bytes; safe for any number of threads.

    ``statistics`` are for those to count who put something in.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.statistics = ReadStatistics()
        self.chunk_hits = 0  # look-ups that found something
        self.page_hits = 0
        self.evictions = 0
        self._lock = threading.Lock()
        self._recent_bytes_max = RECENT_BYTES_MAX
        self._recent = _Queue()
        self._main = _Queue()
        self._offered = _Queue()  # nobody has asked for these yet
        self._ghosts: OrderedDict[Key, int] = OrderedDict()
        self._ghost_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What the cached bytes occupy, bookkeeping included; never above the budget."""
        with self._lock:
            return self._used()

    def _used(self) -> int:
        return self._recent.cost + self._main.cost + self._offered.cost

    def get(self, key: Key) -> VerifiedBytes | None:
        """The bytes, or None when they are not here."""
        with self._lock:
            data = self._main.entries.get(key)
            if data is not None:
                self._main.entries.move_to_end(key)
            else:
                data = self._recent.entries.get(key)
                if data is None:
                    if key not in self._offered.entries:
                        return None
                    data = self._offered.remove(key)
                    self._insert(key, data)
            if key[0] == METADATA:
                self.page_hits += 1
            else:
                self.chunk_hits += 1
            return data

    def holds(self, key: Key) -> bool:
        """Whether the bytes are here; no reader wants them now, so this changes nothing."""
        return key in self._main.entries or key in self._recent.entries or key in self._offered.entries

    def put(self, key: Key, data: VerifiedBytes) -> None:
        """Keep the bytes, letting others go until the budget holds; what alone exceeds it is not kept."""
        if _cost(data) > self.budget_bytes:
            return
        with self._lock:
            if not self.holds(key):
                self._insert(key, data)

    def _insert(self, key: Key, data: VerifiedBytes) -> None:
        if key in self._ghosts:
            cost = self._ghosts.pop(key)
            self._ghost_bytes -= cost
            longer = min(self._recent_bytes_max + _RECENT_GROWTH * cost, self.budget_bytes // _RECENT_MOST)
            self._recent_bytes_max = max(self._recent_bytes_max, longer)
            self._main.add(key, data)
        else:
            self._recent.add(key, data)
        recent, most = self._recent, self._recent_bytes_max
        while recent.cost > most and (oldest := recent.oldest_but(key)):
            self._forget(oldest)
        while self._used() > self.budget_bytes:
            self._evict(newest=key)

    def keep_all(self) -> None:
        """Let go for nothing but the budget from now on, for who wants no store to be asked again."""
        with self._lock:
            self._recent_bytes_max = self.budget_bytes

    def has_room(self, length: int) -> bool:
        """Whether so many bytes can be put in for later, and nothing has to go for them."""
        used = self._used() + length + ENTRY_OVERHEAD_BYTES
        return used <= self.budget_bytes - self.budget_bytes // _WARM_SHARE

    def offer(self, key: Key, data: VerifiedBytes) -> None:
        """Keep the bytes if there is room for them; nobody has asked for them yet, so nothing has to go.

        They stay until somebody asks for them, whatever is scanned meanwhile, or readers need the room.
        """
        with self._lock:
            if not self.holds(key) and self.has_room(len(data)):
                self._offered.add(key, data)

    def _evict(self, newest: Key) -> None:
        """Let one go, but not the one for which room is made: who reads a large chunk comes back for more."""
        offered = self._offered.oldest_but(newest)
        recent, main = self._recent.oldest_but(newest), self._main.oldest_but(newest)
        if offered is not None:
            self._offered.remove(offered)
            self.evictions += 1
        elif recent is not None and (self._recent.cost > self.budget_bytes // _RECENT_SHARE or main is None):
            self._forget(recent)
        else:
            assert main is not None  # alone it would be within the budget
            self._main.remove(main)
            self.evictions += 1

    def _forget(self, key: Key) -> None:
        """Let one of the recent go, and remember its key."""
        cost = self._ghosts[key] = _cost(self._recent.remove(key))
        self._ghost_bytes += cost
        while self._ghost_bytes > self.budget_bytes // _GHOST_SHARE:
            self._ghost_bytes -= self._ghosts.popitem(last=False)[1]
        self.evictions += 1


def _cost(data: VerifiedBytes) -> int:
    return len(data) + ENTRY_OVERHEAD_BYTES
