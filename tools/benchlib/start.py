"""Measures a container's way from nothing to its first line of output, and lazy reads, behind a slow link.

A registry and a proxy in front of it run on loopback; the proxy waits before each answer and sends no faster
than the link. The image is a Debian with Python, one gzip layer in the registry, and the same, converted.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchlib import lazy, machine, trees
from benchlib.machine import BenchError

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]

DELAY_S = 0.025
LINK_BYTES_PER_S = 100e6 / 8
COMMAND = ("python3", "-c", "print(1)")
SUITE = "bookworm"
FIRST_LINE_S = 300
ROWS = ("start", "lazy", "cache")
ORIGINAL = "skopeo+umoci+runc"
GOALS = {
    **{(name, "times faster"): "10 or more" for name in ("rafsfs", "rafsfs, listed")},
    **{(name, "of the bytes"): "less than 0.15" for name in ("rafsfs", "rafsfs, listed")},
    ("rafsfs again", "first line"): "1 or less",
    ("rafsfs lazily", "of the link"): "0.9 or more",
    ("node cache", "of decoding"): "less than 0.1",
}


def measured(work, program, repeat, rows, quick, tell):
    """Column -> row -> values of the chosen ``rows``."""
    values = {}
    key = work / "start.key"
    if not key.exists():
        machine.run(*program, "keys", "new", key)
    if {"start", "lazy"} & set(rows):
        _behind_link(work, program, key, repeat, rows, quick, tell, values)
    if "cache" in rows:
        tell("filling the node cache")
        found = lazy.cache_costs(work, program, key, repeat, tell)
        ratios = [get / decode for get, decode in zip(*found.values(), strict=True)]
        values["node cache"] = {f"{row} us": times for row, times in found.items()} | {"of decoding": ratios}
    return values


def _behind_link(work, program, key, repeat, rows, quick, tell, values):
    """Run a registry, and the slow proxy in front of it."""
    from support.fault_proxy import fault_proxy
    from support.registries import registry

    if shutil.which("docker-registry") is None:
        raise BenchError("docker-registry is not installed; run tools/setup")
    folder = work / "start-registry"
    shutil.rmtree(folder, ignore_errors=True)
    with registry(folder) as there, fault_proxy(there.host) as proxy:
        if "start" in rows:
            _starts(work, program, key, repeat, there, proxy, tell, values)
        if "lazy" in rows:
            _reads(work, program, key, repeat, there, proxy, quick, tell, values)


def _starts(work, program, key, repeat, there, proxy, tell, values):
    """What skopeo, umoci and runc take, and rafsfs run, first and again."""
    for name in ("skopeo", "umoci", "runc", "debootstrap"):
        if shutil.which(name) is None:
            raise BenchError(f"{name} is not installed; run tools/setup")
    stock = _stock_image(work, tell)
    tell("filling the registry")
    plain = f"docker://{there.host}/start/plain:latest"
    machine.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{stock}:latest", plain)
    sealed, listed = (f"docker://{there.host}/start/{name}:sealed" for name in ("app", "listed"))
    machine.run(*program, "convert", plain, sealed, "--key", key, "--quiet")
    tell("tracing a start")
    _list_what_is_read(work, program, sealed, listed, key)
    behind = {name: name.replace(there.host, proxy.host) for name in (plain, sealed, listed)}
    proxy.delay_s, proxy.bytes_per_s = DELAY_S, LINK_BYTES_PER_S
    ways = {
        ORIGINAL: lambda: _pull_and_unpack(work, behind[plain]),
        "rafsfs": lambda: _run(program, behind[sealed], key, work),
        "rafsfs again": lambda: _run(program, behind[sealed], key, work),
        "rafsfs, listed": lambda: _run(program, behind[listed], key, work),
    }
    for number in range(repeat):
        for column, way in ways.items():
            tell(f"start {number + 1}/{repeat} {column}")
            if column != "rafsfs again":
                _forget(work)
            machine.drop_caches()
            proxy.moved_bytes = 0
            rows = values.setdefault(column, {})
            rows.setdefault("first line", []).append(way())
            rows.setdefault("moved", []).append(proxy.moved_bytes / 1e6)
    for column in ("rafsfs", "rafsfs, listed"):
        for row, of, ratio in (
            ("times faster", "first line", lambda ours, theirs: theirs / ours),
            ("of the bytes", "moved", lambda ours, theirs: ours / theirs),
        ):
            pairs = zip(values[column][of], values[ORIGINAL][of], strict=True)
            values[column][row] = [ratio(ours, theirs) for ours, theirs in pairs]


def _list_what_is_read(work, program, sealed, listed, key):
    """Make ``listed`` of ``sealed``: the same with a prefetch list, out of the trace of one start."""
    directory, image, trace = work / "mount-traced", work / "start-listed", work / "start-trace"
    shutil.rmtree(image, ignore_errors=True)
    directory.mkdir(exist_ok=True)
    options = ["--key", key, "--trace", trace, "--node-cache", "none", "--allow-other"]
    machine.run(*program, "mount", sealed, directory, *options)
    try:
        machine.run("chroot", directory, *COMMAND)
    finally:
        machine.run(*program, "umount", directory)
    machine.run(*program, "copy", sealed, image)
    machine.run(*program, "optimize", image, "--key", key, "--prefetch", trace)
    machine.run(*program, "push", image, listed)


def _reads(work, program, key, repeat, there, proxy, quick, tell, values):
    """How fast a large file comes that is not here yet."""
    tell("filling the registry")
    name = lazy.prepared(work, program, key, there.host, quick).replace(there.host, proxy.host)
    proxy.delay_s, proxy.bytes_per_s = DELAY_S, LINK_BYTES_PER_S
    rates = []
    for number in range(repeat):
        tell(f"lazy {number + 1}/{repeat}")
        machine.drop_caches()
        rates.append(lazy.read_through(work, program, key, name))
    values["rafsfs lazily"] = {
        "MB/s": rates,
        "of the link": [1e6 * rate / LINK_BYTES_PER_S for rate in rates],
    }


def _forget(work):
    """Throw away what a node may have kept of earlier starts."""
    shutil.rmtree(work / "start-cache", ignore_errors=True)


def _stock_image(work, tell):
    """Make the image once: a Debian with Python, put into a layout by umoci."""
    stock = work / "start-stock"
    tree = work / "start-tree"
    if (stock / "done").exists():
        return stock
    tell("making the image")
    shutil.rmtree(stock, ignore_errors=True)

    def make(path):
        machine.run("debootstrap", "--variant=minbase", "--include=python3", SUITE, path)
        shutil.rmtree(Path(path, "var/cache/apt/archives"))

    trees.kept(tree, ["debootstrap", SUITE, "python3"], make)
    machine.run("umoci", "init", "--layout", stock)
    machine.run("umoci", "new", "--image", f"{stock}:latest")
    machine.run("umoci", "insert", "--image", f"{stock}:latest", tree, "/")
    config = [word for argument in COMMAND for word in ("--config.cmd", argument)]
    machine.run("umoci", "config", "--image", f"{stock}:latest", *config)
    (stock / "done").touch()
    return stock


def _pull_and_unpack(work, reference):
    """What has to be done without lazy loading; takes the time to the first line, then cleans up."""
    layout, bundle, name = work / "start-pulled", work / "start-bundle", f"start-{os.getpid()}"
    for folder in (layout, bundle):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    try:
        machine.run("skopeo", "copy", "--quiet", "--src-tls-verify=false", reference, f"oci:{layout}:latest")
        machine.run("umoci", "unpack", "--image", f"{layout}:latest", bundle)
        spec = json.loads((bundle / "config.json").read_bytes())
        spec["process"]["terminal"] = False
        (bundle / "config.json").write_text(json.dumps(spec))
        return _until_first_line(["runc", "run", "--bundle", bundle, name], began)
    finally:
        for folder in (layout, bundle):
            shutil.rmtree(folder, ignore_errors=True)


def _run(program, reference, key, work):
    environment = os.environ | {"TMPDIR": str(work), "XDG_CACHE_HOME": str(work / "start-cache")}
    words = [*program, "run", reference, "--key", key, *COMMAND]
    return _until_first_line(words, time.monotonic(), environment)


def _until_first_line(words, began, environment=None):
    """Run a command to its end; returns the seconds from ``began`` to its first line, which must be 1."""
    words = [str(word) for word in words]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as child:
        line = child.stdout.readline()
        seconds = time.monotonic() - began
        _, errors = child.communicate(timeout=FIRST_LINE_S)
    if line != b"1\n" or child.returncode:
        raise BenchError(f"{words[0]} did not start the container\n{errors.decode(errors='replace')[-2000:]}")
    return seconds
