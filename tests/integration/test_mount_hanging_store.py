"""Mounts whose store stops answering: who has to wait, who has not, and that nothing holds up the end.

The store is a folder in another mount of rafsfs, whose server is stopped and let go on again by signals.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import mounts
from support.images import KEY, build
from support.mounts import END_S, SOON_S, mounting, rafsfs, server_of, umount, wait_for_end, wait_for_lines

from rafsfs.cli.mount import FRONTENDS
from rafsfs.frontends.server_sockets import device_of
from rafsfs.frontends.statistics_socket import ask
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

on_both = pytest.mark.usefixtures("frontend")

on_all = pytest.mark.parametrize("frontend", FRONTENDS, indirect=True)

WAITS = re.compile("request_wait_answer|folio_wait|filemap_")

BIG_BYTES = 8 << 20
READ = """
import os, sys
print("asks", flush=True)
os.pread(os.open(sys.argv[1], os.O_RDONLY), 4096, int(sys.argv[2]))
"""

LIST = """
import os, sys
print("asks", flush=True)
print(*sorted(entry.name for entry in os.scandir(sys.argv[1]) if entry.stat().st_size == 0), flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image inside of an image."""
    folder = tmp_path_factory.mktemp("hanging")
    save_key(KEY, folder / "key")
    tree = folder / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(os.urandom(BIG_BYTES))
    (tree / "small").write_bytes(b"small")
    (tree / "many").mkdir()
    for number in range(300):
        (tree / "many" / f"{number}").touch()
    (tree / "unseen").mkdir()
    for number in range(300):
        (tree / "unseen" / f"{number}").touch()
    build(tree, folder / "outer" / "img", page_size=4096)
    build(folder / "outer", folder / "store")
    return folder


class Store:
    """The mount that the image lies in."""

    def __init__(self, folder, server):
        self.folder = folder
        self._server = server

    def hang(self):
        for blob in (self.folder / "img" / "blobs").rglob("*"):  # what the kernel has it would go on giving
            descriptor = os.open(blob, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        os.kill(self._server, signal.SIGSTOP)

    def go_on(self):
        os.kill(self._server, signal.SIGCONT)


@pytest.fixture
def store(place, tmp_path):
    log = tmp_path / "store.log"
    with mounting(place / "store", tmp_path / "store", "--key", place / "key", "--log-file", log) as folder:
        store = Store(folder, server_of(log))
        try:
            yield store
        finally:
            store.go_on()


@pytest.fixture
def mount(place, store, tmp_path):
    """A mount of the image in the store, and its server."""
    log = tmp_path / "log"
    arguments = (store.folder / "img", tmp_path / "m", "--key", place / "key", "--log-file", log)
    with mounting(*arguments) as directory:
        (directory / "small").read_bytes()
        list((directory / "many").iterdir())
        try:
            yield directory, server_of(log)
        finally:
            store.go_on()


def reader(path, offset):
    """A process that reads; comes back when it is about to."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ, path, str(offset)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"asks\n"
    process.stdout.close()
    return process


@on_both
def test_others_go_on_while_reads_wait_and_these_end_when_the_store_answers_again(store, mount):
    directory, _ = mount
    store.hang()
    readers = [reader(directory / "big", number << 20) for number in range(6)]
    assert (directory / "small").read_bytes() == b"small"
    assert len(list((directory / "many").iterdir())) == 300
    assert [each.poll() for each in readers] == [None] * 6
    store.go_on()
    assert [each.wait(END_S) for each in readers] == [0] * 6


@on_both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_while_reads_wait(store, mount, number):
    directory, server = mount
    store.hang()
    readers = [reader(directory / "big", number << 20) for number in range(6)]
    assert (directory / "small").stat().st_size == 5
    os.kill(server, number)
    wait_for_end(server, SOON_S)
    assert mounts.mounted(directory) is None
    assert all(each.wait(SOON_S) != 0 for each in readers)


@on_both
def test_others_go_on_while_metadata_wait_and_a_signal_ends_the_server(store, mount):
    directory, server = mount
    store.hang()
    listing = subprocess.Popen([sys.executable, "-c", LIST, directory / "unseen"], stdout=subprocess.PIPE)
    assert listing.stdout.readline() == b"asks\n"
    listing.stdout.close()
    assert (directory / "small").read_bytes() == b"small"
    assert len(list((directory / "many").iterdir())) == 300
    os.kill(server, signal.SIGTERM)
    wait_for_end(server, SOON_S)
    assert mounts.mounted(directory) is None
    assert listing.wait(SOON_S) != 0


def test_who_waits_for_metadata_of_a_store_that_hangs_can_be_ended(store, mount):
    """The kernel has sent the request, so that only the answer to its INTERRUPT lets the reader go."""
    directory, server = mount
    store.hang()
    listing = subprocess.Popen([sys.executable, "-c", LIST, directory / "unseen"], stdout=subprocess.PIPE)
    assert listing.stdout.readline() == b"asks\n"
    wait_until_it_is_not_answered(listing, directory)
    listing.kill()
    assert listing.wait(SOON_S) == -signal.SIGKILL
    listing.stdout.close()
    assert (directory / "small").read_bytes() == b"small"
    deadline = time.monotonic() + SOON_S
    while "interrupt" not in ask(device_of(directory))["requests"]:  # counted when its reader has gone
        assert time.monotonic() < deadline
    os.kill(server, signal.SIGTERM)
    wait_for_end(server, SOON_S)


@on_both
def test_metadata_that_waited_are_all_there_when_the_store_answers_again(place, store, mount):
    directory, _ = mount
    store.hang()
    listing = subprocess.Popen([sys.executable, "-c", LIST, directory / "unseen"], stdout=subprocess.PIPE)
    assert listing.stdout.readline() == b"asks\n"
    assert (directory / "small").read_bytes() == b"small"
    store.go_on()
    names, _ = listing.communicate(timeout=END_S)
    assert names.split() == sorted(f"{number}".encode() for number in range(300))


@on_both
def test_a_killed_server_s_mount_is_taken_away_while_reads_wait(store, mount):
    directory, server = mount
    store.hang()
    readers = [reader(directory / "big", number << 20) for number in range(3)]
    os.kill(server, signal.SIGKILL)
    wait_for_end(server, SOON_S)
    assert all(each.wait(SOON_S) != 0 for each in readers)
    umount(directory)


@on_both
@on_all
def test_an_unmount_ends_the_server_while_reads_wait_that_were_given_up(store, mount):
    """What was read ahead is still under way when its reader is gone, so that the mount is not in use."""
    directory, server = mount
    store.hang()
    readers = [reader(directory / "big", number << 20) for number in range(3)]
    for each in readers:
        each.kill()
        assert each.wait(SOON_S) == -signal.SIGKILL
    umount(directory, timeout=SOON_S)
    wait_for_end(server, SOON_S)


def test_a_lazy_unmount_comes_back_while_reads_wait(store, mount):
    directory, server = mount
    store.hang()
    waiting = reader(directory / "big", 0)
    umount(directory, "--lazy", timeout=SOON_S)
    waiting.kill()
    assert waiting.wait(SOON_S) == -signal.SIGKILL
    store.go_on()
    wait_for_end(server)


def test_a_server_in_the_foreground_returns_while_a_read_waits(place, store, tmp_path):
    directory = tmp_path / "m"
    directory.mkdir()
    process = mounts.start_rafsfs(
        "mount", store.folder / "img", directory, "--key", place / "key", "--foreground"
    )
    assert "serving" in process.stderr.readline()
    (directory / "small").read_bytes()
    store.hang()
    waiting = reader(directory / "big", 0)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=SOON_S)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert waiting.wait(SOON_S) != 0
    assert mounts.mounted(directory) is None


