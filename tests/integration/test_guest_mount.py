"""Guests mount an image that rafsfs serves: all of it is there, through reboots, crashes and company."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.guest import Guest
from support.guest_boot import initramfs
from support.guest_tools import tools_disk
from support.images import KEY, build
from support.mounts import chunk_place, flip
from support.serving import Server, serving
from support.snapshot import Snapshot, assert_same_tree, read_folder, unpacked
from support.trees import enrich

from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

SNAPSHOT = "python3 /opt/site/snapshot.py"
CHUNK_BYTES = 1 << 16
DAMAGED = "enriched/random"
DAMAGED_AT = 20 * CHUNK_BYTES
MOUNT = "mount -t virtiofs tree /mnt"
CONTENT = "cd /mnt && find . -type f -print0 | sort -z | xargs -0 cat | sha256sum"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    subprocess.run(["cp", "--archive", "--parents", "usr/share/zoneinfo", root], cwd="/", check=True)
    enrich(root)
    return root


@pytest.fixture(scope="module")
def wanted(tree: Path) -> Snapshot:
    return read_folder(tree)


@pytest.fixture(scope="module")
def content(tree: Path, wanted: Snapshot) -> str:
    """What CONTENT prints."""
    digest = hashlib.sha256()
    for path in sorted(wanted, key=lambda path: b"./" + path):
        if stat.S_ISREG(wanted[path].mode):
            digest.update((tree / os.fsdecode(path)).read_bytes())
    return f"{digest.hexdigest()}  -\n"


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return build(tree, tmp_path_factory.mktemp("image"), chunk_size=CHUNK_BYTES)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    save_key(KEY, path)
    return path


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sockets")
    return [folder / "one", folder / "two", folder / "damaged"]


@pytest.fixture(scope="module")
def server(image: Reference, key: Path, sockets: list[Path]) -> Iterator[Server]:
    """One process for two guests."""
    with serving(image, sockets[:2], "--key", key) as server:
        yield server


@pytest.fixture(scope="module")
def damaged_server(image: Reference, key: Path, sockets: list[Path], tmp_path_factory) -> Iterator[Server]:
    copy = Reference(tmp_path_factory.mktemp("damaged") / "image", image.tag)
    shutil.copytree(image.folder, copy.folder)
    blob, _, offset, length = chunk_place(copy, DAMAGED.encode(), DAMAGED_AT)
    flip(blob, offset + length // 2)
    with serving(copy, sockets[2:], "--key", key) as server:
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return initramfs(tmp_path_factory.mktemp("guest") / "initramfs")


@pytest.fixture(scope="module")
def guest(files: Path, sockets: list[Path], server: Server, damaged_server: Server) -> Iterator[Guest]:
    """A guest with Python."""
    shares = {"tree": sockets[0], "damaged": sockets[2]}
    with Guest(files, shares, root=("/dev/vda", "erofs"), disk=tools_disk()) as guest:
        yield guest


def test_a_guest_sees_every_file_as_it_was(guest: Guest, wanted: Snapshot) -> None:
    guest.run(MOUNT)
    assert_same_tree(wanted, unpacked(guest.run(f"{SNAPSHOT} /mnt")))


def test_a_guest_can_change_nothing(guest: Guest) -> None:
    for command in (
        "touch /mnt/new",
        "echo more >>/mnt/enriched/text",
        "rm /mnt/enriched/empty",
        "mkdir /mnt/d",
    ):
        said = guest.ask(command)
        assert said.status != 0
        assert "Read-only file system" in said.errors


def test_damage_is_an_error_of_the_file_that_it_lies_in(
    guest: Guest, damaged_server: Server, wanted: Snapshot
) -> None:
    guest.run("mkdir -p /run/damaged && mount -t virtiofs damaged /run/damaged")
    said = guest.ask(f"cat /run/damaged/{DAMAGED} >/dev/null")
    assert (said.status != 0, "Input/output error" in said.errors) == (True, True)
    whole = guest.run("sha256sum </run/damaged/enriched/text")
    assert whole.split()[0] == wanted[b"enriched/text"].content
    guest.run("umount /run/damaged")


def test_a_second_guest_reads_from_the_same_process_at_once(
    guest: Guest, files: Path, sockets: list[Path], content: str
) -> None:
    with Guest(files, {"tree": sockets[1]}) as second:
        second.run(f"mkdir /mnt && {MOUNT}")
        for each in (guest, second):
            each.send(CONTENT)
        assert [each.receive().output for each in (guest, second)] == [content, content]


def test_a_guest_reboots(guest: Guest, content: str) -> None:
    guest.reboot()
    guest.run(MOUNT)
    assert guest.run(CONTENT) == content


def test_qemu_dies_and_is_started_again(guest: Guest, content: str) -> None:
    guest.send(CONTENT)  # it dies with requests under way
    guest.kill()
    guest.start()
    guest.run(MOUNT)
    assert guest.run(CONTENT) == content
