"""What a server says to the service manager that started it, and gets from it; no manager is needed.

The protocol is that of systemd, sd_notify(3) and sd_listen_fds(3): datagrams of ``NAME=value`` lines, and
descriptors that the manager holds for the next server. ``rafsfs supervise`` speaks it too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from rafsfs.errors import MountError
from rafsfs.frontends.handover import MountState
from rafsfs.limits import HANDOVER_MESSAGE_BYTES_MAX, HELD_DESCRIPTORS_MAX

log = logging.getLogger("rafsfs.mount")

FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START
FUSE_NAME: Final = "rafsfs-fuse"
STATE_NAME: Final = "rafsfs-state"


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """A manager at this address, a path or ``@`` and an abstract name. To tell it something never fails."""

    address: str

    def ready(self) -> None:
        """The mount serves."""
        self._tell("READY=1\nSTATUS=serving")

    def hold(self, fuse_fd: int, state: MountState) -> None:
        """Give it the mount to hold, for a server that has to go on when this one dies."""
        self._forget()  # what an earlier mount has left
        memory = os.memfd_create("rafsfs-state")
        try:
            os.write(memory, json.dumps(state.to_json()).encode())
            self._tell(f"FDSTORE=1\nFDNAME={STATE_NAME}", memory)
        finally:
            os.close(memory)
        self._tell(f"FDSTORE=1\nFDNAME={FUSE_NAME}", fuse_fd)

    def is_now(self, pid: int) -> None:
        """Another process is the server."""
        self._tell(f"MAINPID={pid}")

    def ending(self) -> None:
        """The mount ends, and so does the server."""
        self._tell("STOPPING=1")
        self._forget()

    def _forget(self) -> None:
        for name in (FUSE_NAME, STATE_NAME):
            self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _tell(self, text: str, *descriptors: int) -> None:
        import socket

        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.connect(address)
                if descriptors:
                    socket.send_fds(telling, [text.encode()], list(descriptors))
                else:
                    telling.send(text.encode())
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", text.partition("\n")[0], error.strerror)


def manager_of_environment() -> ServiceManager | None:
    """The manager that started this process, if one did and wants to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    return ServiceManager(address) if address.startswith(("/", "@")) else None


@dataclass(frozen=True, slots=True)
class HeldMount:
    """A mount that the manager held while nobody served it. ``fuse_fd`` is /dev/fuse, None at its end."""

    fuse_fd: int | None
    state: MountState


def held_mount() -> HeldMount | None:
    """The mount that the manager has held for this process, None when it has held none.

    Descriptors that came with it are closed. Raises MountError when it cannot be made out what it is.
    """
    fuse_fds, states = [], []
    passed = list(_passed())
    if not passed:
        return None
    from rafsfs.frontends.mountpoint_linux import connection_is_over

    for name, descriptor in passed:
        if name == FUSE_NAME:
            fuse_fds.append(descriptor)
            continue
        if name == STATE_NAME:
            states.append(os.pread(descriptor, HANDOVER_MESSAGE_BYTES_MAX, 0))
        os.close(descriptor)
    alive = [descriptor for descriptor in fuse_fds if not connection_is_over(descriptor)]
    for descriptor in fuse_fds:
        if descriptor not in alive:
            os.close(descriptor)
    if not alive:  # systemd lets go of /dev/fuse by itself when the connection is over
        return HeldMount(None, MountState.from_json(_parsed(states[0]))) if len(states) == 1 else None
    if (len(alive), len(states)) != (1, 1):
        raise MountError(
            "the service manager passes no mount that can be told",
            expected=f"one {FUSE_NAME} and one {STATE_NAME}",
            found=f"{len(alive)} and {len(states)}",
            hint="stop the service, so that it lets go of them, and start it again",
        )
    return HeldMount(alive[0], MountState.from_json(_parsed(states[0])))


def _passed() -> Iterator[tuple[str, int]]:
    """Descriptors with their names: sd_listen_fds_with_names(3)."""
    count = os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    is_ours = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    if not is_ours or not count.isdigit() or int(count) > HELD_DESCRIPTORS_MAX:
        return
    for number in range(int(count)):
        descriptor = FIRST_DESCRIPTOR + number
        os.set_inheritable(descriptor, False)
        yield names[number] if number < len(names) else "", descriptor


def _parsed(text: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None
