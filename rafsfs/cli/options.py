"""Command-line options that several commands share, and how they open an image; never reads a key."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import click

from rafsfs.limits import CACHE_BYTES_DEFAULT, STORE_DEADLINE_S
from rafsfs.store.settings import StoreSettings

if TYPE_CHECKING:
    from rafsfs.frontends.library import Image, OpenRequest

P = ParamSpec("P")
R = TypeVar("R")

OWNER_MAX: Final = 2**32 - 2  # (uid_t)-1 means 'nobody in particular': chown(2)

_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SIZE: Final = re.compile(r"([0-9]{1,15})([KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Read ``4096``, ``64K``, ``256M``, ``1GiB`` as bytes, in powers of 1024; else ``ValueError``."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with K, M, G or T")
    return int(match[1]) * _UNITS[match[2].upper()]


def file_name(text: str) -> Path:
    """Take an option's text as a file name; unlike ``click.Path``, ask no file system, which may be dead."""
    if not text:
        raise click.BadParameter("the name is empty")
    return Path(text)


def size_callback(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Turn an option's text into bytes; click names the option when it is no size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def optional_size_callback(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """The same for an option without a default."""
    return None if text is None else size_callback(ctx, parameter, text)


def _servers_callback(_ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Check the URL, or URLs, of an option; click names the option, and nothing shows what they hold."""
    from rafsfs.store.urls import check_server

    for url in (value,) if isinstance(value, str) else value or ():
        try:
            check_server(url)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


@dataclass(frozen=True, slots=True)
class ImageAccess:
    """What it takes to open an image: file names and bounds, no secrets."""

    keys: tuple[Path, ...] = ()
    passphrase_file: Path | None = None
    verify_keys: tuple[Path, ...] = ()
    min_release: int | None = None
    digest: str | None = None
    cache_bytes: int = CACHE_BYTES_DEFAULT
    ask_passphrase: bool = False
    stores: StoreSettings = field(default_factory=lambda: StoreSettings(cache_folder=node_cache_folder(None)))

    def open(self, reference: str) -> Image:
        """Open and authenticate the image; raises the ``RafsError`` that says why not."""
        image = self.opened(self.request(reference))
        if (remote := image.sealed.remote) is not None:
            remote.start([])
        return image

    def opened(self, request: OpenRequest) -> Image:
        """Open what was asked for by ``request``, whose keys were read already; raises as ``open``.

        Starts no threads, unlike ``open``, even for an image that is far away.
        """
        from rafsfs.frontends.library import Image
        from rafsfs.fs.image import open_sealed

        return Image(
            open_sealed(
                request.reference,
                request.keyring,
                request.policy,
                cache_bytes=self.cache_bytes,
                stores=self.stores,
            )
        )

    def request(self, reference: str) -> OpenRequest:
        """Read the key files, for who opens the image in another way; raises ``RafsError``."""
        from rafsfs.frontends.library import read_request

        return read_request(
            reference,
            keys=self.keys,
            passphrase=self._passphrase(),
            verify_keys=self.verify_keys,
            min_release=self.min_release,
            digest=self.digest,
        )

    def _passphrase(self) -> bytes | None:
        if self.ask_passphrase:
            if self.passphrase_file:
                raise click.UsageError("give either --passphrase or --passphrase-file")
            from rafsfs.cli.sealing import ask_passphrase

            return ask_passphrase("Passphrase", new=False).secret
        if self.passphrase_file:
            from rafsfs.trust.keys import load_passphrase

            return load_passphrase(self.passphrase_file).secret
        return None


_IMAGE_OPTIONS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    click.option(
        "--key", "keys", multiple=True, type=file_name, metavar="FILE",
        help="Key file or identity that opens the image. May be repeated; the first that fits is used.",
    ),
    click.option(
        "--passphrase-file", type=file_name, metavar="FILE",
        help="File (mode 0600) or pipe that holds a passphrase which opens the image.",
    ),
    click.option(
        "--passphrase", "ask_passphrase", is_flag=True, help="Ask for a passphrase that opens the image.",
    ),
    click.option(
        "--verify-key", "verify_keys", multiple=True, type=file_name, metavar="FILE",
        help="Public key that must have signed the image. May be repeated; all of them are required.",
    ),
    click.option(
        "--min-release", type=click.IntRange(min=0), metavar="N",
        help="Refuse an image with a release counter below N, as an older one put in its place.",
    ),
    click.option(
        "--digest", metavar="SHA256",
        help="Accept only the image with this digest.",
    ),
    click.option(
        "--cache-size", "cache_bytes", callback=size_callback, default="256M",
        metavar="SIZE", show_default=True, help="Memory for verified data, for example 64M or 1G.",
    ),
)  # fmt: skip  # one option a paragraph reads better than one argument a line


_NODE_CACHE_OPTIONS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    click.option(
        "--node-cache", metavar="DIR|none",
        help="Keep what is fetched of images that are not here, as it is stored there, in DIR for all "
        "mounts. By default /var/cache/rafsfs for root, else ~/.cache/rafsfs.",
    ),
    click.option(
        "--node-cache-size", "node_cache_bytes", callback=size_callback, default="10G",
        metavar="SIZE", show_default=True, help="Disk space for the node cache.",
    ),
)  # fmt: skip

_STORE_OPTIONS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    click.option(
        "--ca-file", type=file_name, metavar="FILE",
        help="Certificates of authorities (PEM) to trust for registries, beside the system's.",
    ),
    click.option(
        "--plain-http", is_flag=True,
        help="Ask registries over http, without encryption; this machine's own are asked so anyway.",
    ),
    click.option(
        "--mirror", "mirrors", multiple=True, metavar="URL", callback=_servers_callback,
        help="Ask this registry first, as https://mirror.example. May be repeated.",
    ),
    click.option(
        "--proxy", metavar="URL", callback=_servers_callback,
        help="Ask through this HTTP proxy, and past it while it does not work; "
        "else http_proxy, https_proxy and no_proxy in the environment count.",
    ),
    click.option(
        "--deadline", "deadline_s", type=click.FloatRange(min=0, min_open=True), default=STORE_DEADLINE_S,
        metavar="SECONDS", show_default=True,
        help="Give a read from a registry up after so long, all attempts included.",
    ),
)  # fmt: skip


def owner_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add ``--uid`` and ``--gid``, of whom all files are to be."""
    user = click.option(
        "--uid", type=click.IntRange(0, OWNER_MAX), metavar="N", help="Show all files as owned by this user."
    )
    group = click.option(
        "--gid", type=click.IntRange(0, OWNER_MAX), metavar="N", help="Show all files as of this group."
    )
    return user(group(function))


def node_cache_folder(text: str | None) -> Path | None:
    """Where the node cache is, as ``--node-cache`` says; None for no cache."""
    if text == "none":
        return None
    if text:
        return file_name(text)
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "rafsfs"
    return Path("/var/cache/rafsfs") if os.geteuid() == 0 else Path("~/.cache/rafsfs").expanduser()


def store_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add all options on reaching registries; the command gets them as one ``stores: StoreSettings``."""

    @functools.wraps(function)
    def with_stores(
        *arguments: Any,
        ca_file: Path | None,
        plain_http: bool,
        mirrors: tuple[str, ...],
        proxy: str | None,
        deadline_s: float,
        **named: Any,
    ) -> R:
        stores = StoreSettings(
            ca_file=ca_file, plain_http=plain_http, mirrors=mirrors, proxy=proxy, deadline_s=deadline_s
        )
        return function(*arguments, stores=stores, **named)

    decorated: Callable[..., R] = with_stores
    for option in reversed(_STORE_OPTIONS):
        decorated = option(decorated)
    return decorated


def image_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add all options that opening an image takes; the command gets them as one ``access: ImageAccess``."""

    @functools.wraps(function)
    def with_access(
        *arguments: Any,
        keys: tuple[Path, ...],
        passphrase_file: Path | None,
        verify_keys: tuple[Path, ...],
        min_release: int | None,
        digest: str | None,
        cache_bytes: int,
        ask_passphrase: bool,
        stores: StoreSettings,
        node_cache: str | None,
        node_cache_bytes: int,
        **named: Any,
    ) -> R:
        stores = replace(stores, cache_folder=node_cache_folder(node_cache), cache_bytes=node_cache_bytes)
        access = ImageAccess(
            keys, passphrase_file, verify_keys, min_release, digest, cache_bytes, ask_passphrase, stores
        )
        return function(*arguments, access=access, **named)

    decorated: Callable[..., R] = store_options(with_access)
    for option in reversed((*_IMAGE_OPTIONS, *_NODE_CACHE_OPTIONS)):
        decorated = option(decorated)
    return decorated
