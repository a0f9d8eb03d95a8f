"""Stock images converted: file by file what umoci unpacks, from every transport; hostile ones are refused."""

import gzip
import json
import lzma
import os
import shutil
import subprocess

import pytest
from support.images import KEY, assert_sound, opened
from support.mounts import rafsfs
from support.registries import registry
from support.stock import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Stock,
    digest_of,
    layer,
    link,
    member,
    stock_image,
)
from support.trees import assert_same_tree, read_folder, read_image
from support.umoci_image import make_image, unpacked

from rafsfs.build import plain_archive
from rafsfs.errors import BuildError
from rafsfs.fs.image import open_sealed
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference, parse_reference
from rafsfs.trust.keys import KeyRing, save_key
from rafsfs.trust.opening import TrustPolicy

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

LOWER = layer(member("dir/"), member("dir/a", b"a" * 5000), member("dir/b", b"b"))
UPPER = layer(member("dir/.wh.b", b""), link("dir/c", "dir/a"), member("new", b"new"))


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key"
    save_key(KEY, path)
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """An image of six layers by umoci, and what umoci makes of it."""
    work = tmp_path_factory.mktemp("real")
    make_image(work / "stock", work)
    yield work / "stock", read_folder(unpacked(work / "stock", work / "unpacked"))
    shutil.rmtree(work)


def converted(source, folder, key, *options):
    done = rafsfs("convert", source, folder, "--key", key, "--json", *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def tree(folder):
    with opened(Reference(folder)) as image:
        return read_image(image.filesystem)


def refused(source, tmp_path, key, *options):
    done = rafsfs("convert", source, tmp_path / "refused", "--key", key, *options)
    assert done.returncode not in (0, 1), done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "refused").exists()
    return done


def test_tree_is_what_umoci_unpacks(real, tmp_path, key, tally):
    stock, expected = real
    said = converted(f"oci:{stock}:latest", tmp_path / "sealed", key)
    assert said["layers"] == 6 and said["source_digest"].startswith("sha256:")
    assert_same_tree(expected, tree(tmp_path / "sealed"))
    assert_sound(Reference(tmp_path / "sealed"))
    tally("files compared with umoci's", len(expected))


def test_config_comes_along_and_is_hidden(real, tmp_path, key):
    converted(real[0], tmp_path / "sealed", key)
    reference = Reference(tmp_path / "sealed")
    with opened(reference) as image:
        config = image.config()
    assert config.env[-1] == "GREETING=hello" and config.user == "1000:100"
    assert (config.entrypoint, config.cmd, config.working_dir) == (("/bin/tool",), ("--help",), "/srv")
    files = [path for path in reference.folder.rglob("*") if path.is_file()]
    assert not any(b"GREETING" in path.read_bytes() for path in files)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_what_skopeo_moved_is_the_same(real, tmp_path, key, transport):
    stock, expected = real
    name = "example.com/tests/real:v1"
    file = f"{transport}:{tmp_path / 'archive.tar'}"
    target = f"{file}:{name}" if transport == "docker-archive" else file
    subprocess.run(["skopeo", "copy", "-q", f"oci:{stock}:latest", target], check=True)
    converted(file, tmp_path / "sealed", key)
    assert_same_tree(expected, tree(tmp_path / "sealed"))
    if transport == "docker-archive":
        converted(f"{file}:{name}", tmp_path / "by-name", key)
        assert_same_tree(expected, tree(tmp_path / "by-name"))
        assert "it has: example.com/tests/real:v1" in refused(f"{file}:other:v1", tmp_path, key).stderr


@pytest.mark.parametrize("program", ["gzip", "zstd"])
def test_saved_image_that_was_packed(real, tmp_path, key, program):
    stock, expected = real
    archive = tmp_path / "archive.tar"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{stock}:latest", f"docker-archive:{archive}"], check=True)
    packed = tmp_path / "packed"
    with packed.open("wb") as file:
        subprocess.run([program, "-c", archive], stdout=file, check=True)
    converted(f"docker-archive:{packed}", tmp_path / "sealed", key)
    assert_same_tree(expected, tree(tmp_path / "sealed"))
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    done = refused(f"docker-archive:{packed}", tmp_path, key)
    assert done.returncode == 8 and "ends too early" in done.stderr


