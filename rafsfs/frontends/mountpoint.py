"""What has to be true of a mount point before, during and after a mount, on any system; never mounts."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

from rafsfs.errors import MountError, MountPointBusy, MountPointNotDirectory, Where


def check(directory: Path) -> Path:
    """Return the real path of a directory that can be mounted on.

    Raises ``MountError`` when it is missing, no directory, in use, dead or not ours, or when the system lacks
    what mounting takes.
    """
    real = Path(os.path.realpath(directory))
    try:
        status = real.stat()
    except FileNotFoundError:
        raise _refused(
            "the mount point does not exist", directory, f"make it: mkdir -p {directory}"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            hint = f"clear it away: rafsfs umount {directory}"
            raise _refused("a mount whose server has died is on the mount point", directory, hint) from None
        raise _refused(f"the mount point cannot be used: {error.strerror}", directory) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(
            "the mount point is not a directory", directory, "name a directory", kind=MountPointNotDirectory
        )
    if _is_linux():
        from rafsfs.frontends import mountpoint_linux

        mountpoint_linux.check(real)
    if os.path.ismount(real):
        raise in_use(directory)
    if os.geteuid() != 0 and not os.access(real, os.W_OK | os.X_OK):
        raise _refused(
            "you may not write to the mount point", directory, "mount on a directory of your own, or as root"
        )
    return real


def in_use(directory: Path, by: str | None = None) -> MountError:
    """Make the error for a directory on which something is mounted already."""
    return _refused(
        "something is mounted on the mount point already",
        directory,
        f"unmount it (rafsfs umount {directory}) or choose another directory",
        by,
        kind=MountPointBusy,
    )


def check_serving(directory: Path, device_before: int) -> None:
    """Ask the new mount for its root, which only its server can answer, and wait for the answer.

    ``device_before`` is ``st_dev`` of the bare directory. Raises ``MountError`` when there is no answer.
    """
    try:
        status = directory.stat()
    except OSError as error:
        raise _refused(f"the mount does not answer: {error.strerror}", directory, "see the log") from error
    if status.st_dev == device_before:
        raise _refused("the mount has gone again", directory, "see the log")


def unmount(directory: Path, *, lazy: bool = False) -> list[int]:
    """Unmount ``directory``, also when its server is dead; wait until it is gone.

    ``lazy`` takes it out of sight at once and lets those who use it finish. Returns the processes that still
    serve it when the wait for their end was too long, as far as that can be known. Raises ``MountError``.
    """
    if _is_linux():
        from rafsfs.frontends import mountpoint_linux

        return mountpoint_linux.unmount(directory, lazy=lazy)
    import subprocess  # the way of other systems only

    if not os.path.ismount(directory):
        raise _refused("nothing is mounted here", directory, "see what is: mount")
    command = ["umount", *(["-f"] if lazy else []), os.fspath(directory)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        hint = None if lazy else f"end what uses it, or: rafsfs umount --lazy {directory}"
        raise _refused("it cannot be unmounted", directory, hint, " ".join(done.stderr.split()))
    return []


def _is_linux() -> bool:
    return sys.platform == "linux"


def _refused(
    what: str,
    directory: Path,
    hint: str | None = None,
    found: str | None = None,
    *,
    kind: type[MountError] = MountError,
) -> MountError:
    return kind(what, found=found, where=Where(path=os.fspath(directory)), hint=hint)
