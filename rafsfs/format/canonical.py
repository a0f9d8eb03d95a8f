"""Canonical msgpack with strict limits: one value has exactly one spelling; anything else is refused.

Keys are sorted strings, there are no extension types, floats or booleans (msgpack specification, 'Formats').
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack

from rafsfs.errors import FormatError, LimitExceeded
from rafsfs.limits import BLOBS_MAX, MSGPACK_DEPTH_MAX

V = TypeVar("V")

MAP_KEYS_MAX = 32
ARRAY_ITEMS_MAX = BLOBS_MAX

_SCALARS = {str, bytes, int, type(None)}  # bool is none of them, though an int to isinstance


def pack(value: dict[str, Any]) -> bytes:
    """Spell a map of maps, lists, strings, bytes, integers and None."""
    packed: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return packed


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def unpack(data: bytes, *, what: str, max_bytes: int) -> dict[str, Any]:
    """Read one map that was written by ``pack``; raises FormatError or LimitExceeded, nothing else.

    ``what`` names the document in errors; ``max_bytes`` bounds it and each string in it.
    """
    if len(data) > max_bytes:
        raise LimitExceeded(
            f"{what} is too long", expected=f"at most {max_bytes} bytes", found=f"{len(data)} bytes"
        )
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
            max_array_len=ARRAY_ITEMS_MAX,
            max_map_len=MAP_KEYS_MAX,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise FormatError(f"{what} is not valid msgpack", found=type(error).__name__) from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a map", found=type(value).__name__)
    _check_kinds(value, what)
    if pack(value) != data:
        raise FormatError(f"{what} is not in canonical form", hint="it was not written by rafsfs")
    return value


def _check_kinds(value: object, what: str) -> None:
    """Refuse what ``pack`` never writes. Not recursive: how deep it goes is for an attacker to choose."""
    pending = [(value, 1)]
    while pending:
        item, level = pending.pop()
        if isinstance(item, dict):
            inside = list(item.values())
            unknown = set(map(type, item)) - {str}
        elif isinstance(item, list):
            inside = item
            unknown = set()
        else:
            inside = None
            unknown = {type(item)} - _SCALARS
        if unknown:
            names = ", ".join(sorted(kind.__name__ for kind in unknown))
            raise FormatError(f"{what} holds what the format does not use", found=names)
        if inside is None:
            continue
        if level > MSGPACK_DEPTH_MAX:
            raise LimitExceeded(
                f"{what} is nested too deeply", expected=f"at most {MSGPACK_DEPTH_MAX} levels"
            )
        pending.extend((part, level + 1) for part in inside)


class Fields:
    """The fields of one untrusted map, taken out by name and type; what is left over is refused by name."""

    def __init__(self, fields: object, what: str) -> None:
        if not isinstance(fields, dict):
            raise FormatError(f"{what} is not a map", found=type(fields).__name__)
        self._left = dict(fields)
        self._what = what

    def take(self, name: str, kind: type[V]) -> V:
        """The value of a required field."""
        if name not in self._left:
            raise FormatError(f"{self._what} has no field {name!r}")
        value = self._left.pop(name)
        # bool is an int to isinstance, and not one to us
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise FormatError(
                f"{self._what}: type of {name!r}", expected=kind.__name__, found=type(value).__name__
            )
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        """A required integer in ``low..high``."""
        value = self.take(name, int)
        if not low <= value <= high:
            raise LimitExceeded(f"{self._what}: {name!r}", expected=f"{low} to {high}", found=value)
        return value

    def octets(self, name: str, *lengths: int) -> bytes:
        """A required byte string of one of these lengths."""
        value = self.take(name, bytes)
        if len(value) not in lengths:
            wanted = " or ".join(map(str, lengths))
            raise FormatError(
                f"{self._what}: length of {name!r}", expected=f"{wanted} bytes", found=len(value)
            )
        return value

    def end(self) -> None:
        """Refuse what was not taken."""
        if self._left:
            raise FormatError(f"{self._what} has a field that is not known: {sorted(self._left)[0]!r}")
