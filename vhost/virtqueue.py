"""A split virtqueue in guest memory: takes chains off the available ring, puts them on the used ring.

Virtio 1.2, 2.7; constants from linux/virtio_ring.h. It neither waits nor signals. The guest may change any
byte at any time: every number is read once, into Python, and then checked. The rings' indexes are read and
written as whole 16-bit words (``memoryview.cast``): ``struct`` with a byte order takes them apart.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from vhost.dirty_log import DirtyLog
from vhost.errors import BadChainError, BadRingError, RefusedError
from vhost.inflight import QueueInflight
from vhost.limits import CHAIN_DESCRIPTORS_MAX
from vhost.memory import GuestMemory, Span
from vhost.messages import VringAddr
from vhost.ordering import IS_STRONGLY_ORDERED, fence

_DESCRIPTOR: Final = Struct("<QIHH")  # address, length, flags, next
_DESCRIPTOR_BITS: Final = 4
_NEXT: Final = 1
_WRITE: Final = 2
_INDIRECT: Final = 4

_FLAGS: Final = 0  # places in either ring, in 16-bit words
_INDEX: Final = 1
_RING: Final = 2
_NO_INTERRUPT: Final = 1  # VRING_AVAIL_F_NO_INTERRUPT
_NO_NOTIFY: Final = 1  # VRING_USED_F_NO_NOTIFY

_USED_HEAD_BYTES: Final = 4
_USED_ENTRY_BYTES: Final = 8
LENGTH_SHIFT: Final = 32
"""An entry of the used ring as one number: the head, and the bytes written above this bit."""


class QueueOptions(NamedTuple):
    """What was negotiated for a queue, and the most bytes that the readable part of a chain may have."""

    event_idx: bool
    indirect: bool
    request_bytes_max: int


class SplitQueue:
    """One virtqueue that is in use. One thread takes and listens; ``put`` wants a lock of the caller's."""

    def __init__(
        self, memory: GuestMemory, size: int, addresses: VringAddr, next_available: int, options: QueueOptions
    ) -> None:
        """``size`` is a power of two. Raises BadAddressError."""
        self.size = size
        self.next_available = next_available
        """Index of the next chain to take, counted on without end and cut to 16 bits."""
        self.inflight: QueueInflight | None = None
        self._memory = memory
        self._options = options
        self._event_idx = options.event_idx
        self._mask = size - 1
        self._log_address = addresses.log
        self._views: list[memoryview] = []
        try:
            table = self._view(addresses.descriptors, size << _DESCRIPTOR_BITS)
            available = self._view(addresses.available, 2 * (_RING + size + 1))
            used = self._view(addresses.used, _USED_HEAD_BYTES + _USED_ENTRY_BYTES * size + 2)
        except BaseException:
            self.release()
            raise
        self._table = table
        self._available = self._keep(available.cast("H"))
        self._used = self._keep(used.cast("H"))
        self._entries = self._keep(self._keep(used[_USED_HEAD_BYTES:-2]).cast("Q"))
        self._used_event = _RING + size
        self._available_event = len(self._used) - 1
        self._log: DirtyLog | None = None
        # Where a former back end has left off, or 0 after the guest's start.
        self.used_index = self._used[_INDEX]
        self._is_quiet = self._used[_FLAGS] != 0  # as a back end may have left it that was killed

    def release(self) -> None:
        """Let go of the memory; the queue is of no use any more."""
        if self.inflight is not None:
            self.inflight.close()
            self.inflight = None
        while self._views:
            self._views.pop().release()

    def _view(self, address: int, size: int) -> memoryview:
        return self._keep(self._memory.user_view(address, size))

    def _keep(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def set_log(self, log: DirtyLog | None) -> None:
        """Note writes to the used ring from now on, or no longer."""
        self._log = log

    def recover(self, inflight: QueueInflight) -> list[int]:
        """Note from now on which chains are under way; returns the heads that are to be served again first.

        Raises RefusedError. Owns ``inflight`` from now on.
        """
        self.inflight = inflight
        heads = inflight.recover(self.used_index)
        if inflight.size < self.size or max(heads, default=0) >= self.size:
            raise RefusedError(
                "notes on requests of a smaller queue", expected=self.size, found=inflight.size
            )
        self.next_available = (self.used_index + len(heads)) & 0xFFFF
        return heads

    # --- Taking -----------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether the guest has made a chain available that was not taken yet."""
        return self._available[_INDEX] != self.next_available

    def take(self, most: int) -> list[int]:
        """Heads of the next chains, at most so many; raises BadRingError when the ring contradicts itself."""
        first = self.next_available
        count = (self._available[_INDEX] - first) & 0xFFFF
        if not count:
            return []
        if count > self.size:
            raise BadRingError(
                "the available index runs wild", expected=f"at most {self.size} ahead", found=count
            )
        if not IS_STRONGLY_ORDERED:
            fence()  # the entries are not read before the index that says they are there
        if not self._event_idx and not self._is_quiet:
            self._set_quiet(True)
        count = min(count, most)
        start = first & self._mask
        end = start + count
        if count == 1:
            heads = [self._available[_RING + start]]
        elif end <= self.size:
            heads = self._available[_RING + start : _RING + end].tolist()
        else:
            heads = self._available[_RING + start : _RING + self.size].tolist()
            heads += self._available[_RING : _RING + end - self.size].tolist()
        if max(heads) >= self.size:
            raise BadRingError("a chain that begins nowhere", expected=f"below {self.size}", found=max(heads))
        if self.inflight is not None:
            self.inflight.claim(heads)
        self.next_available = (first + count) & 0xFFFF
        return heads

    def chain(self, head: int) -> tuple[bytes, list[Span], int]:
        """Read a chain: its readable part, copied; its writable spans, and how many bytes they hold.

        Raises BadChainError or BadAddressError. The addresses of the spans are not looked at yet.
        """
        parts: list[bytes] = []
        spans: list[Span] = []
        total = room = 0
        table: memoryview | bytes = self._table
        left = limit = self.size
        index = head
        is_indirect = False
        unpack, read, total_max = _DESCRIPTOR.unpack_from, self._memory.read, self._options.request_bytes_max
        while True:
            address, length, flags, following = unpack(table, index << _DESCRIPTOR_BITS)
            if flags & _INDIRECT:
                if is_indirect:
                    raise BadChainError("an indirect table within another")
                table = self._indirect_table(address, length, flags)
                left = limit = length >> _DESCRIPTOR_BITS
                index = 0
                is_indirect = True
                continue
            if flags & _WRITE:
                spans.append((address, length))
                room += length
            elif spans:
                raise BadChainError("a readable part behind a writable one")
            else:
                total += length
                if total > total_max:
                    raise BadChainError("a request that is too long", expected=f"at most {total_max} bytes")
                if length:
                    parts.append(read(address, length))
            if not flags & _NEXT:
                return parts[0] if len(parts) == 1 else b"".join(parts), spans, room
            left -= 1
            if following >= limit or not left:
                raise BadChainError(
                    "a chain without an end", expected=f"at most {limit} descriptors", found=following
                )
            index = following

    def _indirect_table(self, address: int, length: int, flags: int) -> bytes:
        """Copy an indirect table, so that it cannot change any more."""
        if not self._options.indirect or flags & _NEXT:
            raise BadChainError("an indirect table where none may be")
        most = max(self.size, CHAIN_DESCRIPTORS_MAX) << _DESCRIPTOR_BITS
        if not 0 < length <= most or length % _DESCRIPTOR.size:
            raise BadChainError(
                "an indirect table of a wrong size", expected=f"1 to {most // _DESCRIPTOR.size} descriptors"
            )
        return self._memory.read_whole(address, length)

    # --- Giving back ------------------------------------------------------------------------------------

    def put(self, entries: list[int]) -> bool:
        """Give chains back, as entries of the used ring (``LENGTH_SHIFT``). True: the guest wants a call."""
        old = index = self.used_index
        mask, ring = self._mask, self._entries
        for entry in entries:
            ring[index & mask] = entry
            index += 1
        heads: list[int] = []
        if self.inflight is not None:
            heads = [entry & 0xFFFF_FFFF for entry in entries]
            self.inflight.finish(heads)
        if not IS_STRONGLY_ORDERED:
            fence()  # neither the index nor what follows is seen before the entries and what they speak of
        self._used[_INDEX] = self.used_index = index = index & 0xFFFF
        if self.inflight is not None:
            self.inflight.finished(heads, index)
        if self._log is not None:
            self._log_entries(old, len(entries))
        # The guest first says up to where it has looked, and then looks again; we the other way round. One of
        # both sees the other, if neither's look overtakes its word.
        fence()
        if not self._event_idx:
            return not self._available[_FLAGS] & _NO_INTERRUPT
        wanted = self._available[self._used_event]
        return (index - wanted - 1) & 0xFFFF < (index - old) & 0xFFFF

    def listen(self) -> None:
        """Ask the guest to kick for the next chain; then a ``fence`` and a look at ``has_work`` are due."""
        if self._event_idx:
            if self._used[self._available_event] != self.next_available:
                self._used[self._available_event] = self.next_available
                self._log_used(2 * self._available_event, 2)
        elif self._is_quiet:
            self._set_quiet(False)

    def _set_quiet(self, is_quiet: bool) -> None:
        """Tell the guest not to kick, or to kick; for one that does not know EVENT_IDX."""
        self._is_quiet = is_quiet
        self._used[_FLAGS] = _NO_NOTIFY if is_quiet else 0
        self._log_used(2 * _FLAGS, 2)

    def _log_entries(self, first: int, count: int) -> None:
        start = first & self._mask
        until_end = min(count, self.size - start)
        self._log_used(_USED_HEAD_BYTES + start * _USED_ENTRY_BYTES, until_end * _USED_ENTRY_BYTES)
        if count > until_end:
            self._log_used(_USED_HEAD_BYTES, (count - until_end) * _USED_ENTRY_BYTES)
        self._log_used(2 * _INDEX, 2)

    def _log_used(self, place: int, size: int) -> None:
        if self._log is not None:
            self._log.mark(self._log_address + place, size)
