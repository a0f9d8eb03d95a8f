"""tools/bench measures what it says and leaves nothing behind; how fast anything is, no test asks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"
RAFSFS = f"{sys.executable} -m rafsfs"
LIMIT_S = 200


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files, one of them worth random reads."""
    tree = tmp_path / "source"
    for folder in ("one", "two"):
        (tree / folder).mkdir(parents=True)
        for number in range(5):
            (tree / folder / f"file {number}").write_bytes(os.urandom(3_000))
    (tree / "big").write_bytes(os.urandom(1 << 20))
    return tree


def command(tree: Path, work: Path, *options: str) -> list[str]:
    return [str(BENCH), "--tree", str(tree), "--work", str(work), "--rafsfs", RAFSFS, *options]


def mounts_under(folder: Path) -> list[str]:
    return [
        line
        for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        if str(folder) in line
    ]


def test_help_teaches_every_row_and_system() -> None:
    text = subprocess.run([BENCH, "--help"], check=True, capture_output=True, text=True).stdout
    for word in (
        "walk",
        "rand4k",
        "mount-cold",
        "idle",
        "squashfs-128K",
        "rafsfs-erofs",
        "lazy",
        "--work",
        "Examples",
    ):
        assert word in text


@pytest.mark.integration
@pytest.mark.requires_root
@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")
def test_all_rows_are_measured_and_nothing_stays_mounted(tree: Path, tmp_path: Path) -> None:
    work, result = tmp_path / "work", tmp_path / "result.json"
    options = ("--systems", "source,rafsfs,squashfs", "--repeat", "2", "--json", str(result))
    rows = "walk,readall,seq,rand4k,par4,build,size,mount,memory"
    done = subprocess.run(
        [*command(tree, work, *options), "--rows", rows],
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    values = json.loads(result.read_text())["values"]
    passes = {"walk", "walk2", "readall", "readall2", "seq", "seq2", "rand4k", "rand4k2", "par4"}
    assert set(values["rafsfs"]) >= passes | {"build", "size", "mount", "memory", "memory-start", "idle"}
    assert set(values["squashfs"]) >= passes | {"build", "size", "mount"}
    for column in values.values():
        assert len(column["walk"]) == 2
        assert all(value > 0 for row, numbers in column.items() if row != "idle" for value in numbers)
    assert "rafsfs, times better than" in done.stdout
    assert not mounts_under(work)
    assert not list(work.glob("mount-*"))


@pytest.mark.integration
@pytest.mark.requires_root
def test_few_files_and_many_are_compared(tree: Path, tmp_path: Path) -> None:
    work, result = tmp_path / "work", tmp_path / "result.json"
    options = ("--systems", "rafsfs", "--rows", "many", "--many", "10,200", "--repeat", "1")
    done = subprocess.run(
        command(tree, work, *options, "--json", str(result)),
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert set(json.loads(result.read_text())["many"]) == {"10 files", "200 files"}
    assert any(line.startswith("mount <= 1.25  ") for line in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize("counts", ["10", "10,ten", "200,10", "10,10", "0,10"])
def test_counts_that_compare_nothing_are_refused(tmp_path: Path, tree: Path, counts: str) -> None:
    words = command(tree, tmp_path / "work", "--many", counts)
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert "is not N,N with the smaller number first" in done.stderr


@pytest.mark.integration
@pytest.mark.requires_root
@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="needs squashfs-tools")
def test_an_interrupt_takes_the_mounts_down(tree: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    options = ("--systems", "squashfs", "--rows", "walk", "--repeat", "1000000")
    bench = subprocess.Popen(command(tree, work, *options), start_new_session=True, stderr=subprocess.PIPE)
    try:
        while not mounts_under(work):
            assert bench.poll() is None, bench.communicate()
        os.killpg(bench.pid, signal.SIGINT)
        _, complaints = bench.communicate(timeout=LIMIT_S)
    finally:
        bench.kill()
    assert bench.returncode == 130
    assert b"Traceback" not in complaints
    assert not mounts_under(work)


def test_cached_reads_over_virtio_fs_are_measured(tmp_path: Path) -> None:
    report, work = tmp_path / "report.json", tmp_path / "work"
    words = ["--vhost", "--quick", "--work", work, "--json", report, "--rafsfs", RAFSFS]
    done = subprocess.run([BENCH, *words], check=False, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "reads/s" in done.stdout
    found = json.loads(report.read_text())
    assert set(found) == {"1x1", "1x32", "4x1", "4x32"}
    for units in found.values():
        assert all(value > 0 for value in (*units["per_second"], *units["p50_us"], *units["server_us"]))


@pytest.mark.integration
@pytest.mark.requires_root
def test_guests_are_measured_and_none_stays(tree: Path, tmp_path: Path) -> None:
    work, result = tmp_path / "work", tmp_path / "result.json"
    options = ("--guest", "--repeat", "1", "--rows", "walk", "--json", str(result))
    done = subprocess.run(
        command(tree, work, *options), check=True, capture_output=True, text=True, timeout=LIMIT_S
    )
    values = json.loads(result.read_text())["values"]
    assert {name: set(rows) for name, rows in values.items()} == {
        "rafsfs": {"walk", "walk2"},
        "virtiofsd": {"walk", "walk2"},
    }
    assert "rafsfs, times better than" in done.stdout


@pytest.mark.integration
@pytest.mark.requires_root
def test_lazy_reads_and_the_node_cache_are_measured(tmp_path: Path) -> None:
    work, result = tmp_path / "work", tmp_path / "result.json"
    words = ["--start", "--rows", "lazy,cache", "--quick", "--work", work, "--json", result]
    done = subprocess.run(
        [BENCH, *words, "--rafsfs", RAFSFS], check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(result.read_text())["values"]
    assert {name: set(rows) for name, rows in values.items()} == {
        "rafsfs lazily": {"MB/s", "of the link"},
        "node cache": {"out of it us", "decoding us", "of decoding"},
    }
    assert all(value > 0 for rows in values.values() for numbers in rows.values() for value in numbers)
    assert "[goal: 0.9 or more]" in done.stdout and "[goal: less than 0.1]" in done.stdout
    assert not mounts_under(work)


@pytest.mark.parametrize(("rows", "mode"), [("walk", "--start"), ("lazy", "--guest"), ("lazy", "--quick")])
def test_rows_of_another_measurement_are_refused(rows: str, mode: str) -> None:
    done = subprocess.run([BENCH, mode, "--rows", rows], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{rows}: not measured" in done.stderr


def test_rows_that_guests_do_not_have_are_refused(tmp_path: Path) -> None:
    done = subprocess.run([BENCH, "--guest", "--rows", "build"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "build: not measured in guests" in done.stderr
