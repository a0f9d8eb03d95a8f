"""How commands show what they found: sizes, tables, fields, JSON, progress; never finds anything itself."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from rafsfs.frontends.logs import one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

Update = Callable[[int, int], None]
"""``update(entries, bytes)``: all that are done so far."""

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_WIDE: Final = 1 << 14  # columns where nobody looks at them: nothing is folded for a program
_REFRESH_PER_SECOND: Final = 8
_SPEED_WINDOW_S: Final = 5.0


def byte_size(count: int) -> str:
    """Spell a number of bytes with three digits or a bit more: ``823 B``, ``1.50 MiB``, ``12.3 GiB``."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in _UNITS:
        size /= 1024
        if size < 999.5 or unit == _UNITS[-1]:
            break
    return f"{size:.{_digits(size)}f} {unit}"


def _digits(size: float) -> int:
    return 2 if size < 9.995 else 1 if size < 99.95 else 0


def speed(byte_count: int, seconds: float) -> str:
    """Spell a speed in megabytes (10^6 bytes) a second: ``213 MB/s``."""
    megabytes = byte_count / 1e6 / max(seconds, 1e-6)
    return f"{megabytes:,.{0 if megabytes >= 10 else 1}f} MB/s"


def duration(microseconds: float) -> str:
    """Spell a time with about three digits: ``4.2 us``, ``1.25 ms``, ``12.5 s``, ``3 h 20 min``."""
    if microseconds < 999.5:
        return f"{microseconds:.{0 if microseconds >= 99.95 else 1}f} us"
    if microseconds < 999.5e3:
        return f"{microseconds / 1e3:.{_digits(microseconds / 1e3)}f} ms"
    seconds = microseconds / 1e6
    if seconds < 99.95:
        return f"{seconds:.{_digits(seconds)}f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def share(part: int, whole: int) -> str:
    """Spell a part of something in percent; nothing of nothing is 0."""
    return f"{100 * part / whole if whole else 0:.0f} %"


def utc(unix_seconds: int) -> str:
    """Spell a time; as a number where the calendar of this machine ends before it."""
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{unix_seconds} seconds after 1970"


def print_line(text: str = "") -> None:
    """Print a line, with escapes for what the encoding of standard output does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def print_json(value: object) -> None:
    """Print one JSON document. In names, bytes that are no UTF-8 come as ``\\udcXX``: os.fsencode() knows."""
    click.echo(json.dumps(value, indent=2))


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns, whatever is in the values on one line each."""
    listed = list(fields)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print_line(f"  {name:<{width}}  {one_line(value)}".rstrip())


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = (), indent: int = 0
) -> None:
    """Print a table; the columns named in ``right`` are aligned right. Cells may hold anything.

    On a terminal long cells are folded; elsewhere every row is one line.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    print_line(_rendered(Padding(table, (0, 0, 0, indent), expand=False)))


def _rendered(what: RenderableType) -> str:
    """Render for standard output, which is then written by others: rich ends the program on a broken pipe."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=shutil.get_terminal_size().columns if terminal else _WIDE,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(what)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


@contextmanager
def progress(
    what: str, *, shown: bool = True, fraction: Callable[[], float | None] = lambda: None
) -> Iterator[Update | None]:
    """Show a bar on standard error while something goes on; gives the function that it is told by.

    ``fraction`` says how much is done, from 0 to 1, when that is known. Gives None, and shows nothing, where
    standard error is no terminal that can do it. ``update`` costs nothing; what it was told last is shown.
    """
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield None
        return
    bar = _Bar(what, fraction)
    with Live(
        bar,
        console=console,
        refresh_per_second=_REFRESH_PER_SECOND,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield bar.update


class _Bar:
    """What rich draws again and again, from a thread of its own."""

    def __init__(self, what: str, fraction: Callable[[], float | None]) -> None:
        from rich.progress_bar import ProgressBar

        self._what = what
        self._fraction = fraction
        self._done = (0, 0)
        self._started = time.monotonic()
        self._samples = deque([(self._started, 0)])
        self._bar = ProgressBar(total=1.0, pulse=True)

    def update(self, entries: int, byte_count: int) -> None:
        """Note how far it is."""
        self._done = (entries, byte_count)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        entries, byte_count = self._done
        now = time.monotonic()
        self._samples.append((now, byte_count))
        while now - self._samples[0][0] > _SPEED_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        done = self._fraction()
        self._bar.pulse = done is None
        self._bar.completed = min(done or 0.0, 1.0)
        minutes, seconds = divmod(int(now - self._started), 60)
        line = Table.grid(padding=(0, 2))
        line.width = options.max_width - len("^C ")  # which must not make it two lines: only one is erased
        for ratio in (None, 1, *[None] * 5):
            line.add_column(ratio=ratio, no_wrap=True, justify="left" if ratio else "right")
        line.add_row(
            self._what,
            self._bar,
            "" if done is None else share(round(self._bar.completed * 100), 100),
            f"{entries:,} entries",
            byte_size(byte_count),
            speed(byte_count - before, now - since),
            f"{minutes}:{seconds:02}",
        )
        yield line
