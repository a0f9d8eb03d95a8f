"""Log lines of a mount's server: one line each, whatever is in them, to one place chosen at its start."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError, RafsError, Where

SYSLOG_SOCKET: Final = Path("/dev/log")


def one_line(text: str) -> str:
    """Escape everything that could break a line or speak to a terminal: hostile images have such names."""
    if text.isprintable():
        return text
    # Not by a codec such as unicode_escape: it lies in a file that a server in its sandbox cannot open.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class OneLineFormatter(logging.Formatter):
    """Formats a record as one line, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the escaped line."""
        return one_line(super().format(record))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line, in ASCII; odd bytes of names come as ``\\udcXX``.

    What an error says of its place comes as fields of their own as well: nobody has to take a text apart.
    """

    def __init__(self, tag: str = "") -> None:
        """``tag`` goes in front of each line; it is a format as those of ``logging`` are."""
        super().__init__()
        self._tag = tag

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = next((argument for argument in arguments if isinstance(argument, RafsError)), None)
        if error is not None:
            fields["error"] = _described(error)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        line = json.dumps(fields).replace("\x7f", "\\u007f")  # the one control character that JSON leaves
        return self._tag % record.__dict__ + line


def _described(error: RafsError) -> dict[str, object]:
    texts = {"expected": error.expected, "found": error.found, "hint": error.hint}
    return {
        "type": type(error).__name__,
        "what": error.what,
        **{name: str(value) for name, value in texts.items() if value is not None},
        **{name: value for name, value in asdict(error.where).items() if value is not None},
    }


_TAG: Final = "rafsfs[%(process)d]: "
"""Where syslog looks for who says it."""

_WITH_TIME: Final = "%(asctime)s rafsfs[%(process)d] %(levelname)s %(message)s"


def to_standard_error(*, as_json: bool = False) -> logging.Handler:
    """For a server in the foreground."""
    handler = logging.StreamHandler(sys.stderr)
    return _formatted(handler, None if as_json else "rafsfs: %(levelname)s: %(message)s")


def to_file(file: Path, *, as_json: bool = False) -> tuple[logging.Handler, int]:
    """Append to ``file``, each line as it comes; returns its descriptor too, for other output.

    Raises ``MountError`` when it cannot be opened.
    """
    try:
        stream = file.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise MountError(
            "the log file cannot be opened",
            found=error.strerror,
            where=Where(file=str(file)),
            hint="name a file that you can write to",
        ) from error
    return _formatted(logging.StreamHandler(stream), None if as_json else _WITH_TIME), stream.fileno()


def has_system_log() -> bool:
    """Whether this machine has a syslog, or journald in its place."""
    return SYSLOG_SOCKET.exists()


def to_system(*, as_json: bool = False) -> logging.Handler:
    """Use the machine's syslog; where there is none, lines are lost, as for any daemon there."""
    if not has_system_log():
        return logging.NullHandler()
    from logging.handlers import SysLogHandler

    handler = SysLogHandler(address=str(SYSLOG_SOCKET), facility=SysLogHandler.LOG_DAEMON)
    if as_json:
        handler.setFormatter(JsonFormatter(_TAG))
        return handler
    return _formatted(handler, f"{_TAG}%(message)s")


def use(handler: logging.Handler, level: str) -> None:
    """Make ``handler`` the only one of this process; ``level`` is a name such as ``INFO``."""
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.raiseExceptions = (
        False  # a full disk under the log file is no reason to write tracebacks to stderr
    )


def _formatted(handler: logging.Handler, line: str | None) -> logging.Handler:
    handler.setFormatter(JsonFormatter() if line is None else OneLineFormatter(line))
    return handler
