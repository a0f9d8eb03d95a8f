"""Calls that could change a tree, and odd ones that look at it, give what ext4 mounted read-only gives."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.asking import plant, tried
from support.images import KEY, build
from support.looking_calls import LOOKING, OFFSETS
from support.modifying_calls import MODIFYING
from support.mounts import mounting
from support.trees import assert_same_tree, read_folder

from rafsfs.cli.mount import FRONTENDS
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

FUSE = ("devfuse", "pyfuse3")

OTHERWISE = {
    # FUSE lets direct reads begin anywhere; ext4 wants blocks.
    **{(name, "direct_unaligned"): (lambda folder: folder_bytes(folder)[5:1005]) for name in FUSE},
    # FUSE hands over names of any namespace: there is no such attribute. ext4 does not know the namespace.
    **{(name, "xattrs_of_no_namespace"): (lambda _: ["ENODATA"] * 3) for name in FUSE},
    # pyfuse3 has no lseek, so the kernel takes files for data throughout, which POSIX allows.
    ("pyfuse3", "seek_data_and_hole"): (lambda folder: data_throughout(folder)),
    # EROFS of the kernel has neither, whatever it is mounted on.
    ("erofs", "sync_calls"): (lambda _: ["EINVAL"] * 3 + [0, 0]),
    ("erofs", "direct"): (lambda _: "EINVAL"),
}
"""What differs from ext4: (front end, question) -> the answer, given the tree."""


def folder_bytes(folder):
    return (folder / "file").read_bytes()


def data_throughout(folder):
    found = []
    for size in ((folder / name).stat().st_size for name in ("hole", "file", "empty")):
        for data in (True, False):
            for offset in OFFSETS[:-1]:
                found.append("ENXIO" if offset >= size else offset if data else size)
            found.append("ENXIO")
        found += [size + offset for offset in OFFSETS[:-1]]
        found.append(size - 1 if size else "EINVAL")
    return found


@pytest.fixture(scope="module")
def place():
    """A folder that everybody can reach, with a tree, its image, and the same in ext4, mounted."""
    with tempfile.TemporaryDirectory(prefix="rafsfs-calls-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        plant(folder / "tree" / "top")  # the top of ext4 has a folder more
        build(folder / "tree", folder / "img")
        save_key(KEY, folder / "key")
        with (folder / "ext4.img").open("wb") as file:
            os.truncate(file.fileno(), 32 << 20)
        command = ["mkfs.ext4", "-q", "-d", folder / "tree", folder / "ext4.img"]
        subprocess.run(command, check=True, capture_output=True)
        (folder / "ext4").mkdir()
        command = ["mount", "-t", "ext4", "-o", "loop,ro,nosuid,nodev", folder / "ext4.img", folder / "ext4"]
        subprocess.run(command, check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder / "ext4"], check=True)


@pytest.fixture(scope="module", params=FRONTENDS)
def mount(request, place):
    """The tree mounted by a front end, and the front end's name."""
    arguments = ("--key", place / "key", "--frontend", request.param, "--allow-other")
    with mounting(place / "img", place / request.param, *arguments) as directory:
        yield directory / "top", request.param


def test_whatever_would_change_it_is_refused_as_ext4_refuses_it(place, mount, tally):
    directory, frontend = mount
    wanted = {name: tried(ask, place / "ext4" / "top") for name, ask in MODIFYING.items()}
    assert {name: tried(ask, directory) for name, ask in MODIFYING.items()} == wanted
    assert_same_tree(read_folder(place / "tree" / "top"), read_folder(directory))
    errors = [answer for answer in wanted.values() if isinstance(answer, str)]
    assert errors.count("EROFS") > len(wanted) / 3
    tally(f"modifying calls refused by {frontend}", len(wanted))


@pytest.mark.parametrize("name", LOOKING)
def test_whatever_looks_at_it_sees_what_it_sees_in_ext4(place, mount, name):
    directory, frontend = mount
    oracle = tried(LOOKING[name], place / "ext4" / "top")
    if (frontend, name) in OTHERWISE:
        wanted = OTHERWISE[frontend, name](place / "tree" / "top")
        assert wanted != oracle
    else:
        wanted = oracle
    assert tried(LOOKING[name], directory) == wanted
