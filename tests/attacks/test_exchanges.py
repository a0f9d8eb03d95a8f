"""Parts of images exchanged, replayed or removed by whoever holds the bytes but no key (promises 2, 3, 5)."""

from dataclasses import replace

import pytest
from attacks.conftest import ENCRYPTING, SIGNER, keyring_for
from attacks.sealing import ForgedSection, seal
from attacks.surgery import (
    KEY,
    Layer,
    check_fails,
    fails,
    opened,
    put,
    read_image,
    take,
)
from support.images import build

from rafsfs.decode.pipeline import decode_page
from rafsfs.errors import (
    BadSignature,
    DigestMismatch,
    FormatError,
    MacMismatch,
    Rollback,
    TagNotFound,
    WrongKey,
)
from rafsfs.format.blob import TOC_ENTRY, parse_footer
from rafsfs.format.bootstrap import PAGE_ENTRY
from rafsfs.format.chunk import Suite
from rafsfs.format.superblock import Section
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.trust.keys import (
    Ed25519SigningKey,
    Ed25519VerifyKey,
    KeyRing,
    Passphrase,
    SymmetricKey,
    X25519Identity,
)
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.signature import SignaturePolicy, sign

SUITES = list(Suite)
SIGNED = TrustPolicy(signatures=SignaturePolicy.all_of((SIGNER.public(),)))


@pytest.fixture(params=SUITES, ids=lambda suite: suite.name)
def suite(request):
    return request.param


@pytest.fixture(params=ENCRYPTING, ids=lambda suite: suite.name)
def sealing(request):
    return request.param


def chunks_of(blob):
    """(offset, length) of each chunk of a blob, out of its plain table of contents."""
    footer = parse_footer(blob, len(blob))
    table = blob[footer.toc_offset : footer.toc_offset + footer.toc_length]
    return [(entry.encoded_offset, entry.encoded_length) for entry in TOC_ENTRY.iter_unpack(table)]


def swapped(data, first, second, length):
    """Exchange two ranges of the same length."""
    a, b = data[first : first + length], data[second : second + length]
    data = data[:first] + b + data[first + length :]
    return data[:second] + a + data[second + length :]


# --- Chunks and blobs ---------------------------------------------------------------------------------------


def test_chunks_swapped_within_a_blob(target, suite, tmp_path):
    image = target(suite)
    (blob,) = image.stored.blobs
    (first, length), (second, other) = chunks_of(blob.data)[:2]
    assert length == other
    data = swapped(blob.data, first, second, length)
    reference = put(replace(image.stored, blobs=(blob.changed(data),)), tmp_path)
    with pytest.raises(DigestMismatch, match="chunk id"):
        read_image(reference, image.keyring)


def test_chunks_swapped_in_the_blob_and_in_its_table_of_contents(target, suite, tmp_path):
    image = target(suite)
    (blob,) = image.stored.blobs
    (first, length), (second, _) = chunks_of(blob.data)[:2]
    toc = parse_footer(blob.data, len(blob.data)).toc_offset
    data = swapped(blob.data, first, second, length)
    data = swapped(data, toc + 12, toc + TOC_ENTRY.size + 12, 32)
    reference = put(replace(image.stored, blobs=(blob.changed(data),)), tmp_path)
    with pytest.raises(DigestMismatch, match="chunk id"):
        read_image(reference, image.keyring)


def test_a_table_of_contents_that_lies_moves_nothing(target, suite, tmp_path):
    """No reader goes by it, so it can only deceive those who hold no key; the digest of the blob tells."""
    image = target(suite)
    (blob,) = image.stored.blobs
    toc = parse_footer(blob.data, len(blob.data)).toc_offset
    data = swapped(blob.data, toc, toc + TOC_ENTRY.size, TOC_ENTRY.size)
    reference = put(replace(image.stored, blobs=(blob.changed(data),)), tmp_path)
    assert read_image(reference, image.keyring) == image.contents
    assert not check_fails(image.reference, image.keyring)
    assert check_fails(reference, image.keyring)


def test_blob_of_the_same_size_out_of_another_image(target, suite, tmp_path):
    image, other = target(suite), target(suite, seed=2)
    (blob,), (foreign,) = image.stored.blobs, other.stored.blobs
    assert blob.size == foreign.size and blob.data != foreign.data
    reference = put(replace(image.stored, blobs=(blob.changed(foreign.data),)), tmp_path)
    with pytest.raises(DigestMismatch, match="chunk id"):
        read_image(reference, image.keyring)


def test_manifest_that_names_another_images_blob(target, suite, tmp_path):
    image, other = target(suite), target(suite, seed=2)
    reference = put(replace(image.stored, blobs=other.stored.blobs), tmp_path)
    with pytest.raises(FormatError, match="layers are not the blobs"):
        read_image(reference, image.keyring)


