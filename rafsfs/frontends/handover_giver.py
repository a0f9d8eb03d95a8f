"""The predecessor's side of a hand-over: a thread that gives the mount to a successor who asks for it.

Only processes of the same user, and root's, are listened to.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from rafsfs.errors import MountError
from rafsfs.frontends.handover import (
    LEAVE_WAIT_S,
    SOCKET_USE,
    Handover,
    MountState,
    close_all,
    receive,
    send,
)
from rafsfs.frontends.server_sockets import PEER, bound, socket_name

if TYPE_CHECKING:
    import socket

    from rafsfs.frontends.devfuse_transport import Transport
    from rafsfs.frontends.statistics import Collect

log = logging.getLogger("rafsfs.mount")

_PAUSE_WAIT_S: Final = 0.25
"""How long requests under way may hold up a hand-over; those that take longer are answered after it."""

_ASKER_WAIT_S: Final = 1.0  # for one who connects and says nothing; others wait meanwhile
_SHUT_RDWR: Final = 2  # of shutdown(2)


class Giver:
    """Gives one mount away, once; ``successor`` is then the process that has it, 0 before."""

    def __init__(self, transport: Transport, state: MountState, handover: Handover, collect: Collect) -> None:
        self.successor = 0
        self.open_requests_are_mine = True  # and not the successor's to answer
        self._transport = transport
        self._state = state
        self._handover = handover
        self._collect = collect
        self._lock = threading.Lock()  # around who has the mount
        self._is_stopped = False
        self._connection: socket.socket | None = None  # to who asks, and at the end to the successor

    def serve(self, listening: socket.socket) -> None:
        """Answer whoever asks, one after the other, until the mount is given away or ``stop``."""
        while not self.successor:
            try:
                connection, _ = listening.accept()
            except OSError:  # the end
                return
            with self._lock:
                self._connection = connection
            try:
                self._answer(connection)
            except OSError as error:
                log.debug("somebody asked for the mount and went away: %s", error)
            except Exception as error:
                log.error("a hand-over failed: %s: %s", type(error).__name__, error)  # noqa: TRY400
                log.debug("its traceback", exc_info=error)
            finally:
                if not self.successor:
                    with self._lock:
                        self._connection = None
                    connection.close()

    def stop(self) -> bool:
        """Give the mount to nobody any more; returns False when somebody has it already."""
        with self._lock:
            self._is_stopped = True
            if self._connection is not None and not self.successor:
                with suppress(OSError):
                    self._connection.shutdown(_SHUT_RDWR)  # a successor takes it for our death
            return not self.successor

    def leave(self) -> None:
        """Tell the successor that we are gone from where others look for us."""
        assert self._connection is not None
        with self._connection, suppress(OSError):
            send(self._connection, {"left": True})

    def _answer(self, connection: socket.socket) -> None:
        import socket

        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
        pid, uid, _ = PEER.unpack(credentials)
        connection.settimeout(_ASKER_WAIT_S)
        message, descriptors = receive(connection)
        close_all(descriptors)
        if uid not in (0, os.geteuid()):  # the folder keeps them out already
            send(connection, {"error": os.strerror(errno.EPERM)})
        elif message.get("do") == "describe":
            send(connection, self._description())
        elif message.get("do") != "take":
            send(connection, {"error": "there are describe and take"})
        elif message.get("superblock") != self._state.image.superblock:
            send(connection, {"error": "the mount is of another image"})
        elif not self._transport.pause(_PAUSE_WAIT_S):
            send(connection, {"error": "the mount has ended"})
        else:
            self._give(connection, pid)

    def _description(self) -> dict[str, Any]:
        manager = self._handover.manager
        return {
            "pid": os.getpid(),
            "state": self._state.to_json(),
            "mounted_as": self._handover.mounted_as,
            "manager": None if manager is None else manager.address,
        }

    def _give(self, connection: socket.socket, pid: int) -> None:
        """Let go of the paused transport for good, or go on when the successor fails."""
        transport = self._transport
        try:
            is_answered = transport.wait_until_answered(_PAUSE_WAIT_S, lambda: self._is_stopped)
            connection.settimeout(LEAVE_WAIT_S)
            mount = {
                "state": self._state.to_json(),
                "has_open_requests": not is_answered,
                "statistics": self._collect(),
            }
            send(connection, mount, (transport.fd,))
            word, descriptors = receive(connection)
            close_all(descriptors)
            if word.get("do") != "leave":
                raise MountError("the successor does not say that it serves")
            with self._lock:
                if self._is_stopped:
                    raise MountError("the mount ends")
                self.open_requests_are_mine = word.get("open_requests_are_mine") is not True
                self.successor = pid
        finally:
            if not self.successor:
                transport.resume()
                if self._state.negotiated.can_resend:
                    with suppress(OSError):  # unmounted meanwhile
                        transport.resend()  # the successor may have taken some before it failed
        transport.release()


@contextmanager
def giving(
    transport: Transport, state: MountState, handover: Handover, collect: Collect
) -> Iterator[Callable[[], Giver | None]]:
    """Give the mount to whoever asks and may have it, on a thread of its own, meanwhile.

    What it yields ends that, and returns the giver if somebody has the mount now. A mount goes on where there
    is no place for the socket; a log line says so.
    """
    import socket

    giver = Giver(transport, state, handover, collect)
    with ExitStack() as stack:
        try:
            name = socket_name(state.device, SOCKET_USE)
            listening, _ = stack.enter_context(bound(name, socket.SOCK_SEQPACKET))
        except OSError as error:
            log.warning("this mount cannot be handed over: %s", error)
            yield lambda: None
            return
        thread = threading.Thread(target=giver.serve, args=(listening,), name="rafsfs-handover", daemon=True)
        thread.start()

        def end() -> Giver | None:
            is_ours = giver.stop()
            stack.close()
            thread.join()
            return None if is_ours else giver

        try:
            yield end
        finally:
            end()
