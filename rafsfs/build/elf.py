"""What an ELF file wants beside itself when it is run (System V gABI, ch. 5); finds none of it.

Parsed by pyelftools, which says of most damaged files that they are; of some it falls over.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from typing import Any, Final, NamedTuple

_TAGS_MAX: Final = 4096  # of a dynamic section; real ones have some dozens


class ElfNeeds(NamedTuple):
    """``interpreter``: the path of the loader, empty without one; ``libraries``: names or paths of shared
    libraries; ``directories``: where to look for them first, with ``$ORIGIN`` in them.
    """

    interpreter: str = ""
    libraries: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


def is_elf(data: bytes) -> bool:
    """Whether a file that starts like this claims to be one."""
    return data.startswith(b"\x7fELF")


def elf_needs(data: bytes) -> ElfNeeds:
    """What the file ``data`` wants; nothing where that cannot be read. Never raises."""
    from elftools.common.exceptions import ELFError

    try:
        return _parsed(data)
    except (ELFError, ValueError, ArithmeticError):  # not one that the kernel would run, either
        return ElfNeeds()


def _parsed(data: bytes) -> ElfNeeds:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    interpreter = ""
    libraries: list[str] = []
    directories: list[str] = []
    for segment in ELFFile(BytesIO(data)).iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        elif isinstance(segment, DynamicSegment):
            tags: Iterator[Any] = islice(segment.iter_tags(), _TAGS_MAX)
            for tag in tags:  # which have the attribute that their type names
                match tag.entry.d_tag:
                    case "DT_NEEDED":
                        libraries.append(tag.needed)
                    case "DT_RUNPATH":
                        directories += tag.runpath.split(":")
                    case "DT_RPATH":
                        directories += tag.rpath.split(":")
    return ElfNeeds(interpreter, tuple(libraries), tuple(directories))
