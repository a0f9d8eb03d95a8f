"""One decode for each chunk however many readers wait for it; knows nothing of what is decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from rafsfs.errors import RafsError, StoreUnavailable

K = TypeVar("K")
V = TypeVar("V")


class Inflight(Generic[K, V]):
    """Joins concurrent requests for the same key. The first caller works on its thread, the others wait."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._flights: dict[K, Future[V]] = {}

    def get(self, key: K, work: Callable[[], V]) -> V:
        """The result of ``work`` for ``key``, done once for all who ask while it runs.

        A failure reaches all of them and is forgotten with the flight. Raises what ``work`` raises, or
        StoreUnavailable when somebody else's work takes longer than the deadline.
        """
        with self._lock:
            flight = self._flights.get(key)
            owner = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not owner:
            try:
                return flight.result(self._deadline_s)
            except TimeoutError:
                raise StoreUnavailable(
                    "read took too long", expected=f"at most {self._deadline_s:g} s"
                ) from None
            except RafsError as error:
                raise error.copy() from None
        try:
            result = work()
        except BaseException as error:
            self._end(key)
            flight.set_exception(error)
            raise
        self._end(key)
        flight.set_result(result)
        return result

    def _end(self, key: K) -> None:
        with self._lock:
            del self._flights[key]
