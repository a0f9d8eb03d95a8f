"""``rafsfs-virtiofsd``: virtiofsd's command line, for what starts one by itself; serves nothing itself.

The options are those of the Rust virtiofsd (its README, 1.13) and of the one that came with QEMU before
version 8 (``-o``). Those that mean nothing to files that never change are taken and named in the log; those
that ask for what cannot be done are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from rafsfs.cli.exit_codes import run
from rafsfs.cli.options import ImageAccess, file_name, image_options
from rafsfs.cli.serve import FILTERS, QUEUES_DEFAULT, QUEUES_MAX, WALLS, ServeRequest, serve_image
from rafsfs.errors import ImageNotFound

CAPABILITIES: Final = {"type": "fs", "features": ["migrate-precopy", "separate-options"]}
"""QEMU docs/interop/vhost-user.json. separate-options: not only ``-o``, which is how libvirt tells."""

_IGNORED_FLAGS: Final = frozenset((
    *("announce-submounts", "no-announce-submounts", "xattr", "no-xattr", "posix-acl", "no-posix-acl"),
    *("readdirplus", "no-readdirplus", "killpriv-v2", "no-killpriv-v2"),
    *("security-label", "no-security-label"),
    *("allow-direct-io", "no-allow-direct-io", "allow-mmap", "allow-root", "preserve-noatime", "readonly"),
    *("no-writeback", "no-flock", "no-posix-lock", "migration-verify-handles", "migration-confirm-paths"),
))  # fmt: skip
_IGNORED_VALUES: Final = frozenset((
    *("cache", "thread-pool-size", "inode-file-handles", "modcaps", "timeout"),
    *("max-idle-threads", "migration-mode", "migration-on-error"),
))  # fmt: skip

_OWNERS: Final = "files keep their owners; --uid and --gid show all as one's"
_REFUSED_FLAGS: Final = {
    "writeback": "an image cannot be written to",
    "flock": "guests of an image cannot share locks",
    "posix-lock": "guests of an image cannot share locks",
    "daemonize": "it stays in the foreground: run it from a service manager",
}
_REFUSED_VALUES: Final = {
    "xattrmap": "extended attributes are shown as they are in the image",
    "translate-uid": _OWNERS,
    "translate-gid": _OWNERS,
    "uid-map": _OWNERS,
    "gid-map": _OWNERS,
}

_SANDBOXES: Final = ("namespace", "chroot", "none")
_LOG_LEVELS: Final = {
    "error": "error",
    "err": "error",
    "warn": "warning",
    "info": "info",
    "debug": "debug",
    "trace": "debug",
    "off": "error",
}
_SECCOMP: Final = {"kill": "on", "trap": "on", "log": "on", "none": "off"}
_SAID_WITH_O: Final = frozenset(
    ("source", "sandbox", "log-level", "debug", "key", "fd", "socket-path", "rlimit-nofile")
)


def _note_ignored(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    assert parameter.name is not None
    if value:
        ctx.ensure_object(list).append(parameter.name.replace("_", "-"))


def _refuse(_ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    assert parameter.name is not None
    name = parameter.name.replace("_", "-")
    if value:
        raise click.UsageError(f"--{name} cannot be had: {(_REFUSED_FLAGS | _REFUSED_VALUES)[name]}")


def _peculiar_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say nothing here, and those that are refused; the function gets none of them."""
    for names, is_flag, callback in (
        (_IGNORED_FLAGS, True, _note_ignored),
        (_IGNORED_VALUES, False, _note_ignored),
        (_REFUSED_FLAGS, True, _refuse),
        (_REFUSED_VALUES, False, _refuse),
    ):
        for name in names:
            option = click.option(
                f"--{name}",
                is_flag=is_flag,
                expose_value=False,
                callback=callback,
                hidden=True,
                is_eager=True,
            )
            function = option(function)
    return function


