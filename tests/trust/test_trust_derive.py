"""Derived keys against HMAC and RFC 5869 written out by hand, and the checks that stand on them."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import MacMismatch, WrongKey
from rafsfs.trust.derive import (
    check_commitment,
    check_superblock_seal,
    convergent_chunk_key,
    convergent_image_key,
    convergent_key,
    dedup_domain_id,
    derive,
    key_commitment,
    superblock_seal,
)

KEY = bytes(range(32))
IMAGE_ID = b"\xa5" * 16
SUPERBLOCK = b"any superblock"


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def hkdf(key, info, length):
    """RFC 5869 with no salt, which section 2.2 defines as 32 zero bytes."""
    prk = mac(bytes(32), key)
    block = out = b""
    for counter in range(1, 256):
        if len(out) >= length:
            break
        block = mac(prk, block + info + bytes((counter,)))
        out += block
    return out[:length]


def test_hkdf_written_out_here_gives_the_answers_of_rfc_5869():
    """Test case 3 of appendix A: no salt, no info."""
    assert hkdf(b"\x0b" * 22, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@pytest.mark.parametrize("length", [16, 32, 33, 100])
@pytest.mark.parametrize("label", ["meta", "commit", "superblock", "convergent"])
def test_derive_is_hkdf_with_our_labels(label, length):
    assert derive(KEY, label, length) == hkdf(KEY, b"rafsfs 1 " + label.encode(), length)


def test_derive_stays_as_it_is():
    """Images outlive releases."""
    assert derive(KEY, "meta").hex() == "6d1072af4905364ea563096ba21ba444033689f9cf43ab20abdcaf1d00dd2188"
    assert (
        key_commitment(KEY, IMAGE_ID).hex()
        == "7181bf4f385b6b90936aabbcf97139ae13f1cda59640d0ceb20d79d7b7c16e3f"
    )
    assert (
        superblock_seal(KEY, SUPERBLOCK).hex()
        == "467725a510703cf62ea094141a62c3f23326fc3154326cd8e76075506fdbb215"
    )
    k_conv = convergent_key(KEY)
    assert (
        convergent_chunk_key(k_conv, bytes(16), b"compressed").hex()
        == "ea455398bd9ab64d58af9fa7b1b531672d54e97188723e3935820744997efbff"
    )
    assert (
        convergent_image_key(k_conv, 1, bytes(32)).hex()
        == "dd18cf87f0acdbc2a711914cbb9ded17b45e0f5a54150facc80432a2a9315b5a"
    )
    assert dedup_domain_id(k_conv).hex() == "1ce30be70484651da97583bc39347e96"


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_keys_of_other_lengths_are_a_mistake(length):
    with pytest.raises(ValueError, match="32 bytes"):
        derive(bytes(length), "meta")


def test_commitment_and_seal_are_hmacs_under_their_own_keys():
    assert key_commitment(KEY, IMAGE_ID) == mac(hkdf(KEY, b"rafsfs 1 commit", 32), IMAGE_ID)
    assert superblock_seal(KEY, SUPERBLOCK) == mac(hkdf(KEY, b"rafsfs 1 superblock", 32), SUPERBLOCK)


def test_right_commitment_and_seal_pass():
    check_commitment(KEY, IMAGE_ID, key_commitment(KEY, IMAGE_ID))
    check_superblock_seal(KEY, SUPERBLOCK, superblock_seal(KEY, SUPERBLOCK))


def damaged(good):
    for position in range(len(good)):
        for bit in range(8):
            yield good[:position] + bytes((good[position] ^ 1 << bit,)) + good[position + 1 :]
    yield from (b"", good[:-1], good + b"\0", bytes(32), bytes(1_000))


def test_every_damaged_commitment_is_refused():
    for commitment in damaged(key_commitment(KEY, IMAGE_ID)):
        with pytest.raises(WrongKey):
            check_commitment(KEY, IMAGE_ID, commitment)


def test_every_damaged_seal_is_refused():
    for seal in damaged(superblock_seal(KEY, SUPERBLOCK)):
        with pytest.raises(MacMismatch):
            check_superblock_seal(KEY, SUPERBLOCK, seal)


def test_other_key_image_and_superblock_are_refused():
    other = bytes(32)
    with pytest.raises(WrongKey) as caught:
        check_commitment(other, IMAGE_ID, key_commitment(KEY, IMAGE_ID))
    assert other.hex() not in str(caught.value)
    with pytest.raises(WrongKey):
        check_commitment(KEY, bytes(16), key_commitment(KEY, IMAGE_ID))
    with pytest.raises(MacMismatch):
        check_superblock_seal(other, SUPERBLOCK, superblock_seal(KEY, SUPERBLOCK))
    for superblock in damaged(SUPERBLOCK):
        with pytest.raises(MacMismatch):
            check_superblock_seal(KEY, superblock, superblock_seal(KEY, SUPERBLOCK))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.binary(max_size=5_000))
def test_convergent_chunk_key_is_as_the_design_says(secret, aad, compressed):
    k_conv = convergent_key(secret)
    assert k_conv == hkdf(secret, b"rafsfs 1 convergent", 32)
    expected = mac(k_conv, b"rafsfs chunk" + aad + hashlib.sha256(compressed).digest())
    assert convergent_chunk_key(k_conv, aad, compressed) == expected
    assert convergent_chunk_key(k_conv, aad, memoryview(bytearray(compressed))) == expected


@given(st.integers(0, 255), st.binary(min_size=32, max_size=32))
def test_convergent_image_key_is_as_the_design_says(suite, digest):
    k_conv = convergent_key(KEY)
    assert convergent_image_key(k_conv, suite, digest) == mac(
        k_conv, b"rafsfs image" + bytes((suite,)) + digest
    )


def test_everything_derived_from_one_secret_differs():
    k_conv = convergent_key(KEY)
    chunks = {
        convergent_chunk_key(k_conv, aad, compressed)
        for aad in (bytes(16), b"\x01" + bytes(15))
        for compressed in (b"", b"a", bytes(32))
    }
    images = {convergent_image_key(k_conv, suite, bytes(32)) for suite in (1, 2, 3)}
    others = {
        derive(k, label) for k in (KEY, k_conv) for label in ("meta", "commit", "superblock", "dedup domain")
    }
    assert len(chunks | images | others | {KEY, k_conv}) == 6 + 3 + 8 + 2
    assert dedup_domain_id(k_conv) == derive(k_conv, "dedup domain")[:16]
    assert dedup_domain_id(convergent_key(bytes(32))) != dedup_domain_id(k_conv)
