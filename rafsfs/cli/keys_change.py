"""``rafsfs keys rewrap``, ``sign`` and ``verify``: change and check an envelope; print no secret."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rafsfs.cli import output, sealing
from rafsfs.cli.options import file_name, store_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.errors import KeyFileError, Where
from rafsfs.frontends.logs import one_line
from rafsfs.store.reference import Reference, parse_layout_reference
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import KeyRing, load_key

if TYPE_CHECKING:
    from rafsfs.build.rewrap import Rewritten

KEY_ID_DIGITS: Final = 32
KEY_ID_DIGITS_MIN: Final = 8  # of an abbreviated one


_OPENING_OPTIONS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    click.option(
        "--key", "keys", multiple=True, type=file_name, metavar="FILE",
        help="Key file or identity that opens the image. May be repeated.",
    ),
    click.option(
        "--passphrase-file", type=file_name, metavar="FILE",
        help="File (mode 0600) or pipe that holds a passphrase which opens the image.",
    ),
    click.option("--passphrase", is_flag=True, help="Ask for the passphrase that opens the image."),
    click.option(
        "--digest", metavar="SHA256", help="Change the image only if it has this digest until now.",
    ),
)  # fmt: skip  # as in options.py


def _opening_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPENING_OPTIONS):
        function = option(function)
    return function


@click.command("rewrap", short_help="Change who can open an image.")
@click.argument("image")
@_opening_options
@click.option(
    "--add",
    multiple=True,
    type=file_name,
    metavar="FILE",
    help="Let this one open the image, too: key file, .pub of an identity, or identity. May be repeated.",
)
@click.option(
    "--add-passphrase-file",
    type=file_name,
    metavar="FILE",
    help="Let the passphrase in this file open the image, too.",
)
@click.option(
    "--add-passphrase", is_flag=True, help="Ask for a new passphrase that will open the image, too."
)
@click.option(
    "--remove",
    multiple=True,
    metavar="KEYID|FILE",
    help="Let this one open it no longer: a key file, or an id that `rafsfs keys show` lists (8 digits are "
    "enough). May be repeated.",
)
def rewrap(
    image: str,
    keys: tuple[Path, ...],
    passphrase_file: Path | None,
    passphrase: bool,
    digest: str | None,
    add: tuple[Path, ...],
    add_passphrase_file: Path | None,
    add_passphrase: bool,
    remove: tuple[str, ...],
) -> None:
    """Change who can open IMAGE, with a key that opens it now.

    Only the image's metadata file is written anew, with the same contents in another envelope; data is not
    touched, signatures stay valid. The image gets another digest.

    Removing somebody deletes the earlier metadata files that he could open from the folder, also of versions
    that were pinned by their digest; a warning says when another tag needs one. It does not take away what he
    has: a copy of the image, or of its inner key, can still be read with the old key. To lock somebody out of
    what comes next, build the next image without his key.

    \b
    Examples:
      rafsfs keys rewrap /images/tree --key my.key --add alice.key.pub --add bob.key.pub
      rafsfs keys rewrap /images/tree --key my.key --add new.key --remove my.key
      rafsfs keys rewrap /images/tree --key my.key --remove 5f0c2a91
      rafsfs keys rewrap /images/tree --key my.key --add-passphrase
    """
    from rafsfs.build.rewrap import read_plain_head
    from rafsfs.build.rewrap import rewrap as rewrap_image
    from rafsfs.store.oci_layout import find_image
    from rafsfs.trust.opening import TrustPolicy

    if not (add or add_passphrase_file or add_passphrase or remove):
        raise click.UsageError("nothing to change; give --add, --add-passphrase or --remove")
    target = tagged_reference(image)
    keyring = _keyring(keys, passphrase_file, passphrase)
    if keyring == KeyRing():
        raise click.UsageError("give a key that opens the image now: --key FILE or --passphrase")
    recipients = sealing.load_sealing_keys(add).recipients
    phrases = sealing.passphrases(add_passphrase_file, add_passphrase, "New passphrase", new=True)
    with ended_cleanly():
        stored = find_image(_pinned(target, digest))
        listed = [recipient.key_id for recipient in read_plain_head(stored).envelope.recipients]
        done = rewrap_image(
            stored,
            _tag(target),
            keyring,
            policy=TrustPolicy(),
            add=(*recipients, *phrases),
            remove={_named_recipient(text, listed) for text in remove},
        )
    _tell_rewritten(target, done)
    if done.kept:
        click.echo(
            f"rafsfs: warning: an earlier image stays in {target.folder}, because another tag leads to it "
            "or might; who was removed can open that one",
            err=True,
        )


@click.command("sign", short_help="Sign an image.")
@click.argument("image")
@click.option(
    "--signing-key", type=file_name, metavar="FILE", required=True, help="Secret half of a signing key."
)
@_opening_options
def sign(
    image: str,
    signing_key: Path,
    keys: tuple[Path, ...],
    passphrase_file: Path | None,
    passphrase: bool,
    digest: str | None,
) -> None:
    """Sign IMAGE as it is stored. Signatures of other keys stay; the image gets another digest.

    No key of the image is needed. But who stores the image could have put another one there: with --key the
    image is opened first, and only signed when it was sealed by somebody who has the key; with --digest only
    when it is the one that `rafsfs build` reported.

    \b
    Examples:
      rafsfs keys sign /images/tree --signing-key release.key --key my.key
      rafsfs keys sign /images/tree --signing-key release.key --digest sha256:9f86d0...
    """
    from rafsfs.build.rewrap import add_signature
    from rafsfs.store.oci_layout import find_image
    from rafsfs.trust.opening import TrustPolicy

    target = tagged_reference(image)
    signer = sealing.load_signing_key(signing_key)
    keyring = _keyring(keys, passphrase_file, passphrase)
    with ended_cleanly():
        stored = find_image(_pinned(target, digest))
        opening = None if keyring == KeyRing() else keyring
        done = add_signature(stored, _tag(target), signer, opening, policy=TrustPolicy())
    _tell_rewritten(target, done)


@click.command("verify", short_help="Verify the signatures of an image.")
@click.argument("image")
@click.option(
    "--verify-key",
    "verify_keys",
    multiple=True,
    required=True,
    type=file_name,
    metavar="FILE",
    help="Public half of a signing key that must have signed. May be repeated; all of them are required.",
)
@click.option("--min-release", type=click.IntRange(min=0), metavar="N", help="Refuse releases below N.")
@click.option("--digest", metavar="SHA256", help="Accept only the image with this digest.")
@store_options
def verify(
    image: str,
    verify_keys: tuple[Path, ...],
    min_release: int | None,
    digest: str | None,
    stores: StoreSettings,
) -> None:
    """Check that IMAGE was signed with all given keys, and has not expired. Needs no key of the image.

    The exit code is 0 when the signatures hold and 5 when they do not. A signature covers all of an image by
    digests, but the data is not read here: `rafsfs check` does that, and every mount as it goes.

    \b
    Examples:
      rafsfs keys verify /images/tree --verify-key release.key.pub
      rafsfs keys verify /images/tree --verify-key release.key.pub --min-release 7
    """
    from rafsfs.build.rewrap import read_plain_head, verify_head
    from rafsfs.frontends.library import read_request
    from rafsfs.store.stores import find_stored

    request = read_request(image, verify_keys=verify_keys, min_release=min_release, digest=digest)
    stored = find_stored(request.reference, stores)
    with closing(stored.store):
        head = read_plain_head(stored)
    verify_head(head, request.policy)
    assert request.policy.signatures is not None
    for key in request.policy.signatures.required:
        output.print_line(f"{one_line(image)}: signed by {key.family} {key.key_id.hex()}")


def tagged_reference(image: str) -> Reference:
    """Read the name of an image that is to be changed; UsageError unless a tag leads to it."""
    reference = parse_layout_reference(image)
    if reference.tag is None:
        raise click.UsageError("name the image by its tag, FOLDER[:TAG], which then leads to the changed one")
    return reference


def _tag(reference: Reference) -> str:
    assert reference.tag is not None
    return reference.tag


def _pinned(reference: Reference, digest: str | None) -> Reference:
    return reference if digest is None else reference.pinned(digest)


def _keyring(keys: tuple[Path, ...], passphrase_file: Path | None, asked: bool) -> KeyRing:
    phrases = sealing.passphrases(passphrase_file, asked, "Passphrase", new=False)
    return replace(KeyRing.load(keys), passphrases=phrases)


def _named_recipient(text: str, listed: Sequence[bytes]) -> bytes:
    """Find out whom ``--remove`` means: a key file, an id, or the start of one among those ``listed``."""
    if Path(text).is_file():
        return load_key(text).key_id
    digits = text.lower()
    if not KEY_ID_DIGITS_MIN <= len(digits) <= KEY_ID_DIGITS or not set(digits) <= set(string.hexdigits):
        raise KeyFileError(
            "neither a key file nor a key id",
            expected=f"a file, or {KEY_ID_DIGITS_MIN} to {KEY_ID_DIGITS} hexadecimal digits",
            where=Where(file=text),
        )
    meant = {key_id for key_id in listed if key_id.hex().startswith(digits)}
    if len(meant) != 1:
        raise KeyFileError(
            f"{len(meant) or 'no'} recipients of the image have an id that starts with {digits}",
            hint="`rafsfs keys show IMAGE` lists them",
        )
    return meant.pop()


def _tell_rewritten(target: Reference, done: Rewritten) -> None:
    recipients, signatures = len(done.envelope.recipients), len(done.envelope.signatures)
    output.print_line(
        f"{one_line(str(target))}: {recipients} recipient{'s' * (recipients != 1)}, "
        f"{signatures} signature{'s' * (signatures != 1)}"
    )
    output.print_line(f"digest {done.manifest_digest}")
