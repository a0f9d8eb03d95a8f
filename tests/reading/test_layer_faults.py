"""Reads of an index over a layer in a real registry while its network fails in every way that we know.

A read succeeds, or fails by its deadline with the reason; after the fault it works again.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.faults import PATIENT, RECOVERED, REFUSED, other_bytes, soon
from support.images import KEY
from support.mounts import rafsfs
from support.registries import registry
from support.stock import layer, member, stock_image

from rafsfs.errors import DigestMismatch
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB, MIB
from rafsfs.reading import fetching
from rafsfs.reading.prefetching import Prefetch
from rafsfs.store.reference import RegistryReference
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import KeyRing, save_key
from rafsfs.trust.opening import TrustPolicy

SIZE = 3 * MIB
CONTENT = random.Random(5).randbytes(SIZE)
HASTY = {"deadline_s": 2.0, "stall_s": 0.3, "attempts": 3}
"""For faults; where there are none, a busy machine must not look like one."""
READ_S = 60.0
"""No read may take so long, whatever happens: it is several deadlines."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A registry with one index for each packing, under its name."""
    folder = tmp_path_factory.mktemp("stock")
    save_key(KEY, folder / "key")
    with registry(tmp_path_factory.mktemp("registry")) as found:
        for packing in ("gzip", "zstd", "frames", "tar"):
            plain = layer(member("file", CONTENT), member("text", b"text " * 1000))
            source = stock_image(folder / packing, plain, packing=[packing])
            target = folder / f"{packing}-index"
            for words in (
                ("index", source, target, "--key", folder / "key"),
                ("push", target, found.reference("t/a", packing)),
            ):
                done = rafsfs(*words)
                assert (done.returncode, done.stderr) == (0, "")
        yield found


@pytest.fixture
def proxy(server):
    with fault_proxy(server.host) as found:
        yield found


@pytest.fixture(autouse=True)
def no_guesses(monkeypatch):
    """A fault is to meet the pieces that are asked for, and no other."""
    monkeypatch.setattr(fetching, "GUESS_BYTES", 0)


@contextmanager
def remote(proxy, packing, *, threads=True, **settings):
    """Open the index behind the proxy; gives a function that reads, and the image."""
    reference = RegistryReference(proxy.host, "t/a", packing)
    settings = StoreSettings(**settings)
    keys = KeyRing(symmetric=(KEY,))
    # without memory for verified bytes: every read asks for the stored ones
    with open_sealed(reference, keys, TrustPolicy(), cache_bytes=0, stores=settings) as image:
        if threads:
            image.remote.start([])
        filesystem = image.filesystem
        nid = filesystem.lookup(filesystem.root, b"file")

        def read(offset=0, size=SIZE):
            return in_time(lambda: b"".join(filesystem.read(nid, offset, size)))

        assert read(0, 10) == CONTENT[:10]  # all metadata are here now
        proxy.requests.clear()
        yield read, image


def in_time(work):
    """What ``work`` returns or raises; fails when it does not come back."""
    ended = []

    def run():
        try:
            ended.append((work(), None))
        except Exception as error:
            ended.append((None, error))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(READ_S)
    assert ended, "the read does not come back"
    ((result, error),) = ended
    if error is not None:
        raise error
    return result


PACKINGS = pytest.mark.parametrize("packing", ["gzip", "zstd"])


@PACKINGS
@pytest.mark.parametrize("fault", RECOVERED.values(), ids=RECOVERED)
def test_fault_that_passes_is_survived(proxy, packing, fault, tally):
    with remote(proxy, packing, **PATIENT) as (read, _):
        proxy.faults = [replace(fault)]
        assert read(2 * MIB, 300 * KIB) == CONTENT[2 * MIB : 2 * MIB + 300 * KIB]
        assert proxy.faults[0].times == 0
        tally("remote faults survived by the read of a layer that met them", 1)


@PACKINGS
@pytest.mark.parametrize(("fault", "error"), REFUSED.values(), ids=REFUSED)
def test_fault_that_stays_is_told_and_forgotten(proxy, packing, fault, error, tally):
    with remote(proxy, packing, **HASTY) as (read, _):
        proxy.faults = [replace(fault)]
        with pytest.raises(error) as caught:
            read(2 * MIB, 10)
        assert str(caught.value)
        assert len(proxy.requests) < 50
        proxy.faults = []
        assert soon(read) == CONTENT, "after the fault it works again"
        tally("remote faults that ended reads of a layer in time, and then were over", 1)


ALL_PACKINGS = pytest.mark.parametrize("packing", ["gzip", "zstd", "frames", "tar"])


