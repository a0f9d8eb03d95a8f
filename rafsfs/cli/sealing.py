"""Keys that a command seals, signs or opens with, from files and from the terminal; never shows one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from rafsfs.errors import KeyFileError, Where
from rafsfs.trust.keys import (
    EcdsaP256SigningKey,
    Ed25519SigningKey,
    HybridIdentity,
    HybridRecipient,
    Identity,
    Key,
    Passphrase,
    RecipientKey,
    SigningKey,
    SymmetricKey,
    X25519Identity,
    X25519Recipient,
    load_key,
    load_passphrase,
)

_TERMINAL = "/dev/tty"


@dataclass(frozen=True, slots=True)
class SealingKeys:
    """Whom to seal for, each one once, and the identities among what was given, which can open as well."""

    recipients: tuple[SymmetricKey | RecipientKey, ...]
    identities: tuple[Identity, ...]


def load_sealing_keys(paths: Iterable[Path]) -> SealingKeys:
    """Load symmetric keys, public halves, and identities, of which the public half is sealed for.

    Reads each file once, for it might be a pipe. Raises KeyFileError, also for a key that only signs or
    verifies.
    """
    recipients: dict[tuple[str, bytes], SymmetricKey | RecipientKey] = {}
    identities: list[Identity] = []
    for path in paths:
        key = load_key(path)
        if isinstance(key, X25519Identity | HybridIdentity):
            identities.append(key)
            key = key.recipient()
        if not isinstance(key, SymmetricKey | X25519Recipient | HybridRecipient):
            raise _of_wrong_use(key, path, "seals nothing", "to sign the image, give it with --sign")
        recipients[key.family, key.key_id] = key
    return SealingKeys(tuple(recipients.values()), tuple(identities))


def load_signing_key(path: Path) -> SigningKey:
    """Load the private half of a signing key; raises KeyFileError."""
    key = load_key(path)
    if not isinstance(key, Ed25519SigningKey | EcdsaP256SigningKey):
        raise _of_wrong_use(key, path, "signs nothing", "make one with `rafsfs keys signing FILE`")
    return key


def load_symmetric(path: Path) -> SymmetricKey:
    """Load a key file that has to be symmetric; raises KeyFileError."""
    key = load_key(path)
    if not isinstance(key, SymmetricKey):
        raise _of_wrong_use(key, path, "is no secret of this use", "make one with `rafsfs keys new FILE`")
    return key


def passphrases(file: Path | None, asked: bool, prompt: str, *, new: bool) -> tuple[Passphrase, ...]:
    """Give the passphrases that were asked for by ``--passphrase-file`` and ``--passphrase``.

    A ``new`` one is asked for twice. Raises KeyFileError, or UsageError where there is no terminal.
    """
    found = [] if file is None else [load_passphrase(file)]
    if asked:
        found.append(ask_passphrase(prompt, new=new))
    return tuple(found)


def ask_passphrase(prompt: str, *, new: bool) -> Passphrase:
    """Ask for a passphrase on the terminal, which may be another one than standard input."""
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise click.UsageError(
            "there is no terminal to ask for a passphrase on; give it in a file (--passphrase-file)"
        ) from None
    text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=new, err=True)
    return Passphrase(text.encode("utf-8", "surrogateescape"))


def _of_wrong_use(key: Key, path: Path, what: str, hint: str) -> KeyFileError:
    return KeyFileError(f"{key.kind} key {what}", where=Where(file=str(path)), hint=hint)
