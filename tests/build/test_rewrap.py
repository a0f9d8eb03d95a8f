"""Envelopes rewritten in place: who can open an image afterwards, who cannot, and what stays as it was."""

import json
import subprocess
from pathlib import Path

import pytest

from rafsfs.build.builder import build_image
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.optimize import optimize
from rafsfs.build.options import BuildOptions
from rafsfs.build.rewrap import add_signature, read_plain_head, rewrap, verify_head
from rafsfs.errors import (
    BadSignature,
    BuildError,
    DigestMismatch,
    KeyFileError,
    LengthMismatch,
    LimitExceeded,
    MacMismatch,
    RafsError,
    Rollback,
    StoreError,
    WrongKey,
)
from rafsfs.format import oci
from rafsfs.format.chunk import Suite
from rafsfs.format.trace import TracedRange
from rafsfs.fs.image import open_sealed
from rafsfs.limits import PASSPHRASE_RECIPIENTS_MAX, RECIPIENTS_MAX, SIGNATURES_MAX
from rafsfs.store.oci_layout import blob_path, find_image, read_index
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import (
    EcdsaP256SigningKey,
    Ed25519SigningKey,
    HybridIdentity,
    Passphrase,
    SymmetricKey,
    X25519Identity,
)
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.signature import SignaturePolicy

KEY = SymmetricKey(bytes(range(32)))
OTHER = SymmetricKey(bytes(range(32, 64)))
RING = KeyRing(symmetric=(KEY,))
ANY = TrustPolicy()
CACHE_BYTES = 1 << 20


def build(folder, **options):
    tree = folder / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content " * 1000)
    options.setdefault("recipients", (KEY,))
    source = DirectorySource(tree)
    build_image(source, Reference(folder / "image"), BuildOptions(**options))
    source.close()
    return Reference(folder / "image")


@pytest.fixture
def image(tmp_path):
    return build(tmp_path)


def reads(image, keyring, policy=ANY):
    with open_sealed(image, keyring, policy, cache_bytes=CACHE_BYTES) as opened:
        filesystem = opened.filesystem
        nid = filesystem.lookup(filesystem.root, b"file")
        return b"".join(filesystem.read(nid, 0, 8000)) == b"content " * 1000


def recipients(image):
    return [item.key_id for item in read_plain_head(find_image(image)).envelope.recipients]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def signed_by(*signers):
    return TrustPolicy(signatures=SignaturePolicy.all_of([signer.public() for signer in signers]))


NEWCOMERS = {
    "symmetric": (OTHER, KeyRing(symmetric=(OTHER,))),
    "passphrase": (Passphrase(b"horse"), KeyRing(passphrases=(Passphrase(b"horse"),))),
}
for _identity in (X25519Identity.generate(), HybridIdentity.generate()):
    NEWCOMERS[_identity.family] = (_identity.recipient(), KeyRing(identities=(_identity,)))


@pytest.mark.parametrize(("key", "ring"), NEWCOMERS.values(), ids=NEWCOMERS)
def test_newcomer_can_open_the_image_and_so_can_the_others(image, key, ring):
    with pytest.raises(WrongKey):
        reads(image, ring)
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[key])
    assert reads(image, ring)
    assert reads(image, RING)


@pytest.mark.parametrize(("key", "ring"), NEWCOMERS.values(), ids=NEWCOMERS)
def test_key_is_exchanged_for_another(image, key, ring):
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[key], remove=[KEY.key_id])
    assert reads(image, ring)
    with pytest.raises(WrongKey):
        reads(image, RING)


def test_nothing_but_the_envelope_changes(image):
    before = find_image(image)
    old = files(image.folder)
    done = rewrap(before, image.tag, RING, policy=ANY, add=[OTHER])
    after = find_image(image)
    assert after.manifest_digest == done.manifest_digest
    assert after.manifest.blobs == before.manifest.blobs
    assert after.manifest.superblock_digest == before.manifest.superblock_digest
    changed = {path for path, data in files(image.folder).items() if old.get(path) != data}
    new = (after.manifest_digest, after.manifest.config.digest, after.manifest.bootstrap.digest)
    expected = {blob_path(Path(), digest) for digest in new} | {Path("index.json")}
    assert changed == expected
    assert old.items() - files(image.folder).items() == {(Path("index.json"), old[Path("index.json")])}
    config = json.loads(blob_path(image.folder, after.manifest.config.digest).read_bytes())
    layers = [*after.manifest.blobs, after.manifest.bootstrap]
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in layers]
    old_head, head = read_plain_head(before), read_plain_head(after)
    assert (old_head.stored.superblock, old_head.envelope.seal) == (
        head.stored.superblock,
        head.envelope.seal,
    )


