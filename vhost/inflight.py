"""Notes on requests under way in memory that outlives this process, and what follows from them after a crash.

The layout and the steps are those of QEMU docs/interop/vhost-user.rst, "Inflight I/O tracking", for split
virtqueues. Whoever has the memory may write to it, so nothing in it is believed further than it is checked.
"""

from __future__ import annotations

import struct
from typing import Final

from vhost import limits
from vhost.errors import RefusedError
from vhost.messages import InflightArea
from vhost.shared_memory import Mapping

_REGION: Final = struct.Struct("=QHHHH")  # features, version, descriptors, last batch's head, used index
_STATE: Final = struct.Struct("=B5xHQ")  # in flight, next of the last batch, counter
_VERSION: Final = 1
_ALIGNMENT: Final = 64  # of each queue's region, as in QEMU's libvhost-user

_BATCH_HEAD: Final = 6  # places in a region, in 16-bit words
_USED: Final = 7
_NEXT_WORD: Final = 3


def region_bytes(queue_size: int) -> int:
    """Size of one queue's region."""
    size = _REGION.size + _STATE.size * queue_size
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class InflightMemory:
    """The regions of all queues."""

    def __init__(self, area: InflightArea, descriptor: int, *, sealed_only: bool = False) -> None:
        """Map; the descriptor stays the caller's. Raises RefusedError."""
        check_shape(area)
        needed = area.queues * region_bytes(area.queue_size)
        if area.size < needed:
            raise RefusedError("too little memory for requests under way", expected=needed, found=area.size)
        self.queues = area.queues
        self.queue_size = area.queue_size
        self._mapping = Mapping(descriptor, offset=area.file_offset, size=needed, sealed_only=sealed_only)

    def queue(self, index: int) -> QueueInflight | None:
        """The notes of one queue, to be closed before this is; None when it has none."""
        if index >= self.queues:
            return None
        size = region_bytes(self.queue_size)
        start = self._mapping.skip + index * size
        return QueueInflight(memoryview(self._mapping.map)[start : start + size], self.queue_size)

    def close(self) -> None:
        """Unmap."""
        self._mapping.close()


def check_shape(area: InflightArea) -> None:
    """Refuse numbers of queues, or sizes, that cannot be."""
    if not 0 < area.queues <= limits.QUEUES_MAX or not 0 < area.queue_size <= limits.QUEUE_SIZE_MAX:
        raise RefusedError("notes on impossible queues", found=f"{area.queues} queues of {area.queue_size}")


class QueueInflight:
    """The notes of one queue. Not safe for several threads."""

    def __init__(self, region: memoryview, size: int) -> None:
        self.size = size
        self._bytes = region
        self._words = region.cast("H")
        self._counter = 0

    def close(self) -> None:
        """Give the memory back."""
        self._words.release()
        self._bytes.release()

    def clear(self) -> None:
        """Note nothing any more: what was under way is forgotten."""
        self._bytes[:] = bytes(len(self._bytes))

    def recover(self, used_index: int) -> list[int]:
        """Begin with ``used_index`` as it is in guest memory.

        Returns the heads of chains that a former back end took and did not give back, in the order of taking.
        Raises RefusedError when these are notes of something else.
        """
        _, version, descriptors, batch_head, noted_used = _REGION.unpack_from(self._bytes)
        if version == 0:
            self.clear()
            _REGION.pack_into(self._bytes, 0, 0, _VERSION, self.size, 0, used_index)
            return []
        if version != _VERSION or descriptors != self.size:
            raise RefusedError(
                "notes on requests of another queue",
                expected=f"version {_VERSION} for {self.size} descriptors",
                found=f"version {version} for {descriptors}",
            )
        # The last batch may have been given to the guest, but not yet crossed out here.
        for _ in range(min((used_index - noted_used) & 0xFFFF, self.size)):
            if batch_head >= self.size:
                break
            self._bytes[_place(batch_head)] = 0
            batch_head = self._words[_place(batch_head) // 2 + _NEXT_WORD]
        self._words[_USED] = used_index
        under_way = []
        for head in range(self.size):
            is_under_way, _, counter = _STATE.unpack_from(self._bytes, _place(head))
            if is_under_way:
                under_way.append((counter, head))
        under_way.sort()
        self._counter = min(under_way[-1][0] + 1 if under_way else 0, 1 << 63)
        return [head for _, head in under_way]

    def claim(self, heads: list[int]) -> None:
        """These were taken from the available ring, in this order."""
        for head in heads:
            # The counter first: as soon as the chain counts as under way its place in the order must stand.
            struct.pack_into("=Q", self._bytes, _place(head) + 8, self._counter)
            self._counter += 1
            self._bytes[_place(head)] = 1

    def finish(self, heads: list[int]) -> None:
        """These are about to be given back together: to be called before the used index moves."""
        words = self._words
        last = words[_BATCH_HEAD]
        for head in heads:
            words[_place(head) // 2 + _NEXT_WORD] = last
            words[_BATCH_HEAD] = last = head

    def finished(self, heads: list[int], used_index: int) -> None:
        """And now the guest has them."""
        for head in heads:
            self._bytes[_place(head)] = 0
        self._words[_USED] = used_index


def _place(head: int) -> int:
    return _REGION.size + _STATE.size * head