@ALL_PACKINGS
def test_mirror_that_lies_is_gone_round(server, packing, tmp_path):
    with fault_proxy(server.host) as mirror, fault_proxy(server.host) as origin:
        mirrors = (f"http://{mirror.host}",)
        with remote(origin, packing, mirrors=mirrors) as (read, image):
            mirror.faults = [Fault(times=None, change=other_bytes)]
            assert read(MIB, 600 * KIB) == CONTENT[MIB : MIB + 600 * KIB]
            assert image.remote.state().counts.bad


@ALL_PACKINGS
def test_changed_layer_is_refused_and_read_again_when_it_is_mended(proxy, packing):
    with remote(proxy, packing) as (read, _):
        proxy.faults = [Fault(times=None, change=bytes_here_and_there)]
        with pytest.raises(DigestMismatch):
            read(2 * MIB, 600 * KIB)
        proxy.faults = []
        assert read() == CONTENT


@ALL_PACKINGS
def test_what_is_before_the_damage_is_read(proxy, packing):
    """Noise does not compress: where a byte is in the layer, it is in the tar, but for a few headers."""
    damaged = 1600 * KIB, 1760 * KIB  # long enough for a header of a block to be in it

    def change(status, headers, body):
        start = next(
            int(value[6:].partition("-")[0]) for name, value in headers.items() if name == "Content-Range"
        )
        first, last = (max(0, min(len(body), place - start)) for place in damaged)
        body = body[:first] + bytes(last - first) + body[last:]
        return status, headers, body

    with remote(proxy, packing, threads=False) as (_, image):
        proxy.faults = [Fault(times=None, change=change)]
        layer = image.remote.files[1]
        wanted = [index for index in range(len(layer.places)) if MIB <= layer.places[index].offset < 2 * MIB]
        with pytest.raises(DigestMismatch):
            layer.fetch(wanted)
        bad = layer.missing(wanted)
        assert bad
        assert all(layer.places[index].end > damaged[0] - 128 * KIB for index in bad)


def bytes_here_and_there(status, headers, body):
    """Of one alone nobody hears when it is in front of what is wanted: noise is stored in blocks."""
    changed = bytearray(body)
    for place in range(0, len(body), 10_000):
        changed[place] ^= 1
    return status, headers, bytes(changed)


@ALL_PACKINGS
def test_front_to_back_a_layer_is_moved_once(proxy, packing, tmp_path):
    with remote(proxy, packing, cache_folder=tmp_path / "cache") as (read, image):
        proxy.moved_bytes = 0
        for offset in range(0, SIZE, 256 * KIB):
            assert read(offset, 256 * KIB) == CONTENT[offset : offset + 256 * KIB]
        assert proxy.moved_bytes < 1.1 * SIZE
        assert len(proxy.ranges) < 12
        counts = image.remote.state().counts
        assert counts.fetched_bytes >= proxy.moved_bytes - 64 * KIB * counts.requests
        assert counts.ahead
    with remote(proxy, packing, cache_folder=tmp_path / "cache") as (read, image):
        assert read() == CONTENT
        assert not proxy.ranges, "the second mount of the node moves nothing"
        assert image.remote.state().cache.hits


@ALL_PACKINGS
def test_back_to_front_a_layer_is_moved_a_few_times(proxy, packing):
    with remote(proxy, packing, threads=False) as (read, _):
        proxy.moved_bytes = 0
        for offset in range(SIZE - 512 * KIB, 0, -512 * KIB):
            assert read(offset, 512 * KIB) == CONTENT[offset : offset + 512 * KIB]
        # a layer of one zstd frame has no place to start from but its beginning
        assert proxy.moved_bytes < (4 if packing == "zstd" else 1.5) * SIZE


@ALL_PACKINGS
def test_readers_at_once_share_what_is_moved(proxy, packing, tally):
    with remote(proxy, packing) as (read, _):
        proxy.moved_bytes = 0
        offsets = [number * 256 * KIB for number in range(12)]
        random.Random(7).shuffle(offsets)
        with ThreadPoolExecutor(12) as pool:
            found = pool.map(lambda offset: read(offset, 256 * KIB), offsets)
            assert list(found) == [CONTENT[offset : offset + 256 * KIB] for offset in offsets]
        assert proxy.moved_bytes < 4 * SIZE
        tally("readers of one layer at once", 12)


@ALL_PACKINGS
def test_whole_layer_is_here_before_the_first_read(proxy, packing, tmp_path):
    with remote(proxy, packing, threads=False, cache_folder=tmp_path / "cache") as (read, image):
        image.remote.start([], Prefetch.WHOLE)
        proxy.requests.clear()
        assert read() == CONTENT
        assert not proxy.requests
        state = image.remote.state()
        assert state.prefetched_bytes == state.prefetch_bytes > SIZE
