"""Wraps the image key for recipients and unwraps it; believes no image key, for only a commitment proves one.

A symmetric key or a passphrase (through scrypt, RFC 7914) wraps by AES-KW (RFC 3394), which knows nothing of
the image. An identity is sealed to by HPKE (RFC 9180, base mode), whose info binds the image id.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke, keywrap
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from rafsfs import limits
from rafsfs.errors import FormatError, LimitExceeded, WrongKey
from rafsfs.format.envelope import Recipient
from rafsfs.trust.derive import KEY_BYTES, key_commitment
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import (
    KEY_ID_BYTES,
    HybridRecipient,
    Identity,
    Passphrase,
    RecipientKey,
    SymmetricKey,
    X25519Recipient,
    labelled_id,
)

SCRYPT_LOG2_N_DEFAULT = 17  # 128 MiB and half a second: what OWASP asks of scrypt for passwords
SCRYPT_SALT_BYTES = 16
_SHOWN_MAX = 8  # of recipients in one line of an error

_AES_KW_BYTES = KEY_BYTES + 8  # RFC 3394 section 2.2.1: one block of integrity check
_WRAPPED_BYTES = {
    "symmetric": _AES_KW_BYTES,
    "passphrase": _AES_KW_BYTES,
    "x25519": 32 + KEY_BYTES + 16,  # encapsulation, AEAD tag last
    "mlkem768x25519": 1_088 + 32 + KEY_BYTES + 16,
}
_HPKE_SUITES = {
    kind: hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    for kind, kem in (("x25519", hpke.KEM.X25519), ("mlkem768x25519", hpke.KEM.MLKEM768_X25519))
}


def wrap(
    image_key: bytes,
    image_id: bytes,
    to: SymmetricKey | RecipientKey | Passphrase,
    *,
    log2_n: int = SCRYPT_LOG2_N_DEFAULT,
) -> Recipient:
    """Wrap the image key (32 bytes) of image ``image_id`` for one recipient; ``log2_n`` is for passphrases.

    Raises LimitExceeded for a scrypt cost that no reader would accept.
    """
    if len(image_key) != KEY_BYTES:
        raise ValueError(f"an image key has {KEY_BYTES} bytes, not {len(image_key)}")
    if isinstance(to, SymmetricKey):
        return Recipient(to.family, to.key_id, keywrap.aes_key_wrap(to.raw, image_key))
    if isinstance(to, X25519Recipient | HybridRecipient):
        suite = _HPKE_SUITES[to.family]
        return Recipient(to.family, to.key_id, suite.encrypt(image_key, to.public_key(), _info(image_id)))
    _check_scrypt_cost(log2_n)
    salt = os.urandom(SCRYPT_SALT_BYTES)
    wrapped = keywrap.aes_key_wrap(_stretch(to, salt, log2_n), image_key)
    return Recipient("passphrase", labelled_id("passphrase", salt), wrapped, salt, log2_n)


def check_recipients(recipients: Sequence[Recipient]) -> None:
    """Refuse an envelope that is malformed or would cost too much, before any key is tried.

    Raises LimitExceeded or FormatError. Kinds that this release does not know are another program's to open
    and are only held to the limits.
    """
    if len(recipients) > limits.RECIPIENTS_MAX:
        raise LimitExceeded(
            "too many recipients", expected=f"at most {limits.RECIPIENTS_MAX}", found=len(recipients)
        )
    passphrases = sum(recipient.kind == "passphrase" for recipient in recipients)
    if passphrases > limits.PASSPHRASE_RECIPIENTS_MAX:
        most = f"at most {limits.PASSPHRASE_RECIPIENTS_MAX}"
        raise LimitExceeded("too many passphrase recipients", expected=most, found=passphrases)
    for index, recipient in enumerate(recipients):
        _check_recipient(index, recipient)


def unwrap(recipients: Sequence[Recipient], image_id: bytes, keyring: KeyRing) -> Iterator[bytes]:
    """Give image keys to be tried against the key commitment, the cheap ones first.

    It never runs out: whoever accepted none of them gets WrongKey, which says which keys would open the image
    and which there are. Raises what `check_recipients` does before any work is done.
    """
    check_recipients(recipients)
    opened, refused = [], []
    for recipient, image_key in _attempts(recipients, image_id, keyring):
        if image_key is None:
            refused.append(recipient)
        else:
            opened.append(recipient)
            yield image_key
    if opened:
        raise WrongKey(
            "envelope does not belong to this image: the image key in it is not the one committed to",
            found=_listed([_described(recipient) for recipient in opened]),
            hint="the envelope was exchanged or changed; fetch the image anew from a source you trust",
        )
    raise _wrong_key(recipients, refused, keyring)


def unwrap_committed(
    recipients: Sequence[Recipient], image_id: bytes, keyring: KeyRing, commitment: bytes
) -> bytes:
    """Give the image key that the superblock commits to. Raises as `unwrap` does."""
    for candidate in unwrap(recipients, image_id, keyring):
        if hmac.compare_digest(key_commitment(candidate, image_id), commitment):
            return candidate
    raise AssertionError("unwrap() ends by raising")


def _attempts(
    recipients: Sequence[Recipient], image_id: bytes, keyring: KeyRing
) -> Iterator[tuple[Recipient, bytes | None]]:
    """Try each key on the recipients that name it, each passphrase on all that ask for one; None: refused."""
    symmetric = {key.key_id: key for key in keyring.symmetric}
    identities = {(key.family, key.key_id): key for key in keyring.identities}
    for recipient in recipients:
        if recipient.kind == "symmetric" and (key := symmetric.get(recipient.key_id)):
            yield recipient, _unwrap_aes(key.raw, recipient.wrapped)
        elif identity := identities.get((recipient.kind, recipient.key_id)):
            yield recipient, _unwrap_hpke(recipient, identity, image_id)
    for recipient in recipients:
        if recipient.kind == "passphrase":
            for passphrase in keyring.passphrases:
                stretched = _stretch(passphrase, recipient.salt, recipient.log2_n)
                yield recipient, _unwrap_aes(stretched, recipient.wrapped)


def _unwrap_aes(key: bytes, wrapped: bytes) -> bytes | None:
    try:
        return keywrap.aes_key_unwrap(key, wrapped)
    except keywrap.InvalidUnwrap:
        return None


def _unwrap_hpke(recipient: Recipient, identity: Identity, image_id: bytes) -> bytes | None:
    try:
        return _HPKE_SUITES[recipient.kind].decrypt(
            recipient.wrapped, identity.private_key(), _info(image_id)
        )
    except InvalidTag:  # also the library's word for an encapsulation that is no point of the curve
        return None


def _info(image_id: bytes) -> bytes:
    return b"rafsfs image key" + image_id


def _stretch(passphrase: Passphrase, salt: bytes, log2_n: int) -> bytes:
    scrypt = Scrypt(salt=salt, length=KEY_BYTES, n=1 << log2_n, r=limits.SCRYPT_R, p=limits.SCRYPT_P)
    return scrypt.derive(passphrase.secret)


def _check_recipient(index: int, recipient: Recipient) -> None:
    if len(recipient.wrapped) > limits.WRAPPED_KEY_BYTES_MAX:
        raise LimitExceeded(
            f"wrapped key of recipient {index} is too long",
            expected=f"at most {limits.WRAPPED_KEY_BYTES_MAX} bytes",
            found=len(recipient.wrapped),
        )
    wrapped_bytes = _WRAPPED_BYTES.get(recipient.kind)
    if wrapped_bytes is None:
        return
    salt_bytes = SCRYPT_SALT_BYTES if recipient.kind == "passphrase" else 0
    for what, expected, found in (
        ("key id", KEY_ID_BYTES, len(recipient.key_id)),
        ("wrapped key", wrapped_bytes, len(recipient.wrapped)),
        ("salt", salt_bytes, len(recipient.salt)),
    ):
        if found != expected:
            raise FormatError(
                f"malformed {what} of recipient {index} ({recipient.kind})",
                expected=f"{expected} bytes",
                found=found,
            )
    if recipient.kind == "passphrase":
        _check_scrypt_cost(recipient.log2_n)
    elif recipient.log2_n:  # a field without a use would be one that anybody can change
        raise FormatError(
            f"malformed cost of recipient {index} ({recipient.kind})", expected=0, found=recipient.log2_n
        )


def _check_scrypt_cost(log2_n: int) -> None:
    if not limits.SCRYPT_LOG2_N_MIN <= log2_n <= limits.SCRYPT_LOG2_N_MAX:
        raise LimitExceeded(
            "scrypt cost out of bounds",
            expected=f"log2 of N from {limits.SCRYPT_LOG2_N_MIN} to {limits.SCRYPT_LOG2_N_MAX}",
            found=log2_n,
        )


def _wrong_key(recipients: Sequence[Recipient], refused: Sequence[Recipient], keyring: KeyRing) -> WrongKey:
    damaged = [_described(recipient) for recipient in refused if recipient.kind != "passphrase"]
    if damaged:
        hint = f"what is wrapped for {_listed(damaged)} was changed, or is another image's"
    elif refused:
        hint = "the passphrase is wrong"
    else:
        hint = "give one of the expected keys, or have the image rewrapped for yours"
    had = [f"{key.family} {key.key_id.hex()}" for key in (*keyring.symmetric, *keyring.identities)]
    had += ["a passphrase" for _ in keyring.passphrases]
    return WrongKey(
        "no given key opens this image",
        expected=_listed([_described(recipient) for recipient in recipients]),
        found=_listed(had),
        hint=hint,
    )


def _described(recipient: Recipient) -> str:
    if recipient.kind == "passphrase":
        return "a passphrase"
    # The name of a kind that we do not know is a stranger's text, perhaps with terminal escapes in it.
    kind = recipient.kind if recipient.kind in _WRAPPED_BYTES else "a kind unknown to this release"
    return f"{kind} {recipient.key_id[:KEY_ID_BYTES].hex()}"


def _listed(keys: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(keys))
    more = f" and {len(distinct) - _SHOWN_MAX} more" if len(distinct) > _SHOWN_MAX else ""
    return (" or ".join(distinct[:_SHOWN_MAX]) + more) or "none"
