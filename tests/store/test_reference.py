"""How images are named: every spelling, and what names none."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import ImageNotFound
from rafsfs.store.reference import (
    ArchiveReference,
    BucketReference,
    DockerArchiveReference,
    Reference,
    RegistryReference,
    parse_layout_reference,
    parse_reference,
    parse_source_reference,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "folder", "tag", "digest"),
    [
        ("images", "images", "latest", None),
        ("images:v1", "images", "v1", None),
        ("oci:images:v1", "images", "v1", None),
        ("oci:images", "images", "latest", None),
        ("/a/b:v1.0_x-Y", "/a/b", "v1.0_x-Y", None),
        ("/a:b/c", "/a:b/c", "latest", None),
        ("/a:b/c:d", "/a:b/c", "d", None),
        ("a:b:c", "a:b", "c", None),
        ("./images", "images", "latest", None),
        ("name with space:v1", "name with space", "v1", None),
        (f"images@{DIGEST}", "images", None, DIGEST),
        (f"oci:/a/b@{DIGEST}", "/a/b", None, DIGEST),
        ("user@host:v1", "user@host", "v1", None),
        ("a:_", "a", "_", None),
        ("a:" + "x" * 128, "a", "x" * 128, None),
    ],
)
def test_spelling_is_read(text, folder, tag, digest):
    assert parse_reference(text) == Reference(Path(folder), tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":v1",
        "oci:",
        "a:",
        "a:-x",
        "a:.x",
        "a:b c",
        "a:b\n",
        "a:ä",
        "a:" + "x" * 129,
        "a@sha256:abc",
        "a@sha256:",
    ],
)
def test_name_of_nothing_is_refused(text):
    with pytest.raises(ImageNotFound, match=r"names no image|is not a digest"):
        parse_reference(text)


def test_pinned_reference_has_no_tag():
    pinned = parse_reference("images:v1").pinned(DIGEST)
    assert pinned == Reference(Path("images"), None, DIGEST)
    assert str(pinned) == f"images@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("docker://localhost/a", RegistryReference("localhost", "a")),
        ("docker://127.0.0.1:5000/t/a:sealed", RegistryReference("127.0.0.1:5000", "t/a", "sealed")),
        ("docker://[::1]:5000/a__b/c-d:v", RegistryReference("[::1]:5000", "a__b/c-d", "v")),
        (f"docker://h.example/a@{DIGEST}", RegistryReference("h.example", "a", None, DIGEST)),
        (f"docker://h.example/a:v@{DIGEST}", RegistryReference("h.example", "a", None, DIGEST)),
        ("docker://alpine", RegistryReference("docker.io", "library/alpine")),
        ("docker://alpine:3", RegistryReference("docker.io", "library/alpine", "3")),
        ("docker://grafana/loki", RegistryReference("docker.io", "grafana/loki")),
        ("docker://index.docker.io/alpine", RegistryReference("docker.io", "library/alpine")),
        ("oci-archive:a.tar", ArchiveReference(Path("a.tar"))),
        ("oci-archive:/x/a.tar:v1", ArchiveReference(Path("/x/a.tar"), "v1")),
        (f"oci-archive:a.tar@{DIGEST}", ArchiveReference(Path("a.tar"), None, DIGEST)),
        ("oci:oci:a:v1", Reference(Path("oci:a"), "v1")),
        ("./oci-archive:v1", Reference(Path("./oci-archive"), "v1")),
        ("s3://bucket/images/tree:v1", BucketReference("s3://bucket/images/tree", "v1")),
        ("s3://bucket", BucketReference("s3://bucket")),
        ("gs://bucket/a/", BucketReference("gs://bucket/a")),
        (f"az://container/a@{DIGEST}", BucketReference("az://container/a", None, DIGEST)),
        ("http://127.0.0.1:8000/a/b:v1", BucketReference("http://127.0.0.1:8000/a/b", "v1")),
        ("https://h.example:8443", BucketReference("https://h.example:8443")),
    ],
)
def test_other_transport_is_read(text, found):
    assert parse_reference(text) == found
    assert parse_reference(str(found)) == found
    assert found.pinned(DIGEST).digest == DIGEST
    assert found.pinned(DIGEST).tag is None
    assert parse_reference(str(found.pinned(DIGEST))) == found.pinned(DIGEST)


@pytest.mark.parametrize(
    "text",
    [
        "docker://",
        "docker:///a",
        "docker://h.example/",
        "docker://h.example/A",
        "docker://h.example/a/../b",
        "docker://h.example/a//b",
        "docker://h.example/a:",
        "docker://h.example/a:b:c",
        "docker://h.example/a?b",
        "docker://h.example/a@sha512:00",
        "docker://h.example:0/a",
        "docker://h.example:65536/a",
        "docker://u:p@h.example/a",
        "docker://h.example\n/a",
        "docker://h.example/" + "a" * 256,
        "oci-archive:",
        "oci-archive:a:-",
        "s3://",
        "s3:///a",
        "s3://bucket//a",
        "http://u@h/a",
        "http://h/a?q=1:v",
        "http://h/a#b",
        "https://h/a b",
        "docker-archive:",
        "docker-archive:a:",
    ],
)
def test_name_of_nothing_elsewhere_is_refused(text):
    with pytest.raises(ImageNotFound, match=r"names no image|is not a digest"):
        parse_source_reference(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [("a.tar", None), ("a.tar:img", "img:latest"), ("a.tar:h:5000/img:v1", "h:5000/img:v1")],
)
def test_docker_archive_is_only_a_source(text, name):
    text = f"docker-archive:{text}"
    assert parse_source_reference(text) == DockerArchiveReference(Path("a.tar"), name)
    assert parse_source_reference(str(parse_source_reference(text))) == parse_source_reference(text)
    with pytest.raises(ImageNotFound, match=r"not a sealed image.*rafsfs convert"):
        parse_reference(text)


@pytest.mark.parametrize("text", ["docker://h/a/b", "oci-archive:a", "s3://b/a", "https://h/a"])
def test_what_is_not_in_a_folder_cannot_be_written_there(text):
    with pytest.raises(ImageNotFound, match=r"not in a local folder.*rafsfs pull"):
        parse_layout_reference(text)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "0" * 63, "sha512:" + "0" * 64, DIGEST.upper(), DIGEST + "\n"]
)
def test_pin_that_is_no_digest_is_refused(digest):
    with pytest.raises(ImageNotFound, match="not a digest"):
        parse_reference("images").pinned(digest)


@given(st.text(max_size=40))
def test_any_text_ends_in_a_reference_or_a_refusal(text):
    try:
        reference = parse_reference(text)
    except ImageNotFound:
        return
    assert parse_reference(str(reference)) == reference
