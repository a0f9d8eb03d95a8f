"""What a mount did since it was made, as one JSON object or as Prometheus text; counts nothing itself.

Nothing in it is secret to those who may ask the server: numbers, and what the mount table says anyway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rafsfs.fuse.statistics import RequestStatistics

if TYPE_CHECKING:
    from rafsfs.reading.engine import ReadEngine
    from rafsfs.reading.fetcher import FetchState

Snapshot: TypeAlias = "dict[str, Any]"
"""One moment's numbers, as JSON has them::

    {"version": 1,
     "mount": {"source": "/images/tree:latest", "device": "0:57", "frontend": "devfuse", "pid": 4711,
               "uptime_s": 12.5},
     "requests": {"read": {"count": 3, "seconds": 0.000035, "buckets": {"8": 1, "16": 2}}, ...},
     "cache": {"used_bytes": 0, "budget_bytes": 0, "chunk_hits": 0, "page_hits": 0, "evictions": 0},
     "decoded": {"chunks": 0, "chunk_bytes": 0, "pages": 0, "page_bytes": 0, "fetched_bytes": 0},
     "failures": {"authentication": 0, "format": 0, "store": 0},
     "read_ahead": {"chunks": 0, "used": 0},
     "prefetch": {"chunks": 0, "used": 0},
     "remote": {"requests": 0, "fetched_bytes": 0, "cached": 0, "joined": 0, "ahead": 0, "bad": 0,
                "prefetched_bytes": 0, "prefetch_bytes": 0, "node_cache": {"hits": 0, ...}}}

A bucket counts what took less than so many microseconds and not less than half of that; ``read_waited`` are
reads that were not answered at once. ``remote`` is only there for an image that is far away, ``node_cache``
in it when there is one. ``chunks`` and ``pages`` that were decoded are the cache's misses.
"""

VERSION: Final = 1

Collect: TypeAlias = Callable[[], Snapshot]

_PREFIX: Final = "rafsfs_"


def collector(
    frontend: str,
    source: str,
    device: str,
    requests: RequestStatistics,
    engine: Callable[[], ReadEngine],
    before: Snapshot | None = None,
) -> Collect:
    """Make the function that takes snapshots; any thread may call it.

    ``before`` is the last snapshot of the server that had the mount before; without one, or with one of
    another release, the mount's uptime begins now.
    """
    begun = time.monotonic()
    if before is not None and before.get("version") != VERSION:
        before = None

    def collect() -> Snapshot:
        mount = {
            "source": source,
            "device": device,
            "frontend": frontend,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - begun, 3),
        }
        now = {"version": VERSION, "mount": mount, "requests": _requests(requests), **_reading(engine())}
        return now if before is None else _continued(before, now)

    return collect


_GAUGES: Final = {
    "cache": ("used_bytes", "budget_bytes"),
    "remote": ("prefetched_bytes", "prefetch_bytes"),
}
"""What is no count, but how it is at the moment."""


def _continued(before: Snapshot, now: Snapshot) -> Snapshot:
    """``now`` with all that was counted ``before`` added to it."""
    whole = _sum({name: before.get(name) for name in now if name not in ("version", "mount")}, now)
    whole["mount"]["uptime_s"] = round(before["mount"]["uptime_s"] + now["mount"]["uptime_s"], 3)
    for group in _GAUGES.keys() & now.keys():
        whole[group] |= {name: now[group][name] for name in _GAUGES[group]}
    return whole


def _sum(one: Snapshot, other: Snapshot) -> Snapshot:
    found = {**one, **other}
    for name in one.keys() & other.keys():
        if isinstance(one[name], dict) and isinstance(other[name], dict):
            found[name] = _sum(one[name], other[name])
        elif isinstance(one[name], int | float) and isinstance(other[name], int | float):
            found[name] = one[name] + other[name]
    return found


def _requests(statistics: RequestStatistics) -> Snapshot:
    return {
        name: {
            "count": found.requests,
            "seconds": round(found.seconds, 9),
            "buckets": {str(bound_us): count for bound_us, count in found.buckets},
        }
        for name, found in statistics.latencies().items()
    }


def _reading(engine: ReadEngine) -> Snapshot:
    cache = engine.cache
    counts = cache.statistics.counts()
    return {
        "cache": {
            "used_bytes": cache.used_bytes,
            "budget_bytes": cache.budget_bytes,
            "chunk_hits": cache.chunk_hits,
            "page_hits": cache.page_hits,
            "evictions": cache.evictions,
        },
        "decoded": {
            "chunks": counts.chunks,
            "chunk_bytes": counts.chunk_bytes,
            "pages": counts.pages,
            "page_bytes": counts.page_bytes,
            "fetched_bytes": counts.fetched_bytes,
        },
        "failures": {
            "authentication": counts.failed_authentication,
            "format": counts.failed_format,
            "store": counts.failed_store,
        },
        "read_ahead": {"chunks": counts.ahead_chunks, "used": engine.ahead_used},
        "prefetch": {"chunks": counts.prefetched_chunks, "used": counts.prefetched_used},
        **_fetching(engine.fetch_state),
    }


def _fetching(state: Callable[[], FetchState] | None) -> Snapshot:
    if state is None:
        return {}
    now = state()
    remote: Snapshot = asdict(now.counts)
    remote |= {"prefetched_bytes": now.prefetched_bytes, "prefetch_bytes": now.prefetch_bytes}
    if now.cache is not None:
        remote["node_cache"] = asdict(now.cache)
    return {"remote": remote}


def percentile_us(buckets: Mapping[str, int], share: float) -> float:
    """Below how many microseconds this share (0 to 1) of the requests was, by a line through their bucket.

    Off by no more than a factor of 2, which is how wide a bucket is. 0 where nothing was counted.
    """
    left = share * sum(buckets.values())
    for bound_us, count in sorted((int(bound), count) for bound, count in buckets.items()):
        if left <= count and count:
            start_us = 0 if bound_us == 1 else bound_us // 2
            return start_us + (bound_us - start_us) * left / count
        left -= count
    return 0.0


def difference(before: Snapshot, now: Snapshot) -> Snapshot:
    """``now`` with each number less the one that it was ``before``; what was not there was 0."""
    found: Snapshot = {}
    for name, value in now.items():
        if isinstance(value, dict):
            found[name] = difference(before.get(name, {}), value)
        else:
            found[name] = value if isinstance(value, str) else value - before.get(name, 0)
    return found


# --- Prometheus ---------------------------------------------------------------------------------------------


def prometheus(snapshot: Snapshot) -> str:
    """Spell a snapshot in Prometheus' text format, version 0.0.4."""
    return "".join(f"{line}\n" for family in _families(snapshot) for line in family)


