"""One queue of a device: what the front end has set, the chains under way, their way to the device and back.

Everything is called on the thread that serves, but ``Chain.answer``. The lock of the device is held while
something changes that an answer looks at, never while the device works on a chain.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import RLock
from typing import Final

from vhost import limits, messages, signals
from vhost.complaints import Complaints
from vhost.dirty_log import DirtyLog
from vhost.errors import BadAddressError, BadRingError, GuestError, RefusedError
from vhost.inflight import InflightMemory, QueueInflight
from vhost.memory import Buffer, GuestMemory
from vhost.messages import Feature, VringAddr
from vhost.model import LATER, Answer, Chain, DeviceModel
from vhost.poller import Poller
from vhost.signals import Bell
from vhost.virtqueue import LENGTH_SHIFT, QueueOptions, SplitQueue

_POLLED: Final = -1  # in the place of a kick descriptor: there is none, look by yourself


@dataclass
class Shared:
    """What the queues of one device have in common."""

    model: DeviceModel
    poller: Poller
    complain: Complaints
    memory: GuestMemory
    lock: RLock = field(default_factory=RLock)
    features: Feature = field(default=Feature(0))
    log: DirtyLog | None = None
    inflight: InflightMemory | None = None


class Vring:
    """One queue. It runs from its start to its stop, and takes chains while it is enabled and whole."""

    def __init__(self, index: int, shared: Shared) -> None:
        self.index = index
        self.is_stopping = False
        """Whether the front end waits for what is under way."""
        self.pending: dict[int, Chain] = {}
        """Chains that the device answers later, by their heads."""
        self._shared = shared
        self._size = 0
        self._base = 0
        self._addresses: VringAddr | None = None
        self._is_enabled = False
        self._is_broken = False
        self._kick: int | None = None
        self._idle_kicks = 0  # in a row, that brought no chain
        self._call = Bell(shared.poller.kernel_signals)
        self._err = Bell(shared.poller.kernel_signals)
        self._ring: SplitQueue | None = None
        self._taking: SplitQueue | None = None  # the ring, while chains may be taken from it
        self._first: list[int] = []  # heads that were taken and not served yet
        self._notes: QueueInflight | None = None  # while the memory changes
        self._kept_at = 0.0  # when the last of ``pending`` was kept

    @property
    def is_running(self) -> bool:
        """Whether the queue was started and not stopped since."""
        return self._ring is not None

    @property
    def is_polled(self) -> bool:
        """Whether nobody will say when there are chains to take."""
        return self._kick == _POLLED and self._taking is not None

    # --- What the front end sets --------------------------------------------------------------------------

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM; raises RefusedError."""
        self._check_stopped()
        if not 0 < size <= limits.QUEUE_SIZE_MAX or size & (size - 1):
            raise RefusedError(
                "an impossible queue size",
                expected=f"a power of two up to {limits.QUEUE_SIZE_MAX}",
                found=size,
            )
        self._size = size
        self._addresses = None  # they were checked for another size

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE: the next chain to take; raises RefusedError."""
        self._check_stopped()
        if base > 0xFFFF:
            raise RefusedError("an impossible base of a split queue", found=base)
        self._base = base

    def set_addresses(self, addresses: VringAddr) -> None:
        """SET_VRING_ADDR, also while the queue runs; raises RefusedError."""
        if not self._size:
            raise RefusedError("addresses of a queue before its size")
        if addresses.descriptors % 16 or addresses.available % 2 or addresses.used % 4:
            raise RefusedError("a ring that is not aligned")
        try:
            self._map(addresses).release()
        except BadAddressError as error:
            raise RefusedError("a ring outside of the memory", found=error) from error
        with self._shared.lock:
            self.detach()
            self._addresses = addresses
            self.attach()
        self._update()

    def set_kick(self, descriptor: int | None) -> None:
        """SET_VRING_KICK; None means that the queue has to be polled. Owns the descriptor."""
        self._forget_kick()
        self._kick = _POLLED if descriptor is None else signals.adopt(descriptor)
        self._idle_kicks = 0
        self._update()

    def set_call(self, descriptor: int | None) -> None:
        """SET_VRING_CALL; None means that the guest looks by itself. Owns the descriptor."""
        with self._shared.lock:
            self._call.replace(descriptor)
            # A former back end may have ended between an answer and its call.
            if self._ring is not None:
                self._ring_call()

    def set_err(self, descriptor: int | None) -> None:
        """SET_VRING_ERR: to be signalled when the queue rests because of its driver. Owns the descriptor."""
        self._err.replace(descriptor)

    def set_enabled(self, is_enabled: bool) -> None:
        """SET_VRING_ENABLE."""
        self._is_enabled = is_enabled
        self._update()

    def set_log(self) -> None:
        """Note writes to the used ring, or no longer, as the device's log and the queue's flags say."""
        if self._ring is not None and self._addresses is not None:
            is_logged = self._addresses.flags & messages.VRING_LOG
            self._ring.set_log(self._shared.log if is_logged else None)

    def _check_stopped(self) -> None:
        if self._ring is not None:
            raise RefusedError("a queue that runs cannot be changed", found=f"queue {self.index}")

    # --- Start and stop -----------------------------------------------------------------------------------

    def detach(self) -> None:
        """Let go of the memory, which is about to change. The device's lock is held until ``attach``."""
        if self._ring is not None:
            self._base = self._ring.next_available
            self._notes, self._ring.inflight = self._ring.inflight, None
            self._ring.release()

    def attach(self) -> None:
        """Go on in the memory as it is now; a queue whose rings are not there any more is dropped."""
        if self._ring is None or self._addresses is None:
            return
        notes, self._notes = self._notes, None
        try:
            self._ring = self._map(self._addresses)
        except BadAddressError as error:
            self._shared.complain("queue %d has lost its memory: %s", self.index, error)
            if notes is not None:
                notes.close()
            self._addresses = None
            self.drop()
            return
        self._ring.inflight = notes
        self.set_log()
        self._update()

    def stop(self) -> bool:
        """Take no more chains; True when none is under way, else the caller has to wait for that."""
        self.is_stopping = True
        self._update()
        while self._first and self._ring is not None:
            heads, self._first = self._first, []
            self._serve(self._ring, heads, math.inf)
        return not self.pending

    def stopped(self) -> int:
        """End; returns the base to go on from. Chains that are still under way are answered no more."""
        base = self._base if self._ring is None else self._ring.next_available
        self._forget_kick()
        self.drop()
        self._base = base
        return base

    def drop(self) -> None:
        """Stop at once: chains under way are answered no more."""
        with self._shared.lock:
            for chain in self.pending.values():
                chain.is_open = False
            self.pending.clear()
            if self._ring is not None:
                self._ring.release()
                self._ring = None
        self._first.clear()
        self.is_stopping = self._is_broken = False
        self._take(None)

    def reset(self) -> None:
        """Be as in the beginning, but for where to call."""
        if self._ring is not None and self._ring.inflight is not None:
            self._ring.inflight.clear()
        self._forget_kick()
        self.drop()
        self._size = self._base = 0
        self._addresses = None
        self._is_enabled = False

    def close(self) -> None:
        """Stop at once, and close every descriptor; another back end may go on from here."""
        self._forget_kick()
        self.drop()
        with self._shared.lock:
            self._call.close()
        self._err.close()

    def _update(self) -> None:
        """Start when everything is there, and take chains or not, as the front end wants it now."""
        may_take = self._kick is not None and self._is_enabled and not self.is_stopping
        if may_take and self._ring is None and self._addresses is not None:
            self._start(self._addresses)
        self._take(self._ring if may_take and not self._is_broken else None)

    def _start(self, addresses: VringAddr) -> None:
        try:
            ring = self._map(addresses)
        except BadAddressError as error:
            raise RefusedError("a ring outside of the memory", found=error) from error
        inflight = self._shared.inflight
        notes = None if inflight is None else inflight.queue(self.index)
        if notes is not None:
            try:
                self._first = ring.recover(notes)
            except RefusedError:
                ring.release()
                raise
        with self._shared.lock:
            self._ring = ring
        self.set_log()

    def _map(self, addresses: VringAddr) -> SplitQueue:
        features = self._shared.features
        options = QueueOptions(
            event_idx=Feature.RING_EVENT_IDX in features,
            indirect=Feature.RING_INDIRECT_DESC in features,
            request_bytes_max=self._shared.model.request_bytes_max,
        )
        return SplitQueue(self._shared.memory, self._size, addresses, self._base, options)

    def _take(self, ring: SplitQueue | None) -> None:
        if self._kick is not None and self._kick != _POLLED:
            if ring is None:
                self._shared.poller.unwatch(self._kick)
            elif self._taking is None:
                self._shared.poller.watch(self._kick, self._kicked)
        self._taking = ring

    def _kicked(self, _events: int) -> None:
        assert self._kick is not None
        try:
            signals.clear(self._kick)
        except OSError as error:
            self._shared.complain("queue %d cannot be kicked any more: %s", self.index, error)
            self._forget_kick()
            return
        self._idle_kicks += 1
        if self._idle_kicks > limits.IDLE_KICKS_MAX:
            self._shared.complain("queue %d is kicked again and again for nothing: no more", self.index)
            self._forget_kick()

    def _forget_kick(self) -> None:
        kick, self._kick = self._kick, None
        if kick is not None and kick != _POLLED:
            self._shared.poller.unwatch(kick)
            os.close(kick)
        self._taking = None

    # --- Serving ------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether there is a chain to take."""
        taking = self._taking
        return taking is not None and (taking.has_work() or bool(self._first))

    def is_waiting(self, now: float) -> bool:
        """Whether the device has been given a chain just now that it will answer later."""
        return bool(self.pending) and now - self._kept_at < limits.PATIENCE_S

    def listen(self) -> None:
        """Have the guest kick for the next chain."""
        if self._taking is not None:
            self._taking.listen()

    def work(self, end: float) -> None:
        """Serve a batch of chains, at least one, until ``end`` by ``time.perf_counter``."""
        ring = self._taking
        if ring is None:
            return
        self._idle_kicks = 0
        if self._first:
            heads, self._first = self._first, []
        else:
            try:
                heads = ring.take(limits.BATCH_MAX)
                self._check_new(heads)
            except BadRingError as error:
                self._break(error)
                return
        self._serve(ring, heads, end)

    def _check_new(self, heads: list[int]) -> None:
        if len(set(heads)) < len(heads) or not self.pending.keys().isdisjoint(heads):
            raise BadRingError("a chain that is under way already")

    def _break(self, error: BadRingError) -> None:
        self._shared.complain("queue %d rests until its driver starts anew: %s", self.index, error)
        self._is_broken = True
        self._take(None)
        with suppress(OSError):  # the driver is told in vain; it is its own trouble
            self._err.ring()

    def _serve(self, ring: SplitQueue, heads: list[int], end: float) -> None:
        """Have chains answered; those that are not begun by ``end`` are left for the next turn."""
        entries = []
        clock = time.perf_counter
        for number, head in enumerate(heads):
            if number and clock() > end:
                self._first = heads[number:]
                break
            try:
                chain = Chain(self.index, head, ring.chain(head), self._answer)
            except GuestError as error:
                self._shared.complain("queue %d: a chain is returned unserved: %s", self.index, error)
                entries.append(head)
                continue
            outcome = self._handle(chain)
            if outcome is LATER:
                self._keep(chain)
            elif chain.is_open:
                chain.is_open = False
                entries.append(head | self._write(chain, outcome) << LENGTH_SHIFT)
        if entries:
            with self._shared.lock:
                self._put(ring, entries)

    def _handle(self, chain: Chain) -> Answer:
        try:
            return self._shared.model.handle(chain)
        except Exception as error:  # whatever it is, other guests are served here too
            self._shared.complain("queue %d: the device has failed", self.index, trace=error)
            return ()

    def _keep(self, chain: Chain) -> None:
        with self._shared.lock:
            if chain.is_open:  # it may have been answered already
                self.pending[chain.head] = chain
                self._kept_at = time.perf_counter()

    def _answer(self, chain: Chain, parts: Sequence[Buffer]) -> bool:
        """``Chain.answer``, on any thread."""
        with self._shared.lock:
            ring = self._ring
            if not chain.is_open or ring is None:
                return False
            chain.is_open = False
            self.pending.pop(chain.head, None)
            self._put(ring, [chain.head | self._write(chain, parts) << LENGTH_SHIFT])
        if self.is_stopping and not self.pending:
            self._shared.poller.wake()
        return True

    def _write(self, chain: Chain, parts: Sequence[Buffer]) -> int:
        """Write an answer into its chain; returns the bytes written, 0 when it cannot be."""
        try:
            length = sum(map(len, parts))
            if length > chain.room:
                self._shared.complain(
                    "queue %d: %d bytes of room for an answer of %d", self.index, chain.room, length
                )
                parts = self._shared.model.cut_short(chain)
                if sum(map(len, parts)) > chain.room:
                    return 0
            return self._shared.memory.scatter(parts, chain.spans)
        except GuestError as error:
            self._shared.complain("queue %d: a chain is returned empty: %s", self.index, error)
        except Exception as error:  # as above
            self._shared.complain("queue %d: the device's answer cannot be written", self.index, trace=error)
        return 0

    def _put(self, ring: SplitQueue, entries: list[int]) -> None:
        if ring.put(entries):
            self._ring_call()

    def _ring_call(self) -> None:
        try:
            self._call.ring()
        except OSError as error:
            self._shared.complain("queue %d cannot call its driver any more: %s", self.index, error)