@pytest.mark.parametrize("change", [-1, 1, None])
def test_manifest_with_more_or_fewer_blobs(target, suite, tmp_path, change):
    image = target(suite)
    blobs = image.stored.blobs
    wrong = {-1: (), 1: (*blobs, Layer.of(b"more")), None: blobs * 2}[change]
    reference = put(replace(image.stored, blobs=wrong), tmp_path)
    with pytest.raises(FormatError, match="layers are not the blobs"):
        read_image(reference, image.keyring)


def test_bootstrap_of_another_image(target, suite, tmp_path):
    image, other = target(suite), target(suite, seed=2)
    mixed = replace(other.stored, blobs=image.stored.blobs)
    with pytest.raises(FormatError, match="layers are not the blobs"):
        read_image(put(mixed, tmp_path), image.keyring)


# --- Pages and their table ----------------------------------------------------------------------------------


def test_pages_swapped(target, suite, tmp_path):
    image = target(suite)
    bootstrap = image.stored.bootstrap
    first, second = list(PAGE_ENTRY.iter_unpack(bootstrap.page_table))[:2]
    pages = bootstrap.pages
    a = pages[first.encoded_offset :][: first.encoded_length]
    b = pages[second.encoded_offset :][: second.encoded_length]
    moved = replace(bootstrap, pages=b + a + pages[len(a) + len(b) :])
    with pytest.raises(DigestMismatch, match="metadata page"):
        read_image(put(replace(image.stored, bootstrap=moved), tmp_path), image.keyring)


def test_pages_swapped_by_their_table(target, suite, tmp_path):
    image = target(suite)
    bootstrap = image.stored.bootstrap
    moved = replace(bootstrap, page_table=swapped(bootstrap.page_table, 0, PAGE_ENTRY.size, PAGE_ENTRY.size))
    with pytest.raises(DigestMismatch, match="page table"):
        read_image(put(replace(image.stored, bootstrap=moved), tmp_path), image.keyring)


@pytest.mark.parametrize("parts", [("page_table",), ("pages",), ("page_table", "pages")])
def test_pages_of_another_build(target, suite, tmp_path, parts):
    """An earlier build of the same tree, so that every length fits and only the bytes are others."""
    image, other = target(suite), target(suite, seed=2)
    foreign = {part: getattr(other.stored.bootstrap, part) for part in parts}
    mixed = replace(image.stored.bootstrap, **foreign)
    with pytest.raises(DigestMismatch):
        read_image(put(replace(image.stored, bootstrap=mixed), tmp_path), image.keyring)


def test_page_sealed_for_another_number_fails_its_mac(target, sealing, tmp_path):
    """Even if the page table were not sealed: the number is the nonce."""
    image = target(sealing)
    with opened(image.reference) as open_image:
        key = open_image.opened.page_key
    bootstrap = image.stored.bootstrap
    first = next(PAGE_ENTRY.iter_unpack(bootstrap.page_table))
    encoded = bootstrap.pages[: first.encoded_length]
    assert len(decode_page(encoded, first, 0, sealing, key, 4096)) == 4096
    with pytest.raises(MacMismatch):
        decode_page(encoded, first, 1, sealing, key, 4096)


# --- Superblock and envelope --------------------------------------------------------------------------------


def test_envelope_of_another_image(target, sealing, tmp_path):
    image, other = target(sealing), target(sealing, seed=2)
    mixed = replace(image.stored.bootstrap, envelope=other.stored.bootstrap.envelope)
    with pytest.raises(WrongKey, match="envelope does not belong"):
        read_image(put(replace(image.stored, bootstrap=mixed), tmp_path))


def test_superblock_of_another_image(target, suite, tmp_path):
    image, other = target(suite), target(suite, seed=2)
    mixed = replace(image.stored.bootstrap, superblock=other.stored.bootstrap.superblock)
    stored = replace(image.stored, bootstrap=mixed)
    # as the manifest of the first image names it, and with a manifest that was adapted
    for digest in (find_image(image.reference).manifest.superblock_digest, None):
        error = fails(read_image, put(replace(stored, superblock_digest=digest), tmp_path), image.keyring)
        assert error is not None


def test_bootstrap_under_the_manifest_of_another_image(target, suite, tmp_path):
    """A pinned manifest names the superblock, so a host cannot put another bootstrap below it."""
    image, other = target(suite), target(suite, seed=2)
    digest = find_image(image.reference).manifest.superblock_digest
    with pytest.raises(DigestMismatch, match="superblock"):
        read_image(put(replace(other.stored, superblock_digest=digest), tmp_path), image.keyring)


