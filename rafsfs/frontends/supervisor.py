"""Keeps a mount served: holds its /dev/fuse, and starts another server when one dies; reads no key, no image.

To its servers it is a service manager as systemd is one (``service_manager``).
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from rafsfs.errors import MountError, Where
from rafsfs.frontends import mountpoint
from rafsfs.frontends.mount_options import STOP_SIGNALS
from rafsfs.frontends.mountpoint_linux import connection_is_over, is_ours, mount_on
from rafsfs.frontends.server_sockets import bound, received
from rafsfs.frontends.service_manager import FIRST_DESCRIPTOR, FUSE_NAME
from rafsfs.limits import HELD_DESCRIPTORS_MAX

if TYPE_CHECKING:
    import socket

log = logging.getLogger("rafsfs.mount")

QUICK_DEATH_S: Final = 5.0
"""A server that dies sooner did not get far; one that dies later has done its work for a while."""

QUICK_DEATHS_MAX: Final = 5
"""So many in a row, and the next would die as well."""

_PAUSE_S: Final = 0.1
"""Before the second try; twice as long before each further one. Readers wait, so there is none at first."""

_MESSAGE_BYTES_MAX: Final = 4096


def supervise(command: Sequence[str], directory: Path) -> int:
    """Run ``command``, a server in the foreground, again whenever it dies and leaves a mount behind.

    ``STOP_SIGNALS`` are passed on. Returns the exit code of the last server once there is no mount any more;
    raises MountError, with nothing mounted on ``directory``, when servers die again and again. For the main
    thread of a process that has no other.
    """
    import socket

    with (
        _signals_read() as signals,
        bound(f"supervise-{os.getpid()}.sock", socket.SOCK_DGRAM) as (notices, path),
    ):
        supervisor = _Supervisor(command, directory, notices, path)
        try:
            return supervisor.run(signals)
        finally:
            supervisor.close()


@contextmanager
def _signals_read() -> Iterator[int]:
    """A descriptor that gives the numbers of signals, as bytes: of those that stop us, and SIGCHLD."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {
        number: signal.signal(number, lambda *_: None)
        for number in (*STOP_SIGNALS, signal.SIGCHLD)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    wakeup_before = signal.set_wakeup_fd(writing)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


