"""The package on a system that is not Linux: it imports, mount points are checked, umount(8) unmounts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

DARWIN = """
import os, sys
from importlib.abc import MetaPathFinder

import pyfuse3, trio, urllib.request  # built for this system; what is ours is imported as on the other one
sys.platform = "darwin"

LINUX = ("mountpoint_linux", "devfuse", "kernel_erofs", "supervisor", "virtiofs", "bundle")
LINUX_ONLY = tuple(f"rafsfs.frontends.{name}" for name in LINUX)

class Block(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith(LINUX_ONLY):
            raise ImportError(f"{name} is for Linux")

sys.meta_path.insert(0, Block())
"""


def run(body, *arguments, **options):
    command = [sys.executable, "-c", DARWIN + body, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_module_imports_with_the_linux_only_ones_blocked():
    done = run(
        """
import importlib, pkgutil
import rafsfs
names = [module.name for module in pkgutil.walk_packages(rafsfs.__path__, "rafsfs.")]
for name in names:
    if not name.startswith(LINUX_ONLY) and not name.endswith("__main__"):
        importlib.import_module(name)
assert [name for name in sys.modules if name.startswith(LINUX_ONLY)] == []
assert "rafsfs.frontends.pyfuse3_mount" in sys.modules
assert "rafsfs.cli.mount" in sys.modules
print(len(names))
"""
    )
    assert done.stderr == ""
    assert int(done.stdout) > 50


def test_mount_points_are_checked_without_linux(tmp_path):
    done = run(
        """
from pathlib import Path
from rafsfs.errors import MountError
from rafsfs.frontends import mountpoint
folder = Path(sys.argv[1])
assert mountpoint.check(folder) == folder
for wrong in (folder / "none", Path("/"), Path("/dev/null")):
    try:
        mountpoint.check(wrong)
    except MountError as error:
        print(error.what)
""",
        tmp_path.resolve(),
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "the mount point does not exist",
        "something is mounted on the mount point already",
        "the mount point is not a directory",
    ]


def test_unmounting_calls_umount(tmp_path):
    program = tmp_path / "umount"
    program.write_text(
        '#!/bin/sh\necho "$@" >> "$0.log"\n[ "$1" = -f ] || { echo "Resource busy" >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    done = run(
        """
from pathlib import Path
from rafsfs.errors import MountError
from rafsfs.frontends import mountpoint
try:
    mountpoint.unmount(Path("/proc"))
except MountError as error:
    print(error)
print(mountpoint.unmount(Path("/proc"), lazy=True))
""",
        PATH=str(tmp_path),
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "it cannot be unmounted: Resource busy (path /proc); "
        "end what uses it, or: rafsfs umount --lazy /proc",
        "[]",
    ]
    assert Path(f"{program}.log").read_text() == "/proc\n-f /proc\n"
