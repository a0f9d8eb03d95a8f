"""Sixteen threads on one image whose cache is much too small: all bytes right, memory within its bounds.

A minute of a sealed image; of an unencrypted one, where only the decoding differs, five seconds, or a minute
with RAFSFS_TEST_LONG=1. They have a process of their own, so that its memory can be told from that of the
other tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import build
from support.trees import Planned, PlannedSource, Segment

from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.limits import KIB, MIB

TESTS = Path(__file__).parents[1]
LONG = os.environ.get("RAFSFS_TEST_LONG") == "1"
SECONDS = {Suite.AES_256_GCM: 60, Suite.INTEGRITY_ONLY: 60 if LONG else 5}
THREADS = 16
CACHE_BYTES = 1 * MIB
IMAGE_BYTES_LEAST = 16 * MIB
GROWTH_KIB_MAX = 64 * 1024
"""The cache, and for each thread a chunk, its encoded bytes and the MiB of scratch memory that it keeps."""

FILES = tuple(
    Planned(b"%03d" % number, FileType.REGULAR, segments=segments)
    for number, segments in enumerate(
        [
            *(((Segment(1500 * KIB + 4321, seed)),) for seed in range(12)),  # seeds above 5: not shared
            *(
                (Segment(97 * KIB, seed), Segment(130 * KIB, None), Segment(5, seed))
                for seed in range(12, 20)
            ),
            *((Segment(100 + 13 * seed, seed),) for seed in range(20, 120)),
        ]
    )
)
ROOT = Planned(b"", FileType.DIRECTORY)

READERS = """
import gc, pathlib, random, re, sys, threading, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from support.images import opened
from rafsfs.store.reference import parse_reference
from properties.test_readers_at_once import CACHE_BYTES, FILES, THREADS
from rafsfs.limits import KIB
from rafsfs.reading.page_cache import PageCache

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])

plains = {file.path: file.plain() for file in FILES}
failures, counts = [], [0] * THREADS

def work(number, filesystem, nids, end):
    chosen = random.Random(number)
    try:
        while time.monotonic() < end and not failures:
            path = chosen.choice(FILES).path if number % 4 else FILES[chosen.randrange(12)].path
            plain = plains[path]
            offset = chosen.randrange(len(plain) + 1)
            if number % 4 == 1:  # a scanner reads on and on, the others jump
                ranges = [(start, 128 * KIB) for start in range(0, len(plain), 128 * KIB)]
            else:
                ranges = [(offset, chosen.choice([1, 4 * KIB, 40 * KIB, 128 * KIB]))]
            for start, size in ranges:
                parts = filesystem.try_read(nids[path], start, size)
                if parts is None:
                    parts = filesystem.read(nids[path], start, size)
                found = b"".join(parts)
                if found != plain[start : start + size]:
                    failures.append(f"{path!r}: wrong bytes in {size} at {start}")
                counts[number] += len(found)
    except BaseException as error:
        failures.append(repr(error))

with opened(parse_reference(sys.argv[2]), cache_bytes=CACHE_BYTES) as image:
    filesystem = image.filesystem
    nids = {file.path: filesystem.lookup(filesystem.root, file.path) for file in FILES}
    (cache,) = (thing for thing in gc.get_objects() if isinstance(thing, PageCache))
    before = peak_kib()
    end = time.monotonic() + float(sys.argv[3])
    threads = [
        threading.Thread(target=work, args=(number, filesystem, nids, end)) for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    most_cached = 0
    while any(thread.is_alive() for thread in threads):
        most_cached = max(most_cached, cache.used_bytes)
        threads[0].join(0.001)
    print(sum(counts), min(counts), peak_kib() - before, most_cached)
sys.exit("\\n".join(failures[:5]) or 0)
"""


@pytest.mark.parametrize("suite", SECONDS)
def test_all_bytes_are_right_and_memory_is_bounded(suite, tmp_path, tally):
    build(PlannedSource((ROOT, *FILES)), tmp_path, suite=suite, chunk_size=128 * KIB)
    assert sum(file.size for file in FILES) > IMAGE_BYTES_LEAST
    done = subprocess.run(
        [sys.executable, "-c", READERS, TESTS, tmp_path, str(SECONDS[suite])],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS[suite] + 200,
    )
    assert done.returncode == 0, done.stderr
    read_bytes, least_bytes, grown_kib, most_cached = map(int, done.stdout.split())
    assert least_bytes > 0  # every thread came to read
    assert 0 < most_cached <= CACHE_BYTES
    assert grown_kib < GROWTH_KIB_MAX
    tally("MiB read by sixteen threads at once, all right", read_bytes // MIB)
