"""The node cache gives back what was put in or nothing, whatever happens to its folder; it keeps its size."""

import errno
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from support.mounts import rafsfs

from rafsfs.limits import KIB, MIB
from rafsfs.store import node_cache, node_cache_room
from rafsfs.store.node_cache import NodeCache, verified
from rafsfs.store.node_cache_room import Room


def chunk(number, size=10_000):
    data = number.to_bytes(4, "little") * (size // 4)
    return blake3(data).digest(), data


@pytest.fixture
def cache(tmp_path):
    return NodeCache(tmp_path / "cache", 64 * MIB)


def get(cache, chunk_id, data):
    """What a reader gets who opens what is there: its bytes, or None after it has thrown others away."""
    found = cache.get(chunk_id, len(data))
    if found is None or blake3(found).digest() == chunk_id:
        return found
    cache.discard(chunk_id)
    return None


def file_of(cache, chunk_id):
    digits = chunk_id.hex()
    return cache.folder / "v1" / digits[:2] / digits[2:]


def test_what_was_put_in_is_there_for_others(cache):
    chunk_id, data = chunk(1)
    assert cache.get(chunk_id, len(data)) is None
    assert cache.put(chunk_id, data)
    other = NodeCache(cache.folder, 64 * MIB)
    assert other.has(chunk_id)
    assert other.get(chunk_id, len(data)) == data
    assert file_of(cache, chunk_id).read_bytes() == data
    assert oct(cache.folder.stat().st_mode & 0o777) == "0o700"
    counts = cache.counts()
    assert (counts.misses, counts.stored, counts.stored_bytes) == (1, 1, len(data))
    assert other.counts().hits == 1


DAMAGES = ("flip", "cut", "longer", "empty", "folder", "fifo", "link", "unreadable link")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_not_given_out_and_gone(cache, damage, tmp_path):
    chunk_id, data = chunk(1)
    cache.put(chunk_id, data)
    path = file_of(cache, chunk_id)
    match damage:
        case "flip":
            path.write_bytes(data[:-1] + b"x")
        case "cut":
            path.write_bytes(data[:-1])
        case "longer":
            path.write_bytes(data + b"x")
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.unlink()
            path.mkdir()
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.unlink()
            path.symlink_to("nowhere")
    assert get(cache, chunk_id, data) is None
    if damage != "folder":
        assert cache.put(chunk_id, data)
        assert get(cache, chunk_id, data) == data


def test_chunk_under_another_name_is_refused(cache):
    (one, data), (two, _) = chunk(1), chunk(2)
    cache.put(one, data)
    file_of(cache, two).parent.mkdir(parents=True, exist_ok=True)
    file_of(cache, one).rename(file_of(cache, two))
    assert get(cache, two, data) is None
    assert cache.counts().bad == 1


def test_folder_deleted_under_way_is_made_again(cache):
    for number in range(3):
        chunk_id, data = chunk(number)
        assert cache.put(chunk_id, data)
        assert cache.get(chunk_id, len(data)) == data
        subprocess.run(["rm", "-r", cache.folder], check=True)
        assert cache.get(chunk_id, len(data)) is None


@pytest.mark.parametrize("call", ["open", "write", "rename"])
@pytest.mark.parametrize("turn", range(4))
def test_folder_deleted_between_two_calls_is_made_again(cache, monkeypatch, tmp_path, caplog, call, turn):
    """Whichever call of a put it comes before, later chunks are kept and nothing pauses."""
    actual, turns = getattr(os, call), itertools.count()

    def deleted_first(*words, **options):
        if next(turns) == turn:
            cache.folder.rename(tmp_path / "gone")
        return actual(*words, **options)

    assert cache.put(*chunk(1))
    monkeypatch.setattr(node_cache.os, call, deleted_first)
    for number in range(2, 10):
        assert cache.put(*chunk(number))
    assert (tmp_path / "gone").exists()
    assert cache.has(chunk(9)[0])
    assert caplog.records == []


def test_without_room_it_goes_on_and_says_so_once(cache, monkeypatch, caplog):
    kept, data = chunk(1)
    cache.put(kept, data)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(node_cache.os, "write", full)
        with caplog.at_level(logging.WARNING):
            for number in range(2, 6):
                assert not cache.put(*chunk(number))
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]
    assert cache.counts().not_stored == 4
    assert [path.name for path in cache.folder.rglob(".new-*")] == []
    assert not cache.put(*chunk(7)), "it is left alone for a while"
    monkeypatch.setattr(cache, "_paused_until", 1.0)
    assert cache.put(*chunk(7))


@pytest.mark.parametrize("kind", ["file in its place", "no such device"])
def test_folder_that_cannot_be_is_no_failure(tmp_path, kind, caplog):
    (tmp_path / "file").write_text("x")
    cache = NodeCache(tmp_path / "file" if kind == "file in its place" else tmp_path / "proc", MIB)
    if kind != "file in its place":
        (tmp_path / "proc").symlink_to("/proc/1/fd/none/x")
    assert not cache.put(*chunk(1))
    assert cache.get(chunk(1)[0], 10_000) is None
    assert len(caplog.records) == 1


