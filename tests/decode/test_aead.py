"""Known answers for the ciphers and the digest as we call them, and what is left behind by a wrong tag."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.decode import aead
from rafsfs.errors import MacMismatch
from rafsfs.format.chunk import Suite

KEY_15 = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
IV_15 = "cafebabefacedbaddecaf888"
PLAIN_15 = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
CIPHER_15 = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)

# (key, nonce, additional data, plaintext, ciphertext, tag) in hex. McGrew and Viega, 'The Galois/Counter Mode
# of Operation', appendix B, test cases 13 to 16: those with a key of 256 and an IV of 96 bits.
AES_256_GCM = [
    ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        "00" * 32,
        "00" * 12,
        "",
        "00" * 16,
        "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (KEY_15, IV_15, "", PLAIN_15, CIPHER_15, "b094dac5d93471bdec1a502270e3cc6c"),
    (
        KEY_15,
        IV_15,
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        PLAIN_15[:120],
        CIPHER_15[:120],
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]

# RFC 8439, section 2.8.2
CHACHA20_POLY1305 = [
    (
        bytes(range(0x80, 0xA0)).hex(),
        "070000004041424344454647",
        "50515253c0c1c2c3c4c5c6c7",
        (
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
            b"sunscreen would be it."
        ).hex(),
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b6116",
        "1ae10b594f09e26a7e902ecbd0600691",
    ),
]
VECTORS = [
    (suite, *map(bytes.fromhex, vector))
    for suite, vectors in (
        (Suite.AES_256_GCM, AES_256_GCM),
        (Suite.CHACHA20_POLY1305, CHACHA20_POLY1305),
    )
    for vector in vectors
]

# BLAKE3 test_vectors.json: input is 0, 1, ... 250, 0, 1, ... of the length; first 32 bytes of 'hash'.
BLAKE3 = [
    (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
    (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
    (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
    (102_400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
]


@pytest.mark.parametrize(("suite", "key", "nonce", "aad", "plain", "cipher", "tag"), VECTORS)
def test_seals_and_opens_known_answers(suite, key, nonce, aad, plain, cipher, tag):
    assert aead.seal(suite, key, nonce, aad, plain) == cipher + tag
    scratch = memoryview(bytearray(len(plain)))
    aead.open_into(suite, key, nonce, aad, cipher + tag, scratch)
    assert scratch == plain


@pytest.mark.parametrize(("suite", "key", "nonce", "aad", "plain", "cipher", "tag"), VECTORS)
def test_any_changed_bit_is_refused_and_scratch_is_wiped(suite, key, nonce, aad, plain, cipher, tag):
    parts = {"key": key, "nonce": nonce, "aad": aad, "sealed": cipher + tag}
    for name, value in parts.items():
        for position in range(len(value)):
            changed = bytearray(value)
            changed[position] ^= 1 << position % 8
            scratch = memoryview(bytearray(b"\xa5" * len(plain)))
            given_parts = parts | {name: bytes(changed)}
            with pytest.raises(MacMismatch, match="tampered"):
                aead.open_into(suite, scratch=scratch, **given_parts)
            assert not any(scratch)


@pytest.mark.parametrize("suite", [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305])
@given(plain=st.binary(max_size=300), aad=st.binary(max_size=40), key=st.binary(min_size=32, max_size=32))
def test_what_one_seals_opens_with_nothing_else(suite, plain, aad, key):
    sealed = bytes(aead.seal(suite, key, aead.ZERO_NONCE, aad, plain))
    assert len(sealed) == len(plain) + aead.TAG_BYTES
    scratch = memoryview(bytearray(len(plain)))
    aead.open_into(suite, key, aead.ZERO_NONCE, aad, sealed, scratch)
    assert scratch == plain
    other = Suite.AES_256_GCM if suite is Suite.CHACHA20_POLY1305 else Suite.CHACHA20_POLY1305
    with pytest.raises(MacMismatch):
        aead.open_into(other, key, aead.ZERO_NONCE, aad, sealed, scratch)
    with pytest.raises(MacMismatch):
        aead.open_into(suite, key, aead.ZERO_NONCE, aad + b"x", sealed, scratch)


def test_suite_without_keys_seals_nothing():
    with pytest.raises(AssertionError):
        aead.seal(Suite.INTEGRITY_ONLY, bytes(32), bytes(12), b"", b"")


@pytest.mark.parametrize(("length", "digest"), BLAKE3)
def test_digest_gives_known_answers(length, digest):
    assert blake3(bytes(position % 251 for position in range(length))).hexdigest() == digest
