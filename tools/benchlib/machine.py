"""The machine under the measurements: programs, caches, processes, mounts; knows no file system by name."""

import os
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path

UNMOUNT_TRIES = 20
UNMOUNT_PAUSE_S = 0.1


class BenchError(Exception):
    """Something that a measurement needs did not work; the text says what."""


def run(*command, quiet=True, env=None):
    """Run a program; raises BenchError with the end of its output when it fails."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            env=env,
        )
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is not installed; tools/setup installs what is needed") from None
    if done.returncode:
        said = (done.stdout or b"").decode(errors="replace").strip()[-2000:]
        raise BenchError(f"exit code {done.returncode}: {' '.join(map(str, command))}\n{said}")
    return done.stdout


def drop_caches():
    """Write everything out and empty the kernel's page, name and inode caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(0.1)


def warm(tree):
    """Bring every file of a tree into the page cache."""
    for folder, _, files in os.walk(tree):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.path.isfile(path):
                with open(path, "rb", buffering=0) as file:
                    while file.read(1 << 20):
                        pass


def mount_points():
    """All directories on which something is mounted, in the order of mounting; names may be of any bytes."""
    table = Path("/proc/self/mountinfo").read_bytes()
    return [os.fsdecode(line.split()[4].replace(rb"\040", b" ")) for line in table.splitlines()]


def is_mounted(directory):
    """True when something is mounted on just this directory; does not touch it: its server may be dead."""
    return os.path.realpath(os.path.dirname(directory)) + "/" + os.path.basename(directory) in mount_points()


def unmount(directory):
    """Unmount, and wait a little while the mount is busy; then out of sight, whoever still uses it."""
    for _ in range(UNMOUNT_TRIES):
        if not is_mounted(directory):
            return
        if subprocess.run(["umount", directory], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(UNMOUNT_PAUSE_S)
    run("umount", "--lazy", directory)


def server_of(directory):
    """Process id of the FUSE server that was started for a mount point, or None."""
    wanted = os.fsencode(directory)
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if wanted in words and "/dev/fuse" in _open_files(entry.path):
                return int(entry.name)
    return None


def _open_files(process):
    names = set()
    for fd in os.scandir(process + "/fd"):
        with suppress(OSError):
            names.add(os.readlink(fd.path))
    return names


def memory_of(pid):
    """Return (resident, proportional) MB of a process: Rss and Pss of its smaps_rollup."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return kib["Rss"] * 1024 / 1e6, kib["Pss"] * 1024 / 1e6


def processor_seconds_of(pid):
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def description():
    """What the numbers depend on beside the code."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load": os.getloadavg()[0],
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
    }


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
