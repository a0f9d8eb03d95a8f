"""Writes what a run of a server read first into a file, when it is over; notes nothing itself."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError, RafsError, Where
from rafsfs.format.trace import pack_trace
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.tracing import traced_ranges
from rafsfs.reading.trace import AccessTrace

log = logging.getLogger("rafsfs.mount")

WRITE_DEADLINE_S: Final = 60.0
"""To find the paths takes a walk over the tree, a second for 50,000 names; a store may hang for ever."""


def check_trace_file(path: Path) -> Path:
    """Return the absolute name of a file that can be made. Raises MountError when it cannot."""
    found = None
    if path.is_dir():
        found = "it is a directory"
    elif not path.parent.is_dir():
        found = "its folder is not there"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        found = "you may not write to its folder"
    if found is not None:
        raise MountError("the trace cannot be written", found=found, where=Where(path=str(path)))
    return path.absolute()


@contextmanager
def tracing(filesystem: FileSystem, path: Path) -> Iterator[None]:
    """Trace what is read inside of the ``with``, and write it at its end; not after an exception.

    Raises MountError when the trace cannot be written.
    """
    filesystem.trace = AccessTrace()
    yield
    failures: list[Exception] = []

    def write() -> None:
        try:
            write_trace(filesystem, path)
        except (OSError, RafsError) as error:
            failures.append(error)

    writer = threading.Thread(target=write, name="rafsfs-trace", daemon=True)
    writer.start()
    writer.join(WRITE_DEADLINE_S)
    if writer.is_alive() or failures:
        found = str(failures[0]) if failures else f"not done after {WRITE_DEADLINE_S:g} s"
        raise MountError("the trace was not written", found=found, where=Where(path=str(path)))


def write_trace(filesystem: FileSystem, path: Path) -> int:
    """Write what was noted until now to ``path``, which only its owner may read; returns the number of lines.

    The file appears at once and whole. Raises OSError.
    """
    trace = filesystem.trace
    assert trace is not None, "nothing was traced"
    ranges = traced_ranges(filesystem, trace)
    comment = "cut off: more was read than a trace holds" if trace.is_full else ""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(pack_trace(ranges, comment=comment))
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    log.info("wrote a trace of %d ranges to %s", len(ranges), path)
    return len(ranges)
