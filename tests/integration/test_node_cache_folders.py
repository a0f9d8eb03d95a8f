"""Mounts whose node cache is on a full disk, read-only, or deleted under way read on, and say why once."""

import json
import subprocess
from contextlib import contextmanager

import pytest
from support.images import KEY, build
from support.mounts import mounting, rafsfs
from support.registries import registry
from support.trees import Planned, PlannedSource, Segment

from rafsfs.format.erofs import FileType
from rafsfs.limits import KIB, MIB
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

SIZE = 12 * MIB  # more than what is decoded ahead and fetched ahead of that
PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"one", FileType.REGULAR, segments=(Segment(SIZE, 1),)),
    Planned(b"two", FileType.REGULAR, segments=(Segment(SIZE, 3),)),
)
ONE, TWO = Segment(SIZE, 1).plain(), Segment(SIZE, 3).plain()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image in a registry, and the options that open it."""
    folder = tmp_path_factory.mktemp("image")
    save_key(KEY, folder / "key")
    built = build(PlannedSource(PLAN), folder / "image", "v1", chunk_size=64 * KIB)
    with registry(folder / "registry") as server:
        yield server.push(built, "t/a", "v1"), "--key", folder / "key", "--prefetch", "none"


@contextmanager
def mounted(folder, *words):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *words, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def reading(image, tmp_path, cache):
    """Mount the image; gives the directory, its node cache's counts, and the log's lines about the cache."""
    reference, *options = image
    (tmp_path / "mnt").mkdir(exist_ok=True)
    log = tmp_path / "log"
    log.write_text("")
    with mounting(
        reference, tmp_path / "mnt", *options, "--node-cache", cache, "--log-file", log
    ) as directory:
        yield (
            directory,
            lambda: json.loads(rafsfs("stats", directory, "--json").stdout)["remote"]["node_cache"],
            lambda: [line for line in log.read_text().splitlines() if "cannot be written to" in line],
        )


def test_disk_that_is_full(image, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        with reading(image, tmp_path, disk / "cache") as (directory, counts, complaints):
            assert (directory / "one").read_bytes() == ONE
            assert (directory / "two").read_bytes() == TWO
            assert counts()["not_stored"] and counts()["stored"]
            (complaint,) = complaints()
            assert "No space left" in complaint
        assert [path.name for path in disk.rglob(".new-*")] == []
        with reading(image, tmp_path, disk / "cache") as (directory, counts, _):
            assert (directory / "one").read_bytes() == ONE
            assert counts()["bad"] == 0, "what is there is whole"


def test_folder_that_is_read_only(image, tmp_path):
    cache = tmp_path / "cache"
    with reading(image, tmp_path, cache) as (directory, _, _):
        assert (directory / "one").read_bytes() == ONE
    with (
        mounted(tmp_path / "disk", "--bind", "-o", "ro", cache) as disk,
        reading(image, tmp_path, disk) as (directory, counts, complaints),
    ):
        assert (directory / "one").read_bytes() == ONE
        assert counts()["hits"]
        assert (directory / "two").read_bytes() == TWO
        assert counts()["not_stored"] and not counts()["stored"]
        (complaint,) = complaints()
        assert "Read-only" in complaint


def test_folder_that_is_deleted_under_way(image, tmp_path):
    cache = tmp_path / "cache"
    with reading(image, tmp_path, cache) as (directory, counts, complaints):
        assert (directory / "one").read_bytes() == ONE
        stored = counts()["stored"]
        cache.rename(tmp_path / "gone")  # at once: rm(1) would race with what is being stored
        assert (directory / "two").read_bytes() == TWO
        assert counts()["stored"] > stored
        assert any(path.is_file() for path in cache.rglob("*"))
        assert complaints() == []
    with reading(image, tmp_path, cache) as (directory, counts, _):
        assert (directory / "two").read_bytes() == TWO
        assert (directory / "one").read_bytes() == ONE
        assert counts()["hits"] and counts()["bad"] == 0
