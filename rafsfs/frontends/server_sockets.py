"""Where the unix sockets of a mount's server lie, and that only its user comes to them; says nothing itself.

A socket is found by the device number of its mount alone, in a folder that only its user may enter.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rafsfs.errors import MountError, Where
from rafsfs.limits import HELD_DESCRIPTORS_MAX

if TYPE_CHECKING:
    from socket import socket

_FOLDER_MODE: Final = 0o700
_SHUT_RDWR: Final = 2  # of shutdown(2)
_SUFFIX: Final = ".sock"

PEER: Final = struct.Struct("3i")
"""``struct ucred`` of unix(7): process, user, group."""


def folders() -> list[Path]:
    """Where sockets of this user's servers may be; a server takes the first that it can have."""
    uid = os.geteuid()
    if uid == 0:
        return [Path("/run/rafsfs")]
    found = [Path(f"/run/user/{uid}/rafsfs"), Path(f"/tmp/rafsfs-{uid}")]  # noqa: S108  # checked in _is_ours
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [Path(own) / "rafsfs", *found] if own else found


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put a socket there. A link may lead to anybody's folder."""
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not stat.S_IMODE(status.st_mode) & ~_FOLDER_MODE
    )


def socket_name(device: str, use: str = "") -> str:
    """The file of a socket of the mount with this device number (such as 0:57), told apart by its use."""
    return device.replace(":", "-") + (f".{use}" if use else "") + _SUFFIX


def received(connection: socket, bytes_max: int, flags: int = 0) -> tuple[bytes, list[int], bool]:
    """One message, the descriptors that came with it, and whether a part of either is missing.

    ``socket.recv_fds`` of Python 3.11 does not look at its flags. Raises OSError.
    """
    import array
    import socket

    descriptors = array.array("i")
    room = socket.CMSG_SPACE(HELD_DESCRIPTORS_MAX * descriptors.itemsize)
    text, ancillary, given, _ = connection.recvmsg(bytes_max, room, flags | socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return text, descriptors.tolist(), bool(given & (socket.MSG_TRUNC | socket.MSG_CTRUNC))


# --- The server's side --------------------------------------------------------------------------------------


@contextmanager
def bound(name: str, kind: int) -> Iterator[tuple[socket, Path]]:
    """A socket of this kind (``SOCK_STREAM`` and so on) under this name, and its path, while it is needed.

    It listens, unless it is one for datagrams. A mount has its device number alone, so what is in its place
    is of a dead server; one that takes its place meanwhile is left alone. Raises OSError.
    """
    import socket  # late, as all of this: a mount serves before it tells of it

    folder = _folder()
    _sweep(folder)
    path = folder / name
    unfinished = folder / f".{os.getpid()}-{name}"
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        unfinished.unlink(missing_ok=True)
        try:
            bound.bind(os.fspath(unfinished))
            unfinished.chmod(0o600)
            if kind != socket.SOCK_DGRAM:
                bound.listen()
            inode = unfinished.stat().st_ino
            unfinished.rename(path)  # only now, so that every name that refuses is of a dead server
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        try:
            yield bound, path
        finally:
            with suppress(OSError):  # another server of the same mount may have the name by now
                if path.stat().st_ino == inode:
                    path.unlink()
            with suppress(OSError):
                bound.shutdown(_SHUT_RDWR)  # wakes whoever accepts, which close() would not
    finally:
        bound.close()


def _folder() -> Path:
    complaints = []
    for folder in folders():
        try:
            with suppress(FileExistsError):
                folder.mkdir(_FOLDER_MODE)
            if _is_ours(folder):
                return folder
            complaints.append(f"{folder} can be entered by others")
        except OSError as error:
            complaints.append(f"{folder}: {error.strerror}")
    raise OSError("; ".join(complaints))


def _sweep(folder: Path) -> None:
    """Take away what killed servers left. Sockets of another kind than this one refuse in another way."""
    import socket

    for path in folder.glob(f"*{_SUFFIX}"):
        if path.name.startswith("."):  # one that is being made refuses as well
            if not _is_being_made(path):
                path.unlink(missing_ok=True)
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, suppress(OSError):
            asking.setblocking(False)
            try:
                asking.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()


def _is_being_made(unfinished: Path) -> bool:
    maker = unfinished.name[1:].partition("-")[0]
    try:
        os.kill(int(maker), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


# --- The asker's side ---------------------------------------------------------------------------------------


def connect(name: str, kind: int, timeout_s: float) -> socket:
    """Connect to the server that has this socket. Raises OSError; FileNotFoundError when none has."""
    import socket

    for folder in folders():
        path = folder / name
        if not path.exists() or not _is_ours(folder):
            continue
        asking = socket.socket(socket.AF_UNIX, kind)
        try:
            asking.settimeout(timeout_s)
            asking.connect(os.fspath(path))
        except BaseException:
            asking.close()
            raise
        return asking
    raise FileNotFoundError("it has no socket in " + " or ".join(map(str, folders())))


def has_ended(connection: socket, wait_s: float) -> bool:
    """Whether the process at the other end, which listened there, has ended, or does within ``wait_s``."""
    import select
    import socket

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    try:
        descriptor = os.pidfd_open(PEER.unpack(credentials)[0])
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], wait_s)[0])
    finally:
        os.close(descriptor)


def device_of(directory: Path) -> str:
    """The device number of the rafsfs mount on, or around, ``directory``, such as 0:57. Raises MountError."""
    from rafsfs.frontends.mountpoint_linux import is_ours, mount_on, mounts

    mount = mount_on(directory)
    if mount is None:
        number = directory.stat().st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        mount = next((found for found in mounts() if found.device == device), None)
    if mount is None or not is_ours(mount):
        raise MountError("this is not in a rafsfs mount", where=Where(path=os.fspath(directory)))
    return mount.device
