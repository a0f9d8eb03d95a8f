"""``rafsfs stats``: what a mount did since it was made, as its server tells it; reads no image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from rafsfs.cli import output
from rafsfs.cli.options import file_name
from rafsfs.errors import MountError
from rafsfs.frontends.statistics import Snapshot, percentile_us, prometheus

PERCENTILES: Final = (50, 90, 99)


@click.command()
@click.argument("directory", metavar="DIR", type=file_name)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, with the whole histograms.")
@click.option("--prometheus", "as_prometheus", is_flag=True, help="Print Prometheus' text format.")
def command(directory: Path, as_json: bool, as_prometheus: bool) -> None:
    """Show what the mount on DIR did since it was made: requests, their latencies, cache, decoding, failures.

    Latencies are of the kernel's requests, not of system calls: what the kernel has in its own caches asks
    nobody. They are known to a factor of 2. "read" is what the cache answered at once, "read_waited" what had
    to be fetched and decoded first.

    The numbers come from a unix socket that only who mounted may use: /run/rafsfs/DEVICE.sock for root, with
    the mount's device number such as 0-57, else in $XDG_RUNTIME_DIR/rafsfs. A scraper gets them there too.
    Of `rafsfs serve` they are asked by the socket of a guest, and come from another one beside it.

    \b
    Examples:
      rafsfs stats /mnt
      rafsfs stats /mnt --json
      rafsfs stats /run/vm1.sock
      curl --unix-socket /run/rafsfs/0-57.sock http://localhost/metrics
    """
    if as_json and as_prometheus:
        raise click.UsageError("--json and --prometheus exclude each other")
    snapshot = asked(directory)
    if as_json:
        output.print_json(snapshot)
    elif as_prometheus:
        click.echo(prometheus(snapshot), nl=False)
    else:
        _show(snapshot)


def asked(directory: Path) -> Snapshot:
    """Ask the server of the mount on, or around, ``directory``, or of guests at this socket; MountError."""
    if sys.platform != "linux":
        raise MountError("statistics are told on Linux only")
    from rafsfs.frontends import server_sockets, statistics_socket

    if directory.is_socket():
        return statistics_socket.ask_at(directory.with_name(directory.name + statistics_socket.SUFFIX))
    return statistics_socket.ask(server_sockets.device_of(directory))


def _show(snapshot: Snapshot) -> None:
    output.print_fields(fields(snapshot))
    if not snapshot["requests"]:
        return
    output.print_line()
    columns = ("request", "count", "mean", *(f"{percent} % below" for percent in PERCENTILES))
    rows = []
    for name, found in snapshot["requests"].items():
        times = [1e6 * found["seconds"] / found["count"]]
        times += [percentile_us(found["buckets"], percent / 100) for percent in PERCENTILES]
        rows.append((name, f"{found['count']:,}", *map(output.duration, times)))
    output.print_table(columns, rows, right=columns[1:], indent=2)


def fields(snapshot: Snapshot) -> list[tuple[str, str]]:
    """All but the requests, as names and values for people."""
    mount, cache, decoded = snapshot["mount"], snapshot["cache"], snapshot["decoded"]
    ahead, warmed, failures = snapshot["read_ahead"], snapshot["prefetch"], snapshot["failures"]
    used, budget = cache["used_bytes"], cache["budget_bytes"]
    looked_up = cache["chunk_hits"] + decoded["chunks"]
    return [
        ("image", mount["source"]),
        ("mount", f"{mount['device']}, {mount['frontend']}, process {mount['pid']}"),
        ("up for", output.duration(mount["uptime_s"] * 1e6)),
        ("cache", f"{output.byte_size(used)} of {output.byte_size(budget)} ({output.share(used, budget)})"),
        ("hits", f"{cache['chunk_hits']:,} chunks ({output.share(cache['chunk_hits'], looked_up)})"),
        ("decoded", f"{decoded['chunks']:,} chunks, {output.byte_size(decoded['chunk_bytes'])}"),
        ("metadata", f"{decoded['pages']:,} pages, {output.byte_size(decoded['page_bytes'])}"),
        ("fetched", output.byte_size(decoded["fetched_bytes"])),
        ("read ahead", f"{ahead['chunks']:,} chunks, {ahead['used']:,} of them used"),
        ("prefetched", f"{warmed['chunks']:,} chunks, {warmed['used']:,} of them used"),
        ("failures", ", ".join(f"{count:,} {kind}" for kind, count in failures.items())),
        *(_remote_fields(snapshot["remote"]) if "remote" in snapshot else ()),
    ]


def _remote_fields(remote: Snapshot) -> list[tuple[str, str]]:
    found = [
        ("network", f"{remote['requests']:,} requests, {output.byte_size(remote['fetched_bytes'])}"),
        (
            "of these",
            f"{remote['joined']:,} shared by readers, {remote['ahead']:,} chunks ahead, "
            f"{remote['bad']:,} bad",
        ),
    ]
    if (cache := remote.get("node_cache")) is not None:
        looked_up = cache["hits"] + cache["misses"] + cache["bad"]
        hits = f"{cache['hits']:,} chunks ({output.share(cache['hits'], looked_up)})"
        found.append(
            ("node cache", f"{hits}, {cache['bad']:,} bad, {cache['not_stored']:,} could not be stored")
        )
    if total := remote["prefetch_bytes"]:
        done = remote["prefetched_bytes"]
        found.append(
            (
                "prefetched",
                f"{output.byte_size(done)} of {output.byte_size(total)} ({output.share(done, total)})",
            )
        )
    return found
