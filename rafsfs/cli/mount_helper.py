"""``mount.fuse.rafsfs``: what mount(8) starts for the type fuse.rafsfs; reads options, decides nothing.

The command line is the one of mount(8), section EXTERNAL HELPERS:
``IMAGE DIR [-sfnv] [-N namespace] [-t type] [-o options]``.
"""

from __future__ import annotations

import getopt
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rafsfs.cli.exit_codes import ExitCode, run
from rafsfs.cli.mount import (
    FRONTEND_DEFAULT,
    FRONTENDS,
    LOG_LEVEL_DEFAULT,
    LOG_LEVELS,
    PREFETCH_DEFAULT,
    PREFETCHES,
    MountRequest,
    check_only,
    mount_image,
    warn_of_no_log,
)
from rafsfs.cli.options import OWNER_MAX, ImageAccess, node_cache_folder, parse_size
from rafsfs.errors import MountError
from rafsfs.limits import CACHE_BYTES_DEFAULT, NODE_CACHE_BYTES_DEFAULT, STORE_DEADLINE_S
from rafsfs.store.settings import StoreSettings
from rafsfs.store.urls import check_server

PASSED_ON: Final = frozenset(("dev", "nodev", "suid", "nosuid", "exec", "noexec"))
"""Options with a meaning for the kernel, all of which every front end takes."""

IGNORED: Final = frozenset(
    (
        *("ro", "default_permissions"),  # always so
        *("defaults", "auto", "noauto", "nofail", "_netdev"),  # for mount(8) and systemd
        *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup"),
        *(
            "silent",
            "loud",
            "sync",
            "async",
            "dirsync",
            "mand",
            "nomand",
        ),  # nothing to a file that cannot change
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"),
        *("strictatime", "nostrictatime", "lazytime", "nolazytime"),
    )
)
"""Options that say nothing new."""

IGNORED_PREFIXES: Final = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=", "subtype=", "fsname=")

KNOWN: Final = (
    "key=FILE, passphrase_file=FILE, verify_key=FILE, min_release=N, digest=SHA256, cache_size=SIZE, "
    "allow_other, uid=N, gid=N, frontend=NAME, log_file=FILE, log_level=LEVEL, log_json, ca_file=FILE, "
    "plain_http, mirror=URL, proxy=URL, deadline=SECONDS, node_cache=DIR, node_cache_size=SIZE, "
    "prefetch=WHAT, prefetch_rate=SIZE, trace=FILE"
)


@dataclass
class _Options:
    """What an option string says, while it is read."""

    keys: list[Path] = field(default_factory=list)
    verify_keys: list[Path] = field(default_factory=list)
    mirrors: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    allow_other: bool = False
    log_json: bool = False
    plain_http: bool = False


_VALUES: Final = frozenset(
    (
        *("passphrase_file", "min_release", "digest", "cache_size"),
        *("uid", "gid", "frontend", "trace", "log_file", "log_level"),
        *("ca_file", "proxy", "deadline", "node_cache", "node_cache_size", "prefetch", "prefetch_rate"),
    )
)


_SWITCHES: Final = frozenset(("allow_other", "log_json", "plain_http"))


def parse_options(text: str, *, sloppy: bool = False) -> _Options:
    """Read a comma-separated option string. Raises ``MountError`` for ``rw`` and for what is not known.

    ``sloppy`` ignores the latter, as ``mount -s`` asks. mount(8) puts ``rw`` first when nobody said ``ro``,
    so there it is not a wish of anybody; what is mounted is read-only all the same.
    """
    options = _Options()
    for position, option in enumerate(part for part in text.split(",") if part):
        name, _, value = option.partition("=")
        name = name.replace("-", "_")
        if option in PASSED_ON:
            options.flags.add(option)
        elif option in IGNORED or option.startswith(IGNORED_PREFIXES) or (option == "rw" and position == 0):
            continue
        elif option == "rw":
            raise MountError("an image cannot be mounted for writing", found="option rw", hint="leave it out")
        elif name in _SWITCHES and name == option.replace("-", "_"):
            setattr(options, name, True)
        elif name == "mirror" and value:
            options.mirrors.append(value)
        elif name == "key" and value:
            options.keys.append(Path(value))
        elif name == "verify_key" and value:
            options.verify_keys.append(Path(value))
        elif name in _VALUES and value:
            options.values[name] = value
        elif not value and name in (*_VALUES, "key", "verify_key", "mirror"):
            raise MountError("a mount option has no value", found=option)
        elif not sloppy:
            raise MountError("unknown mount option", found=option, hint=f"known are {KNOWN}")
    return options


