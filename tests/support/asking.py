"""The tree that questions about read-only mounts are asked of, and how its answers are told; asks nothing."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
BLOCK: Final = 4096
BIG_BYTES: Final = 3 * MIB + 1234
HOLE: Final = (MIB, 2 * MIB)
"""Where the file with a hole has it."""

Answer = object
Ask = Callable[[Path], Answer]
"""Is given the folder of a tree made by ``plant``; returns what can be compared, or raises OSError."""

libc = ctypes.CDLL(None, use_errno=True)


def plant(root: Path) -> None:
    """Make the tree that the calls know."""
    (root / "folder" / "below").mkdir(parents=True)
    (root / "empty folder").mkdir()
    big = bytes(range(251)) * (BIG_BYTES // 251 + 1)
    (root / "file").write_bytes(big[:BIG_BYTES])
    (root / "small").write_bytes(b"small")
    (root / "empty").touch()
    with (root / "hole").open("wb") as file:
        file.write(b"x" * HOLE[0])
        file.seek(HOLE[1])
        file.write(b"y" * MIB)
    (root / "link").symlink_to("file")
    (root / "dangling").symlink_to("nothing")
    (root / "around").symlink_to("around")
    os.link(root / "small", root / "other name")
    os.mkfifo(root / "fifo")
    (root / "program").write_bytes(b"#!/bin/sh\nexit 7\n")
    (root / "program").chmod(0o755)
    (root / "secret").write_bytes(b"for root")
    (root / "secret").chmod(0o600)
    os.setxattr(root / "small", "user.color", b"green")
    os.setxattr(root / "small", "trusted.more", b"red")
    for path in (root, *sorted(root.rglob("*"))):
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)


def tried(ask: Callable[..., Answer], *arguments: object) -> Answer:
    """What a call gives: its value, or the name of its error."""
    try:
        return ask(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def call(function: Callable[..., int], *arguments: object) -> int:
    """Call a function of libc that returns -1 for an error."""
    if (result := function(*arguments)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor, closed at the end."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def opens(path: Path | str, flags: int) -> str:
    with opened(path, flags):
        return "opened"
