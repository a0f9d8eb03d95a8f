"""Cleans up behind a process that was killed; a process of its own, which knows nothing of what it cleans."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

_DONE: Final = b"\0"


class Janitor:
    """Waits for the end of the process that starts it, and calls ``clean`` unless it was dismissed before.

    Start it before there are threads and anything to clean up.
    """

    def __init__(self, clean: Callable[[], None], *, unwanted: frozenset[int]) -> None:
        """``unwanted`` are descriptors that it must not keep: others wait for the end of them."""
        reading, self._writing = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(self._writing)
            _wait(reading, clean, unwanted)
        os.close(reading)

    def dismiss(self) -> None:
        """There is nothing left to clean up."""
        with suppress(BrokenPipeError):  # it was killed, too
            os.write(self._writing, _DONE)
        os.close(self._writing)
        os.waitpid(self._process, 0)


def _wait(reading: int, clean: Callable[[], None], unwanted: frozenset[int]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        for descriptor in unwanted:
            os.close(descriptor)
        if os.read(reading, 1) != _DONE:
            clean()
        code = 0
    finally:
        os._exit(code)
