"""What is derived from the image key and from a dedup secret, and checked against it; no I/O, no state.

HKDF-SHA256 (RFC 5869) without salt for keys, HMAC-SHA256 (RFC 2104) for everything computed with them.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.utils import Buffer

from rafsfs.errors import MacMismatch, WrongKey

KEY_BYTES = 32
DEDUP_DOMAIN_ID_BYTES = 16
PAGE_SALT_BYTES = 16


def derive(image_key: bytes, label: str, length: int = KEY_BYTES) -> bytes:
    """Derive ``length`` bytes from a key of 32, independent of those of any other label.

    Labels in use: ``meta`` and ``page salt`` (pages), ``commit``, ``superblock``; of a dedup secret
    ``convergent``, and of the key which that gives ``dedup domain``.
    """
    if len(image_key) != KEY_BYTES:
        raise ValueError(f"keys are derived from {KEY_BYTES} bytes, not from {len(image_key)}")
    info = b"rafsfs 1 " + label.encode()
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(image_key)


def key_commitment(image_key: bytes, image_id: bytes) -> bytes:
    """Commit to the image key: 32 bytes for the superblock that only this key gives for this image id."""
    return hmac.digest(derive(image_key, "commit"), image_id, "sha256")


def check_commitment(image_key: bytes, image_id: bytes, commitment: bytes) -> None:
    """Raise WrongKey unless the superblock of image ``image_id`` commits to this image key."""
    if not hmac.compare_digest(key_commitment(image_key, image_id), commitment):
        raise WrongKey(
            "image key is not the one that the superblock commits to",
            hint="the envelope belongs to another image, or one of the two was changed",
        )


def superblock_seal(image_key: bytes, superblock: bytes) -> bytes:
    """Seal the superblock's bytes: 32 bytes that nobody without the image key can make for another one."""
    return hmac.digest(derive(image_key, "superblock"), superblock, "sha256")


def check_superblock_seal(image_key: bytes, superblock: bytes, seal: bytes) -> None:
    """Raise MacMismatch unless ``seal`` is the one that this image key gives the superblock."""
    if not hmac.compare_digest(superblock_seal(image_key, superblock), seal):
        raise MacMismatch(
            "superblock was changed after it was sealed", hint="fetch the image anew from a source you trust"
        )


def page_salt(image_key: bytes, digest: bytes) -> bytes:
    """Name the metadata pages that an image key is going to encrypt, by the digest of all of them.

    An image key outlives the pages that it was made with: others under the same page numbers, which are the
    nonces, need another page key.
    """
    return hmac.digest(derive(image_key, "page salt"), digest, "sha256")[:PAGE_SALT_BYTES]


def page_key(image_key: bytes, salt: bytes) -> bytes:
    """Derive the key of the metadata pages that ``salt``, of the superblock, names."""
    return hmac.digest(derive(image_key, "meta"), salt, "sha256")


def convergent_key(dedup_secret: bytes) -> bytes:
    """Derive K_conv, the root of all keys of a dedup domain, from the domain's secret."""
    return derive(dedup_secret, "convergent")


def convergent_chunk_key(k_conv: bytes, aad: bytes, compressed: Buffer) -> bytes:
    """Derive the key of one chunk from its compressed bytes and its AAD, which has one length for all chunks.

    Of the compressed bytes, since the plain ones would give one key and nonce to two messages as soon as the
    compressor changes.
    """
    return hmac.digest(k_conv, b"rafsfs chunk" + aad + hashlib.sha256(compressed).digest(), "sha256")


def convergent_image_key(k_conv: bytes, suite: int, digest: bytes) -> bytes:
    """Derive the image key from the suite and the digest of all that it is going to encrypt."""
    return hmac.digest(k_conv, b"rafsfs image" + bytes((suite,)) + digest, "sha256")


def dedup_domain_id(k_conv: bytes) -> bytes:
    """Name the dedup domain in 16 bytes, which tell nothing of its key."""
    return derive(k_conv, "dedup domain", DEDUP_DOMAIN_ID_BYTES)
