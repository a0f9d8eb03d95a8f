"""Reads of an image in a real registry while its network fails in every way that we know.

A read succeeds, or fails by its deadline with the reason; after the fault it works again without opening the
image anew; nothing but what was sealed is served or kept.
"""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from blake3 import blake3
from support.fault_proxy import Fault, fault_proxy
from support.faults import PATIENT, RECOVERED, REFUSED, other_bytes, soon
from support.images import KEY, build
from support.mounts import flip
from support.registries import registry
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import DigestMismatch, StoreError
from rafsfs.format.erofs import FileType
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB, MIB
from rafsfs.reading import fetching, prefetching
from rafsfs.reading.prefetching import Prefetch
from rafsfs.store.oci_layout import find_image
from rafsfs.store.reference import RegistryReference
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy

CHUNK = 64 * KIB
SIZE = 10 * CHUNK
PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(SIZE, 1),)),
)
CONTENT = Segment(SIZE, 1).plain()
SETTINGS = StoreSettings(deadline_s=3.0, stall_s=0.3, attempts=3)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), "v1", chunk_size=CHUNK)


@pytest.fixture(scope="module")
def server(tmp_path_factory, image):
    with registry(tmp_path_factory.mktemp("registry")) as found:
        found.push(image, "t/a", "v1")
        yield found


@pytest.fixture
def proxy(server):
    with fault_proxy(server.host) as found:
        yield found


@pytest.fixture(autouse=True)
def no_guesses(monkeypatch):
    """A fault is to meet the chunks that are asked for, and no other."""
    monkeypatch.setattr(fetching, "GUESS_BYTES", 0)


@contextmanager
def remote(proxy, *, threads=True, **settings):
    """Open the image behind the proxy; gives a function that reads, and the image."""
    reference = RegistryReference(proxy.host, "t/a", "v1")
    keys = KeyRing(symmetric=(KEY,))
    settings = replace(SETTINGS, **settings)
    # without memory for verified bytes: every read asks for the stored ones
    with open_sealed(reference, keys, TrustPolicy(), cache_bytes=0, stores=settings) as image:
        if threads:
            image.remote.start([])
        filesystem = image.filesystem
        nid = filesystem.lookup(filesystem.root, b"file")
        filesystem.attributes(nid)

        def read(offset=0, size=SIZE):
            return b"".join(filesystem.read(nid, offset, size))

        read(0, 1)  # all metadata are here now
        proxy.requests.clear()
        yield read, image


def again(fault):
    return replace(fault)


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "alone"])
@pytest.mark.parametrize("fault", RECOVERED.values(), ids=RECOVERED)
def test_fault_that_passes_is_survived(proxy, fault, threads, tally):
    with remote(proxy, threads=threads, **PATIENT) as (read, _):
        proxy.faults = [again(fault)]
        assert read() == CONTENT
        assert proxy.faults[0].times == 0
        tally("remote faults survived by the read that met them", 1)


@pytest.mark.parametrize(("fault", "error"), REFUSED.values(), ids=REFUSED)
def test_fault_that_stays_is_told_and_forgotten(proxy, tmp_path, fault, error, tally):
    with remote(proxy, cache_folder=tmp_path / "cache") as (read, image):
        proxy.faults = [again(fault)]
        with pytest.raises(error) as caught:
            read(5 * CHUNK, CHUNK)
        assert str(caught.value)
        proxy.faults = []
        assert soon(read) == CONTENT, "after the fault it works again"
        assert_only_sealed(image, tmp_path / "cache")
        tally("remote faults that ended in an error in time, and then were over", 1)


def assert_only_sealed(image, folder):
    """Whatever is in the cache is what its name says."""
    found = [path for path in (folder / "v1").rglob("*") if path.is_file()]
    assert found
    for path in found:
        assert blake3(path.read_bytes()).digest().hex() == path.parent.name + path.name


def test_proxy_that_lies_is_gone_round(server, tmp_path):
    """A mirror changes every chunk, the origin does not."""
    with fault_proxy(server.host) as mirror, fault_proxy(server.host) as origin:
        mirrors = (f"http://{mirror.host}",)
        with remote(origin, mirrors=mirrors, **PATIENT, cache_folder=tmp_path / "cache") as (read, image):
            mirror.faults = [Fault(times=None, change=other_bytes)]
            assert read() == CONTENT
            assert image.remote.state().counts.bad
            assert_only_sealed(image, tmp_path / "cache")


def test_blob_changed_between_two_requests(image, tmp_path):
    with registry(tmp_path / "registry") as server:
        server.push(image, "t/a", "v1")
        blob = server.blob_file(find_image(image).manifest.blobs[0].digest)
        with fault_proxy(server.host) as proxy, remote(proxy) as (read, _):
            assert read(0, CHUNK) == CONTENT[:CHUNK]
            flip(blob, 5 * CHUNK + 100)
            with pytest.raises(DigestMismatch, match=r"not what was sealed"):
                read()
            flip(blob, 5 * CHUNK + 100)
            assert read() == CONTENT


