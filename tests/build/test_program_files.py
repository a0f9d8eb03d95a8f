"""What a container's program begins with: the machine's own loader says which libraries a program gets."""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from support.elf import elf_of
from support.images import build, opened

from rafsfs.build.elf import ElfNeeds, elf_needs
from rafsfs.build.program_files import (
    C_LIBRARY_READS,
    FILES_MAX,
    HEAD_BYTES,
    LIST_BYTES_MAX,
    LOADER_CACHE,
    WHOLE_BYTES_MAX,
    WORK_MAX,
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
    needs = elf_needs(lambda offset, length: LS[offset : offset + length])
    name = next(os.fsdecode(name) for name in needs.libraries if name != b"libc.so.6")
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


def test_long_files_are_not_listed_whole_but_their_libraries_are(tree, tmp_path):
    loaded = put_loaded(tree, "/usr/bin/ls")
    with (tree / "usr/bin/ls").open("r+b") as file:
        file.truncate(WHOLE_BYTES_MAX + 1)
        file.seek(0x28)
        file.write(struct.pack("<Q", WHOLE_BYTES_MAX - 64))  # e_shoff: the sections' headers, far away
    found, paths = ranges_of(tree, tmp_path, Cmd=["ls"])
    assert set(paths) == loaded
    assert [length for path, _, length in found if path == b"usr/bin/ls"] == [HEAD_BYTES]


def test_a_list_has_an_end(tree, tmp_path):
    for number in range(LIST_BYTES_MAX // WHOLE_BYTES_MAX + 3):
        put(tree, f"/data/{number}", b"")
        os.truncate(tree / f"data/{number}", WHOLE_BYTES_MAX)
    put(tree, "/usr/bin/ls", LS)
    found, _ = ranges_of(tree, tmp_path, Cmd=["ls", *(f"/data/{number}" for number in range(7))])
    assert sum(length for _, _, length in found) <= LIST_BYTES_MAX


def test_rpath_comes_first_and_runpath_after_the_environment(tree, tmp_path):
    for number, needs in enumerate(
        [ElfNeeds(b"", (b"x",), b"/first"), ElfNeeds(b"", (b"x",), b"/first", b"/last")]
    ):
        put(tree, f"/usr/bin/tool{number}", elf_of(needs))
    for folder in ("first", "middle", "last"):
        put(tree, f"/{folder}/x", folder.encode())
    environment = {"Env": ["LD_LIBRARY_PATH=/middle"]}
    assert ranges_of(tree, tmp_path, Cmd=["tool0"], **environment)[1][1:] == ["/first/x"]
    assert ranges_of(tree, tmp_path, Cmd=["tool1"], **environment)[1][1:] == ["/middle/x"]
    assert ranges_of(tree, tmp_path, Cmd=["tool1"])[1][1:] == ["/last/x"]


def test_env_may_be_a_link_to_something_else(tree, tmp_path):
    put(tree, "/usr/bin/busybox", LS)
    (tree / "usr/bin/env").symlink_to("busybox")
    put(tree, "/usr/bin/node", LS)
    put(tree, "/app", b"#!/usr/bin/env node\n")
    assert ranges_of(tree, tmp_path, Cmd=["/app"])[1][:3] == ["/app", "/usr/bin/busybox", "/usr/bin/node"]


def hostile(tree, case):
    """Put something into ``tree`` that takes for ever to search; returns settings of a config for it."""
    if case == "names that are nowhere, in many directories":
        names = tuple(b"gone%d" % number for number in range(4000))
        runpath = b":".join(b"/d%d" % number for number in range(400))
        put(tree, "/usr/bin/tool", elf_of(ElfNeeds(b"", names, b"", runpath)))
    elif case == "configurations that include many":
        put(tree, "/etc/ld.so.conf", b"include /etc/many/*zz /etc/many/* /etc/many/?\n" * 1500)
        for number in range(300):
            put(tree, f"/etc/many/{number}", b"".join(b"/e%d/%d\n" % (number, line) for line in range(50)))
        put(tree, "/usr/bin/tool", elf_of(ElfNeeds(b"", (b"a", b"b"))))
    elif case == "symlinks that go back and forth":
        (tree / "d").mkdir()
        for number in range(39):
            (tree / f"l{number}").symlink_to("d/../" * 800 + f"l{number + 1}")
        put(tree, "/usr/bin/tool", elf_of(ElfNeeds(b"", tuple(b"/l0/%d" % number for number in range(1000)))))
    elif case == "a working directory without end":
        put(tree, "/usr/bin/tool", LS)
        return {"Cmd": ["tool", *map(str, range(200))], "WorkingDir": "/" + "../" * 100_000}
    else:
        names = tuple(b"x%d" % number + b"y" * 4000 for number in range(1000))
        put(tree, "/usr/bin/tool", elf_of(ElfNeeds(b"", names, b"", b"$ORIGIN/" * 500)))
    return {"Cmd": ["tool"]}


@pytest.mark.parametrize(
    "case",
    [
        "names that are nowhere, in many directories",
        "configurations that include many",
        "symlinks that go back and forth",
        "a working directory without end",
        "names without end",
    ],
)
def test_searches_have_an_end(tree, tmp_path, case):
    settings = hostile(tree, case)
    with opened(build(tree, tmp_path / "image")) as image:
        lookup, asked = image.filesystem.lookup, 0

        def counted(parent, name):
            nonlocal asked
            asked += 1
            return lookup(parent, name)

        image.filesystem.lookup = counted
        config = parse_image_config(json.dumps({"config": settings}).encode())
        found = start_ranges(image.filesystem, config)
    assert found[0].path == b"usr/bin/tool"  # what was found before that is listed
    assert asked <= WORK_MAX


def test_not_more_libraries_than_are_worth_it(tree, tmp_path):
    names = [f"lib{number}.so" for number in range(FILES_MAX + 50)]
    put(tree, "/usr/bin/many", elf_of(ElfNeeds(b"", tuple(map(os.fsencode, names)))))
    for name in names:
        put(tree, f"/usr/lib/{name}", name.encode())
    assert len(ranges_of(tree, tmp_path, Cmd=["many"])[1]) == FILES_MAX + 1


def test_libraries_of_another_machine_are_passed_over(tree, tmp_path):
    put(tree, "/usr/bin/tool", elf_of(ElfNeeds(b"", (b"x",))))
    put(tree, "/etc/ld.so.conf", b"/lib32\n/lib64le\n")
    put(tree, "/lib32/x", elf_of(ElfNeeds(), bits=32))
    put(tree, "/lib64le/x", elf_of(ElfNeeds()))
    assert ranges_of(tree, tmp_path, Cmd=["tool"])[1] == ["/usr/bin/tool", "/lib64le/x"]


def test_rpath_is_inherited_and_runpath_is_not(tree, tmp_path):
    put(tree, "/usr/bin/rpath", elf_of(ElfNeeds(b"", (b"a",), b"/own")))
    put(tree, "/usr/bin/runpath", elf_of(ElfNeeds(b"", (b"a",), b"", b"/own")))
    put(tree, "/own/a", elf_of(ElfNeeds(b"", (b"b",))))
    put(tree, "/own/b", b"")
    assert ranges_of(tree, tmp_path, Cmd=["rpath"])[1] == ["/usr/bin/rpath", "/own/a", "/own/b"]
    assert ranges_of(tree, tmp_path, Cmd=["runpath"])[1] == ["/usr/bin/runpath", "/own/a"]


def test_the_first_program_that_may_be_run(tree, tmp_path):
    put(tree, "/first/tool", b"no program")
    (tree / "first/tool").chmod(0o644)
    put(tree, "/second/tool", b"#!/usr/bin/env -S A=1 other -u\n")
    put(tree, "/usr/bin/env", LS)
    put(tree, "/second/other", LS)
    _, paths = ranges_of(tree, tmp_path, Cmd=["env", "B=2", "tool"], Env=["PATH=/first:/second:/usr/bin"])
    assert paths[:3] == ["/usr/bin/env", "/second/tool", "/second/other"]


def test_names_of_any_bytes_whatever_the_locale(tree, tmp_path):
    put(tree, "/\u00e9\u4e2d", b"#!/b\xff\n")
    put(tree, os.fsdecode(b"/b\xff"), LS)
    assert ranges_of(tree, tmp_path, Cmd=["/\u00e9\u4e2d"])[1][:2] == ["/\u00e9\u4e2d", "/b\udcff"]


def test_what_libraries_need_comes_after_what_the_program_needs(tree, tmp_path):
    put(tree, "/usr/bin/tool", elf_of(ElfNeeds(b"/lib/loader", (b"a", b"b"), b"/gone:$ORIGIN/../own")))
    put(tree, "/usr/lib/loader", b"it is no ELF, but it is what the program says")
    put(tree, "/usr/own/a", elf_of(ElfNeeds(b"", (b"c", b"a", b"/usr/own/e"), b"", b"${ORIGIN}/deep")))
    put(tree, "/usr/lib/b", elf_of(ElfNeeds(b"", (b"d", b"gone"))))
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
