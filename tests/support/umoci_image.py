"""A real image of many layers, made and unpacked by umoci: an oracle that shares no code with us."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.trees import CAPABILITY

HIDDEN = 1_600_000_000


def umoci(*arguments: object) -> None:
    subprocess.run(["umoci", *map(str, arguments)], check=True, capture_output=True)


def make_image(folder: Path, work: Path) -> None:
    """Make the image ``folder:latest`` with what layers can do to each other. Needs root."""
    umoci("init", "--layout", folder)
    umoci("new", "--image", f"{folder}:latest")
    for number, change in enumerate((_first, _second, _third)):
        bundle = work / f"bundle{number}"
        umoci("unpack", "--image", f"{folder}:latest", bundle)
        change(bundle / "rootfs")
        umoci("repack", "--image", f"{folder}:latest", bundle)
        shutil.rmtree(bundle)
    inserted = work / "inserted"
    inserted.mkdir()
    (inserted / "fresh").write_text("opaque directories hide what was there")
    image = f"{folder}:latest"
    umoci("insert", "--image", image, "--opaque", inserted, "/opaque")
    umoci("insert", "--image", image, "--whiteout", "/removed/by/whiteout")
    umoci("insert", "--image", image, inserted / "fresh", "/etc/inserted")
    umoci(
        *("config", "--image", image, "--config.env", "GREETING=hello", "--config.user", "1000:100"),
        *("--config.workingdir", "/srv", "--config.entrypoint", "/bin/tool", "--config.cmd", "--help"),
        *("--config.label", "maker=tests", "--architecture", "amd64"),
    )


def unpacked(folder: Path, bundle: Path) -> Path:
    """What umoci makes of it."""
    umoci("unpack", "--image", f"{folder}:latest", bundle)
    return bundle / "rootfs"


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _first(root: Path) -> None:
    _write(root / "bin/tool", b"#!/bin/sh\n" * 10_000, 0o4755)
    _write(root / "etc/kept", b"kept")
    _write(root / "etc/replaced", b"lower")
    _write(root / "opaque/old", b"hidden in the end")
    _write(root / "removed/by/whiteout/deep/file", b"removed")
    _write(root / "removed/by/rm", b"removed, too")
    _write(root / "types/file-to-directory", b"file")
    _write(root / "types/directory-to-file/below", b"below")
    _write(root / "types/file-to-link", b"file")
    _write(root / "links/first", os.urandom(300_000))
    os.link(root / "links/first", root / "links/second")
    _write(root / "links/later", b"linked by the next layer")
    _write(root / "large", os.urandom(1_500_000) + bytes(2_000_000))
    (root / "symlink").symlink_to("../../../etc/passwd")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 3))
    _write(root / "attributes", b"x")
    os.setxattr(root / "attributes", "user.name", b"\x00binary\xff")
    os.setxattr(root / "attributes", "security.capability", CAPABILITY)
    os.chown(root / "attributes", 1000, 100)
    for path in (root / "etc/kept", root / "attributes"):
        os.utime(path, ns=(0, 1_234_567_890_000_000_000))


def _second(root: Path) -> None:
    _write(root / "second", os.urandom(9_000))
    _write(root / "etc/replaced", b"upper")
    (root / "removed/by/rm").unlink()
    (root / "types/file-to-directory").unlink()
    _write(root / "types/file-to-directory/now", b"a directory")
    shutil.rmtree(root / "types/directory-to-file")
    _write(root / "types/directory-to-file", b"now a file")
    (root / "types/file-to-link").unlink()
    (root / "types/file-to-link").symlink_to("directory-to-file")
    os.link(root / "links/later", root / "links/across")
    (root / "etc").chmod(0o750)


def _third(root: Path) -> None:
    _write(root / "removed/by/rm", b"and here again")
    _write(root / "third", os.urandom(9_000))
    (root / "links/first").unlink()
    os.setxattr(root / "bin", "user.of-a-directory", b"1")