def _families(snapshot: Snapshot) -> Iterator[Iterable[str]]:
    mount, cache, decoded = snapshot["mount"], snapshot["cache"], snapshot["decoded"]
    labels = {name: mount[name] for name in ("source", "device", "frontend")}
    yield _family("mount_info", "gauge", "What is mounted, and how.", [(labels, 1)])
    yield _family("uptime_seconds", "gauge", "Since the mount was made.", [({}, mount["uptime_s"])])
    yield _histograms(snapshot["requests"])
    for name in ("used", "budget"):
        help_text = f"Bytes of the cache of verified chunks and pages: {name}."
        yield _family(f"cache_{name}_bytes", "gauge", help_text, [({}, cache[f"{name}_bytes"])])
    yield _family("cache_hits_total", "counter", "Look-ups that found something.", _by_kind(cache, "_hits"))
    yield _family("cache_evictions_total", "counter", "Entries let go.", [({}, cache["evictions"])])
    kinds = [({"kind": kind}, decoded[f"{kind}s"]) for kind in ("chunk", "page")]
    yield _family("decoded_total", "counter", "Fetched, verified and decoded; cache misses.", kinds)
    yield _family("decoded_bytes_total", "counter", "Bytes that decoding made.", _by_kind(decoded, "_bytes"))
    yield _family("fetched_bytes_total", "counter", "Encoded bytes.", [({}, decoded["fetched_bytes"])])
    failures = [({"kind": kind}, count) for kind, count in snapshot["failures"].items()]
    yield _family("failures_total", "counter", "Chunks and pages that could not be opened.", failures)
    ahead = snapshot["read_ahead"]
    yield _family("read_ahead_chunks_total", "counter", "Chunks read ahead.", [({}, ahead["chunks"])])
    yield _family("read_ahead_used_total", "counter", "Of these, asked for later.", [({}, ahead["used"])])
    warmed = snapshot["prefetch"]
    yield _family("prefetch_chunks_total", "counter", "Chunks of the list decoded.", [({}, warmed["chunks"])])
    yield _family("prefetch_used_total", "counter", "Of these, asked for later.", [({}, warmed["used"])])
    if remote := snapshot.get("remote"):
        yield from _remote_families(remote)


def _remote_families(remote: Snapshot) -> Iterator[Iterable[str]]:
    for name, help_text in (
        ("requests", "Requests to the store."),
        ("fetched_bytes", "Bytes that came from it."),
        ("cached", "Chunks that were in the node cache."),
        ("joined", "Readers that waited for another's request."),
        ("ahead", "Chunks that came along with others."),
        ("bad", "Chunks that came wrong and were fetched again."),
    ):
        yield _family(f"remote_{name}_total", "counter", help_text, [({}, remote[name])])
    for name in ("prefetched_bytes", "prefetch_bytes"):
        yield _family(f"remote_{name}", "gauge", "Of prefetching: done, and all.", [({}, remote[name])])
    for name, count in remote.get("node_cache", {}).items():
        yield _family(f"node_cache_{name}_total", "counter", "What it was asked for.", [({}, count)])


def _by_kind(numbers: Snapshot, suffix: str) -> list[tuple[dict[str, str], int]]:
    return [({"kind": kind}, numbers[kind + suffix]) for kind in ("chunk", "page")]


def _family(
    name: str, kind: str, help_text: str, samples: Iterable[tuple[dict[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {help_text}"
    yield f"# TYPE {_PREFIX}{name} {kind}"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _histograms(requests: Snapshot) -> Iterator[str]:
    name = "request_seconds"
    yield from _family(name, "histogram", "Requests of the kernel by opcode, until their answer.", ())
    for opcode, found in requests.items():
        labels = {"opcode": opcode}
        below = 0
        # each of a series' samples needs the same bounds as the last one's, so those are there that may come
        buckets = {int(bound): count for bound, count in found["buckets"].items()}
        for bound_us in (1 << place for place in range(_BOUNDS)):
            below += buckets.get(bound_us, 0)
            yield _sample(f"{name}_bucket", labels | {"le": f"{bound_us / 1e6:g}"}, below)
        yield _sample(f"{name}_bucket", labels | {"le": "+Inf"}, found["count"])
        yield _sample(f"{name}_sum", labels, found["seconds"])
        yield _sample(f"{name}_count", labels, found["count"])


_BOUNDS: Final = 28
"""Bounds of a histogram, from 1 us to two minutes: longer than any deadline."""


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    text = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return f"{_PREFIX}{name}{'{' + text + '}' if text else ''} {value}"


def _escaped(value: str) -> str:
    text = value.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
