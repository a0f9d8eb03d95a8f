"""Mounts under a container's root directory: tmpfs and overlay, Linux and root only; keeps no state."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

from rafsfs.errors import MountError, Where
from rafsfs.frontends.kernel_mount_api import MountAttribute, NewMount, attach
from rafsfs.frontends.mountpoint_linux import UMOUNT_NOFOLLOW, mount_on, mounts


def mount_tmpfs(directory: Path) -> None:
    """Mount an empty tmpfs that only root gets into. Raises MountError."""
    try:
        with NewMount("tmpfs") as new:
            new.set_string("mode", "0700")
            mount = new.create(MountAttribute.NODEV)
        _attach(mount, directory)
    except OSError as error:
        raise _failed("tmpfs", directory, error) from error


def mount_overlay(directory: Path, lower: Path, upper: Path, work: Path) -> None:
    """Mount ``upper`` over ``lower``; ``work`` is an empty directory beside ``upper``. Raises MountError."""
    paths = {"lowerdir": lower, "upperdir": upper, "workdir": work}
    for path in paths.values():
        if set("\\,:") & set(str(path)):  # how they are escaped differs between kernels
            raise MountError(
                "an overlay's directories cannot have such names",
                expected="no comma, colon or backslash",
                where=Where(path=str(path)),
                hint="choose another folder",
            )
    try:
        with NewMount("overlay") as new:
            new.set_string("source", "rafsfs")
            for name, path in paths.items():
                new.set_string(name, str(path))
            mount = new.create(MountAttribute(0))
        _attach(mount, directory)
    except OSError as error:
        raise _failed("overlay", directory, error) from error


def overlay_on(upper: Path) -> str | None:
    """The directory of an overlay that writes into ``upper``; two of them would spoil each other's files."""
    for mount in mounts():
        for option in mount.options.split(",") if mount.type == "overlay" else ():
            name, _, value = option.partition("=")
            with suppress(OSError):  # there is none yet, or it is of another namespace
                if name == "upperdir" and upper.samefile(value):
                    return mount.directory
    return None


def unmount_all(directory: Path) -> None:
    """Take away whatever is mounted on ``directory``, as often as it is. Raises MountError when in use."""
    libc = ctypes.CDLL(None, use_errno=True)
    while mount_on(directory) is not None:
        if libc.umount2(os.fsencode(directory), UMOUNT_NOFOLLOW) == 0:
            continue
        code = ctypes.get_errno()
        hint = "end what uses it, the container first" if code == errno.EBUSY else "be root"
        raise MountError(
            "it cannot be unmounted", found=os.strerror(code), where=Where(path=str(directory)), hint=hint
        )


def _attach(mount: int, directory: Path) -> None:
    try:
        attach(mount, directory)
    finally:
        os.close(mount)


def _failed(kind: str, directory: Path, error: OSError) -> MountError:
    hints = {
        errno.ENODEV: f"the kernel has no {kind}",
        errno.EPERM: "be root",
        errno.EINVAL: "the folder for what is written must be on a file system that overlays can be on; "
        "not on another overlay or a network",
    }
    return MountError(
        f"the {kind} cannot be mounted",
        found=error.strerror,
        where=Where(path=str(directory)),
        hint=hints.get(error.errno or 0),
    )