@pytest.mark.integration
def test_rewrapped_image_is_an_oci_image_that_skopeo_copies(image, tmp_path):
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
    copy = tmp_path / "copy"
    command = ["skopeo", "copy", f"oci:{image.folder}:latest", f"oci:{copy}:latest"]
    subprocess.run(command, check=True, capture_output=True)
    assert reads(Reference(copy), KeyRing(symmetric=(OTHER,)))


def test_what_others_wrote_into_config_manifest_and_index_stays(image):
    """An image that was converted from another keeps its entrypoint, and its notes."""
    stored = find_image(image)
    folder = image.folder

    def store(value):
        data = oci.dump_json(value)
        blob_path(folder, oci.digest_of(data)).write_bytes(data)
        return {"digest": oci.digest_of(data), "size": len(data)}

    config = json.loads(blob_path(folder, stored.manifest.config.digest).read_bytes())
    config["config"] = {"Entrypoint": ["/bin/sh"], "Labels": {"a": "b"}}
    manifest = json.loads(blob_path(folder, stored.manifest_digest).read_bytes())
    manifest["config"] |= store(config)
    manifest["annotations"]["org.opencontainers.image.title"] = "mine"
    manifest["layers"][-1]["annotations"] = {"x": "y"}
    index = json.loads((folder / "index.json").read_bytes())
    index["manifests"][0] |= store(manifest)
    (folder / "index.json").write_bytes(oci.dump_json(index))

    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
    after = find_image(image)
    new_manifest = json.loads(blob_path(folder, after.manifest_digest).read_bytes())
    new_config = json.loads(blob_path(folder, after.manifest.config.digest).read_bytes())
    assert new_config["config"] == config["config"]
    assert new_manifest["annotations"] == manifest["annotations"]
    assert new_manifest["layers"][-1]["annotations"] == {"x": "y"}


def opened_by(folder, ring):
    """Digests of all manifests in a folder, listed in its index or not, of images that ``ring`` opens."""
    found = []
    for path in (folder / "blobs" / "sha256").iterdir():
        try:
            if reads(Reference(folder).pinned(f"sha256:{path.name}"), ring):
                found.append(f"sha256:{path.name}")
        except RafsError:
            continue
    return found


def test_removal_leaves_nothing_in_the_folder_that_the_old_key_opens(image):
    """The key was there in four versions of the image, of which the index lists only the last."""
    new = KeyRing(symmetric=(OTHER,))
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
    add_signature(find_image(image), image.tag, Ed25519SigningKey.generate(), None, policy=ANY)
    with open_sealed(image, RING, ANY, cache_bytes=CACHE_BYTES) as opened:
        optimize(opened, image.tag, [TracedRange(b"file", 0, 4096)], drop_signatures=True)
    assert len(opened_by(image.folder, RING)) == 4
    done = rewrap(find_image(image), image.tag, new, policy=ANY, remove=[KEY.key_id])
    assert done.kept == ()
    assert recipients(image) == [OTHER.key_id]
    assert opened_by(image.folder, RING) == []
    assert opened_by(image.folder, new) == [done.manifest_digest]
    assert len(list((image.folder / "blobs" / "sha256").iterdir())) == 4


def test_removal_deletes_a_bootstrap_that_no_manifest_leads_to(image):
    """Who has the folder could write a manifest for it."""
    old = find_image(image)
    rewrap(old, image.tag, RING, policy=ANY, add=[OTHER])
    blob_path(image.folder, old.manifest_digest).unlink()
    rewrap(find_image(image), image.tag, KeyRing(symmetric=(OTHER,)), policy=ANY, remove=[KEY.key_id])
    assert not blob_path(image.folder, old.manifest.bootstrap.digest).exists()


def test_removal_leaves_other_images_of_the_same_key_alone(image, tmp_path):
    other = Reference(image.folder, "other")
    source = DirectorySource(tmp_path / "tree")
    for _ in range(2):  # the tag moves: nothing leads to the first one
        pinned = other.pinned(build_image(source, other, BuildOptions(recipients=(KEY,))).manifest_digest)
    source.close()
    unlisted = opened_by(image.folder, RING)
    gone = find_image(image).manifest_digest
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER], remove=[KEY.key_id])
    assert sorted(opened_by(image.folder, RING)) == sorted(set(unlisted) - {gone})
    assert reads(pinned, RING)


