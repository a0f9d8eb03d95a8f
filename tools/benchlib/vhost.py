"""Cached reads over virtio-fs, from a load generator that is no guest (tests/support/virtiofs_load.py)."""

import json
import os
import signal
import statistics
import subprocess
from pathlib import Path

from benchlib import machine
from benchlib.machine import BenchError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
NAME = "file"
FILE_BYTES = 64 << 20
SHAPES = ((1, 1), (1, 32), (4, 1), (4, 32))  # queues, requests under way on each
REQUESTS = 60_000  # of all queues together
REQUESTS_QUICK = 6_000
GOAL_PER_SECOND = 20_000  # of one queue
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def run(work, program, repeat, quick, tell):
    """Measure every shape in turns; returns shape -> unit -> values."""
    values = {shape: {} for shape in SHAPES}
    image, key = _image(work, program)
    path = work / "vhost.sock"
    command = [*program, "serve", image, "--socket-path", path, "--key", key]
    server = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if "Waiting for vhost-user" in line:
                break
        else:
            raise BenchError("rafsfs serve has ended before it served")
        for turn in range(repeat):
            for shape in SHAPES:
                tell(f"vhost {shape[0]} queues, depth {shape[1]}, {turn + 1} of {repeat}")
                for unit, value in _measured(path, server.pid, shape, quick).items():
                    values[shape].setdefault(unit, []).append(value)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()
    return values


def _image(work, program):
    source, image, key = work / "vhost-source", work / "vhost-image", work / "vhost.key"
    source.mkdir(exist_ok=True)
    (source / NAME).write_bytes(os.urandom(FILE_BYTES))
    if not key.exists():
        machine.run(*program, "keys", "new", key)
    machine.run(*program, "build", source, f"{image}:now", "--key", key, "--quiet")
    return f"{image}:now", key


def _measured(path, server, shape, quick):
    queues, depth = shape
    each = (REQUESTS_QUICK if quick else REQUESTS) // queues
    words = [path, NAME, "--queues", queues, "--depth", depth, "--requests", each]
    before = _processor_s(server)
    done = subprocess.run(
        [PYTHON, "-m", "support.virtiofs_load", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    if done.returncode:
        raise BenchError(f"the load generator failed: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout)
    found["server_us"] = (_processor_s(server) - before) / (each * queues) * 1e6
    return found


def _processor_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def report(values):
    """The table, as text."""
    lines = [f"{'queues':>6}  {'depth':>5}  {'reads/s':>8}  {'p50':>8}  {'p99':>8}  server's time for one"]
    for (queues, depth), units in values.items():
        median = {unit: statistics.median(numbers) for unit, numbers in units.items()}
        lines.append(
            f"{queues:>6}  {depth:>5}  {median['per_second']:>8,.0f}  {median['p50_us']:>5,.0f} us  "
            f"{median['p99_us']:>5,.0f} us  {median['server_us']:.1f} us"
        )
    lines.append(
        f"The goal is {GOAL_PER_SECOND:,} reads a second of one queue; both sides share this machine."
    )
    return "\n".join(lines)
