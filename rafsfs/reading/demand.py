"""Knows whether a reader waits for data, so that work for later can step aside; decides nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Demand:
    """A reader is in its ``with`` as long as it waits. Any number of threads may be."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0

    def __enter__(self) -> None:
        with self._changed:
            self._waiting += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._waiting -= 1
            if not self._waiting:
                self._changed.notify_all()

    def wait_for_none(self, given_up: Callable[[], bool]) -> None:
        """Return when no reader waits, or ``given_up`` says so; who changes what it says calls ``wake``."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or given_up())

    def wake(self) -> None:
        """Have all who wait look again."""
        with self._changed:
            self._changed.notify_all()
