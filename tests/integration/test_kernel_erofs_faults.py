"""Damaged images, hanging stores, dying servers under the kernel's EROFS: what fails, goes on, ends."""

import errno
import os
import shutil
import signal
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
from support import mounts
from support.erofs_mounts import erofs_server
from support.images import KEY, build, opened
from support.mounts import (
    SOON_S,
    chunk_place,
    flip,
    mounting,
    pages_of,
    rafsfs,
    read_error,
    server_of,
    umount,
    wait_for_end,
    wait_for_lines,
    wait_until_gone,
)

from rafsfs.cli.exit_codes import ExitCode
from rafsfs.errors import AuthError
from rafsfs.frontends import mountpoint_linux
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

CHUNK = 256 * 1024
BLOCK = 4096
MIB = 1 << 20
CONNECTIONS = Path("/sys/fs/fuse/connections")
BACKINGS = {"files": (), "loops": ("loops",)}


@pytest.fixture(scope="module")
def content():
    return os.urandom(24 * CHUNK)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, content):
    """An image of one file of many chunks, of others that share one, and of a large directory.

    It fills several pages of metadata.
    """
    folder = tmp_path_factory.mktemp("pristine")
    tree = folder / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "big").write_bytes(content)
    for number in range(100):
        (tree / f"small{number}").write_bytes(b"%d" % number * 3000)
    (tree / "many").mkdir()
    for number in range(3000):
        (tree / "many" / f"{number:05}").touch()
    build(tree, folder / "img")
    save_key(KEY, folder / "key")
    return folder