SUPERBLOCK_CHANGES = {
    "image_id": bytes(16),
    "name": "another",
    "release": 99,
    "not_after": 2**39,
    "page_table_digest": bytes(32),
    "prefetch": Section(0, 1),
    "config": Section(0, 1),
    "blobs": (),
    "key_commitment": bytes(32),
    "page_salt": bytes(16),
    "dedup_domain": bytes(16),
    "page_size": 8192,
    "page_count": 1,
    "erofs": Section(0, 12288),
    "chunk_tables": Section(4100, 4 * 96),
    "checkpoints": Section(0, 1),
    "suite": None,
}


@pytest.mark.parametrize("field", SUPERBLOCK_CHANGES)
def test_superblock_changed_in_any_field(target, sealing, tmp_path, field):
    """The manifest is adapted, no signature is asked for: the seal alone has to stand."""
    image = target(sealing)
    value = SUPERBLOCK_CHANGES[field]
    if field == "suite":
        value = next(suite for suite in ENCRYPTING if suite is not sealing)
    bootstrap = image.stored.bootstrap.with_superblock(**{field: value})
    assert bootstrap.superblock != image.stored.bootstrap.superblock
    error = fails(read_image, put(replace(image.stored, bootstrap=bootstrap), tmp_path))
    assert isinstance(error, MacMismatch | WrongKey | FormatError)


def test_every_superblock_field_is_changed_above(target):
    assert set(SUPERBLOCK_CHANGES) == set(target(Suite.AES_256_GCM).stored.bootstrap.head.__slots__)


def test_seal_removed_or_of_another_image(target, sealing, tmp_path):
    image, other = target(sealing), target(sealing, seed=2)
    for other_seal, expected in (
        (b"", FormatError),
        (bytes(32), MacMismatch),
        (other.stored.bootstrap.unwrapped.seal, MacMismatch),
    ):
        bootstrap = image.stored.bootstrap.with_envelope(seal=other_seal)
        with pytest.raises(expected):
            read_image(put(replace(image.stored, bootstrap=bootstrap), tmp_path))


def test_recipients_shuffled_doubled_removed_and_exchanged(target, sealing, tmp_path):
    others = (SymmetricKey.generate(), X25519Identity.generate().recipient())
    image = target(sealing, recipients=(others[0], KEY, others[1]))
    listed = image.stored.bootstrap.unwrapped.recipients
    foreign = target(sealing, seed=2).stored.bootstrap.unwrapped.recipients

    def read_with(recipients):
        bootstrap = image.stored.bootstrap.with_envelope(recipients=tuple(recipients))
        return read_image(put(replace(image.stored, bootstrap=bootstrap), tmp_path))

    assert read_with(reversed(listed)) == image.contents
    assert read_with(listed * 20) == image.contents
    assert read_with((*foreign, *listed)) == image.contents
    for recipients in ((), (listed[0], listed[2]), foreign):
        with pytest.raises(WrongKey):
            read_with(recipients)


def test_what_is_wrapped_for_another_under_the_name_of_the_reader(target, sealing, tmp_path):
    image = target(sealing, recipients=(SymmetricKey.generate(), KEY))
    stranger, reader = image.stored.bootstrap.unwrapped.recipients
    renamed = replace(stranger, key_id=reader.key_id)
    bootstrap = image.stored.bootstrap.with_envelope(recipients=(renamed,))
    with pytest.raises(WrongKey):
        read_image(put(replace(image.stored, bootstrap=bootstrap), tmp_path))


# --- Downgrades ---------------------------------------------------------------------------------------------

ANY_KEY = {
    "symmetric": KeyRing(symmetric=(KEY,)),
    "identity": KeyRing(identities=(X25519Identity(bytes(range(1, 33))),)),
    "passphrase": KeyRing(passphrases=(Passphrase(b"open sesame"),)),
    "verification": KeyRing(verification=(Ed25519VerifyKey(SIGNER.public().raw),)),
}


@pytest.mark.parametrize("ring", ANY_KEY)
def test_unencrypted_image_in_the_place_of_a_sealed_one(target, tmp_path, ring):
    """Anybody can make one. Who gives a key says that he expects what only that key can open."""
    forged = target(Suite.INTEGRITY_ONLY, seed=2)
    reference = put(forged.stored, tmp_path)
    assert read_image(reference, KeyRing()) == forged.contents
    with pytest.raises(WrongKey, match="not encrypted"):
        read_image(reference, ANY_KEY[ring])


def test_sealed_superblock_turned_into_an_unencrypted_one(target, sealing, tmp_path):
    image = target(sealing)
    bootstrap = image.stored.bootstrap.with_superblock(
        suite=Suite.INTEGRITY_ONLY, key_commitment=b"", page_salt=b""
    )
    with pytest.raises(WrongKey, match="not encrypted"):
        read_image(put(replace(image.stored, bootstrap=bootstrap), tmp_path))