def test_reads_that_hang_are_answered_by_a_server_that_has_the_image_elsewhere(place, store, mount):
    directory, server = mount
    store.hang()
    readers = [reader(directory / "big", number << 20) for number in range(6)]
    assert (directory / "small").read_bytes() == b"small"
    done = rafsfs("upgrade", directory, "--image", place / "outer" / "img")
    assert (done.returncode, done.stderr) == (0, "")
    assert [each.wait(END_S) for each in readers] == [0] * 6
    wait_for_end(server)
    assert (directory / "big").read_bytes() == (place / "tree" / "big").read_bytes()


def test_an_upgrade_from_a_store_that_hangs_waits_and_the_old_server_goes_on(store, mount):
    directory, server = mount
    store.hang()
    waiting = reader(directory / "big", 0)
    upgrade = mounts.start_rafsfs("upgrade", directory)
    assert (directory / "small").read_bytes() == b"small"
    assert len(list((directory / "many").iterdir())) == 300
    store.go_on()
    assert upgrade.communicate(timeout=END_S) == ("", "")
    assert waiting.wait(END_S) == 0
    wait_for_end(server)
    assert (directory / "small").read_bytes() == b"small"


@on_both
def test_a_store_that_goes_away_is_an_error_for_readers_and_a_line_in_the_log(store, mount, tmp_path):
    directory, _ = mount
    store.hang()
    os.kill(store._server, signal.SIGKILL)
    wait_for_end(store._server)
    store.go_on = lambda: None
    assert reader(directory / "big", 0).wait(END_S) != 0
    assert (directory / "small").read_bytes() == b"small"
    (line, *_) = wait_for_lines(tmp_path / "log", " ERROR ")
    assert "reading the blob failed" in line
    assert "/big" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_mounting_from_a_store_that_hangs_can_be_given_up(place, store, tmp_path, number):
    (tmp_path / "m").mkdir()
    store.hang()
    process = mounts.start_rafsfs("mount", store.folder / "img", tmp_path / "m", "--key", place / "key")
    wait_until_it_hangs(process)
    process.send_signal(number)
    process.communicate(timeout=SOON_S)
    assert process.returncode == -number
    assert mounts.mounted(tmp_path / "m") is None
    store.go_on()
    assert rafsfs("mount", store.folder / "img", tmp_path / "m", "--key", place / "key").returncode == 0
    umount(tmp_path / "m")


def wait_until_it_is_not_answered(process, directory):
    """Until it waits for one and the same answer before and behind another request.

    Who answers that has taken what was asked before, so the kernel cannot take it back any more.
    """
    while True:
        wait_until_it_hangs(process)
        before = times_it_slept(process)
        os.statvfs(directory)
        wait_until_it_hangs(process)
        if times_it_slept(process) == before:
            return


def times_it_slept(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return re.search(r"^voluntary_ctxt_switches:.*", status, re.MULTILINE)[0]


def wait_until_it_hangs(process):
    """Until its main thread waits in the kernel for the server of the store."""
    deadline = time.monotonic() + END_S
    while not WAITS.search(Path(f"/proc/{process.pid}/stack").read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
