"""Options of the commands that make containers of images, and how an image is mounted for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click

from rafsfs.cli.mount import MountRequest, mount_image
from rafsfs.cli.options import ImageAccess
from rafsfs.frontends.container_spec import NETWORKS, ContainerOptions

P = ParamSpec("P")
R = TypeVar("R")


def _variable(_ctx: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Any:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        pairs.append((name, value))
    return tuple(pairs)


_CONTAINER_OPTIONS: Final[Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]] = (
    click.option(
        "--env", callback=_variable, multiple=True, metavar="NAME=VALUE",
        help="Set a variable. May be repeated.",
    ),
    click.option("--workdir", metavar="DIR", help="Start in this directory of the container."),
    click.option("--user", metavar="USER[:GROUP]", help="Run as this user, a number or a name in the image."),
    click.option("--hostname", default="rafsfs", show_default=True, metavar="NAME", help="Name of the host."),
    click.option(
        "--net",
        type=click.Choice(NETWORKS),
        default="none",
        show_default=True,
        help="none: a network of its own with nothing in it but loopback; host: this machine's.",
    ),
)  # fmt: skip


class ContainerCommand(click.Command):
    """A command whose options may stand anywhere before the container's command, whose options are its own.

    ``own_words`` are the arguments before that.
    """

    def __init__(self, *arguments: Any, own_words: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._own_words = own_words

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See ``click.Command``."""
        with_value = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in parameter.opts
        }
        options: list[str] = []
        rest = list(args)
        words: list[str] = []
        while rest:
            word = rest[0]
            if word == "--" or (len(words) == self._own_words and not word.startswith("-")):
                rest = rest[1:] if word == "--" else rest
                break
            if word.startswith("-") and word != "-":
                count = 2 if word in with_value else 1
                options += rest[:count]
                rest = rest[count:]
            else:
                words.append(rest.pop(0))
        return super().parse_args(ctx, [*options, "--", *words, *rest])


def container_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add the options that make up a ``ContainerRequest``."""
    for option in reversed(_CONTAINER_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What of an image is to run, and how, as it was asked for."""

    image: str
    command: tuple[str, ...]
    access: ImageAccess
    env: tuple[tuple[str, str], ...]
    workdir: str | None
    user: str | None
    hostname: str
    net: str


def bundle_of(
    request: ContainerRequest, folder: Path, *, terminal: bool = False, upper: Path | None = None
) -> None:
    """Make a bundle in ``folder``; raises as ``make_bundle``."""
    from rafsfs.frontends.bundle import make_bundle  # for Linux

    options = ContainerOptions(
        command=request.command,
        env=request.env,
        working_dir=request.workdir,
        user=request.user,
        hostname=request.hostname,
        network=request.net,
        terminal=terminal,
    )

    def mount(directory: Path, look: Callable[..., None]) -> None:
        mount_image(MountRequest(request.image, directory, request.access, allow_other=True), look)

    make_bundle(folder, mount, options, upper=upper)
