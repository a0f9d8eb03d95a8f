"""Blobs that nothing leads to are removed; what an image of any tool is made of, or is said of it, stays."""

import json
import os
import subprocess
from contextlib import suppress

import pytest
from support.images import KEY, build, opened

from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.pruning import prune
from rafsfs.errors import BlobNotFound, DigestMismatch, ImageNotFound, RafsError, StoreError
from rafsfs.format import oci
from rafsfs.fs.checking import check_image
from rafsfs.store.oci_layout import blob_digests, blob_path, read_index
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy

RING = KeyRing(symmetric=(KEY,))
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(1 << 20))
    return folder


def blobs(folder):
    return set(blob_digests(folder))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def store(folder, data, media_type=LAYER, **more):
    """Put a blob there as other tools do; returns its descriptor."""
    data = data if isinstance(data, bytes) else oci.dump_json(data)
    digest = oci.digest_of(data)
    blob_path(folder, digest).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)} | more


def listed(folder, descriptor, tag):
    index = json.loads((folder / "index.json").read_bytes())
    index["manifests"].append(descriptor | {"annotations": {oci.ANNOTATION_TAG: tag}})
    (folder / "index.json").write_bytes(oci.dump_json(index))


def stock_image(folder, name):
    """Manifest, config and layer of another tool's image; the manifest is returned."""
    config = store(folder, {"name": name}, oci.MEDIA_TYPE_CONFIG)
    layer = store(folder, f"layer of {name}".encode())
    return store(folder, {"config": config, "layers": [layer]}, oci.MEDIA_TYPE_MANIFEST)


def check(image):
    result = check_image(image, RING, TrustPolicy(), workers=2)
    assert [str(problem.error) for problem in result.problems.kept] == []


def test_what_a_moved_tag_left_is_removed_and_the_image_stays_whole(tree, tmp_path):
    image = build(tree, tmp_path / "image")
    before = blobs(image.folder)
    (tree / "file").write_bytes(os.urandom(1 << 20))
    build(tree, tmp_path / "image")
    old = {path: size for path, size in sizes(image.folder).items() if path in before}
    done = prune(image.folder)
    assert {item.digest: item.size for item in done.removed} == old
    assert done.freed_bytes == sum(old.values())
    assert done.kept == len(blobs(image.folder)) == 4
    assert done.kept_bytes == sum(sizes(image.folder).values())
    check(image)
    assert prune(image.folder).removed == ()


def sizes(folder):
    return {digest: blob_path(folder, digest).stat().st_size for digest in blob_digests(folder)}


def test_dry_run_says_the_same_and_removes_nothing(tree, tmp_path):
    image = build(tree, tmp_path / "image")
    (tree / "file").write_bytes(b"other")
    build(tree, tmp_path / "image")
    before = contents(image.folder)
    told = prune(image.folder, dry_run=True)
    assert contents(image.folder) == before
    assert prune(image.folder) == told
    assert len(told.removed) == 4


def test_other_tags_keep_what_they_share(tree, tmp_path):
    image = build(tree, tmp_path / "image")
    listed(image.folder, json.loads((image.folder / "index.json").read_bytes())["manifests"][0], "other")
    (tree / "file").write_bytes(b"other")
    build(tree, tmp_path / "image")
    assert prune(image.folder).removed == ()
    check(Reference(image.folder, "other"))


def test_mount_of_a_removed_image_goes_on(tree, tmp_path):
    """Its files are open, whatever becomes of their names."""
    image = build(tree, tmp_path / "image")
    wanted = (tree / "file").read_bytes()
    with opened(image) as old:
        (tree / "file").write_bytes(b"other")
        build(tree, tmp_path / "image")
        assert len(prune(image.folder).removed) == 4
        nid = old.filesystem.lookup(old.filesystem.root, b"file")
        assert b"".join(old.filesystem.read(nid, 0, len(wanted))) == wanted


def nested_index(folder):
    inner = store(folder, {"manifests": [stock_image(folder, "arm64")]}, oci.MEDIA_TYPE_INDEX)
    outer = {"manifests": [stock_image(folder, "amd64"), inner]}
    listed(folder, store(folder, outer, oci.MEDIA_TYPE_INDEX), "many")


def index_without_media_types(folder):
    manifest = stock_image(folder, "amd64")
    del manifest["mediaType"]
    listed(folder, store(folder, {"manifests": [manifest]}, oci.MEDIA_TYPE_INDEX), "many")


def referrers(folder):
    """A signature of a signature of the sealed image, neither of which the index lists."""
    image = read_index(folder)[0]
    about = {"mediaType": image.media_type, "digest": image.digest, "size": image.size}
    for _ in range(2):
        empty = store(folder, b"{}", "application/vnd.oci.empty.v1+json")
        layers = [store(folder, about["digest"].encode(), "text/plain")]
        document = {"config": empty, "layers": layers, "subject": about}
        about = store(folder, document, oci.MEDIA_TYPE_MANIFEST)


def artifact(folder):
    """As ORAS made them: `blobs` in place of `layers`."""
    document = {"mediaType": ARTIFACT, "blobs": [store(folder, b"payload", "text/plain")]}
    listed(folder, store(folder, document, ARTIFACT), "artifact")


def artifact_that_is_no_manifest(folder):
    listed(folder, store(folder, b"<xml/>", "application/xml"), "xml")