def test_unencrypted_image_that_is_signed_opens_without_a_key(target):
    image = target(Suite.INTEGRITY_ONLY, signers=(SIGNER,))
    assert read_image(image.reference, KeyRing(), SIGNED) == image.contents


# --- Signatures ---------------------------------------------------------------------------------------------


def test_signatures_stripped_forged_and_borrowed(target, suite, tmp_path):
    image = target(suite, signers=(SIGNER,))
    other = target(suite, seed=2, signers=(SIGNER,))
    stranger = Ed25519SigningKey.generate()
    (made,) = image.stored.bootstrap.unwrapped.signatures
    by_stranger = sign(image.stored.bootstrap.superblock, stranger)

    def read_with(*signatures):
        bootstrap = image.stored.bootstrap.with_envelope(signatures=signatures)
        return read_image(put(replace(image.stored, bootstrap=bootstrap), tmp_path), image.keyring, SIGNED)

    assert read_with(made) == image.contents
    false = replace(made, signature=bytes(64))
    assert read_with(false, made) == image.contents, "nobody breaks an image by adding a false one"
    for signatures in (
        (),
        (false,),
        (by_stranger,),
        (replace(by_stranger, key_id=made.key_id),),
        other.stored.bootstrap.unwrapped.signatures,
        (replace(made, algorithm="ecdsa-p256"),),
    ):
        with pytest.raises(BadSignature):
            read_with(*signatures)


def test_signatures_of_too_few_keys(target, suite, tmp_path):
    second = Ed25519SigningKey.generate()
    image = target(suite, signers=(SIGNER,))
    policy = TrustPolicy(signatures=SignaturePolicy.all_of((SIGNER.public(), second.public())))
    (made,) = image.stored.bootstrap.unwrapped.signatures
    bootstrap = image.stored.bootstrap.with_envelope(signatures=(made, made))
    with pytest.raises(BadSignature):
        read_image(put(replace(image.stored, bootstrap=bootstrap), tmp_path), image.keyring, policy)


# --- Older images -------------------------------------------------------------------------------------------


def test_older_release_in_the_place_of_a_newer_one(target, suite):
    older = target(suite, release=6, signers=(SIGNER,))
    floor = replace(SIGNED, min_release=7)
    with pytest.raises(Rollback, match="older than you accept"):
        read_image(older.reference, older.keyring, floor)
    assert read_image(older.reference, older.keyring, replace(floor, min_release=6)) == older.contents


def test_older_image_under_a_pinned_digest(target, suite, tmp_path):
    older, newer = target(suite), target(suite, seed=2)
    pinned = find_image(newer.reference).manifest_digest
    reference = put(older.stored, tmp_path).pinned(pinned)
    with pytest.raises(TagNotFound):
        read_image(reference, older.keyring)
    old_manifest = blob_path(older.reference.folder, find_image(older.reference).manifest_digest)
    blob_path(tmp_path, pinned).write_bytes(old_manifest.read_bytes())
    with pytest.raises(DigestMismatch, match="manifest"):
        read_image(reference, older.keyring)


def test_expired_image(tree, suite, tmp_path):
    reference = build(tree(1), tmp_path, suite=suite, not_after=1_000_000_000)
    with pytest.raises(Rollback, match="expired"):
        read_image(reference, keyring_for(suite))
    assert take(reference).bootstrap.head.not_after == 1_000_000_000


# --- What is not promised -----------------------------------------------------------------------------------


def test_public_half_of_a_recipient_makes_images_that_open(tree, tmp_path):
    """HPKE's base mode does not say who sealed. Only a signature or a pinned digest does."""
    victim = X25519Identity.generate()
    forged = build(tree(2), tmp_path, recipients=(victim.recipient(),))
    ring = KeyRing(identities=(victim,))
    assert read_image(forged, ring)
    with pytest.raises(BadSignature):
        read_image(forged, ring, SIGNED)


def test_fellow_recipient_makes_images_that_open(target, tree, tmp_path):
    """Whoever opened one image has its image key, and the wrapped form of it that opens for the others."""
    image = target(Suite.AES_256_GCM)
    with opened(image.reference) as open_image:
        image_key = open_image.opened.image_key
    section = ForgedSection()
    section.directory([], nid=section.root)
    forged = seal(section.pack(), image_key=image_key)
    bootstrap = forged.bootstrap.with_envelope(recipients=image.stored.bootstrap.unwrapped.recipients)
    reference = put(replace(forged, bootstrap=bootstrap), tmp_path)
    assert read_image(reference)
    with pytest.raises(BadSignature):
        read_image(reference, policy=SIGNED)
