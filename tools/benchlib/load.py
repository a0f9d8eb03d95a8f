"""The read-only work that is measured, the same on every mounted tree; never mounts or prepares anything.

Run as a program by ``measure.py``, one pass in each process, on a mount that nobody has touched:

    load.py PASS MOUNT NAMES BIG

NAMES is a file with the relative paths of all regular files but BIG, separated by NUL. Prints one JSON
object, row -> number.
"""

import json
import os
import random
import sys
import time

PASSES = {
    "walk": ("walk", "walk2"),
    "readall": ("readall", "readall2"),
    "seq": ("seq", "seq2"),
    "rand4k": ("rand4k", "rand4k2"),
    "par4": ("par4",),
}
"""Each pass starts on a fresh mount with empty caches; its second row is the same once more, warm."""

READ_BYTES = 1 << 20
RANDOM_READS = 3000
RANDOM_BYTES = 4096
READERS = 4


def walk(top):
    """os.walk and lstat of everything; returns the number of names."""
    count = 0
    for folder, directories, files in os.walk(top):
        for name in directories + files:
            os.lstat(os.path.join(folder, name))
            count += 1
    return count


def read_all(paths):
    """Read files one after the other, to their ends; returns the number of bytes."""
    total = 0
    buffer = bytearray(READ_BYTES)
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while size := os.readv(fd, [buffer]):
            total += size
        os.close(fd)
    return total


def seconds(work, *arguments):
    """Return (seconds, result)."""
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def rate(work, *arguments):
    """MB/s of a work that returns its bytes."""
    took, size = seconds(work, *arguments)
    return size / took / 1e6


def random_reads(path):
    """Mean microseconds of random reads of 4 KiB, told to the kernel as random."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    chance = random.Random(7)
    blocks = max(1, os.fstat(fd).st_size // RANDOM_BYTES)
    offsets = [chance.randrange(blocks) * RANDOM_BYTES for _ in range(RANDOM_READS)]
    start = time.perf_counter()
    for offset in offsets:
        os.pread(fd, RANDOM_BYTES, offset)
    took = time.perf_counter() - start
    os.close(fd)
    return took / len(offsets) * 1e6


def read_in_parallel(paths):
    """Several processes share the files; returns the number of bytes."""
    reading, writing = os.pipe()
    children = []
    for number in range(READERS):
        child = os.fork()
        if not child:
            code = 1
            try:
                os.write(writing, read_all(paths[number::READERS]).to_bytes(8, "little"))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise SystemExit("a parallel reader failed")
    return sum(int.from_bytes(os.read(reading, 8), "little") for _ in children)


def run(name, mount, paths, big):
    """Do one pass; returns row -> number."""
    if name == "walk":
        return {"walk": seconds(walk, mount)[0], "walk2": seconds(walk, mount)[0]}
    if name == "readall":
        return {"readall": rate(read_all, paths), "readall2": rate(read_all, paths)}
    if name == "seq":
        return {"seq": rate(read_all, [big]), "seq2": rate(read_all, [big])}
    if name == "rand4k":
        return {"rand4k": random_reads(big), "rand4k2": random_reads(big)}
    return {"par4": rate(read_in_parallel, paths)}


def main():
    name, mount, names, big = sys.argv[1:]
    with open(names, "rb") as file:
        paths = [os.path.join(os.fsencode(mount), path) for path in file.read().split(b"\0") if path]
    print(json.dumps(run(name, mount, paths, os.path.join(os.fsencode(mount), os.fsencode(big)))))


if __name__ == "__main__":
    main()
