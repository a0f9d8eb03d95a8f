"""Several ways to one registry: mirrors and proxies that lie, are slow or stall keep nobody from reading."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.images import KEY, build
from support.registries import registry
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import DigestMismatch, StoreUnavailable, WrongKey
from rafsfs.format.erofs import FileType
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB, STORE_RATE_MIN_BYTES_PER_S
from rafsfs.store import registry_endpoints
from rafsfs.store.http import Http
from rafsfs.store.reference import RegistryReference
from rafsfs.store.registry_auth import Authenticator
from rafsfs.store.registry_endpoints import Endpoints
from rafsfs.store.retry import Deadline, Share, TryAgain
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import find_stored
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy

CHUNK = 64 * KIB
SIZE = 20 * CHUNK
PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(SIZE, 1),)),
)
CONTENT = Segment(SIZE, 1).plain()
QUICK = StoreSettings(deadline_s=5.0, stall_s=0.5, attempts=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    image = build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), "v1", chunk_size=CHUNK)
    with registry(tmp_path_factory.mktemp("registry")) as found:
        found.push(image, "t/a", "v1")
        yield found


@pytest.fixture
def mirror(server):
    with fault_proxy(server.host) as found:
        yield found


@pytest.fixture
def origin(server):
    with fault_proxy(server.host) as found:
        yield found


@contextmanager
def opened(reference, settings, *, threads=False):
    keys = KeyRing(symmetric=(KEY,))
    with open_sealed(reference, keys, TrustPolicy(), cache_bytes=0, stores=settings) as image:
        if threads:
            image.remote.start([])
        yield image


def content(image, offset=0, size=SIZE):
    filesystem = image.filesystem
    nid = filesystem.lookup(filesystem.root, b"file")
    return b"".join(filesystem.read(nid, offset, size))


def mirrored(mirror, **settings):
    return replace(QUICK, mirrors=(f"http://{mirror.host}",), **settings)


def zeros(status, headers, body):
    return status, headers, bytes(len(body))


def other_digest(status, headers, body):
    """Another manifest that is one, too."""
    return status, headers, body.replace(b'"sha256:', b'"sha256:0', 1)


# --- Lies ---------------------------------------------------------------------------------------------------

MANIFESTS = {
    "no JSON": zeros,
    "another manifest": other_digest,
    "a page of a portal": lambda *_: (200, {"Content-Type": "text/html"}, b"<html>log in</html>"),
}


@pytest.mark.parametrize("pinned", [False, True], ids=["tag", "digest"])
@pytest.mark.parametrize("lie", MANIFESTS.values(), ids=MANIFESTS)
def test_mirror_that_lies_of_the_manifest(server, mirror, origin, lie, pinned):
    reference = RegistryReference(origin.host, "t/a", "v1")
    if pinned:
        stored = find_stored(server.reference("t/a", "v1"))
        stored.store.close()
        reference = reference.pinned(stored.manifest_digest)
    mirror.faults = [Fault(applies=lambda _: True, times=None, change=lie)]
    with opened(reference, mirrored(mirror)) as image:
        assert content(image) == CONTENT
    assert len(mirror.requests) == 1, "it is left alone"


def test_registry_that_lies_is_told(origin):
    origin.faults = [Fault(applies=lambda _: True, times=None, change=other_digest)]
    with pytest.raises(DigestMismatch, match=r"manifest is not the one"):
        find_stored(RegistryReference(origin.host, "t/a", "v1"), QUICK)
    assert len(origin.requests) == 1, "nobody else is there to ask"


def test_mirror_that_lies_of_the_bootstrap_s_head(mirror, origin):
    mirror.faults = [Fault(times=None, change=zeros)]
    with opened(RegistryReference(origin.host, "t/a", "v1"), mirrored(mirror)) as image:
        assert content(image) == CONTENT
    assert len(mirror.ranges) == 1, "it is left alone"


def test_wrong_key_is_told_whoever_has_the_image(mirror, origin):
    """The head is asked for again; that it is the same, or cannot be had, says nothing else."""
    for faults in ([], [Fault(applies=lambda _: True, times=None, status=404)]):
        origin.faults = faults
        with pytest.raises(WrongKey):
            open_sealed(
                RegistryReference(origin.host, "t/a", "v1"),
                KeyRing(),
                TrustPolicy(),
                stores=mirrored(mirror),
            )
        assert len(origin.ranges) == 1
        origin.requests.clear()


def test_mirror_that_lies_of_chunks_is_asked_once(mirror, origin, caplog):
    with opened(RegistryReference(origin.host, "t/a", "v1"), mirrored(mirror)) as image:
        content(image, 0, 1)
        mirror.requests.clear()
        mirror.faults = [Fault(times=None, change=zeros)]
        for offset in range(0, SIZE, CHUNK):
            assert content(image, offset, CHUNK) == CONTENT[offset : offset + CHUNK]
    assert len(mirror.requests) == 1
    assert [record.message for record in caplog.records if "is not asked" in record.message] == [
        f"http://{mirror.host} is not asked for 60 s"
    ]


def test_storage_that_lies_is_told_apart_from_the_mirror_s_other_answers(server, mirror, origin):
    """The mirror redirects to what lies: neither is asked again."""
    with (
        fault_proxy(server.host) as storage,
        opened(RegistryReference(origin.host, "t/a", "v1"), mirrored(mirror)) as image,
    ):
        content(image, 0, 1)

        def away(*_):
            return 307, {"Location": f"http://{storage.host}{mirror.requests[-1].path}"}, b""

        mirror.faults = [Fault(times=None, change=away)]
        assert content(image, CHUNK, CHUNK) == CONTENT[CHUNK : 2 * CHUNK]
        count = len(storage.requests)
        assert count and not origin.ranges
        storage.faults = [Fault(times=None, change=zeros)]
        for offset in range(2 * CHUNK, SIZE, CHUNK):
            assert content(image, offset, CHUNK) == CONTENT[offset : offset + CHUNK]
        assert len(storage.requests) == count + 1


# --- Slowness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "alone"])
@pytest.mark.parametrize("kind", ["mirror", "proxy", "storage"])
def test_who_drips_leaves_time_for_the_next(server, mirror, origin, kind, threads):
    drip = Fault(drip_s=0.3, times=None)
    if kind == "proxy":
        reference, settings = server.reference("t/a", "v1"), replace(QUICK, proxy=f"http://{mirror.host}")
    else:
        reference, settings = RegistryReference(origin.host, "t/a", "v1"), mirrored(mirror)
    with fault_proxy(server.host) as storage, opened(reference, settings, threads=threads) as image:
        content(image, 0, 1)
        if kind == "storage":
            away = {"Location": f"http://{storage.host}/v2/"}
            mirror.faults, storage.faults = [Fault(times=None, status=307, headers=away)], [drip]
            drip.applies = lambda _: True
        else:
            mirror.faults = [drip]
        assert content(image, 5 * CHUNK, 2 * CHUNK) == CONTENT[5 * CHUNK : 7 * CHUNK]
        assert (storage if kind == "storage" else mirror).requests


def test_share_of_a_deadline_grows_with_what_comes():
    whole = Deadline(1000)
    share = Share(whole, 10)
    assert share.left_s() <= 10
    share.came(1)
    assert share.left_s() <= 10.1
    share.came(500 * STORE_RATE_MIN_BYTES_PER_S)
    assert 400 < share.left_s() <= 510.1
    share.came(5000 * STORE_RATE_MIN_BYTES_PER_S)
    assert share.left_s() <= 1000
    assert Share(Deadline(4), 10).left_s() <= 2


def test_pause_grows_until_there_is_a_real_answer(mirror, origin, monkeypatch, caplog):
    """Answering probes is none."""
    monkeypatch.setattr(registry_endpoints, "_DOWN_FIRST_S", 1e-6)
    pauses = []
    with opened(RegistryReference(origin.host, "t/a", "v1"), mirrored(mirror)) as image:
        for status in (500, 500, 500, None, 500, 404, 500):
            caplog.clear()
            mirror.requests.clear()
            mirror.faults = [Fault(times=None, status=status)] if status else []
            offset = len(pauses) * CHUNK
            assert content(image, offset, CHUNK) == CONTENT[offset : offset + CHUNK]
            assert mirror.ranges
            pauses.append([float(record.args[1]) for record in caplog.records if "not asked" in record.msg])
    assert pauses == [[1e-6], [2e-6], [4e-6], [], [1e-6], [], [1e-6]]


# --- The environment's proxy --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_firewalled", [False, True], ids=["open", "firewall"])
def test_proxy_of_the_environment_that_lies_is_gone_round_if_it_can_be(
    server, mirror, monkeypatch, is_firewalled
):
    """Behind a firewall it is the only way: then it is asked again, for what is in no cache."""
    known, (host, port) = socket.getaddrinfo, server.host.split(":")

    def names(name, *rest, **more):
        if name == "registry.test":
            if is_firewalled and threading.current_thread() is threading.main_thread():
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            name = host
        return known(name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setenv("http_proxy", f"http://{mirror.host}")
    reference = RegistryReference(f"registry.test:{port}", "t/a", "v1")
    with opened(reference, replace(QUICK, plain_http=True)) as image:
        content(image, 0, 1)
        mirror.requests.clear()
        mirror.faults = [Fault(times=1, change=zeros)]
        assert content(image, CHUNK, CHUNK) == CONTENT[CHUNK : 2 * CHUNK]
        asked = [request.headers.get("cache-control") for request in mirror.requests]
        assert asked == ([None, "no-cache"] if is_firewalled else [None])


def test_ways_past_the_environment_s_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    ways = Endpoints(Http(replace(QUICK, plain_http=True)), "registry.test", "t/a", "pull")
    assert [way.direct for way in ways.usable(Deadline(1))] == [False]
    assert [way.direct for way in ways.usable(Deadline(1), origin_only=True)] == [True, False]
    local = Endpoints(Http(QUICK), "127.0.0.1:1", "t/a", "pull")
    assert [way.base for way in local.usable(Deadline(1), origin_only=True)] == ["http://127.0.0.1:1"]


# --- Tokens -------------------------------------------------------------------------------------------------


def test_who_waits_for_a_token_too_long_may_come_again(mirror):
    arrived, release = threading.Event(), threading.Event()
    mirror.token = "t"
    mirror.faults = [Fault(applies=lambda _: (arrived.set(), release.wait(30), False)[-1])]
    challenge = f'Bearer realm="http://{mirror.host}/token"'
    http = Http(StoreSettings())
    authenticator = Authenticator(http, lambda: None, "repository:a:pull")
    with closing(http), ThreadPoolExecutor(1) as pool:
        first = pool.submit(authenticator.renew, challenge, None, Deadline(30))
        assert arrived.wait(30)
        with pytest.raises(TryAgain) as caught:
            authenticator.renew(challenge, None, Deadline(0.01))
        release.set()
        assert first.result(30) == "Bearer t"
    assert isinstance(caught.value.error, StoreUnavailable)
