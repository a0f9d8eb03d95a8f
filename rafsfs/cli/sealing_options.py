"""Options of every command that seals an image: how they are spelled, and what they make of a build."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import click

from rafsfs.cli import output, sealing
from rafsfs.cli.options import file_name, optional_size_callback, size_callback

if TYPE_CHECKING:
    from rafsfs.build.options import BuildOptions

P = ParamSpec("P")
R = TypeVar("R")

SUITES: Final = ("aes-256-gcm", "chacha20-poly1305")
EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"
_COMPRESSION: Final = re.compile(r"none|zstd(?::(\d{1,2}))?")


def _compression(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int | None:
    """``zstd:LEVEL`` -> level; ``none`` -> None."""
    from rafsfs.build.options import ZSTD_LEVEL_DEFAULT, ZSTD_LEVELS

    match = _COMPRESSION.fullmatch(text)
    level = int(match[1] or ZSTD_LEVEL_DEFAULT) if match else 0
    if not match or level not in ZSTD_LEVELS:
        raise click.BadParameter(f"{text!r} is neither none nor zstd:1 to zstd:22")
    return None if text == "none" else level


def _date(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """A day (to its end) or a time, in UTC unless it says otherwise -> Unix seconds."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no date; write 2027-12-31 or 2027-12-31T18:00:00Z") from error
    if re.fullmatch(r"\d{4}-?\d\d-?\d\d|\d{4}-?W\d\d-?\d", text):
        moment = datetime.combine(moment, time()) + timedelta(days=1, seconds=-1)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


_SEALING_OPTIONS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    click.option(
        "--key",
        "keys",
        multiple=True,
        type=file_name,
        metavar="FILE",
        help="Let this one open the image: a symmetric key, the .pub of an identity, or an identity. May be "
        "repeated.",
    ),
    click.option(
        "--passphrase-file",
        type=file_name,
        metavar="FILE",
        help="Let the passphrase in this file (mode 0600) or pipe open the image.",
    ),
    click.option("--passphrase", is_flag=True, help="Ask for a passphrase that will open the image."),
    click.option(
        "--sign",
        multiple=True,
        type=file_name,
        metavar="FILE",
        help="Sign with this signing key. May be repeated.",
    ),
    click.option(
        "--unencrypted",
        is_flag=True,
        help="Encrypt nothing: anybody can open the image. Damage is still found.",
    ),
    click.option(
        "--suite", type=click.Choice(SUITES), help=f"How to encrypt and authenticate.  [default: {SUITES[0]}]"
    ),
    click.option(
        "--compress",
        callback=_compression,
        default="zstd:3",
        show_default=True,
        metavar="zstd:LEVEL|none",
        help="How to compress file data; levels 1 to 22. Metadata is always compressed.",
    ),
    click.option(
        "--chunk-size",
        callback=size_callback,
        default="256K",
        show_default=True,
        metavar="SIZE",
        help="How much is encoded, and read, as one; a power of two from 4K to 16M.",
    ),
    click.option(
        "--inline-size",
        "inline_size",
        callback=optional_size_callback,
        metavar="SIZE",
        help="Files up to this size lie in the metadata, which saves requests and is always compressed; they "
        "are not shared with other images. At most 4032, 0 for none; an index has none.  "
        "[default: 1K; 0 with --compress none]",
    ),
    click.option(
        "--dedup-secret",
        type=file_name,
        metavar="FILE",
        help="Symmetric key of a dedup domain: equal files give equal chunks in all images, but for those "
        "in the metadata, and equal trees equal images. Whoever has it can confirm guesses of their content.",
    ),
    click.option("--name", default="", metavar="TEXT", help="Name inside the image; not encrypted."),
    click.option(
        "--release",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Release counter; readers can refuse older ones with --min-release.",
    ),
    click.option(
        "--not-after",
        callback=_date,
        metavar="DATE",
        help="Readers refuse the image after this day or time (UTC), such as 2027-12-31 or "
        "2027-12-31T18:00Z.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors."),
)


def sealing_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add the options that make up a ``SealRequest``."""
    for option in reversed(_SEALING_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class SealRequest:
    """How an image is to be sealed, as it was asked for: file names and numbers, no secrets."""

    keys: tuple[Path, ...]
    passphrase_file: Path | None
    passphrase: bool
    sign: tuple[Path, ...]
    unencrypted: bool
    suite: str | None
    dedup_secret: Path | None
    compress: int | None
    chunk_size: int
    inline_size: int | None
    name: str
    release: int
    not_after: int | None
    as_json: bool
    quiet: bool


def check_sealing(request: SealRequest) -> None:
    """Refuse what does not go together, with UsageError."""
    sealed_for = request.keys or request.passphrase or request.passphrase_file
    if request.unencrypted:
        if sealed_for or request.dedup_secret or request.suite:
            raise click.UsageError(
                "--unencrypted goes with none of --key, --passphrase, --dedup-secret and --suite"
            )
    elif not sealed_for:
        raise click.UsageError(
            "nobody could open the image; give --key FILE (made by `rafsfs keys new FILE`), or --unencrypted"
        )


def sealing_build_options(request: SealRequest, keys: sealing.SealingKeys, **given: Any) -> BuildOptions:
    """Load what is left to load and put the options of a build together; ``given`` are more of them.

    Raises BuildError, KeyFileError, UsageError.
    """
    from rafsfs.build.options import BuildOptions
    from rafsfs.format.chunk import Suite

    phrases = sealing.passphrases(
        request.passphrase_file, request.passphrase, "Passphrase of the image", new=True
    )
    recipients = (*keys.recipients, *phrases)
    secret = sealing.load_symmetric(request.dedup_secret) if request.dedup_secret else None
    if secret is not None and secret in recipients:
        _warn(
            "the dedup secret is also a key of the image: whoever may open the image can then find out which "
            "files other images of the dedup domain hold; use one key for each purpose"
        )
    if request.not_after is not None and request.not_after < datetime.now(UTC).timestamp():
        _warn(f"the image expires before it is built ({output.utc(request.not_after)})")
    suite = Suite[(request.suite or SUITES[0]).upper().replace("-", "_")]
    return BuildOptions(
        recipients=recipients,
        signers=tuple(sealing.load_signing_key(path) for path in request.sign),
        suite=Suite.INTEGRITY_ONLY if request.unencrypted else suite,
        dedup_secret=secret,
        zstd_level=request.compress,
        chunk_size=request.chunk_size,
        inline_size=_inline_size(request),
        name=request.name,
        release=request.release,
        not_after=request.not_after,
        source_date_epoch=_source_date_epoch(),
        **given,
    )


def _inline_size(request: SealRequest) -> int:
    """Who wants nothing compressed may want lengths to tell nothing, and metadata is compressed."""
    from rafsfs.build.options import INLINE_SIZE_DEFAULT

    if request.inline_size is not None:
        return request.inline_size
    return 0 if request.compress is None else INLINE_SIZE_DEFAULT


def _source_date_epoch() -> int | None:
    """Read SOURCE_DATE_EPOCH (reproducible-builds.org): a whole number of seconds since 1970."""
    text = os.environ.get(EPOCH_VARIABLE, "")
    if not text:
        return None
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise click.UsageError(f"{EPOCH_VARIABLE} in the environment is not a number of seconds: {text!r}")
    return int(text)


def _warn(text: str) -> None:
    click.echo(f"rafsfs: warning: {text}", err=True)
