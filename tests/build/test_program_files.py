"""What a container's program begins with: the machine's own loader says which libraries a program gets."""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.images import build, opened

from rafsfs.build.elf import ElfNeeds, elf_needs
from rafsfs.build.program_files import (
    C_LIBRARY_READS,
    FILES_MAX,
    HEAD_BYTES,
    LOADER_CACHE,
    WHOLE_BYTES_MAX,
    start_ranges,
)
from rafsfs.format.image_config import parse_image_config
from rafsfs.format.superblock import Section

PROGRAMS = [
    path for path in ("/usr/bin/ls", "/usr/bin/tar", "/usr/bin/find", "/usr/sbin/runc") if Path(path).exists()
]
LS = Path("/usr/bin/ls").read_bytes()


def put_loaded(tree, program):
    """Put what the loader maps for a program into ``tree``, under the names by which it finds it.

    Returns the files: the program itself, its libraries, and the loader.
    """
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    names = {program} | {word for word in listed.split() if word.startswith("/")}
    for name in names:
        real = os.path.realpath(name)
        put(tree, real)
        if not (tree / name.lstrip("/")).exists():
            (tree / name.lstrip("/")).symlink_to(Path(real).name)
    return {os.path.realpath(name) for name in names}


def put(tree, path, data=None):
    """A file of the machine at the same place in ``tree``, or another one there."""
    target = tree / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        shutil.copy(path, target)
    else:
        target.write_bytes(data)
        target.chmod(0o755)


def elf_of(needs):
    """The smallest 64-bit ELF file that wants these things (System V gABI, ch. 4 and 5)."""
    strings = bytearray(b"\0")

    def place(text):
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text.encode()) - 1

    tags = [(1, place(name)) for name in needs.libraries]  # DT_NEEDED
    if needs.directories:
        tags.append((29, place(":".join(needs.directories))))  # DT_RUNPATH
    interpreter = needs.interpreter.encode() + b"\0"
    start = 64 + 3 * 56
    dynamic = start + len(interpreter)
    tags += [(5, dynamic + 16 * (len(tags) + 3)), (10, len(strings)), (0, 0)]  # DT_STRTAB, DT_STRSZ, DT_NULL
    section = b"".join(struct.pack("<qQ", *tag) for tag in tags)
    end = dynamic + len(section) + len(strings)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    programs = [
        (1, 0, end),
        (2, dynamic, len(section)),
        (3 if needs.interpreter else 0, start, len(interpreter)),
    ]
    for kind, offset, size in programs:  # PT_LOAD, PT_DYNAMIC, PT_INTERP
        header += struct.pack("<IIQQQQQQ", kind, 4, offset, offset, offset, size, size, 1)
    return header + interpreter + section + bytes(strings)


