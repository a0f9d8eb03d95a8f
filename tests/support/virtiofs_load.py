"""Measures cached 4 KiB reads over virtio-fs without a guest: ``python -m support.virtiofs_load SOCKET ...``.

It is a process of its own, for it needs a core as the server does. One line of JSON is its result.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from support import fuse_wire as wire
from support.fuse_client import FuseClient
from support.vhost_load import run_load
from support.virtiofs_guest import Guest

BLOCK = 4096
READ_BYTES = 1 << 20


def measure(path: Path, name: bytes, *, queues: int, depth: int, requests: int) -> dict[str, float]:
    """Read blocks of a file, which is read as a whole before; ``depth`` are under way on each queue."""
    with Guest(path, queues=queues) as guest:
        client = FuseClient(guest)
        node = client.find(name)
        size = client.getattr(node)[1]
        for offset in range(0, size, READ_BYTES):
            client.read(node, offset, READ_BYTES)
        block = random.Random(1).randrange(size // BLOCK)
        request = wire.request(wire.READ, wire.read_in(block * BLOCK, BLOCK), node=node)
        load = run_load(
            guest.queues[1:], requests, readable=[request[:40], request[40:]], room=[16, BLOCK], depth=depth
        )
    return {
        "per_second": load.per_second,
        "p50_us": load.latency_us(0.5),
        "p99_us": load.latency_us(0.99),
        "kicks": load.kicks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("name", help="of a file in the image")
    for option in ("--queues", "--depth", "--requests"):
        parser.add_argument(option, type=int, required=True)
    options = parser.parse_args()
    found = measure(
        options.socket,
        options.name.encode(),
        queues=options.queues,
        depth=options.depth,
        requests=options.requests,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
