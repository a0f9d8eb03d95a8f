"""``rafsfs top``: what a mount does just now, drawn again and again until an interrupt; keeps no history."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rafsfs.cli import output
from rafsfs.cli.options import file_name
from rafsfs.cli.signals import ended_cleanly
from rafsfs.cli.stats import PERCENTILES, asked
from rafsfs.frontends.logs import one_line
from rafsfs.frontends.statistics import Snapshot, difference, percentile_us

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

INTERVAL_MIN_S: Final = 0.1
_GAUGE_COLUMNS: Final = 24


@click.command()
@click.argument("directory", metavar="DIR", type=file_name)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=INTERVAL_MIN_S, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
def command(directory: Path, interval_s: float) -> None:
    """Watch the mount on DIR: requests a second and their latencies, decoding, the cache. Ctrl-C ends it.

    Rates and latencies are those of the last interval. What they mean stands in `rafsfs stats --help`.

    \b
    Examples:
      rafsfs top /mnt
      rafsfs top /mnt --interval 5
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        raise click.UsageError("this draws on a terminal; for programs there is rafsfs stats --json")
    with ended_cleanly(), suppress(KeyboardInterrupt):  # which is how it is meant to end
        _watch(directory, interval_s, console)


def _watch(directory: Path, interval_s: float, console: Console) -> None:
    from rich.live import Live

    now = asked(directory)
    before = now
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(directory, before, now), refresh=True)
            time.sleep(interval_s)
            before, now = now, asked(directory)


def view(directory: Path, before: Snapshot, now: Snapshot) -> RenderableType:
    """Draw what was done between two snapshots."""
    from rich.console import Group

    if before["mount"]["uptime_s"] > now["mount"]["uptime_s"]:
        before = {}  # a new server, or a new mount, began to count
    done = difference(before, now)
    seconds = max(done["mount"]["uptime_s"], 1e-3)
    return Group(_head(directory, now), "", _reading(now, done, seconds), "", _requests(now, done, seconds))


def _head(directory: Path, now: Snapshot) -> RenderableType:
    from rich.text import Text

    mount = now["mount"]
    up = output.duration(mount["uptime_s"] * 1e6)
    return Text.assemble(
        ("rafsfs", "bold"),
        f" {one_line(str(directory))}: {one_line(mount['source'])}\n",
        f"{mount['frontend']}, device {mount['device']}, process {mount['pid']}, up for {up}",
        no_wrap=True,
        overflow="ellipsis",
    )


def _reading(now: Snapshot, done: Snapshot, seconds: float) -> Table:
    from rich.table import Table

    decoded, ahead = done["decoded"], done["read_ahead"]
    used, budget = now["cache"]["used_bytes"], now["cache"]["budget_bytes"]
    full = round(_GAUGE_COLUMNS * used / budget) if budget else 0
    hits = done["cache"]["chunk_hits"]
    failures = sum(now["failures"].values())
    table = Table.grid(padding=(0, 2))
    rows = (
        (
            "cache",
            f"[{'#' * full:.<{_GAUGE_COLUMNS}}] {output.byte_size(used)} of {output.byte_size(budget)}",
        ),
        ("hits", f"{hits / seconds:,.0f} chunks/s, {output.share(hits, hits + decoded['chunks'])}"),
        (
            "decoded",
            f"{output.speed(decoded['chunk_bytes'], seconds)} out of "
            f"{output.speed(decoded['fetched_bytes'], seconds)}, {decoded['chunks'] / seconds:,.0f} chunks/s",
        ),
        ("ahead", f"{ahead['chunks'] / seconds:,.0f} chunks/s, {ahead['used'] / seconds:,.0f} of them used"),
        ("failures", f"{failures:,} since the mount was made, {sum(done['failures'].values()):,} just now"),
    )
    for name, value in rows:
        table.add_row(_plain(name), _plain(value, "bold red" if name == "failures" and failures else ""))
    return table


def _requests(now: Snapshot, done: Snapshot, seconds: float) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("request", "per second", "mean", *(f"{percent} %" for percent in PERCENTILES), "in all")
    for name in columns:
        table.add_column(name, justify="left" if name == "request" else "right", no_wrap=True)
    for name, total in now["requests"].items():
        found = done["requests"][name]
        cells = [f"{found['count'] / seconds:,.0f}", *_times(found), f"{total['count']:,}"]
        table.add_row(_plain(name), *map(_plain, cells), style="" if found["count"] else "dim")
    return table


def _times(found: dict[str, Any]) -> list[str]:
    """Mean and percentiles; nothing where nobody asked."""
    if not found["count"]:
        return [""] * (1 + len(PERCENTILES))
    times = [1e6 * found["seconds"] / found["count"]]
    times += [percentile_us(found["buckets"], percent / 100) for percent in PERCENTILES]
    return [output.duration(time_us) for time_us in times]


def _plain(text: str, style: str = "") -> RenderableType:
    from rich.text import Text

    return Text(text, style)
