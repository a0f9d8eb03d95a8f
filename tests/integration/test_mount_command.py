"""``rafsfs mount`` and ``rafsfs umount`` on a real image: what they do, what they say, what they leave."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support import mounts
from support.images import KEY, build
from support.mounts import mounting, rafsfs, server_of, start_rafsfs, umount, wait_for_end
from support.trees import assert_same_tree, read_folder

from rafsfs.trust.keys import save_key
from rafsfs.trust.material import Passphrase, SymmetricKey

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

on_both = pytest.mark.usefixtures("frontend")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree with something of everything."""
    root = tmp_path_factory.mktemp("tree")
    (root / "folder" / "deeper").mkdir(parents=True)
    (root / "hello").write_bytes(b"hello, world\n")
    (root / "folder" / "random").write_bytes(os.urandom(1_500_000))
    (root / "folder" / "zeros").write_bytes(bytes(700_000))
    (root / "empty").touch(0o400)
    os.link(root / "hello", root / "folder" / "hard link")
    (root / "link").symlink_to("folder/random")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o20600, os.makedev(1, 3))
    os.setxattr(root / "hello", "user.color", b"green")
    os.chown(root / "hello", 1234, 5678)
    (root / "hello").chmod(0o2755)
    for number in range(500):
        (root / "folder" / "deeper" / f"{number}").write_text(str(number))
    os.utime(root / "hello", ns=(0, 123_456_789_987_654_321))
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory, tree):
    """A folder with an image, its key and another key."""
    folder = tmp_path_factory.mktemp("place")
    build(tree, folder / "img", recipients=(KEY, Passphrase(b"sesame")), release=5)
    save_key(KEY, folder / "key")
    save_key(SymmetricKey.generate(), folder / "other key")
    (folder / "passphrase").touch(0o600)
    (folder / "passphrase").write_text("sesame\n")
    return folder


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


@on_both
def test_the_mount_is_the_tree(place, tree, directory):
    with mounting(place / "img", directory, "--key", place / "key"):
        assert_same_tree(read_folder(tree), read_folder(directory))


@on_both
def test_the_mount_table_says_what_is_mounted(place, directory):
    with mounting(place / "img", directory, "--key", place / "key"):
        found = mounts.mounted(directory)
        assert (found.type, found.source) == ("fuse.rafsfs", f"{place}/img:latest")


@on_both
def test_the_server_ends_with_the_unmount(place, directory, tmp_path):
    log = tmp_path / "log"
    with mounting(place / "img", directory, "--key", place / "key", "--log-file", log):
        server = server_of(log)
        umount(directory)
        wait_for_end(server)
    lines = log.read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == [
        f"serving {place}/img:latest on {directory}",
        f"unmounted {directory}",
    ]


