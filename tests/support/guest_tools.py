"""Makes the root file system that guests have Python and rafsfs in; never starts a guest.

It is put together from what this machine has: the Python that runs this, what rafsfs requires, the shared
libraries of both, rafsfs itself and busybox. Run by the checkout's Python it prints the disk's path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUEST = ROOT / ".venv" / "guest"
BUSYBOX = Path("/usr/bin/busybox")
SITE = "opt/site"  # every Python has other ideas about where packages are; PYTHONPATH is the same for all
SNAPSHOT = ROOT / "tests/support/snapshot.py"
SOURCES = ("rafsfs/**/*.py", "vhost/*.py")
FOLDERS = (
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib64",
    "root",
    "tmp",
    "proc",
    "sys",
    "dev",
    "run",
    "mnt",
    "etc",
)
MERGED = ("bin", "sbin", "lib", "lib64")
NOT_NEEDED = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
)


def tools_tree(folder: Path) -> Path:
    """Make the root file system as a folder: about 100 MB."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in MERGED:
        (folder / name).symlink_to(f"usr/{name}")
    shutil.copy2(BUSYBOX, folder / "usr/bin/busybox")
    for name in subprocess.run(
        [BUSYBOX, "--list"], check=True, capture_output=True, text=True
    ).stdout.split():
        if name != "busybox":
            (folder / "usr/bin" / name).symlink_to("busybox")
    _copy_python(folder)
    site = folder / SITE
    site.mkdir(parents=True)
    for found in _required():
        for file in found.files or ():
            if ".." not in file.parts:  # commands, which name the Python of the checkout
                _copy(Path(str(found.locate_file(file))), site / file)
    for source in _sources():
        _copy(source, site / (source.name if source == SNAPSHOT else source.relative_to(ROOT)))
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "0", site / "rafsfs"], check=True)
    _copy_libraries(folder)
    command = folder / "usr/bin/rafsfs"
    command.write_text('#!/bin/sh\nexec python3 -m rafsfs "$@"\n')
    python = folder / "usr/bin/python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH=/{SITE} exec {os.path.realpath(sys.executable)} "$@"\n')
    for program in (command, python):
        program.chmod(0o755)
    return folder


def _copy_python(folder: Path) -> None:
    _copy(Path(os.path.realpath(sys.executable)), folder / os.path.realpath(sys.executable).lstrip("/"))
    library = Path(
        sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix})
    )
    ignored = shutil.ignore_patterns(*NOT_NEEDED, "*.opt-*.pyc", "*.a", "config-*")
    shutil.copytree(library, folder / str(library).lstrip("/"), ignore=ignored, symlinks=False)


def _required() -> list[Distribution]:
    """What rafsfs requires, and what that requires."""
    found: dict[str, Distribution] = {}
    names = ["rafsfs"]
    while names:
        for line in distribution(names.pop()).requires or ():
            requirement, _, marker = line.partition(";")
            match = re.match(r"[\w.-]+", requirement)
            assert match is not None, line
            name = match[0].lower()
            # A marker is about another system, another Python or an extra; what was needed is installed.
            if name in found or "extra" in marker:
                continue
            try:
                found[name] = distribution(name)
            except ModuleNotFoundError:
                assert marker, f"{name} is not installed"
                continue
            names.append(name)
    return list(found.values())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _copy_libraries(folder: Path) -> None:
    """Every shared library that programs and modules in the folder are linked with, at its own path."""
    binaries = [
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)
    ]
    listed = subprocess.run(["ldd", *binaries], check=False, capture_output=True, text=True).stdout
    # Lines read 'NAME => FILE (ADDRESS)', or 'FILE (ADDRESS)' for the loader.
    for file in sorted(set(re.findall(r"(/\S+) \(0x", listed))):
        if not Path(file).is_relative_to(folder):
            _copy(Path(file), folder / file.lstrip("/"))


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def tools_disk() -> Path:
    """The root file system as an EROFS disk in .venv; made anew when what is in it has changed."""
    disk = GUEST / "tools.erofs"
    stamp = GUEST / "tools.stamp"
    wanted = _fingerprint()
    with (GUEST / "tools.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes want it, too
        if not disk.exists() or not stamp.exists() or stamp.read_text() != wanted:
            folder = GUEST / "tools"
            shutil.rmtree(folder, ignore_errors=True)
            made = GUEST / "tools.new"
            subprocess.run(
                ["mkfs.erofs", "--quiet", made, tools_tree(folder)], check=True, capture_output=True
            )
            shutil.rmtree(folder)
            made.rename(disk)
            stamp.write_text(wanted)
    return disk


def _sources() -> list[Path]:
    return [SNAPSHOT, *sorted(path for name in SOURCES for path in ROOT.glob(name))]


def _fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode() + (ROOT / ".venv" / "setup-stamp").read_bytes())
    for path in _sources():
        digest.update(f"{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(tools_disk())
