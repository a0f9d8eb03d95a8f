"""How a mount shall look and what ends it, the same for every front end; imports none of them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from rafsfs.frontends.handover import Handover, ImageIdentity
    from rafsfs.fs.filesystem import FileSystem

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Each of them unmounts, and the server returns."""

_HINTS: Final = (
    ("user_allow_other", "put a line user_allow_other into /etc/fuse.conf, or mount without --allow-other"),
    ("write access", "choose a directory that you can write to"),
    ("not owned by user", "choose a directory of your own"),
    ("too many", "raise mount_max in /etc/fuse.conf, or unmount something"),
    ("only be used by root", "leave that option out, or mount as root"),
    ("/dev/fuse", "see that /dev/fuse is there and that you may open it"),
    ("fusermount3: No such file", "users mount through it: install the package fuse3"),
    ("not permitted", "root without CAP_SYS_ADMIN may not mount: see how this container was started"),
    ("Invalid argument", "see that /dev/fuse is the device of FUSE: character special, 10:229"),
    ("No such device", "load the module: modprobe fuse"),
    ("No such file", "see that the mount point is still there"),
)
"""What can be done about what libfuse 3 (lib/mount.c), fusermount3 (util/fusermount.c) and mount(2) say."""


def hint_on(complaint: str) -> str | None:
    """Say what can be done about a mount that was refused, if anything is known."""
    return next((hint for words, hint in _HINTS if words in complaint), None)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom all files shall belong to; None leaves what the image says."""

    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the mount shall look; ``flags`` are options of mount(8) for the kernel, such as ``noexec``.

    ``image`` and ``handover`` are for front ends that can have the mount from another server or give it away.
    """

    source: str
    allow_other: bool = False
    owner: Owner = field(default_factory=Owner)
    flags: frozenset[str] = frozenset()
    image: ImageIdentity | None = None
    handover: Handover | None = None


Serve: TypeAlias = "Callable[[FileSystem, Path, MountOptions, Callable[[], None]], None]"
"""A front end: mounts on the directory, calls the last argument once it serves, returns when unmounted.

Raises ``MountError`` when it cannot be mounted; nothing is mounted then.
"""
