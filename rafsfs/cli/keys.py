"""``rafsfs keys``: the group of its commands, and those that make keys; prints no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from rafsfs.cli import keys_change, keys_show, output
from rafsfs.cli.options import file_name
from rafsfs.frontends.logs import one_line
from rafsfs.trust.keys import (
    EcdsaP256SigningKey,
    Ed25519SigningKey,
    HybridIdentity,
    Key,
    RecipientKey,
    SymmetricKey,
    VerifyKey,
    X25519Identity,
    forbid_core_dumps,
    save_key,
)

IDENTITY_KINDS: Final = {kind.family: kind for kind in (X25519Identity, HybridIdentity)}
SIGNING_KINDS: Final = {kind.family: kind for kind in (Ed25519SigningKey, EcdsaP256SigningKey)}
USES: Final = {
    "symmetric": "secret: seals and opens",
    "x25519-identity": "secret: opens",
    "x25519-recipient": "public: seals",
    "mlkem768x25519-identity": "secret: opens",
    "mlkem768x25519-recipient": "public: seals",
    "ed25519-signing": "secret: signs",
    "ed25519-public": "public: verifies",
    "ecdsa-p256-signing": "secret: signs",
    "ecdsa-p256-public": "public: verifies",
}
"""What a key of each kind is for, in the fewest words."""


class OrderedGroup(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Name the commands."""
        return list(self.commands)


@click.group(cls=OrderedGroup)
def command() -> None:
    """Make keys; show, rewrap, sign and verify images.

    An image can be opened by everybody whom it is sealed for. That can be

    \b
      a symmetric key   one secret file; whoever has it can seal and open
      an identity       a secret file that opens, and a public one (.pub) that seals for it
      a passphrase

    and signed with signing keys, whose public half (.pub) verifies. A secret key file is of mode 0600; one
    that others may read is refused.

    \b
    Examples:
      rafsfs keys new my.key
      rafsfs keys identity alice.key                        # alice hands out alice.key.pub
      rafsfs build /srv/tree /images/tree --key alice.key.pub
      rafsfs keys rewrap /images/tree --key alice.key --add bob.key.pub
      rafsfs keys show /images/tree
    """
    forbid_core_dumps()


@command.command("new", short_help="Make a symmetric key.")
@click.argument("file", type=file_name)
def new(file: Path) -> None:
    """Make a symmetric key: one secret FILE that seals and opens images.

    It can also be the secret of a dedup domain (rafsfs build --dedup-secret); use one key for one purpose.
    An existing file is never overwritten.

    \b
    Example:
      rafsfs keys new my.key
    """
    key = SymmetricKey.generate()
    save_key(key, _checked_name(file))
    _tell_made(file, key)


@command.command("identity", short_help="Make an identity and its public half.")
@click.argument("file", type=file_name)
@click.option(
    "--kind",
    type=click.Choice(list(IDENTITY_KINDS)),
    default="x25519",
    show_default=True,
    help="mlkem768x25519 also withstands quantum computers, and makes each image 1.1 KiB larger.",
)
def identity(file: Path, kind: str) -> None:
    """Make an identity: a secret FILE that opens images, and FILE.pub, with which others seal for it.

    \b
    Examples:
      rafsfs keys identity alice.key
      rafsfs keys identity alice.key --kind mlkem768x25519
      rafsfs build /srv/tree /images/tree --key alice.key.pub
      rafsfs mount /images/tree /mnt --key alice.key
    """
    secret = IDENTITY_KINDS[kind].generate()
    _save_pair(_checked_name(file), secret, secret.recipient())


@command.command("signing", short_help="Make a signing key and its public half.")
@click.argument("file", type=file_name)
@click.option(
    "--kind",
    type=click.Choice(list(SIGNING_KINDS)),
    default="ed25519",
    show_default=True,
    help="What the key signs with.",
)
def signing(file: Path, kind: str) -> None:
    """Make a signing key: a secret FILE that signs images, and FILE.pub, which verifies.

    Both are PEM files, as openssl makes and reads them.

    \b
    Examples:
      rafsfs keys signing release.key
      rafsfs build /srv/tree /images/tree --key my.key --sign release.key
      rafsfs keys verify /images/tree --verify-key release.key.pub
    """
    secret = SIGNING_KINDS[kind].generate()
    _save_pair(_checked_name(file), secret, secret.public())


def _checked_name(file: Path) -> Path:
    if str(file) == "-":
        raise click.UsageError("a new key needs a file of its own, not standard output")
    return file


def _save_pair(
    file: Path,
    secret: X25519Identity | HybridIdentity | Ed25519SigningKey | EcdsaP256SigningKey,
    public: RecipientKey | VerifyKey,
) -> None:
    """Save both halves or none."""
    public_file = file.with_name(file.name + ".pub")
    save_key(secret, file)
    try:
        save_key(public, public_file)
    except BaseException:
        file.unlink()
        raise
    _tell_made(file, secret)
    _tell_made(public_file, public)


def _tell_made(file: Path, key: Key) -> None:
    output.print_line(f"{one_line(str(file))}: {key.kind} key {key.key_id.hex()} ({USES[key.kind]})")


command.add_command(keys_show.show)
command.add_command(keys_change.rewrap)
command.add_command(keys_change.sign)
command.add_command(keys_change.verify)
