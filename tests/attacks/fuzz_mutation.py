"""Damages bytes and values for tools/fuzz, by a random source that is given; knows no format."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

BYTES_MAX = 200_000
NUMBERS = [0, 1, 2, 3, 7, 8, 12, 15, 16, 31, 32, 36, 44, 63, 64, 96, 127, 128, 255, 256, 511, 512, 4095, 4096]
NUMBERS += [4097, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def number(source: random.Random) -> int:
    """One that parsers stumble over, or any."""
    chosen = (
        source.choice(NUMBERS) if source.random() < 0.8 else source.getrandbits(source.choice((8, 16, 64)))
    )
    return chosen + source.choice((0, 0, 0, -1, 1))


def mutate(source: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Damage a run of bytes in one of the ways below."""
    return source.choice(_WAYS)(source, bytearray(data), corpus)[:BYTES_MAX]


def _range(source: random.Random, data: bytearray, most: int = 64) -> tuple[int, int]:
    start = source.randrange(len(data) + 1)
    return start, min(len(data), start + source.randint(1, most))


def _flip_bit(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def _set_byte(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    if data:
        data[source.randrange(len(data))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.getrandbits(8)))
    return bytes(data)


def _set_number(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    width = source.choice((2, 4, 8))
    if len(data) >= width:
        start = source.randrange(len(data) - width + 1)
        value = number(source) % (1 << 8 * width)
        data[start : start + width] = value.to_bytes(width, source.choice(("little", "little", "big")))
    return bytes(data)


def _add_to_number(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    width = source.choice((1, 2, 4, 8))
    if len(data) >= width:
        start = source.randrange(len(data) - width + 1)
        value = int.from_bytes(data[start : start + width], "little") + source.randint(-16, 16)
        data[start : start + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


def _cut_out(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    start, end = _range(source, data)
    del data[start:end]
    return bytes(data)


def _cut_off(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    return bytes(data[: source.randrange(len(data) + 1)])


def _repeat(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    start, end = _range(source, data)
    data[start:start] = data[start:end] * source.choice((1, 1, 2, 16))
    return bytes(data)


def _move(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    start, end = _range(source, data)
    taken = data[start:end]
    del data[start:end]
    to = source.randrange(len(data) + 1)
    data[to:to] = taken
    return bytes(data)


def _insert_noise(source: random.Random, data: bytearray, _: Sequence[bytes]) -> bytes:
    start, _end = _range(source, data)
    data[start:start] = source.randbytes(source.randint(1, 16))
    return bytes(data)


def _splice(source: random.Random, data: bytearray, corpus: Sequence[bytes]) -> bytes:
    other = source.choice(corpus)
    return bytes(data[: source.randrange(len(data) + 1)]) + other[source.randrange(len(other) + 1) :]


def _overwrite(source: random.Random, data: bytearray, corpus: Sequence[bytes]) -> bytes:
    other = source.choice(corpus)
    start, end = _range(source, bytearray(other))
    to = source.randrange(len(data) + 1)
    data[to : to + end - start] = other[start:end]
    return bytes(data)


_WAYS: list[Callable[[random.Random, bytearray, Sequence[bytes]], bytes]] = [
    *(_flip_bit, _set_byte, _set_number, _set_number, _add_to_number, _cut_out, _cut_off),
    *(_repeat, _move, _insert_noise, _splice, _overwrite),
]


def mutate_value(source: random.Random, value: Any) -> Any:
    """Damage one place of a value as JSON and msgpack have them: maps, lists, text, bytes, numbers, nil."""
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(list(value))
        way = source.random()
        if way < 0.08:
            return {name: item for name, item in value.items() if name != key}
        if way < 0.14:
            return value | {source.choice(("", "a", "zz", "\x1b[2J")): value[key]}
        return value | {key: mutate_value(source, value[key])}
    if isinstance(value, list) and value and source.random() < 0.85:
        at = source.randrange(len(value))
        way = source.random()
        if way < 0.1:
            return value[:at] + value[at + 1 :]
        if way < 0.2:
            return value[:at] + [value[at]] * source.choice((2, 3, 65, 300)) + value[at + 1 :]
        return [*value[:at], mutate_value(source, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and source.random() < 0.8:
        return min(max(number(source) * source.choice((1, 1, 1, -1)), -(2**63)), 2**64 - 1)
    if isinstance(value, bytes | str) and source.random() < 0.7:
        return _mutate_text(source, value)
    return source.choice([None, True, 0, -1, 2**63, "", "text", [], {}, [[]], {"a": {}}, 1.5])


def _mutate_text(source: random.Random, value: Any) -> Any:
    if isinstance(value, bytes):
        return mutate(source, value, [value])
    letters = list(value)
    at = source.randrange(len(letters) + 1)
    letters[at : at + source.choice((0, 1))] = source.choice(
        ["", "\0", "\n", "/", "..", ":", "@", "\x1b[2J", "\ud800", "é", "0", "f" * 64, "a" * 300]
    )
    return "".join(letters)
