"""Reads of an image in a bucket of a real S3 server while its network fails in every way that we know."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.faults import RECOVERED, REFUSED
from support.images import KEY, build
from support.layout_servers import S3_LOGIN, s3_server, upload
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import StoreError, StoreUnavailable
from rafsfs.format.erofs import FileType
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB
from rafsfs.store.reference import parse_reference
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

NOT_SEEN = {"other range", "no range"}
"""What an answer's headers say: obstore does not show them, and digests tell whether the bytes are right."""


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as found:
        yield found.removeprefix("http://")


@pytest.fixture(scope="module")
def image(tmp_path_factory, endpoint):
    folder = tmp_path_factory.mktemp("image")
    return upload(
        build(PlannedSource(PLAN), folder, "v1", chunk_size=CHUNK), f"http://{endpoint}", "some/where"
    )


@pytest.fixture
def proxy(endpoint, monkeypatch):
    with fault_proxy(endpoint) as found:
        for name, value in (S3_LOGIN | {"AWS_ENDPOINT_URL": f"http://{found.host}"}).items():
            monkeypatch.setenv(name, value)
        yield found


@contextmanager
def remote(image, proxy):
    """Open the image behind the proxy; gives a function that reads."""
    keys = KeyRing(symmetric=(KEY,))
    with open_sealed(parse_reference(image), keys, TrustPolicy(), cache_bytes=0, stores=SETTINGS) as opened:
        filesystem = opened.filesystem
        nid = filesystem.lookup(filesystem.root, b"file")

        def read(offset=0, size=SIZE):
            return b"".join(filesystem.read(nid, offset, size))

        read(0, 1)  # all metadata are here now
        proxy.requests.clear()
        yield read


@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in RECOVERED.items()])
def test_fault_that_passes_is_survived(image, proxy, fault, tally):
    with remote(image, proxy) as read:
        proxy.faults = [replace(fault)]
        assert read(5 * CHUNK, CHUNK) == CONTENT[5 * CHUNK : 6 * CHUNK]
        assert proxy.faults[0].times == 0
        tally("faults of a bucket survived by the read that met them", 1)


@pytest.mark.parametrize(
    ("fault", "error"),
    [pytest.param(*case, id=name) for name, case in REFUSED.items() if name not in NOT_SEEN],
)
def test_fault_that_stays_is_told_and_forgotten(image, proxy, fault, error, tally):
    with remote(image, proxy) as read:
        proxy.faults = [replace(fault)]
        with pytest.raises(error):
            read(5 * CHUNK, CHUNK)
        proxy.faults = []
        assert read() == CONTENT
        tally("faults of a bucket that ended in an error in time, and then were over", 1)


def test_body_that_breaks_off_is_gone_on_with(image, proxy):
    with remote(image, proxy) as read:
        proxy.faults = [Fault(body_bytes=30_000)]
        read(5 * CHUNK, CHUNK)
        first, second = (int(text[6:].partition("-")[0]) for text in proxy.ranges)
        assert second == first + 30_000


def test_server_without_ranges_is_told_from_one_that_is_away(image, proxy):
    def whole(_status, headers, body):
        return 200, {name: value for name, value in headers.items() if "range" not in name.lower()}, body

    with remote(image, proxy) as read:
        proxy.faults = [Fault(change=whole, times=None)]
        with pytest.raises(StoreError, match="gives no ranges") as caught:
            read(5 * CHUNK, CHUNK)
        assert not isinstance(caught.value, StoreUnavailable)
        assert len(proxy.requests) == 1
