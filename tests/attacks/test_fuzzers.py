"""A few seconds of every fuzzer over the seed corpus, and that it would notice a crash (8)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.fuzz_targets import TARGETS

ROOT = Path(__file__).parents[2]
SECONDS = 2


def fuzz(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools/fuzz", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_short_run(target, tmp_path, tally):
    done = fuzz(target, "--seconds", SECONDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    tally("fuzzed inputs", int(re.search(r"([\d,]+) runs", done.stdout)[1].replace(",", "")))


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_there_and_small(target):
    seeds = list((ROOT / "tests/corpus" / target).iterdir())
    assert seeds
    assert all(seed.stat().st_size < 64 * 1024 for seed in seeds)


def test_same_seed_gives_the_same_inputs(tmp_path):
    runs = [fuzz("blob", "--runs", 3000, "--seed", 7, "--verbose", "--output", tmp_path) for _ in range(2)]
    listed = [done.stdout.splitlines()[1:] for done in runs]
    assert listed[0] == listed[1] and listed[0]


def test_crash_is_reported_and_kept(tmp_path):
    """The parser is broken on purpose, by a wrapper that runs the real script."""
    broken = (
        "import runpy, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from rafsfs.format import blob\n"
        "from attacks import fuzz_targets\n"
        "def parse(toc, footer): raise IndexError('broken on purpose')\n"
        "fuzz_targets.parse_toc = parse\n"
        f"sys.argv = ['fuzz', 'blob', '--runs', '50', '--output', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(ROOT / 'tools/fuzz')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert "broken on purpose" in done.stderr and "CRASH" in done.stdout
    (kept,) = tmp_path.iterdir()
    replayed = fuzz("blob", "--replay", kept)
    assert replayed.returncode == 0, "the real parser takes it"


def test_unknown_target_is_named():
    done = fuzz("nonsense")
    assert done.returncode == 2 and "nonsense" in done.stderr
