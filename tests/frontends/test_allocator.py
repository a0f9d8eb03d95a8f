"""After ``keep_in_one_place`` large buffers of every thread lie in the heap, also the first ones."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, threading
from rafsfs.frontends.allocator import keep_in_one_place
{settle}
found = []
def work():
    buffers = [bytearray(200_000) for _ in range(4)]
    found.extend(ctypes.addressof((ctypes.c_char * 200_000).from_buffer(buffer)) for buffer in buffers)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
heap = next(line for line in open("/proc/self/maps") if line.endswith("[heap]\\n")).split()[0]
start, end = (int(address, 16) for address in heap.split("-"))
print(len(found), sum(start <= address < end for address in found))
"""


def buffers_in_heap(settle: str) -> tuple[int, int]:
    """(buffers made, buffers in the heap), in a process of its own: what is settled stays settled."""
    command = [sys.executable, "-c", PROGRAM.format(settle=settle)]
    made, inside = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(made), int(inside)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas to settle")
def test_buffers_of_all_threads_lie_in_the_heap() -> None:
    assert buffers_in_heap("keep_in_one_place()") == (12, 12)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas to settle")
def test_otherwise_they_do_not() -> None:
    made, inside = buffers_in_heap("pass")
    assert inside < made