def test_removal_says_so_when_an_earlier_copy_stays_under_another_tag(image):
    """As after `skopeo copy` or a build with two tags: not the image before this one, but one before that."""
    old = find_image(image)
    add_tag(image.folder, "other")
    rewrap(old, image.tag, RING, policy=ANY, add=[OTHER])
    done = rewrap(find_image(image), image.tag, KeyRing(symmetric=(OTHER,)), policy=ANY, remove=[KEY.key_id])
    assert old.manifest.bootstrap.digest in done.kept
    assert reads(Reference(image.folder, "other"), RING)


def add_tag(folder, tag):
    index = json.loads((folder / "index.json").read_bytes())
    index["manifests"].append(index["manifests"][0] | {"annotations": {oci.ANNOTATION_TAG: tag}})
    (folder / "index.json").write_bytes(oci.dump_json(index))


def test_removal_deletes_the_superseded_bootstrap_and_its_documents(image):
    old = find_image(image)
    done = rewrap(old, image.tag, RING, policy=ANY, add=[OTHER], remove=[KEY.key_id])
    assert done.kept == ()
    gone = (old.manifest_digest, old.manifest.config.digest, old.manifest.bootstrap.digest)
    assert not any(blob_path(image.folder, digest).exists() for digest in gone)
    assert len(list((image.folder / "blobs" / "sha256").iterdir())) == 4


def test_removal_keeps_what_another_tag_still_leads_to_and_says_so(image):
    old = find_image(image)
    add_tag(image.folder, "other")
    done = rewrap(old, image.tag, RING, policy=ANY, add=[OTHER], remove=[KEY.key_id])
    assert old.manifest.bootstrap.digest in done.kept
    assert reads(Reference(image.folder, "other"), RING)


def test_adding_keeps_the_image_that_others_pinned(image):
    pinned = image.pinned(find_image(image).manifest_digest)
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
    assert reads(pinned, RING)


def test_recipient_that_is_added_again_is_there_once_and_works(image):
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
    assert sorted(recipients(image)) == sorted([KEY.key_id, OTHER.key_id])
    assert reads(image, KeyRing(symmetric=(OTHER,)))


def refused(image, error, words, ring=RING, policy=ANY, **change):
    before = files(image.folder)
    with pytest.raises(error, match=words):
        rewrap(find_image(image), image.tag, ring, policy=policy, **change)
    assert files(image.folder) == before


def test_last_recipient_stays(image):
    refused(image, KeyFileError, "nobody could open", remove=[KEY.key_id])


def test_stranger_cannot_be_removed(image):
    refused(image, KeyFileError, OTHER.key_id.hex(), remove=[OTHER.key_id])


def test_without_a_key_of_the_image_nobody_is_added(image):
    refused(image, WrongKey, "no given key", KeyRing(symmetric=(OTHER,)), add=[OTHER])


def test_more_recipients_than_readers_take_are_refused(image):
    many = [SymmetricKey(bytes([n] * 32)) for n in range(100, 100 + RECIPIENTS_MAX)]
    refused(image, LimitExceeded, "too many recipients", add=many)


def test_more_passphrases_than_readers_take_are_refused(tmp_path):
    phrases = [Passphrase(b"%d" % number) for number in range(PASSPHRASE_RECIPIENTS_MAX)]
    image = build(tmp_path, recipients=(KEY, *phrases))
    refused(image, LimitExceeded, "too many passphrase", add=[Passphrase(b"one more")])


def test_unencrypted_image_has_nobody_to_add(tmp_path):
    image = build(tmp_path, suite=Suite.INTEGRITY_ONLY, recipients=())
    refused(image, KeyFileError, "unencrypted", KeyRing(), add=[OTHER])


def test_policy_holds_before_anybody_is_added(image):
    refused(image, Rollback, "older", policy=TrustPolicy(min_release=1), add=[OTHER])
    refused(image, BadSignature, "not signed", policy=signed_by(Ed25519SigningKey.generate()), add=[OTHER])


def test_damaged_bootstrap_is_not_rewritten(image):
    path = blob_path(image.folder, find_image(image).manifest.bootstrap.digest)
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        before = files(image.folder)
        with pytest.raises(RafsError):
            rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER])
        assert files(image.folder) == before
    path.write_bytes(sound[:-1])
    refused(image, LengthMismatch, "length", add=[OTHER])
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    refused(image, DigestMismatch, "bootstrap is damaged", add=[OTHER])


def test_image_that_was_replaced_meanwhile_is_left_alone(image, tmp_path):
    old = find_image(image)
    rewrap(old, image.tag, RING, policy=ANY, add=[OTHER])
    before = files(image.folder)
    with pytest.raises(StoreError, match="meanwhile"):
        rewrap(old, image.tag, RING, policy=ANY, add=[X25519Identity.generate().recipient()])
    assert files(image.folder) == before


