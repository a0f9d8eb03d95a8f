"""The table from errors to exit codes and the wrapper that ends every command; never tries anything again."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Final

import click

from rafsfs import errors
from rafsfs.cli import standard_streams
from rafsfs.frontends.logs import one_line


class ExitCode(IntEnum):
    """What a script can tell from ``$?``. Up to 10 they are kinds of errors; from 11 on, errors of a kind."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    KEY = 4
    AUTHENTICATION = 5
    FORMAT = 6
    STORE = 7
    BUILD = 8
    MOUNT = 9
    SYSTEM = 10
    NO_TAG = 11
    NO_BLOB = 12
    NO_PATH = 13
    NO_KEY_FILE = 14
    TRUNCATED = 15
    VERSION = 16
    SOURCE_CHANGED = 17
    SOURCE_UNREADABLE = 18
    MOUNT_POINT_BUSY = 19
    MOUNT_POINT_NOT_DIRECTORY = 20
    DISK_FULL = 21
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """128 + SIGPIPE: what a shell reports of any program whose reader went away."""


MEANINGS: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "done",
    ExitCode.UNEXPECTED: "a mistake in rafsfs",
    ExitCode.USAGE: "wrong usage, or an option that cannot be",
    ExitCode.NOT_FOUND: "no image there, or no file that was named",
    ExitCode.KEY: "wrong key, or a key file that cannot be used",
    ExitCode.AUTHENTICATION: "changed bytes, a bad signature, or an older image than wanted",
    ExitCode.FORMAT: "not an image, or beyond a limit",
    ExitCode.STORE: "the store is not available, or denies access",
    ExitCode.BUILD: "the source cannot become an image",
    ExitCode.MOUNT: "cannot mount or unmount",
    ExitCode.SYSTEM: "the operating system refused something else",
    ExitCode.NO_TAG: "no such tag or digest where the images are",
    ExitCode.NO_BLOB: "a blob of the image is missing",
    ExitCode.NO_PATH: "no such path in the image",
    ExitCode.NO_KEY_FILE: "a key file is missing",
    ExitCode.TRUNCATED: "a blob is too short or too long",
    ExitCode.VERSION: "a newer format, or a part of it that is not known: update rafsfs",
    ExitCode.SOURCE_CHANGED: "the source changed or vanished while it was read",
    ExitCode.SOURCE_UNREADABLE: "the source may not or cannot be read",
    ExitCode.MOUNT_POINT_BUSY: "something is mounted on the mount point already",
    ExitCode.MOUNT_POINT_NOT_DIRECTORY: "the mount point is not a directory",
    ExitCode.DISK_FULL: "the disk is full",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.BROKEN_PIPE: "whoever read the output went away",
}
"""What ``rafsfs --help`` says of each code."""

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""System errors that have a code of their own, which no class tells."""


class ReaderGone(Exception):
    """Whoever read standard output went away. No OSError, since click ends the program with 1 for EPIPE."""


TRACEBACK_VARIABLE: Final = "RAFSFS_TRACEBACK"
"""Set in the environment to let an unexpected exception pass with its traceback, for bug reports."""

# The first class that fits decides, so every subclass stands before its base.
TABLE: Final[tuple[tuple[type[BaseException], ExitCode], ...]] = (
    (errors.TagNotFound, ExitCode.NO_TAG),
    (errors.ImageNotFound, ExitCode.NOT_FOUND),
    (errors.BlobNotFound, ExitCode.NO_BLOB),
    (errors.PathNotFound, ExitCode.NO_PATH),
    (errors.WrongKey, ExitCode.KEY),
    (errors.KeyFileMissing, ExitCode.NO_KEY_FILE),
    (errors.KeyFileError, ExitCode.KEY),
    (errors.AuthError, ExitCode.AUTHENTICATION),
    (errors.UnsupportedVersion, ExitCode.VERSION),
    (errors.FormatError, ExitCode.FORMAT),
    (errors.LengthMismatch, ExitCode.TRUNCATED),
    (errors.StoreError, ExitCode.STORE),
    (errors.OptionError, ExitCode.USAGE),
    (errors.SourceChanged, ExitCode.SOURCE_CHANGED),
    (errors.SourceUnreadable, ExitCode.SOURCE_UNREADABLE),
    (errors.BuildError, ExitCode.BUILD),
    (errors.MountPointBusy, ExitCode.MOUNT_POINT_BUSY),
    (errors.MountPointNotDirectory, ExitCode.MOUNT_POINT_NOT_DIRECTORY),
    (errors.MountError, ExitCode.MOUNT),
    (click.UsageError, ExitCode.USAGE),
    (click.exceptions.Abort, ExitCode.INTERRUPTED),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (ReaderGone, ExitCode.BROKEN_PIPE),
    (BrokenPipeError, ExitCode.BROKEN_PIPE),
    (FileNotFoundError, ExitCode.NOT_FOUND),
    (NotADirectoryError, ExitCode.NOT_FOUND),
    (OSError, ExitCode.SYSTEM),
    (click.FileError, ExitCode.SYSTEM),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the code of the first class in ``TABLE`` that fits; ``UNEXPECTED`` when none does."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ExitCode.DISK_FULL
    return next((code for kind, code in TABLE if isinstance(error, kind)), ExitCode.UNEXPECTED)


def describe(error: BaseException) -> str:
    """Say what went wrong in one line, without the program's name before it."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "rafsfs"
        text = f"{error.format_message().rstrip('.')}; see {command} --help"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        text = "interrupted"
    elif isinstance(error, OSError):
        names = [
            os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
        ]
        text = ": ".join([*names, error.strerror or str(error)])
        if names and error.errno in DISK_FULL:
            text += "; make room there, or choose a place on another disk"
    elif exit_code_of(error) is ExitCode.UNEXPECTED:
        text = (
            f"unexpected {type(error).__name__}: {error}; this is a mistake in rafsfs, please report it "
            f"with what {TRACEBACK_VARIABLE}=1 in the environment shows"
        )
    else:
        text = str(error)
    return one_line(text)


def run(function: Callable[[], object]) -> int:
    """Call a command; turn whatever it raises into one line on stderr and an exit code, never a traceback.

    An ``int`` that the command returns is its exit code; anything else counts as success.
    """
    standard_streams.complete()
    try:
        result = function()
        sys.stdout.flush()  # a full disk or a closed pipe must show here, not in the interpreter's end
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        code = exit_code_of(error)
        if code is ExitCode.UNEXPECTED and os.environ.get(TRACEBACK_VARIABLE):
            raise
        if code is ExitCode.BROKEN_PIPE:
            # The reader has what it wanted, as with `rafsfs ls | head`.
            standard_streams.let_go(sys.stdout.fileno())
            return code
        try:
            print(f"rafsfs: {describe(error)}", file=sys.stderr, flush=True)
        except OSError:  # nobody hears of it there; the code still tells
            standard_streams.let_go(sys.stderr.fileno())
        return code
    return result if isinstance(result, int) else ExitCode.OK