def test_token_expires_in_the_middle_and_is_renewed_once_for_all(proxy, tally):
    proxy.token = "first"
    with remote(proxy) as (read, _):
        given = proxy.tokens_given
        proxy.token = "second"
        barrier = threading.Barrier(6)

        def work(number):
            barrier.wait(30)
            return read(number * CHUNK, CHUNK) == CONTENT[number * CHUNK : (number + 1) * CHUNK]

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(work, range(2, 8)))
        assert proxy.tokens_given == given + 1
        tally("readers that shared one new token", 6)


def test_name_that_is_not_known_and_then_is(server, monkeypatch):
    import socket

    known = socket.getaddrinfo
    host, port = server.host.split(":")
    reference = RegistryReference(f"registry.test:{port}", "t/a", "v1")
    settings = replace(SETTINGS, plain_http=True)
    monkeypatch.setattr(socket, "getaddrinfo", _no_names)
    with pytest.raises(StoreError, match=r"cannot be reached.*[Nn]ame"):
        open_sealed(reference, KeyRing(symmetric=(KEY,)), TrustPolicy(), stores=settings)
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **more: known(host, *rest, **more))
    with open_sealed(reference, KeyRing(symmetric=(KEY,)), TrustPolicy(), stores=settings) as image:
        monkeypatch.setattr(socket, "getaddrinfo", _no_names)
        filesystem = image.filesystem
        nid = filesystem.lookup(filesystem.root, b"file")
        assert b"".join(filesystem.read(nid, 0, SIZE)) == CONTENT, "connections that stand are used"


def _no_names(*_, **__):
    import socket

    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


# --- The node cache under way -------------------------------------------------------------------------------


def test_second_image_fetches_nothing(proxy, tmp_path):
    for number in range(2):
        with remote(proxy, cache_folder=tmp_path / "cache") as (read, _):
            assert read() == CONTENT
            assert bool(proxy.ranges) == (number == 0)


@pytest.mark.parametrize("what", ["corrupted", "deleted", "swapped"])
def test_cache_that_is_damaged_under_way(proxy, tmp_path, what):
    folder = tmp_path / "cache"
    with remote(proxy, cache_folder=folder) as (read, _):
        assert read() == CONTENT
    with remote(proxy, cache_folder=folder) as (read, image):
        files = [path for path in (folder / "v1").rglob("*") if path.is_file()]
        if what == "deleted":
            subprocess.run(["rm", "-r", folder], check=True)
        for path, other in zip(files, files[1:] + files[:1], strict=True):
            if what == "corrupted":
                path.write_bytes(b"x" * path.stat().st_size)
            elif what == "swapped":
                path.write_bytes(other.read_bytes())
        assert read() == CONTENT
        assert proxy.ranges
        assert_only_sealed(image, folder)


def test_cache_that_cannot_be_written(proxy, tmp_path):
    (tmp_path / "file").write_text("x")
    with remote(proxy, cache_folder=tmp_path / "file") as (read, image):
        assert read() == CONTENT
        assert image.remote.state().cache.not_stored


# --- Few requests -------------------------------------------------------------------------------------------


def test_who_reads_on_gets_larger_and_larger_parts(proxy, tmp_path):
    with remote(proxy, cache_folder=tmp_path / "cache") as (read, image):
        for number in range(10):
            assert read(number * CHUNK, CHUNK) == CONTENT[number * CHUNK : (number + 1) * CHUNK]
        assert len(proxy.ranges) <= 4
        assert image.remote.state().counts.ahead >= 6


