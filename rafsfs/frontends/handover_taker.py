"""The successor's side of a hand-over: asks a mount's server what it serves, and takes it; opens no image."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rafsfs.errors import MountError, Where
from rafsfs.frontends.handover import (
    LEAVE_WAIT_S,
    SOCKET_USE,
    ImageIdentity,
    MountState,
    Taken,
    close_all,
    receive,
    send,
)
from rafsfs.frontends.server_sockets import connect, socket_name

if TYPE_CHECKING:
    import socket

_APPEARS_S: Final = 5.0
"""A server opens its socket when it serves already, and one that is replaced closes it first."""

_AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Description:
    """What a server says of its mount; ``mounted_as`` is for the release that it is of.

    ``manager`` is the address of the service manager that it speaks to, if any.
    """

    pid: int
    state: MountState
    mounted_as: dict[str, Any]
    manager: str | None


def describe(device: str) -> Description:
    """Ask the server of the mount with this device number (such as 0:57). Raises MountError."""
    connection, message, descriptors = _ask(device, {"do": "describe"})
    connection.close()
    close_all(descriptors)
    state = MountState.from_json(message.get("state"))
    pid, mounted_as, manager = message.get("pid"), message.get("mounted_as"), message.get("manager")
    if not isinstance(pid, int) or not isinstance(mounted_as, dict) or not isinstance(manager, str | None):
        raise MountError("the server of the mount is of another release of rafsfs")
    return Description(pid, state, mounted_as, manager)


def take(device: str, image: ImageIdentity) -> Taken:
    """Have the server give the mount away, which has to be of this image. Raises MountError.

    It takes no more requests now, until ``Taken.settle`` or the end of the connection.
    """
    connection, message, descriptors = _ask(device, {"do": "take", "superblock": image.superblock})
    with ExitStack() as stack:
        stack.callback(close_all, descriptors)
        stack.callback(connection.close)
        state = MountState.from_json(message.get("state"))
        before = message.get("statistics")
        if len(descriptors) == 1 and isinstance(before, dict):
            stack.pop_all()
            has_open_requests = message.get("has_open_requests") is not False
            return Taken(descriptors[0], state, connection, has_open_requests, before)
    raise MountError("the server of the mount is of another release of rafsfs")


def _ask(device: str, request: dict[str, Any]) -> tuple[socket.socket, dict[str, Any], list[int]]:
    """Ask until there is an answer: the server may have begun just now, or may be being replaced."""
    import socket

    deadline = time.monotonic() + _APPEARS_S
    while True:
        try:
            connection = connect(socket_name(device, SOCKET_USE), socket.SOCK_SEQPACKET, LEAVE_WAIT_S)
            try:
                send(connection, request)
                message, descriptors = receive(connection)
            except BaseException:
                connection.close()
                raise
            break
        except (FileNotFoundError, ConnectionError) as error:
            if time.monotonic() >= deadline:
                raise _silent(device, error) from None
        except OSError as error:
            raise _silent(device, error) from None
        time.sleep(_AGAIN_S)
    if (complaint := message.get("error")) is not None:
        connection.close()
        close_all(descriptors)
        raise MountError("the mount cannot be handed over", found=complaint)
    return connection, message, descriptors


def _silent(device: str, error: OSError) -> MountError:
    return MountError(
        "the mount's server does not hand it over",
        found=error.strerror or str(error),
        where=Where(file=socket_name(device, SOCKET_USE)),
        hint="it is dead (then: rafsfs umount), does not answer, or is another user's: ask as who mounted it",
    )
