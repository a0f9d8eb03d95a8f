"""The AEAD of each suite over caller-owned buffers; composes ``cryptography``'s primitives and adds nothing.

``*_into`` is used throughout because it alone releases the interpreter lock. Its buffer holds *unverified*
plaintext when the tag is wrong, so it must be private scratch that the caller wipes, never a reply buffer.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from rafsfs.errors import MacMismatch
from rafsfs.format.chunk import Suite
from rafsfs.format.record import Buffer

KEY_BYTES = 32
TAG_BYTES = 16
ZERO_NONCE = bytes(12)
"""For chunks: each chunk key seals one message in its life, so one nonce is enough."""


def _cipher(suite: Suite, key: bytes) -> AESGCM | ChaCha20Poly1305:
    assert suite.encrypts
    return AESGCM(key) if suite is Suite.AES_256_GCM else ChaCha20Poly1305(key)


def seal(suite: Suite, key: bytes, nonce: bytes, aad: bytes, plain: Buffer) -> bytearray:
    """Encrypt; returns ciphertext and tag, ``len(plain) + 16`` bytes."""
    sealed = bytearray(len(plain) + TAG_BYTES)
    _cipher(suite, key).encrypt_into(nonce, plain, aad, sealed)
    return sealed


def open_into(suite: Suite, key: bytes, nonce: bytes, aad: bytes, sealed: bytes, scratch: memoryview) -> None:
    """Decrypt ``sealed`` into ``scratch``, which is exactly 16 bytes shorter.

    Raises MacMismatch, with ``scratch`` wiped, when the tag is not the one that key, nonce and aad give.
    """
    try:
        _cipher(suite, key).decrypt_into(nonce, sealed, aad, scratch)
    except InvalidTag:
        scratch[:] = bytes(len(scratch))
        raise MacMismatch(
            "authentication tag does not match", hint="the bytes or the key were tampered with"
        ) from None
