"""The deepest tree that is built is the deepest that is read, whatever it is built from."""

import io
import os
import tarfile

import pytest
from support.images import assert_sound, build, opened

from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.tar_source import TarSource
from rafsfs.errors import BuildError
from rafsfs.limits import PATH_DEPTH_MAX


def folder_source(root, depth):
    """``root`` with so many directories in each other; too deep for a path, so made step by step."""
    place = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("x", dir_fd=place)
        inner = os.open("x", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    return DirectorySource(root)


def tar_source(root, depth):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("/".join("x" * depth))
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    archive.seek(0)
    return TarSource(archive)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    yield root
    # shutil.rmtree calls itself for each level, too often: go down to the end, and remove on the way up
    place, depth = os.open(root, os.O_RDONLY), 0
    while "x" in os.listdir(place):  # noqa: PTH208  # a descriptor
        inner = os.open("x", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place, depth = inner, depth + 1
    for _ in range(depth):
        outer = os.open("..", os.O_RDONLY, dir_fd=place)
        os.close(place)
        os.rmdir("x", dir_fd=outer)
        place = outer
    os.close(place)


@pytest.mark.parametrize("make", [folder_source, tar_source])
def test_deepest_tree_that_is_built_is_read(make, root, tmp_path):
    reference = build(make(root, PATH_DEPTH_MAX - 1), tmp_path / "image")
    with opened(reference) as image:
        assert len(list(image.filesystem.walk())) == PATH_DEPTH_MAX
    assert_sound(reference)


@pytest.mark.parametrize("make", [folder_source, tar_source])
def test_deeper_tree_is_not_built(make, root, tmp_path):
    with pytest.raises(BuildError, match=f"nested too deeply: expected at most {PATH_DEPTH_MAX} levels"):
        build(make(root, PATH_DEPTH_MAX), tmp_path / "image")