def test_names_relative_to_the_caller_s_folder(place, tmp_path, directory):
    (tmp_path / "img").symlink_to(place / "img")
    (tmp_path / "key").symlink_to(place / "key")
    done = rafsfs("mount", "img", "m", "--key", "key", "--log-file", "log", cwd=tmp_path)
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert mounts.mounted(directory).source == f"{tmp_path}/img:latest"
        assert (directory / "folder" / "random").stat().st_size == 1_500_000
        server = server_of(tmp_path / "log")
        assert Path(f"/proc/{server}/cwd").readlink() == Path("/")
    finally:
        done = rafsfs("umount", "m", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_passphrase_from_a_file_or_a_pipe(place, directory):
    with mounting(place / "img", directory, "--passphrase-file", place / "passphrase"):
        assert (directory / "hello").read_bytes() == b"hello, world\n"
    done = rafsfs("mount", place / "img", directory, "--passphrase-file", "-", input="sesame\n")
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert (directory / "hello").read_bytes() == b"hello, world\n"
    finally:
        umount(directory)


@on_both
def test_owners_are_shown_as_asked_for(place, directory):
    with mounting(place / "img", directory, "--key", place / "key", "--uid", 77, "--gid", 0, "--allow-other"):
        status = (directory / "hello").stat()
        assert (status.st_uid, status.st_gid) == (77, 0)
        assert (
            "allow_other"
            in Path("/proc/mounts")
            .read_text(errors="surrogateescape")
            .split(f" {directory} ")[1]
            .split(" ")[1]
        )


@on_both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_in_the_foreground_until_a_signal(place, directory, number):
    process = start_rafsfs("mount", place / "img", directory, "--key", place / "key", "--foreground")
    started = process.stderr.readline()
    assert started == f"rafsfs: INFO: serving {place}/img:latest on {directory}\n"
    assert (directory / "hello").read_bytes() == b"hello, world\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=mounts.END_S)
    assert (process.returncode, output) == (0, "")
    assert f"signal {number.name} asks" in errors
    assert mounts.mounted(directory) is None


@on_both
def test_in_the_foreground_until_an_unmount(place, directory):
    process = start_rafsfs("mount", place / "img", directory, "--key", place / "key", "--foreground")
    assert "serving" in process.stderr.readline()
    (directory / "hello").stat()
    subprocess.run(["umount", directory], check=True)
    assert process.communicate(timeout=mounts.END_S) == ("", f"rafsfs: INFO: unmounted {directory}\n")
    assert process.returncode == 0


@on_both
def test_two_mounts_of_one_image_live_and_die_alone(place, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = ("--key", place / "key", "--log-file")
    with (
        mounting(place / "img", one, *arguments, tmp_path / "log1"),
        mounting(place / "img", two, *arguments, tmp_path / "log2"),
    ):
        servers = server_of(tmp_path / "log1"), server_of(tmp_path / "log2")
        assert servers[0] != servers[1]
        assert_same_tree(read_folder(one), read_folder(two))
        umount(one)
        wait_for_end(servers[0])
        assert (two / "folder" / "zeros").read_bytes() == bytes(700_000)


@on_both
def test_no_secret_is_in_sight(place, directory, tmp_path):
    log = tmp_path / "log"
    with mounting(
        place / "img", directory, "--key", place / "key", "--log-file", log, "--log-level", "debug"
    ):
        (directory / "hello").read_bytes()
        server = Path(f"/proc/{server_of(log)}")
        shown = (server / "cmdline").read_bytes() + (server / "environ").read_bytes() + log.read_bytes()
        key_text = (place / "key").read_bytes().split()[-1]
        for secret in (KEY.raw, KEY.raw.hex().encode(), key_text):
            assert secret not in shown
        assert "Max core file size        0                    0" in (server / "limits").read_text()
        assert not [fd for fd in (server / "fd").iterdir() if fd.readlink() == place / "key"]


# --- What is refused ----------------------------------------------------------------------------------------


def refusals(place, tmp_path):
    """Name -> (arguments, exit code, what the line says)."""
    image, key, directory = place / "img", ("--key", place / "key"), tmp_path / "m"
    return {
        "no image": ((tmp_path / "none", directory, *key), 3, "no image at"),
        "no tag": ((f"{image}:v9", directory, *key), 11, "no tag 'v9'"),
        "no key": ((image, directory), 4, "no given key opens this image"),
        "wrong key": ((image, directory, "--key", place / "other key"), 4, "no given key opens this image"),
        "no key file": ((image, directory, "--key", tmp_path / "none"), 14, "no such key file"),
        "wrong passphrase": ((image, directory, "--passphrase-file", tmp_path / "wrong"), 4, "key"),
        "too old": ((image, directory, *key, "--min-release", 6), 5, "release"),
        "not the pinned one": ((image, directory, *key, "--digest", "sha256:" + "0" * 64), 11, "000000"),
        "no directory": ((image, tmp_path / "none", *key), 9, "the mount point does not exist"),
        "a file": ((image, tmp_path / "file", *key), 20, "the mount point is not a directory"),
        "in use": ((image, "/proc", *key), 19, "something is mounted on the mount point already: proc of"),
        "no log file": (
            (image, directory, *key, "--log-file", tmp_path / "no" / "log"),
            9,
            "log file cannot",
        ),
    }


@pytest.mark.parametrize("name", refusals(Path(), Path()))
def test_refused_in_one_line(place, tmp_path, directory, name):
    (tmp_path / "file").touch()
    (tmp_path / "wrong").touch(0o600)
    (tmp_path / "wrong").write_text("guess")
    arguments, code, line = refusals(place, tmp_path)[name]
    done = rafsfs("mount", *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("rafsfs: ")
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert mounts.mounted(directory) is None


@on_both
def test_a_second_mount_on_the_same_directory_is_refused_and_the_first_goes_on(place, directory):
    with mounting(place / "img", directory, "--key", place / "key"):
        done = rafsfs("mount", place / "img", directory, "--key", place / "key")
        assert done.returncode == 19
        assert f"already: fuse.rafsfs of {place}/img:latest" in done.stderr
        assert (directory / "hello").read_bytes() == b"hello, world\n"


WITHOUT = {
    # Another device in the place of /dev/fuse, and too few rights: only mount(2) itself finds that out.
    "its device": ("mount --bind /dev/null /dev/fuse &&", "the mount was refused: "),
    "rights": ("exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin", "the mount was refused: "),
    "any device": (
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ln -s /proc/self/fd /dev/fd &&",
        "this system has no FUSE",
    ),
}


@on_both
@pytest.mark.parametrize("lack", WITHOUT)
def test_what_the_kernel_refuses_is_one_line_too(place, directory, lack):
    mount = mounts.command_line("mount", place / "img", directory, "--key", place / "key")
    before, complaint = WITHOUT[lack]
    program = f"{before} {mount}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(mounts.ROOT)},
        check=False,
    )
    assert done.returncode == 9
    assert done.stderr.startswith(f"rafsfs: {complaint}")
    assert done.stderr.count("\n") == 1
    assert str(directory if "refused" in complaint else "/dev/fuse") in done.stderr
    assert "; " in done.stderr  # what to do about it
    assert mounts.mounted(directory) is None


def test_unmounting_what_is_not_mounted(directory):
    done = rafsfs("umount", directory)
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.startswith(f"rafsfs: nothing is mounted here (path {directory})")
    done = rafsfs("umount", "/proc")
    assert done.returncode == 9
    assert "not a rafsfs mount: expected fuse.rafsfs, found proc of" in done.stderr


@on_both
def test_unmounting_what_is_in_use(place, directory):
    with mounting(place / "img", directory, "--key", place / "key"), (directory / "hello").open():
        done = rafsfs("umount", directory)
        assert done.returncode == 9
        assert f"open files of process {os.getpid()}" in done.stderr
        assert done.stderr.endswith(f"rafsfs umount --lazy {directory}\n")
        umount(directory, "--lazy")
