"""What ends a command from outside; owns turning signals into one interrupt, never cleans up itself."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """Let SIGTERM and a lost terminal end what is in the ``with`` as ctrl-C does: by an exception, once.

    Further signals do nothing from then on, so that the cleaning up is not interrupted itself. What the
    caller of the program ignores (nohup) stays ignored. For the main thread.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    interrupted = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            click.echo("\r", nl=False, err=True)  # over the ^C that the terminal shows
        raise click.exceptions.Abort from None
    finally:
        if not interrupted:  # else the program is about to end, and late signals must not change how
            for number in handled:
                signal.signal(number, before[number])


@contextmanager
def interrupts_kill() -> Iterator[None]:
    """Let ctrl-C end the process at once, also in a read of a store that hangs: an exception waits for it.

    For what has nothing to clean up, on any thread; what the caller of the program ignores stays ignored.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
