"""Encoded chunks and pages on this machine's disk, by their ids; shared by processes and images, believed by
nobody.

``FOLDER/v1/XX/...`` is named after the id in hex, which is the BLAKE3 of what is in it, so whoever reads a
file can tell whether it is the one. It holds nothing that a registry would not show: ciphertext, of sealed
images, and plain pieces of layers that are not encrypted. Nothing is locked and nothing synced: a file
appears by a rename, and what a crash leaves is thrown away when it is read.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from blake3 import blake3

from rafsfs.store.node_cache_room import Entry, Room, entries, note_growth
from rafsfs.types import EncodedBytes

log = logging.getLogger("rafsfs.store")

VERSION_FOLDER: Final = "v1"
TEMPORARY_PREFIX: Final = ".new-"
PAUSE_S: Final = 30.0
"""For so long nothing is put into a cache that could not be written to."""

_REMOVALS_MAX: Final = 3  # of the folder while one file is written; more is no accident
_USED_AFRESH_S: Final = 600.0  # a file's time of use is exact to that: most reads then write nothing


@dataclass(slots=True)
class CacheCounts:
    """What a process asked of the cache. ``bad`` files were not what their names say, and are gone."""

    hits: int = 0
    misses: int = 0
    bad: int = 0
    stored: int = 0
    stored_bytes: int = 0
    not_stored: int = 0


class NodeCache:
    """One folder. Any thread and any number of processes may use it; nothing that goes wrong is raised."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Touches nothing yet. The files together have at most ``bytes_max`` bytes, and a bit for a while."""
        self.folder = folder
        self.chunks = folder / VERSION_FOLDER
        self._prefix = os.fspath(self.chunks)
        self._room = Room(folder, self.chunks, bytes_max)
        self._lock = threading.Lock()
        self._counts = CacheCounts()
        self._paused_until = 0.0
        self._number = 0

    def entries(self) -> Iterator[Entry]:
        """All chunks that are here now, whatever is in them."""
        return (entry for entry in entries(self.chunks) if entry.is_chunk)

    def counts(self) -> CacheCounts:
        """All counts of one moment."""
        with self._lock:
            return replace(self._counts)

    def get(self, chunk_id: bytes, length: int) -> EncodedBytes | None:
        """The ``length`` bytes that lie under this id; None when they are not here.

        They were not compared with the id: decoding does that, and to digest them takes half as long as to
        read them. Whoever finds that they are others calls ``discard``.
        """
        data = _read(self._name(chunk_id), length)
        if data is None:
            with self._lock:
                self._counts.misses += 1
            return None
        if len(data) != length:
            self.discard(chunk_id)
            return None
        with self._lock:
            self._counts.hits += 1
        return EncodedBytes(data)

    def discard(self, chunk_id: bytes) -> None:
        """Remove what lies under this id: it is something else."""
        log.warning("%s in the node cache is damaged; it is removed, and fetched again", chunk_id.hex())
        with suppress(OSError):
            os.unlink(self._name(chunk_id))  # noqa: PTH108
        with self._lock:
            self._counts.bad += 1

    def has(self, chunk_id: bytes) -> bool:
        """Whether there is a file for it, whatever it holds."""
        return os.path.exists(self._name(chunk_id))  # noqa: PTH110

    def put(self, chunk_id: bytes, data: bytes) -> bool:
        """Keep bytes whose id was checked; False when that is not possible, which is logged once."""
        if time.monotonic() < self._paused_until:
            with self._lock:
                self._counts.not_stored += 1
            return False
        try:
            self._keep(Path(self._name(chunk_id)), data)
        except OSError as error:
            self._pause(error)
            with self._lock:
                self._counts.not_stored += 1
            return False
        with self._lock:
            self._counts.stored += 1
            self._counts.stored_bytes += len(data)
        self._grew(len(data))
        return True

    def _keep(self, path: Path, data: bytes) -> None:
        """Write a file, and its folder when there is none: not yet, or because somebody removes it now."""
        for _ in range(_REMOVALS_MAX):
            with suppress(FileNotFoundError):
                self._write(path, data)
                return
            with suppress(FileNotFoundError):
                for made in (self.folder, self.chunks, path.parent):
                    made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(path, data)

    def _write(self, path: Path, data: bytes) -> None:
        with self._lock:
            self._number += 1
            number = self._number
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{id(self):x}-{number}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(temporary, flags, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            finally:
                os.close(file)
            temporary.rename(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _pause(self, error: OSError) -> None:
        """Go on without storing for a while: what could not be written now cannot be a moment later."""
        with self._lock:
            was_paused = self._paused_until > 0
            self._paused_until = time.monotonic() + PAUSE_S
        if not was_paused:
            log.warning(
                "the node cache %s cannot be written to (%s): reads go on without it",
                self.folder,
                error.strerror or error,
            )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with suppress(OSError):
                self._room.make(halve=True)

    def _grew(self, count: int) -> None:
        try:
            if note_growth(self.folder, count) > self._room.slack_bytes:
                self._room.make()
        except FileNotFoundError:
            return  # somebody removed the folder since the chunk was written: it holds nothing
        except OSError as error:
            self._pause(error)

    def _name(self, chunk_id: bytes) -> str:
        """Where a chunk is: text, because making a Path takes as long as reading the file."""
        digits = chunk_id.hex()
        return f"{self._prefix}/{digits[:2]}/{digits[2:]}"


def verified(path: Path, chunk_id: bytes) -> bool:
    """Whether a file of the cache is the one that its name says; one that is gone is."""
    try:
        size = path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return True
    data = _read(path, size)
    return data is not None and blake3(data).digest() == chunk_id


def _read(path: str | Path, length: int) -> bytes | None:
    """Up to ``length + 1`` bytes of a regular file, marked as used; None when it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return b""
        wanted = min(length + 1, status.st_size)
        data = os.read(file, wanted)
        while 0 < len(data) < wanted:
            more = os.read(file, wanted - len(data))
            if not more:
                break
            data += more
        if time.time() - status.st_mtime > _USED_AFRESH_S:
            with suppress(OSError):  # of a folder that is read-only
                os.utime(file)
    except OSError:
        return None
    finally:
        os.close(file)
    return data
