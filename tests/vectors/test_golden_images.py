"""Images that were made once and must stay readable, by us and by a reader that knows nothing of our code."""

import ast
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import zstandard
from support.trees import assert_same_tree, expected, read_image
from vectors import golden, verifier

from rafsfs import open_image
from rafsfs.errors import BadSignature, RafsError, WrongKey
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.image import open_sealed
from rafsfs.store.oci_layout import find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import Ed25519SigningKey, KeyRing, load_key, save_key
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.signature import SignaturePolicy

FOLDER = golden.VERSION_1
CASES = [(suite, tag) for suite in golden.SUITES for tag in golden.PLANS]
SEALED = [suite for suite, number in golden.SUITES.items() if number.encrypts]
VERIFY_KEY = golden.SIGNING_KEY.public()


def recorded(tag):
    return json.loads((FOLDER / f"{tag}.json").read_text())


@pytest.fixture
def key(tmp_path):
    """git keeps no modes, and keys that others may read are refused."""
    path = tmp_path / "key"
    shutil.copyfile(FOLDER / golden.KEY_FILE, path)
    path.chmod(0o600)
    return path


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_verifier_imports_nothing_of_ours():
    tree = ast.parse(Path(verifier.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Name):
            assert node.id not in {"__import__", "exec", "eval"}
    assert imported - set(sys.stdlib_module_names) == {"blake3", "cryptography", "msgpack", "zstandard"}
    assert not imported & {"importlib", "runpy", "subprocess", "ctypes"}


def test_vectors_are_small():
    assert sum(len(data) for data in files_of(FOLDER).values()) < golden.BYTES_MAX


@pytest.mark.parametrize("tag", golden.PLANS)
def test_record_is_what_the_plan_says(tag):
    """Else a change of the plan would change what the old images are said to hold."""
    assert golden.described(golden.PLANS[tag]) == recorded(tag)


@pytest.mark.parametrize(("suite", "tag"), CASES)
def test_verifier_finds_what_is_recorded(suite, tag, key):
    verify_key = VERIFY_KEY.public_key().public_bytes_raw()
    found = verifier.verify(FOLDER / suite, tag, key, verify_key)
    assert found == (recorded(tag), golden.CONFIGS[tag])


@pytest.mark.parametrize(("suite", "tag"), CASES)
def test_prefetch_list_is_what_is_recorded(suite, tag):
    key = verifier.read_key(FOLDER / golden.KEY_FILE) if suite in SEALED else None
    _, data, name, _ = verifier.open_manifest(FOLDER / suite, tag)
    runs = verifier.prefetch_list(verifier.Bootstrap(data, name, key, None))
    assert [list(run) for run in runs] == golden.PREFETCH[tag]


@pytest.mark.parametrize(("suite", "tag"), CASES)
def test_our_reader_finds_what_is_recorded(suite, tag, tmp_path, key):
    save_key(VERIFY_KEY, tmp_path / "public")
    keys = [key] if suite in SEALED else []
    with open_image(
        f"{FOLDER / suite}:{tag}", keys=keys, verify_keys=[tmp_path / "public"], min_release=1
    ) as image:
        filesystem: FileSystem = image.filesystem
        assert image.name == "golden"
        assert image.sealed.config().document == golden.CONFIGS[tag]
        assert_same_tree(expected(golden.PLANS[tag]), read_image(filesystem))


@pytest.mark.parametrize("suite", SEALED)
def test_second_image_takes_only_some_chunks_of_the_first(suite):
    keys = KeyRing(symmetric=(golden.KEY,))
    with (
        open_sealed(Reference(FOLDER / suite, "first"), keys, TrustPolicy()) as first,
        open_sealed(Reference(FOLDER / suite, "second"), keys, TrustPolicy()) as second,
    ):
        (whole,), (part, own) = first.opened.superblock.blobs, second.opened.superblock.blobs
        assert part.blob_id == whole.blob_id
        assert 0 < part.chunk_count < whole.chunk_count
        assert own.chunk_count


@pytest.mark.parametrize("suite", SEALED)
def test_other_keys_are_refused(suite):
    reference = Reference(FOLDER / suite, "first")
    with pytest.raises(WrongKey):
        open_sealed(reference, KeyRing(symmetric=(golden.DEDUP_SECRET,)), TrustPolicy())
    policy = TrustPolicy(SignaturePolicy.all_of([Ed25519SigningKey(bytes(32)).public()]))
    with pytest.raises(BadSignature):
        open_sealed(reference, KeyRing(symmetric=(golden.KEY,)), policy)


def test_key_file_holds_the_key_and_says_that_it_is_none(key):
    assert load_key(key) == golden.KEY
    assert "test key" in key.read_text().lower()


def refused(call, *arguments):
    # any exception will do: it is a reader for good images, and must only not believe bad ones
    with pytest.raises(Exception):  # noqa: B017
        call(*arguments)


@pytest.mark.parametrize("suite", golden.SUITES)
def test_verifier_refuses_changed_bytes_by_what_is_sealed(suite, tally):
    """Without the digests of the OCI layout, which whoever changes bytes can change, too."""
    (blob,), data, name, _ = verifier.open_manifest(FOLDER / suite, "first")
    key = verifier.read_key(FOLDER / golden.KEY_FILE)
    envelope_start = 16 + int.from_bytes(data[12:16], "little") + 4
    envelope_end = envelope_start + int.from_bytes(data[envelope_start - 4 : envelope_start], "little")
    tried = 0
    for position in range(0, len(data), 29):
        if envelope_start <= position < envelope_end:
            continue  # names of keys are in there, and other recipients'
        changed = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        refused(verifier.Bootstrap, changed, name, key, None)
        tried += 1
    for position in range(0, len(blob), 61):
        changed = blob[:position] + bytes((blob[position] ^ 1,)) + blob[position + 1 :]
        bootstrap = verifier.Bootstrap(data, name, key, None)
        bootstrap.superblock["blobs"][0][0] = hashlib.sha256(changed).digest()
        refused(verifier.decoded_spaces, bootstrap, [changed])
        tried += 1
    tally("changed bytes that the independent verifier refused", tried)


@pytest.mark.parametrize("suite", golden.SUITES)
def test_same_tree_is_built_into_the_same_bytes_today(suite, tmp_path):
    """With another zstd the bytes differ, and with them keys and digests; then what is read counts."""
    golden.build_golden(tmp_path, golden.SUITES[suite])
    made_with = json.loads((FOLDER / "made-with.json").read_text())
    if made_with["zstd"] == list(zstandard.ZSTD_VERSION):
        assert files_of(tmp_path) == files_of(FOLDER / suite)
    for tag, plan in golden.PLANS.items():
        with open_sealed(
            Reference(tmp_path, tag), golden.keys_for(golden.SUITES[suite]), TrustPolicy()
        ) as image:
            assert_same_tree(expected(plan), read_image(image.filesystem))


def test_newer_version_is_refused_by_number(tmp_path):
    folder = tmp_path / "image"
    shutil.copytree(FOLDER / "integrity-only", folder)
    manifest = find_image(Reference(folder, "first")).manifest
    path = folder / "blobs" / "sha256" / manifest.bootstrap.digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(RafsError, match=r"version: expected 1, found 2.*update rafsfs") as caught:
        open_sealed(Reference(folder, "first"), KeyRing(), TrustPolicy())
    assert type(caught.value).__name__ == "UnsupportedVersion"