class _Supervisor:
    """What holds the descriptors, and the one process that serves now."""

    def __init__(
        self, command: Sequence[str], directory: Path, notices: socket.socket, address: Path
    ) -> None:
        self._command = command
        self._directory = directory
        self._notices = notices
        self._address = address
        self._held: list[tuple[str, int]] = []  # as the names and descriptors of FDSTORE came
        self._server = 0  # its process
        self._server_fd = -1  # a pidfd
        self._codes: dict[int, int] = {}  # of children that have ended
        self._begun = 0.0
        self._quick_deaths = 0
        self._mount_before = mount_on(directory)
        self._left_dead_mount = False
        self._is_stopping = False

    def run(self, signals: int) -> int:
        """See ``supervise``."""
        self._start()
        while True:
            poller = select.poll()
            for descriptor in (signals, self._notices.fileno(), self._server_fd):
                poller.register(descriptor, select.POLLIN)
            poller.poll()
            self._heed(signals)
            self._read_notices()
            if not _is_readable(self._server_fd):
                continue
            self._read_notices()  # what it said at last
            code = self._reap()
            if self._is_stopping:
                return code or 0
            if not self._has_mount():
                return self._end_without_mount(code)
            if not self._replace(code, signals):
                return code or 0

    def close(self) -> None:
        """Let go of the mount, and take it away if it is one still: it is a dead one now."""
        had_mount = self._has_mount() or self._left_dead_mount
        for _, descriptor in self._held:
            os.close(descriptor)
        self._held.clear()
        if self._server_fd >= 0:
            os.close(self._server_fd)
        if had_mount:
            with suppress(MountError):
                mountpoint.unmount(self._directory, lazy=True)

    def _end_without_mount(self, code: int | None) -> int:
        """Return the exit code of the last server. Raises MountError when it was killed."""
        if code is None or code >= 0:
            return code or 0
        # It may have mounted, and not yet have given us what another server needs to go on.
        mount = mount_on(self._directory)
        self._left_dead_mount = mount is not None and is_ours(mount) and mount != self._mount_before
        raise MountError(
            "the server of the mount died, and nothing is left to go on with",
            found=f"it ended by {signal.Signals(-code).name}",
            where=Where(path=os.fspath(self._directory)),
            hint="see the log, and mount it again",
        )

    def _has_mount(self) -> bool:
        return any(name == FUSE_NAME and not connection_is_over(held) for name, held in self._held)

    # --- Servers ----------------------------------------------------------------------------------------

    def _replace(self, code: int | None, signals: int) -> bool:
        """Start another server; False when a signal came first. Raises MountError when it is in vain."""
        lived_s = time.monotonic() - self._begun
        self._quick_deaths = self._quick_deaths + 1 if lived_s < QUICK_DEATH_S else 1
        how = "" if code is None else f", by {signal.Signals(-code).name}" if code < 0 else f", with {code}"
        if self._quick_deaths > QUICK_DEATHS_MAX:
            raise MountError(
                "servers of the mount die again and again",
                found=f"{self._quick_deaths} within {QUICK_DEATH_S:g} s of their start; the last one{how}",
                where=Where(path=os.fspath(self._directory)),
                hint="it is unmounted; the log says what they met",
            )
        log.error("process %d, which served the mount, has died%s: starting another", self._server, how)
        pause_s = 0.0 if self._quick_deaths == 1 else _PAUSE_S * 2 ** (self._quick_deaths - 2)
        select.select([signals], [], [], pause_s)
        self._heed(signals)
        if self._is_stopping:
            return False
        self._start()
        return True

    def _start(self) -> None:
        self._begun = time.monotonic()
        child = os.fork()
        if child == 0:
            self._become_server()
        self._watch(child)

    def _become_server(self) -> NoReturn:
        try:
            for number in (*STOP_SIGNALS, signal.SIGCHLD):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            environment = os.environ | {"NOTIFY_SOCKET": os.fspath(self._address)}
            if self._held:
                environment["LISTEN_PID"] = str(os.getpid())
                environment["LISTEN_FDS"] = str(len(self._held))
                environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self._held)
            # out of the way first: one may lie where another has to go
            above = FIRST_DESCRIPTOR + len(self._held)
            moved = [fcntl.fcntl(held, fcntl.F_DUPFD_CLOEXEC, above) for _, held in self._held]
            for place, descriptor in enumerate(moved, FIRST_DESCRIPTOR):
                os.dup2(descriptor, place)
            os.execve(self._command[0], list(self._command), environment)  # noqa: S606  # no shell is the point
        finally:
            os._exit(127)

    def _watch(self, pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # it has died already, and so will the one that we watch, which has given it the mount
        if self._server_fd >= 0:
            os.close(self._server_fd)
        self._server, self._server_fd = pid, descriptor

    def _reap(self) -> int | None:
        """Take leave of all children that have ended; returns how the server did, None when it was no child.

        That is its exit code, or a signal's number less than 0.
        """
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        return self._codes.pop(self._server, None)

    # --- What others say --------------------------------------------------------------------------------

    def _heed(self, signals: int) -> None:
        with suppress(BlockingIOError):
            while numbers := os.read(signals, 64):
                for number in numbers:
                    if number in STOP_SIGNALS:
                        log.info("passing signal %s on", signal.Signals(number).name)
                        self._is_stopping = True
                        self._stop()

    def _stop(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._server_fd, signal.SIGTERM)

    def _read_notices(self) -> None:
        import socket

        with suppress(BlockingIOError):
            while True:
                text, descriptors, _ = received(self._notices, _MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
                lines = text.decode(errors="replace").splitlines()
                self._take_notice(dict(line.split("=", 1) for line in lines if "=" in line), descriptors)

    def _take_notice(self, notice: dict[str, str], descriptors: list[int]) -> None:
        name = notice.get("FDNAME", "")
        if notice.get("FDSTORE") == "1" and len(self._held) + len(descriptors) <= HELD_DESCRIPTORS_MAX:
            self._held += [(name, descriptor) for descriptor in descriptors]
        else:
            for descriptor in descriptors:
                os.close(descriptor)
        if notice.get("FDSTOREREMOVE") == "1":
            for held in [held for held in self._held if held[0] == name]:
                os.close(held[1])
                self._held.remove(held)
        if (pid := notice.get("MAINPID", "")).isdigit() and int(pid) != self._server:
            log.info("process %s serves the mount now", pid)
            self._begun = time.monotonic()
            self._watch(int(pid))
            if self._is_stopping:
                self._stop()


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])
