"""Mount points as Linux knows them: the mount table, /dev/fuse, fusermount3 and umount2; never mounts."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from rafsfs.errors import MountError, Where

TYPE: Final = "fuse.rafsfs"
EROFS_TYPE: Final = "erofs"
EROFS_SOURCE: Final = "rafsfs:"
"""What the source of the kernel's EROFS begins with when it is ours; on a loop device, the file behind it."""

DEVICE: Final = Path("/dev/fuse")
FUSERMOUNT: Final = "fusermount3"

SERVER_WAIT_S: Final = 10.0
"""How long an unmount waits for the server's end; another mount namespace may keep it alive for good."""

_LOOK_S: Final = 0.05
_END_S: Final = 0.5  # within this a server that has let go of its descriptor ends, on a busy machine too

NAMED_MAX: Final = 5
"""Processes that an error about a busy mount names."""

MNT_DETACH: Final = 2  # umount(2)
UMOUNT_NOFOLLOW: Final = 8

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)), the escapes undone."""

    mount_id: int
    device: str
    directory: str
    type: str
    source: str
    options: str
    """The file system's own, separated by commas."""


def mounts() -> list[Mount]:
    """Return all mounts that this process sees; of several on one directory, the last is in sight."""
    return [_parse(line) for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]


def _parse(line: bytes) -> Mount:
    fields = line.split(b" ")
    after = fields.index(b"-", 6)  # optional fields end with it
    return Mount(
        int(fields[0]),
        fields[2].decode(),
        _text(fields[4]),
        _text(fields[after + 1]),
        _text(fields[after + 2]),
        _text(fields[after + 3]),
    )


