"""Files that lie in the metadata, through every front end: their bytes, their sum, their damage."""

import errno
import os

import pytest
from support.images import KEY, build
from support.mounts import flip, mounting, page_of, pages_of, read_error, wait_for_lines

from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

FRONTENDS = ["devfuse", "pyfuse3", "erofs"]
SIZES = [1, 2, 63, 64, 500, 1023, 1024]


@pytest.fixture
def place(tmp_path):
    """An image without a blob: all of its files are small; with its source and key."""
    tree = tmp_path / "tree"
    for folder in range(20):
        (tree / f"{folder:02}").mkdir(parents=True)
        for size in SIZES:
            (tree / f"{folder:02}" / f"{size}").write_bytes(os.urandom(size))
        os.setxattr(tree / f"{folder:02}" / "500", "user.attribute", os.urandom(10 * folder))
    build(tree, tmp_path / "image", page_size=4096)
    save_key(KEY, tmp_path / "key")
    return tmp_path


def mounted(place, frontend):
    words = ("--key", place / "key", "--frontend", frontend, "--allow-other", "--log-file", place / "log")
    return mounting(place / "image", place / "mount", *words)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_image_of_small_files_needs_no_blob(place, frontend):
    assert len(list((place / "image/blobs/sha256").iterdir())) == 3  # bootstrap, config, manifest
    with mounted(place, frontend) as directory:
        for path in sorted(path for path in (place / "tree").rglob("*") if path.is_file()):
            shown = directory / path.relative_to(place / "tree")
            assert shown.read_bytes() == path.read_bytes()
            assert os.listxattr(shown) == os.listxattr(path)
        found = os.statvfs(directory)
        assert found.f_blocks * found.f_frsize >= 20 * sum(SIZES)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_damaged_page_costs_the_files_in_it_and_the_log_names_one(place, frontend):
    reference = Reference(place / "image")
    number = page_of(reference, b"10/1024")
    assert number not in (page_of(reference, b"00/1"), page_of(reference, b"19/1"))
    file, offsets = pages_of(reference)
    flip(file, offsets[number] + 5)
    with mounted(place, frontend) as directory:
        assert read_error(directory / "10/1024") in (errno.EIO, errno.EUCLEAN)
        for folder in ("00", "19"):
            for size in SIZES:
                path = f"{folder}/{size}"
                assert (directory / path).read_bytes() == (place / "tree" / path).read_bytes()
        line = wait_for_lines(place / "log", f"page {number}")[0]
        assert " /" in line
