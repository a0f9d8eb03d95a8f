"""What ELF files want, by readelf(1) and by files made for it; and that none takes more than it is worth."""

import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.elf import elf_of

from rafsfs.build.elf import MAGIC, NAME_BYTES_MAX, SEGMENTS_MAX, TAGS_MAX, ElfNeeds, elf_needs, machine_of

LS = Path("/usr/bin/ls").read_bytes()
NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)
NEEDS = st.builds(
    ElfNeeds,
    st.just(b"") | NAMES,
    st.lists(NAMES).map(tuple),
    st.just(b"") | NAMES,
    st.just(b"") | NAMES,
    st.just(b""),
)
HEADERS = 64 + 56 * LS[56]  # e_phnum: where changes are likely to matter
DYNAMIC = 16 * 40


class Reader:
    """Reads of bytes, counted."""

    def __init__(self, data):
        self.data = data
        self.count = self.bytes = 0

    def __call__(self, offset, length):
        assert offset >= 0
        assert length >= 0
        self.count += 1
        found = self.data[offset : offset + length]
        self.bytes += len(found)
        return found


def needs_of(data):
    return elf_needs(Reader(data))._replace(machine=b"")


def dynamic_of(data):
    """Where the dynamic section of a 64-bit little-endian file starts: its PT_DYNAMIC says so."""
    for number in range(data[56]):  # e_phnum
        kind, _, offset = struct.unpack_from("<IIQ", data, 64 + 56 * number)
        if kind == 2:
            return offset
    raise AssertionError("no PT_DYNAMIC")


def test_readelf_says_the_same_of_this_machines_programs(tally):
    compared = 0
    for path in sorted(Path("/usr/bin").iterdir())[::7] + sorted(Path("/usr/lib").glob("*/lib*.so*"))[::7]:
        if not path.is_file() or path.read_bytes()[:4] != MAGIC:
            continue
        text = subprocess.run(
            ["readelf", "-dlW", path], check=True, capture_output=True, env=os.environ | {"LC_ALL": "C"}
        ).stdout
        named = {
            word: tuple(re.findall(rb"\(%s\).*\[(.*)\]" % word, text))
            for word in (b"NEEDED", b"RPATH", b"RUNPATH")
        }
        interpreter = re.findall(rb"program interpreter: (.*)\]", text)
        expected = ElfNeeds(
            b"".join(interpreter), named[b"NEEDED"], b"".join(named[b"RPATH"]), b"".join(named[b"RUNPATH"])
        )
        assert needs_of(path.read_bytes()) == expected
        compared += 1
    assert compared > 50
    tally("ELF files read as readelf reads them", compared)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
@given(needs=NEEDS)
def test_what_a_file_wants_is_read(bits, order, needs):
    assert needs_of(elf_of(needs, bits=bits, order=order)) == needs


def test_machines_are_told_apart():
    kinds = {
        machine_of(Reader(elf_of(ElfNeeds(), bits=bits, order=order))) for bits in (32, 64) for order in "<>"
    }
    assert len(kinds) == 4
    assert machine_of(Reader(b"text")) == b""
    assert elf_needs(Reader(LS)).machine == machine_of(Reader(LS)) == LS[4:6] + LS[18:20]


def test_long_files_are_not_read_whole():
    data = elf_of(ElfNeeds(b"/lib/loader", (b"a", b"b"), b"", b"/c")) + bytes(1 << 20)
    reader = Reader(data)
    assert elf_needs(reader).libraries == (b"a", b"b")
    assert reader.bytes < 10_000


@given(
    changes=st.lists(st.tuples(st.integers(0, HEADERS), st.integers(0, 255)), max_size=6),
    more=st.lists(st.tuples(st.integers(0, DYNAMIC), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(LS)) | st.just(len(LS)),
)
@example(changes=[(place, 0xFF) for place in range(32, 40)], more=[], length=len(LS))
@example(changes=[(place, 0xFF) for place in range(56, 58)], more=[], length=len(LS))
@example(changes=[(4, 1)], more=[], length=len(LS))
@example(changes=[(5, 2)], more=[], length=len(LS))
def test_no_change_makes_it_fail_or_read_much(changes, more, length):
    data = bytearray(LS)
    dynamic = dynamic_of(LS)
    for place, value in [*changes, *((dynamic + place, value) for place, value in more)]:
        data[place] = value
    reader = Reader(bytes(data[:length]))
    assert isinstance(elf_needs(reader), ElfNeeds)
    assert reader.count < TAGS_MAX + 10


@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail(data):
    assert isinstance(needs_of(MAGIC + b"\2\1" + data), ElfNeeds)


def test_names_without_end_are_none():
    whole = elf_of(ElfNeeds(b"", (b"name",)))
    assert needs_of(whole).libraries == (b"name",)
    assert needs_of(whole[:-1] + b"x").libraries == ()
    assert needs_of(
        elf_of(ElfNeeds(b"", (b"x" * NAME_BYTES_MAX, b"y" * (NAME_BYTES_MAX + 1))))
    ).libraries == (b"x" * NAME_BYTES_MAX,)


def test_tags_and_segments_are_counted():
    data = elf_of(ElfNeeds(b"", tuple(b"%d" % number for number in range(TAGS_MAX + 10))))
    assert needs_of(data).libraries == ()  # where the strings are is said behind all these
    table = struct.pack("<IIQQQQQQ", 2, 4, 64, 64, 64, 1 << 20, 1 << 20, 1) * (1 << 16)
    header = bytearray(elf_of(ElfNeeds())[:64])
    header[56:58] = b"\xff\xff"
    reader = Reader(bytes(header) + table)
    assert elf_needs(reader)._replace(machine=b"") == ElfNeeds()
    assert reader.bytes <= 20 + 16 + 48 + 56 * SEGMENTS_MAX + 16 * TAGS_MAX


def test_a_dynamic_section_without_strings():
    data = bytearray(elf_of(ElfNeeds(b"", (b"a",))))
    place = data.index(struct.pack("<q", 5))  # DT_STRTAB
    data[place] = 99
    assert needs_of(bytes(data)) == ElfNeeds()