def _text(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def mount_on(directory: Path) -> Mount | None:
    """Return what is mounted exactly on ``directory``, without asking the mounted file system anything."""
    # The last name is not resolved at first: a dead or stuck server would have to be asked about it.
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100  # takes '..' away without a look at the disk
    table = {mount.directory: mount for mount in mounts()}
    return table.get(str(absolute.parent.resolve() / absolute.name)) or table.get(os.path.realpath(absolute))


def check(directory: Path) -> None:
    """Raise ``MountError`` unless ``directory``, a real path, is free and we may mount through FUSE."""
    from rafsfs.frontends.mountpoint import in_use

    mount = mount_on(directory)
    if mount is not None:
        raise in_use(directory, f"{mount.type} of {mount.source}")
    if not DEVICE.exists():
        raise MountError(
            "this system has no FUSE",
            where=Where(file=str(DEVICE)),
            hint="load the module (modprobe fuse), or give the container the device (--device /dev/fuse)",
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise MountError(
            "you may not use FUSE",
            expected="read and write permission",
            found=f"mode {DEVICE.stat().st_mode & 0o7777:04o}",
            where=Where(file=str(DEVICE)),
            hint="as root: chmod 0666 /dev/fuse",
        )
    if os.geteuid() != 0 and not _is_program(FUSERMOUNT):
        raise MountError(
            f"{FUSERMOUNT} is not installed",
            where=Where(path=str(directory)),
            hint="users mount through it: install the package fuse3, or mount as root",
        )


def _is_program(name: str) -> bool:
    import shutil  # late: it brings all the compressors of archives with it

    return shutil.which(name) is not None


def connection_is_over(fuse_fd: int) -> bool:
    """Whether the file system of a /dev/fuse descriptor was unmounted, or aborted."""
    poller = select.poll()
    poller.register(fuse_fd, 0)
    return bool(poller.poll(0))  # POLLERR, which comes unasked (Linux fs/fuse/dev.c, fuse_dev_poll)


def is_ours(mount: Mount) -> bool:
    """Whether a rafsfs serves the mount, or did until it died."""
    if mount.type != EROFS_TYPE:
        return mount.type == TYPE
    source = mount.source
    if source.startswith("/dev/loop"):
        source = _read(f"/sys/block/{Path(source).name}/loop/backing_file").lstrip("/")
    return source.startswith(EROFS_SOURCE)


def server_label(device: str) -> str:
    """Name the memory file by which the server of an EROFS mount is known; ``device`` is the mount's number.

    Nothing else leads from EROFS to the process that serves its files.
    """
    return f"rafsfs-erofs-{device}"


def unmount(directory: Path, *, lazy: bool) -> list[int]:
    """See ``mountpoint.unmount``; refuses to unmount what is not a rafsfs mount."""
    mount = mount_on(directory)
    where = Where(path=os.fspath(directory))
    if mount is None:
        hint = f"see what is: findmnt -t {TYPE},{EROFS_TYPE}"
        raise MountError("nothing is mounted here", where=where, hint=hint)
    if not is_ours(mount):
        raise MountError(
            "this is not a rafsfs mount",
            expected=TYPE,
            found=f"{mount.type} of {mount.source}",
            where=where,
            hint=f"use umount {directory} if you mean it",
        )
    servers = _servers(mount)
    try:
        is_roots = os.geteuid() == 0 or mount.type == EROFS_TYPE
        complaint = _umount2(mount, lazy, servers) if is_roots else _fusermount(mount, lazy)
        if complaint is not None:
            raise _not_unmounted(mount, complaint, where)
        # Those for whom a lazy unmount is made, or who see the mount at another place, keep the server.
        is_elsewhere = any(other.device == mount.device for other in mounts())
        return [] if lazy or is_elsewhere else _still_running(servers)
    finally:
        for _, pidfd, _ in servers:
            os.close(pidfd)


def _umount2(mount: Mount, lazy: bool, servers: list[tuple[int, int, str]]) -> str | None:
    """Unmount as root; return why not.

    Reads that nobody waits for any more, read-ahead above all, keep the kernel's EROFS, and whoever unmounts
    it where no signal reaches him: for as long as a store hangs. The end of the server ends them.
    """
    import threading

    codes: list[int] = []

    def call() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        is_done = libc.umount2(os.fsencode(mount.directory), flags) == 0
        codes.append(0 if is_done else ctypes.get_errno())

    thread = threading.Thread(target=call, name="rafsfs-umount", daemon=True)
    thread.start()
    thread.join(_END_S)
    while thread.is_alive() and mount in mounts():
        thread.join(_LOOK_S)
    if thread.is_alive():  # it is out of sight already, and nobody else has it
        for _, pidfd, _ in servers:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        thread.join()
    return os.strerror(codes[0]) if codes[0] else None


def _fusermount(mount: Mount, lazy: bool) -> str | None:
    """Unmount as the user who mounted; return why not."""
    import subprocess  # late: whoever mounts as root does without

    command = [FUSERMOUNT, "-u", *(["-z"] if lazy else []), "--", mount.directory]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        return f"{FUSERMOUNT} is not installed"
    return None if done.returncode == 0 else " ".join(done.stderr.split())


def _not_unmounted(mount: Mount, complaint: str, where: Where) -> MountError:
    if os.strerror(errno.EBUSY) not in complaint:
        return MountError(
            "it cannot be unmounted",
            found=complaint,
            where=where,
            hint="only root and who mounted it may unmount it",
        )
    users = list(_users(mount))
    named = ", ".join(users[:NAMED_MAX]) + (
        f" and {len(users) - NAMED_MAX} more" if len(users) > NAMED_MAX else ""
    )
    return MountError(
        "the mount is in use",
        found=named or "by a process that is not yours",
        where=where,
        hint=f"end what uses it, or let it finish out of sight: rafsfs umount --lazy {where.path}",
    )


def _servers(mount: Mount) -> list[tuple[int, int, str]]:
    """Return who serves the mount, or holds it for who does: process, pidfd, and the descriptor in /proc.

    Kernels tell in fdinfo which FUSE connection a descriptor is for (6.18 does), and tell it only to root, as
    our servers keep their memory to themselves. Where they do not, nobody is found.
    """
    line = f"fuse_connection:\t{mount.device.partition(':')[2]}\n"
    label = f"/memfd:{server_label(mount.device)} (deleted)"
    servers = []
    for pid, descriptor, target in _descriptors():
        if mount.type == EROFS_TYPE:
            serves = target == label
        else:
            serves = target == str(DEVICE) and line in _read(f"/proc/{pid}/fdinfo/{descriptor}")
        if serves:
            with suppress(ProcessLookupError):
                servers.append((pid, os.pidfd_open(pid), f"/proc/{pid}/fd/{descriptor}"))
    return servers


def _users(mount: Mount) -> Iterator[str]:
    """Name what keeps the mount busy, without asking its server: mounts under it, and processes of ours."""
    below = mount.directory.rstrip("/") + "/"
    for other in mounts():
        if other.directory.startswith(below):
            yield f"the mount on {other.directory}"
    mount_line = f"mnt_id:\t{mount.mount_id}\n"
    seen = set()
    for pid, descriptor, _ in _descriptors():
        if pid not in seen and mount_line in _read(f"/proc/{pid}/fdinfo/{descriptor}"):
            seen.add(pid)
            yield f"open files of process {pid} ({_read(f'/proc/{pid}/comm').strip()})"
    for pid in _processes():
        for link, use in (("cwd", "working directory"), ("root", "root directory"), ("exe", "program")):
            target = _link(f"/proc/{pid}/{link}")
            if pid not in seen and (target == mount.directory or target.startswith(below)):
                seen.add(pid)
                yield f"{use} of process {pid} ({_read(f'/proc/{pid}/comm').strip()})"


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # names, not paths


def _descriptors() -> Iterator[tuple[int, str, str]]:
    """Yield (process, descriptor, what it is open on) for all processes that we may look into."""
    for pid in _processes():
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
        except OSError:  # ended by now, or somebody else's
            continue
        for descriptor in descriptors:
            yield pid, descriptor, _link(f"/proc/{pid}/fd/{descriptor}")


def _link(path: str) -> str:
    """Return a link's target, empty when the process is gone or not ours."""
    try:
        return os.readlink(path)  # noqa: PTH115  # text, which may be no path at all
    except OSError:
        return ""


def _read(path: str) -> str:
    """Return a text of /proc, empty when the process is gone or not ours."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _still_running(servers: list[tuple[int, int, str]]) -> list[int]:
    """Wait until processes have ended or let go, in all no longer than ``SERVER_WAIT_S``; return the others.

    A service manager that holds a server's descriptors lets go of them, and does not end.
    """
    deadline = time.monotonic() + SERVER_WAIT_S
    left = []
    for pid, pidfd, descriptor in servers:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(_LOOK_S * 1000) and _link(descriptor):
            if time.monotonic() >= deadline:
                left.append(pid)
                break
        else:
            poll.poll(_END_S * 1000)
    return left