@pytest.fixture
def tree(tmp_path):
    """Of the machine, how programs find their libraries, and nothing to be found yet."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for link in ("bin", "lib", "lib64", "sbin"):
        if Path("/", link).is_symlink():
            (folder / link).symlink_to(Path("/", link).readlink())
            (folder / "usr" / link).mkdir(parents=True)
    for path in ("/etc/ld.so.conf", *map(str, Path("/etc/ld.so.conf.d").glob("*.conf"))):
        put(folder, path)
    return folder


def ranges_of(tree, tmp_path, **settings):
    """(path, offset, length) of what ``settings`` of a config have listed, and the paths alone."""
    reference = build(tree, tmp_path / "image")
    with opened(reference) as image:
        config = parse_image_config(json.dumps({"config": settings}).encode())
        found = start_ranges(image.filesystem, config)
    return found, ["/" + os.fsdecode(path) for path, _, _ in found]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_libraries_are_those_that_the_loader_maps(tree, tmp_path, program):
    loaded = put_loaded(tree, program)
    for path in loaded - {os.path.realpath(program)}:
        put(tree, "/usr/lib/" + Path(path).name, b"where nobody looks first")
    found, paths = ranges_of(tree, tmp_path, Cmd=[Path(program).name])
    assert set(paths) == loaded
    assert paths[0] == os.path.realpath(program)  # whose head is read before it is known what else is needed
    assert found[0][2] == min(HEAD_BYTES, Path(program).stat().st_size)
    total = {
        path: sum(length for name, _, length in found if "/" + os.fsdecode(name) == path) for path in loaded
    }
    assert total == {path: Path(path).stat().st_size for path in loaded}


def test_what_the_c_library_reads_is_there_as_far_as_the_image_has_it(tree, tmp_path):
    put_loaded(tree, "/usr/bin/ls")
    put(tree, LOADER_CACHE, b"cache")
    put(tree, C_LIBRARY_READS[0], b"locale")
    _, paths = ranges_of(tree, tmp_path, Cmd=["/bin/ls", "-l"])
    assert {LOADER_CACHE, C_LIBRARY_READS[0]} <= set(paths)
    assert C_LIBRARY_READS[1] not in paths


def test_scripts_lead_to_what_runs_them(tree, tmp_path):
    put(tree, "/usr/bin/ls", LS)
    put(tree, "/opt/tool/real", b"#!/usr/bin/env -S\n")
    put(tree, "/usr/bin/env", LS)
    put(tree, "/usr/bin/lister", b"#! /bin/ls --color\nmore\n")
    put(tree, "/opt/tool/first", b"#!/usr/bin/env lister\n")
    (tree / "opt/tool/link").symlink_to("../tool/first")
    _, paths = ranges_of(tree, tmp_path, Entrypoint=["./link"], WorkingDir="/opt/tool", Cmd=["real", "gone"])
    assert paths[:4] == ["/opt/tool/first", "/usr/bin/env", "/usr/bin/lister", "/usr/bin/ls"]
    assert "/opt/tool/real" in paths  # an argument that is a file


def test_libraries_beside_the_program_are_found_by_its_own_word(tree, tmp_path):
    put(tree, "/opt/app/bin/tool", LS)
    needs = elf_needs(LS)
    name = next(name for name in needs.libraries if name != "libc.so.6")
    put(tree, f"/opt/app/lib/{name}", b"ours")
    put(tree, f"/usr/lib/{name}", b"theirs")
    _, paths = ranges_of(
        tree, tmp_path, Cmd=["/opt/app/bin/tool"], Env=["LD_LIBRARY_PATH=/gone:/opt/app/lib"]
    )
    assert f"/opt/app/lib/{name}" in paths
    assert f"/usr/lib/{name}" not in paths


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"Cmd": []},
        {"Cmd": [""]},
        {"Cmd": ["nowhere"]},
        {"Cmd": ["/etc"]},
        {"Cmd": ["/loop"]},
        {"Cmd": ["x" * 5000]},
        {"Cmd": ["/dir/file/below"]},
        {"Cmd": ["tool"], "Env": ["PATH"]},
        {"Cmd": ["tool"], "Env": ["PATH=relative::/dir"], "WorkingDir": "relative/../.."},
    ],
)
def test_commands_that_lead_nowhere_list_nothing(tree, tmp_path, settings):
    (tree / "loop").symlink_to("loop")
    put(tree, "/dir/file", b"text")
    found, _ = ranges_of(tree, tmp_path, **settings)
    assert found == []


def test_scripts_that_run_each_other_come_to_an_end(tree, tmp_path):
    put(tree, "/a", b"#!/b\n")
    put(tree, "/b", b"#!/a\n")
    for number in range(20):
        put(tree, f"/s{number}", b"#!/s%d\n" % (number + 1))
    assert ranges_of(tree, tmp_path, Cmd=["/a"])[1] == ["/a", "/b"]
    assert len(ranges_of(tree, tmp_path, Cmd=["/s0"])[1]) == 5


def test_configurations_that_include_each_other_come_to_an_end(tree, tmp_path):
    put(tree, "/bin/ls" if not (tree / "bin").is_symlink() else "/usr/bin/ls", LS)
    put(
        tree,
        "/etc/ld.so.conf",
        b"include /etc/ld.so.conf.d/*.conf\n# include x\n/usr/lib/here # why\nhwcap 1\n",
    )
    put(tree, "/etc/ld.so.conf.d/a.conf", b"include /etc/ld.so.conf\ninclude /gone/*\n\xff\xfe\n")
    put(tree, "/usr/lib/here/libc.so.6", b"found by the configuration")
    assert "/usr/lib/here/libc.so.6" in ranges_of(tree, tmp_path, Cmd=["ls"])[1]


def test_long_files_are_not_listed_whole(tree, tmp_path):
    path = tree / "usr/bin/ls"
    put(tree, "/usr/bin/ls", LS)
    with path.open("r+b") as file:
        file.truncate(WHOLE_BYTES_MAX + 1)
    found, _ = ranges_of(tree, tmp_path, Cmd=["ls", "usr/bin/ls"])
    assert max(length for _, _, length in found) == HEAD_BYTES


def test_not_more_libraries_than_are_worth_it(tree, tmp_path):
    names = [f"lib{number}.so" for number in range(FILES_MAX + 50)]
    put(tree, "/usr/bin/many", elf_of(ElfNeeds("", tuple(names))))
    for name in names:
        put(tree, f"/usr/lib/{name}", name.encode())
    assert len(ranges_of(tree, tmp_path, Cmd=["many"])[1]) == FILES_MAX + 1


def test_what_libraries_need_comes_after_what_the_program_needs(tree, tmp_path):
    put(tree, "/usr/bin/tool", elf_of(ElfNeeds("/lib/loader", ("a", "b"), ("$ORIGIN/../own",))))
    put(tree, "/usr/lib/loader", b"it is no ELF, but it is what the program says")
    put(tree, "/usr/own/a", elf_of(ElfNeeds("", ("c", "a", "/usr/own/e"), ("${ORIGIN}/deep",))))
    put(tree, "/usr/lib/b", elf_of(ElfNeeds("", ("d", "gone"))))
    for name in ("own/deep/c", "lib/c", "lib/d", "lib/a", "own/e"):
        put(tree, f"/usr/{name}", name.encode())
    loader = "/usr/lib/loader" if (tree / "lib").is_symlink() else "/lib/loader"
    put(tree, loader, b"the same")
    expected = ["bin/tool", "lib/loader", "own/a", "lib/b", "own/deep/c", "own/e", "lib/d"]
    paths = ranges_of(tree, tmp_path, Cmd=["tool"])[1]
    assert paths == ["/usr/" + name if "loader" not in name else loader for name in expected]


def test_a_built_image_with_a_config_has_the_list(tree, tmp_path):
    put_loaded(tree, "/usr/bin/ls")
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["ls"]}}
    with opened(build(tree, tmp_path / "image", config=config)) as image:
        runs = image.prefetch_runs()
        assert image.opened.superblock.prefetch != Section(0, 0)
        listed = {(run.blob, run.first_chunk + step) for run in runs for step in range(run.chunk_count)}
        assert len(listed) == sum(run.chunk_count for run in runs)  # each once
        chunks = {
            (number, index)
            for number, blob in enumerate(image.filesystem.engine.blobs)
            for index in range(len(blob.chunks))
        }
        assert listed <= chunks
        assert listed
    with opened(build(tree, tmp_path / "image", "other")) as image:
        assert image.prefetch_runs() == []


@given(
    st.lists(st.tuples(st.integers(0, len(LS) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(LS)),
)
@example([(32, 0xFF), (39, 0xFF)], len(LS))  # a program header table where no file ends
def test_no_file_makes_the_parser_fail(changes, length):
    data = bytearray(LS)
    for place, value in changes:
        data[place] = value
    needs = elf_needs(bytes(data[:length]))
    assert isinstance(needs, ElfNeeds)


_NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0:"), min_size=1, max_size=30)


@given(st.builds(ElfNeeds, st.just("") | _NAMES, st.lists(_NAMES).map(tuple), st.lists(_NAMES).map(tuple)))
def test_what_a_file_wants_is_read(needs):
    assert elf_needs(elf_of(needs)) == needs
