"""Another prefetch list for an image that is there: what changes, what stays, who can still open it."""

import json
from dataclasses import replace

import pytest
from attacks.surgery import read_image
from support.images import assert_sound

from rafsfs.build.builder import build_image
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.optimize import optimize
from rafsfs.build.options import BuildOptions
from rafsfs.build.rewrap import read_plain_head, rewrap
from rafsfs.errors import BadSignature, BuildError, DigestMismatch, RafsError, StoreError
from rafsfs.format.bootstrap import PAGE_ENTRY
from rafsfs.format.chunk import Suite
from rafsfs.format.trace import TracedRange
from rafsfs.fs.image import open_sealed
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import (
    EcdsaP256SigningKey,
    Ed25519SigningKey,
    Passphrase,
    SymmetricKey,
    X25519Identity,
)
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.signature import SignaturePolicy

KEY = SymmetricKey(bytes(range(32)))
RING = KeyRing(symmetric=(KEY,))
SECRET = SymmetricKey(bytes(range(32, 64)))
SIGNER = Ed25519SigningKey(bytes(range(64, 96)))
ANY = TrustPolicy()
CHUNK = 4096
FIRST = [TracedRange(b"large", 2 * CHUNK, 1), TracedRange(b"small", 0, 10)]
SECOND = [TracedRange(b"large", 0, CHUNK)]
SUITES = list(Suite)


def build(folder, name="image", **options):
    tree = folder / "tree"
    if not tree.exists():
        tree.mkdir()
        (tree / "large").write_bytes(b"".join(b"%8d" % number for number in range(2000)))
        (tree / "small").write_bytes(b"small")
    suite = options.get("suite", Suite.AES_256_GCM)
    traced = options.pop("traced", ())
    chosen = {"recipients": (KEY,) if suite.encrypts else (), "chunk_size": CHUNK, "page_size": 4096}
    source = DirectorySource(tree)
    build_image(source, Reference(folder / name), BuildOptions(**(chosen | options)), traced=traced)
    source.close()
    return Reference(folder / name)


def ring_of(suite):
    return RING if suite.encrypts else KeyRing()


def optimized(reference, ranges, ring=RING, **options):
    with open_sealed(reference, ring, ANY) as image:
        return optimize(image, reference.tag, ranges, **options)


def runs_of(reference, ring=RING, policy=ANY):
    with open_sealed(reference, ring, policy) as image:
        return tuple(image.prefetch_runs())


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=SUITES, ids=lambda suite: suite.name)
def suite(request):
    return request.param


def test_list_is_there_and_all_else_as_it_was(suite, tmp_path):
    reference = build(tmp_path, suite=suite)
    ring = ring_of(suite)
    contents = read_image(reference, ring)
    old, old_files = find_image(reference), files(reference.folder)
    assert runs_of(reference, ring) == ()
    done = optimized(reference, FIRST, ring)
    new = find_image(reference)
    assert new.manifest_digest == done.manifest_digest
    assert new.manifest.blobs == old.manifest.blobs
    assert runs_of(reference, ring) == done.plan.runs != ()
    assert read_image(reference, ring) == contents
    assert_sound(reference)
    changed = {path for path, data in files(reference.folder).items() if old_files.get(path) != data}
    assert len(changed) == 4  # index, manifest, config, bootstrap
    before, after = read_plain_head(old), read_plain_head(new)
    assert after.envelope.recipients == before.envelope.recipients
    kept = replace(
        after.superblock,
        prefetch=before.superblock.prefetch,
        page_count=before.superblock.page_count,
        page_table_digest=before.superblock.page_table_digest,
        page_salt=before.superblock.page_salt,
        config=before.superblock.config,
        image_id=before.superblock.image_id,
    )
    assert kept == before.superblock
    assert (after.superblock.image_id == before.superblock.image_id) == suite.encrypts


def test_same_image_and_trace_give_the_same_bytes(suite, tmp_path):
    reference = build(tmp_path, suite=suite)
    ring = ring_of(suite)
    original = reference.pinned(find_image(reference).manifest_digest)
    first = optimized(reference, FIRST, ring)
    second = optimized(reference, SECOND, ring)
    assert second.manifest_digest != first.manifest_digest
    assert optimized(reference, FIRST, ring).manifest_digest == first.manifest_digest
    cleared = optimized(reference, (), ring)
    assert runs_of(reference, ring) == ()
    assert cleared.manifest_digest == original.digest  # as it was before there was any list


def test_building_with_the_trace_is_the_same_as_optimizing_later(tmp_path):
    later = build(tmp_path, "later", suite=Suite.INTEGRITY_ONLY)
    done = optimized(later, FIRST, KeyRing())
    at_once = build(tmp_path, "at once", suite=Suite.INTEGRITY_ONLY, traced=FIRST)
    assert find_image(at_once).manifest_digest == done.manifest_digest


@pytest.mark.parametrize("options", [{}, {"dedup_secret": SECRET}], ids=["random keys", "convergent"])
@pytest.mark.parametrize("suite", [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305], ids=lambda suite: suite.name)
def test_no_page_key_and_number_meet_two_messages(suite, options, tmp_path):
    reference = build(tmp_path, suite=suite, **options)
    sealed = {}
    for ranges in (None, FIRST, SECOND, FIRST, ()):
        if ranges is not None:
            optimized(reference, ranges)
        with open_sealed(reference, RING, ANY) as image:
            table = image.opened.page_table
            for number in range(table.page_count):
                digest = table.entry(number).digest
                assert sealed.setdefault((image.opened.page_key, number), digest) == digest
    assert len({key for key, _ in sealed}) == 3


