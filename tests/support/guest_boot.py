"""Makes what a test guest boots from: kernel and initramfs; never starts a guest.

The kernel is Debian's cloud kernel, as tools/setup unpacked it. Nothing here imports rafsfs: tools/bench uses
it, too.
"""

from __future__ import annotations

import lzma
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUEST = ROOT / ".venv" / "guest"
BUSYBOX = Path("/usr/bin/busybox")
INIT = Path(__file__).with_name("guest_init.sh")
MODULES = ("virtio_pci", "virtiofs", "virtio_blk", "erofs", "overlay", "loop")
EXECUTABLE = 0o755


def kernel() -> Path:
    """The guest's kernel."""
    for found in GUEST.glob("boot/vmlinuz-*"):
        return found
    raise FileNotFoundError(f"no kernel for guests in {GUEST}: run tools/setup")


def initramfs(path: Path, extra: Mapping[str, bytes] | None = None) -> Path:
    """Write an initramfs of busybox, modules, ``guest_init.sh`` and ``extra`` (path in the guest -> content).

    It is not compressed: an emulated processor takes longer to unpack it than to copy it.
    """
    files = {"init": INIT.read_bytes(), "bin/busybox": BUSYBOX.read_bytes()}
    for number, module in enumerate(_module_files()):
        files[f"modules/{number:02d}-{module.name.removesuffix('.xz')}"] = _module(module)
    for name, content in (extra or {}).items():
        files[name.lstrip("/")] = content
    path.write_bytes(_newc(files))
    return path


def _module_files() -> list[Path]:
    """The modules and what they need, in the order in which they can be loaded."""
    (modules,) = (GUEST / "lib" / "modules").iterdir()
    lines: dict[str, None] = {}
    for name in MODULES:
        command = ["modprobe", "--dirname", str(GUEST), "--set-version", modules.name, "--show-depends", name]
        # Lines read 'insmod FILE', or 'builtin NAME'.
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            if line.startswith("insmod "):
                lines[line.removeprefix("insmod ").strip()] = None
    return [Path(file) for file in lines]


def _module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _newc(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive as Linux Documentation/driver-api/early-userspace/buffer-format.rst has it."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    archive = bytearray()
    entries = [(folder, stat.S_IFDIR | EXECUTABLE, b"") for folder in folders]
    entries += [(name, stat.S_IFREG | EXECUTABLE, content) for name, content in files.items()]
    entries.append(("bin/sh", stat.S_IFLNK | 0o777, b"busybox"))
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        # inode, mode, uid, gid, nlink, mtime, size, device (2), rdev (2), size of the name, checksum
        numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
