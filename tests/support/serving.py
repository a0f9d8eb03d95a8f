"""Runs ``rafsfs serve`` for tests; starts no guest."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.mounts import END_S, start_rafsfs

WAITING = "Waiting for vhost-user socket connection"


class Server:
    """A server that runs, and what it said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._ready = threading.Event()
        # Somebody has to read on: a full pipe would hold up the server.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if WAITING in line:
                self._ready.set()
        self._ready.set()

    def wait_until_ready(self) -> None:
        assert self._ready.wait(END_S)
        assert self.process.poll() is None, "".join(self.lines)

    def end(self) -> None:
        """Stop it; everything that it said is in ``lines`` then."""
        self.process.terminate()
        code = self.process.wait(END_S)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stdout.read()
        self.process.stdout.close()
        self.process.stderr.close()
        assert (code, said) == (0, ""), "".join(self.lines)


@contextmanager
def serving(image: object, sockets: Sequence[Path], *arguments: object) -> Iterator[Server]:
    """Serve an image on sockets, one for each guest."""
    options = [word for path in sockets for word in ("--socket-path", path)]
    server = Server(start_rafsfs("serve", image, *options, *arguments))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()