def test_size_is_kept_and_what_was_used_lately_stays(tmp_path):
    cache = NodeCache(tmp_path / "cache", 4 * MIB)
    old, data = chunk(0, 64 * KIB)
    cache.put(old, data)
    for number in range(1, 200):
        chunk_id, data = chunk(number, 64 * KIB)
        assert cache.put(chunk_id, data)
        os.utime(file_of(cache, chunk_id), (number, number))
        if cache.has(old):
            os.utime(file_of(cache, old))
    size = sum(path.stat().st_size for path in (cache.folder / "v1").rglob("*") if path.is_file())
    assert 2 * MIB < size <= 4 * MIB
    assert cache.get(old, 64 * KIB) is not None
    assert cache.has(chunk_id)
    assert not cache.has(chunk(1, 64 * KIB)[0])


def test_reading_marks_as_used(cache):
    chunk_id, data = chunk(1)
    cache.put(chunk_id, data)
    os.utime(file_of(cache, chunk_id), (1, 1))
    cache.get(chunk_id, len(data))
    assert file_of(cache, chunk_id).stat().st_mtime > 1_000_000


def test_only_one_collects_at_a_time(cache):
    cache.put(*chunk(1))
    room = Room(cache.folder, cache.chunks, 0)
    lock = os.open(cache.folder / node_cache_room.LOCK_FILE, os.O_RDWR | os.O_CREAT)
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)
    assert room.make() is None
    os.close(lock)
    assert room.make().removed == 1


def test_left_over_of_a_crash_goes_when_it_is_old(cache):
    chunk_id, data = chunk(1)
    cache.put(chunk_id, data)
    fresh = file_of(cache, chunk_id).with_name(".new-1-2-3")
    stale = fresh.with_name(".new-4-5-6")
    fresh.write_bytes(b"half")
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    Room(cache.folder, cache.chunks, 64 * MIB).make()
    assert (fresh.exists(), stale.exists(), cache.has(chunk_id)) == (True, False, True)


_WRITER = """
import sys
from pathlib import Path
from blake3 import blake3
from rafsfs.store.node_cache import NodeCache
cache = NodeCache(Path(sys.argv[1]), 2 << 20)
print("writing", flush=True)
for round in range(100000):
    for number in range(60):
        data = number.to_bytes(4, "little") * 15000
        found = cache.get(blake3(data).digest(), len(data))
        assert found in (None, data)
        if found is None:
            cache.put(blake3(data).digest(), data)
"""


def test_processes_race_and_are_killed(tmp_path, tally):
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", _WRITER, folder]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    cache = NodeCache(folder, 2 * MIB)
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        reads = 0
        for number in range(60):
            data = number.to_bytes(4, "little") * 15_000
            for _ in range(30):
                found = cache.get(blake3(data).digest(), len(data))
                assert found in (None, data)
                reads += found is not None
                if found is None:
                    cache.put(blake3(data).digest(), data)
            if number % 20 == 10:
                writers[number // 20].send_signal(signal.SIGKILL)
        assert reads
        assert cache.counts().bad == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert all(verified(file_of(cache, entry.chunk_id), entry.chunk_id) for entry in cache.entries())
    tally("cache reads while three processes raced and were killed", reads)


def test_threads_race(cache):
    barrier = threading.Barrier(8)

    def work(start):
        barrier.wait(30)
        for number in range(100):
            chunk_id, data = chunk((start + number) % 40)
            assert cache.get(chunk_id, len(data)) in (None, data)
            assert cache.put(chunk_id, data)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert cache.counts().bad == 0


def test_commands(cache, tmp_path):
    for number in range(10):
        cache.put(*chunk(number))
    where = "--node-cache", cache.folder
    assert "10 chunks" in rafsfs("cache", "ls", *where).stdout
    assert "10 chunks are sound, 0 were damaged" in rafsfs("cache", "verify", *where).stdout
    damaged = file_of(cache, chunk(3)[0])
    damaged.write_bytes(b"x" * 10_000)
    done = rafsfs("cache", "verify", *where)
    assert (done.returncode, damaged.exists()) == (5, False)
    assert "9 chunks are sound, 1 were damaged" in done.stdout
    assert "removed 9 chunks" in rafsfs("cache", "gc", "--size", "0", *where).stdout
    assert "0 chunks" in rafsfs("cache", "ls", "--node-cache", tmp_path / "nowhere").stdout
    assert rafsfs("cache", "gc", "--node-cache", tmp_path / "nowhere").returncode == 3


@pytest.mark.integration
@pytest.mark.requires_root
def test_verify_goes_on_behind_what_it_cannot_remove(cache):
    for number in range(10):
        cache.put(*chunk(number))
    damaged = [entry.path for entry in cache.entries()][:4]
    for path in damaged:
        Path(path).write_bytes(b"x")
    subprocess.run(["mount", "--bind", damaged[1], damaged[1]], check=True)
    try:
        done = rafsfs("cache", "verify", "--node-cache", cache.folder)
    finally:
        subprocess.run(["umount", damaged[1]], check=True)
    assert done.returncode == 5
    assert "6 chunks are sound, 4 were damaged, but 1 cannot be removed" in done.stdout
    assert f"{damaged[1]} cannot be removed: Device or resource busy" in done.stderr
    assert [path for path in damaged if Path(path).exists()] == [damaged[1]]
