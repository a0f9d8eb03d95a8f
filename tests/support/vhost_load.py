"""A load generator for virtqueues: the same requests again and again, as many at a time as are asked for.

It looks at the used ring without a pause and asks for no interrupts, so it measures the back end, and itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from support.vhost_frontend import D_INDIRECT, D_WRITE, TIMEOUT_S, Queue, pack_table


class Load(NamedTuple):
    requests: int
    seconds: float
    kicks: int
    latencies_s: list[float]

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def latency_us(self, quantile: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1e6


def run_load(
    queues: Sequence[Queue], requests: int, *, readable: Sequence[bytes], room: Sequence[int], depth: int = 1
) -> Load:
    """Have every queue answer so many requests, ``depth`` of them being under way at any time."""
    chains = [_Chains(queue, depth, readable, room) for queue in queues]
    kicks = 0
    begun: dict[tuple[int, int], float] = {}
    latencies: list[float] = []
    clock = time.perf_counter
    start = progress = clock()
    for chain in chains:
        old = chain.queue.next_available
        chain.queue.offer(*chain.heads)
        kicks += chain.queue.notify(old)
        for head in chain.heads:
            begun[chain.queue.index, head] = clock()
    unsent = {chain.queue.index: requests - depth for chain in chains}
    left = len(chains) * requests
    while left:
        for chain in chains:
            queue = chain.queue
            done = queue.collect()
            if not done:
                continue
            now = progress = clock()
            left -= len(done)
            again = [head for head, _ in done[: unsent[queue.index]]]
            for head, length in done:
                assert length == chain.expected or chain.expected is None, length
                latencies.append(now - begun[queue.index, head])
            if again:
                unsent[queue.index] -= len(again)
                old = queue.next_available
                queue.offer(*again)
                kicks += queue.notify(old)
                for head in again:
                    begun[queue.index, head] = now
        if clock() - progress > TIMEOUT_S:
            raise TimeoutError(f"{left} requests were not answered")
    return Load(len(chains) * requests, clock() - start, kicks, latencies)


class _Chains:
    """Indirect chains that are offered again and again."""

    def __init__(self, queue: Queue, depth: int, readable: Sequence[bytes], room: Sequence[int]) -> None:
        self.queue = queue
        self.heads = list(range(depth))
        self.expected: int | None = None
        memory = queue.memory
        for head in self.heads:
            spans = []
            for part in readable:
                address = memory.allocate(len(part), 8)
                memory.write(address, part)
                spans.append((address, len(part), 0))
            spans += [(memory.allocate(size, 8), size, D_WRITE) for size in room]
            table = memory.allocate(16 * len(spans))
            memory.write(table, pack_table(spans))
            queue.put_descriptor(head, table, 16 * len(spans), D_INDIRECT)
