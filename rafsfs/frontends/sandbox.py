"""Takes from a server, once it has opened all it needs, what it needs no longer; serves and opens nothing.

``enter`` is for a process with one thread. What it gives up is gone for good, and for every later thread.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError
from rafsfs.frontends import kernel_mount_api, seccomp
from rafsfs.trust.keys import forbid_core_dumps

log = logging.getLogger("rafsfs.serve")

_CLONE_NEWNS: Final = 0x0002_0000  # linux/sched.h
_CLONE_NEWUTS: Final = 0x0400_0000
_CLONE_NEWIPC: Final = 0x0800_0000
_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWNET: Final = 0x4000_0000

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITIES_MAX: Final = 64
_CAPABILITY_VERSION_3: Final = 0x2008_0522  # linux/capability.h

_REFUSALS: Final = frozenset(
    (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EUSERS)
)
"""What a kernel, a container or an administrator says who does not let us."""


class Walls(enum.StrEnum):
    """What stands between the server and the machine's files and networks."""

    AUTO = "auto"
    NAMESPACE = "namespace"
    CHROOT = "chroot"
    NONE = "none"


class Filter(enum.StrEnum):
    """Whether system calls that serving does not take are forbidden; ``AUTO`` is where that can be had."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def check(walls: Walls, calls: Filter, *, network: bool) -> None:
    """Raise the MountError that ``enter`` would, where it is known from the start."""
    if network:
        fetched = "an image that is fetched while it is served needs the machine's network and its files"
        hint = "copy the image into a folder (rafsfs pull), or leave it to --sandbox auto and --seccomp auto"
        if walls in (Walls.NAMESPACE, Walls.CHROOT):
            raise MountError("the server cannot be locked up", found=fetched, hint=hint)
        if calls is Filter.ON:
            raise MountError("system calls cannot be filtered", found=fetched, hint=hint)
    if calls is Filter.ON and not seccomp.is_known():
        raise MountError("system calls cannot be filtered", found="a processor whose numbers are not known")


def enter(walls: Walls, calls: Filter = Filter.AUTO, *, network: bool = False) -> None:
    """Give up files, networks, privileges and system calls; says in the log what could be had.

    ``AUTO`` takes the best that this process may have.
    ``network``: images are fetched while they are served, so files, networks and system calls stay.
    Raises MountError when what was asked for cannot be had.
    """
    check(walls, calls, network=network)
    forbid_core_dumps()
    found = "its folder is the machine's"
    filtered = calls is not Filter.OFF and not network
    if walls is not Walls.NONE and not network:
        found = _enclose(walls)
    try:
        _drop_capabilities()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if filtered and not seccomp.is_known():
            log.warning("system calls are not filtered: this processor's numbers are not known")
            filtered = False
        if filtered:
            seccomp.allow_serving_only()
    except OSError as error:
        raise _refused("what the server does not need could not be given up", error) from error
    log.info(
        "sandbox: %s, no capabilities, %s", found, "system calls filtered" if filtered else "all system calls"
    )


def _enclose(walls: Walls) -> str:
    if walls is not Walls.CHROOT:
        try:
            return _enter_namespaces()
        except OSError as error:
            if walls is Walls.NAMESPACE or error.errno not in _REFUSALS:
                raise _refused("namespaces cannot be had", error) from error
            log.debug("no namespaces: %s", error)
    try:
        return _enter_empty_folder()
    except OSError as error:
        if walls is Walls.CHROOT or error.errno not in _REFUSALS:
            raise _refused("the root folder cannot be changed", error) from error
        log.debug("no chroot: %s", error)
    return "its folder is the machine's"


def _refused(what: str, error: OSError) -> MountError:
    return MountError(what, found=error.strerror, hint="choose another --sandbox, or start rafsfs as root")


def _enter_namespaces() -> str:
    """Namespaces of our own, in which there is one empty folder that cannot be written to, and no network."""
    apart = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    try:
        _unshare(apart)
    except PermissionError:
        owner = os.geteuid(), os.getegid()
        _unshare(apart | _CLONE_NEWUSER)  # users may, in a namespace where they are nobody else
        _map_owner(*owner)
    with kernel_mount_api.NewMount("tmpfs") as mount:
        mount.set_string("nr_inodes", "1")
        mount.set_string("mode", "555")
        mount.set_flag("ro")
        empty = mount.create(kernel_mount_api.MountAttribute(0xF))
    try:
        kernel_mount_api.become_root(empty, Path("/proc"))
    finally:
        os.close(empty)
    return "namespaces of its own with an empty folder"


def _map_owner(uid: int, gid: int) -> None:
    _prctl(_PR_SET_DUMPABLE, 1)  # else the files below are root's
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    finally:
        _prctl(_PR_SET_DUMPABLE, 0)


def _enter_empty_folder() -> str:
    """A root folder that is nowhere any more: nothing can ever be made in it."""
    folder = Path(tempfile.mkdtemp())
    before = os.open("/", os.O_PATH)
    try:
        os.chdir(folder)
        folder.rmdir()
        os.chroot(".")
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        os.fchdir(before)
        raise
    finally:
        os.close(before)
    return "an empty folder"


def _drop_capabilities() -> None:
    for capability in range(_CAPABILITIES_MAX):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # EPERM: this process has none to give; EINVAL: the kernel knows no more
            break
    with suppress(OSError):  # kernels before 4.3 have no ambient ones
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if _libc().capset(header, none) != 0:
        raise _error()


def _unshare(flags: int) -> None:
    if _libc().unshare(flags) != 0:
        raise _error()


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc().prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        raise _error()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
