"""How names and attributes of files in an image are shown, to people and in JSON; reads no file data."""

from __future__ import annotations

import base64
import os
import stat
from datetime import UTC, datetime
from typing import Any, Final

from rafsfs.fs.attributes import Attributes
from rafsfs.fs.filesystem import FileSystem

TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_NANOSECONDS: Final = 1_000_000_000


def shown(name: bytes) -> str:
    """Spell a name or path on one line of any terminal, reversibly.

    What is printable stays; bytes that are no UTF-8 come as ``\\xHH``, other characters as Python's escapes
    (``\\n``, ``\\x1b``, ``\\u202e``), and a backslash as two.
    """
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if "\udc80" <= char <= "\udcff":  # where surrogateescape (PEP 383) puts a byte
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def text_fields(key: str, value: bytes) -> dict[str, str]:
    """``{key: text}``, and where the bytes are no UTF-8 also ``{key + "_b64": base64 of the bytes}``.

    The text then has U+FFFD in it; who finds the second field takes the bytes from there.
    """
    try:
        return {key: value.decode()}
    except UnicodeDecodeError:
        return {key: value.decode("utf-8", "replace"), f"{key}_b64": base64.b64encode(value).decode()}


def absolute(path: bytes) -> bytes:
    """A path as seen from the image's root."""
    return b"/" + path.strip(b"/")


def time_utc(mtime_ns: int) -> str:
    """Spell a time to the nanosecond: ``2025-11-23T08:20:00.123456789Z``; seconds where the calendar ends."""
    seconds, nanoseconds = divmod(mtime_ns, _NANOSECONDS)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
    except (ValueError, OverflowError, OSError):
        return f"@{seconds}.{nanoseconds:09}"


def entry_json(filesystem: FileSystem, path: bytes, found: Attributes) -> dict[str, Any]:
    """One inode at an absolute path as JSON: what ``ls`` and ``stat`` have in common."""
    kind = stat.S_IFMT(found.mode)
    entry: dict[str, Any] = {
        **text_fields("path", path),
        "type": TYPES[kind],
        "mode": f"{stat.S_IMODE(found.mode):04o}",
        "nlink": found.nlink,
        "uid": found.uid,
        "gid": found.gid,
        "size": found.size,
        "mtime": time_utc(found.mtime_ns),
        "mtime_ns": found.mtime_ns,
        "nid": found.nid,
    }
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry["device"] = [os.major(found.rdev), os.minor(found.rdev)]
    if kind == stat.S_IFLNK:
        entry |= text_fields("target", filesystem.readlink(found.nid))
    return entry
