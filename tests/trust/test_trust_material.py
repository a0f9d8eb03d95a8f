"""The kinds of keys: ids, public halves, refusal of what is no key, and silence about secrets."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem

from rafsfs import limits
from rafsfs.errors import KeyFileError
from rafsfs.trust.keys import (
    EcdsaP256SigningKey,
    EcdsaP256VerifyKey,
    Ed25519SigningKey,
    HybridIdentity,
    HybridRecipient,
    Passphrase,
    SymmetricKey,
    X25519Identity,
    X25519Recipient,
)

SECRET_KINDS = [SymmetricKey, X25519Identity, HybridIdentity, Ed25519SigningKey, EcdsaP256SigningKey]


def public_half(key):
    return key.recipient() if isinstance(key, X25519Identity | HybridIdentity) else key.public()


@pytest.mark.parametrize("kind", SECRET_KINDS)
def test_generated_keys_differ_and_have_ids_of_16_bytes(kind):
    first, second = kind.generate(), kind.generate()
    assert first != second
    assert len(first.key_id) == len(second.key_id) == 16
    assert first.key_id != second.key_id
    assert first == kind(first.raw)
    assert hash(first) == hash(kind(first.raw))


@pytest.mark.parametrize("kind", SECRET_KINDS[1:])
def test_public_half_has_the_id_of_its_secret(kind):
    key = kind.generate()
    half = public_half(key)
    assert half.key_id == key.key_id
    assert half.family == key.family
    assert key.secret
    assert not half.secret


def test_ids_of_different_kinds_differ_for_the_same_bytes():
    raw = bytes(range(32))
    ids = {
        kind(raw).key_id for kind in (SymmetricKey, X25519Identity, Ed25519SigningKey, EcdsaP256SigningKey)
    }
    assert len(ids) == 4


@pytest.mark.parametrize("kind", SECRET_KINDS)
def test_nothing_printable_of_a_secret_key_shows_it(kind):
    key = kind.generate()
    shown = f"{key!r} {key!s} {[key]!r} {key:}"
    assert key.key_id.hex() in shown
    for part in (key.raw[:8], key.raw[-8:]):
        assert part.hex() not in shown.lower()
        assert repr(part)[2:-1] not in shown
    assert base64.b64encode(key.raw)[:11].decode() not in shown


def test_passphrase_shows_nothing():
    assert "correct horse" not in f"{Passphrase(b'correct horse')!r} {Passphrase(b'correct horse')!s}"


@pytest.mark.parametrize("kind", [*SECRET_KINDS, X25519Recipient, HybridRecipient, EcdsaP256VerifyKey])
@pytest.mark.parametrize("more", [-1, 1])
def test_wrong_length_is_refused(kind, more):
    with pytest.raises(KeyFileError, match=f"expected {kind.raw_bytes} bytes"):
        kind(bytes(kind.raw_bytes + more))


@pytest.mark.parametrize(
    "low_order_hex",
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    ],
)
def test_recipients_whose_shared_key_everybody_knows_are_refused(low_order_hex):
    """RFC 7748 section 6.1: points of low order give the all-zero shared secret."""
    with pytest.raises(KeyFileError):
        X25519Recipient(bytes.fromhex(low_order_hex))
    lattice = mlkem.MLKEM768PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(KeyFileError):
        HybridRecipient(lattice + bytes.fromhex(low_order_hex))


def test_encapsulation_key_out_of_range_is_refused():
    """FIPS 203 section 7.2: 12-bit coefficients must be below 3329."""
    with pytest.raises(KeyFileError, match="unusable"):
        HybridRecipient(b"\xff" * 1_184 + X25519Identity.generate().recipient().raw)


@pytest.mark.parametrize("scalar", [0, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551])
def test_scalar_outside_of_the_group_is_refused(scalar):
    with pytest.raises(KeyFileError, match="unusable"):
        EcdsaP256SigningKey(scalar.to_bytes(32, "big"))


def test_point_off_the_curve_is_refused():
    with pytest.raises(KeyFileError, match="unusable"):
        EcdsaP256VerifyKey(b"\x04" + b"\x01" * 64)


@pytest.mark.parametrize("secret", [b"", b"x" * (limits.PASSPHRASE_BYTES_MAX + 1)])
def test_passphrases_out_of_bounds_are_refused(secret):
    with pytest.raises(KeyFileError, match="passphrase"):
        Passphrase(secret)
