"""The text of an access trace: which ranges of which files were read, in order of first access; no files.

    rafsfs-trace-1
    # a comment
    OFFSET LENGTH /PATH

Paths are absolute in the image. Of their bytes, blanks, ``%`` and all outside of printable ASCII are written
as ``%XX``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from rafsfs.errors import FormatError, LimitExceeded
from rafsfs.limits import FILE_SIZE_MAX, TRACE_BYTES_MAX, TRACE_LINE_BYTES_MAX

TRACE_MAGIC = b"rafsfs-trace-1"

_LINE = re.compile(rb"([0-9]{1,19}) ([0-9]{1,19}) (/(?:[!-$&-~]|%[0-9A-Fa-f]{2})*)")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_TO_ESCAPE = re.compile(rb"[^!-$&-~]")
_SHOWN = 60  # characters of a bad line


class TracedRange(NamedTuple):
    """``length`` bytes at ``offset`` of the file at ``path``, which is relative to the root, as bytes."""

    path: bytes
    offset: int
    length: int


def pack_trace(ranges: Iterable[TracedRange], *, comment: str = "") -> bytes:
    """Spell a trace. Left out is what no reader would take: a longer line, or all behind the bound."""
    lines = [TRACE_MAGIC, *([b"# " + comment.encode()] if comment else [])]
    left = TRACE_BYTES_MAX - sum(len(line) + 1 for line in lines)
    for path, offset, length in ranges:
        line = b"%d %d /%s" % (offset, length, _TO_ESCAPE.sub(lambda found: b"%%%02X" % found[0][0], path))
        left -= len(line) + 1
        if left < 0:
            break
        if len(line) <= TRACE_LINE_BYTES_MAX:
            lines.append(line)
    return b"\n".join(lines) + b"\n"


def parse_trace(data: bytes) -> list[TracedRange]:
    """Read a trace that anybody may have written; raises FormatError or LimitExceeded, with the line."""
    if len(data) > TRACE_BYTES_MAX:
        raise LimitExceeded(
            "the trace is too long", expected=f"at most {TRACE_BYTES_MAX} bytes", found=len(data)
        )
    first, *lines = data.split(b"\n")
    if first != TRACE_MAGIC:
        raise FormatError(
            "not an access trace",
            expected=f"a first line {TRACE_MAGIC.decode()}",
            found=_shown(first),
            hint="`rafsfs mount --trace FILE` writes one",
        )
    return [
        _parse_line(line, number)
        for number, line in enumerate(lines, 2)
        if line and not line.startswith(b"#")
    ]


def _parse_line(line: bytes, number: int) -> TracedRange:
    if len(line) > TRACE_LINE_BYTES_MAX:
        raise LimitExceeded(
            f"the trace's line {number}", expected=f"at most {TRACE_LINE_BYTES_MAX} bytes", found=len(line)
        )
    match = _LINE.fullmatch(line)
    if match is None:
        raise FormatError(f"the trace's line {number}", expected="OFFSET LENGTH /PATH", found=_shown(line))
    offset, length = int(match[1]), int(match[2])
    if not 0 < length <= FILE_SIZE_MAX - offset:
        raise FormatError(
            f"the trace's line {number}: no range of a file",
            expected=f"a length from 1, an end of at most {FILE_SIZE_MAX}",
            found=f"{length} bytes at {offset}",
        )
    path = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), match[3])[1:]
    if any(name in (b"", b".", b"..") or b"\0" in name for name in path.split(b"/")):
        raise FormatError(
            f"the trace's line {number}: no path of a file",
            expected="names between single slashes",
            found=_shown(match[3]),
        )
    return TracedRange(path, offset, length)


def _shown(line: bytes) -> str:
    text = line[:_SHOWN].decode("ascii", "backslashreplace")
    return repr(text + ("..." if len(line) > _SHOWN else ""))
