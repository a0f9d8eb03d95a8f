"""The envelope: who can open an image and who signed it. Not signed itself, so that keys can be rewrapped.

It also carries the superblock's seal: an HMAC under the image key, which makes every field of the superblock
authentic for whoever holds a key, signature or not. Parsing decides nothing about trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rafsfs.errors import LimitExceeded
from rafsfs.format import canonical
from rafsfs.limits import (
    ENVELOPE_BYTES_MAX,
    RECIPIENTS_MAX,
    SCRYPT_LOG2_N_MAX,
    SIGNATURE_BYTES_MAX,
    SIGNATURES_MAX,
    WRAPPED_KEY_BYTES_MAX,
)

KEY_ID_BYTES = 16
SEAL_BYTES = 32
SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Recipient:
    """The image key, wrapped for one key, not authenticated.

    ``key_id`` names the key that opens it; a passphrase's is made of the salt and only tells entries apart.
    ``salt`` and ``log2_n`` (scrypt's cost N = 2^log2_n) are a passphrase's alone.
    """

    kind: str
    key_id: bytes
    wrapped: bytes
    salt: bytes = b""
    log2_n: int = 0


@dataclass(frozen=True, slots=True)
class Signature:
    """A detached signature over the superblock's bytes; ``algorithm`` is ``ed25519`` or ``ecdsa-p256``."""

    algorithm: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """Recipients, signatures and the superblock's seal (empty in the integrity-only suite)."""

    recipients: tuple[Recipient, ...] = ()
    signatures: tuple[Signature, ...] = ()
    seal: bytes = b""

    def pack(self) -> bytes:
        """Spell it canonically."""
        return canonical.pack(
            {
                "recipients": [
                    {
                        "kind": recipient.kind,
                        "key_id": recipient.key_id,
                        "wrapped": recipient.wrapped,
                        "salt": recipient.salt,
                        "log2_n": recipient.log2_n,
                    }
                    for recipient in self.recipients
                ],
                "signatures": [
                    {"algorithm": item.algorithm, "key_id": item.key_id, "signature": item.signature}
                    for item in self.signatures
                ],
                "seal": self.seal,
            }
        )


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope; raises FormatError or LimitExceeded."""
    fields = canonical.Fields(
        canonical.unpack(data, what="envelope", max_bytes=ENVELOPE_BYTES_MAX), "envelope"
    )
    recipients = _bounded(fields.take("recipients", list), RECIPIENTS_MAX, "recipients")
    signatures = _bounded(fields.take("signatures", list), SIGNATURES_MAX, "signatures")
    seal = fields.octets("seal", 0, SEAL_BYTES)
    fields.end()
    return Envelope(tuple(map(_recipient, recipients)), tuple(map(_signature, signatures)), seal)


def _bounded(items: list[Any], most: int, what: str) -> list[Any]:
    if len(items) > most:
        raise LimitExceeded(f"envelope has too many {what}", expected=f"at most {most}", found=len(items))
    return items


def _recipient(value: object) -> Recipient:
    fields = canonical.Fields(value, "recipient")
    recipient = Recipient(
        kind=fields.take("kind", str),
        key_id=fields.octets("key_id", KEY_ID_BYTES),
        wrapped=fields.take("wrapped", bytes),
        salt=fields.octets("salt", 0, SALT_BYTES),
        log2_n=fields.integer("log2_n", 0, SCRYPT_LOG2_N_MAX),
    )
    fields.end()
    if len(recipient.wrapped) > WRAPPED_KEY_BYTES_MAX:
        raise LimitExceeded(
            "wrapped key", expected=f"at most {WRAPPED_KEY_BYTES_MAX} bytes", found=len(recipient.wrapped)
        )
    return recipient


def _signature(value: object) -> Signature:
    fields = canonical.Fields(value, "signature")
    signature = Signature(
        algorithm=fields.take("algorithm", str),
        key_id=fields.octets("key_id", KEY_ID_BYTES),
        signature=fields.take("signature", bytes),
    )
    fields.end()
    if len(signature.signature) > SIGNATURE_BYTES_MAX:
        raise LimitExceeded(
            "signature", expected=f"at most {SIGNATURE_BYTES_MAX} bytes", found=len(signature.signature)
        )
    return signature