def request_of(image: str, directory: str, options: _Options) -> MountRequest:
    """Make the mount request; raises ``MountError`` for values that are none."""
    values = options.values
    return MountRequest(
        image=image,
        directory=Path(directory),
        access=ImageAccess(
            keys=tuple(options.keys),
            passphrase_file=_path(values.get("passphrase_file")),
            verify_keys=tuple(options.verify_keys),
            min_release=_number(values, "min_release"),
            digest=values.get("digest"),
            cache_bytes=_size(values, "cache_size", CACHE_BYTES_DEFAULT),
            stores=_stores(options),
        ),
        prefetch=_choice(values, "prefetch", PREFETCHES, PREFETCH_DEFAULT),
        prefetch_rate=_size(values, "prefetch_rate", 0) or None,
        allow_other=options.allow_other,
        uid=_number(values, "uid", OWNER_MAX),
        gid=_number(values, "gid", OWNER_MAX),
        flags=frozenset(options.flags),
        frontend=_choice(values, "frontend", FRONTENDS, FRONTEND_DEFAULT),
        log_file=_path(values.get("log_file")),
        log_level=_choice(values, "log_level", LOG_LEVELS, LOG_LEVEL_DEFAULT),
        log_json=options.log_json,
        trace=_path(values.get("trace")),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _choice(values: dict[str, str], name: str, known: tuple[str, ...], default: str) -> str:
    text = values.get(name, default)
    if text not in known:
        raise MountError(f"unknown {name.replace('_', ' ')}", expected=" or ".join(known), found=text)
    return text


def _number(values: dict[str, str], name: str, largest: int = 2**63 - 1) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= largest):
        raise MountError(f"mount option {name}", expected=f"a number up to {largest}", found=text)
    return int(text)


def _size(values: dict[str, str], name: str, default: int) -> int:
    if name not in values:
        return default
    try:
        return parse_size(values[name])
    except ValueError as error:
        raise MountError(f"mount option {name}", found=str(error)) from error


def _stores(options: _Options) -> StoreSettings:
    values = options.values
    try:
        deadline_s = float(values.get("deadline", STORE_DEADLINE_S))
    except ValueError:
        deadline_s = 0.0
    if not 0 < deadline_s < float("inf"):
        raise MountError("mount option deadline", expected="seconds", found=values["deadline"])
    for name, url in [("mirror", url) for url in options.mirrors] + [("proxy", values.get("proxy"))]:
        try:
            if url is not None:
                check_server(url)
        except ValueError as error:
            raise MountError(f"mount option {name}", found=error) from None
    return StoreSettings(
        ca_file=_path(values.get("ca_file")),
        plain_http=options.plain_http,
        mirrors=tuple(options.mirrors),
        proxy=values.get("proxy"),
        deadline_s=deadline_s,
        cache_folder=node_cache_folder(values.get("node_cache")),
        cache_bytes=_size(values, "node_cache_size", NODE_CACHE_BYTES_DEFAULT),
    )


def mount(arguments: list[str]) -> int:
    """Do what mount(8) asks for; returns the exit code, raises what ``mount_image`` raises.

    For mount(8) ``suid`` and ``dev`` hold unless their opposites are given, and it never passes them on; for
    FUSE it is the other way round. Users may not have them, and fusermount3 would refuse to give them.
    """
    try:
        flags, names = getopt.gnu_getopt(arguments, "sfnvN:t:o:")
    except getopt.GetoptError as error:
        return _usage(str(error))
    if len(names) != 2:
        return _usage("expected an image and a directory")
    given = {flag for flag, _ in flags}
    if "-N" in given:
        raise MountError(
            "mounting in another namespace is not supported",
            found="-N",
            hint="enter it first, with nsenter(1)",
        )
    text = ",".join(value for flag, value in flags if flag == "-o")
    options = parse_options(text, sloppy="-s" in given)
    if os.geteuid() == 0:
        options.flags |= {"suid", "dev"} - {flag.removeprefix("no") for flag in options.flags}
    request = request_of(names[0], names[1], options)
    if "-f" in given:
        check_only(request)
    else:
        mount_image(request)
        warn_of_no_log(request)
    return ExitCode.OK


def _usage(what: str) -> int:
    print(
        f"rafsfs: {what}; this is the helper of mount(8): mount -t fuse.rafsfs IMAGE DIR -o key=FILE",
        file=sys.stderr,
    )
    return ExitCode.USAGE


def main() -> int:
    """Entry point of the ``mount.fuse.rafsfs`` script; returns the exit code."""
    return run(lambda: mount(sys.argv[1:]))
