"""A request that has to wait for data, and is answered once: by its reply, an error, or an interrupt.

Starts no thread and waits for nobody by itself: the transport decides who calls ``run``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import perf_counter_ns
from typing import NamedTuple

from rafsfs.fuse import reply
from rafsfs.fuse.reply import Reply


class Pending:
    """A request whose data is not at hand. Any thread may call anything here, at the same time as others.

    Whoever is first gets the reply to send, all others get None: to a kernel a second reply is an error, and
    it could by then be taken for the answer to another request.
    """

    __slots__ = ("_forget", "_read", "_unanswered", "begun_ns", "unique")

    def __init__(self, unique: int, read: Callable[[], Reply], forget: Callable[[Pending], None]) -> None:
        """``read`` makes the whole reply and never raises; ``forget`` is called once there is an answer."""
        self.unique = unique
        self.begun_ns = perf_counter_ns()
        self._read = read
        self._forget = forget
        self._unanswered = [None]  # a list's pop is atomic, so one caller alone takes the one item out

    def run(self) -> Reply | None:
        """Wait for the data and return the reply, perhaps an error; None when it was answered meanwhile."""
        if not self._unanswered:
            return None
        return self._first(self._read())

    def error(self, code: int) -> Reply | None:
        """Give up with an errno, while somebody else may still be in ``run``."""
        return self._first(reply.error(self.unique, code))

    def interrupted(self) -> Reply | None:
        """Give up with EINTR: whoever asked has had a signal."""
        return self.error(errno.EINTR)

    def _first(self, made: Reply) -> Reply | None:
        try:
            self._unanswered.pop()
        except IndexError:
            return None
        self._forget(self)
        return made


class Interrupted(NamedTuple):
    """``pending`` shall be given up: send what its ``interrupted`` returns, unless that is None."""

    pending: Pending
