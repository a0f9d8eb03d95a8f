"""Plain bytes of compressed layers, anywhere and by many readers at once; damage ends in an error, soon."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from support.stock import PACKERS

from rafsfs.errors import DigestMismatch, FormatError, RafsError, StoreUnavailable
from rafsfs.format.checkpoints import GzipPoints
from rafsfs.limits import KIB, MIB
from rafsfs.store.gzip_layer import GzipLayer, gzip_checkpoints
from rafsfs.store.pieces import Pieces
from rafsfs.store.zstd_layer import ZstdLayer

PLAIN = random.Random(3).randbytes(MIB) + b"text " * (MIB // 5) + bytes(MIB)
DEADLINE_S = 30.0


class Stored:
    """A file in memory that counts what is read of it, and may hold readers up."""

    def __init__(self, data):
        self.name = "sha256:stored"
        self.size = len(data)
        self.data = data
        self.read_bytes = 0
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()

    def read_range(self, offset, length):
        self.asked.set()
        assert self.open.wait(DEADLINE_S)
        assert offset + length <= self.size
        self.read_bytes += length
        return self.data[offset : offset + length]

    def close(self):
        pass


def layer_of(data, deadline_s=DEADLINE_S):
    file = Stored(data)
    pieces, layer = Pieces(file, deadline_s), ZstdLayer(len(PLAIN), deadline_s)
    return file, lambda offset, length: layer.read(pieces, offset, length)


def gzip_layer_of(data):
    file = Stored(data)
    index = gzip_checkpoints(file)
    layer = GzipLayer(GzipPoints(lambda offset, length: index[offset : offset + length]))
    file.read_bytes = 0
    pieces = Pieces(file, DEADLINE_S)
    return file, lambda offset, length: layer.read(pieces, offset, length)


@pytest.mark.parametrize("packing", ["zstd", "frames", "gzip"])
def test_anywhere_and_by_many_at_once(packing, tally):
    _, read = (gzip_layer_of if packing == "gzip" else layer_of)(PACKERS[packing](PLAIN))
    chosen = random.Random(4)
    ranges = [(chosen.randrange(len(PLAIN)), chosen.randrange(1, 300 * KIB)) for _ in range(150)]
    with ThreadPoolExecutor(8) as pool:
        for (offset, length), data in zip(ranges, pool.map(lambda place: read(*place), ranges), strict=True):
            assert data == PLAIN[offset : offset + length]
    tally("reads of compressed layers by eight at once", len(ranges))


def test_who_jumps_in_a_gzip_layer_has_little_moved():
    file, read = gzip_layer_of(PACKERS["gzip"](PLAIN))
    read(MIB - 100 * KIB, 10)
    assert file.read_bytes < MIB
    file, read = gzip_layer_of(PACKERS["gzip"](PLAIN))
    read(100 * KIB, 10)
    assert file.read_bytes <= 128 * KIB


def test_small_reads_one_after_the_other_move_a_gzip_layer_once():
    file, read = gzip_layer_of(PACKERS["gzip"](PLAIN))
    for offset in range(0, len(PLAIN), 1000):
        assert read(offset, 1000) == PLAIN[offset : offset + 1000]
    assert file.read_bytes == file.size


def test_index_of_a_gzip_layer_that_is_none_is_refused():
    index = gzip_checkpoints(Stored(PACKERS["gzip"](PLAIN)))
    for bad in (b"", b"GZIDX", b"x" + index[1:], index[:5] + b"\2" + index[6:], index[:31] + b"\xff" * 4):
        with pytest.raises(FormatError):
            GzipPoints(lambda offset, length, bad=bad: bad[offset : offset + length])


def test_frames_that_were_passed_are_places_to_start_from():
    file, read = layer_of(PACKERS["frames"](PLAIN))
    read(0, len(PLAIN))
    file.read_bytes = 0
    for offset in (2 * MIB + 512 * KIB, 100, MIB + 512 * KIB):
        # as other readers would leave decoders behind it
        assert read(offset, 10) == PLAIN[offset : offset + 10]
    assert file.read_bytes < MIB


@pytest.mark.parametrize("packing", ["zstd", "frames"])
def test_every_end_and_many_changed_bytes(packing):
    good = PACKERS[packing](PLAIN)
    for position in range(0, len(good), len(good) // 150):
        for data in (
            good[:position],
            good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :],
        ):
            _, read = layer_of(data)
            try:
                found = read(0, len(PLAIN))
            except RafsError:
                continue
            assert len(found) <= len(PLAIN)


def test_nothing_but_empty_blocks_is_given_up():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"")
    header = frame[: zstandard.frame_header_size(frame)]
    for data in (header + bytes(3 * MIB), frame * (MIB // len(frame))):
        file, read = layer_of(data)
        with pytest.raises(DigestMismatch, match="empty blocks"):
            read(0, 10)
        assert file.read_bytes < 2 * MIB


def test_who_waits_for_a_decoder_gives_up_by_the_deadline():
    file, read = layer_of(PACKERS["zstd"](PLAIN), deadline_s=0.2)
    file.open.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(read, 0, 10)
        assert file.asked.wait(DEADLINE_S)
        with pytest.raises(StoreUnavailable, match="too long"):
            read(100, 10)
        file.open.set()
        with pytest.raises(StoreUnavailable, match="too long"):
            first.result(DEADLINE_S)
    assert read(100, 10) == PLAIN[100:110]
