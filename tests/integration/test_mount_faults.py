"""Mounts whose image is damaged or whose server dies: what fails, what goes on, what the log says."""

import errno
import os
import shutil
import signal
import subprocess

import pytest
from support import mounts
from support.images import KEY, build
from support.mounts import (
    chunk_place,
    flip,
    mounting,
    rafsfs,
    read_error,
    server_of,
    umount,
    wait_for_end,
    wait_for_lines,
)

from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

on_both = pytest.mark.usefixtures("frontend")

CHUNK = 256 * 1024


@pytest.fixture(scope="module")
def content():
    return os.urandom(6 * CHUNK)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, content):
    """An image of one file of six chunks, and others that share one."""
    folder = tmp_path_factory.mktemp("pristine")
    tree = folder / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "big").write_bytes(content)
    for number in range(100):
        (tree / f"small{number}").write_bytes(b"%d" % number * 100)
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
    return place / "img", place / "m", "--key", place / "key", "--log-file", place / "log"


def big(place):
    return chunk_place(Reference(place / "img"), b"folder/big", 2 * CHUNK + 5)


def errors_logged(place):
    return [
        line.split(" ERROR ")[1] for line in (place / "log").read_text().splitlines() if " ERROR " in line
    ]


def check_damage(place, content):
    """The third chunk of the big file is refused, all else reads."""
    file = place / "m" / "folder" / "big"
    for chunk in (0, 1, 2, 3, 4, 5, 2, 3):
        # Direct reads, so that the kernel asks for exactly these bytes and reads nothing ahead.
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            for offset in range(chunk * CHUNK, (chunk + 1) * CHUNK, 64 * 1024):
                if chunk == 2:
                    with pytest.raises(OSError, match="Input/output error"):
                        os.pread(descriptor, 4096, offset)
                else:
                    assert os.pread(descriptor, 4096, offset) == content[offset : offset + 4096]
        finally:
            os.close(descriptor)
    assert mounts.unreadable_files(place / "m") == {"folder/big"}


@on_both
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_changed_byte_is_refused_where_it_is_read_and_named_in_the_log(place, content, moment):
    blob, index, offset, length = big(place)
    if moment == "before":
        flip(blob, offset + length // 2)
    with mounting(*arguments(place)):
        flip(blob, offset) if moment == "after" else None
        check_damage(place, content)
        wait_for_lines(place / "log", " ERROR ")
        umount(place / "m")
    (line,) = errors_logged(place)
    for part in (
        f"blob sha256:{blob.name}",
        f"chunk {index}",
        f"offset {offset}",
        "/folder/big",
        "at offset",
    ):
        assert part in line


@on_both
def test_damage_that_is_mended_reads_again(place, content):
    blob, _, offset, _ = big(place)
    flip(blob, offset)
    with mounting(*arguments(place)):
        assert read_error(place / "m" / "folder" / "big", 2 * CHUNK) == errno.EIO
        flip(blob, offset)
        assert (place / "m" / "folder" / "big").read_bytes() == content


@on_both
def test_a_blob_that_is_truncated_under_the_mount(place, content):
    blob, index, offset, _ = big(place)
    with mounting(*arguments(place)):
        os.truncate(blob, offset + 1)
        assert read_error(place / "m" / "folder" / "big", 2 * CHUNK) == errno.EIO
        assert read_error(place / "m" / "folder" / "big", 0) == 0
        umount(place / "m")
    assert any(f"chunk {index}" in line and "too early" in line for line in errors_logged(place))


def test_a_blob_that_is_not_there_at_the_mount(place):
    blob, *_ = big(place)
    blob.unlink()
    done = rafsfs("mount", *arguments(place))
    if done.returncode == 0:  # blobs may be opened when they are needed
        assert mounts.unreadable_files(place / "m") != set()
        umount(place / "m")
    else:
        assert done.returncode == 12
        assert done.stderr.count("\n") == 1
        assert blob.name in done.stderr
    assert mounts.mounted(place / "m") is None


def test_every_damaged_metadata_page_is_refused_at_the_mount_or_at_the_read(place):
    """The bootstrap is the image's other blob; its end holds the pages, the root among them."""
    blob, *_ = big(place)
    (bootstrap,) = [
        file for file in blob.parent.iterdir() if file != blob and file.read_bytes().startswith(b"RAFSBOOT")
    ]
    flip(bootstrap, bootstrap.stat().st_size - 20)
    done = rafsfs("mount", *arguments(place))
    assert done.returncode == 5
    assert done.stderr.startswith("rafsfs: ")
    assert done.stderr.count("\n") == 1
    assert mounts.mounted(place / "m") is None


# --- The server's end ---------------------------------------------------------------------------------------


@on_both
def test_a_killed_server_leaves_a_mount_that_can_be_taken_away_and_made_again(place, content):
    with mounting(*arguments(place)):
        server = server_of(place / "log")
        os.kill(server, signal.SIGKILL)
        wait_for_end(server)
        assert read_error(place / "m" / "folder" / "big") == errno.ENOTCONN
        done = rafsfs("mount", *arguments(place))
        assert done.returncode == 19
        assert f"rafsfs umount {place}/m" in done.stderr
        umount(place / "m")
        assert list((place / "m").iterdir()) == []
    with mounting(*arguments(place)):
        assert (place / "m" / "folder" / "big").read_bytes() == content


@on_both
def test_a_terminated_server_unmounts_although_a_file_is_open(place):
    with mounting(*arguments(place)):
        server = server_of(place / "log")
        descriptor = os.open(place / "m" / "folder" / "big", os.O_RDONLY)
        try:
            os.pread(descriptor, 10, 0)
            os.kill(server, signal.SIGTERM)
            wait_for_end(server)
            assert mounts.mounted(place / "m") is None
            with pytest.raises(OSError, match=r"not connected|abort"):
                os.pread(descriptor, 10, 5 * CHUNK)
        finally:
            mounts.close_of_a_dead_mount(descriptor)
    assert "SIGTERM" in (place / "log").read_text()


@on_both
@pytest.mark.parametrize("way", ["unmounted", "removed"])
def test_a_mount_point_that_vanishes_ends_the_server(place, content, tmp_path, way):
    """With the file system that it lies in, or removed where nothing is mounted on it."""
    around = tmp_path / "around"
    (around / "m").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "--make-private", "tmpfs", around], check=True)
    try:
        (around / "m").mkdir()
        elsewhere = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"echo; read x; rmdir {around}/m"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert elsewhere.stdout.read(1) == b"\n"
        mounts.mount(place / "img", around / "m", *arguments(place)[2:])
        server = server_of(place / "log")
        if way == "unmounted":
            assert (around / "m" / "folder" / "big").read_bytes() == content
            subprocess.run(["umount", "--lazy", around], check=True)
        elsewhere.communicate(b"go\n")
        wait_for_end(server)
        assert mounts.mounted(around / "m") is None
    finally:
        subprocess.run(["umount", "--lazy", around], check=way == "removed", stderr=subprocess.DEVNULL)
    assert (place / "log").read_text().endswith(f"unmounted {around}/m\n")
    assert errors_logged(place) == []


@on_both
def test_an_image_that_is_deleted_goes_on_being_served(place, content):
    with mounting(*arguments(place)):
        shutil.rmtree(place / "img")
        assert (place / "m" / "folder" / "big").read_bytes() == content
