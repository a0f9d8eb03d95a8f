"""A real tree of this machine through the whole of rafsfs: every file comes out as it went in.

Some 80 MB of Debian's files, made richer by what the machine may not happen to have. With RAFSFS_TEST_LONG=1
also all of /usr, through a mount: several GB, which take minutes.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.images import KEY, build, opened
from support.mounts import mounting
from support.snapshot import Snapshot, assert_same_tree, read_folder
from support.trees import SPARSE_BYTES, enrich, read_image

from rafsfs.build.tar_source import TarSource
from rafsfs.cli.mount import FRONTEND_DEFAULT, FRONTENDS
from rafsfs.fs.checking import check_image
from rafsfs.limits import MIB
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing, save_key
from rafsfs.trust.opening import TrustPolicy

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

LONG = os.environ.get("RAFSFS_TEST_LONG") == "1"
PARTS = ("usr/lib/python3", "usr/sbin", "usr/share/zoneinfo", "usr/share/perl", "etc")
INODES_LEAST = 2000
SIZE_LEAST = 20 * MIB


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    present = [path for path in PARTS if Path("/", path).is_dir()]
    subprocess.run(["cp", "--archive", "--parents", *present, root], cwd="/", check=True, timeout=120)
    enrich(root)
    return root


@pytest.fixture(scope="module")
def wanted(tree: Path) -> Snapshot:
    found = read_folder(tree)
    assert len(found) > INODES_LEAST
    assert sum(item.size for item in found.values()) - SPARSE_BYTES > SIZE_LEAST
    return found


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return build(tree, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def image_of_tar(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The same tree, by way of GNU tar and a pipe."""
    options = [
        "--create",
        "--format=pax",
        "--sparse",
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
    ]
    with subprocess.Popen(["tar", *options, "--directory", tree, "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        reference = build(TarSource(tar.stdout), tmp_path_factory.mktemp("image"))
    assert tar.returncode == 0
    return reference


@pytest.fixture(params=["folder", "tar"])
def either(request: pytest.FixtureRequest) -> Reference:
    reference: Reference = request.getfixturevalue("image" if request.param == "folder" else "image_of_tar")
    return reference


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    save_key(KEY, path)
    return path


def test_library_reads_every_file(either: Reference, wanted: Snapshot) -> None:
    with opened(either, cache_bytes=16 * MIB) as opened_image:
        assert_same_tree(wanted, read_image(opened_image.filesystem))


def test_check_finds_nothing(either: Reference, wanted: Snapshot) -> None:
    result = check_image(either, KeyRing(symmetric=(KEY,)), TrustPolicy(), workers=2)
    assert [str(problem.error) for problem in result.problems.kept] == []
    assert result.tree is not None


@pytest.mark.parametrize(
    ("source", "frontend"),
    [*(("image", frontend) for frontend in FRONTENDS), ("image_of_tar", FRONTEND_DEFAULT)],
)
def test_mount_shows_every_file(
    request: pytest.FixtureRequest, source: str, frontend: str, wanted: Snapshot, key: Path, tmp_path: Path
) -> None:
    arguments = ("--key", key, "--frontend", frontend, "--allow-other")
    with mounting(request.getfixturevalue(source), tmp_path / "mounted", *arguments) as mounted:
        assert_same_tree(wanted, read_folder(mounted))


if LONG:  # no skip: in CI a skipped test is a failure

    @pytest.mark.timeout(1800)
    def test_mount_shows_all_of_usr(key: Path, tmp_path: Path) -> None:
        image = build(Path("/usr"), tmp_path / "image")
        in_usr = read_folder("/usr")
        names = Counter(found.same_as for found in in_usr.values())  # some have more of them elsewhere
        wanted = {
            path: replace(found, nlink=names[found.same_as] if found.nlink else 0)
            for path, found in in_usr.items()
        }
        arguments = ("--key", key, "--frontend", FRONTEND_DEFAULT, "--allow-other")
        with mounting(image, tmp_path / "mounted", *arguments) as mounted:
            assert_same_tree(wanted, read_folder(mounted))
