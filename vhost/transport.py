"""Sockets to listen on, and who serves the front ends that connect; reads no message by itself."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vhost import limits
from vhost.complaints import Complaints
from vhost.connection import Connection
from vhost.model import DeviceModel
from vhost.poller import Poller

log = logging.getLogger("vhost")

_BACKLOG: Final = 4


def listen(path: Path, *, mode: int = 0o600, group: int | None = None) -> socket.socket:
    """Make a socket to listen on, in the place of one that nobody listens on any more.

    Raises OSError: somebody listens there (EADDRINUSE), something else is there, or it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            _bind(listener, path, mode)
        except OSError:
            if not path.is_socket() or not _is_dead(path):
                raise
            path.unlink()
            _bind(listener, path, mode)
        if group is not None:
            os.chown(path, -1, group)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: Path, mode: int) -> None:
    before = os.umask(~mode & 0o777)  # the socket must not be open to others even for a moment
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(before)


def _is_dead(path: Path) -> bool:
    """Whether nobody has it open. One of another kind, or too busy to accept, refuses in another way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


class Listener:
    """Serves one device model to whoever connects to one socket: one front end after the other."""

    def __init__(
        self,
        poller: Poller,
        listening: socket.socket,
        model: DeviceModel,
        *,
        name: str,
        sealed_only: bool = False,
        regions_max: int = limits.REGIONS_MAX,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """Owns the socket. ``name`` stands in the log.

        ``sealed_only`` refuses guest memory that can be truncated, see ``shared_memory``. ``regions_max``:
        of guest memory, each of which keeps a file open; not below ``TABLE_REGIONS_MAX``. With ``ended`` only
        one front end is served: it is called when that has gone.
        """
        self._poller = poller
        self._socket = listening
        self._model = model
        self._complain = Complaints(log, name)
        self._tell = Complaints(log, name, logging.INFO)
        self._sealed_only = sealed_only
        self._regions_max = regions_max
        self._ended = ended
        self._connection: Connection | None = None
        listening.setblocking(False)
        self._listen()

    def close(self) -> None:
        """End the connection if there is one, and listen no longer."""
        self._ended = None
        if self._connection is not None:
            self._connection.close()
        self._poller.unwatch(self._socket.fileno())
        self._socket.close()

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:  # not closed meanwhile
            self._poller.watch(self._socket.fileno(), self._acceptable)

    def _acceptable(self, _events: int) -> None:
        try:
            accepted, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._complain("a front end could not be accepted: %s", error)
            self._poller.unwatch(self._socket.fileno())
            self._poller.call_after(limits.ACCEPT_PAUSE_S, self._listen)
            return
        self._poller.unwatch(self._socket.fileno())  # others wait in the backlog
        self._tell("a front end has connected")
        self._connection = Connection(
            self._poller,
            accepted,
            self._model,
            complain=self._complain,
            closed=self._disconnected,
            sealed_only=self._sealed_only,
            regions_max=self._regions_max,
        )

    def _disconnected(self) -> None:
        self._connection = None
        self._tell("the front end has gone")
        if self._ended is not None:
            self._ended()
        else:
            self._listen()
