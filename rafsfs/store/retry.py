"""When a failed attempt at a store is tried again, and when it is given up; knows no protocol.

Waits grow exponentially with full jitter, so that the nodes of a cluster do not come back in step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from rafsfs.errors import StoreUnavailable
from rafsfs.limits import STORE_RATE_MIN_BYTES_PER_S

T = TypeVar("T")

_FIRST_WAIT_S: Final = 0.1
_WAIT_MAX_S: Final = 5.0


class Deadline:
    """A moment after which nobody waits any more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds until then; 0 or less when it is over."""
        return self._at - time.monotonic()

    def came(self, count: int) -> None:
        """So many bytes came in; see ``Share``."""


class Share(Deadline):
    """What one of several hosts may take of a deadline: little, unless it keeps to a rate.

    A host that sends a byte now and then would take all of it from those behind it.
    """

    def __init__(self, whole: Deadline, seconds: float) -> None:
        super().__init__(min(seconds, whole.left_s() / 2))
        self._whole = whole

    def left_s(self) -> float:
        """See ``Deadline.left_s``."""
        return min(super().left_s(), self._whole.left_s())

    def came(self, count: int) -> None:
        """Allow the time that these bytes take at the lowest rate."""
        self._at += count / STORE_RATE_MIN_BYTES_PER_S


class TryAgain(Exception):
    """An attempt failed as another one may not. ``after_s`` is how long the store asked us to wait."""

    def __init__(self, error: StoreUnavailable, after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s


def retried(work: Callable[[], T], deadline: Deadline, attempts: int) -> T:
    """What ``work`` returns, tried until the deadline or so many times while it raises TryAgain.

    Raises what else it raises at once, or in the end the last attempt's StoreUnavailable.
    """
    for attempt in range(attempts):
        try:
            return work()
        except TryAgain as again:
            wait_s = again.after_s
            if wait_s is None:
                wait_s = random.uniform(0, min(_WAIT_MAX_S, _FIRST_WAIT_S * 2**attempt))  # noqa: S311
            if attempt + 1 == attempts or wait_s >= deadline.left_s():
                raise _given_up(again, attempt + 1, deadline) from None
        time.sleep(wait_s)
    raise AssertionError("there is at least one attempt")


def _given_up(last: TryAgain, attempts: int, deadline: Deadline) -> StoreUnavailable:
    error = last.error
    if last.after_s is not None:
        error.hint = f"it asked to wait for {last.after_s:g} s"
    elif attempts > 1:
        error.hint = f"tried {attempts} times within {deadline.seconds - max(0, deadline.left_s()):.1f} s"
    return error
