"""Signatures over the superblock: who signed, who had to, and what nobody may get past the policy."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs import limits
from rafsfs.errors import BadSignature, KeyFileError, LimitExceeded
from rafsfs.trust.keys import EcdsaP256SigningKey, Ed25519SigningKey, encode_key, parse_key
from rafsfs.trust.signature import Signature, SignaturePolicy, sign, verify

SUPERBLOCK = b"any superblock"
ED25519 = Ed25519SigningKey(bytes(range(32)))
ECDSA = EcdsaP256SigningKey(bytes(range(32)))
OTHER = Ed25519SigningKey(bytes(32))
KEYS = [ED25519, ECDSA]


def ids(key):
    return key.family


@pytest.mark.parametrize("key", KEYS, ids=ids)
def test_signed_image_passes(key):
    made = sign(SUPERBLOCK, key)
    assert (made.algorithm, made.key_id) == (key.family, key.key_id)
    assert len(made.signature) <= limits.SIGNATURE_BYTES_MAX
    verify(SUPERBLOCK, [made], SignaturePolicy.all_of([key.public()]))


@pytest.mark.parametrize("key", KEYS, ids=ids)
def test_every_changed_bit_of_superblock_and_signature_is_refused(key):
    made = sign(SUPERBLOCK, key)
    policy = SignaturePolicy.all_of([key.public()])
    for changed in flipped(SUPERBLOCK):
        with pytest.raises(BadSignature, match=f"false signature of {key.family} {key.key_id.hex()}"):
            verify(changed, [made], policy)
    for changed in [*flipped(made.signature), b"", made.signature[:-1], made.signature + b"\0"]:
        with pytest.raises(BadSignature, match="0 valid, false signature"):
            verify(SUPERBLOCK, [Signature(made.algorithm, made.key_id, changed)], policy)


def flipped(good):
    for position in range(len(good)):
        for bit in range(8):
            yield good[:position] + bytes((good[position] ^ 1 << bit,)) + good[position + 1 :]


@pytest.mark.parametrize("key", KEYS, ids=ids)
def test_signature_of_the_bare_bytes_does_not_count(key, tmp_path):
    """Domain separation: nobody is tricked into signing an image by signing something else."""
    (tmp_path / "bare").write_bytes(SUPERBLOCK)
    (tmp_path / "labelled").write_bytes(b"rafsfs superblock signature 1\0" + SUPERBLOCK)
    (tmp_path / "key").write_bytes(encode_key(key))
    policy = SignaturePolicy.all_of([key.public()])
    for file, fine in (("labelled", True), ("bare", False)):
        how = ["-rawin"] if key is ED25519 else ["-rawin", "-digest", "sha256"]
        signature = subprocess.run(
            ["openssl", "pkeyutl", "-sign", "-inkey", tmp_path / "key", *how, "-in", tmp_path / file],
            capture_output=True,
            check=True,
        ).stdout
        made = Signature(key.family, key.key_id, signature)
        if fine:
            verify(SUPERBLOCK, [made], policy)
        else:
            with pytest.raises(BadSignature):
                verify(SUPERBLOCK, [made], policy)


def test_openssl_verifies_ours(tmp_path):
    (tmp_path / "message").write_bytes(b"rafsfs superblock signature 1\0" + SUPERBLOCK)
    (tmp_path / "public").write_bytes(encode_key(ECDSA.public()))
    (tmp_path / "signature").write_bytes(sign(SUPERBLOCK, ECDSA).signature)
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", "public", "-signature", "signature", "message"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert b"Verified OK" in done.stdout


def test_missing_signature_is_named():
    policy = SignaturePolicy.all_of([ED25519.public(), ECDSA.public()])
    with pytest.raises(BadSignature) as caught:
        verify(SUPERBLOCK, [sign(SUPERBLOCK, ED25519)], policy)
    message = str(caught.value)
    assert "expected 2 valid of 2 keys" in message
    assert f"1 valid, no signature of ecdsa-p256 {ECDSA.key_id.hex()}" in message
    assert ED25519.key_id.hex() not in message
    with pytest.raises(BadSignature, match="0 valid, no signature of ed25519"):
        verify(SUPERBLOCK, [], policy)


def test_threshold():
    public = tuple(key.public() for key in (ED25519, ECDSA, OTHER))
    signatures = [sign(SUPERBLOCK, ED25519), sign(SUPERBLOCK, OTHER)]
    verify(SUPERBLOCK, signatures, SignaturePolicy(public, 1))
    verify(SUPERBLOCK, signatures, SignaturePolicy(public, 2))
    with pytest.raises(BadSignature):
        verify(SUPERBLOCK, signatures, SignaturePolicy(public, 3))
    with pytest.raises(BadSignature, match="1 valid"):
        verify(SUPERBLOCK, [signatures[0]] * 3, SignaturePolicy(public, 2))


def test_unknown_and_false_signatures_beside_a_valid_one_are_ignored():
    policy = SignaturePolicy.all_of([ED25519.public()])
    valid = sign(SUPERBLOCK, ED25519)
    others = [
        sign(SUPERBLOCK, OTHER),
        Signature("made-up", b"", b"\xff" * 64),
        Signature("ed25519", ED25519.key_id, bytes(64)),
        Signature("ecdsa-p256", ED25519.key_id, valid.signature),
    ]
    verify(SUPERBLOCK, [*others, valid], policy)
    with pytest.raises(BadSignature, match="false signature"):
        verify(SUPERBLOCK, others, policy)


def test_signature_under_the_id_of_another_key_is_false():
    policy = SignaturePolicy.all_of([ED25519.public()])
    forged = Signature("ed25519", ED25519.key_id, sign(SUPERBLOCK, OTHER).signature)
    with pytest.raises(BadSignature):
        verify(SUPERBLOCK, [forged], policy)


def test_algorithm_is_the_keys_not_the_envelopes():
    made = sign(SUPERBLOCK, ED25519)
    with pytest.raises(BadSignature, match="false"):
        verify(
            SUPERBLOCK,
            [Signature("ecdsa-p256", made.key_id, made.signature)],
            SignaturePolicy.all_of([ED25519.public()]),
        )


def test_too_many_or_too_long_signatures_are_refused_before_any_is_checked():
    policy = SignaturePolicy.all_of([ED25519.public()])
    valid = sign(SUPERBLOCK, ED25519)
    verify(SUPERBLOCK, [valid] * limits.SIGNATURES_MAX, policy)
    with pytest.raises(LimitExceeded, match="too many signatures"):
        verify(SUPERBLOCK, [valid] * (limits.SIGNATURES_MAX + 1), policy)
    with pytest.raises(LimitExceeded, match="signature 1 is too long"):
        verify(SUPERBLOCK, [valid, Signature("x", b"", bytes(limits.SIGNATURE_BYTES_MAX + 1))], policy)


@pytest.mark.parametrize(
    ("keys", "threshold"), [((), 0), ((), 1), ((ED25519,), 0), ((ED25519,), 2), ((ED25519, ED25519), 2)]
)
def test_policies_that_would_pass_too_much_cannot_be_made(keys, threshold):
    with pytest.raises(ValueError, match=r"threshold|twice"):
        SignaturePolicy(tuple(key.public() for key in keys), threshold)


@pytest.mark.parametrize("curve", ["P-384", "P-521", "secp256k1"])
def test_other_curves_never_become_keys(curve):
    pem = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}"],
        capture_output=True,
        check=True,
    ).stdout
    with pytest.raises(KeyFileError, match="unknown kind"):
        parse_key(pem)


@given(
    st.lists(
        st.builds(
            Signature,
            st.sampled_from(["ed25519", "ecdsa-p256", "x"]),
            st.sampled_from([ED25519.key_id, ECDSA.key_id, b""]),
            st.binary(max_size=80),
        ),
        max_size=5,
    )
)
def test_garbage_signatures_are_refused(signatures):
    for threshold in (1, 2):
        with pytest.raises(BadSignature):
            verify(SUPERBLOCK, signatures, SignaturePolicy((ED25519.public(), ECDSA.public()), threshold))


@pytest.mark.parametrize("key", KEYS, ids=ids)
def test_messages_do_not_show_the_signing_key(key):
    with pytest.raises(BadSignature) as caught:
        verify(b"other", [sign(SUPERBLOCK, key)], SignaturePolicy.all_of([key.public()]))
    assert key.raw[:8].hex() not in f"{caught.value} {caught.value!r} {sign(SUPERBLOCK, key)!r}"
