"""What an ELF file wants beside itself when it is run: its loader and libraries; finds none of them.

System V gABI, ch. 4 and 5 (elf.h), 32 and 64 bits, either byte order. The file may be anybody's: every count
is bounded, and what does not parse wants nothing. (pyelftools, which does it too, reads section headers at
the ends of files however long, and takes memory and hours for some that were made for that.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

Read: TypeAlias = Callable[[int, int], bytes]
"""(offset, length): bytes of a file, fewer at its end."""

MAGIC: Final = b"\x7fELF"
SEGMENTS_MAX: Final = 256  # real files have a dozen
TAGS_MAX: Final = 4096  # of a dynamic section; real ones have some dozens
NAME_BYTES_MAX: Final = 4095  # PATH_MAX, less its NUL

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29
_IDENT_BYTES: Final = 16
_MACHINE: Final = slice(18, 20)  # e_machine
_ORDERS: Final = {1: "<", 2: ">"}


class _Class(NamedTuple):
    """How the records of one word size are laid out, for ``struct``."""

    header: str  # e_phoff, e_phentsize, e_phnum
    segment: str  # p_type, p_offset, p_vaddr, p_filesz, in the order of ``segment_fields``
    segment_fields: tuple[int, int, int, int]
    tag: str  # d_tag, d_val


_CLASSES: Final = {
    1: _Class("12xI10xHH6x", "IIIIIIII", (0, 1, 2, 4), "iI"),
    2: _Class("16xQ14xHH6x", "IIQQQQQQ", (0, 2, 3, 5), "qQ"),
}


class ElfNeeds(NamedTuple):
    """``interpreter``: the path of the loader, empty without one; ``libraries``: names or paths of shared
    libraries; ``rpath`` and ``runpath``: where to look for them, with ``$ORIGIN`` in them; ``machine``: word
    size, byte order and processor, which are those of its libraries, too, empty where it is no ELF file.
    """

    interpreter: bytes = b""
    libraries: tuple[bytes, ...] = ()
    rpath: bytes = b""
    runpath: bytes = b""
    machine: bytes = b""


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


def machine_of(read: Read) -> bytes:
    """``ElfNeeds.machine`` of a file."""
    head = read(0, _MACHINE.stop)
    return head[4:6] + head[_MACHINE] if head.startswith(MAGIC) else b""


def elf_needs(read: Read) -> ElfNeeds:
    """What a file wants; nothing where it is no ELF, or a damaged one."""
    ident = read(0, _IDENT_BYTES)
    order = _ORDERS.get(ident[5]) if len(ident) == _IDENT_BYTES and ident.startswith(MAGIC) else None
    layout = _CLASSES.get(ident[4]) if order is not None else None
    if order is None or layout is None:
        return ElfNeeds()
    try:
        return _needs(read, order, layout)
    except struct.error:  # it ends within a record
        return ElfNeeds()


def _needs(read: Read, order: str, layout: _Class) -> ElfNeeds:
    header = struct.Struct(order + layout.header)
    table, entry_bytes, count = header.unpack(read(_IDENT_BYTES, header.size))
    record = struct.Struct(order + layout.segment)
    if entry_bytes != record.size:
        return ElfNeeds()
    data = read(table, record.size * min(count, SEGMENTS_MAX))
    segments = [
        _Segment(*(fields[number] for number in layout.segment_fields)) for fields in record.iter_unpack(data)
    ]
    interpreter = _first(segments, _PT_INTERP)
    dynamic = _first(segments, _PT_DYNAMIC)
    found = ElfNeeds(machine=machine_of(read))
    if interpreter is not None:
        name = read(interpreter.offset, min(interpreter.size, NAME_BYTES_MAX + 1))
        found = found._replace(interpreter=name.partition(b"\0")[0])
    if dynamic is None:
        return found
    pair = struct.Struct(order + layout.tag)
    data = read(dynamic.offset, pair.size * min(dynamic.size // pair.size, TAGS_MAX))
    return _with_tags(found, read, segments, list(pair.iter_unpack(data)))


def _with_tags(
    found: ElfNeeds, read: Read, segments: list[_Segment], tags: list[tuple[int, int]]
) -> ElfNeeds:
    kinds = [kind for kind, _ in tags]
    tags = tags[: kinds.index(_DT_NULL)] if _DT_NULL in kinds else tags
    by_kind = dict(reversed(tags))  # the first of each
    strings = _strings(segments, by_kind.get(_DT_STRTAB))

    def name(place: int | None) -> bytes:
        if place is None or not 0 <= place < strings.size:
            return b""
        text = read(strings.offset + place, min(strings.size - place, NAME_BYTES_MAX + 1))
        return text.partition(b"\0")[0] if b"\0" in text else b""

    names = (name(place) for kind, place in tags if kind == _DT_NEEDED)
    return found._replace(
        libraries=tuple(text for text in names if text),
        rpath=name(by_kind.get(_DT_RPATH)),
        runpath=name(by_kind.get(_DT_RUNPATH)),
    )


def _strings(segments: list[_Segment], address: int | None) -> _Segment:
    """Where the table of strings is, which is named by where it will be in memory; its end is not known."""
    for segment in segments:
        within = -1 if address is None else address - segment.address
        if segment.kind == _PT_LOAD and 0 <= within < segment.size:
            return segment._replace(offset=segment.offset + within, size=segment.size - within)
    return _Segment(0, 0, 0, 0)


def _first(segments: list[_Segment], kind: int) -> _Segment | None:
    return next((segment for segment in segments if segment.kind == kind), None)
