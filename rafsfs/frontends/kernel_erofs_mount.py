"""Mounts for the kernel EROFS mode: a private FUSE mount, and EROFS on its files; serves nothing.

The private mount is nowhere: only its descriptor leads to it, until EROFS has opened the files. Then EROFS
alone keeps it, so it ends with EROFS, and nobody has to clean up after a server that was killed.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError, Where
from rafsfs.frontends import kernel_erofs_loop
from rafsfs.frontends.kernel_erofs_devices import FLAT_SUFFIX, device_name
from rafsfs.frontends.kernel_mount_api import MountAttribute, NewMount, attach, enter
from rafsfs.frontends.mount_options import MountOptions
from rafsfs.frontends.mountpoint_linux import (
    DEVICE,
    EROFS_TYPE,
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    connection_is_over,
    mount_on,
    mounts,
)

log = logging.getLogger("rafsfs.mount")

READ_AHEAD_KIB: Final = 1024
"""What the kernel asks for ahead of a sequential reader: one FUSE request. The pages (folios) that it reads
into grow up to this, and an error is one of a whole page: the more, the further damage reaches in a file.
"""

_ATTRIBUTES_DEFAULT: Final = MountAttribute.RDONLY | MountAttribute.NOSUID | MountAttribute.NODEV
"""As libfuse has it: who makes an image must not get root's rights on a machine that mounts it."""
_ATTRIBUTES_ON: Final = {
    "nosuid": MountAttribute.NOSUID,
    "nodev": MountAttribute.NODEV,
    "noexec": MountAttribute.NOEXEC,
}
_ATTRIBUTES_OFF: Final = {
    "suid": MountAttribute.NOSUID,
    "dev": MountAttribute.NODEV,
    "exec": MountAttribute.NOEXEC,
}

_ERRNO_HINTS: Final = {
    errno.EPERM: "root without CAP_SYS_ADMIN may not mount: see how this container was started",
    errno.ENOSYS: "use Linux 5.16 or newer, or --frontend devfuse",
}

_BDI: Final = Path("/sys/class/bdi")
_FS_IOC_GETFSSYSFSPATH: Final = 0x8081_1501  # linux/fs.h: _IOR(0x15, 1, struct fs_sysfs_path), Linux 6.9
_SYSFS_PATH_BYTES: Final = 129  # its length in one byte, then the path


@dataclass(frozen=True, slots=True)
class PrivateMount:
    """A FUSE mount that nobody sees. ``fd`` is /dev/fuse, to be served.

    ``root`` is the mount's root, -1 when it is not needed any more: EROFS has its files open.
    """

    fd: int
    root: int


