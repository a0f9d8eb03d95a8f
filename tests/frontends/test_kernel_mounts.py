"""The mount API of file descriptors and loop devices, against the kernel."""

import errno
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.mounts import wait_until_gone

from rafsfs.frontends.kernel_erofs_loop import attached
from rafsfs.frontends.kernel_mount_api import MountAttribute, NewMount, attach, enter
from rafsfs.frontends.mountpoint_linux import mount_on

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

BLOCK = 4096


# --- The mount API ------------------------------------------------------------------------------------------


def test_a_type_that_the_kernel_does_not_know():
    with pytest.raises(OSError, match="No such device") as caught:
        NewMount("rafsfs-is-no-type")
    assert caught.value.errno == errno.ENODEV


def test_what_the_kernel_says_beside_the_errno_is_in_the_error():
    with NewMount("tmpfs") as new:
        with pytest.raises(OSError, match=r"Unknown parameter 'no_such_option'") as caught:
            new.set_flag("no_such_option")
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="Bad value for 'size'"):
            new.set_string("size", "many")


def tmpfs(attributes=MountAttribute.NODEV):
    with NewMount("tmpfs") as new:
        new.set_string("source", "with,comma and \\ and \xff")
        new.set_string("size", "1m")
        return new.create(attributes)


def test_a_mount_that_is_nowhere_can_be_used_through_its_descriptor_and_ends_with_it():
    mount = tmpfs()
    file = os.open("file", os.O_CREAT | os.O_RDWR, dir_fd=mount)
    device = os.fstat(file).st_dev
    assert f" {os.major(device)}:{os.minor(device)} " not in Path("/proc/self/mountinfo").read_text(
        errors="surrogateescape"
    )
    os.close(mount)
    with os.fdopen(file, "r+b") as kept:  # its last user keeps it
        kept.write(b"text")
        kept.seek(0)
        assert kept.read() == b"text"


def test_attached_it_is_a_mount_as_any_other(tmp_path):
    mount = tmpfs(
        MountAttribute.RDONLY | MountAttribute.NOSUID | MountAttribute.NODEV | MountAttribute.NOEXEC
    )
    attach(mount, tmp_path)
    os.close(mount)
    try:
        found = mount_on(tmp_path)
        assert (found.type, found.source) == ("tmpfs", "with,comma and \\ and \xff")
        flags = os.statvfs(tmp_path).f_flag
        assert flags & os.ST_RDONLY
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        assert flags & os.ST_NOEXEC
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_where_it_cannot_be_attached(tmp_path):
    mount = tmpfs()
    with pytest.raises(FileNotFoundError):
        attach(mount, tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|Invalid argument"):
        attach(mount, tmp_path / "file")
    os.close(mount)


def test_entering_a_directory_moves_no_other_thread(tmp_path):
    (tmp_path / "here").touch()
    before = Path.cwd()
    seen = []

    def move():
        directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        enter(directory)
        os.close(directory)
        seen.append(os.path.exists("here"))  # noqa: PTH110

    thread = threading.Thread(target=move)
    thread.start()
    thread.join()
    assert seen == [True]
    assert Path.cwd() == before


# --- Loop devices -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        (tmp_path / f"file{number}").write_bytes(bytes([number + 1]) * (number + 1) * BLOCK)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def backing(path):
    return Path("/sys/block") / Path(path).name / "loop" / "backing_file"


def test_a_loop_device_shows_the_file_and_goes_with_its_last_user(folder, tmp_path):
    with attached(folder, b"file2") as path:
        assert backing(path).read_text().strip() == str(tmp_path / "file2")
        assert (backing(path).parent.parent / "ro").read_text().strip() == "1"
        assert Path(path).read_bytes() == (tmp_path / "file2").read_bytes()
        user = os.open(path, os.O_RDONLY)
    assert backing(path).exists()
    os.close(user)
    wait_until_gone(backing(path))


def test_many_at_once_each_get_their_own(folder):
    def one(number):
        with attached(folder, b"file%d" % number) as path:
            return path, Path(path).read_bytes()[:BLOCK]

    with ThreadPoolExecutor(8) as pool:
        for number, (_, content) in enumerate(pool.map(one, range(8))):
            assert content == bytes([number + 1]) * BLOCK
    with ExitStack() as stack:
        paths = [stack.enter_context(attached(folder, b"file%d" % number)) for number in range(8)]
        assert len(set(paths)) == 8


def test_a_file_that_is_not_there(folder):
    with pytest.raises(FileNotFoundError), attached(folder, b"none"):
        pass
