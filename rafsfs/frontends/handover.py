"""What one server of a mount hands to the next, and how the two agree; holds no key and no plaintext.

Messages are JSON on a unix socket that keeps them apart; the descriptor of /dev/fuse goes beside one::

    successor: {"do": "describe"}    predecessor: what is mounted, and how
    the successor opens the image
    successor: {"do": "take", ...}   predecessor takes no more requests: its state, counts, and /dev/fuse
    the successor serves
    successor: {"do": "leave", ...}  predecessor: {"left": true}, and it has

Until it is told to leave, the predecessor keeps the mount: when its successor says nothing, it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rafsfs.errors import MountError
from rafsfs.frontends.server_sockets import received
from rafsfs.fuse.negotiation import Negotiated
from rafsfs.limits import FUSE_READ_BYTES_MAX, HANDOVER_MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    import socket

    from rafsfs.frontends.devfuse_transport import Transport
    from rafsfs.frontends.service_manager import ServiceManager
    from rafsfs.frontends.statistics import Snapshot

log = logging.getLogger("rafsfs.mount")

VERSION: Final = 1
SOCKET_USE: Final = "handover"

LEAVE_WAIT_S: Final = 10.0
"""How long either waits for the other's next word, which takes it milliseconds. Nobody serves meanwhile."""

_ANSWERED_WAIT_S: Final = 1.0
_DEATH_WAIT_S: Final = 1.0  # a process that dies closes its sockets first
_OTHER_RELEASE: Final = "of another release of rafsfs, or damaged"


@dataclass(frozen=True, slots=True)
class ImageIdentity:
    """Digests of an image's superblock, which covers all that is shown of it, and of its manifest."""

    superblock: str
    manifest: str


@dataclass(frozen=True, slots=True)
class MountState:
    """What a server has to know of a mount that another has made.

    ``device`` is its number in the mount table, such as 0:57; ``source`` is what the front end mounted from.
    """

    frontend: str
    device: str
    source: str
    image: ImageIdentity
    negotiated: Negotiated

    def to_json(self) -> dict[str, Any]:
        """Numbers and texts."""
        return {"version": VERSION, **asdict(self), "negotiated": self.negotiated._asdict()}

    @classmethod
    def from_json(cls, found: Any) -> MountState:
        """Read it again. Raises MountError."""
        try:
            state = cls(
                str(found["frontend"]),
                str(found["device"]),
                str(found["source"]),
                ImageIdentity(**found["image"]),
                Negotiated(**found["negotiated"]),
            )
            is_known = found["version"] == VERSION and state._is_sane()
        except (KeyError, TypeError) as error:
            raise MountError("the state of the mount cannot be read", found=_OTHER_RELEASE) from error
        if not is_known:
            raise MountError("the state of the mount cannot be read", found=_OTHER_RELEASE)
        return state

    def _is_sane(self) -> bool:
        texts: tuple[Any, ...] = (self.image.superblock, self.image.manifest)
        numbers: tuple[Any, ...] = self.negotiated
        return (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(number, int) and 0 <= number < 2**64 for number in numbers)
            and self.negotiated.max_write_bytes <= FUSE_READ_BYTES_MAX  # a buffer has room for it
        )


@dataclass(frozen=True, slots=True)
class Handover:
    """What a front end needs to have a mount from another server, and to give it to the next.

    ``mounted_as`` is JSON for the successor; ``take`` gets the mount that shall be served, instead of a new
    one; ``manager`` is told, if there is one.
    """

    mounted_as: dict[str, Any]
    manager: ServiceManager | None = None
    take: Callable[[], Taken] | None = None

    def say_ready(self) -> None:
        """Tell the manager that the mount serves."""
        if self.manager is not None:
            self.manager.ready()


@dataclass(slots=True)
class Taken:
    """A mount that another server has made. ``fd`` is /dev/fuse.

    ``predecessor`` is the connection to it, None when it is dead. ``has_open_requests``: some were taken and
    not answered; a dead server may always have had some. ``before`` are its last counts. ``is_orphaned``: the
    predecessor died while it was to leave.
    """

    fd: int
    state: MountState
    predecessor: socket.socket | None
    has_open_requests: bool = True
    before: Snapshot | None = None
    is_orphaned: bool = False

    def settle(self, transport: Transport) -> None:
        """Serve, and have the predecessor leave. Raises MountError when it does not; it then goes on."""
        transport.start()
        if self.predecessor is None:
            self._inherit(transport)
            return
        resends = self.has_open_requests and self.state.negotiated.can_resend
        if resends:
            transport.resend()
        try:
            self._relieve(self.predecessor, resends)
        except (OSError, MountError) as error:
            self.is_orphaned = isinstance(error, OSError) and self._has_died(self.predecessor)
            if not self.is_orphaned:
                transport.pause(_ANSWERED_WAIT_S)
                transport.wait_until_answered(_ANSWERED_WAIT_S)
                raise
            log.warning("the server of the mount died while it was to leave")
            self._inherit(transport)
        finally:
            self.predecessor.close()  # it looks at this end, and goes on if it has not left

    def _inherit(self, transport: Transport) -> None:
        """Have the kernel ask again what a dead server has left open."""
        if self.state.negotiated.can_resend:
            transport.resend()
        else:
            log.warning(
                "requests that the dead server had begun wait until the mount is aborted, because this "
                "kernel cannot ask again (Linux 6.9 can): see /sys/fs/fuse/connections"
            )

    def _has_died(self, predecessor: socket.socket) -> bool:
        """Whether nobody serves the mount but us: one that ends as it should takes the mount away first."""
        from rafsfs.frontends.mountpoint_linux import mounts
        from rafsfs.frontends.server_sockets import has_ended

        if not has_ended(predecessor, _DEATH_WAIT_S):
            return False
        return any(mount.device == self.state.device for mount in mounts())

    @staticmethod
    def _relieve(predecessor: socket.socket, open_requests_are_mine: bool) -> None:
        send(predecessor, {"do": "leave", "open_requests_are_mine": open_requests_are_mine})
        word, descriptors = receive(predecessor)
        close_all(descriptors)
        if word.get("left") is not True:
            raise MountError("the server of the mount does not leave")


def send(connection: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message. Raises OSError."""
    import socket

    text = json.dumps(message).encode()
    if descriptors:
        socket.send_fds(connection, [text], list(descriptors))
    else:
        connection.sendall(text)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message and the descriptors that came with it, which are then the caller's to close.

    Raises ConnectionResetError when the other is gone, OSError, and MountError for what is no message.
    """
    text, descriptors, is_cut = received(connection, HANDOVER_MESSAGE_BYTES_MAX)
    try:
        return _parsed(text, is_cut=is_cut), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def _parsed(text: bytes, *, is_cut: bool) -> dict[str, Any]:
    if not text:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    try:
        message = None if is_cut else json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise MountError("what the other server says cannot be read")
    return message


def close_all(descriptors: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