def chunks_asked_for(proxy):
    """How many chunks each request was for, guessed ones among them."""
    ranges = (text[6:].split("-") for text in proxy.ranges)
    return [(int(end) - int(start) + 1) // CHUNK for start, end in ranges]


def test_who_jumps_gets_what_follows_while_that_is_right(proxy, tmp_path, monkeypatch):
    """Chunk 0 was read before, and nothing of what followed; there is credit for one more guess."""
    monkeypatch.setattr(fetching, "GUESS_BYTES", 3 * CHUNK + KIB)
    monkeypatch.setattr(fetching, "GUESS_CREDIT", 7 * CHUNK)
    with remote(proxy, cache_folder=tmp_path / "cache") as (read, _):
        soon(lambda: read(5 * CHUNK, 1))
        assert sum(chunks_asked_for(proxy)) == 4
        read(9 * CHUNK, 1)
        assert sum(chunks_asked_for(proxy)) == 5, "its credit is used up"
        proxy.requests.clear()
        assert read(7 * CHUNK, 1) == CONTENT[7 * CHUNK : 7 * CHUNK + 1]
        assert chunks_asked_for(proxy) == [], "a right guess"


def test_who_jumps_gets_no_more_than_he_asks_for_without_credit(proxy, tmp_path):
    with remote(proxy, cache_folder=tmp_path / "cache") as (read, _):
        for number in (8, 3, 6):
            read(number * CHUNK, 1)
        assert chunks_asked_for(proxy) == [1, 1, 1]


def test_readers_of_one_chunk_share_a_request(proxy):
    with remote(proxy) as (_, image):
        release = threading.Event()
        proxy.faults = [Fault(change=lambda *answer: (release.wait(30), answer)[1])]
        with ThreadPoolExecutor(4) as pool:
            fetched = image.remote.files[1]
            place = fetched.places[7]
            futures = [pool.submit(fetched.read_range, place.offset, place.length) for _ in range(4)]
            release.set()
            found = {bytes(future.result(30)) for future in futures}
        assert [blake3(data).digest() for data in found] == [place.chunk_id]
        assert len(proxy.ranges) == 1
        assert image.remote.state().counts.joined + image.remote.state().counts.cached >= 3


def test_adjacent_chunks_come_with_one_request(proxy):
    with remote(proxy) as (_, image):
        file = image.remote.files[1]
        first, last = file.places[3], file.places[6]
        data = file.read_range(first.offset, last.end - first.offset)
        assert blake3(data[: first.length]).digest() == first.chunk_id
        assert len(proxy.ranges) == 1


def test_whole_image_is_here_before_the_first_read(proxy, tmp_path):
    with remote(proxy, threads=False, cache_folder=tmp_path / "cache") as (read, image):
        image.remote.start([], Prefetch.WHOLE)
        proxy.requests.clear()
        assert read() == CONTENT
        assert not proxy.requests
        state = image.remote.state()
        assert state.prefetched_bytes == state.prefetch_bytes > SIZE
    with remote(proxy, threads=False) as (_, image), pytest.raises(StoreError, match=r"there is none"):
        image.remote.start([], Prefetch.WHOLE)


@pytest.mark.parametrize("status", [403, 404, 418, 503])
def test_prefetching_goes_on_after_a_failure(proxy, tmp_path, monkeypatch, status):
    monkeypatch.setattr(prefetching, "_AGAIN_S", 0.01)
    with remote(proxy, threads=False, cache_folder=tmp_path / "cache") as (read, image):
        proxy.faults = [Fault(status=status, times=4)]  # more than one request's attempts
        image.remote.start([], Prefetch.ALL)
        assert image.remote.prefetcher.ended.wait(30)
        assert proxy.faults[0].times == 0
        proxy.requests.clear()
        assert read() == CONTENT
        assert not proxy.ranges


@pytest.mark.parametrize("is_small", [True, False])
def test_list_brings_the_metadata_along_where_they_are_small(server, tmp_path, monkeypatch, is_small):
    """Names are in there, and the smallest files, which no list can name."""
    if not is_small:
        monkeypatch.setattr(prefetching, "PAGES_BYTES_MAX", 256 * KIB)
    names = (b"%04d" % number for number in range(1000))
    tiny = (Planned(name, FileType.REGULAR, segments=(Segment(1000, int(name)),)) for name in names)
    source = PlannedSource((*PLAN, *tiny))
    server.push(build(source, tmp_path / "image", "small", chunk_size=CHUNK), "t/a", "small")
    settings = replace(SETTINGS, cache_folder=tmp_path / "cache")
    reference, keys = RegistryReference(server.host, "t/a", "small"), KeyRing(symmetric=(KEY,))
    with open_sealed(reference, keys, TrustPolicy(), cache_bytes=0, stores=settings) as image:
        bootstrap, blob = image.remote.files
        image.remote.start([PrefetchRun(0, 2, 1)], Prefetch.LIST)
        assert image.remote.prefetcher.ended.wait(30)
        assert blob.missing(range(2, 3)) == []
        missing = bootstrap.missing(range(len(bootstrap.places)))
        assert bool(missing) is not is_small
        state = image.remote.state()
        assert state.prefetched_bytes == state.prefetch_bytes


def test_prefetching_leaves_out_what_was_tampered_with(image, tmp_path):
    with registry(tmp_path / "registry") as changed:
        changed.push(image, "t/a", "v1")
        flip(changed.blob_file(find_image(image).manifest.blobs[0].digest), 5 * CHUNK + 100)
        folder = tmp_path / "cache"
        with (
            fault_proxy(changed.host) as proxy,
            remote(proxy, threads=False, cache_folder=folder) as (_, image),
        ):
            image.remote.start([], Prefetch.ALL)
            assert image.remote.prefetcher.ended.wait(30)
            blob = image.remote.files[1]
            assert blob.missing(range(len(blob.places))) == [5]
            state = image.remote.state()
            assert state.prefetched_bytes == state.prefetch_bytes


def test_prefetching_gives_way_and_ends(proxy, tmp_path):
    with remote(proxy, threads=False, cache_folder=tmp_path / "cache") as (read, image):
        image.remote.start([PrefetchRun(0, 4, 3)], Prefetch.LIST, 64 * MIB)
        prefetcher = image.remote.prefetcher
        assert prefetcher.ended.wait(30)
        listed = image.remote.files[1]
        assert listed.missing(range(4, 7)) == []
        proxy.requests.clear()
        assert read(4 * CHUNK, 3 * CHUNK) == CONTENT[4 * CHUNK : 7 * CHUNK]
        starts = [int(text[6:].partition("-")[0]) for text in proxy.ranges]
        assert all(start >= listed.places[7].offset for start in starts), "more than what reading on asks for"