# --- Signatures ---------------------------------------------------------------------------------------------

SIGNERS = {"ed25519": Ed25519SigningKey, "ecdsa-p256": EcdsaP256SigningKey}


@pytest.mark.parametrize("kind", SIGNERS.values(), ids=SIGNERS)
def test_signature_is_added_and_holds(image, kind):
    signer = kind.generate()
    policy = signed_by(signer)
    with pytest.raises(BadSignature):
        reads(image, RING, policy)
    add_signature(find_image(image), image.tag, signer, None, policy=ANY)
    verify_head(read_plain_head(find_image(image)), policy)
    assert reads(image, RING, policy)
    with pytest.raises(BadSignature):
        verify_head(read_plain_head(find_image(image)), signed_by(kind.generate()))


def test_signatures_of_several_keys_stand_beside_each_other_and_survive_rewrapping(image):
    signers = [Ed25519SigningKey.generate(), EcdsaP256SigningKey.generate()]
    for signer in signers:
        add_signature(find_image(image), image.tag, signer, RING, policy=ANY)
    rewrap(find_image(image), image.tag, RING, policy=ANY, add=[OTHER], remove=[KEY.key_id])
    assert reads(image, KeyRing(symmetric=(OTHER,)), signed_by(*signers))


def test_signing_twice_leaves_one_signature(image):
    signer = EcdsaP256SigningKey.generate()
    for _ in range(2):
        add_signature(find_image(image), image.tag, signer, None, policy=ANY)
    head = read_plain_head(find_image(image))
    assert [signature.key_id for signature in head.envelope.signatures] == [signer.key_id]


def test_more_signatures_than_readers_take_are_refused(tmp_path):
    signers = [Ed25519SigningKey.generate() for _ in range(SIGNATURES_MAX)]
    image = build(tmp_path, signers=tuple(signers))
    before = files(image.folder)
    with pytest.raises(BuildError, match="as many signatures"):
        add_signature(find_image(image), image.tag, Ed25519SigningKey.generate(), None, policy=ANY)
    assert files(image.folder) == before
    add_signature(find_image(image), image.tag, signers[3], None, policy=ANY)
    assert reads(image, RING, signed_by(*signers))


def test_image_that_was_exchanged_is_not_signed_by_who_brings_its_key(tmp_path, image):
    """Somebody with the folder, but no key, changes the superblock's release and the digests above."""
    stored = find_image(image)
    path = blob_path(image.folder, stored.manifest.bootstrap.digest)
    head = read_plain_head(stored).stored
    forged = head.superblock.replace(b"\xa7release\x00", b"\xa7release\x01")
    assert forged != head.superblock
    data = path.read_bytes().replace(head.superblock, forged)
    _store_forged(image, data, forged)
    before = files(image.folder)
    with pytest.raises(MacMismatch, match="superblock was changed"):
        add_signature(find_image(image), image.tag, Ed25519SigningKey.generate(), RING, policy=ANY)
    assert files(image.folder) == before


def _store_forged(image, bootstrap, superblock):
    stored = find_image(image)
    manifest = json.loads(blob_path(image.folder, stored.manifest_digest).read_bytes())
    manifest["annotations"][oci.ANNOTATION_SUPERBLOCK] = oci.digest_of(superblock)
    manifest["layers"][-1] |= {"digest": oci.digest_of(bootstrap), "size": len(bootstrap)}
    text = oci.dump_json(manifest)
    for data in (bootstrap, text):
        blob_path(image.folder, oci.digest_of(data)).write_bytes(data)
    index = json.loads((image.folder / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": oci.digest_of(text), "size": len(text)}
    (image.folder / "index.json").write_bytes(oci.dump_json(index))
    assert read_index(image.folder)[0].digest == oci.digest_of(text)


def test_unencrypted_image_can_be_signed(tmp_path):
    image = build(tmp_path, suite=Suite.INTEGRITY_ONLY, recipients=())
    signer = Ed25519SigningKey.generate()
    add_signature(find_image(image), image.tag, signer, None, policy=ANY)
    assert reads(image, KeyRing(), signed_by(signer))


def test_expired_image_does_not_verify(tmp_path):
    signer = Ed25519SigningKey.generate()
    image = build(tmp_path, signers=(signer,), not_after=1)
    with pytest.raises(Rollback, match="expired"):
        verify_head(read_plain_head(find_image(image)), signed_by(signer))
