"""Measures lazy reads: one large file behind a slow link, and what the node cache costs a read that is warm.

The link is the caller's. Every chunk of an image is asked of the node cache, and decoded, in this process.
"""

import os
import shutil
import statistics
import time
from pathlib import Path

from benchlib import machine, trees

LARGE_BYTES, LARGE_BYTES_QUICK = 1 << 27, 1 << 23
PIECE_BYTES = 1 << 20


def prepared(work, program, key, there, quick):
    """Put an image of one file, which cannot be compressed, into the registry; gives its name there."""
    tree, image = work / "lazy-tree", work / "lazy-image"
    size = LARGE_BYTES_QUICK if quick else LARGE_BYTES

    def make(path):
        path.mkdir()
        with (path / trees.BIG).open("wb") as file:
            for _ in range(size // PIECE_BYTES):
                file.write(os.urandom(PIECE_BYTES))

    trees.kept(tree, ["random bytes", size], make)
    _built(program, tree, image, key)
    name = f"docker://{there}/lazy/large:latest"
    machine.run(*program, "push", image, name)
    return name


def read_through(work, program, key, name):
    """Mount an image with nothing of it on this machine, and read its large file; gives MB/s."""
    directory, cache = work / "mount-lazy", work / "lazy-cache"
    shutil.rmtree(cache, ignore_errors=True)
    directory.mkdir(exist_ok=True)
    machine.run(*program, "mount", name, directory, "--key", key, "--node-cache", cache)
    try:
        count = 0
        began = time.monotonic()
        with (directory / trees.BIG).open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                count += len(piece)
        return count / (time.monotonic() - began) / 1e6
    finally:
        machine.unmount(str(directory))
        shutil.rmtree(cache, ignore_errors=True)


def cache_costs(work, program, key, repeat, tell):
    """Row -> medians over all chunks, in microseconds: of getting one out of the node cache, of decoding it.

    The image is of this machine's programs, as compressible as those of containers.
    """
    from rafsfs.decode.pipeline import decode_chunk
    from rafsfs.fs.image import open_sealed
    from rafsfs.store.node_cache import NodeCache
    from rafsfs.store.reference import parse_reference
    from rafsfs.trust.keys import KeyRing, load_key
    from rafsfs.trust.opening import TrustPolicy

    tree, image, folder = work / "cache-tree", work / "cache-image", work / "cache-chunks"
    trees.copy_of_programs(tree)
    _built(program, tree, image, key)
    shutil.rmtree(folder, ignore_errors=True)
    cache = NodeCache(folder, 1 << 40)
    rows = {"out of it": [], "decoding": []}
    with open_sealed(
        parse_reference(str(image)), KeyRing(symmetric=(load_key(key),)), TrustPolicy()
    ) as opened:
        suite = opened.opened.superblock.suite
        records = []
        for blob in opened.filesystem.engine.blobs:
            for index in range(len(blob.chunks)):
                record = blob.chunks.record(index)
                encoded = blob.file.read_range(record.encoded_offset, record.encoded_length)
                cache.put(record.chunk_id, encoded)
                records.append(record)
    for number in range(repeat):
        tell(f"cache {number + 1}/{repeat}")
        got, decoded = [], []
        for record in records:
            began = time.perf_counter()
            encoded = cache.get(record.chunk_id, record.encoded_length)
            between = time.perf_counter()
            decode_chunk(encoded, record, suite)
            got.append(1e6 * (between - began))
            decoded.append(1e6 * (time.perf_counter() - between))
        rows["out of it"].append(statistics.median(got))
        rows["decoding"].append(statistics.median(decoded))
    shutil.rmtree(folder)
    return rows


def _built(program, tree, image, key):
    if Path(image).exists():
        shutil.rmtree(image)
    machine.run(*program, "build", tree, image, "--key", key)
