"""``rafsfs upgrade``: mounts go from server to server under load, and stay where they are if they cannot."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import mounts
from support.images import KEY, build
from support.load import fio_reads, readers, write_verifiable
from support.mounts import END_S, mounting, rafsfs, start_rafsfs, umount, wait_for_end, wait_for_lines

from rafsfs.frontends.server_sockets import device_of, folders
from rafsfs.frontends.statistics_socket import ask
from rafsfs.trust.keys import save_key
from rafsfs.trust.material import Passphrase, SymmetricKey

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

MIB = 1 << 20
UPGRADES = 6
OTHER_USER = 65533


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two images, their tree, the key and another one."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tree").mkdir()
    (folder / "tree" / "big").write_bytes(os.urandom(8 * MIB))
    write_verifiable(folder / "tree" / "fio", 2 * MIB)
    for number in range(200):
        (folder / "tree" / f"{number}").write_text(f"{number}")
    build(folder / "tree", folder / "img", recipients=(KEY, Passphrase(b"sesame")))
    (folder / "other").mkdir()
    (folder / "other" / "file").write_bytes(b"other")
    build(folder / "other", folder / "other image")
    save_key(KEY, folder / "key")
    save_key(SymmetricKey.generate(), folder / "other key")
    return folder


@pytest.fixture(params=["devfuse", "erofs"])
def frontend(request):
    """All that can be handed over."""
    return ("--frontend", request.param, "--allow-other")


@pytest.fixture
def mount(place, tmp_path):
    """A mount of the image."""
    words = ("--key", place / "key", "--log-file", tmp_path / "log")
    with mounting(place / "img", tmp_path / "m", *words) as directory:
        yield directory


def server(directory):
    return ask(device_of(directory))["mount"]["pid"]


def upgrade(directory, *words):
    done = rafsfs("upgrade", directory, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def assert_refused(directory, code, *saying, words=(), **options):
    """It is refused with this exit code and these words, in one line, and the old server goes on."""
    before = server(directory)
    done = rafsfs("upgrade", directory, *words, **options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert all(text in done.stderr for text in saying), done.stderr
    assert server(directory) == before
    assert len(list(directory.iterdir())) == 202


# --- Under load ---------------------------------------------------------------------------------------------


def test_no_read_fails_while_servers_are_replaced_again_and_again(place, frontend, tmp_path, tally):
    words = ("--key", place / "key", "--log-file", tmp_path / "log", *frontend)
    with mounting(place / "img", tmp_path / "m", *words) as directory:
        servers = [server(directory)]
        with readers(place / "tree", directory, "big"):
            for _ in range(UPGRADES):
                upgrade(directory)
                assert fio_reads(directory / "fio") == 512
                servers.append(server(directory))
        assert len(set(servers)) == UPGRADES + 1
        for old in servers[:-1]:
            wait_for_end(old)
        umount(directory)
        wait_for_end(servers[-1])
    log = (tmp_path / "log").read_text()
    assert log.count("has the mount now") == UPGRADES
    assert log.count("unmounted") == 1
    assert " ERROR " not in log
    assert " WARNING " not in log
    tally("upgrades under load", UPGRADES)


def test_two_upgrades_at_once_follow_each_other(mount, place):
    before = server(mount)
    with readers(place / "tree", mount, "big", 1):
        both = [start_rafsfs("upgrade", mount) for _ in range(2)]
        for process in both:
            assert process.communicate(timeout=END_S) == ("", "")
            assert process.returncode == 0
    assert server(mount) != before
    wait_for_end(before)


def wait_until_no_socket_is_left(device):
    """Its number may go to a mount of somebody else's at once, who then has sockets of these names."""
    name, deadline = device.replace(":", "-"), time.monotonic() + END_S
    while left := [path for folder in folders() for path in folder.glob(f"*{name}*")]:
        if any(line.split()[2] == device for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_upgrades_while_it_is_unmounted_leave_nothing(place, tmp_path):
    for _ in range(3):
        log = tmp_path / "log"
        words = ("--key", place / "key", "--log-file", log)
        with mounting(place / "img", tmp_path / "m", *words) as directory:
            device = device_of(directory)
            process = start_rafsfs("upgrade", directory)
            done = rafsfs("umount", directory)
            output, errors = process.communicate(timeout=END_S)
            assert (done.returncode, done.stderr) == (0, "")
            assert output == ""
            assert (process.returncode, errors.count("\n")) in ((0, 0), (9, 1)), errors
            assert mounts.mounted(directory) is None
        pids = {int(word.split("]")[0]) for word in log.read_text().split("rafsfs[")[1:]}
        for pid in pids:
            wait_for_end(pid)
        wait_until_no_socket_is_left(device)


def test_a_signal_to_either_server_while_the_mount_goes_over_unmounts_or_not(place, tmp_path):
    """A race that either may win; what must not be is a mount that nobody serves."""
    for number in range(4):
        log = tmp_path / f"log {number}"
        words = ("--key", place / "key", "--log-file", log)
        with mounting(place / "img", tmp_path / "m", *words) as directory:
            old = server(directory)
            process = start_rafsfs("upgrade", directory)
            if number % 2:
                wait_for_lines(log, "has the mount now")
            os.kill(old, signal.SIGTERM)
            _, errors = process.communicate(timeout=END_S)
            assert errors.count("\n") <= 1
            wait_for_end(old)
            assert (mounts.mounted(directory) is None) == (process.returncode != 0)
            if process.returncode == 0:
                assert (directory / "1").read_text() == "1"


# --- What goes along ----------------------------------------------------------------------------------------


def test_what_was_counted_goes_along(mount):
    (mount / "big").read_bytes()
    before = ask(device_of(mount))
    upgrade(mount)
    (mount / "fio").read_bytes()
    after = ask(device_of(mount))
    assert after["mount"]["pid"] != before["mount"]["pid"]
    assert after["mount"]["uptime_s"] > before["mount"]["uptime_s"]
    assert after["requests"]["init"] == before["requests"]["init"]
    assert after["decoded"]["chunk_bytes"] > before["decoded"]["chunk_bytes"]
    assert after["requests"]["readdirplus" if "readdirplus" in before["requests"] else "statfs"]["count"] >= 1


def test_options_go_along_and_can_be_changed(place, tmp_path):
    (tmp_path / "key").symlink_to(place / "key")
    words = ("--key", "key", "--uid", "77", "--log-file", "log", "--cache-size", "5M")
    done = rafsfs("mount", place / "img", tmp_path / "m", *words, cwd=(tmp_path / "m").mkdir() or tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    directory = tmp_path / "m"
    try:
        upgrade(directory)
        assert (directory / "1").stat().st_uid == 77
        assert ask(device_of(directory))["cache"]["budget_bytes"] == 5 * MIB
        upgrade(directory, "--cache-size", "7M")
        upgrade(directory)
        assert ask(device_of(directory))["cache"]["budget_bytes"] == 7 * MIB
        assert (tmp_path / "log").read_text().count("serving") == 4
    finally:
        umount(directory)


def test_an_open_directory_is_listed_on_after_an_upgrade(mount):
    with os.scandir(mount) as entries:
        first = [next(entries).name for _ in range(3)]
        upgrade(mount)
        rest = [entry.name for entry in entries]
    assert sorted(first + rest) == sorted(path.name for path in mount.iterdir())


def test_a_foreground_server_returns_when_another_has_the_mount(place, tmp_path):
    (tmp_path / "m").mkdir()
    process = start_rafsfs("mount", place / "img", tmp_path / "m", "--key", place / "key", "--foreground")
    assert "serving" in process.stderr.readline()
    try:
        upgrade(tmp_path / "m")
        _, errors = process.communicate(timeout=END_S)
        assert process.returncode == 0
        assert f"process {server(tmp_path / 'm')} has the mount now" in errors
        assert (tmp_path / "m" / "1").read_text() == "1"
    finally:
        umount(tmp_path / "m")


# --- The image and its keys ---------------------------------------------------------------------------------


def test_with_a_wrong_key_the_old_server_goes_on(mount, place):
    assert_refused(mount, 4, "key", words=("--key", place / "other key"))
    assert_refused(mount, 14, "no such key file", words=("--key", place / "no key"))
    upgrade(mount)


def test_another_image_is_refused(mount, place):
    words = ("--image", place / "other image")
    assert_refused(mount, 9, "this is not the image that is mounted", words=words)
    assert_refused(mount, 3, "no image at", words=("--image", place / "nowhere"))
    upgrade(mount)


def test_the_mounted_image_is_opened_although_its_tag_has_moved(place, tmp_path):
    shutil.copytree(place / "img", tmp_path / "img")
    with mounting(tmp_path / "img", tmp_path / "m", "--key", place / "key") as directory:
        build(place / "other", tmp_path / "img")
        upgrade(directory)
        assert (directory / "1").read_text() == "1"
        shutil.rmtree(tmp_path / "img")
        assert_refused(directory, 3, "no image at")


def test_keys_that_came_through_a_pipe_have_to_be_given_again(place, tmp_path):
    (tmp_path / "m").mkdir()
    done = rafsfs("mount", place / "img", tmp_path / "m", "--passphrase-file", "-", input="sesame\n")
    assert (done.returncode, done.stderr) == (0, "")
    try:
        assert_refused(tmp_path / "m", 4, "cannot be read a second time: -", "give them again")
        done = rafsfs("upgrade", tmp_path / "m", "--passphrase-file", "-", input="sesame\n")
        assert (done.returncode, done.stderr) == (0, "")
        upgrade(tmp_path / "m", "--key", place / "key")
        upgrade(tmp_path / "m")
    finally:
        umount(tmp_path / "m")


# --- Whose mount it is --------------------------------------------------------------------------------------


def test_a_mount_of_pyfuse3_is_refused(place, tmp_path):
    words = ("--key", place / "key", "--frontend", "pyfuse3")
    with mounting(place / "img", tmp_path / "m", *words) as directory:
        assert_refused(directory, 9, "mounts of the front end pyfuse3 cannot be handed over")


def test_a_dead_server_gives_nothing_away(mount):
    old = server(mount)
    os.kill(old, signal.SIGKILL)
    wait_for_end(old)
    done = rafsfs("upgrade", mount)
    assert (done.returncode, done.stderr.count("\n")) == (9, 1)
    assert "it is dead" in done.stderr


def test_what_is_no_mount_is_refused(tmp_path):
    done = rafsfs("upgrade", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (9, 1)
    assert "this is not in a rafsfs mount" in done.stderr


def test_another_user_gets_nothing(mount):
    # the interpreter and the packages may lie where only root can read, so all is imported while root
    program = f"""
import os, sys
import array, ctypes, locale, logging.handlers, select, socket
import pwd, resource, shutil, subprocess, rafsfs.cli.upgrade, rafsfs.cli.mount, rafsfs.cli.handover
import rafsfs.frontends.statistics_socket, rafsfs.frontends.handover_taker, rafsfs.frontends.devfuse
from rafsfs.cli.main import main
os.setgroups([])
os.setgid({OTHER_USER})
os.setuid({OTHER_USER})
sys.exit(main())
"""
    before = server(mount)
    done = subprocess.run(
        [sys.executable, "-c", program, "upgrade", mount],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(mounts.ROOT)},
        timeout=END_S,
    )
    assert (done.returncode, done.stderr.count("\n")) == (9, 1), done.stderr
    assert "another user's" in done.stderr
    assert server(mount) == before
