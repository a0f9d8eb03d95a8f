"""Gets a FUSE connection mounted on Linux, by mount(2) as root and by fusermount3 otherwise; serves nothing.

Source of the mount options: Linux fs/fuse/inode.c (fuse_fs_parameters); of fusermount3's ways: libfuse
lib/mount.c (fuse_mount_fusermount).
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rafsfs.errors import MountError, Where
from rafsfs.frontends.mount_options import MountOptions, hint_on
from rafsfs.frontends.mountpoint_linux import (
    DEVICE,
    FUSERMOUNT,
    MNT_DETACH,
    TYPE,
    UMOUNT_NOFOLLOW,
    connection_is_over,
    mount_on,
    mounts,
)

if TYPE_CHECKING:
    import socket

log = logging.getLogger("rafsfs.mount")

_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # MS_* of mount(2)

_FLAGS_ON: Final = {"nosuid": _NOSUID, "nodev": _NODEV, "noexec": _NOEXEC}
_FLAGS_OFF: Final = {"suid": _NOSUID, "dev": _NODEV, "exec": _NOEXEC}
_FLAGS_DEFAULT: Final = _RDONLY | _NOSUID | _NODEV
"""As libfuse has it: who makes an image must not get root's rights on a machine that mounts it."""

READ_AHEAD_KIB: Final = 1024
"""What the kernel asks for ahead of a sequential reader. Its default, 128, is an eighth of what one request
may ask for."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A FUSE mount that waits for its server. ``fd`` is /dev/fuse.

    ``device`` and ``source`` are as the mount table has them: a number such as 0:57, and a text.
    """

    fd: int
    device: str
    source: str

    def raise_read_ahead(self) -> None:
        """Let the kernel read further ahead; only root may, others keep the default.

        Asks the mount nothing. The kernel's answer to INIT would undo it, so call it later.
        """
        setting = Path(f"/sys/class/bdi/{self.device}/read_ahead_kb")
        with suppress(OSError):  # no sysfs in this container, or not root: it only costs speed
            setting.write_text(str(READ_AHEAD_KIB))

    def detach(self) -> None:
        """Take the mount out of sight wherever it is; what still uses it gets errors once ``fd`` is closed.

        Does nothing when it has been unmounted already: its device number may be another mount's by then.
        """
        if connection_is_over(self.fd):
            return
        for mount in reversed(mounts()):
            if (mount.device, mount.type, mount.source) == (self.device, TYPE, self.source):
                directory = Path(mount.directory)
                if mount_on(directory) == mount:
                    _unmount(directory)
                else:
                    _still_there(directory, "another mount is on top of it")


def mount(directory: Path, options: MountOptions) -> Connection:
    """Mount on ``directory``, a real path. Raises MountError; nothing is mounted then."""
    as_root = os.geteuid() == 0
    fd = _mount_as_root(directory, options) if as_root else _mount_as_user(directory, options)
    found = mount_on(directory)
    if found is None or found.type != TYPE:
        os.close(fd)
        raise _refused(directory, "it is not in the mount table")
    return Connection(fd, found.device, found.source)


def _mount_as_root(directory: Path, options: MountOptions) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(directory, f"{DEVICE}: {error.strerror}") from error
    data = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
    data += ",default_permissions" + (",allow_other" if options.allow_other else "")
    flags = _FLAGS_DEFAULT
    for name in options.flags:
        flags = flags & ~_FLAGS_OFF.get(name, 0) | _FLAGS_ON.get(name, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(options.source), os.fsencode(directory), TYPE.encode()
    if libc.mount(*names, ctypes.c_ulong(flags), data.encode()) != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise _refused(directory, os.strerror(code))
    return fd


def _mount_as_user(directory: Path, options: MountOptions) -> int:
    """fusermount3 mounts for us and passes the descriptor over a socket that it finds in ``_FUSE_COMMFD``."""
    import socket
    import subprocess

    source = options.source.replace("\\", "\\\\").replace(",", "\\,")  # as libfuse reads it: fuse_opt.c
    words = ["ro", "default_permissions", f"fsname={source}", "subtype=rafsfs", *sorted(options.flags)]
    if options.allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environment = os.environ | {"LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())}
        try:
            done = subprocess.run(
                [FUSERMOUNT, "-o", ",".join(words), "--", os.fspath(directory)],
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                pass_fds=(theirs.fileno(),),
                check=False,
            )
        except OSError as error:
            raise _refused(directory, f"{FUSERMOUNT}: {error.strerror}") from error
        theirs.close()  # so that receiving ends even when nothing was sent
        descriptor = _receive_descriptor(ours) if done.returncode == 0 else None
    if descriptor is None:
        said = " ".join(done.stderr.split()) or f"{FUSERMOUNT} passed no descriptor"
        raise _refused(directory, said)
    return descriptor


def _receive_descriptor(connection: socket.socket) -> int | None:
    import array
    import socket

    descriptors = array.array("i")
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: descriptors.itemsize])
    if not descriptors:
        return None
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _unmount(directory: Path) -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(directory), UMOUNT_NOFOLLOW | MNT_DETACH) == 0:
            return
        _still_there(directory, os.strerror(ctypes.get_errno()))
        return
    import subprocess

    command = [FUSERMOUNT, "-u", "-z", "--", os.fspath(directory)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        _still_there(directory, " ".join(done.stderr.split()))


def _still_there(directory: Path, complaint: str) -> None:
    # Somebody may have been faster. If not, the mount is dead but in sight, and only a person can help.
    log.error("%s could not be unmounted: %s", directory, complaint)


def _refused(directory: Path, found: str) -> MountError:
    return MountError(
        "the mount was refused", found=found, where=Where(path=str(directory)), hint=hint_on(found)
    )