@pytest.fixture
def place(pristine, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(pristine / "img", tmp_path / "img")
    shutil.copy2(pristine / "key", tmp_path / "key")
    (tmp_path / "m").mkdir()
    return tmp_path


def arguments(place):
    words = place / "img", place / "m", "--key", place / "key", "--frontend", "erofs", "--allow-other"
    return *words, "--log-file", place / "log"


def big_chunk(place, number):
    """Where a chunk of the big file is stored."""
    return chunk_place(Reference(place / "img"), b"folder/big", number * CHUNK)


def errors_logged(log):
    return [line.split("ERROR")[1] for line in log.read_text().splitlines() if "ERROR" in line]


# --- Damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", BACKINGS)
def test_damage_fails_the_reads_that_touch_it_and_no_others(place, content, backing):
    """Each block by itself, so that the kernel asks for nothing else."""
    for number in (0, 7, 23):
        blob, _, offset, length = big_chunk(place, number)
        flip(blob, offset + length // 2)
    with erofs_server(place / "img", place / "served", *BACKINGS[backing]) as server:
        descriptor = os.open(server.path / "folder" / "big", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, len(content), 16 * BLOCK):
                if offset // CHUNK in (0, 7, 23):
                    with pytest.raises(OSError, match="Input/output error"):
                        os.pread(descriptor, BLOCK, offset)
                else:
                    assert os.pread(descriptor, BLOCK, offset) == content[offset : offset + BLOCK]
        finally:
            os.close(descriptor)
        assert mounts.unreadable_files(server.path) == {"folder/big"}
        wait_for_lines(server.log_file, "ERROR", 3)
        assert server.stop() == 0
    lines = errors_logged(server.log_file)
    assert len(lines) == 3
    assert all("; met in /folder/big (inode " in line for line in lines)


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("size", [BLOCK, 3 * BLOCK, 128 * 1024, MIB, 5 * MIB])
@pytest.mark.parametrize("damaged", [0, 1, 5, 13, 23])
def test_no_read_of_any_size_gets_other_bytes_beside_damage(place, content, backing, size, damaged):
    """What is read ahead, and in which pages, is up to the kernel: good bytes or an error, nothing else."""
    blob, _, offset, _ = big_chunk(place, damaged)
    flip(blob, offset)
    with erofs_server(place / "img", place / "served", *BACKINGS[backing]) as server:
        failed = []
        with (server.path / "folder" / "big").open("rb", buffering=0) as file:
            position = 0
            while position < len(content):
                try:
                    read = os.pread(file.fileno(), size, position)
                except OSError as error:
                    assert error.errno == errno.EIO
                    failed.append(position)
                    position += BLOCK
                else:
                    assert read == content[position : position + len(read)]
                    assert read
                    position += len(read)
        start, end = damaged * CHUNK, (damaged + 1) * CHUNK
        assert set(range(start, end, BLOCK)) <= set(failed)
        # The kernel reads ahead in pages of up to 1 MiB (2 MiB on loop devices); no error reaches further.
        reach = (1 if backing == "files" else 2) * MIB
        assert start // reach * reach <= min(failed)
        assert max(failed) < -(-end // reach) * reach


def test_the_log_names_blob_chunk_offset_and_path(place):
    blob, index, offset, _ = big_chunk(place, 3)
    with mounting(*arguments(place)):
        flip(blob, offset)  # only now: all is checked when it is read
        assert read_error(place / "m" / "folder" / "big", 3 * CHUNK + 5) == errno.EIO
        (line,) = wait_for_lines(place / "log", " ERROR ")
        umount(place / "m")
    for part in (
        f"blob sha256:{blob.name}",
        f"chunk {index}",
        f"offset {offset}",
        "met in /folder/big (inode ",
    ):
        assert part in line
    assert f" at offset {3 * CHUNK}" in line


def test_damage_in_a_shared_chunk_names_one_that_was_read(place):
    blob, _, offset, _ = chunk_place(Reference(place / "img"), b"small42")
    flip(blob, offset)
    with mounting(*arguments(place)):
        assert read_error(place / "m" / "small42") == errno.EIO
        (line,) = wait_for_lines(place / "log", " ERROR ")
    assert "; met in /small42 (inode " in line
    assert " at offset 0" in line


def test_damage_that_is_mended_reads_again(place, content):
    blob, _, offset, _ = big_chunk(place, 2)
    flip(blob, offset)
    with mounting(*arguments(place)):
        assert read_error(place / "m" / "folder" / "big", 2 * CHUNK) == errno.EIO
        flip(blob, offset)
        assert (place / "m" / "folder" / "big").read_bytes() == content


def test_a_blob_that_is_truncated_under_the_mount(place, content):
    blob, index, offset, _ = big_chunk(place, 20)
    with mounting(*arguments(place)):
        os.truncate(blob, offset + 1)
        assert read_error(place / "m" / "folder" / "big", 20 * CHUNK) == errno.EIO
        with (place / "m" / "folder" / "big").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), CHUNK, 0) == content[:CHUNK]
        wait_for_lines(place / "log", f"chunk {index}")


def read_all(root, good):
    """Errors of everything that can be asked of a tree; what is no error has to be as in ``good``."""
    errors = []
    for folder, names, files in os.walk(good):
        there = root / Path(folder).relative_to(good)
        for ask in (
            lambda: os.listdir(there),  # noqa: B023, PTH208
            *(partial(os.lstat, there / name) for name in names),
            *(partial(same_file, there / name, Path(folder) / name) for name in files),
        ):
            try:
                ask()
            except OSError as error:
                errors.append(error.errno)
    return errors


def same_file(path, good):
    assert path.stat().st_size == good.stat().st_size
    assert path.read_bytes() == good.read_bytes()


def test_damaged_metadata_is_refused_where_it_is_used(place, pristine, tally):
    file, offsets = pages_of(Reference(place / "img"))
    assert len(offsets) >= 4
    refused = 0
    for number, offset in enumerate(offsets):
        flip(file, offset + 5)
        try:
            opened(Reference(place / "img")).close()
        except AuthError:  # the page that every mount needs
            refused += 1
        else:
            with erofs_server(place / "img", place / f"served{number}") as server:
                errors = read_all(server.path, pristine / "tree")
                assert errors
                assert set(errors) == {errno.EIO}
                (line,) = wait_for_lines(server.log_file, "ERROR")
                assert f"page {number}" in line
        flip(file, offset + 5)
    assert 1 <= refused < len(offsets)
    tally("damaged metadata pages refused", len(offsets))


def test_an_image_that_is_deleted_goes_on_being_served(place, content):
    with mounting(*arguments(place)):
        shutil.rmtree(place / "img")
        assert (place / "m" / "folder" / "big").read_bytes() == content


# --- Ends ---------------------------------------------------------------------------------------------------


def connections():
    return set(CONNECTIONS.iterdir())


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("command", ["umount", "rafsfs"])
def test_an_unmount_ends_the_server(place, backing, command):
    with erofs_server(place / "img", place / "served", *BACKINGS[backing]) as server:
        (server.path / "small1").read_bytes()
        if command == "umount":
            subprocess.run(["umount", server.path], check=True)
            assert server.wait() == 0
        else:
            umount(server.path)
            assert server.process.poll() == 0  # it waited for the server's end
    assert server.log().splitlines()[-1].endswith(f"unmounted {server.path}")


@pytest.mark.parametrize("backing", BACKINGS)
def test_a_mount_in_use_is_left_alone_and_lazily_goes_when_its_users_go(place, content, backing):
    with erofs_server(place / "img", place / "served", *BACKINGS[backing]) as server:
        descriptor = os.open(server.path / "folder" / "big", os.O_RDONLY)
        try:
            done = rafsfs("umount", server.path)
            assert done.returncode == 9
            assert f"the mount is in use: open files of process {os.getpid()}" in done.stderr
            umount(server.path, "--lazy")
            assert mounts.mounted(server.path) is None
            assert os.pread(descriptor, len(content), 0) == content
            assert server.process.poll() is None
        finally:
            os.close(descriptor)
        assert server.wait() == 0


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_although_a_file_is_open(place, content, backing, number):
    with erofs_server(place / "img", place / "served", *BACKINGS[backing]) as server:
        descriptor = os.open(server.path / "folder" / "big", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(descriptor, BLOCK, 0) == content[:BLOCK]
            assert server.stop(number) == 0
            assert mounts.mounted(server.path) is None
            assert os.pread(descriptor, BLOCK, 0) == content[:BLOCK]  # the kernel has it
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(descriptor, BLOCK, 20 * CHUNK)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("is_open", [False, True], ids=["unused", "in use"])
def test_what_a_killed_server_leaves_is_cleared_away_by_one_unmount(place, content, backing, is_open):
    before = connections()
    with erofs_server(place / "img", place / "served", *BACKINGS[backing]) as server:
        found = mounts.mounted(server.path)
        descriptor = os.open(server.path / "folder" / "big", os.O_RDONLY) if is_open else None
        server.stop(signal.SIGKILL)
        assert read_error(server.path / "folder" / "big") in (errno.EIO, errno.ENOTCONN)
        if descriptor is not None:
            assert rafsfs("umount", server.path).returncode == 9
            umount(server.path, "--lazy")
            os.close(descriptor)
        else:
            umount(server.path)
        assert list(server.path.iterdir()) == []
        if backing == "loops":
            wait_until_gone(Path("/sys/block") / Path(found.source).name / "loop")
    assert connections() <= before | connections_of_others(before)
    with erofs_server(place / "img", place / "again", *BACKINGS[backing]) as server:
        assert (server.path / "folder" / "big").read_bytes() == content


def connections_of_others(before):
    """New connections that have a mount: others mount on this machine too; a dead one of ours has none."""
    devices = {mount.device for mount in mountpoint_linux.mounts()}
    return {path for path in connections() - before if f"0:{path.name}" in devices}


def test_a_dead_mount_is_in_the_way_of_a_new_one_and_the_error_says_what_to_do(place):
    with mounting(*arguments(place)):
        server = server_of(place / "log")
        os.kill(server, signal.SIGKILL)
        wait_for_end(server)
        done = rafsfs("mount", *arguments(place))
        assert done.returncode == ExitCode.MOUNT_POINT_BUSY
        assert f"rafsfs umount {place}/m" in done.stderr
        umount(place / "m")
    with mounting(*arguments(place)):
        assert (place / "m" / "small1").read_bytes() == b"1" * 3000


def test_a_mount_below_is_named(place):
    with mounting(*arguments(place)):
        subprocess.run(["mount", "-t", "tmpfs", "none", place / "m" / "many"], check=True)
        try:
            done = rafsfs("umount", place / "m")
            assert done.returncode == 9
            assert f"the mount on {place}/m/many" in done.stderr
        finally:
            subprocess.run(["umount", place / "m" / "many"], check=True)


def test_mounted_and_unmounted_again_and_again_leaves_nothing(place):
    before = connections()
    for _ in range(5):
        with mounting(*arguments(place)):
            assert (place / "m" / "small1").read_bytes() == b"1" * 3000
            umount(place / "m")
    assert connections() <= before | connections_of_others(before)


# --- A store that hangs -------------------------------------------------------------------------------------


@pytest.fixture
def gate(tmp_path):
    """What a read of a blob waits for, until somebody writes to it."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


class Reader(threading.Thread):
    """A read that waits."""

    def __init__(self, path, offset=0):
        super().__init__(daemon=True)
        self._path = path
        self._offset = offset
        self.outcome = None
        self.start()

    def run(self):
        self.outcome = read_error(self._path, self._offset, BLOCK)

    def ended(self):
        self.join(SOON_S)
        assert not self.is_alive()
        return self.outcome


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize("end", ["signal", "kill"])
def test_readers_of_a_store_that_hangs_get_an_error_when_the_server_ends(place, gate, backing, end):
    with erofs_server(place / "img", place / "served", f"gate={gate}", *BACKINGS[backing]) as server:
        readers = [Reader(server.path / "folder" / "big", number * CHUNK) for number in (0, 9)]
        assert server.said() == "waiting"
        assert (server.path / "many" / "00077").stat().st_size == 0  # metadata does not wait
        number = signal.SIGTERM if end == "signal" else signal.SIGKILL
        assert server.stop(number, SOON_S) in (0, -signal.SIGKILL)
        assert [reader.ended() for reader in readers] == [errno.EIO, errno.EIO]
        if end == "signal":
            assert mounts.mounted(server.path) is None
        else:
            umount(server.path)


def test_a_lazy_unmount_while_reads_wait(place, gate):
    with erofs_server(place / "img", place / "served", f"gate={gate}") as server:
        reader = Reader(server.path / "folder" / "big")
        assert server.said() == "waiting"
        umount(server.path, "--lazy", timeout=SOON_S)
        assert server.process.poll() is None
        assert server.stop(timeout_s=SOON_S) == 0
        assert reader.ended() == errno.EIO


def test_a_store_that_answers_again(place, gate, content):
    with erofs_server(place / "img", place / "served", f"gate={gate}") as server:
        reader = Reader(server.path / "folder" / "big")
        assert server.said() == "waiting"
        opener = threading.Thread(target=hold_open, args=(gate, reader), daemon=True)
        opener.start()
        assert reader.ended() == 0
        opener.join(mounts.END_S)


def hold_open(gate, reader):
    """Let everybody through until the reader has what it wants."""
    while reader.is_alive():
        with gate.open("wb"):
            reader.join(0.05)