def other_kinds_of_place(folder):
    """Descriptors where no specification has put them yet."""
    document = {"parts": {"first": [{"deep": stock_image(folder, "deep")}]}}
    listed(folder, store(folder, document, "application/vnd.example.v9+json"), "later")


OTHERS = [
    nested_index,
    index_without_media_types,
    referrers,
    artifact,
    artifact_that_is_no_manifest,
    other_kinds_of_place,
]


@pytest.mark.parametrize("others", OTHERS)
def test_images_of_other_tools_stay_whole(others, tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    others(folder)
    before = contents(folder)
    stray = store(folder, b"stray")["digest"]
    assert [item.digest for item in prune(folder).removed] == [stray]
    assert contents(folder) == before


def test_referrer_of_what_is_removed_goes_with_it(tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    referrers(folder)
    (tree / "file").write_bytes(b"other" * 1000)
    build(tree, tmp_path / "image")
    prune(folder)
    assert len(blobs(folder)) == 4


@pytest.mark.integration
def test_image_that_skopeo_put_there_stays(tree, tmp_path):
    image = build(tree, tmp_path / "elsewhere")
    folder = tmp_path / "image"
    for tag in ("one", "two"):
        command = ["skopeo", "copy", f"oci:{image.folder}:latest", f"oci:{folder}:{tag}"]
        subprocess.run(command, check=True, capture_output=True)
    assert prune(folder).removed == ()
    check(Reference(folder, "one"))


def test_copy_for_one_platform_lacks_the_others_and_is_kept(tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    nested_index(folder)
    gone = stock_image(folder, "arm64")["digest"]
    blob_path(folder, gone).unlink()
    kept = blobs(folder)
    orphans = {item.digest for item in prune(folder).removed}
    assert len(orphans) == 2  # its config and layer: nothing there leads to them
    assert blobs(folder) == kept - orphans


@pytest.mark.parametrize(
    ("damage", "error"),
    [(lambda path: path.unlink(), BlobNotFound), (lambda path: path.write_bytes(b"[]"), DigestMismatch)],
)
def test_nothing_is_removed_when_a_manifest_cannot_be_read(damage, error, tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    store(folder, b"stray")
    damage(blob_path(folder, read_index(folder)[0].digest))
    before = contents(folder)
    with pytest.raises(error, match="nothing was removed"):
        prune(folder)
    assert contents(folder) == before


def test_nothing_is_removed_while_somebody_writes(tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    stray = store(folder, b"stray")["digest"]
    with LayoutWriter(folder) as layout:
        layout.new_blob().write(b"half of it")
        before = contents(folder)
        with pytest.raises(StoreError, match="somebody is writing"):
            prune(folder)
        assert contents(folder) == before
    assert [item.digest for item in prune(folder).removed] == [stray]


def test_what_killed_builds_left_is_removed(tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    before = contents(folder)
    (folder / ".rafsfs-0123456789abcdef-7").write_bytes(b"an index")
    (folder / "blobs" / "sha256" / ".rafsfs-0123456789abcdef-0").write_bytes(b"a blob")
    done = prune(folder)
    assert (done.litter, done.freed_bytes) == (2, 14)
    assert contents(folder) == before


def test_blob_that_another_folder_has_too_frees_nothing(tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    stray = store(folder, b"stray")["digest"]
    os.link(blob_path(folder, stray), tmp_path / "linked")
    done = prune(folder)
    assert [(item.digest, item.size, item.freed_bytes) for item in done.removed] == [(stray, 5, 0)]
    assert (tmp_path / "linked").read_bytes() == b"stray"


def test_files_that_are_no_blobs_stay(tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    (folder / "blobs" / "sha256" / "README").write_text("mine")
    (folder / "notes").write_text("mine, too")
    before = contents(folder)
    assert prune(folder).removed == ()
    assert contents(folder) == before


def no_folder(folder):
    return folder / "missing"


def image_with_tag(folder):
    return folder.parent / f"{folder.name}:latest"


def other_folder(folder):
    return folder / "blobs"


def blobs_without_a_layout(folder):
    (folder / "oci-layout").unlink()
    return folder


def layout_of_something_else(folder):
    (folder / "oci-layout").write_text("[]")
    return folder


def layout_without_an_index(folder):
    (folder / "index.json").unlink()
    return folder


def blobs_of_several_layouts(folder):
    (folder / "blobs" / "sha256").rename(folder.parent / "shared")
    (folder / "blobs" / "sha256").symlink_to(folder.parent / "shared")
    return folder


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (no_folder, ImageNotFound),
        (image_with_tag, ImageNotFound),
        (other_folder, ImageNotFound),
        (blobs_without_a_layout, ImageNotFound),
        (layout_of_something_else, ImageNotFound),
        (layout_without_an_index, ImageNotFound),
        (blobs_of_several_layouts, StoreError),
    ],
)
def test_what_is_no_layout_of_its_own_is_refused(spoil, error, tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    store(folder, b"stray")
    place = spoil(folder)
    before = contents(tmp_path)
    with pytest.raises(error):
        prune(place)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("nested", [b"\xff", b"[" * 100_000, b'{"manifests":' + b"[" * 100_000, b"{}", b""])
def test_hostile_documents_end_in_an_error_of_ours_at_most(nested, tree, tmp_path):
    folder = build(tree, tmp_path / "image").folder
    kept = blobs(folder)
    listed(folder, store(folder, nested, oci.MEDIA_TYPE_INDEX), "hostile")
    with suppress(RafsError):
        prune(folder)
    assert kept <= blobs(folder)
