"""Guests that have an image as their root, with and without an overlay; an EROFS in a file of an image."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.guest import Guest
from support.guest_boot import BUSYBOX, initramfs
from support.images import KEY, build
from support.serving import serving
from support.snapshot import read_folder

from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

INIT = """#!/bin/sh
root=$(awk '$2 == "/" { print $3 }' /proc/mounts | tail -n 1)
echo "init of $(cat /etc/name): root is $root" >/dev/console
exec sh /run/agent agent
"""
APPLETS = (
    "sh",
    "awk",
    "base64",
    "cat",
    "find",
    "losetup",
    "mkdir",
    "mount",
    "sha256sum",
    "stty",
    "tail",
    "touch",
)
MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small system, and in it a file with an EROFS of another tree."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("bin", "sbin", "etc", "images", *MOUNT_POINTS):
        (root / name).mkdir()
    (root / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "sbin/init").write_text(INIT)
    (root / "etc/name").write_text("the image")
    for program in ("bin/busybox", "sbin/init"):
        (root / program).chmod(0o755)
    inner = tmp_path_factory.mktemp("inner")
    for number in range(50):
        (inner / f"file {number}").write_bytes(b"%d" % number * 1000)
    subprocess.run(
        ["mkfs.erofs", "--quiet", root / "images/inner.erofs", inner], check=True, capture_output=True
    )
    return root


@pytest.fixture(scope="module")
def served(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a server of the tree's image."""
    folder = tmp_path_factory.mktemp("image")
    save_key(KEY, folder / "key")
    with serving(build(tree, folder / "image"), [folder / "socket"], "--key", folder / "key"):
        yield folder / "socket"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return initramfs(tmp_path_factory.mktemp("guest") / "initramfs")


def booted(files: Path, socket: Path, *, overlay: bool = False) -> Guest:
    return Guest(
        files,
        {"tree": socket},
        root=("tree", "virtiofs"),
        overlay=overlay,
        parameters=["init=/sbin/init"],
    )


def test_a_guest_boots_from_an_image_to_a_shell(files: Path, served: Path, tree: Path) -> None:
    with booted(files, served) as guest:
        guest.wait_for_console("init of the image: root is virtiofs")
        sums = guest.run("cd / && find bin sbin etc -type f | while read -r name; do sha256sum $name; done")
        wanted = read_folder(tree)
        assert dict(reversed(line.split("  ")) for line in sums.splitlines()) == {
            name: wanted[name.encode()].content for name in ("bin/busybox", "sbin/init", "etc/name")
        }
        assert "Read-only file system" in guest.ask("touch /etc/new").errors


def test_an_overlay_on_an_image_takes_writes(files: Path, served: Path) -> None:
    with booted(files, served, overlay=True) as guest:
        guest.wait_for_console("init of the image: root is overlay")
        guest.run("echo changed >/etc/name && touch /etc/new && find /etc -name new | awk 'END { exit !NR }'")
        assert guest.run("cat /etc/name /run/lower/etc/name") == "changed\nthe image"


def test_an_erofs_file_in_an_image_is_mounted_through_a_loop_device(files: Path, served: Path) -> None:
    with booted(files, served) as guest:
        guest.run("mkdir /run/inner && mount -t erofs -o ro,loop /images/inner.erofs /run/inner")
        assert guest.run("cd /run/inner && find . -type f | awk 'END { print NR }'") == "50\n"
        assert guest.run("cat '/run/inner/file 49'") == "49" * 1000
