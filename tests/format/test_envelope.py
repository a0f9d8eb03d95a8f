"""Envelopes: what packs parses, and the bounds on what anybody can write into one."""

import msgpack
import pytest

from rafsfs.errors import FormatError, LimitExceeded
from rafsfs.format import canonical
from rafsfs.format.envelope import Envelope, Recipient, Signature, parse_envelope
from rafsfs.limits import (
    ENVELOPE_BYTES_MAX,
    RECIPIENTS_MAX,
    SCRYPT_LOG2_N_MAX,
    SIGNATURE_BYTES_MAX,
    SIGNATURES_MAX,
    WRAPPED_KEY_BYTES_MAX,
)

RECIPIENT = Recipient("symmetric", b"i" * 16, b"w" * 40)
PASSPHRASE = Recipient("passphrase", b"p" * 16, b"w" * 40, b"s" * 16, 17)
SIGNATURE = Signature("ed25519", b"k" * 16, b"s" * 64)
SOUND = Envelope((RECIPIENT, PASSPHRASE), (SIGNATURE,), b"m" * 32)
FIELDS = msgpack.unpackb(SOUND.pack())


def changed(**fields):
    merged = {**FIELDS, **fields}
    return canonical.pack({name: value for name, value in merged.items() if value is not ...})


def with_recipient(**fields):
    merged = {**FIELDS["recipients"][0], **fields}
    return changed(recipients=[{name: value for name, value in merged.items() if value is not ...}])


def with_signature(**fields):
    merged = {**FIELDS["signatures"][0], **fields}
    return changed(signatures=[{name: value for name, value in merged.items() if value is not ...}])


@pytest.mark.parametrize(
    "envelope",
    [
        SOUND,
        Envelope(),
        Envelope(recipients=(Recipient("of the future", b"f" * 16, b""),)),
        Envelope(
            (Recipient("x", b"x" * 16, b"w" * WRAPPED_KEY_BYTES_MAX, b"", SCRYPT_LOG2_N_MAX),)
            * RECIPIENTS_MAX,
            (Signature("x", b"x" * 16, b"s" * SIGNATURE_BYTES_MAX),) * SIGNATURES_MAX,
        ),
    ],
    ids=["full", "empty", "unknown kind", "at the limits"],
)
def test_what_packs_parses(envelope):
    assert len(envelope.pack()) <= ENVELOPE_BYTES_MAX
    assert parse_envelope(envelope.pack()) == envelope


REFUSED = {
    "no recipients": (changed(recipients=...), FormatError, "'recipients'"),
    "no signatures": (changed(signatures=...), FormatError, "'signatures'"),
    "no seal": (changed(seal=...), FormatError, "'seal'"),
    "more than known": (changed(comment="hello"), FormatError, "'comment'"),
    "recipients in a map": (changed(recipients={}), FormatError, "'recipients'"),
    "too many recipients": (
        changed(recipients=FIELDS["recipients"][:1] * (RECIPIENTS_MAX + 1)),
        LimitExceeded,
        f"at most {RECIPIENTS_MAX}, found {RECIPIENTS_MAX + 1}",
    ),
    "too many signatures": (
        changed(signatures=FIELDS["signatures"] * (SIGNATURES_MAX + 1)),
        LimitExceeded,
        f"at most {SIGNATURES_MAX}, found {SIGNATURES_MAX + 1}",
    ),
    "short seal": (changed(seal=bytes(31)), FormatError, "expected 0 or 32 bytes, found 31"),
    "recipient in a list": (changed(recipients=[[]]), FormatError, "recipient is not a map"),
    "recipient without an id": (with_recipient(key_id=...), FormatError, "'key_id'"),
    "recipient with a short id": (with_recipient(key_id=bytes(15)), FormatError, "expected 16 bytes"),
    "recipient's kind in bytes": (with_recipient(kind=b"symmetric"), FormatError, "'kind'"),
    "recipient with more than known": (with_recipient(note="x"), FormatError, "'note'"),
    "long wrapped key": (
        with_recipient(wrapped=bytes(WRAPPED_KEY_BYTES_MAX + 1)),
        LimitExceeded,
        f"at most {WRAPPED_KEY_BYTES_MAX}",
    ),
    "short salt": (with_recipient(salt=bytes(8)), FormatError, "expected 0 or 16 bytes"),
    "negative cost": (with_recipient(log2_n=-1), LimitExceeded, "log2_n"),
    "cost that stops the machine": (
        with_recipient(log2_n=SCRYPT_LOG2_N_MAX + 1),
        LimitExceeded,
        f"0 to {SCRYPT_LOG2_N_MAX}",
    ),
    "signature without an algorithm": (with_signature(algorithm=...), FormatError, "'algorithm'"),
    "signature with a long id": (with_signature(key_id=bytes(17)), FormatError, "expected 16 bytes"),
    "long signature": (
        with_signature(signature=bytes(SIGNATURE_BYTES_MAX + 1)),
        LimitExceeded,
        f"at most {SIGNATURE_BYTES_MAX}",
    ),
    "too long": (bytes(ENVELOPE_BYTES_MAX + 1), LimitExceeded, "too long"),
}


@pytest.mark.parametrize(("data", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_hostile_envelope_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        parse_envelope(data)


def test_cut_off_anywhere_it_is_refused():
    packed = SOUND.pack()
    for length in range(len(packed)):
        with pytest.raises(FormatError):
            parse_envelope(packed[:length])
