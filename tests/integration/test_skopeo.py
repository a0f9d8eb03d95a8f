"""Images are OCI images: skopeo carries them from place to place and changes nothing."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest
from support.images import assert_sound, build, opened
from support.trees import Plan, Planned, PlannedSource, Segment, assert_same_tree, expected, read_image

from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.limits import KIB
from rafsfs.store.oci_layout import find_image
from rafsfs.store.reference import Reference

pytestmark = pytest.mark.integration

ROOT = Planned(b"", FileType.DIRECTORY)
FILE = Planned(b"file", FileType.REGULAR, segments=(Segment(300 * KIB, 1), Segment(100, 4)))
BASE: Plan = (ROOT, FILE)
PLAN: Plan = (*BASE, Planned(b"second", FileType.REGULAR, segments=(Segment(200 * KIB, 3),)))


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy(*places: str) -> None:
    """Along all the places, one after the other."""
    for source, target in itertools.pairwise(places):
        skopeo("copy", "--quiet", source, target)


def blobs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "blobs" / "sha256").iterdir()}


@pytest.fixture(scope="module", params=Suite, ids=lambda suite: suite.name)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """An image with two blobs, one of them of a dictionary."""
    folder = tmp_path_factory.mktemp("image")
    base = build(PlannedSource(BASE), folder / "base", suite=request.param)
    return build(PlannedSource(PLAN), folder / "image", "v1", suite=request.param, dictionaries=[base])


ROUTES = {
    "folder": ["oci:{}/copy:v9"],
    "two folders": ["oci:{}/between:x", "oci:{}/copy:v9"],
    "archive": ["oci-archive:{}/archive.tar:x", "oci:{}/copy:v9"],
    "directory": ["dir:{}/directory", "oci:{}/copy:v9"],
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
def test_image_arrives_unharmed(image: Reference, tmp_path: Path, route: list[str]) -> None:
    copy(f"oci:{image.folder}:v1", *(place.format(tmp_path) for place in route))
    copied = Reference(tmp_path / "copy", "v9")
    assert blobs(copied.folder) == blobs(image.folder)
    assert find_image(copied).manifest_digest == find_image(image).manifest_digest
    assert_sound(copied)
    with opened(copied) as arrived:
        assert_same_tree(expected(PLAN), read_image(arrived.filesystem))


def test_pinned_digest_holds_after_the_journey(image: Reference, tmp_path: Path) -> None:
    digest = find_image(image).manifest_digest
    copy(f"oci:{image.folder}:v1", f"oci:{tmp_path}/copy:other")
    with opened(Reference(tmp_path / "copy").pinned(digest)) as arrived:
        assert_same_tree(expected(PLAN), read_image(arrived.filesystem))


def test_folder_of_skopeos_takes_another_image_of_ours(image: Reference, tmp_path: Path) -> None:
    copy(f"oci:{image.folder}:v1", f"oci:{tmp_path}/shared:theirs")
    ours = build(PlannedSource(BASE), tmp_path / "shared", "ours")
    for reference, plan in ((Reference(tmp_path / "shared", "theirs"), PLAN), (ours, BASE)):
        with opened(reference) as arrived:
            assert_same_tree(expected(plan), read_image(arrived.filesystem))
    copy(f"oci:{tmp_path}/shared:theirs", f"oci:{tmp_path}/copy:again")
    assert_sound(Reference(tmp_path / "copy", "again"))


def test_folder_of_ours_takes_an_image_of_skopeos(image: Reference, tmp_path: Path) -> None:
    ours = build(PlannedSource(BASE), tmp_path / "shared", "ours")
    copy(f"oci:{image.folder}:v1", f"oci:{tmp_path}/shared:theirs")
    for reference, plan in ((Reference(tmp_path / "shared", "theirs"), PLAN), (ours, BASE)):
        with opened(reference) as arrived:
            assert_same_tree(expected(plan), read_image(arrived.filesystem))


def test_skopeo_sees_an_ordinary_image(image: Reference) -> None:
    seen = json.loads(skopeo("inspect", f"oci:{image.folder}:v1"))
    manifest = find_image(image).manifest
    assert seen["Os"] == "linux"
    assert seen["Digest"] == find_image(image).manifest_digest
    assert seen["Layers"] == [layer.digest for layer in (*manifest.blobs, manifest.bootstrap)]
    config = json.loads(skopeo("inspect", "--config", f"oci:{image.folder}:v1"))
    assert config["rootfs"] == {"type": "layers", "diff_ids": seen["Layers"]}
