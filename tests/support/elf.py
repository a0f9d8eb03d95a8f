"""Makes the smallest ELF files that want something (System V gABI, ch. 4 and 5); no kernel would run them."""

from __future__ import annotations

import struct

from rafsfs.build.elf import ElfNeeds


def elf_of(needs: ElfNeeds, *, bits: int = 64, order: str = "<") -> bytes:
    """A file of three segments: all of it to be loaded, its dynamic section, its interpreter."""
    strings = bytearray(b"\0")

    def place(text: bytes) -> int:
        strings.extend(text + b"\0")
        return len(strings) - len(text) - 1

    is_64 = bits == 64
    tags = [(1, place(name)) for name in needs.libraries]  # DT_NEEDED
    tags += [(kind, place(text)) for kind, text in ((15, needs.rpath), (29, needs.runpath)) if text]
    interpreter = needs.interpreter + b"\0"
    pair = struct.Struct(order + ("qQ" if is_64 else "iI"))
    start = (64 if is_64 else 52) + 3 * (56 if is_64 else 32)
    dynamic = start + len(interpreter)
    tags += [(5, dynamic + pair.size * (len(tags) + 2)), (0, 0)]  # DT_STRTAB, DT_NULL
    section = b"".join(pair.pack(*tag) for tag in tags)
    end = dynamic + len(section) + len(strings)
    header = b"\x7fELF" + bytes([2 if is_64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    form, sizes = ("HHIQQQIHHHHHH", (64, 56)) if is_64 else ("HHIIIIIHHHHHH", (52, 32))
    header += struct.pack(order + form, 3, 62, 1, 0, sizes[0], 0, 0, *sizes, 3, 0, 0, 0)
    interpreted = 3 if needs.interpreter else 0
    segments = [(1, 0, end), (2, dynamic, len(section)), (interpreted, start, len(interpreter))]
    for kind, offset, size in segments:  # PT_LOAD, PT_DYNAMIC, PT_INTERP; p_flags has moved in 64 bits
        if is_64:
            header += struct.pack(order + "IIQQQQQQ", kind, 4, offset, offset, offset, size, size, 1)
        else:
            header += struct.pack(order + "IIIIIIII", kind, offset, offset, offset, size, size, 4, 1)
    return header + interpreter + section + bytes(strings)
