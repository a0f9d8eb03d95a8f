"""URLs of servers: what of them is shown, and which are refused; no secret in any error or log."""

import logging
import re

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.images import KEY, build
from support.registries import registry
from support.trees import Planned, PlannedSource, Segment

from rafsfs.cli.exit_codes import run
from rafsfs.cli.main import command
from rafsfs.errors import RafsError, StoreError
from rafsfs.format.erofs import FileType
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB
from rafsfs.store.http import Http
from rafsfs.store.reference import RegistryReference
from rafsfs.store.retry import Deadline
from rafsfs.store.settings import StoreSettings
from rafsfs.store.urls import check_server, shown
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy

SIZE = 300 * KIB
PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(SIZE, 1),)),
)


def inspect(*words):
    return run(lambda: command.main(["inspect", *words], prog_name="rafsfs", standalone_mode=False))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://host:1/a/b", "https://host:1/a/b"),
        ("https://host/a?X-Amz-Signature=SECRET", "https://host/a"),
        ("https://host/a#SECRET", "https://host/a"),
        ("https://carol:SECRET@host/a", "https://host/a"),
        ("https://carol:SEC/RET@host/a", "https://host/a"),
        ("https://carol:SEC//RET@host/a", "https://host/a"),
        ("https://carol:SEC@RET@host/a", "https://host/a"),
        ("//carol:SECRET@host", "//host"),
        ("carol:SECRET@host", "host"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_url(url, text):
    assert shown(url) == text


@pytest.mark.parametrize("url", ["http://host", "https://host:1/", "https://[::1]:1", "https://host/a/b"])
def test_servers(url):
    check_server(url)


NO_SERVERS = [
    *("", "foo", "foo:1", "//foo", "http://", "http://[", "http:///a", "http://:1", "http://host:99999"),
    *("socks5://host:1", "ftp://host", "http://a..b", f"http://{'a' * 70}.example", "http://h\u00e4st"),
    *("http://host?SECRET", "http://host/a#SECRET", "http://carol:SECRET@host", "http://carol@host:1"),
    *("http://ho st", "http://host\n"),
]


@pytest.mark.parametrize("url", NO_SERVERS)
def test_what_is_no_server_is_refused_without_showing_it(url, capsys):
    with pytest.raises(ValueError, match=r"\w") as refused:
        check_server(url)
    assert "SECRET" not in str(refused.value)
    for settings in (StoreSettings(mirrors=(url,)), StoreSettings(proxy=url)):
        with pytest.raises(StoreError, match=r"cannot be used") as caught:
            Http(settings)
        assert "SECRET" not in str(caught.value)
    for option in ("--mirror", "--proxy"):
        assert inspect("docker://127.0.0.1:9/a", option, url) == 2
        said = capsys.readouterr().err
        assert option in said and "SECRET" not in said and len(said.splitlines()) == 1


def test_login_of_a_proxy_may_be_in_the_environment():
    check_server("http://carol:SECRET@proxy:1", login=True)


@pytest.mark.parametrize("proxy", ["socks5://carol:SECRET@host:1", "http://carol:SECRET@[", "http://a..b"])
def test_proxy_of_the_environment_that_is_none(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    http = Http(StoreSettings(plain_http=True))
    with (
        pytest.raises(StoreError, match=r"http_proxy in the environment cannot be used") as caught,
        http.request("GET", "http://host.invalid/", Deadline(1)),
    ):
        pass
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 70}.example"])
def test_names_of_hosts_that_are_none(host, capsys):
    assert inspect(f"docker://{host}/x/y") == 7
    assert "the name of a host is none" in capsys.readouterr().err


# --- Redirects to signed URLs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    image = build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), "v1")
    with registry(tmp_path_factory.mktemp("registry")) as found:
        found.push(image, "t/a", "v1")
        yield found


def at_storage(**how):
    return [Fault(applies=lambda request: "storage" in request.path, times=None, **how)]


STORAGE_FAULTS = {
    "404": at_storage(status=404),
    "403": at_storage(status=403),
    "416": at_storage(status=416),
    "418": at_storage(status=418),
    "500": at_storage(status=500),
    "another range": at_storage(status=206, body=b"x", headers={"Content-Range": "bytes 0-0/1"}),
    "another length": at_storage(status=200, body=b"x"),
    "breaks off": at_storage(body_bytes=10),
    "hangs up": at_storage(hang_up=True),
    "redirects to no URL": at_storage(status=307, headers={"Location": "http://[?SECRET"}),
    "redirects to no host": at_storage(status=307, headers={"Location": "https://carol:SECRET@a..b/?SECRET"}),
    "redirects to plain http": at_storage(status=307, headers={"Location": "http://h.invalid/?SECRET"}),
    "redirects to itself": at_storage(status=307, headers={"Location": "/storage?SECRET"}),
}


@pytest.mark.parametrize("faults", STORAGE_FAULTS.values(), ids=STORAGE_FAULTS)
def test_signed_url_is_in_no_error_and_no_log(server, caplog, faults):
    caplog.set_level(logging.DEBUG)
    settings = StoreSettings(deadline_s=3.0, stall_s=0.3, attempts=2)
    with fault_proxy(server.host) as storage, fault_proxy(server.host) as front:
        reference = RegistryReference(front.host, "t/a", "v1")
        away = {"Location": f"http://carol:SECRET@{storage.host}/storage?X-Amz-Signature=SECRET"}
        keys = KeyRing(symmetric=(KEY,))
        with open_sealed(reference, keys, TrustPolicy(), cache_bytes=0, stores=settings) as image:
            filesystem = image.filesystem
            nid = filesystem.lookup(filesystem.root, b"file")
            front.faults = [Fault(times=None, status=307, headers=away)]
            storage.faults = faults
            with pytest.raises(RafsError) as caught:
                b"".join(filesystem.read(nid, 0, SIZE))
            assert storage.requests
            front.faults = []
            assert len(b"".join(filesystem.read(nid, 0, SIZE))) == SIZE
    assert not re.search(r"SECRET|Signature", str(caught.value) + repr(caught.value) + caplog.text)
