"""How many requests of each kind were answered, and how long each took; counts, and never looks at a clock.

Counting takes no lock. One thread writes a row at a time, or nearly: should two ever meet in the middle of an
addition, a count is lost, and nothing but these numbers depends on it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

BUCKETS: Final = 64
"""Bucket N counts what took less than 2^N microseconds, and not less than half of that; N is the bit length
of the whole microseconds. No time that a clock can show is longer than the last."""

SUM: Final = BUCKETS
"""The place behind the buckets: nanoseconds in all."""

Row: TypeAlias = "list[int]"
"""One kind of request: the buckets, and the sum. Whoever counts writes
``row[(took_ns // 1000).bit_length()] += 1`` and ``row[SUM] += took_ns`` in place, without a call."""


class Latencies(NamedTuple):
    """What was counted of one kind of request. ``buckets`` has (bound in microseconds, count), none empty."""

    requests: int
    seconds: float
    buckets: tuple[tuple[int, int], ...]


WAITED: Final = "read_waited"
"""The name under which reads that had to wait are counted, until they had an answer."""


class RequestStatistics:
    """Rows by the names of requests, which are those of FUSE's opcodes in small letters."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def row(self, name: str) -> Row:
        """Where to count requests of this name; always the same list for one name."""
        return self._rows.setdefault(name, [0] * (BUCKETS + 1))

    def add(self, name: str, took_ns: int) -> None:
        """Count one request, where a call more does not matter."""
        row = self.row(name)
        row[(took_ns // 1000).bit_length()] += 1
        row[SUM] += took_ns

    def latencies(self) -> dict[str, Latencies]:
        """What was counted so far, by name; without what was never asked for."""
        found = {}
        for name, row in sorted(self._rows.items()):
            counted = row[:]  # at one moment, while others count
            buckets = tuple((1 << place, count) for place, count in enumerate(counted[:BUCKETS]) if count)
            if buckets:
                total = sum(count for _, count in buckets)
                found[name] = Latencies(total, counted[SUM] / 1e9, buckets)
        return found
