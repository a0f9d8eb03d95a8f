"""A converted image's list is what its command reads: traces of real runs say so."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.images import KEY, opened
from support.mounts import mounting, rafsfs
from support.stock import layer, member, stock_image, symlink

from rafsfs.build.prefetch import load_traces, plan_prefetch
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

PROGRAM = "/usr/bin/ls"


def members_of(program):
    """A layer's members: what a program needs, and a lot that it does not."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    found = [Path(word) for word in (program, *listed.split()) if word.startswith("/")]
    names = {path.parent.resolve() / path.name for path in found}
    others = {f"usr/share/{number:02}": os.urandom(200_000) for number in range(20)}
    files = {os.fspath(path.resolve())[1:]: path.read_bytes() for path in names} | others
    links = {os.fspath(path)[1:]: os.fspath(path.readlink()) for path in names if path.is_symlink()}
    links |= {
        top: os.fspath(Path("/", top).readlink())
        for top in ("bin", "lib", "lib64")
        if Path("/", top).is_symlink()
    }
    folders = sorted(
        {f"{parent}/" for path in (*files, *links) for parent in Path(path).parents if parent.name}
    )
    yield from (member(folder) for folder in folders)
    yield from (member(path, data, mode=0o755) for path, data in sorted(files.items()))
    yield from (symlink(name, target) for name, target in sorted(links.items()))


def chunks_of(runs: list[PrefetchRun]):
    return {(run.blob, run.first_chunk + step) for run in runs for step in range(run.chunk_count)}


@pytest.mark.parametrize("options", [(), ("--keep-layers",)])
def test_the_list_has_what_a_run_reads_and_not_what_it_does_not(tmp_path, options):
    members = list(members_of(PROGRAM))
    half = len(members) // 2
    config = {"Cmd": [PROGRAM, "/"]}
    stock = stock_image(tmp_path / "stock", layer(*members[:half]), layer(*members[half:]), config=config)
    save_key(KEY, tmp_path / "key")
    words = ("--key", tmp_path / "key")
    done = rafsfs("convert", stock, tmp_path / "sealed", *words, "--json", "--chunk-size", "64K", *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["prefetch"]
    with mounting(
        tmp_path / "sealed", tmp_path / "m", *words, "--no-prefetch", "--trace", tmp_path / "trace"
    ) as top:
        ran = subprocess.run(["chroot", top, PROGRAM, "/usr"], check=True, capture_output=True, text=True)
        assert "share" in ran.stdout.split()
    with opened(Reference(tmp_path / "sealed", "latest")) as image:
        listed = chunks_of(image.prefetch_runs())
        tables = [blob.chunks for blob in image.filesystem.engine.blobs]
        read = chunks_of(
            list(plan_prefetch(load_traces([tmp_path / "trace"]), image.filesystem.tree, tables).runs)
        )
    assert read
    assert read <= listed
    assert told["chunks"] == len(listed) < sum(map(len, tables)) // 2


def test_another_list_takes_its_place(tmp_path):
    stock = stock_image(tmp_path / "stock", layer(*members_of(PROGRAM)), config={"Cmd": [PROGRAM]})
    save_key(KEY, tmp_path / "key")
    words = (tmp_path / "sealed", "--key", tmp_path / "key")
    assert rafsfs("convert", stock, *words).returncode == 0
    with opened(Reference(tmp_path / "sealed", "latest")) as image:
        assert image.prefetch_runs()
    assert rafsfs("optimize", *words, "--no-prefetch").returncode == 0
    with opened(Reference(tmp_path / "sealed", "latest")) as image:
        assert image.prefetch_runs() == []
