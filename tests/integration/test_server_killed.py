"""Servers killed in every state of a mount, and disks that fail under the store: nothing hangs or stays."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from support import mounts
from support.images import KEY, build
from support.mounts import (
    END_S,
    ROOT,
    chunk_place,
    flip,
    mounting,
    rafsfs,
    read_error,
    umount,
    unreadable_files,
    wait_for_lines,
)

from rafsfs.cli.mount import FRONTENDS
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root, pytest.mark.timeout(120)]

CHUNK = 256 * 1024

KILL_AT = """
import importlib, os, signal, sys
module, *names = sys.argv.pop(1).split(":")
place = importlib.import_module(module)
for name in names[:-1]:
    place = getattr(place, name)
setattr(place, names[-1], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
from rafsfs.cli.main import main
sys.exit(main())
"""
"""Runs the command until it is about to call a function; there it is killed, as by ``kill -9``."""

DEVFUSE = "rafsfs.frontends.devfuse_transport:Transport"
MOMENTS = {
    ("devfuse", "before it mounts"): "rafsfs.frontends.devfuse_mount:mount",
    ("devfuse", "before INIT"): f"{DEVFUSE}:negotiate",
    ("devfuse", "after INIT"): f"{DEVFUSE}:start",
    ("devfuse", "while it unmounts"): "rafsfs.frontends.devfuse_mount:Connection:detach",
    ("devfuse", "after it unmounted"): f"{DEVFUSE}:stop",
    ("pyfuse3", "before it mounts"): "pyfuse3:init",
    ("pyfuse3", "before INIT"): "pyfuse3:main",
    ("pyfuse3", "after INIT, at a request"): "rafsfs.frontends.pyfuse3_operations:ReadOnlyOperations:lookup",
    ("pyfuse3", "while it unmounts"): "pyfuse3:close",
    ("pyfuse3", "after it unmounted"): "rafsfs.frontends.fault_log:FaultLog:close",
    ("erofs", "before it mounts"): "rafsfs.frontends.kernel_erofs:mount_private",
    ("erofs", "before INIT"): f"{DEVFUSE}:negotiate",
    ("erofs", "after INIT"): "rafsfs.frontends.kernel_erofs:mount_erofs",
    ("erofs", "after it mounted"): "rafsfs.frontends.kernel_erofs_mount:ErofsMount:raise_read_ahead",
    ("erofs", "while it unmounts"): "rafsfs.frontends.kernel_erofs_mount:ErofsMount:detach",
    ("erofs", "after it unmounted"): f"{DEVFUSE}:stop",
}
"""(front end, state of the mount) -> the function that it never gets to."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image, and the same image inside of another one."""
    folder = tmp_path_factory.mktemp("killed")
    save_key(KEY, folder / "key")
    tree = folder / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(os.urandom(8 * CHUNK))
    (tree / "small").write_bytes(b"small")
    build(tree, folder / "outer" / "img")
    build(folder / "outer", folder / "store", chunk_size=4096)
    return folder


def options(place, frontend):
    return "--key", place / "key", "--frontend", frontend, "--allow-other"


@pytest.mark.parametrize(("frontend", "moment"), MOMENTS)
def test_what_a_server_leaves_that_is_killed_is_cleared_away(place, tmp_path, frontend, moment):
    image, directory = place / "outer" / "img", tmp_path / "m"
    directory.mkdir()
    words = ("mount", image, directory, *options(place, frontend), "--foreground")
    command = [sys.executable, "-c", KILL_AT, MOMENTS[frontend, moment], *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            if "unmount" in moment:
                assert "serving" in process.stderr.readline()
                assert (directory / "small").read_bytes() == b"small"
                process.send_signal(signal.SIGTERM)
            if "request" in moment:
                assert "serving" in process.stderr.readline()
                assert read_error(directory / "small") in (errno.ENOTCONN, errno.ECONNABORTED)
            assert process.wait(END_S) == -signal.SIGKILL, process.stderr.read()
        finally:
            process.kill()
    if mounts.mounted(directory) is None:
        assert moment in ("before it mounts", "before INIT", "after INIT", "after it unmounted")
        assert list(directory.iterdir()) == []
    else:
        assert moment != "before it mounts"
        umount(directory)
    with mounting(image, directory, *options(place, frontend)):
        assert (directory / "big").stat().st_size == 8 * CHUNK
        assert (directory / "small").read_bytes() == b"small"


GIVER = "rafsfs.frontends.handover_giver"
TAKER = "rafsfs.frontends.handover"
HANDOVERS = {
    "the old one, before it gives": ("old", f"{GIVER}:Giver:_give", None),
    "the old one, told to leave": ("old", f"{DEVFUSE}:release", "new"),
    "the old one, before it says that it left": ("old", f"{GIVER}:Giver:leave", "new"),
    "the new one, before it asks": ("new", "rafsfs.frontends.devfuse_serving:take", "old"),
    "the new one, before it serves": ("new", f"{DEVFUSE}:start", "old"),
    "the new one, before the old one leaves": ("new", f"{TAKER}:Taken:_relieve", "old"),
    "the new one, after the old one left": ("new", "rafsfs.frontends.devfuse_serving:serve_until_end", None),
}
"""Who is killed -> the same, the function that it never gets to, and who has the mount afterwards."""


@pytest.mark.parametrize("frontend", ["devfuse", "erofs"])
@pytest.mark.parametrize("killed", HANDOVERS)
def test_a_mount_is_served_whoever_dies_while_it_goes_over(place, tmp_path, killed, frontend):
    whose, function, serves = HANDOVERS[killed]
    image, directory = place / "outer" / "img", tmp_path / "m"
    directory.mkdir()
    words = ("mount", image, directory, *options(place, frontend), "--foreground")
    at = {whose: ["-c", KILL_AT, function]}
    with subprocess.Popen(
        [sys.executable, *at.get("old", ["-m", "rafsfs"]), *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as old:
        try:
            assert "serving" in old.stderr.readline()
            upgraded = subprocess.run(
                [sys.executable, *at.get("new", ["-m", "rafsfs"]), "upgrade", directory],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
                timeout=END_S,
            )
            if whose == "old":
                assert old.wait(END_S) == -signal.SIGKILL
            if serves is None:
                assert old.wait(END_S) in (0, -signal.SIGKILL)
            else:
                assert (upgraded.returncode == 0) == (serves == "new"), upgraded.stderr
                assert (directory / "small").read_bytes() == b"small"
                assert (directory / "big").read_bytes() == (place / "tree" / "big").read_bytes()
            umount(directory)
        finally:
            old.kill()
    with mounting(image, directory, *options(place, frontend)):
        assert (directory / "small").read_bytes() == b"small"


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_disk_that_fails_is_an_error_of_the_reads_that_need_it(place, tmp_path, frontend):
    """The store lies on a mount with a damaged block: the kernel answers EIO, as for a bad disk."""
    inner = Reference(place / "outer" / "img")
    blob, index, offset, length = chunk_place(inner, b"big", 3 * CHUNK)
    name = str(blob.relative_to(place / "outer")).encode()
    store = tmp_path / "store"
    subprocess.run(["cp", "--recursive", place / "store", store], check=True)
    sector = chunk_place(Reference(store), name, (offset + length // 2) // 4096 * 4096)
    flip(sector[0], sector[2] + sector[3] // 2)
    log = tmp_path / "log"
    with (
        mounting(store, tmp_path / "disk", "--key", place / "key") as disk,
        mounting(disk / "img", tmp_path / "m", *options(place, frontend), "--log-file", log) as directory,
    ):
        assert read_error(disk / os.fsdecode(name), offset + length // 2) == errno.EIO
        content = (place / "tree" / "big").read_bytes()
        with (directory / "big").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for start in (0, 2 * CHUNK, 4 * CHUNK, 7 * CHUNK):
                assert os.pread(file.fileno(), 4096, start) == content[start : start + 4096]
            for _ in range(2):  # nothing about the failure is kept
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(file.fileno(), 4096, 3 * CHUNK)
        assert unreadable_files(directory) == {"big"}
        assert (directory / "small").read_bytes() == b"small"
        (line, *_) = wait_for_lines(log, " ERROR ")
        assert "reading the blob failed" in line and f"chunk {index}" in line and "/big" in line
        assert "Traceback" not in log.read_text()
        flip(sector[0], sector[2] + sector[3] // 2)  # the disk is well again
        subprocess.run(["cp", disk / os.fsdecode(name), tmp_path / "copy"], check=True)
        assert (directory / "big").read_bytes() == content
        assert rafsfs("umount", directory).returncode == 0
