"""Mount points: what is refused and why, and the mount table read without touching what is mounted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rafsfs.errors import MountError
from rafsfs.frontends import mountpoint, mountpoint_linux

requires_root = pytest.mark.requires_root


@pytest.fixture
def tmpfs(tmp_path):
    """Mount a tmpfs on a folder with a name that the mount table has to escape."""
    folder = tmp_path / "a b\\c\td\n"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "some where", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


# --- Before a mount -----------------------------------------------------------------------------------------


def test_a_plain_directory_is_fine_and_its_real_path_comes_back(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoint.check(tmp_path / "link" / ".." / "link") == tmp_path / "real"


def test_a_relative_directory(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert mountpoint.check(Path("m")) == tmp_path / "m"


def test_missing(tmp_path):
    with pytest.raises(MountError, match=r"does not exist \(path .*/none\); make it: mkdir -p .*/none$"):
        mountpoint.check(tmp_path / "none")


def test_not_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match=r"not a directory \(path .*/file\)"):
        mountpoint.check(tmp_path / "file")
    with pytest.raises(MountError, match=r"Not a directory \(path .*/file/below\)"):
        mountpoint.check(tmp_path / "file" / "below")


@requires_root
def test_in_use(tmpfs):
    with pytest.raises(MountError) as raised:
        mountpoint.check(tmpfs)
    assert raised.value.found == "tmpfs of some where"
    assert "rafsfs umount" in raised.value.hint


def test_the_root_directory_is_in_use():
    with pytest.raises(MountError, match="mounted on the mount point already"):
        mountpoint.check(Path("/"))


@requires_root
def test_a_bind_mount_of_a_folder_beside_is_in_use_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "a", tmp_path / "b"], check=True)
    try:
        with pytest.raises(MountError, match="already"):
            mountpoint.check(tmp_path / "b")
        assert mountpoint.check(tmp_path / "a") == tmp_path / "a"
    finally:
        subprocess.run(["umount", tmp_path / "b"], check=True)


@requires_root
@pytest.mark.integration
def test_a_dead_mount_is_named_as_such(mount_memory):
    with mount_memory() as mount:
        mount.stop(signal.SIGKILL)
        with pytest.raises(MountError, match=r"whose server has died.*rafsfs umount .*/mount$"):
            mountpoint.check(mount.path)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("DEVICE", Path("/dev/nothing_here"), r"no FUSE.*/dev/nothing_here.*modprobe fuse.*--device /dev/fuse")],
)
def test_a_system_that_lacks_something(tmp_path, monkeypatch, name, value, expected):
    monkeypatch.setattr(mountpoint_linux, name, value)
    with pytest.raises(MountError, match=expected):
        mountpoint.check(tmp_path)


def check_as_user(code, directory):
    """Run ``code`` as user 65534, who sees its error; return what it prints."""
    program = (
        "import os, shutil, sys\n"
        "from pathlib import Path\n"
        "from rafsfs.errors import MountError\n"
        "from rafsfs.frontends import mountpoint, mountpoint_linux\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"  # he may not be able to import any more
        f"{code}\n"
        "try:\n    mountpoint.check(Path(sys.argv[1]))\n"
        "except MountError as error:\n    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, directory]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


@requires_root
def test_a_user_mounts_only_where_he_may_write():
    assert "may not write to the mount point" in check_as_user(
        "mountpoint_linux.DEVICE = Path('/dev/null')", directory="/usr"
    )


@requires_root
def test_a_user_needs_the_device_and_fusermount3():
    allow = "mountpoint.os.access = lambda *_: True\nmountpoint_linux.FUSERMOUNT = 'no_such_program'"
    assert "no_such_program is not installed" in check_as_user(allow, "/usr")
    lock = "mountpoint_linux.DEVICE = Path('/etc/shadow')"
    assert "you may not use FUSE: expected read and write permission" in check_as_user(lock, "/usr")


# --- The mount table ----------------------------------------------------------------------------------------


@requires_root
def test_escapes_in_the_mount_table_are_undone(tmpfs):
    mount = mountpoint_linux.mount_on(tmpfs)
    assert (mount.directory, mount.type, mount.source) == (str(tmpfs), "tmpfs", "some where")
    assert mount.device == f"{os.major(tmpfs.stat().st_dev)}:{os.minor(tmpfs.stat().st_dev)}"


@requires_root
def test_the_mount_in_sight_counts(tmpfs):
    subprocess.run(["mount", "-t", "ramfs", "above", tmpfs], check=True)
    try:
        assert mountpoint_linux.mount_on(tmpfs).source == "above"
    finally:
        subprocess.run(["umount", tmpfs], check=True)


@requires_root
def test_mounts_are_found_by_any_name_for_their_directory(tmpfs, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmpfs.name)
    monkeypatch.chdir(tmp_path)
    for name in (Path("link"), Path(tmpfs.name), tmp_path / "." / tmpfs.name, Path("link/../link")):
        assert mountpoint_linux.mount_on(name).source == "some where"
    assert mountpoint_linux.mount_on(tmp_path) is None
    assert mountpoint_linux.mount_on(tmp_path / "none") is None


# --- Unmounting ---------------------------------------------------------------------------------------------


def test_nothing_mounted(tmp_path):
    with pytest.raises(MountError, match="nothing is mounted here"):
        mountpoint.unmount(tmp_path)


@requires_root
def test_mounts_of_others_are_left_alone(tmpfs):
    with pytest.raises(
        MountError, match=r"not a rafsfs mount: expected fuse\.rafsfs, found tmpfs of some where"
    ):
        mountpoint.unmount(tmpfs)
    assert os.path.ismount(tmpfs)


@requires_root
@pytest.mark.integration
def test_unmounting_waits_for_the_server_s_end(mount_memory):
    with mount_memory() as mount:
        assert mountpoint.unmount(mount.path) == []
        assert not os.path.ismount(mount.path)
        # An older kernel does not tell whose connection it is, so that there was nobody to wait for.
        assert mount.process.wait(30) == 0


@requires_root
@pytest.mark.integration
def test_a_dead_mount_is_unmounted(mount_memory):
    with mount_memory() as mount:
        mount.stop(signal.SIGKILL)
        assert mountpoint.unmount(mount.path) == []
        assert mountpoint_linux.mount_on(mount.path) is None


@requires_root
@pytest.mark.integration
def test_a_stopped_server_does_not_stop_the_unmount(mount_memory, monkeypatch):
    monkeypatch.setattr(mountpoint_linux, "SERVER_WAIT_S", 0.0)
    with mount_memory() as mount:
        mount.process.send_signal(signal.SIGSTOP)
        assert set(mountpoint.unmount(mount.path)) <= {mount.process.pid}
        assert mountpoint_linux.mount_on(mount.path) is None
        mount.process.send_signal(signal.SIGCONT)
        assert mount.process.wait(30) == 0


@requires_root
@pytest.mark.integration
def test_a_mount_in_use_is_kept_and_its_users_named(mount_memory, tmp_path):
    with mount_memory() as mount:
        sleeper = subprocess.Popen(["sleep", "1000"], cwd=mount.path)
        try:
            with (mount.path / "hello").open(), pytest.raises(MountError) as raised:
                mountpoint.unmount(mount.path)
            assert f"working directory of process {sleeper.pid} (sleep)" in raised.value.found
            assert f"open files of process {os.getpid()}" in raised.value.found
            assert f"rafsfs umount --lazy {mount.path}" in raised.value.hint
            assert mount.path.joinpath("hello").read_bytes() == b"hello, world\n"
        finally:
            sleeper.kill()
            sleeper.wait()
        assert mountpoint.unmount(mount.path) == []


@requires_root
@pytest.mark.integration
def test_a_mount_below_is_a_user(mount_memory):
    with mount_memory() as mount:
        below = mount.path / "many"
        subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
        try:
            with pytest.raises(MountError, match=f"in use: the mount on {below}"):
                mountpoint.unmount(mount.path)
        finally:
            subprocess.run(["umount", below], check=True)


@requires_root
@pytest.mark.integration
def test_a_lazy_unmount_takes_even_what_is_in_use(mount_memory):
    with mount_memory() as mount:
        with (mount.path / "hello").open("rb") as file:
            assert mountpoint.unmount(mount.path, lazy=True) == []
            assert mountpoint_linux.mount_on(mount.path) is None
            assert file.read() == b"hello, world\n"
        assert mount.process.wait(30) == 0


@requires_root
@pytest.mark.integration
def test_the_same_mount_at_another_place_keeps_its_server(mount_memory, tmp_path):
    with mount_memory() as mount:
        other = tmp_path / "other"
        other.mkdir()
        subprocess.run(["mount", "--bind", mount.path, other], check=True)
        assert mountpoint.unmount(mount.path) == []
        assert (other / "hello").read_bytes() == b"hello, world\n"
        assert mountpoint.unmount(other) == []
        assert mount.process.wait(30) == 0


# --- After a mount ------------------------------------------------------------------------------------------


def test_a_bare_directory_is_no_mount(tmp_path):
    with pytest.raises(MountError, match="gone again"):
        mountpoint.check_serving(tmp_path, tmp_path.stat().st_dev)


@requires_root
@pytest.mark.integration
def test_a_mount_that_answers(mount_memory, tmp_path):
    with mount_memory() as mount:
        mountpoint.check_serving(mount.path, tmp_path.stat().st_dev)
        assert mount.calls()["attributes"] == 1


@requires_root
@pytest.mark.integration
def test_a_dead_mount_does_not_answer(mount_memory, tmp_path):
    device = tmp_path.stat().st_dev
    with mount_memory() as mount:
        mount.stop(signal.SIGKILL)
        with pytest.raises(MountError, match="does not answer: Transport endpoint is not connected"):
            mountpoint.check_serving(mount.path, device)