def mount_private() -> PrivateMount:
    """Make a FUSE mount for root alone. Raises MountError."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(None, f"{DEVICE}: {error.strerror}", "load the module: modprobe fuse") from error
    try:
        with NewMount("fuse") as new:
            new.set_string("source", "rafsfs")
            new.set_string("fd", str(fd))
            new.set_string("rootmode", "40000")  # octal: a directory
            new.set_string("user_id", "0")
            new.set_string("group_id", "0")
            return PrivateMount(fd, new.create(_ATTRIBUTES_DEFAULT | MountAttribute.NOEXEC))
    except OSError as error:
        os.close(fd)
        hint = "load the module: modprobe fuse" if error.errno == errno.ENODEV else None
        raise _refused(None, f"fuse: {error.strerror}", hint or _ERRNO_HINTS.get(error.errno or 0)) from error


@dataclass(frozen=True, slots=True)
class ErofsMount:
    """EROFS, mounted. ``device`` is its number in the mount table, such as 0:57.

    ``bdi`` names what holds the read-ahead setting, where that is ours to change: not of a loop device.
    """

    fuse_fd: int
    device: str
    bdi: str | None

    def raise_read_ahead(self) -> None:
        """Let the kernel read further ahead."""
        if self.bdi is not None:
            with suppress(OSError):  # no sysfs in this container: it only costs speed
                (_BDI / self.bdi / "read_ahead_kb").write_text(str(READ_AHEAD_KIB))

    def detach(self) -> None:
        """Take it out of sight wherever it is; what still uses it gets errors once ``fuse_fd`` is closed.

        Does nothing when it has been unmounted already: its device number may be another mount's by then.
        """
        if connection_is_over(self.fuse_fd):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        for mount in reversed(mounts()):  # the one in sight first, where several are on one directory
            if (mount.device, mount.type) != (self.device, EROFS_TYPE):
                continue
            if libc.umount2(os.fsencode(mount.directory), UMOUNT_NOFOLLOW | MNT_DETACH) != 0:
                # Somebody may have been faster. If not, the mount is dead but in sight, and only a person
                # can help.
                log.error("%s could not be unmounted: %s", mount.directory, os.strerror(ctypes.get_errno()))


def mount_erofs(
    private: PrivateMount,
    directory: Path,
    options: MountOptions,
    meta_path: bytes,
    blob_count: int,
    *,
    use_loops: bool = False,
) -> ErofsMount:
    """Mount on ``directory``, a real path, while another thread serves ``private``. Raises MountError.

    ``use_loops`` takes loop devices even where the kernel can do without. Nothing is mounted after an error.
    """
    devices = [device_name(index) for index in range(blob_count)]
    attributes = _attributes(options.flags)
    bdis_before = _erofs_bdis()

    def attempt() -> None:
        # The kernel shows the source as it is given, so it is given relative to the private mount.
        enter(private.root)
        if not use_loops and _mount_files(directory, attributes, meta_path, devices):
            return
        _mount_loops(private.root, directory, attributes, meta_path, devices)

    # On a thread of its own: the working directory is changed.
    with ThreadPoolExecutor(1, "rafsfs-mount") as pool:
        try:
            pool.submit(attempt).result()
        except OSError as error:
            raise _refused(directory, f"erofs: {error.strerror}", _hint(error, directory)) from error
    found = mount_on(directory)
    if found is None or found.type != EROFS_TYPE:
        raise _refused(directory, "it is not in the mount table", "see what else mounts there")
    return ErofsMount(private.fd, found.device, _bdi_of(directory, bdis_before))


def _attributes(flags: frozenset[str]) -> MountAttribute:
    attributes = _ATTRIBUTES_DEFAULT
    for name in flags:
        attributes = attributes & ~_ATTRIBUTES_OFF.get(name, 0) | _ATTRIBUTES_ON.get(name, 0)
    return attributes


def _mount_files(
    directory: Path, attributes: MountAttribute, source: bytes, devices: Sequence[bytes]
) -> bool:
    """Mount the files as they are; False where the kernel wants block devices: before Linux 6.12."""
    with NewMount(EROFS_TYPE) as new:
        # Through FUSE's page cache an error inside a read comes as a short read, which EROFS of many kernels
        # fills up with zeros (fs/erofs/fileio.c, erofs_fileio_ki_complete). It would also hold data twice.
        # Kernels that take files, but do not know this option yet, read so by themselves.
        with suppress(OSError):
            new.set_flag("directio")
        _configure(new, source, devices)
        try:
            mount = new.create(attributes)
        except OSError as error:
            if error.errno == errno.ENOTBLK:
                return False
            raise
        _attach(mount, directory)
    return True


def _mount_loops(
    root: int, directory: Path, attributes: MountAttribute, source: bytes, devices: Sequence[bytes]
) -> None:
    """Mount loop devices on the files. They go when EROFS goes."""
    # On several block devices EROFS of many kernels reads wrong bytes where one file has block N of a device
    # and then block N + 1 of another (fs/iomap/buffered-io.c compares sectors, not devices). All in one file
    # is what EROFS takes since Linux 6.4; before that it refuses it.
    names = [source, *devices] if len(devices) <= 1 else [source + FLAT_SUFFIX]
    with ExitStack() as stack:
        loops = [stack.enter_context(kernel_erofs_loop.attached(root, name)) for name in names]
        with NewMount(EROFS_TYPE) as new:
            _configure(new, loops[0], loops[1:])
            _attach(new.create(attributes), directory)


def _configure(new: NewMount, source: bytes | str, devices: Sequence[bytes | str]) -> None:
    new.set_flag("ro")
    new.set_string("source", source)
    for device in devices:
        new.set_string("device", device)


def _attach(mount: int, directory: Path) -> None:
    try:
        attach(mount, directory)
    finally:
        os.close(mount)


def _hint(error: OSError, directory: Path) -> str | None:
    if error.errno == errno.ENOENT and not directory.exists():
        return "see that the mount point is still there"
    if error.errno == errno.ENODEV:
        return "load the module (modprobe erofs), or use --frontend devfuse"
    return _ERRNO_HINTS.get(error.errno or 0)


def _bdi_of(directory: Path, before: set[str]) -> str | None:
    """What holds the read-ahead setting of an EROFS on files; None for one on loop devices.

    ``before`` are those that were there before it was mounted.
    """
    now = _erofs_bdis()
    answer = array.array("B", bytes(_SYSFS_PATH_BYTES))
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_GETFSSYSFSPATH, answer)
        finally:
            os.close(descriptor)
    except OSError:  # before Linux 6.15 the name has to be guessed
        new = now - before
        return new.pop() if len(new) == 1 else None
    name = os.fsdecode(answer[1 : 1 + answer[0]].tobytes()).rpartition("/")[2]
    return name if name in now else None


def _erofs_bdis() -> set[str]:
    return {path.name for path in _BDI.glob("erofs-*")}


def _refused(directory: Path | None, found: str, hint: str | None) -> MountError:
    where = Where(path=str(directory)) if directory else None
    return MountError("the mount was refused", found=found, where=where, hint=hint)
