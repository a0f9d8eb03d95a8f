"""Runs QEMU guests with virtio-fs devices and talks to them over a serial line; makes no image or kernel."""

from __future__ import annotations

import base64
import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from support import guest_boot

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 512
BOOT_S = 180  # a boot takes 4 s; other tests may share the machine
COMMAND_S = 180
FATAL = (b"Kernel panic", b"guest: cannot")


class GuestError(Exception):
    """A guest did not do what it was asked; the text ends with the last lines of its console."""


@dataclass(frozen=True)
class Said:
    """What a command in the guest left behind."""

    status: int
    output: str
    errors: str


def has_kvm() -> bool:
    """Whether the processor can run guests: there are machines with a /dev/kvm that cannot."""
    flags = Path("/proc/cpuinfo").read_text()
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and (" vmx " in flags or " svm " in flags)


class Guest:
    """One QEMU process; the context manager boots it and ends it.

    ``shares``: tag -> socket of a vhost-user-fs back end. ``root``: (device or tag, file system type) to
    switch to, or None to stay in the initramfs. ``disk``: a file that is /dev/vda, read-only.
    """

    def __init__(
        self,
        initramfs: Path,
        shares: Mapping[str, Path],
        *,
        root: tuple[str, str] | None = None,
        overlay: bool = False,
        disk: Path | None = None,
        memory_mib: int = MEMORY_MIB,
        parameters: Sequence[str] = (),
    ) -> None:
        words = ["console=ttyS0", "quiet", "mitigations=off", "nokaslr", "no_timer_check", *parameters]
        if root is not None:
            words += [f"root={root[0]}", f"rootfstype={root[1]}"]
        if overlay:
            words.append("overlay=1")
        self.console = bytearray()
        self._arguments = command(initramfs, shares, words, disk, memory_mib)
        self._line: socket.socket
        self._process: subprocess.Popen[bytes]
        self._unread = bytearray()

    def __enter__(self) -> Guest:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start QEMU and wait until the guest's agent is there."""
        self._line, theirs = socket.socketpair()
        with theirs:
            arguments = [*self._arguments, "-chardev", f"socket,id=agent,fd={theirs.fileno()}"]
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        self._unread.clear()
        try:
            self.wait_for_boot()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End QEMU at once, as a crash would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self.console += self._process.stdout.read()
        self._process.stdout.close()
        self._line.close()

    def wait_for_boot(self) -> None:
        """Wait for the agent of a guest that starts."""
        while (line := self._read_line(BOOT_S)) != b"ready":
            raise GuestError(f"expected the agent, got {line!r}{self._tail()}")

    def reboot(self) -> None:
        """Let the guest reboot itself; QEMU stays, its devices are reset."""
        self.send("reboot -f || echo b >/proc/sysrq-trigger")
        self.wait_for_boot()

    def ask(self, command: str, timeout_s: float = COMMAND_S) -> Said:
        """Run a shell command in the guest."""
        self.send(command)
        return self.receive(timeout_s)

    def receive(self, timeout_s: float = COMMAND_S) -> Said:
        """What the command that was sent left behind."""
        status, output, errors = self._read_line(timeout_s).split(b",")
        return Said(
            int(status), *(base64.b64decode(part).decode(errors="replace") for part in (output, errors))
        )

    def run(self, *words: object, timeout_s: float = COMMAND_S) -> str:
        """Run a command, or a line of shell, that has to succeed; returns its output."""
        line = shlex.join(map(str, words)) if len(words) > 1 else str(words[0])
        said = self.ask(line, timeout_s)
        if said.status:
            raise GuestError(f"exit code {said.status}: {line}\n{said.output}{said.errors}{self._tail()}")
        return said.output

    def send(self, command: str) -> None:
        """Have a shell command run, and do not wait for it."""
        self._line.sendall(base64.b64encode(command.encode()) + b"\n")

    def wait_for_console(self, words: str) -> None:
        """Wait until the guest has written this to its console."""
        deadline = time.monotonic() + BOOT_S
        while words.encode() not in self.console:
            self._hear(deadline)

    def _read_line(self, timeout_s: float) -> bytes:
        """The next line from the agent; meanwhile the console is kept."""
        deadline = time.monotonic() + timeout_s
        while (end := self._unread.find(b"\n")) < 0:
            self._hear(deadline)
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line.strip(b"\r")

    def _hear(self, deadline: float) -> None:
        """Wait until agent or console say something."""
        assert self._process.stdout is not None
        left = max(deadline - time.monotonic(), 0)
        ready, _, _ = select.select([self._line, self._process.stdout], [], [], left)
        if not ready:
            raise GuestError(f"nothing heard for too long{self._tail()}")
        if self._line in ready:
            self._unread += self._line.recv(1 << 16)
        if self._process.stdout in ready:
            said = os.read(self._process.stdout.fileno(), 1 << 16)
            self.console += said
            if not said or any(word in self.console for word in FATAL):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                raise GuestError(f"the guest is dead{self._tail()}")

    def _tail(self) -> str:
        return "\n" + bytes(self.console[-3000:]).decode(errors="replace")


def command(
    initramfs: Path, shares: Mapping[str, Path], words: Sequence[str], disk: Path | None, memory_mib: int
) -> list[str]:
    """QEMU's command line but for the agent's descriptor. The console is its output."""
    line = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-smp", "1", "-m", f"{memory_mib}M"]
    line += ["-accel", "kvm"] if has_kvm() else ["-accel", "tcg"]
    line += ["-cpu", "host" if has_kvm() else "max", "-machine", "q35,memory-backend=memory"]
    # The back end reads and writes the guest's memory: it has to be a file that can be shared.
    line += ["-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"]
    for number, (tag, path) in enumerate(shares.items()):
        line += ["-chardev", f"socket,id=share{number},path={path}"]
        line += ["-device", f"vhost-user-fs-pci,chardev=share{number},tag={tag},queue-size=1024"]
    if disk is not None:
        line += ["-drive", f"if=none,id=disk,file={disk},format=raw,readonly=on"]
        line += ["-device", "virtio-blk-pci,drive=disk"]
    line += [
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
        "-serial",
        "chardev:agent",
    ]
    return [*line, "-kernel", str(guest_boot.kernel()), "-initrd", str(initramfs), "-append", " ".join(words)]
