"""The kinds of keys and their public halves; does no I/O and shows no secret to anybody."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import ClassVar, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from rafsfs import limits
from rafsfs.errors import KeyFileError

KEY_ID_BYTES = 16
_MLKEM768_SEED_BYTES = 64  # FIPS 203 section 7.1: d and z
_MLKEM768_PUBLIC_BYTES = 1_184  # FIPS 203 table 3


def labelled_id(family: str, material: bytes) -> bytes:
    """Name ``material`` in 16 bytes: labelled SHA-256, cut. Of random bytes it tells nothing but equality."""
    return hashlib.sha256(b"rafsfs key id 1 " + family.encode() + b"\0" + material).digest()[:KEY_ID_BYTES]


@dataclass(frozen=True, repr=False)
class _Key:
    """``raw`` is the whole key, in the encoding that the class names. KeyFileError when it is none."""

    raw: bytes
    kind: ClassVar[str]
    family: ClassVar[str]  # what an identity and its public half have in common
    raw_bytes: ClassVar[int]
    secret: ClassVar[bool]

    def __post_init__(self) -> None:
        if len(self.raw) != self.raw_bytes:
            raise KeyFileError(
                f"malformed {self.kind} key", expected=f"{self.raw_bytes} bytes", found=f"{len(self.raw)}"
            )
        try:
            self._check()
        except ValueError:  # its words are about the library's innards, and its place is in key bytes
            raise KeyFileError(f"unusable {self.kind} key", found="not a valid key of its kind") from None
        except UnsupportedAlgorithm as error:
            raise KeyFileError(
                f"this build of the cryptography package cannot use {self.kind} keys",
                hint="install one that is built with OpenSSL 3.5 or later",
            ) from error

    def _check(self) -> None:
        """Raise ValueError when the raw bytes have the right length but are no key."""

    def _named(self) -> bytes:
        return self.raw

    @property
    def key_id(self) -> bytes:
        """16 bytes that name the key; the same for an identity and its public half."""
        return labelled_id(self.family, self._named())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key_id={self.key_id.hex()})"


class _Secret(_Key):
    secret = True

    @classmethod
    def generate(cls) -> Self:
        """Make a new key. Every kind but ECDSA's is by its specification a string of random bytes."""
        return cls(os.urandom(cls.raw_bytes))


class _Public(_Key):
    secret = False


class SymmetricKey(_Secret):
    """32 random bytes: wraps image keys, or is the secret of a dedup domain."""

    kind, family, raw_bytes = "symmetric", "symmetric", 32


class X25519Recipient(_Public):
    """The public half of an X25519 identity (RFC 7748, 32 bytes)."""

    kind, family, raw_bytes = "x25519-recipient", "x25519", 32

    def _check(self) -> None:
        # A point of low order gives all senders one shared key, known to everybody; exchange() refuses those.
        x25519.X25519PrivateKey.generate().exchange(self.public_key())

    def public_key(self) -> x25519.X25519PublicKey:
        """Give the library's own object."""
        return x25519.X25519PublicKey.from_public_bytes(self.raw)


class X25519Identity(_Secret):
    """An X25519 private key (RFC 7748, 32 bytes)."""

    kind, family, raw_bytes = "x25519-identity", "x25519", 32

    def _named(self) -> bytes:
        return self.recipient().raw

    def private_key(self) -> x25519.X25519PrivateKey:
        """Give the library's own object."""
        return x25519.X25519PrivateKey.from_private_bytes(self.raw)

    def recipient(self) -> X25519Recipient:
        """Give the public half."""
        return X25519Recipient(self.private_key().public_key().public_bytes_raw())


class HybridRecipient(_Public):
    """The public half of a post-quantum identity: ML-KEM-768 encapsulation key (1,184 bytes), X25519 (32)."""

    kind, family, raw_bytes = "mlkem768x25519-recipient", "mlkem768x25519", _MLKEM768_PUBLIC_BYTES + 32

    def _check(self) -> None:
        self.public_key()
        X25519Recipient(self.raw[_MLKEM768_PUBLIC_BYTES:])

    def public_key(self) -> hpke.MLKEM768X25519PublicKey:
        """Give the library's own object."""
        lattice = mlkem.MLKEM768PublicKey.from_public_bytes(self.raw[:_MLKEM768_PUBLIC_BYTES])
        curve = x25519.X25519PublicKey.from_public_bytes(self.raw[_MLKEM768_PUBLIC_BYTES:])
        return hpke.MLKEM768X25519PublicKey(lattice, curve)


