"""Copies between folders, archives and registries are the same to the byte, or not there at all."""

import json
import subprocess
from contextlib import closing

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.images import assert_sound, build
from support.mounts import flip, rafsfs
from support.registries import PASSWORD, USER, registry
from support.trees import Planned, PlannedSource, Segment

from rafsfs.build.copying import copy_image
from rafsfs.errors import BuildError, DigestMismatch, ImageNotFound, StoreError, StoreUnavailable
from rafsfs.format import oci
from rafsfs.format.erofs import FileType
from rafsfs.limits import KIB
from rafsfs.store import registry_upload
from rafsfs.store.oci_layout import blob_path, find_image, read_index
from rafsfs.store.reference import ArchiveReference, Reference, RegistryReference
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import find_stored, open_store

PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(700 * KIB, 1),)),
)
PLAIN = StoreSettings(stall_s=5.0)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), "v1")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def proxy(server):
    with fault_proxy(server.host) as found:
        yield found


def blobs(folder):
    return {path.name: path.read_bytes() for path in (folder / "blobs" / "sha256").iterdir()}


def digest_at(reference):
    with closing(open_store(reference, PLAIN)) as store:
        return store.find(reference.tag, reference.digest).digest


def test_round_trip_through_all_places_changes_nothing(image, server, tmp_path):
    places = [
        server.reference("round/a", "x"),
        ArchiveReference(tmp_path / "a.tar", "y"),
        server.reference("round/b", "z"),
        ArchiveReference(tmp_path / "b.tar"),
        Reference(tmp_path / "copy", "v9"),
    ]
    source = image
    for target in places:
        done = copy_image(source, target, PLAIN)
        assert done.digest == digest_at(target) == find_image(image).manifest_digest
        source = target
    assert blobs(tmp_path / "copy") == blobs(image.folder)
    assert_sound(places[-1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "copy"]


def test_other_tools_read_what_was_copied(image, server, tmp_path):
    pushed = server.reference("others", "v1")
    archive = ArchiveReference(tmp_path / "a.tar", "v1")
    for target in (pushed, archive):
        copy_image(image, target, PLAIN)
        shown = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", str(target)], capture_output=True, check=True
        )
        assert oci.digest_of(shown.stdout) == find_image(image).manifest_digest


def test_what_is_there_is_not_sent_again(image, server, proxy, tmp_path):
    first = copy_image(image, server.reference("again", "v1"), PLAIN)
    assert (first.sent, first.present, first.mounted) == (first.blobs, 0, 0)
    second = copy_image(image, server.reference("again", "v2"), PLAIN)
    assert (second.sent, second.present, second.sent_bytes) == (0, second.blobs, 0)
    beside = copy_image(server.reference("again", "v1"), server.reference("beside", "v1"), PLAIN)
    assert (beside.sent, beside.mounted) == (0, beside.blobs)
    copy_image(server.reference("again", "v1"), Reference(tmp_path / "f", "v1"), PLAIN)
    again = copy_image(RegistryReference(proxy.host, "again", "v1"), Reference(tmp_path / "f", "v2"), PLAIN)
    assert (again.sent, again.present) == (0, again.blobs)
    assert all("/manifests/" in request.path for request in proxy.requests)
    assert_sound(Reference(tmp_path / "f", "v2"))


def test_damaged_blob_in_the_target_folder_is_fetched_anew(image, tmp_path):
    target = Reference(tmp_path / "copy", "v1")
    copy_image(image, target, PLAIN)
    damaged = blob_path(target.folder, find_image(image).manifest.blobs[0].digest)
    flip(damaged, 1000)
    assert copy_image(image, target, PLAIN).sent == 1
    assert_sound(target)