def arguments_of(words: list[str]) -> list[str]:
    """Write ``-o a=b,c`` as ``--a=b --c``; leaves all else alone."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "-o":
            found += _from_o(next(rest, ""))
        elif word.startswith("-o") and not word.startswith("--"):
            found += _from_o(word[2:])
        else:
            found.append(word)
    return found


def _from_o(text: str) -> Iterator[str]:
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        name = name.replace("_", "-")
        known = (
            _SAID_WITH_O | _IGNORED_FLAGS | _IGNORED_VALUES | _REFUSED_FLAGS.keys() | _REFUSED_VALUES.keys()
        )
        if name not in known:
            raise click.UsageError(f"-o {part}: there is no such option")
        yield f"--{'shared-dir' if name == 'source' else name}{equals}{value}"


def _print_capabilities(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(json.dumps(CAPABILITIES, indent=2))
        ctx.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--shared-dir",
    metavar="IMAGE",
    help="The image: FOLDER or FOLDER:TAG, an OCI image layout and which of its images (default: latest), or "
    "any other that rafsfs mount takes. Never a plain folder of files. Also: -o source=IMAGE.",
)
@click.option(
    "--image",
    metavar="IMAGE",
    help="The image, where whoever starts this has --shared-dir name something else.",
)
@image_options
@click.option("--socket-path", type=file_name, metavar="FILE", help="Unix socket to listen on.")
@click.option("--fd", type=click.IntRange(0), metavar="N", help="Inherited socket to listen on.")
@click.option("--socket-group", metavar="NAME", help="Let this group connect as well.")
@click.option("--tag", help="The name that guests mount it by, for VMMs that ask.")
@click.option(
    "--num-request-queues",
    type=click.IntRange(1, QUEUES_MAX),
    default=QUEUES_DEFAULT,
    metavar="N",
    show_default=True,
    help="Request queues that the guest may use.",
)
@click.option("--uid", type=click.IntRange(0), metavar="N", help="Show all files as owned by this user.")
@click.option("--gid", type=click.IntRange(0), metavar="N", help="Show all files as of this group.")
@click.option(
    "--rlimit-nofile",
    type=click.IntRange(0),
    metavar="N",
    help="Files that may be open (default, and 0: the hard limit).",
)
@click.option("--sealed", is_flag=True, help="Serve the image as it is stored; the guest opens it.")
@click.option(
    "--sandbox", type=click.Choice(_SANDBOXES), help="What to be locked up in (default: what can be had)."
)
@click.option(
    "--seccomp",
    type=click.Choice(list(_SECCOMP)),
    help="kill: insist on the filter of system calls; none: filter nothing (default: what can be had).",
)
@click.option("--log-level", type=click.Choice(list(_LOG_LEVELS)), default="info", show_default=True)
@click.option("-d", "--debug", is_flag=True, help="As --log-level debug.")
@click.option("-f", is_flag=True, expose_value=False, hidden=True, help="It never does anything else.")
@click.option("--syslog", is_flag=True, help="Log to syslog, not to standard error.")
@click.option(
    "--print-capabilities",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_capabilities,
    help="Print what libvirt wants to know.",
)
@click.version_option(
    None,
    "-V",
    "--version",
    package_name="rafsfs",
    prog_name="rafsfs-virtiofsd",
    message="%(prog)s %(version)s",
)
@_peculiar_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    shared_dir: str | None,
    image: str | None,
    access: ImageAccess,
    socket_path: Path | None,
    sandbox: str | None,
    seccomp: str | None,
    log_level: str,
    debug: bool,
    rlimit_nofile: int | None,
    **rest: Any,
) -> None:
    """Serve a sealed image to one virtual machine, in the place of virtiofsd: with its command line.

    Ends when the virtual machine has gone. For several guests, or one after the other, see `rafsfs serve`.

    virtiofsd's other options are taken and ignored where they say nothing to a read-only image (--cache,
    --thread-pool-size, --announce-submounts, --xattr, --inode-file-handles, --readonly ...), and refused
    where they ask for what cannot be had (--writeback, --translate-uid ...).

    \b
    Examples:
      rafsfs-virtiofsd --shared-dir /images/tree --socket-path /run/vm1.sock --key my.key
      rafsfs-virtiofsd --fd=3 -o source=/images/tree:v2,cache=always,key=my.key
    """  # fmt: skip
    source = image or shared_dir
    if source is None:
        raise click.UsageError("give an image: --shared-dir IMAGE")
    request = ServeRequest(
        image=source,
        access=access,
        socket_paths=() if socket_path is None else (socket_path,),
        one_shot=True,
        rlimit_nofile=rlimit_nofile or None,
        ignored=tuple(sorted(ctx.ensure_object(list))),
        sandbox=sandbox or WALLS[0],
        seccomp=FILTERS[0] if seccomp is None else _SECCOMP[seccomp],
        log_level="debug" if debug else _LOG_LEVELS[log_level],
        **rest,
    )
    try:
        serve_image(request)
    except ImageNotFound as error:
        error.hint = "a plain folder cannot be shared: rafsfs build makes an image of it"
        raise


def main() -> int:
    """Entry point of the ``rafsfs-virtiofsd`` script; returns the exit code."""
    import sys

    def start() -> None:
        words = arguments_of(sys.argv[1:])
        command.main(args=words, prog_name="rafsfs-virtiofsd", standalone_mode=False)

    return run(start)
