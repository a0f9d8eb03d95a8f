"""The same measurements in virtual machines: servers of virtio-fs, a guest for each pass; makes no image."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchlib import load, machine
from benchlib.machine import BenchError
from benchlib.measure import Bench
from benchlib.systems import Rafsfs, System
from benchlib.trees import kept

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.guest import Guest  # noqa: E402
from support.guest_boot import initramfs  # noqa: E402

WAITING = b"Waiting for vhost-user socket connection"
START_S = 60
POLL_S = 0.01
GUEST_MEMORY_MIB = 1024
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
"""The C one of Debian 12, the Rust one of later releases."""


def tools_disk():
    """The guests' root file system, with Python."""
    made = machine.run(ROOT / ".venv/bin/python", ROOT / "tests/support/guest_tools.py")
    return Path(made.decode().splitlines()[-1])


class InGuest(System):
    """A server on this machine, and a guest that mounts what it serves; ``directory`` is one in the guest."""

    def __init__(self, name, tree, work):
        super().__init__(name, tree, work)
        self.directory = "/mnt"
        self.socket = Path(work, f"{name}.socket")
        self.log = Path(work, f"{name}.log")
        self.server = self.guest = None

    def boot_from(self, files, disk):
        """Say what its guests boot from."""
        self.files, self.disk = files, disk

    def command(self):
        """The command line of the server."""
        raise NotImplementedError

    def mount(self):
        self.socket.unlink(missing_ok=True)
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [str(word) for word in self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while WAITING not in self.log.read_bytes():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not serve\n{self.log.read_text()[-2000:]}")
            time.sleep(POLL_S)
        self.guest = Guest(
            self.files,
            {"tree": self.socket},
            root=("/dev/vda", "erofs"),
            disk=self.disk,
            memory_mib=GUEST_MEMORY_MIB,
        )
        self.guest.start()
        self.guest.run(f"mount -t virtiofs -o ro tree {self.directory}")

    def unmount(self):
        if self.guest is not None:
            self.guest.kill()
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
        self.guest = self.server = None

    def run(self, name):
        """Do one pass in the guest; returns row -> number."""
        self.guest.run("echo 3 >/proc/sys/vm/drop_caches")
        words = ("python3", "/run/extra/load.py", name, self.directory, "/run/extra/names", self.tree.big)
        return json.loads(self.guest.run(*words, timeout_s=900))


class RafsfsInGuest(InGuest):
    """This project: the image of ``ours`` by ``rafsfs serve``."""

    is_server = True

    def __init__(self, name, tree, work, program, serve_options=()):
        super().__init__(name, tree, work)
        self.ours = Rafsfs(name, tree, work, program)
        self.serve_options = tuple(serve_options)

    def shares(self, other):
        """Take another one's image instead of building one."""
        self.ours.shares(other.ours)

    def prepare(self):
        self.ours.prepare()

    def command(self):
        ours = self.ours
        words = (*ours.program, "serve", ours.folder, "--socket-path", self.socket, "--key", ours.key)
        return (*words, *self.serve_options)


class RafsfsLoop(RafsfsInGuest):
    """This project, serving one file: an EROFS of the tree, which the guest mounts through a loop device."""

    def prepare(self):
        inner = self.folder.with_name(f"{self.name}.tree")
        kept(inner, [self.tree.fingerprint, "erofs"], self._make_inner)
        self.ours.tree = type(self.tree)(inner)
        self.ours.prepare()

    def _make_inner(self, folder):
        os.makedirs(folder)
        machine.run("mkfs.erofs", Path(folder, "image"), self.tree.path)

    def mount(self):
        super().mount()
        self.guest.run("mkdir /run/inner && mount -t erofs -o ro,loop /mnt/image /run/inner")
        self.directory = "/run/inner"

    def unmount(self):
        super().unmount()
        self.directory = "/mnt"


class Virtiofsd(InGuest):
    """QEMU's own server, over the tree as it lies on the machine's disk; nothing encoded."""

    def missing(self):
        return None if self._program() else "virtiofsd"

    def _program(self):
        return next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)

    def prepare(self):
        pass

    def command(self):
        program = self._program()
        words = (program, f"--socket-path={self.socket}")
        if program == VIRTIOFSD[0]:
            return (*words, "-o", f"source={self.tree.path}", "-o", "cache=always")
        return (*words, "--shared-dir", self.tree.path, "--cache", "always")


SYSTEMS = {"rafsfs": RafsfsInGuest, "rafsfs-loop": RafsfsLoop, "virtiofsd": Virtiofsd}
"""Name -> how to make it; the names are those of the tables."""

ROWS = tuple(row for rows in load.PASSES.values() for row in rows)


class GuestBench(Bench):
    """Does each pass in a guest of its own, with a server of its own."""

    def prepare(self):
        super().prepare()
        extra = {
            "extra/load.py": Path(load.__file__).read_bytes(),
            "extra/names": self._names.read_bytes(),
        }
        files = initramfs(self.work / "initramfs", extra)
        disk = tools_disk()
        for system in self.systems:
            system.boot_from(files, disk)

    def unmount_all(self):
        """End whatever still runs."""
        for system in self.systems:
            system.unmount()

    def _pass(self, system, name, _names):
        return system.run(name)
