"""Stock images indexed: the same trees over untouched layers, lazily, and not a changed byte believed."""

import gzip
import io
import json
import os
import shutil
import subprocess

import pytest
from support.fault_proxy import fault_proxy
from support.images import KEY, assert_sound, opened
from support.mounts import mounting, rafsfs
from support.registries import registry
from support.stock import Stock, digest_of, layer, link, member, stock_image
from support.trees import assert_same_tree, read_folder, read_image
from support.umoci_image import make_image, unpacked
from vectors import verifier

from rafsfs.errors import AuthError, RafsError
from rafsfs.fs.image import open_sealed
from rafsfs.metadata.inode import Extent
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing, save_key
from rafsfs.trust.opening import TrustPolicy

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

NOISE = os.urandom(3_000_000)
BASE = layer(
    member("a/"), member("a/noise", NOISE), member("a/text", b"text " * 400_000), member("a/gone", b"x")
)
UPPER = layer(member("a/.wh.gone", b""), link("a/linked", "a/text"), member("b", b"upper" * 1000))


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key"
    save_key(KEY, path)
    return path


def indexed(source, target, key, *options):
    done = rafsfs("index", source, target, "--key", key, "--json", *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def test_tree_of_a_real_image(tmp_path, key):
    make_image(tmp_path / "stock", tmp_path)
    expected = read_folder(unpacked(tmp_path / "stock", tmp_path / "unpacked"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "stock/blobs/sha256").iterdir()}
    indexed(tmp_path / "stock", f"{tmp_path / 'stock'}:index", key)
    reference = Reference(tmp_path / "stock", "index")
    with opened(reference) as image:
        assert_same_tree(expected, read_image(image.filesystem))
        assert image.config().env[-1] == "GREETING=hello"
        filesystem = image.filesystem
        files = [nid for _, nid in filesystem.walk() if filesystem.tree.inode(nid).is_regular]
        extents = [extent for nid in files for extent in filesystem.extents(nid, 0, 1 << 40)]
        assert extents and all(isinstance(extent, Extent) for extent in extents), "data are the layers"
        assert image.stored.manifest.subject.digest == find_digest(tmp_path / "stock", "latest")
    after = {path.name: path.read_bytes() for path in (tmp_path / "stock/blobs/sha256").iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3  # bootstrap, config and manifest
    assert_sound(reference)
    shutil.rmtree(tmp_path / "unpacked")
    assert read_folder(unpacked(tmp_path / "stock", tmp_path / "unpacked")) == expected


def find_digest(folder, tag):
    entries = json.loads((folder / "index.json").read_bytes())["manifests"]
    (found,) = [
        entry for entry in entries if entry["annotations"]["org.opencontainers.image.ref.name"] == tag
    ]
    return found["digest"]


@pytest.mark.parametrize("packing", ["gzip", "zstd", "tar"])
def test_packings(tmp_path, key, packing):
    source = stock_image(tmp_path / "stock", BASE, UPPER, packing=[packing] * 2)
    indexed(source, tmp_path / "sealed", key)
    with opened(Reference(tmp_path / "sealed")) as image:
        found = read_image(image.filesystem)
        assert sorted(found) == [b"", b"a", b"a/linked", b"a/noise", b"a/text", b"b"]
        assert found[b"a/linked"].same_as == b"a/linked" and found[b"a/text"].same_as == b"a/linked"
        noise = image.filesystem.lookup(image.filesystem.lookup(image.filesystem.root, b"a"), b"noise")
        for offset in (2_900_000, 1, 1_500_000, 262_143, 2_999_999):
            parts = image.filesystem.read(noise, offset, 5000)
            assert b"".join(map(bytes, parts)) == NOISE[offset : offset + 5000]
    assert_sound(Reference(tmp_path / "sealed"))


def test_gzip_layers_of_many_members_and_stored_blocks(tmp_path, key):
    """As pigz and others write them."""
    halves = [gzip.compress(BASE[:1_000_000], 0, mtime=0), gzip.compress(BASE[1_000_000:], 9, mtime=0)]
    stock = Stock(tmp_path / "stock")
    descriptor = stock.image([BASE])
    manifest = json.loads(blob_path(stock.folder, descriptor["digest"]).read_bytes())
    manifest["layers"] = [stock.blob(b"".join(halves), manifest["layers"][0]["mediaType"])]
    source = stock.tag(stock.blob(json.dumps(manifest).encode(), descriptor["mediaType"]))
    indexed(source, tmp_path / "sealed", key)
    with opened(Reference(tmp_path / "sealed")) as image:
        folder = image.filesystem.lookup(image.filesystem.root, b"a")
        noise = image.filesystem.lookup(folder, b"noise")
        parts = image.filesystem.read(noise, 990_000, 50_000)
        assert b"".join(map(bytes, parts)) == NOISE[990_000:1_040_000]
    assert_sound(Reference(tmp_path / "sealed"))


@pytest.mark.parametrize("packing", ["gzip", "zstd", "tar"])
def test_changed_layers_are_refused_where_they_are_read(tmp_path, key, packing, tally):
    indexed(stock_image(tmp_path / "stock", BASE, packing=[packing]), tmp_path / "sealed", key)
    reference = Reference(tmp_path / "sealed")
    (blob,) = find_image(reference).manifest.blobs
    path = blob_path(reference.folder, blob.digest)
    good = path.read_bytes()
    refused = 0
    for position in range(700, len(good) - 1024, len(good) // 24):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :])
        with opened(reference) as image:
            for name, content in ((b"noise", NOISE), (b"text", b"text " * 400_000)):
                folder = image.filesystem.lookup(image.filesystem.root, b"a")
                nid = image.filesystem.lookup(folder, name)
                try:
                    data = b"".join(map(bytes, image.filesystem.read(nid, 0, len(content))))
                except AuthError:
                    refused += 1
                else:
                    assert data == content
    assert refused >= 20
    tally("changed bytes of indexed layers refused", refused)
    for data in (b"", good[:100], good[: len(good) // 2], b"\0" * len(good)):
        path.write_bytes(data)
        with pytest.raises(RafsError), opened(reference) as image:
            read_image(image.filesystem)


def test_layer_of_another_image_is_refused(tmp_path, key):
    indexed(stock_image(tmp_path / "stock", BASE), tmp_path / "sealed", key)
    reference = Reference(tmp_path / "sealed")
    image = find_image(reference)
    path = blob_path(reference.folder, image.manifest_digest)
    manifest = json.loads(path.read_bytes())
    manifest["layers"][0]["digest"] = digest_of(b"other")
    data = json.dumps(manifest).encode()
    blob_path(reference.folder, digest_of(data)).write_bytes(data)
    with (
        pytest.raises(RafsError, match="layers are not the blobs"),
        opened(reference.pinned(digest_of(data))),
    ):
        pass


def test_independent_reader_finds_the_same(tmp_path, key):
    for packing in ("gzip", "zstd", "tar"):
        source = stock_image(tmp_path / packing, BASE, UPPER, packing=[packing] * 2)
        indexed(source, tmp_path / f"sealed-{packing}", key)
        tree, config = verifier.verify(tmp_path / f"sealed-{packing}", "latest", key)
        assert tree["a/noise"]["sha256"] == digest_of(NOISE).removeprefix("sha256:")
        assert sorted(tree) == ["", "a", "a/linked", "a/noise", "a/text", "b"]
        assert config["architecture"] == "amd64"


def test_recipients_change_and_layers_stay(tmp_path, key):
    indexed(stock_image(tmp_path / "stock", BASE), tmp_path / "sealed", key)
    other = tmp_path / "other"
    assert rafsfs("keys", "new", other).returncode == 0
    done = rafsfs("keys", "rewrap", tmp_path / "sealed", "--key", key, "--add", other)
    assert done.returncode == 0, done.stderr
    done = rafsfs("cat", tmp_path / "sealed", "/a/gone", "--key", other)
    assert (done.returncode, done.stdout) == (0, "x")
    assert_sound(Reference(tmp_path / "sealed"))


def test_index_is_no_chunk_dictionary(tmp_path, key):
    indexed(stock_image(tmp_path / "stock", BASE), tmp_path / "sealed", key)
    (tmp_path / "tree").mkdir()
    words = ["--key", key, "--chunk-dict", tmp_path / "sealed"]
    done = rafsfs("build", tmp_path / "tree", tmp_path / "built", *words)
    assert done.returncode == 8 and "index" in done.stderr, done.stderr


def test_what_can_only_be_converted_says_so(tmp_path, key):
    def refused(source):
        done = rafsfs("index", source, tmp_path / "refused", "--key", key)
        assert done.returncode == 8 and "rafsfs convert" in done.stderr, done.stderr
        assert not (tmp_path / "refused").exists()

    refused(stock_image(tmp_path / "twice", BASE, layer(link("kept", "a/text")), BASE))
    archive = tmp_path / "archive.tar"
    source = stock_image(tmp_path / "stock", BASE)
    subprocess.run(["skopeo", "copy", "-q", f"oci:{source}", f"docker-archive:{archive}"], check=True)
    refused(f"docker-archive:{archive}")
    sparse = io.BytesIO()
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        out.seek(1 << 20)
        out.write(b"end")
    command = ["tar", "--sparse", "--format=pax", "-C", tmp_path, "-c", "sparse"]
    sparse.write(subprocess.run(command, check=True, capture_output=True).stdout)
    refused(stock_image(tmp_path / "sparse-stock", sparse.getvalue()))


def test_registry_gets_no_layer_twice_and_mounts_read_lazily(tmp_path, key):
    with registry(tmp_path / "registry") as there:
        plain, index = there.reference("tests/app", "v1"), there.reference("tests/app", "v1-index")
        source = stock_image(tmp_path / "stock", BASE, UPPER)
        words = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{source}", str(plain)]
        subprocess.run(words, check=True)
        indexed(plain, index, key)
        with open_sealed(index, KeyRing(symmetric=(KEY,)), TrustPolicy()) as image:
            assert len(read_image(image.filesystem)) == 6
        (tmp_path / "mnt").mkdir()
        words = ("--key", key, "--node-cache", tmp_path / "cache", "--prefetch", "none")
        with fault_proxy(there.host) as proxy:
            through = f"docker://{proxy.host}/tests/app:v1-index"
            with mounting(through, tmp_path / "mnt", *words) as directory:
                assert (directory / "b").read_bytes() == b"upper" * 1000
                with (directory / "a/noise").open("rb") as file:
                    file.seek(2_000_000)
                    assert file.read(4096) == NOISE[2_000_000:2_004_096]
                assert proxy.moved_bytes < len(NOISE) / 2, "the layer has more than NOISE"
                assert (directory / "a/noise").read_bytes() == NOISE
                told = json.loads(rafsfs("stats", directory, "--json").stdout)["remote"]
                assert told["node_cache"]["stored_bytes"] >= len(NOISE)
                assert told["fetched_bytes"] >= len(NOISE)
            assert proxy.moved_bytes < 1.3 * len(NOISE)
            with mounting(through, tmp_path / "mnt", *words) as directory:
                proxy.requests.clear()
                assert (directory / "a/noise").read_bytes() == NOISE
                assert not proxy.ranges, "the node has it"
        done = ["skopeo", "copy", "-q", "--src-tls-verify=false", str(plain), f"oci:{tmp_path / 'again'}:v1"]
        subprocess.run(done, check=True)