class HybridIdentity(_Secret):
    """A post-quantum identity: ML-KEM-768 seed (64 bytes, FIPS 203), X25519 private key (32)."""

    kind, family, raw_bytes = "mlkem768x25519-identity", "mlkem768x25519", _MLKEM768_SEED_BYTES + 32

    def _check(self) -> None:
        self.private_key()

    def _named(self) -> bytes:
        return self.recipient().raw

    def _halves(self) -> tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]:
        return (
            mlkem.MLKEM768PrivateKey.from_seed_bytes(self.raw[:_MLKEM768_SEED_BYTES]),
            x25519.X25519PrivateKey.from_private_bytes(self.raw[_MLKEM768_SEED_BYTES:]),
        )

    def private_key(self) -> hpke.MLKEM768X25519PrivateKey:
        """Give the library's own object."""
        return hpke.MLKEM768X25519PrivateKey(*self._halves())

    def recipient(self) -> HybridRecipient:
        """Give the public half."""
        return HybridRecipient(b"".join(half.public_key().public_bytes_raw() for half in self._halves()))


class Ed25519VerifyKey(_Public):
    """The public half of an Ed25519 signing key (RFC 8032, 32 bytes)."""

    kind, family, raw_bytes = "ed25519-public", "ed25519", 32

    def _check(self) -> None:
        self.public_key()

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """Give the library's own object."""
        return ed25519.Ed25519PublicKey.from_public_bytes(self.raw)


class Ed25519SigningKey(_Secret):
    """An Ed25519 private key (RFC 8032, 32 bytes)."""

    kind, family, raw_bytes = "ed25519-signing", "ed25519", 32

    def _named(self) -> bytes:
        return self.public().raw

    def private_key(self) -> ed25519.Ed25519PrivateKey:
        """Give the library's own object."""
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.raw)

    def public(self) -> Ed25519VerifyKey:
        """Give the public half."""
        return Ed25519VerifyKey(self.private_key().public_key().public_bytes_raw())


class EcdsaP256VerifyKey(_Public):
    """The public half of an ECDSA key on P-256: uncompressed point (SEC 1 section 2.3.3, 65 bytes)."""

    kind, family, raw_bytes = "ecdsa-p256-public", "ecdsa-p256", 65

    def _check(self) -> None:
        self.public_key()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Give the library's own object."""
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self.raw)


class EcdsaP256SigningKey(_Secret):
    """An ECDSA private key on P-256: the scalar, big-endian (32 bytes)."""

    kind, family, raw_bytes = "ecdsa-p256-signing", "ecdsa-p256", 32

    @classmethod
    def generate(cls) -> Self:
        """Make a new key."""
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of(cls, private: ec.EllipticCurvePrivateKey) -> Self:
        """Take over a key of the library's, which must be on P-256."""
        return cls(private.private_numbers().private_value.to_bytes(cls.raw_bytes, "big"))

    def _check(self) -> None:
        self.private_key()

    def _named(self) -> bytes:
        return self.public().raw

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """Give the library's own object."""
        return ec.derive_private_key(int.from_bytes(self.raw, "big"), ec.SECP256R1())

    def public(self) -> EcdsaP256VerifyKey:
        """Give the public half."""
        point = self.private_key().public_key()
        return EcdsaP256VerifyKey(point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


@dataclass(frozen=True, repr=False)
class Passphrase:
    """What a person typed. It has no id: anything made of it could be guessed at without scrypt's cost."""

    secret: bytes

    def __post_init__(self) -> None:
        if not self.secret:
            raise KeyFileError("empty passphrase", hint="give one of at least one character")
        if len(self.secret) > limits.PASSPHRASE_BYTES_MAX:
            raise KeyFileError(
                "passphrase too long",
                expected=f"at most {limits.PASSPHRASE_BYTES_MAX} bytes",
                found=f"{len(self.secret)}",
            )

    def __repr__(self) -> str:
        return "Passphrase(...)"


Identity = X25519Identity | HybridIdentity
RecipientKey = X25519Recipient | HybridRecipient
SigningKey = Ed25519SigningKey | EcdsaP256SigningKey
VerifyKey = Ed25519VerifyKey | EcdsaP256VerifyKey
Key = SymmetricKey | Identity | RecipientKey | SigningKey | VerifyKey
