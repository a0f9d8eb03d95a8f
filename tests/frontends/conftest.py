"""Mounts of the file system in memory, and connections without a kernel, for the tests of this folder."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fuse_kernel import LONG_S, Kernel, threads, wait_until
from support.mounts import wait_for_lines

from rafsfs.frontends.mountpoint_linux import mount_on

PROGRAM = Path(__file__).with_name("memory_server.py")
ROOT = Path(__file__).parents[2]


def load_program():
    spec = importlib.util.spec_from_file_location("memory_server", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class MemoryMount:
    """A mount whose server is a process of its own."""

    def __init__(self, folder, frontend, words):
        self.frontend = frontend
        self.path = folder / "mount"
        self.path.mkdir()
        self._journal = folder / "journal"
        self._log = folder / "log"
        self.gate = folder / "gate"
        command = [sys.executable, PROGRAM, frontend, self.path, self._journal, *words]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        started = self.process.stdout.readline()
        assert started == b"mounted\n", self.log()

    def log(self):
        return self._log.read_text()

    def damage_logged(self):
        """The lines about damage, once there are any: they are written beside the reads."""
        return wait_for_lines(self._log, " ERROR")

    def stop(self, number=signal.SIGTERM):
        """End the server; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def calls(self):
        """How often which call was made; stops the server, which writes it then."""
        assert self.stop() == 0, self.log()
        return json.loads(self._journal.read_text())


@pytest.fixture(scope="session")
def memory():
    """The program as a module: what its files hold."""
    return load_program()


@contextmanager
def mounted(folder, frontend, *words):
    folder.mkdir(exist_ok=True)
    mount = MemoryMount(folder, frontend, words)
    try:
        yield mount
    finally:
        mount.stop()
        if mount_on(mount.path) is not None:  # os.path.ismount takes a dead one for none
            subprocess.run(["umount", "-l", mount.path], check=True)


@pytest.fixture(scope="module", params=["devfuse", "pyfuse3"])
def frontend(request):
    """Every test of a mount is one of each front end."""
    return request.param


@pytest.fixture
def mount_memory(tmp_path, frontend):
    """Mount the file system in memory: ``with mount_memory("uid=1") as mount``."""
    return lambda *words: mounted(tmp_path / "memory", frontend, *words)


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory, frontend):
    """One mount for all tests of a module that leave no trace in it."""
    with mounted(tmp_path_factory.mktemp("shared"), frontend) as mount:
        yield mount


@pytest.fixture
def connect():
    """Make connections; end them and all their threads."""
    made = []

    def make(**options):
        made.append(Kernel(**options))
        return made[-1]

    yield make
    for kernel in made:
        kernel.handler.gate.set()
        kernel.stop(LONG_S)
        wait_until(lambda: threads() == [])
        kernel.socket.close()
        kernel.device.close()


@pytest.fixture
def kernel(connect):
    """A connection that is served."""
    kernel = connect()
    kernel.start()
    return kernel
