"""Log lines that a front end or a guest can cause at will, held to a rate; never decides what to say."""

from __future__ import annotations

import logging
import threading
import time

from vhost.limits import COMPLAINT_S, COMPLAINTS_MAX


class Complaints:
    """The lines about one connection. Any thread may complain."""

    def __init__(self, log: logging.Logger, name: str, level: int = logging.WARNING) -> None:
        self._log = log
        self._name = name
        self._level = level
        self._lock = threading.Lock()
        self._left = float(COMPLAINTS_MAX)
        self._last = time.monotonic()
        self._unsaid = 0

    def __call__(self, text: str, *values: object, trace: BaseException | None = None) -> None:
        """Log a line; ``text`` is a format for ``values``. After many just now, only count it."""
        with self._lock:
            now = time.monotonic()
            self._left = min(COMPLAINTS_MAX, self._left + (now - self._last) / COMPLAINT_S)
            self._last = now
            if self._left < 1:
                self._unsaid += 1
                return
            self._left -= 1
            unsaid, self._unsaid = self._unsaid, 0
        text = f"%s: {text}"
        if unsaid:
            text += f" ({unsaid} more lines were left out before)"
        self._log.log(self._level, text, self._name, *values, exc_info=trace)