def test_saved_image_that_expands_too_far(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_archive, "GIB", 1 << 20)
    monkeypatch.setattr(plain_archive, "LAYER_EXPANSION_MAX", 100)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(bytes(1 << 24)))
    with (
        pytest.raises(BuildError, match=r"the archive expands too far"),
        plain_archive.plain_archive(packed, tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == [packed]


@pytest.mark.parametrize("packing", [("tar", "gzip"), ("zstd", "tar"), ("gzip", "zstd")])
def test_layers_however_they_are_packed(tmp_path, key, packing):
    converted(stock_image(tmp_path / "stock", LOWER, UPPER, packing=packing), tmp_path / "sealed", key)
    found = tree(tmp_path / "sealed")
    assert sorted(found) == [b"", b"dir", b"dir/a", b"dir/c", b"new"]
    assert found[b"dir/c"].same_as == b"dir/a" and found[b"dir/a"].nlink == 2


def test_sealed_image_says_nothing_of_its_source_unless_told_to(tmp_path, key):
    source = stock_image(tmp_path / "stock", LOWER, config={"Env": ["A=b"]})
    digest = converted(source, tmp_path / "hidden", key)["source_digest"]
    shown = converted(source, tmp_path / "shown", key, "--public-config")
    assert shown["source_digest"] == digest
    for folder, subject in (("hidden", None), ("shown", digest)):
        image = find_image(Reference(tmp_path / folder))
        manifest = json.loads(blob_path(tmp_path / folder, image.manifest_digest).read_bytes())
        config = json.loads(blob_path(tmp_path / folder, image.manifest.config.digest).read_bytes())
        assert manifest.get("subject", {}).get("digest") == subject
        assert config["config"] == ({"Env": ["A=b"]} if subject else {})
        with opened(Reference(tmp_path / folder)) as sealed:
            assert sealed.config().document["vnd.rafsfs.source.digest"] == digest
    assert_sound(Reference(tmp_path / "shown"))


def test_image_of_a_platform_is_chosen_from_an_index(tmp_path, key):
    stock = Stock(tmp_path / "stock")
    images = {
        platform: stock.image([layer(member(platform.replace("/", "-"), b""))], architecture=architecture)
        for platform, architecture in (
            ("linux/amd64", "amd64"),
            ("linux/arm64/v8", "arm64"),
            ("linux/arm/v7", "arm"),
            ("unknown/unknown", "amd64"),
        )
    }
    source = stock.tag(stock.index(images))
    converted(source, tmp_path / "seven", key, "--platform", "linux/arm/v7")
    assert sorted(tree(tmp_path / "seven")) == [b"", b"linux-arm-v7"]
    with opened(Reference(tmp_path / "seven")) as image:
        assert image.config().architecture == "arm"
    converted(source, tmp_path / "eight", key, "--platform", "linux/arm64")
    assert sorted(tree(tmp_path / "eight")) == [b"", b"linux-arm64-v8"]
    said = refused(source, tmp_path, key, "--platform", "linux/mips").stderr
    assert "it has: linux/amd64, linux/arm/v7, linux/arm64/v8" in said


def test_same_layers_make_the_same_image_in_a_dedup_domain(tmp_path, key):
    secret = tmp_path / "secret"
    assert rafsfs("keys", "new", secret).returncode == 0
    source = stock_image(tmp_path / "stock", LOWER, UPPER)
    for folder in ("one", "two"):
        converted(source, tmp_path / folder, key, "--dedup-secret", secret)
    blobs = [find_image(Reference(tmp_path / folder)).manifest.blobs for folder in ("one", "two")]
    assert blobs[0] == blobs[1]


def hostile_layers():
    bomb = layer(member("zeros", b"\0" * (1 << 20)))
    yield "path out of the image", {"layers": [layer(member("../out", b"x"))]}, 8
    yield "diff_id of another layer", {"layers": [LOWER], "diff_ids": [digest_of(UPPER)]}, 5
    yield "no diff_id", {"layers": [LOWER, UPPER], "diff_ids": [digest_of(LOWER)]}, 6
    yield "layer is no tar", {"layers": [b"hello" * 1000]}, 8
    yield "layer is cut off", {"layers": [bomb[:5000]]}, 8
    yield "layer of an unknown kind", {"layers": [LOWER], "media_types": ["application/x-zip"]}, 16
    yield "no config of an image", {"layers": [LOWER], "config": {"Env": "A=b"}}, 6


@pytest.mark.parametrize("case", list(hostile_layers()), ids=lambda case: case[0])
def test_hostile_images_are_refused(tmp_path, key, case):
    _, options, code = case
    layers = options.pop("layers")
    source = stock_image(tmp_path / "stock", *layers, **dict(options))
    assert refused(source, tmp_path, key).returncode == code


def test_changed_layer_is_refused(tmp_path, key):
    stock = Stock(tmp_path / "stock")
    source = stock.tag(stock.image([LOWER], packing=["tar"]))
    path = blob_path(stock.folder, digest_of(LOWER))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    done = refused(source, tmp_path, key)
    assert done.returncode == 5 or "damaged" in done.stderr
    path.unlink()
    assert refused(source, tmp_path, key).returncode == 12


def test_sealed_images_and_other_artifacts_are_no_sources(tmp_path, key):
    converted(stock_image(tmp_path / "stock", LOWER), tmp_path / "sealed", key)
    assert "sealed already" in refused(tmp_path / "sealed", tmp_path, key).stderr
    stock = Stock(tmp_path / "other")
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": []}
    manifest["config"] = stock.blob(b"{}", "application/vnd.oci.empty.v1+json")
    source = stock.tag(stock.blob(json.dumps(manifest).encode(), MANIFEST_TYPE))
    assert "not a container image" in refused(source, tmp_path, key).stderr
    old = stock.blob(json.dumps({"schemaVersion": 1}).encode(), MANIFEST_TYPE)
    assert "schema version" in refused(stock.tag(old, "old"), tmp_path, key).stderr
    nothing = stock.blob(json.dumps({"manifests": []}).encode(), INDEX_TYPE)
    assert "no image for" in refused(stock.tag(nothing, "nothing"), tmp_path, key).stderr


def test_archives_that_are_none(tmp_path, key):
    path = tmp_path / "file.tar"
    assert refused(f"docker-archive:{path}", tmp_path, key).returncode == 3
    for content in (b"", b"x" * 3000, layer(member("manifest.json", b"[1]"))):
        path.write_bytes(content)
        assert refused(f"docker-archive:{path}", tmp_path, key).returncode in (3, 6)
    path.write_bytes(lzma.compress(layer(member("manifest.json", b"[1]"))))
    assert "if it is compressed, unpack it first" in refused(f"docker-archive:{path}", tmp_path, key).stderr
    listed = json.dumps([{"Config": "c", "RepoTags": None, "Layers": ["../../etc/passwd"]}]).encode()
    config = json.dumps({"rootfs": {"diff_ids": [digest_of(LOWER)]}}).encode()
    path.write_bytes(layer(member("manifest.json", listed), member("c", config)))
    assert "not in the archive" in refused(f"docker-archive:{path}", tmp_path, key).stderr


def test_fifo_in_a_layers_place_holds_up_nobody(tmp_path, key):
    stock = Stock(tmp_path / "stock")
    source = stock.tag(stock.image([LOWER], packing=["tar"]))
    path = blob_path(stock.folder, digest_of(LOWER))
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refused(source, tmp_path, key).stderr


def test_from_a_registry_and_into_one(real, tmp_path, key):
    """As the issue's example has it; what comes out again runs through a registry twice."""
    stock, expected = real
    with registry(tmp_path / "registry") as there:
        plain, sealed = there.reference("tests/plain"), there.reference("tests/app", "sealed")
        words = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{stock}:latest", str(plain)]
        subprocess.run(words, check=True)
        said = converted(plain, sealed, key, "--public-config")
        with open_sealed(sealed, KeyRing(symmetric=(KEY,)), TrustPolicy()) as image:
            assert_same_tree(expected, read_image(image.filesystem))
            subject = image.stored.manifest.subject
            assert subject is not None and subject.digest == said["source_digest"]
        layer_file = there.blob_file(json.loads(layers_of(stock))["layers"][0]["digest"])
        layer_file.write_bytes(layer_file.read_bytes()[:-1] + b"x")
        assert refused(plain, tmp_path, key).returncode in (5, 8)


def test_into_an_archive(tmp_path, key):
    converted(stock_image(tmp_path / "stock", LOWER, UPPER), f"oci-archive:{tmp_path}/sealed.tar", key)
    reference = parse_reference(f"oci-archive:{tmp_path}/sealed.tar")
    with open_sealed(reference, KeyRing(symmetric=(KEY,)), TrustPolicy()) as image:
        assert sorted(read_image(image.filesystem)) == [b"", b"dir", b"dir/a", b"dir/c", b"new"]


def layers_of(folder):
    (entry,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    return blob_path(folder, entry["digest"]).read_bytes()


def test_layers_that_are_kept_are_the_same_tree(real, tmp_path, key):
    stock, expected = real
    converted(stock, tmp_path / "sealed", key, "--keep-layers")
    assert_same_tree(expected, tree(tmp_path / "sealed"))
    assert_sound(Reference(tmp_path / "sealed"))
    manifest = find_image(Reference(tmp_path / "sealed")).manifest
    assert len(manifest.blobs) > 2
    files = list((tmp_path / "sealed/blobs/sha256").iterdir())
    assert len(files) == len(manifest.blobs) + 3  # of layers without anything left there is none


def test_layer_of_small_files_alone_has_no_blob(tmp_path, key):
    base, upper = layer(member("base", os.urandom(9000))), layer(member("tiny", b"1" * 1000))
    converted(stock_image(tmp_path / "stock", base, upper), tmp_path / "sealed", key, "--keep-layers")
    reference = Reference(tmp_path / "sealed")
    assert len(find_image(reference).manifest.blobs) == 1
    with opened(reference) as image:
        tiny = image.filesystem.lookup(image.filesystem.root, b"tiny")
        assert b"".join(image.filesystem.read(tiny, 0, 2000)) == b"1" * 1000
    assert_sound(reference)


def test_images_have_the_blobs_of_equal_layers_in_common(tmp_path, key):
    secret = tmp_path / "secret"
    assert rafsfs("keys", "new", secret).returncode == 0
    base = layer(*(member(f"base/{number}", os.urandom(300_000)) for number in range(8)))
    options = ["--keep-layers", "--dedup-secret", secret]
    uppers = {
        "one": layer(member("one", b"1" * 9000)),
        "two": layer(member("base/.wh.3", b""), member("base/4", b"hidden"), member("two", b"2" * 9000)),
    }
    blobs = {}
    for name, upper in uppers.items():
        source = stock_image(tmp_path / name, base, upper)
        converted(source, f"{tmp_path / 'sealed'}:{name}", key, *options)
        reference = Reference(tmp_path / "sealed", name)
        blobs[name] = [blob.digest for blob in find_image(reference).manifest.blobs]
        assert_sound(reference)
    assert blobs["one"][0] == blobs["two"][0] and blobs["one"][1] != blobs["two"][1]
    with (
        opened(Reference(tmp_path / "sealed", "one")) as one,
        opened(Reference(tmp_path / "sealed", "two")) as two,
    ):
        found = read_image(two.filesystem)
        counts = [image.opened.superblock.blobs[0].chunk_count for image in (one, two)]
    assert b"base/3" not in found and len(found) == 10
    assert counts[1] < counts[0]


def test_same_layer_twice_is_kept_once(tmp_path, key):
    secret = tmp_path / "secret"
    assert rafsfs("keys", "new", secret).returncode == 0
    base = layer(member("a", b"a" * 5000), member("b", b"b" * 300_000))
    between = layer(link("c", "a"))
    source = stock_image(tmp_path / "stock", base, between, base)
    converted(source, tmp_path / "sealed", key, "--keep-layers", "--dedup-secret", secret)
    assert len(find_image(Reference(tmp_path / "sealed")).manifest.blobs) == 1
    found = tree(tmp_path / "sealed")
    assert found[b"a"].content == found[b"c"].content and found[b"a"].same_as != found[b"c"].same_as
    assert_sound(Reference(tmp_path / "sealed"))
