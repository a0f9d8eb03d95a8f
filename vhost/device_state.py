"""The state of a device that is migrated, on its way through a descriptor of the front end; never waits."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Final

from vhost import signals
from vhost.errors import VhostError
from vhost.limits import STATE_BYTES_MAX
from vhost.poller import Poller

_PIECE_BYTES: Final = 64 * 1024


class Transfer:
    """One transfer. It is over when ``failure`` says why, or ``is_done``."""

    def __init__(
        self, poller: Poller, descriptor: int, *, state: bytes | None, load: Callable[[bytes], None]
    ) -> None:
        """Write ``state``, or without one read until the end and ``load`` that; owns the descriptor.

        Raises RefusedError. ``load`` may raise VhostError.
        """
        self.is_done = False
        self.failure: VhostError | None = None
        self._poller = poller
        self._load = load
        self._descriptor: int | None = signals.adopt(descriptor, may_be_file=True)
        if state is None:
            self._read = bytearray()
            poller.watch(descriptor, self._readable, select.POLLIN)
        else:
            self._unwritten = memoryview(state)
            poller.watch(descriptor, self._writable, select.POLLOUT)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.is_done or self.failure is not None

    def close(self) -> None:
        """Give up, unless it is over."""
        if not self.is_over:
            self._end(VhostError("the transfer was given up"))

    def _end(self, failure: VhostError | None) -> None:
        self.failure = failure
        self.is_done = failure is None
        descriptor, self._descriptor = self._descriptor, None
        assert descriptor is not None
        self._poller.unwatch(descriptor)
        os.close(descriptor)  # for the other end: that was all

    def _writable(self, _events: int) -> None:
        assert self._descriptor is not None
        try:
            while self._unwritten:
                written = signals.write(self._descriptor, self._unwritten[:_PIECE_BYTES])
                self._unwritten = self._unwritten[written:]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(VhostError("the state could not be written", found=error))
        else:
            self._end(None)

    def _readable(self, _events: int) -> None:
        assert self._descriptor is not None
        try:
            piece = signals.read(self._descriptor, _PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(VhostError("the state could not be read", found=error))
            return
        self._read += piece
        if len(self._read) > STATE_BYTES_MAX:
            self._end(VhostError("a state that is too long", expected=f"at most {STATE_BYTES_MAX} bytes"))
        elif not piece:
            try:
                self._load(bytes(self._read))
            except VhostError as error:
                self._end(error)
            else:
                self._end(None)
