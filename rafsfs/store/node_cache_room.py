"""Keeps a node cache within its size: scans its folder, removes what was not used for longest; reads no file.

There is no index that a crash could leave wrong. How much was written since the last scan is the length of a
file that every process appends to; whoever finds it long enough scans, one process at a time, and removes
files by their time of use until a tenth of the room is free. A file that a reader has open stays readable.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger("rafsfs.store")

GROWTH_FILE: Final = "grown"
LOCK_FILE: Final = "lock"
LOW_WATER: Final = 0.9
_FLAGS: Final = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_GROWTH_UNIT: Final = 64 << 10  # bytes of chunks for each byte of the growth file
_SLACK_SHARE: Final = 16  # a scan for each sixteenth of the room that was written
_TEMPORARY_AGE_S: Final = 3600.0  # nobody writes one file for so long: it was left by a crash


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache: its path, what it occupies in bytes, when it was used last (Unix seconds)."""

    path: str
    size: int
    used: float
    is_chunk: bool

    @property
    def chunk_id(self) -> bytes:
        """The id that its name is."""
        folder, name = self.path.split("/")[-2:]
        return bytes.fromhex(folder + name)


@dataclass(frozen=True, slots=True)
class Made:
    """What a collection did: files and bytes that stay, files and bytes that went."""

    files: int
    size: int
    removed: int
    removed_bytes: int


def entries(chunks: Path) -> Iterator[Entry]:
    """All files of a cache, temporary ones too; what others remove meanwhile is left out."""
    try:
        folders = sorted(os.scandir(chunks), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for folder in folders:
        if not folder.is_dir(follow_symlinks=False):
            continue
        try:
            found = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        for file in found:
            try:
                status = file.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not file.is_dir(follow_symlinks=False):
                is_chunk = _is_chunk(folder.name + file.name)
                yield Entry(file.path, 512 * status.st_blocks, status.st_mtime, is_chunk)


def _is_chunk(digits: str) -> bool:
    return len(digits) == 64 and set(digits) <= set("0123456789abcdef")


def note_growth(folder: Path, count: int) -> int:
    """Note that so many bytes were written; returns how many were since the last scan. Raises OSError."""
    file = os.open(folder / GROWTH_FILE, os.O_WRONLY | os.O_APPEND | _FLAGS, 0o600)
    try:
        os.write(file, bytes(-(-count // _GROWTH_UNIT)))
        return os.fstat(file).st_size * _GROWTH_UNIT
    finally:
        os.close(file)


class Room:
    """The size that a cache may have."""

    def __init__(self, folder: Path, chunks: Path, bytes_max: int) -> None:
        self._folder = folder
        self._chunks = chunks
        self.bytes_max = bytes_max
        self.slack_bytes = bytes_max // _SLACK_SHARE

    def make(self, *, halve: bool = False) -> Made | None:
        """Remove what was used least lately, if it is too much; None when another process does it now.

        With ``halve`` half of what is there goes, for a disk that others have filled.
        """
        try:
            lock = os.open(self._folder / LOCK_FILE, os.O_RDWR | _FLAGS, 0o600)
        except OSError:  # full, or read-only: there is nothing to be written, then
            lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return self._collect(halve)
        finally:
            os.close(lock)

    def _collect(self, halve: bool) -> Made:
        found = sorted(entries(self._chunks), key=lambda entry: entry.used)
        _forget_growth(self._folder)
        size = sum(entry.size for entry in found)
        wanted = size
        if halve:
            wanted = size // 2
        elif size > self.bytes_max - self.slack_bytes:
            wanted = int(self.bytes_max * LOW_WATER) - self.slack_bytes
        stale = time.time() - _TEMPORARY_AGE_S
        removed = removed_bytes = 0
        for entry in found:
            is_left_over = not entry.is_chunk and entry.used < stale
            if is_left_over or (entry.is_chunk and size - removed_bytes > wanted):
                try:
                    os.unlink(entry.path)  # noqa: PTH108  # as os.scandir gives it
                except OSError as error:
                    log.debug("%s stays in the node cache: %s", entry.path, error)
                    continue
                removed += 1
                removed_bytes += entry.size
        if removed:
            log.info("the node cache let %d files go, %d bytes", removed, removed_bytes)
        return Made(len(found) - removed, size - removed_bytes, removed, removed_bytes)


def _forget_growth(folder: Path) -> None:
    try:
        os.truncate(folder / GROWTH_FILE, 0)
    except FileNotFoundError:
        return
    except OSError as error:
        log.debug("%s: %s", folder / GROWTH_FILE, error)
