"""Work spread over threads with results in order and little waiting; never looks at what the work is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

WAITING = 16  # a good bound: enough for as many cores as one interpreter lock can feed


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], *, waiting: int
) -> Iterator[R]:
    """``map(function, items)`` on the pool's threads, with at most ``waiting`` tasks or results at a time.

    Takes the next item only when there is room, so that neither a long input nor a slow consumer fills the
    memory. Raises what ``function`` raises, in its item's place; tasks under way then run to their end.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) >= waiting:
            yield pending.popleft().result()
        pending.append(pool.submit(function, item))
    while pending:
        yield pending.popleft().result()
