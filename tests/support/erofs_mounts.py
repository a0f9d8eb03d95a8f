"""Mounts of images through the kernel's EROFS, on files or on loop devices; never imported by the package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.mounts import END_S, ROOT, mounted

from rafsfs.store.reference import Reference

PROGRAM = ROOT / "tests" / "integration" / "erofs_server.py"


class ErofsServer:
    """A server in a process of its own, and its mount."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log_file: Path) -> None:
        self.process = process
        self.path = path
        self.log_file = log_file

    def log(self) -> str:
        return self.log_file.read_text()

    def said(self) -> str:
        """The next line that the server prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def wait(self, timeout_s: float = END_S) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(timeout_s)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = END_S) -> int:
        """End the server; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout_s)


@contextmanager
def erofs_server(image: Reference | Path, folder: Path, *words: str) -> Iterator[ErofsServer]:
    """Serve ``image``; at the end nothing of it is left, whatever happened to it.

    ``words`` are those of the program. AssertionError with the log when it does not mount.
    """
    path = folder / "mount"
    path.mkdir(parents=True)
    command = [sys.executable, PROGRAM, str(image), path, *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        server = ErofsServer(process, path, folder / "log")
        try:
            assert server.said() == "mounted", server.log()
            yield server
        finally:
            server.stop()
            while mounted(path) is not None:
                subprocess.run(["umount", "--lazy", path], check=True)
