"""Runs the ``rafsfs`` command and looks at what it mounts; never imported by the package."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.images import opened

from rafsfs.cli.mount import NO_LOG
from rafsfs.frontends.mountpoint_linux import Mount, mount_on
from rafsfs.fs.image import OpenImage
from rafsfs.store.reference import Reference
from rafsfs.types import PageNumber

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
END_S = 60  # longer than any server takes to end, on a machine that is busy with other tests
SOON_S = 15  # for ends that wait neither for a store that hangs, nor for the deadline of a read (90 s)
FUSE = Path("/dev/fuse")
MOUNT_OPTIONS: tuple[str, ...] = ()
"""What every ``rafsfs mount`` gets; tests set it to choose a front end."""


def _words(arguments: tuple[object, ...]) -> list[str]:
    words = list(map(str, arguments))
    return [*words, *MOUNT_OPTIONS] if words[:1] == ["mount"] else words


def rafsfs(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; comes back only when nobody holds its output any more.

    The warning that this machine has no syslog is left out: other machines have one.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(  # type: ignore[call-overload]  # options are run's own
        [sys.executable, "-m", "rafsfs", *_words(arguments)],
        **{"capture_output": True, "text": True, "env": environment, "check": False, "timeout": END_S}
        | options,
    )
    if isinstance(done.stderr, str):
        done.stderr = without_log_warning(done.stderr)
    return done  # type: ignore[no-any-return]  # as the call above


def without_log_warning(complaint: str) -> str:
    """What a mount said on standard error, on any machine."""
    return complaint.replace(f"{NO_LOG}\n", "")


def start_rafsfs(*arguments: object) -> subprocess.Popen[str]:
    """Start a command that stays in the foreground."""
    return subprocess.Popen(
        [sys.executable, "-m", "rafsfs", *_words(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def mount(*arguments: object) -> None:
    """Mount in the background; there must be nothing to say."""
    done = rafsfs("mount", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def umount(directory: Path, *arguments: object, timeout: float = END_S) -> None:
    """Unmount; there must be nothing to say."""
    done = rafsfs("umount", directory, *arguments, timeout=timeout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mounted(directory) is None


def mounted(directory: Path) -> Mount | None:
    """The mount on a directory, as the mount table has it."""
    return mount_on(directory)


@contextmanager
def mounting(*arguments: object) -> Iterator[Path]:
    """Mount with these arguments, of which the second is the directory; unmount whatever happened to it."""
    directory = Path(str(arguments[1]))
    directory.mkdir(exist_ok=True)
    mount(*arguments)
    try:
        yield directory
    finally:
        if mounted(directory) is not None:
            umount(directory, "--lazy")


def server_of(log: Path) -> int:
    """The process that wrote the last line of a mount's log."""
    return int(re.findall(r" rafsfs\[(\d+)\] ", log.read_text())[-1])


def wait_for_lines(log: Path, word: str, count: int = 1) -> list[str]:
    """The lines of a log that hold ``word``, once there are ``count``: they are written beside the reads."""
    deadline = time.monotonic() + END_S
    while True:
        lines = [line for line in log.read_text().splitlines() if word in line]
        if len(lines) >= count:
            return lines
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def wait_for_end(pid: int, timeout_s: float = END_S) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], timeout_s)[0], f"process {pid} did not end"
    finally:
        os.close(descriptor)


def wait_until_gone(path: Path) -> None:
    """Wait until there is no such file: the kernel and udev may look at it a moment longer."""
    deadline = time.monotonic() + END_S
    while path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def read_error(path: Path, offset: int = 0, size: int = 1) -> int:
    """The errno of a read; 0 when it works."""
    try:
        with path.open("rb", buffering=0) as file:
            os.pread(file.fileno(), size, offset)
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def unreadable_files(root: Path) -> set[str]:
    """Names, relative to ``root``, of regular files of which a part cannot be read."""
    found = set()
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                try:
                    path.read_bytes()
                except OSError as error:
                    assert error.errno == errno.EIO
                    found.add(str(path.relative_to(root)))
    return found


def chunk_place(reference: Reference, path: bytes, offset: int = 0) -> tuple[Path, int, int, int]:
    """Where a byte of a file is stored: the blob's file, the chunk's index, its offset and its length."""
    with opened(reference) as image:
        nid = image.filesystem.root
        for name in path.split(b"/"):
            nid = image.filesystem.lookup(nid, name)
        return _stored(image, reference.folder, nid, offset)


def _stored(image: OpenImage, folder: Path, nid: int, offset: int) -> tuple[Path, int, int, int]:
    extent = next(image.filesystem.extents(nid, offset, 1))  # type: ignore[arg-type]  # it came from lookup
    blob = image.filesystem.engine.blobs[extent.blob]  # type: ignore[index]  # a hole is not asked for here
    index = blob.chunks.find(extent.start)
    record = blob.chunks.record(index)
    file = folder / "blobs" / blob.file.name.replace(":", "/")
    return file, index, record.encoded_offset, record.encoded_length


def pages_of(reference: Reference) -> tuple[Path, list[int]]:
    """The bootstrap's file, and where each of its encoded pages lies in it."""
    with opened(reference) as image:
        file = reference.folder / "blobs" / image.stored.manifest.bootstrap.digest.replace(":", "/")
        count = image.opened.superblock.page_count
        entries = [image.opened.page_table.entry(PageNumber(number)) for number in range(count)]
    start = file.stat().st_size - entries[-1].encoded_offset - entries[-1].encoded_length
    return file, [start + entry.encoded_offset for entry in entries]


def page_of(reference: Reference, path: bytes) -> int:
    """The number of the metadata page in which a file's inode starts."""
    with opened(reference) as image:
        nid = image.filesystem.root
        for name in path.split(b"/"):
            nid = image.filesystem.lookup(nid, name)
        return 32 * nid // image.opened.superblock.page_size


def flip(file: Path, offset: int) -> None:
    """Change one bit of a file."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


@contextmanager
def fuse_for_everybody() -> Iterator[None]:
    """Let users open /dev/fuse, which some machines keep for root; put its mode back at the end.

    A lock on the device keeps other test processes from putting it back before we are done.
    """
    descriptor = os.open(FUSE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        mode = stat.S_IMODE(FUSE.stat().st_mode)
        FUSE.chmod(mode | 0o666)
        try:
            yield
        finally:
            FUSE.chmod(mode)
    finally:
        os.close(descriptor)


def command_line(*arguments: object) -> str:
    """The ``rafsfs`` command for a shell."""
    return shlex.join([sys.executable, "-m", "rafsfs", *_words(arguments)])


def close_of_a_dead_mount(descriptor: int) -> None:
    """Close a file whose server has gone; the kernel says so, and closes it all the same."""
    try:
        os.close(descriptor)
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
