"""What the blocks of a tar say; owns ustar, pax, GNU and star records, does no I/O and believes no name yet.

Why not ``tarfile``: in Python 3.11 it takes a damaged header for the end of the archive, loses extents of old
sparse files, misplaces what follows a sparse file with more than 8 GiB of data, and times are floats.

Sources: POSIX.1-2017 pax, "pax Interchange Format" and "ustar Interchange Format"; the GNU tar manual,
"Tar Internals"; star(5); libarchive's tar(5).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rafsfs.errors import BuildError
from rafsfs.limits import SPARSE_EXTENTS_MAX

Extents = list[tuple[int, int]]
"""(offset, length) of a sparse file's data."""

# name, mode, uid, gid, size, mtime, checksum, typeflag, linkname, magic, version, uname, gname, devmajor,
# devminor, prefix, padding
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_CHECKSUM = slice(148, 156)
_OLD_SPARSE = struct.Struct("12s12s")  # offset, length
_OLD_SPARSE_HERE = range(386, 386 + 4 * 24, 24)
_OLD_SPARSE_MORE = range(0, 21 * 24, 24)
_DECIMAL_DIGITS_MAX = 24  # of any number a tar may hold: 64 bits take 20


@dataclass(slots=True)
class Header:
    """One ustar, GNU or star header block, as it stands."""

    kind: bytes
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    device: tuple[int, int]
    block: bytes


def parse_header(block: bytes) -> Header | None:
    """Read a header of 512 bytes; None for a block of zeros, which ends an archive. Raises BuildError."""
    if not any(block):
        return None
    fields = _HEADER.unpack(block)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, _, major, minor, prefix, pad = (
        fields
    )
    unsigned = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    expected = number(checksum)
    if (
        expected != unsigned
        and expected
        != unsigned
        - 256
        * sum(  # old tars summed signed characters
            byte > 127 for byte in block[:148] + block[156:]
        )
    ):
        raise BuildError("a tar header is damaged", expected=f"checksum {unsigned:o}", found=f"{expected:o}")
    path = _text(name)
    if magic == b"ustar\0":  # old GNU headers have times where the prefix is, star only the first 131 bytes
        before = _text(prefix[:131] if pad.endswith(b"tar\0") else prefix)
        if before:
            path = before + b"/" + path
    is_device = kind in {b"3", b"4"}  # of others, some writers leave these fields unset
    return Header(
        kind=kind,
        name=path,
        mode=number(mode),
        uid=number(uid),
        gid=number(gid),
        size=number(size),
        mtime=number(mtime),
        link=_text(link),
        device=(number(major), number(minor)) if is_device else (0, 0),
        block=block,
    )


def number(field: bytes) -> int:
    """Read a header's number: octal, or with the top bit set big-endian two's complement (GNU, star)."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise BuildError("a tar header is damaged", expected="an octal number", found=repr(field))
    return int(digits or b"0", 8)


def decimal(text: bytes, keyword: bytes) -> int:
    """Read a pax record's non-negative whole number."""
    if not text.isdigit() or len(text) > _DECIMAL_DIGITS_MAX:
        raise BuildError(
            "a pax record is damaged",
            expected=f"a number as {keyword!r}",
            found=repr(text[:_DECIMAL_DIGITS_MAX]),
        )
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Read a pax record's time, decimal seconds since 1970 with any number of places, rounded down."""
    digits = text.removeprefix(b"-")
    whole, _, fraction = digits.partition(b".")
    if not whole.isdigit() or len(whole) > _DECIMAL_DIGITS_MAX or fraction.strip(b"0123456789"):
        raise BuildError("a pax record is damaged", expected="decimal seconds", found=repr(text[:48]))
    value = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    if not text.startswith(b"-"):
        return value
    return -value - bool(fraction[9:].strip(b"0"))


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split an extended header into its (keyword, value) records, in order. Raises BuildError."""
    records = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + _DECIMAL_DIGITS_MAX)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not keyword or not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise BuildError(
                "a pax header is damaged", expected="a record", found=repr(data[position : position + 32])
            )
        records.append((keyword, value))
        position = end
    return records


def old_sparse(block: bytes, *, more: bool) -> tuple[Extents, bool]:
    """Read the map in an old GNU sparse header, or in a block of ``more`` map; tells whether one follows."""
    extents = []
    for position in _OLD_SPARSE_MORE if more else _OLD_SPARSE_HERE:
        offset, length = _OLD_SPARSE.unpack_from(block, position)
        if not any(length):
            break
        extents.append((number(offset), number(length)))
    return extents, block[504 if more else 482] != 0


def old_sparse_size(block: bytes) -> int:
    """Read how long the file of an old GNU sparse header is, holes included."""
    return number(block[483:495])


def paired(numbers: list[int]) -> Extents:
    """Put the numbers of a map together: offset, length, offset, length, ..."""
    if len(numbers) % 2:
        raise BuildError("a sparse file's map is damaged", expected="pairs of numbers", found=len(numbers))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def check_extents(extents: Extents, size: int, stored: int) -> None:
    """Refuse a map that is out of order, leaves the file, or does not account for the stored bytes."""
    if len(extents) > SPARSE_EXTENTS_MAX:
        raise BuildError(
            "a sparse file has too many pieces", expected=f"at most {SPARSE_EXTENTS_MAX}", found=len(extents)
        )
    position = total = 0
    for offset, length in extents:
        if offset < position or length < 0:
            raise BuildError("a sparse file's map is damaged", expected="pieces in order")
        position = offset + length
        total += length
    if position > size or total != stored:
        raise BuildError(
            "a sparse file's map is damaged",
            expected=f"{stored} bytes within {size}",
            found=f"{total} to {position}",
        )


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
