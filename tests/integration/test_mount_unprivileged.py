"""Mounting as a user who is not root, through fusermount3."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import mounts
from support.images import KEY, build
from support.mounts import fuse_for_everybody, wait_for_end

from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

on_both = pytest.mark.usefixtures("frontend")

USER = 65534
OTHER = 65533

# The interpreter and the packages may lie where only root can read, so all is imported while root.
AS_USER = f"""
import os, sys
import rafsfs.cli.mount, rafsfs.cli.umount, rafsfs.frontends.library, rafsfs.frontends.mountpoint_linux
import rafsfs.frontends.devfuse, rafsfs.frontends.pyfuse3_mount, rafsfs.trust.keys
import array, ctypes, logging.handlers, pwd, resource, shutil, socket, subprocess
from rafsfs.cli.main import main
os.setgroups([])
os.setgid({USER})
os.setuid({USER})
sys.exit(main())
"""


@pytest.fixture(scope="module")
def place():
    """The user's own folder with an image and its key, outside pytest's folders, which are root's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="rafsfs-user-"))
    try:
        (folder / "tree").mkdir()
        (folder / "tree" / "hello").write_bytes(b"hello, world\n")
        build(folder / "tree", folder / "img")
        save_key(KEY, folder / "key")
        for name in ("m", "home"):
            (folder / name).mkdir()
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, USER, USER)
        with fuse_for_everybody():
            yield folder
    finally:
        if mounts.mounted(folder / "m") is not None:
            subprocess.run(["umount", "--lazy", folder / "m"], check=True)
        shutil.rmtree(folder)


def rafsfs_as_user(*arguments):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(mounts.ROOT)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("RAFSFS_TEST")}
    command = [sys.executable, "-c", AS_USER, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd="/", check=False, timeout=mounts.END_S
    )
    done.stderr = mounts.without_log_warning(done.stderr)
    return done


def cat_as(uid, path):
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "cat", path]
    return subprocess.run(command, capture_output=True, check=False, text=True, env={"LC_ALL": "C"})


@pytest.fixture
def mount(place, tmp_path):
    """Mount as the user; unmount at the end what the test has left."""
    log = place / "log"
    log.unlink(missing_ok=True)

    def mount(*options):
        done = rafsfs_as_user(
            "mount",
            place / "img",
            place / "m",
            "--key",
            place / "key",
            "--log-file",
            log,
            *options,
            *mounts.MOUNT_OPTIONS,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return mounts.server_of(log)

    yield mount
    if mounts.mounted(place / "m") is not None:
        subprocess.run(["umount", "--lazy", place / "m"], check=True)


@on_both
def test_a_user_mounts_reads_and_unmounts(place, mount):
    server = mount()
    assert (
        f"user_id={USER}"
        in Path("/proc/mounts").read_text(errors="surrogateescape").split(f" {place}/m ")[1].split(" ")[1]
    )
    assert mounts.mounted(place / "m").type == "fuse.rafsfs"
    assert (Path(f"/proc/{server}/status").read_text().split("Uid:")[1].split()[:4]) == [str(USER)] * 4
    assert cat_as(USER, place / "m" / "hello").stdout == "hello, world\n"
    assert "Permission denied" in cat_as(OTHER, place / "m" / "hello").stderr
    assert mounts.read_error(place / "m" / "hello") == errno.EACCES  # not even root, without allow_other
    done = rafsfs_as_user("umount", place / "m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mounts.mounted(place / "m") is None
    wait_for_end(server)


@on_both
def test_the_server_unmounts_when_it_is_terminated(place, mount):
    server = mount()
    os.kill(server, signal.SIGTERM)
    wait_for_end(server)
    assert mounts.mounted(place / "m") is None


@on_both
def test_a_dead_mount_is_unmounted(place, mount):
    server = mount()
    os.kill(server, signal.SIGKILL)
    wait_for_end(server)
    done = rafsfs_as_user("umount", place / "m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert mounts.mounted(place / "m") is None


@on_both
def test_a_mount_in_use_is_kept_until_lazy(place, mount):
    server = mount()
    holder = subprocess.Popen(
        ["sh", "-c", f"exec 5<{place}/m/hello; echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=USER,
        group=USER,
        extra_groups=[],
    )
    try:
        assert holder.stdout.read(1) == b"\n"
        done = rafsfs_as_user("umount", place / "m")
        assert done.returncode == 9
        assert f"in use: open files of process {holder.pid} (cat)" in done.stderr
        assert mounts.mounted(place / "m") is not None
        done = rafsfs_as_user("umount", "--lazy", place / "m")
        assert (done.returncode, done.stderr) == (0, "")
        assert mounts.mounted(place / "m") is None
    finally:
        holder.communicate()
    wait_for_end(server)


def test_another_user_may_not_unmount(place, mount):
    mount()
    program = AS_USER.replace(str(USER), str(OTHER))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(mounts.ROOT)}
    command = [sys.executable, "-c", program, "umount", str(place / "m")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert done.returncode == 9
    assert "cannot be unmounted: fusermount3: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert mounts.mounted(place / "m") is not None


@on_both
@pytest.mark.parametrize(
    ("directory", "options", "complaint"),
    [
        ("/usr", (), "you may not write to the mount point"),
        ("/tmp", (), "not owned by user"),
        ("m", ("--allow-other",), "user_allow_other"),
    ],
)
def test_what_fusermount3_or_we_refuse_is_one_line(place, directory, options, complaint):
    if complaint == "user_allow_other" and "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("this machine allows it to all users")
    done = rafsfs_as_user(
        "mount", place / "img", place / directory, "--key", place / "key", *options, *mounts.MOUNT_OPTIONS
    )
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.startswith("rafsfs: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert mounts.mounted(place / "m") is None


def test_a_key_that_the_user_may_not_read(place, tmp_path):
    done = rafsfs_as_user("mount", place / "img", place / "m", "--key", "/etc/shadow")
    assert done.returncode == 4
    assert "cannot read key file: Permission denied" in done.stderr
