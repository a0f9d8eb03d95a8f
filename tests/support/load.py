"""Readers that never stop until they are told, and take no wrong byte for a right one; mounts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.mounts import END_S

READER = """
import os, random, select, sys
tree, mount, name = sys.argv[1:]
size = os.stat(f"{tree}/{name}").st_size
known, file = os.open(f"{tree}/{name}", os.O_RDONLY), os.open(f"{mount}/{name}", os.O_RDONLY)
names = sorted(os.listdir(tree))
print("reads", flush=True)
count = 0
while not select.select([0], [], [], 0)[0]:
    offset = random.randrange(size)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(file, 70_000, offset) == os.pread(known, 70_000, offset), offset
    count += 1
    if count % 8 == 0:
        os.statvfs(mount)
        assert sorted(os.listdir(mount)) == names
        fresh = os.open(f"{mount}/{name}", os.O_RDONLY)
        assert os.pread(fresh, 10, 0) == os.pread(known, 10, 0)
        os.close(fresh)
print(count)
"""

FIO = ("fio", "--name=verified", "--rw=randread", "--bs=4k", "--verify=crc32c", "--verify_fatal=1")


def write_verifiable(file: Path, size_bytes: int) -> None:
    """Write a file of which fio knows, block by block, what has to be in it."""
    command = [*FIO, "--rw=write", f"--filename={file}", f"--size={size_bytes}", "--do_verify=0"]
    subprocess.run(command, check=True, capture_output=True, cwd=file.parents[1])


def fio_reads(file: Path) -> int:
    """Have fio read and verify all of such a file, past what the kernel has of it; returns how many reads."""
    command = [*FIO, f"--filename={file}", "--readonly", "--invalidate=1", "--output-format=json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=END_S, cwd=file.parents[1]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = json.loads(done.stdout)["jobs"]
    assert job["error"] == 0
    reads: int = job["read"]["total_ios"]
    return reads


@contextmanager
def readers(tree: Path, mount: Path, name: str, count: int = 2) -> Iterator[None]:
    """Compare what ``mount`` shows with ``tree`` all the time, in processes; at the end none may have failed.

    Reads at random places of the file ``name``, lists the root, opens files, asks for what is not cached.
    """
    processes = []
    try:
        for _ in range(count):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", READER, tree, mount, name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            assert processes[-1].stdout is not None
            assert processes[-1].stdout.readline() == "reads\n"
        yield
        for process in processes:
            output, errors = process.communicate("", timeout=END_S)
            assert (process.returncode, errors) == (0, "")
            assert int(output) > 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
