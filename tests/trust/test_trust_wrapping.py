"""Wrapped image keys: known answers, HPKE written out by hand, every damaged byte, hostile envelopes."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from hypothesis import given
from hypothesis import strategies as st

from rafsfs import limits
from rafsfs.errors import FormatError, LimitExceeded, RafsError, WrongKey
from rafsfs.trust import wrapping
from rafsfs.trust.derive import key_commitment
from rafsfs.trust.keys import HybridIdentity, KeyRing, Passphrase, SymmetricKey, X25519Identity
from rafsfs.trust.wrapping import Recipient, check_recipients, unwrap, unwrap_committed, wrap

IMAGE_KEY = bytes(range(100, 132))
IMAGE_ID = b"\xa5" * 16
SYMMETRIC = SymmetricKey(bytes(range(32)))
X25519 = X25519Identity(bytes(range(32)))
HYBRID = HybridIdentity(bytes(range(96)))
PASSPHRASE = Passphrase(b"open sesame")
QUICK = limits.SCRYPT_LOG2_N_MIN
KEYS = {"symmetric": SYMMETRIC, "passphrase": PASSPHRASE, "x25519": X25519, "mlkem768x25519": HYBRID}
COMMITMENT = key_commitment(IMAGE_KEY, IMAGE_ID)
VECTORS = Path(__file__).parent.parent / "vectors" / "wrapped_keys.json"


def target(key):
    return key.recipient() if isinstance(key, X25519Identity | HybridIdentity) else key


def ring(*keys):
    return KeyRing(
        symmetric=tuple(key for key in keys if isinstance(key, SymmetricKey)),
        identities=tuple(key for key in keys if isinstance(key, X25519Identity | HybridIdentity)),
        passphrases=tuple(key for key in keys if isinstance(key, Passphrase)),
    )


def wrapped_for(key, image_key=IMAGE_KEY, image_id=IMAGE_ID):
    return wrap(image_key, image_id, target(key), log2_n=QUICK)


@pytest.fixture(params=KEYS)
def key(request):
    return KEYS[request.param]


# --- There and back -----------------------------------------------------------------------------------------


def test_every_kind_gives_the_image_key_back(key):
    recipient = wrapped_for(key)
    assert next(unwrap([recipient], IMAGE_ID, ring(key))) == IMAGE_KEY
    assert unwrap_committed([recipient], IMAGE_ID, ring(key), COMMITMENT) == IMAGE_KEY
    assert KEYS[recipient.kind] is key
    assert len(recipient.key_id) == 16
    assert IMAGE_KEY not in recipient.wrapped
    assert IMAGE_KEY.hex() not in f"{recipient!r}"


def test_every_kind_among_all_the_others(key):
    recipients = [wrapped_for(other) for other in KEYS.values()]
    assert unwrap_committed(recipients, IMAGE_ID, ring(key), COMMITMENT) == IMAGE_KEY
    assert [recipient.kind for recipient in recipients] == list(KEYS)


def test_ids_are_those_of_the_keys():
    for known in (SYMMETRIC, X25519, HYBRID):
        assert wrapped_for(known).key_id == known.key_id


def test_passphrase_recipients_are_salted_and_costly_by_default():
    recipient = wrap(IMAGE_KEY, IMAGE_ID, PASSPHRASE)
    assert (recipient.log2_n, len(recipient.salt)) == (17, 16)
    first, second = wrapped_for(PASSPHRASE), wrapped_for(PASSPHRASE)
    assert first.salt != second.salt
    assert first.key_id != second.key_id
    assert first.wrapped != second.wrapped


def test_image_keys_of_another_length_are_a_mistake():
    with pytest.raises(ValueError, match="32 bytes"):
        wrap(bytes(16), IMAGE_ID, SYMMETRIC)


# --- Known answers, independent constructions ---------------------------------------------------------------


def test_symmetric_is_rfc_3394():
    """Section 4.6: 256 bits of key data under a 256-bit key."""
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = bytes.fromhex(
        "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    )
    assert wrap(data, IMAGE_ID, SYMMETRIC).wrapped == wrapped
    recipient = Recipient("symmetric", SYMMETRIC.key_id, wrapped)
    assert list_candidates([recipient], ring(SYMMETRIC)) == [data]


def test_passphrase_is_scrypt_and_rfc_3394():
    recipient = wrapped_for(PASSPHRASE)
    stretched = hashlib.scrypt(
        b"open sesame", salt=recipient.salt, n=1 << QUICK, r=8, p=1, maxmem=1 << 26, dklen=32
    )
    assert aes_key_unwrap(stretched, recipient.wrapped) == IMAGE_KEY


def mac(secret, message):
    return hmac.digest(secret, message, "sha256")


def labeled_extract(suite_id, salt, label, secret):
    """RFC 9180 section 4."""
    return mac(salt or bytes(32), b"HPKE-v1" + suite_id + label + secret)


def labeled_expand(suite_id, prk, label, info):
    """RFC 9180 section 4, for outputs of one block."""
    return lambda length: mac(prk, length.to_bytes(2) + b"HPKE-v1" + suite_id + label + info + b"\x01")[
        :length
    ]


def hpke_open(kem_id, shared_secret, ciphertext, info):
    """RFC 9180 section 5.1, base mode, HKDF-SHA256, AES-256-GCM, first message."""
    suite_id = b"HPKE" + kem_id + b"\x00\x01" + b"\x00\x02"
    context = b"\x00" + labeled_extract(suite_id, b"", b"psk_id_hash", b"")
    context += labeled_extract(suite_id, b"", b"info_hash", info)
    secret = labeled_extract(suite_id, shared_secret, b"secret", b"")
    key = labeled_expand(suite_id, secret, b"key", context)(32)
    nonce = labeled_expand(suite_id, secret, b"base_nonce", context)(12)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


def exchange(private_raw, public_raw):
    private = x25519.X25519PrivateKey.from_private_bytes(private_raw)
    return private.exchange(x25519.X25519PublicKey.from_public_bytes(public_raw))


def test_x25519_is_rfc_9180_with_info_bound_to_the_image():
    """DHKEM(X25519, HKDF-SHA256) of section 4.1, KEM id 0x0020."""
    wrapped = wrapped_for(X25519).wrapped
    encapsulated, ciphertext = wrapped[:32], wrapped[32:]
    prk = labeled_extract(b"KEM\x00\x20", b"", b"eae_prk", exchange(X25519.raw, encapsulated))
    context = encapsulated + X25519.recipient().raw
    shared = labeled_expand(b"KEM\x00\x20", prk, b"shared_secret", context)(32)
    assert hpke_open(b"\x00\x20", shared, ciphertext, b"rafsfs image key" + IMAGE_ID) == IMAGE_KEY
    with pytest.raises(InvalidTag):
        hpke_open(b"\x00\x20", shared, ciphertext, b"rafsfs image key" + bytes(16))


def test_mlkem768x25519_is_x_wing():
    """draft-connolly-cfrg-xwing-kem section 5.3, KEM id 0x647a: SHA3-256 of secrets, share, key, label."""
    wrapped = wrapped_for(HYBRID).wrapped
    lattice, curve, ciphertext = wrapped[:1_088], wrapped[1_088:1_120], wrapped[1_120:]
    secrets = mlkem.MLKEM768PrivateKey.from_seed_bytes(HYBRID.raw[:64]).decapsulate(lattice)
    secrets += exchange(HYBRID.raw[64:], curve)
    shared = hashlib.sha3_256(secrets + curve + HYBRID.recipient().raw[1_184:] + rb"\.//^" + b"\\").digest()
    assert hpke_open(b"\x64\x7a", shared, ciphertext, b"rafsfs image key" + IMAGE_ID) == IMAGE_KEY


def test_keys_wrapped_by_the_first_release_still_open():
    vectors = json.loads(VECTORS.read_text())
    assert [vector["kind"] for vector in vectors] == list(KEYS)
    for vector in vectors:
        recipient = Recipient(
            kind=vector["kind"],
            key_id=bytes.fromhex(vector["key_id"]),
            wrapped=base64.b64decode(vector["wrapped"]),
            salt=bytes.fromhex(vector["salt"]),
            log2_n=vector["log2_n"],
        )
        assert unwrap_committed([recipient], IMAGE_ID, ring(KEYS[recipient.kind]), COMMITMENT) == IMAGE_KEY


# --- Keys that do not open ----------------------------------------------------------------------------------


def list_candidates(recipients, keyring, image_id=IMAGE_ID):
    found = []
    with pytest.raises(WrongKey):
        for candidate in unwrap(recipients, image_id, keyring):
            found.append(candidate)
    return found


@pytest.mark.parametrize(
    "other",
    [
        SymmetricKey(bytes(32)),
        X25519Identity(bytes(32)),
        HybridIdentity(bytes(96)),
        Passphrase(b"open sesam"),
    ],
)
def test_wrong_key_of_every_kind(other):
    recipients = [wrapped_for(key) for key in KEYS.values()]
    with pytest.raises(WrongKey, match="no given key opens this image") as caught:
        unwrap_committed(recipients, IMAGE_ID, ring(other), COMMITMENT)
    message = str(caught.value)
    for known in (SYMMETRIC, X25519, HYBRID):
        assert f"{known.family} {known.key_id.hex()}" in message
    assert "a passphrase" in message
    if isinstance(other, Passphrase):
        assert "found a passphrase; the passphrase is wrong" in message
    else:
        assert f"found {other.family} {other.key_id.hex()}; give one of the expected keys" in message
    assert "\n" not in message


def test_no_key_at_all_and_no_recipient_at_all():
    with pytest.raises(WrongKey, match=f"expected symmetric {SYMMETRIC.key_id.hex()}, found none"):
        next(unwrap([wrapped_for(SYMMETRIC)], IMAGE_ID, KeyRing()))
    with pytest.raises(WrongKey, match=f"expected none, found symmetric {SYMMETRIC.key_id.hex()}"):
        next(unwrap([], IMAGE_ID, ring(SYMMETRIC)))


def test_passphrase_is_not_tried_when_a_key_fits(monkeypatch):
    recipients = [wrapped_for(PASSPHRASE), wrapped_for(SYMMETRIC)]
    monkeypatch.setattr(wrapping, "Scrypt", None)
    keyring = ring(SYMMETRIC, PASSPHRASE)
    assert unwrap_committed(recipients, IMAGE_ID, keyring, COMMITMENT) == IMAGE_KEY


def test_right_image_key_is_found_behind_false_ones(key):
    """Whoever can write the envelope can add recipients for our key; the commitment tells them apart."""
    recipients = [wrapped_for(key, image_key=bytes((number,)) * 32) for number in range(3)]
    recipients.append(wrapped_for(key))
    assert unwrap_committed(recipients, IMAGE_ID, ring(key), COMMITMENT) == IMAGE_KEY


def test_envelope_that_holds_another_image_key_is_told(key):
    recipients = [wrapped_for(key, image_key=bytes(32))]
    with pytest.raises(WrongKey, match="envelope does not belong to this image") as caught:
        unwrap_committed(recipients, IMAGE_ID, ring(key), COMMITMENT)
    assert bytes(32).hex() not in str(caught.value)


@pytest.mark.parametrize("kind", ["x25519", "mlkem768x25519"])
def test_hpke_recipient_of_another_image_is_refused(kind):
    key = KEYS[kind]
    recipients = [wrapped_for(key)]
    assert list_candidates(recipients, ring(key)) == [IMAGE_KEY]
    for other in (bytes(16), IMAGE_ID[:-1] + b"\0", IMAGE_ID + b"\0", b""):
        assert list_candidates(recipients, ring(key), other) == []
    with pytest.raises(
        WrongKey, match=f"wrapped for {kind} {key.key_id.hex()} was changed, or is another image's"
    ):
        next(unwrap(recipients, bytes(16), ring(key)))


@pytest.mark.parametrize("kind", ["symmetric", "passphrase"])
def test_aes_kw_recipient_of_another_image_is_refused_by_the_commitment(kind):
    recipients = [wrapped_for(KEYS[kind])]
    with pytest.raises(WrongKey, match="does not belong to this image"):
        unwrap_committed(recipients, bytes(16), ring(KEYS[kind]), COMMITMENT)


def test_every_flipped_byte_of_every_wrapped_key_is_refused(key):
    recipient = wrapped_for(key)
    refused = 0
    for position in range(len(recipient.wrapped)):
        changed = bytearray(recipient.wrapped)
        changed[position] ^= 0x80 if position % 2 else 0x01
        assert list_candidates([replace(recipient, wrapped=bytes(changed))], ring(key)) == []
        refused += 1
    assert (
        refused == {"symmetric": 40, "passphrase": 40, "x25519": 80, "mlkem768x25519": 1_168}[recipient.kind]
    )


def test_highest_bit_of_an_x25519_share_is_bound():
    """RFC 7748 section 5 ignores it in the exchange; the transcript does not."""
    for key, position in ((X25519, 31), (HYBRID, 1_119)):
        recipient = wrapped_for(key)
        changed = bytearray(recipient.wrapped)
        changed[position] ^= 0x80
        assert list_candidates([replace(recipient, wrapped=bytes(changed))], ring(key)) == []


def test_changed_salt_cost_and_id_are_refused():
    recipient = wrapped_for(PASSPHRASE)
    for position in range(16):
        salt = bytearray(recipient.salt)
        salt[position] ^= 1
        assert list_candidates([replace(recipient, salt=bytes(salt))], ring(PASSPHRASE)) == []
    assert list_candidates([replace(recipient, log2_n=QUICK + 1)], ring(PASSPHRASE)) == []
    for key in (SYMMETRIC, X25519, HYBRID):
        assert list_candidates([replace(wrapped_for(key), key_id=bytes(16))], ring(key)) == []


# --- Hostile envelopes --------------------------------------------------------------------------------------


def malformed():
    for key in KEYS.values():
        recipient = wrapped_for(key)
        for wrapped in (b"", recipient.wrapped[:-1], recipient.wrapped[:-8], recipient.wrapped + bytes(8)):
            yield replace(recipient, wrapped=wrapped)
        yield replace(recipient, wrapped=bytes(limits.WRAPPED_KEY_BYTES_MAX))
        yield replace(recipient, key_id=recipient.key_id[:-1])
        yield replace(recipient, key_id=b"")
        yield replace(recipient, salt=recipient.salt + b"\0")
    yield replace(wrapped_for(PASSPHRASE), salt=b"")


def test_malformed_recipients_are_refused_before_any_key_is_tried(monkeypatch):
    hostile = list(malformed())
    good = wrapped_for(SYMMETRIC)
    monkeypatch.setattr(wrapping, "_attempts", None)
    for recipient in hostile:
        with pytest.raises(FormatError, match=r"malformed .* of recipient 1"):
            next(unwrap([good, recipient], IMAGE_ID, ring(*KEYS.values())))
    assert len(hostile) == 33


def test_limits_are_checked_before_any_key_is_tried(monkeypatch):
    monkeypatch.setattr(wrapping, "_attempts", None)
    quick = Recipient("passphrase", bytes(16), bytes(40), bytes(16), QUICK)
    other = Recipient("symmetric", bytes(16), bytes(40))
    for recipients, words in (
        ([other] * (limits.RECIPIENTS_MAX + 1), "too many recipients: expected at most 64, found 65"),
        ([quick] * (limits.PASSPHRASE_RECIPIENTS_MAX + 1), "too many passphrase recipients"),
        ([Recipient("new", b"", bytes(limits.WRAPPED_KEY_BYTES_MAX + 1))], "wrapped key of recipient 0"),
        *(
            ([replace(quick, log2_n=cost)], "scrypt cost out of bounds: expected log2 of N from 14 to 18")
            for cost in (-1, 0, limits.SCRYPT_LOG2_N_MIN - 1, limits.SCRYPT_LOG2_N_MAX + 1, 63, 2**70)
        ),
    ):
        with pytest.raises(LimitExceeded, match=words):
            next(unwrap(recipients, IMAGE_ID, ring(PASSPHRASE)))
    check_recipients([quick] * limits.PASSPHRASE_RECIPIENTS_MAX)
    check_recipients([other] * limits.RECIPIENTS_MAX)


@pytest.mark.parametrize("cost", [limits.SCRYPT_LOG2_N_MIN - 1, limits.SCRYPT_LOG2_N_MAX + 1])
def test_cost_that_no_reader_accepts_is_not_written(cost):
    with pytest.raises(LimitExceeded, match="scrypt cost"):
        wrap(IMAGE_KEY, IMAGE_ID, PASSPHRASE, log2_n=cost)


def test_kinds_of_later_releases_are_passed_over_and_not_quoted():
    unknown = Recipient("\x1b[2J\nkbs", b"\x01\x02", b"anything", b"salt", 99)
    recipients = [unknown, wrapped_for(SYMMETRIC)]
    assert unwrap_committed(recipients, IMAGE_ID, ring(SYMMETRIC), COMMITMENT) == IMAGE_KEY
    with pytest.raises(WrongKey) as caught:
        next(unwrap(recipients, IMAGE_ID, KeyRing()))
    assert "a kind unknown to this release 0102" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_long_lists_are_cut():
    recipients = [replace(wrapped_for(SYMMETRIC), key_id=bytes((number,)) * 16) for number in range(64)]
    with pytest.raises(WrongKey, match=f"{'07' * 16} and 56 more, found none") as caught:
        next(unwrap(recipients, IMAGE_ID, KeyRing()))
    assert "08" * 16 not in str(caught.value)


LENGTHS = {"symmetric": 40, "x25519": 80, "mlkem768x25519": 1_168}
ALL_KEYS = ring(SYMMETRIC, X25519, HYBRID)


@given(
    st.sampled_from(sorted(LENGTHS)).flatmap(
        lambda kind: st.builds(
            Recipient,
            st.just(kind),
            st.just(KEYS[kind].key_id),
            st.binary(min_size=LENGTHS[kind], max_size=LENGTHS[kind]),
        )
    )
)
def test_garbage_of_the_right_shape_is_wrong_key(recipient):
    with pytest.raises(WrongKey):
        next(unwrap([recipient], IMAGE_ID, ALL_KEYS))


@given(
    st.lists(
        st.builds(
            Recipient,
            st.sampled_from(["symmetric", "x25519", "mlkem768x25519", "passphrase", ""])
            | st.text(max_size=20),
            st.sampled_from([key.key_id for key in (SYMMETRIC, X25519, HYBRID)]) | st.binary(max_size=20),
            st.binary(max_size=100) | st.binary(min_size=1_168, max_size=1_168),
            st.binary(max_size=17),
            st.integers(-5, 100),
        ),
        max_size=5,
    )
)
def test_garbage_envelopes_raise_rafs_errors_only(recipients):
    with pytest.raises(RafsError):
        next(unwrap(recipients, IMAGE_ID, ALL_KEYS))


@pytest.mark.parametrize(
    "share", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", b"\xff" * 32]
)
def test_shares_of_low_order_end_in_wrong_key(share):
    """The library's exchange refuses them with an error of its own, which must not get out."""
    x_wrapped = share + wrapped_for(X25519).wrapped[32:]
    hybrid = wrapped_for(HYBRID).wrapped
    assert list_candidates([Recipient("x25519", X25519.key_id, x_wrapped)], ring(X25519)) == []
    hybrid = hybrid[:1_088] + share + hybrid[1_120:]
    assert list_candidates([Recipient("mlkem768x25519", HYBRID.key_id, hybrid)], ring(HYBRID)) == []


def test_no_error_shows_a_key():
    recipients = [wrapped_for(key) for key in KEYS.values()]
    errors = []
    for image_id, keyring in (
        (IMAGE_ID, KeyRing()),
        (bytes(16), ring(X25519)),
        (bytes(16), ring(HYBRID)),
        (IMAGE_ID, ring(Passphrase(b"shut sesame"))),
        (bytes(16), ring(*KEYS.values())),
    ):
        with pytest.raises(WrongKey) as caught:
            unwrap_committed(recipients, image_id, keyring, COMMITMENT)
        errors.append(f"{caught.value} {caught.value!r} {caught.value.args} {vars(caught.value)}")
    shown = "\n".join(errors)
    for secret in (IMAGE_KEY, SYMMETRIC.raw, X25519.raw, HYBRID.raw[:32], HYBRID.raw[64:]):
        assert secret.hex()[:16] not in shown
        assert base64.b64encode(secret).decode()[:10] not in shown
    assert "sesame" not in shown
