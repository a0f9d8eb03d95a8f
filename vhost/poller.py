"""The thread that serves: looks for work while there is some, then sleeps until a descriptor wakes it.

Waking a sleeping thread on another core of a virtual machine costs ten times what a small request costs here,
so the thread looks again and again for a while before it sleeps, and guests are not asked to kick meanwhile.
The while becomes shorter as long as sleeping turns out to have been right; an idle poller costs nothing.
"""

from __future__ import annotations

import logging
import math
import os
import select
import time
from collections.abc import Callable
from typing import Final, Protocol

from vhost.kernel_signals import KernelSignals
from vhost.ordering import fence

log = logging.getLogger("vhost")

SPIN_MAX_S: Final = 200e-6  # about what a wake-up costs: looking for longer cannot pay
SPIN_MIN_S: Final = 20e-6  # less is as good as nothing
WORTH_S: Final = 2 * SPIN_MAX_S
"""A sleep that ended this soon after the last work: looking would have found the next earlier."""

LOOK_S: Final = 100e-6  # between two looks at descriptors, which cost a microsecond each, while we are busy


class Source(Protocol):
    """Whose queues are looked at, beside descriptors. One that raises is looked at no longer."""

    def work(self) -> bool:
        """Do what there is to do, for a moment; False when there was nothing."""

    def listen(self) -> None:
        """Have a descriptor signalled when there is something to do, from now on."""

    def has_work(self) -> bool:
        """Whether there is something to do after all."""

    def is_waiting(self, now: float) -> bool:
        """Whether other threads are at work for it: they need the interpreter, and the core."""

    def tick(self, now: float) -> float:
        """Do what is due by ``time.perf_counter``; returns when to come again, infinity for never."""

    def fail(self) -> None:
        """End: one of the other methods has raised, which is a mistake of ours."""


class Poller:
    """One thread for any number of sources. Only ``wake`` and ``stop`` may be called from other threads."""

    def __init__(self, *, spin_max_s: float | None = None) -> None:
        """``spin_max_s``: for how long to look before sleeping; on one core nobody could ask meanwhile."""
        if spin_max_s is None:
            spin_max_s = SPIN_MAX_S if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._spin_max_s = spin_max_s
        self._sources: tuple[Source, ...] = ()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._poll = select.poll()
        self._is_stopped = False
        self.kernel_signals = KernelSignals()
        """For the sources: what they signal must not hang this thread."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._wake, self._woken)

    def close(self) -> None:
        """Close what is the poller's own, once ``run`` has returned."""
        self.unwatch(self._wake)
        os.close(self._wake)
        self.kernel_signals.close()

    def attach(self, source: Source) -> None:
        """Look at this one too."""
        self._sources = (*self._sources, source)

    def detach(self, source: Source) -> None:
        """Look at this one no longer."""
        self._sources = tuple(other for other in self._sources if other is not source)

    def watch(self, descriptor: int, callback: Callable[[int], None], events: int = select.POLLIN) -> None:
        """Call back with the events that poll(2) reports, from now on. The callback must not raise."""
        self._watched[descriptor] = callback
        self._poll.register(descriptor, events)

    def unwatch(self, descriptor: int) -> None:
        """And no longer; nothing happens when it was not watched."""
        if self._watched.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def call_after(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back once, after so long. The callback must not raise."""
        self._timers.append((time.perf_counter() + delay_s, callback))

    def wake(self) -> None:
        """Have every source ticked soon."""
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Have ``run`` return soon; may be called from a signal handler."""
        self._is_stopped = True
        self.wake()

    def run(self) -> None:
        """Serve until ``stop``."""
        clock = time.perf_counter
        spin_s = self._spin_max_s
        last = looked = clock()
        while not self._is_stopped:
            is_idle = True
            for source in self._sources:
                try:
                    if source.work():
                        is_idle = False
                except Exception:
                    self._fail(source)
            now = clock()
            if not is_idle:
                last = now
            elif now - last >= spin_s or any(source.is_waiting(now) for source in self._sources):
                self._sleep(now)
                looked = clock()
                if looked - last < WORTH_S:
                    spin_s = self._spin_max_s
                else:
                    spin_s = spin_s / 2 if spin_s > SPIN_MIN_S else 0.0
                continue
            if now - looked > LOOK_S:
                looked = now
                self._tick(now)
                self._look(0)

    def _fail(self, source: Source) -> None:
        log.exception("a mistake of ours ends a connection")
        self.detach(source)
        self._guard(source.fail)

    def _guard(self, callback: Callable[[], None]) -> None:
        """Call what has nobody else to tell of its failure: others are served on this thread too."""
        try:
            callback()
        except Exception:
            log.exception("a mistake of ours")

    def _tick(self, now: float) -> float:
        """Do what is due; returns when something will be."""
        again = math.inf
        for source in self._sources:
            try:
                again = min(again, source.tick(now))
            except Exception:
                self._fail(source)
        due = [callback for when, callback in self._timers if when <= now]
        if self._timers:
            self._timers = [timer for timer in self._timers if timer[0] > now]
            again = min(again, *(when for when, _ in self._timers), math.inf)
        for callback in due:
            self._guard(callback)
        return now if due else again

    def _sleep(self, now: float) -> None:
        """Sleep, unless a guest has found work for us before it knew that it has to kick."""
        again = self._tick(now)
        for source in self._sources:
            try:
                source.listen()
            except Exception:
                self._fail(source)
        # Our word has to be visible before we look, or both sides miss each other and sleep for ever.
        fence()
        for source in self._sources:
            try:
                if source.has_work():
                    again = now
            except Exception:
                self._fail(source)
        self._look(None if again == math.inf else math.ceil(max(0.0, again - now) * 1000))

    def _look(self, timeout_ms: int | None) -> None:
        for descriptor, events in self._poll.poll(timeout_ms):
            callback = self._watched.get(descriptor)
            if callback is None:  # an earlier callback has closed it
                continue
            try:
                callback(events)
            except Exception:
                log.exception("a mistake of ours: descriptor %d is watched no longer", descriptor)
                self.unwatch(descriptor)

    def _woken(self, _events: int) -> None:
        os.eventfd_read(self._wake)