@pytest.mark.parametrize("kind", ["folder", "archive", "registry"])
def test_damaged_source_is_not_copied(image, server, tmp_path, kind):
    source = Reference(tmp_path / "source", "v1")
    copy_image(image, source, PLAIN)
    flip(blob_path(source.folder, find_image(source).manifest.blobs[0].digest), 1000)
    target = {
        "folder": Reference(tmp_path / "target", "v1"),
        "archive": ArchiveReference(tmp_path / "target", "v1"),
        "registry": server.reference("damaged", "v1"),
    }[kind]
    with pytest.raises(DigestMismatch, match=r"a blob is not the one that was named"):
        copy_image(source, target, PLAIN)
    with pytest.raises(ImageNotFound):
        find_stored(target, PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_index_is_copied_with_all_its_images(image, server, tmp_path):
    entry = find_image(image)
    data = entry.store.manifest(oci.Descriptor(oci.MEDIA_TYPE_MANIFEST, entry.manifest_digest, 0))
    other = json.loads(data)
    other["annotations"]["org.example"] = "other"
    folder = tmp_path / "source"
    copy_image(image, Reference(folder, "v1"), PLAIN)
    listed = []
    for document, platform in ((data, "amd64"), (oci.dump_json(other), "riscv64")):
        digest = oci.digest_of(document)
        blob_path(folder, digest).write_bytes(document)
        listed.append(
            {
                "mediaType": oci.MEDIA_TYPE_MANIFEST,
                "digest": digest,
                "size": len(document),
                "platform": {"os": "linux", "architecture": platform},
            }
        )
    index = oci.dump_json({"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": listed})
    digest = oci.digest_of(index)
    blob_path(folder, digest).write_bytes(index)
    top = {"mediaType": oci.MEDIA_TYPE_INDEX, "digest": digest, "size": len(index)}
    tagged = top | {"annotations": {oci.ANNOTATION_TAG: "all"}}
    (folder / "index.json").write_bytes(oci.dump_json({"schemaVersion": 2, "manifests": [tagged]}))
    pushed, back = server.reference("index", "all"), Reference(tmp_path / "back", "all")
    assert copy_image(Reference(folder, "all"), pushed, PLAIN).digest == digest
    assert copy_image(pushed, back, PLAIN).digest == digest
    assert blobs(back.folder) == blobs(folder)
    assert [entry.media_type for entry in read_index(back.folder)] == [oci.MEDIA_TYPE_INDEX]
    stored = find_stored(pushed, PLAIN)
    stored.store.close()
    assert stored.manifest_digest in {item["digest"] for item in listed}


def test_large_blobs_go_up_in_chunks_and_go_on_after_a_failure(image, server, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(registry_upload, "CHUNK_BYTES", 100_000)
    proxy.faults = [
        Fault(applies=lambda request: request.method == "PATCH", status=503),
        Fault(applies=lambda request: request.method == "PATCH", hang_up=True),
        Fault(applies=lambda request: request.method == "PATCH", times=1, change=lambda *_: (502, {}, b"")),
        Fault(applies=lambda request: request.method == "PUT", status=500),
        Fault(applies=lambda request: request.method == "POST", status=429, headers={"Retry-After": "0"}),
        Fault(applies=lambda request: request.method == "HEAD", status=503),
    ]
    copy_image(image, RegistryReference(proxy.host, "chunks", "v1"), PLAIN)
    assert not any(fault.times for fault in proxy.faults)
    assert sum(request.method == "PATCH" for request in proxy.requests) >= 8
    copy_image(server.reference("chunks", "v1"), Reference(tmp_path / "back", "v1"), PLAIN)
    assert blobs(tmp_path / "back") == blobs(image.folder)


def test_registry_that_fails_for_good_is_told(image, proxy):
    proxy.faults = [Fault(applies=lambda request: request.method == "POST", times=None, status=503)]
    with pytest.raises(StoreUnavailable, match=r"an upload cannot be had now.*503"):
        copy_image(image, RegistryReference(proxy.host, "never", "v1"), StoreSettings(attempts=2))
    proxy.faults = [Fault(applies=lambda request: request.method == "POST", times=None, status=403)]
    with pytest.raises(StoreError, match=r"refused to us"):
        copy_image(image, RegistryReference(proxy.host, "never", "v1"), PLAIN)


def test_archive_is_not_overwritten_and_a_digest_is_no_target(image, tmp_path):
    (tmp_path / "a.tar").write_text("x")
    with pytest.raises(BuildError, match=r"the archive exists"):
        copy_image(image, ArchiveReference(tmp_path / "a.tar"), PLAIN)
    with pytest.raises(BuildError, match=r"named by a tag"):
        copy_image(image, image.pinned(find_image(image).manifest_digest), PLAIN)


def test_commands(image, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(tmp_path / "registry", login=True) as guarded:
        target = guarded.reference("t/a", "v1")
        refused = rafsfs("push", image, target)
        assert (refused.returncode, refused.stderr.count("\n")) == (7, 1)
        assert "docker login" in refused.stderr
        login = ["skopeo", "login", "--tls-verify=false", "-u", USER, "-p", PASSWORD]
        file = ["--authfile", tmp_path / "config.json", guarded.host]
        subprocess.run([*login, *file], check=True, capture_output=True)
        pushed = rafsfs("push", image, target, "--json")
        assert pushed.returncode == 0, pushed.stderr
        digest = find_image(image).manifest_digest
        assert json.loads(pushed.stdout)["digest"] == digest
        pulled = rafsfs("pull", target, tmp_path / "pulled")
        assert pulled.returncode == 0, pulled.stderr
        assert pulled.stdout.splitlines()[-1] == f"digest {digest}"
        copied = rafsfs("copy", target, guarded.reference("t/b", "v1"))
        assert "from another repository" in copied.stdout
        assert rafsfs("push", image, tmp_path / "folder").returncode == 2
        assert rafsfs("pull", image, target).returncode == 2
