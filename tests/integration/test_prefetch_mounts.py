"""Traces and prefetch lists on real mounts, through each front end: what was read once is warm next time."""

import json
import os
import signal
import stat
import time

import pytest
from support.images import KEY, build, opened
from support.mounts import (
    END_S,
    chunk_place,
    flip,
    mount,
    mounting,
    rafsfs,
    server_of,
    start_rafsfs,
    umount,
    wait_for_end,
    wait_for_lines,
)
from support.resealing import Parts

from rafsfs.build.optimize import optimize
from rafsfs.build.prefetch import load_traces
from rafsfs.format.prefetch import PrefetchRun, pack_prefetch_list
from rafsfs.format.trace import parse_trace
from rafsfs.frontends.mountpoint_linux import mount_on
from rafsfs.frontends.statistics_socket import ask
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

CHUNK = 64 * 1024
FRONTENDS = ["devfuse", "pyfuse3", "erofs"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for name in "abc":
        (root / name).write_bytes(os.urandom(3 * CHUNK))
    (root / "d").mkdir()
    for number in range(40):
        (root / "d" / f"{number:02}").write_bytes(os.urandom(10_000))
    (root / "never").write_bytes(os.urandom(4 * CHUNK))
    return root


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key"
    save_key(KEY, path)
    return path


@pytest.fixture
def image(tree, tmp_path):
    return build(tree, tmp_path / "img", chunk_size=CHUNK).folder


@pytest.fixture(params=FRONTENDS)
def frontend(request):
    return request.param


def program(directory):
    """What a program reads when it starts: order counts."""
    return [(directory / name).read_bytes() for name in ("c", "d/33", "a", "d/02", "d/34")]


def prefetch_numbers(directory):
    return ask(mount_on(directory).device)


def wait_for_prefetch(directory, chunks):
    """Ask until so many chunks are there."""
    deadline = time.monotonic() + END_S
    while True:
        found = prefetch_numbers(directory)
        if found["prefetch"]["chunks"] >= chunks:
            return found
        assert time.monotonic() < deadline, found


def run(*arguments):
    done = rafsfs(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def listed(trace):
    """Paths in a trace."""
    return [found.path for found in parse_trace(trace.read_bytes())]


def optimized(image, trace):
    with opened(Reference(image)) as found:
        return optimize(found, "latest", load_traces([trace])).plan


def test_what_was_read_is_warm_the_next_time(image, tree, key, tmp_path, frontend):
    trace, log = tmp_path / "run.trace", tmp_path / "log"
    words = ["--key", key, "--frontend", frontend, "--allow-other", "--log-file", log]
    with mounting(image, tmp_path / "m", *words, "--trace", trace) as directory:
        program(directory)
        assert prefetch_numbers(directory)["prefetch"] == {"chunks": 0, "used": 0}
        server = server_of(log)
        umount(directory)
        wait_for_end(server)
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600
    assert set(listed(trace)) == {b"c", b"d/33", b"a", b"d/02", b"d/34"}
    assert listed(trace).index(b"c") < listed(trace).index(b"a")

    places = [(name, offset) for name in (b"a", b"c") for offset in range(0, 3 * CHUNK, CHUNK)]
    places += [(name, 0) for name in (b"d/33", b"d/02", b"d/34")]
    chunks = {chunk_place(Reference(image), *place)[1] for place in places}
    plan = optimized(image, trace)
    assert (plan.chunks, plan.paths, plan.paths_gone) == (len(chunks), 5, 0)

    with mounting(image, tmp_path / "m", *words) as directory:
        warm = wait_for_prefetch(directory, plan.chunks)
        assert warm["decoded"]["chunks"] == plan.chunks
        assert warm["prefetch"]["used"] == 0
        assert program(directory) == program(tree)
        after = prefetch_numbers(directory)
        assert after["prefetch"] == {"chunks": plan.chunks, "used": plan.chunks}

    with mounting(image, tmp_path / "m", *words, "--no-prefetch") as directory:
        assert program(directory) == program(tree)
        assert prefetch_numbers(directory)["prefetch"]["chunks"] == 0


def test_commands_show_the_list(image, key, tmp_path):
    trace = tmp_path / "hand.trace"
    trace.write_text("rafsfs-trace-1\n0 99999999 /c\n")
    plan = json.loads(run("optimize", image, "--key", key, "--prefetch", trace, "--json"))["prefetch"]
    assert (plan["chunks"], plan["bytes"]) == (3, 3 * CHUNK)
    shown = json.loads(run("inspect", image, "--key", key, "--json"))["prefetch"]
    assert shown["encoded_bytes"] == 3 * (CHUNK + 16)
    assert (shown["runs"], shown["chunks"], shown["decoded_bytes"]) == (1, 3, 3 * CHUNK)
    assert "  prefetch      3 chunks in 1 runs, 192 KiB, 192 KiB encoded\n" in run(
        "inspect", image, "--key", key
    )
    assert json.loads(run("check", image, "--key", key, "--quick", "--json"))["prefetch_chunks"] == 3
    with mounting(image, tmp_path / "m", "--key", key) as directory:
        wait_for_prefetch(directory, 3)
        assert "  prefetched  3 chunks, 0 of them used\n" in run("stats", directory)


def test_changed_tree_is_built_with_the_trace_of_the_old_one(image, tree, key, tmp_path):
    trace = tmp_path / "hand.trace"
    trace.write_text("rafsfs-trace-1\n0 99999999 /c\n0 1 /d/moved\n# by hand\n70000 1 /a\n")
    done = run(
        "build", tree, tmp_path / "new", "--key", key, "--prefetch", trace, "--chunk-size", "64K", "--json"
    )
    plan = json.loads(done)["prefetch"]
    assert (plan["chunks"], plan["files"], plan["files_gone"]) == (4, 3, 1)
    told = run("build", tree, tmp_path / "new", "--key", key, "--prefetch", trace, "--chunk-size", "64K")
    assert "  prefetch        4 chunks to prefetch (256 KiB) for 3 files, of which 1 are not there\n" in told
    with mounting(tmp_path / "new", tmp_path / "m", "--key", key) as directory:
        wait_for_prefetch(directory, 4)
        assert (directory / "c").read_bytes() == (tree / "c").read_bytes()


def damaged_list(image, *runs):
    parts = Parts.of(Reference(image))
    parts.prefetch = pack_prefetch_list(PrefetchRun(*run) for run in runs)
    return f"{image}:{parts.seal().tag}"


@pytest.mark.parametrize("runs", [[(0, 0, 2**32 - 1)], [(9, 0, 1)], [(0, 0, 2), (0, 1, 1)]])
def test_list_of_a_hostile_author_is_left_alone(image, tree, key, tmp_path, runs):
    hostile = damaged_list(image, *runs)
    log = tmp_path / "log"
    with mounting(hostile, tmp_path / "m", "--key", key, "--log-file", log) as directory:
        assert len(wait_for_lines(log, "the image's prefetch list is not used")) == 1
        assert program(directory) == program(tree)
        assert prefetch_numbers(directory)["prefetch"]["chunks"] == 0
    for command in ("check", "inspect"):
        done = rafsfs(command, hostile, "--key", key)
        assert done.returncode == 6
        assert "prefetch list" in done.stdout + done.stderr


def test_damaged_chunk_on_the_list_harms_nobody_else(image, tree, key, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("rafsfs-trace-1\n0 9999999 /a\n0 9999999 /b\n")
    run("optimize", image, "--key", key, "--prefetch", trace)
    file, _, offset, _ = chunk_place(Reference(image), b"a", CHUNK)
    flip(file, offset)
    with mounting(image, tmp_path / "m", "--key", key) as directory:
        assert wait_for_prefetch(directory, 5)["failures"]["authentication"] == 1
        assert (directory / "b").read_bytes() == (tree / "b").read_bytes()
        with pytest.raises(OSError, match="Input/output error"):
            (directory / "a").read_bytes()


def test_unmount_does_not_wait_for_the_list(tmp_path, key):
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "big").write_bytes(os.urandom(32 << 20))
    (tmp_path / "trace").write_text("rafsfs-trace-1\n0 9999999999 /big\n")
    run(
        "build",
        folder,
        tmp_path / "img",
        "--key",
        key,
        "--prefetch",
        tmp_path / "trace",
        "--chunk-size",
        "4K",
    )
    process = start_rafsfs("mount", tmp_path / "img", make(tmp_path / "m"), "--key", key, "--foreground")
    assert "serving" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 0
    assert "unmounted" in said


def make(directory):
    directory.mkdir()
    return directory


def test_all_is_warmed_list_first(image, tree, key, tmp_path):
    (tmp_path / "trace").write_text("rafsfs-trace-1\n0 9999999 /never\n")
    plan = optimized(image, tmp_path / "trace")
    with opened(Reference(image)) as found:
        chunks = sum(blob.chunk_count for blob in found.opened.superblock.blobs)
    assert 0 < plan.chunks < chunks
    with mounting(image, tmp_path / "m", "--key", key, "--prefetch", "all") as directory:
        wait_for_prefetch(directory, chunks)
        assert program(directory) == program(tree)
        assert prefetch_numbers(directory)["decoded"]["chunks"] == chunks


def test_whole_image_is_read_before_it_is_mounted(image, tree, key, tmp_path, frontend):
    """Afterwards the store can show and change what it likes: nobody asks it."""
    words = ["--key", key, "--frontend", frontend, "--allow-other", "--prefetch", "whole"]
    with mounting(image, tmp_path / "m", *words) as directory:
        before = prefetch_numbers(directory)["decoded"]
        for path in (image / "blobs" / "sha256").iterdir():
            os.truncate(path, 0)
        for name in ("a", "b", "c", "never", *(f"d/{number:02}" for number in range(40))):
            assert (directory / name).read_bytes() == (tree / name).read_bytes()
        assert len(list((directory / "d").iterdir())) == 40
        assert prefetch_numbers(directory)["decoded"] == before


def test_whole_image_needs_a_cache_for_it(image, key, tmp_path):
    (tmp_path / "m").mkdir()
    done = rafsfs("mount", image, tmp_path / "m", "--key", key, "--prefetch", "whole", "--cache-size", "1M")
    assert done.returncode == 9
    assert "the cache is too small for the whole image: expected " in done.stderr
    size = done.stderr.rstrip().rpartition("--cache-size ")[2]
    mount(image, tmp_path / "m", "--key", key, "--prefetch", "whole", "--cache-size", size)
    umount(tmp_path / "m")


def test_damaged_image_as_a_whole_is_not_mounted(image, key, tmp_path):
    (tmp_path / "m").mkdir()
    file, _, offset, _ = chunk_place(Reference(image), b"never", 3 * CHUNK)
    flip(file, offset)
    done = rafsfs("mount", image, tmp_path / "m", "--key", key, "--prefetch", "whole")
    assert done.returncode == 9
    assert "stored" in done.stderr or "chunk" in done.stderr
    assert not os.path.ismount(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("", "it is a directory"), ("gone/trace", "its folder is not there")],
)
def test_trace_that_cannot_be_written_is_said_before_anything_is_mounted(
    image, key, tmp_path, name, complaint
):
    (tmp_path / "m").mkdir()
    done = rafsfs("mount", image, tmp_path / "m", "--key", key, "--trace", tmp_path / name)
    assert done.returncode == 9
    assert complaint in done.stderr
    assert not os.path.ismount(tmp_path / "m")


def test_trace_whose_folder_goes_away_is_an_error_at_the_end(image, key, tmp_path):
    folder = make(tmp_path / "folder")
    words = ["--key", key, "--foreground", "--trace", folder / "trace"]
    process = start_rafsfs("mount", image, make(tmp_path / "m"), *words)
    assert "serving" in process.stderr.readline()
    folder.rmdir()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 9
    assert "the trace was not written" in said
    assert not os.path.ismount(tmp_path / "m")