def test_everybody_who_could_open_it_still_can(tmp_path):
    identity, phrase = X25519Identity.generate(), Passphrase(b"horse")
    reference = build(tmp_path, recipients=(KEY, identity.recipient(), phrase))
    optimized(reference, FIRST, KeyRing(identities=(identity,)))
    contents = read_image(reference, RING)
    for ring in (KeyRing(identities=(identity,)), KeyRing(passphrases=(phrase,))):
        assert read_image(reference, ring) == contents
    other = SymmetricKey.generate()
    rewrap(find_image(reference), reference.tag, RING, policy=ANY, add=[other], remove=[KEY.key_id])
    assert runs_of(reference, KeyRing(symmetric=(other,)))


def test_signed_image_is_signed_again_or_left_alone(tmp_path):
    other = EcdsaP256SigningKey.generate()
    reference = build(tmp_path, signers=(SIGNER, other))
    before = files(reference.folder)
    with pytest.raises(BuildError, match=r"signed.*--sign FILE.*--drop-signatures"):
        optimized(reference, FIRST)
    assert files(reference.folder) == before
    done = optimized(reference, FIRST, signers=[SIGNER])
    assert done.signatures_gone == ((other.family, other.key_id),)
    assert runs_of(reference, policy=TrustPolicy(SignaturePolicy.all_of([SIGNER.public()])))
    with pytest.raises(BadSignature):
        runs_of(reference, policy=TrustPolicy(SignaturePolicy.all_of([other.public()])))


def test_signatures_are_dropped_when_that_is_said(tmp_path):
    reference = build(tmp_path, signers=(SIGNER,))
    done = optimized(reference, FIRST, drop_signatures=True)
    assert done.signatures_gone == ((SIGNER.family, SIGNER.key_id),)
    assert runs_of(reference)
    with pytest.raises(BadSignature):
        runs_of(reference, policy=TrustPolicy(SignaturePolicy.all_of([SIGNER.public()])))


def test_unsigned_image_can_be_signed_on_the_way(tmp_path):
    reference = build(tmp_path)
    assert optimized(reference, FIRST, signers=[SIGNER]).signatures_gone == ()
    assert runs_of(reference, policy=TrustPolicy(SignaturePolicy.all_of([SIGNER.public()])))


def test_older_image_stays_for_those_who_pinned_it(tmp_path):
    reference = build(tmp_path)
    pinned = reference.pinned(find_image(reference).manifest_digest)
    optimized(reference, FIRST)
    assert runs_of(pinned) == ()


def test_damaged_metadata_are_not_sealed_again(tmp_path):
    reference = build(tmp_path)
    bootstrap = find_image(reference).manifest.bootstrap
    path = blob_path(reference.folder, bootstrap.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = files(reference.folder)
    with pytest.raises(DigestMismatch):
        optimized(reference, FIRST)
    assert files(reference.folder) == before


def test_image_that_was_replaced_meanwhile(tmp_path):
    reference = build(tmp_path)
    with open_sealed(reference, RING, ANY) as image:
        (tmp_path / "tree" / "new").touch()
        build(tmp_path)
        before = files(reference.folder)
        with pytest.raises(StoreError, match="replaced by somebody else"):
            optimize(image, reference.tag, FIRST)
    assert files(reference.folder) == before


def test_every_byte_of_the_list_is_sealed(suite, tmp_path, tally):
    """The page that holds it, changed byte by byte where it is stored: the list is refused, never another."""
    reference = build(tmp_path, suite=suite)
    ring = ring_of(suite)
    optimized(reference, FIRST, ring)
    stored = find_image(reference)
    path = blob_path(reference.folder, stored.manifest.bootstrap.digest)
    with open_sealed(reference, ring, ANY) as image:
        section, page_size = image.opened.superblock.prefetch, image.opened.superblock.page_size
        entry = image.opened.page_table.entry(section.offset // page_size)
        assert section.offset // page_size == (section.offset + section.length - 1) // page_size
        pages_start = path.stat().st_size - sum(
            image.opened.page_table.entry(number).encoded_length
            for number in range(image.opened.page_table.page_count)
        )
    data = path.read_bytes()
    assert PAGE_ENTRY.pack(entry) in data
    start = pages_start + entry.encoded_offset
    with path.open("r+b") as file:
        for offset in range(start, start + entry.encoded_length):
            for value in (data[offset] ^ 1, data[offset] ^ 0x80):
                file.seek(offset)
                file.write(bytes((value,)))
                file.flush()
                with pytest.raises(RafsError):
                    runs_of(reference, ring)
            file.seek(offset)
            file.write(data[offset : offset + 1])
    assert path.read_bytes() == data
    tally("byte changes in a page with a prefetch list refused", 2 * entry.encoded_length)


def test_documents_lead_to_the_new_bootstrap(tmp_path):
    reference = build(tmp_path)
    optimized(reference, FIRST)
    stored = find_image(reference)
    config = json.loads(blob_path(reference.folder, stored.manifest.config.digest).read_bytes())
    layers = [*stored.manifest.blobs, stored.manifest.bootstrap]
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in layers]
