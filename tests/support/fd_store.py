"""A service manager in little, as sd_notify(3) and sd_listen_fds(3) have it: holds what a server gives it."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from pathlib import Path

from support.mounts import END_S, ROOT


class FdStore:
    """Starts servers in the foreground, hears what they say, holds their descriptors. For a ``with``."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "notify"
        self.held: list[tuple[str, int]] = []
        self.said: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(self.address))
        self._socket.settimeout(END_S)

    def __enter__(self) -> FdStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for _, descriptor in self.held:
            os.close(descriptor)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start ``rafsfs mount --foreground``; it is given what is held."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(self.address)}
        script = "exec"
        if self.held:
            environment["LISTEN_FDS"] = str(len(self.held))
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self.held)
            script = "LISTEN_PID=$$ exec"
        redirections = " ".join(f"{place}<&{held}" for place, (_, held) in enumerate(self.held, 3))
        return subprocess.Popen(
            [
                *("bash", "-c", f'{script} "$@" {redirections}', "server"),
                *(sys.executable, "-m", "rafsfs", "mount", "--foreground", *map(str, arguments)),
            ],
            env=environment,
            pass_fds=[held for _, held in self.held],
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, str]:
        """Wait for one message, and do what it says."""
        room = socket.CMSG_SPACE(16 * array.array("i").itemsize)
        text, ancillary, _, _ = self._socket.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
        message = dict(line.split("=", 1) for line in text.decode().splitlines())
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        if "FDSTORE" in message:
            # systemd numbers them as it likes; high ones are in nobody's way
            for descriptor in descriptors:
                self.held.append((message["FDNAME"], os.dup(descriptor)))
        for descriptor in descriptors:
            os.close(descriptor)
        if "FDSTOREREMOVE" in message:
            self.let_go(message["FDNAME"])
        self.said.append(message)
        return message

    def let_go(self, name: str) -> None:
        """Close the descriptors with this name."""
        for held in [held for held in self.held if held[0] == name]:
            os.close(held[1])
            self.held.remove(held)

    def hear_until(self, name: str, value: str = "1") -> None:
        """Wait for a message that says this."""
        while self.hear().get(name) != value:
            pass
