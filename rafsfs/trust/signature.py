"""Detached signatures over the superblock's bytes and the policy that asks for them; never parses them.

What is signed is a label and the superblock: ``"rafsfs superblock signature 1" NUL superblock``, by Ed25519
(RFC 8032) or by ECDSA on P-256 with SHA-256 (FIPS 186-5), DER.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from rafsfs import limits
from rafsfs.errors import BadSignature, LimitExceeded
from rafsfs.format.envelope import Signature
from rafsfs.trust.material import Ed25519SigningKey, Ed25519VerifyKey, SigningKey, VerifyKey

_DOMAIN = b"rafsfs superblock signature 1\0"


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    """At least ``threshold`` of the ``required`` keys, all of them different, must have signed."""

    required: tuple[VerifyKey, ...]
    threshold: int

    def __post_init__(self) -> None:
        if len(set(self.required)) != len(self.required):
            raise ValueError("a key is required twice; one signature would count for two")
        if not 1 <= self.threshold <= len(self.required):
            raise ValueError(f"threshold {self.threshold} of {len(self.required)} keys")

    @classmethod
    def all_of(cls, required: Sequence[VerifyKey]) -> Self:
        """Require every one of the keys, of which there is at least one."""
        return cls(tuple(required), len(required))


def sign(superblock: bytes, key: SigningKey) -> Signature:
    """Sign the superblock's bytes."""
    message = _DOMAIN + superblock
    if isinstance(key, Ed25519SigningKey):
        made = key.private_key().sign(message)
    else:
        made = key.private_key().sign(message, ec.ECDSA(hashes.SHA256()))
    return Signature(key.family, key.key_id, made)


def verify(superblock: bytes, signatures: Sequence[Signature], policy: SignaturePolicy) -> None:
    """Raise BadSignature, naming the keys that fail, unless the policy is met; LimitExceeded for too many.

    Signatures of other keys are ignored. Of several signatures by one key a single valid one is enough, so
    that nobody can break an image by adding false ones.
    """
    if len(signatures) > limits.SIGNATURES_MAX:
        raise LimitExceeded(
            "too many signatures", expected=f"at most {limits.SIGNATURES_MAX}", found=len(signatures)
        )
    for index, signature in enumerate(signatures):
        if len(signature.signature) > limits.SIGNATURE_BYTES_MAX:
            raise LimitExceeded(
                f"signature {index} is too long",
                expected=f"at most {limits.SIGNATURE_BYTES_MAX} bytes",
                found=len(signature.signature),
            )
    valid = 0
    failed = []
    for key in policy.required:
        made = [signature for signature in signatures if signature.key_id == key.key_id]
        if any(_is_valid(superblock, signature, key) for signature in made):
            valid += 1
        else:
            failed.append(f"{'false' if made else 'no'} signature of {key.family} {key.key_id.hex()}")
    if valid < policy.threshold:
        raise BadSignature(
            "image is not signed as required",
            expected=f"{policy.threshold} valid of {len(policy.required)} keys",
            found=f"{valid} valid, {', '.join(failed)}",
            hint="do not use this image unless you know why",
        )


def _is_valid(superblock: bytes, signature: Signature, key: VerifyKey) -> bool:
    if signature.algorithm != key.family:
        return False
    message = _DOMAIN + superblock
    try:
        if isinstance(key, Ed25519VerifyKey):
            key.public_key().verify(signature.signature, message)
        else:
            key.public_key().verify(signature.signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
