"""Archives: images found in a tar file, read where they lie; what is no archive ends in an error."""

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.images import build, opened
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, read_image

from rafsfs.errors import BlobNotFound, FormatError, ImageNotFound, LengthMismatch, RafsError
from rafsfs.format.erofs import FileType
from rafsfs.format.oci import Descriptor
from rafsfs.store.oci_archive import ArchiveStore
from rafsfs.store.oci_layout import find_image
from rafsfs.store.reference import ArchiveReference
from rafsfs.store.stores import find_stored

PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(300_000, 1),)),
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    build(PlannedSource(PLAN), folder, "v1")
    return build(PlannedSource(PLAN), folder, "v2")


@pytest.fixture(scope="module", params=[tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def archive(request, image, tmp_path_factory):
    file = tmp_path_factory.mktemp("archive") / "a.tar"
    with tarfile.open(file, "w", format=request.param) as tar:
        tar.add(image.folder, "." if request.param == tarfile.PAX_FORMAT else "")
    return file


def test_images_are_found_and_read(archive, image):
    reference = ArchiveReference(archive, "v2")
    with opened(reference) as found:
        assert_same_tree(expected(PLAN), read_image(found.filesystem))
    digest = find_image(image).manifest_digest
    stored = find_stored(reference.pinned(digest))
    assert stored.manifest_digest == digest
    stored.store.close()


def test_tag_is_needed_where_there_are_several(archive):
    with pytest.raises(ImageNotFound, match=r"2 images in .*it has: v1, v2"):
        find_stored(ArchiveReference(archive))
    with pytest.raises(ImageNotFound, match=r"no tag 'v3'"):
        find_stored(ArchiveReference(archive, "v3"))


def test_files_are_as_long_as_the_manifest_says(archive, image):
    store = ArchiveStore(archive)
    blob = find_image(image).manifest.blobs[0]
    file = store.open(blob)
    with pytest.raises(LengthMismatch, match=r"ends too early"):
        file.read_range(blob.size - 1, 2)
    with pytest.raises(LengthMismatch, match=r"stored file's length"):
        store.open(Descriptor(blob.media_type, blob.digest, blob.size + 1))
    with pytest.raises(BlobNotFound, match=r"not in the archive"):
        store.open(Descriptor(blob.media_type, "sha256:" + "0" * 64, 1))
    store.close()


def test_what_is_no_archive(tmp_path):
    with pytest.raises(ImageNotFound, match=r"no archive at"):
        ArchiveStore(tmp_path / "nowhere")
    (tmp_path / "text").write_text("text" * 1000)
    with pytest.raises(FormatError, match=r"not a tar file"):
        ArchiveStore(tmp_path / "text")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "text", "text")
    with pytest.raises(BlobNotFound, match=r"index.json is not in the archive"):
        ArchiveStore(tmp_path / "other.tar")


@given(data=st.data())
def test_damaged_archive_ends_in_an_error_or_an_image(data, archive, tmp_path_factory):
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 4096))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.tar"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        find_stored(ArchiveReference(file, "v1")).store.close()
    except RafsError:
        return
