"""Whether to look for the next request or to sleep until it comes: pure decisions, looks at nothing itself.

Waking a sleeping thread on another core costs 150-300 us on a virtual machine (doc/adr/0005), so looking
again and again for about as long is worth it when requests follow each other closely, and only then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SPIN_MAX_S: Final = 200e-6  # about what a wake-up costs: looking for longer cannot pay
SPIN_MIN_S: Final = 20e-6  # less is as good as nothing
WORTH_S: Final = 2 * SPIN_MAX_S
"""A sleep that ended this soon after the last reply: looking would have found the request earlier."""

SUSPECT_S: Final = 50e-6  # to look once takes 2: who was away for longer has perhaps lost its core
CONTENTION_S: Final = 0.1
"""For how long not to look after somebody else took the core. Whoever burns its share of one in vain gets it
back late when it has something to do."""


class Lookout:
    """Decides for one thread; all times are those of one clock, in seconds.

    The time for which it looks becomes shorter as long as sleeping turns out to have been right, and is the
    longest again as soon as it was wrong.
    """

    def __init__(self, now: float, switches: Callable[[], int], spin_max_s: float = SPIN_MAX_S) -> None:
        """``switches`` counts how often the thread had to give its core to another.

        ``spin_max_s`` is 0 where nobody could make a request while we look: on a single core.
        """
        self._switches = switches
        self._switches_seen = switches()
        self._spin_max_s = spin_max_s
        self._spin_s = spin_max_s
        self._answered = now
        self._looked = now
        self._spin_again = now

    def answered(self, now: float) -> None:
        """A request was answered just now."""
        self._answered = self._looked = now

    def looks_again(self, now: float) -> bool:
        """Say whether to look again at once; False to sleep."""
        if now - self._answered >= self._spin_s:
            return False
        looked, self._looked = self._looked, now
        if now - looked < SUSPECT_S:
            return True
        before, self._switches_seen = self._switches_seen, self._switches()
        if self._switches_seen == before:
            return True  # an interrupt, or the hypervisor's doing
        self._spin_s = 0.0
        self._spin_again = now + CONTENTION_S
        return False

    def slept(self, now: float) -> None:
        """A sleep has ended just now."""
        if now - self._answered >= WORTH_S:
            self._spin_s = self._spin_s / 2 if self._spin_s > SPIN_MIN_S else 0.0
        elif now >= self._spin_again:
            self._spin_s = self._spin_max_s
