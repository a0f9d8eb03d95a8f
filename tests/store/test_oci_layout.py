"""Layout folders: images found by tag and digest, files read exactly, and what is missing named."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support.images import build
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import (
    BlobNotFound,
    Denied,
    DigestMismatch,
    FormatError,
    ImageNotFound,
    LengthMismatch,
    StoreError,
    TagNotFound,
)
from rafsfs.format import oci
from rafsfs.format.erofs import FileType
from rafsfs.store.oci_layout import LocalFile, blob_path, find_image, read_index
from rafsfs.store.reference import Reference

PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(10_000, 1),)),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    build(PlannedSource(PLAN), folder, "v1")
    build(PlannedSource(PLAN), folder, "v2")
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "layout")


def test_tags_lead_to_images(folder):
    first, second = (find_image(Reference(folder, tag)) for tag in ("v1", "v2"))
    assert first.manifest_digest != second.manifest_digest
    assert len(first.manifest.blobs) == 1
    pinned = find_image(Reference(folder).pinned(first.manifest_digest))
    assert pinned.manifest == first.manifest


def test_untagged_image_is_found_by_its_digest(folder):
    digest = find_image(Reference(folder, "v1")).manifest_digest
    (folder / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    assert find_image(Reference(folder).pinned(digest)).manifest_digest == digest
    with pytest.raises(ImageNotFound, match=r"no tag 'v1' .*it has no tags"):
        find_image(Reference(folder, "v1"))


def test_unknown_tag_lists_the_known(folder):
    with pytest.raises(ImageNotFound, match=r"no tag 'v3' in .*it has: v1, v2"):
        find_image(Reference(folder, "v3"))


def test_digest_that_is_not_there_is_named(folder):
    with pytest.raises(TagNotFound, match=r"no image with the digest sha256:0+ in .*name one that is there"):
        find_image(Reference(folder).pinned("sha256:" + "0" * 64))


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_folder_that_is_none_is_named(tmp_path, name):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / name, tmp_path / name / "below", tmp_path / "empty"):
        with pytest.raises(ImageNotFound, match="no image at"):
            read_index(folder)


def test_changed_manifest_is_refused(folder):
    digest = find_image(Reference(folder, "v1")).manifest_digest
    path = blob_path(folder, digest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DigestMismatch, match="manifest is not the one"):
        find_image(Reference(folder, "v1"))


def test_foreign_image_is_refused(folder):
    document = oci.dump_json(
        {
            "schemaVersion": 2,
            "config": {"mediaType": oci.MEDIA_TYPE_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2},
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": "sha256:" + "0" * 64,
                    "size": 100,
                }
            ],
        }
    )
    digest = oci.digest_of(document)
    blob_path(folder, digest).write_bytes(document)
    with pytest.raises(FormatError, match="not of a rafsfs image"):
        find_image(Reference(folder).pinned(digest))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifests": [{}]}', b'{"manifests": 1}'])
def test_damaged_index_is_refused(folder, content):
    (folder / "index.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"index\.json"):
        find_image(Reference(folder, "v1"))


def test_later_entry_of_a_tag_counts(folder):
    index = json.loads((folder / "index.json").read_bytes())
    entry = dict(index["manifests"][0])
    entry["annotations"] = {oci.ANNOTATION_TAG: "v2"}
    index["manifests"].append(entry)
    (folder / "index.json").write_text(json.dumps(index))
    assert find_image(Reference(folder, "v2")).manifest_digest == entry["digest"]


def test_blob_of_another_size_is_refused_at_once(folder):
    image = find_image(Reference(folder, "v1"))
    path = blob_path(folder, image.manifest.blobs[0].digest)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(LengthMismatch, match="stored file's length"):
        image.open(image.manifest.blobs[0])


def test_missing_blob_is_named(folder):
    image = find_image(Reference(folder, "v1"))
    blob_path(folder, image.manifest.bootstrap.digest).unlink()
    with pytest.raises(BlobNotFound, match=image.manifest.bootstrap.digest):
        image.open(image.manifest.bootstrap)


@contextmanager
def nobody():
    """Not root for a while, whom no mode keeps out; does nothing for others."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_blob_that_may_not_be_read_is_named(folder):
    image = find_image(Reference(folder, "v1"))
    blob_path(folder, image.manifest.bootstrap.digest).chmod(0)
    with nobody(), pytest.raises(Denied, match="may not be read"):
        image.open(image.manifest.bootstrap)


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling link", "link to itself"])
def test_blob_that_is_no_file_ends_in_an_error_and_not_in_waiting(folder, kind):
    image = find_image(Reference(folder, "v1"))
    path = blob_path(folder, image.manifest.bootstrap.digest)
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("nowhere")
        case _:
            path.symlink_to(path.name)
    with pytest.raises(StoreError):
        image.open(image.manifest.bootstrap).read_range(0, 16)


def test_index_that_is_no_file_ends_in_an_error_and_not_in_waiting(folder):
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")
    with pytest.raises(StoreError):
        read_index(folder)


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    file = LocalFile(path, "sha256:name", 25_600)
    yield file
    file.close()


def test_ranges_are_exact(local):
    assert local.size == 25_600
    assert local.read_range(0, 0) == b""
    assert local.read_range(255, 3) == b"\xff\x00\x01"
    assert local.read_range(0, 25_600) == bytes(range(256)) * 100


@pytest.mark.parametrize(("offset", "length"), [(25_599, 2), (25_600, 1), (2**40, 1), (0, 25_601)])
def test_range_behind_the_end_is_refused(local, offset, length):
    with pytest.raises(
        LengthMismatch,
        match=f"expected {offset + length} bytes, found 25600 .blob sha256:name, offset {offset}",
    ):
        local.read_range(offset, length)


def test_closing_twice_is_harmless_and_reading_then_is_an_error(local):
    local.close()
    local.close()
    with pytest.raises(StoreError, match="reading the blob failed"):
        local.read_range(0, 1)


def test_threads_read_the_same_file_at_once(local):
    barrier = threading.Barrier(8)

    def read(number):
        barrier.wait(30)
        return all(local.read_range(offset, 256) == bytes(range(256)) for offset in range(0, 25_600, 256))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
