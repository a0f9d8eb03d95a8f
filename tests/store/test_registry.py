"""Images in a real registry, read lazily: found, opened, every byte right; logins, tokens, TLS, mirrors."""

import base64
import json
import os
import subprocess
from contextlib import closing

import pytest
from support.fault_proxy import Fault, fault_proxy
from support.images import KEY, build
from support.registries import PASSWORD, USER, registry
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import BlobNotFound, Denied, ImageNotFound, StoreError, StoreUnavailable
from rafsfs.format.erofs import FileType
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB
from rafsfs.store.http import Http
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import RegistryReference
from rafsfs.store.registry_logins import find_login
from rafsfs.store.retry import Deadline
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import find_stored
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy

PLAN = (
    Planned(b"", FileType.DIRECTORY),
    Planned(b"file", FileType.REGULAR, segments=(Segment(700 * KIB, 1),)),
)
QUICK = StoreSettings(deadline_s=5.0, stall_s=1.0, attempts=3)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("image"), "v1")


@pytest.fixture(scope="module")
def server(tmp_path_factory, image):
    with registry(tmp_path_factory.mktemp("registry")) as found:
        found.push(image, "t/a", "v1")
        yield found


@pytest.fixture
def proxy(server):
    with fault_proxy(server.host) as found:
        yield found


def through(proxy, repository="t/a", tag="v1"):
    return RegistryReference(proxy.host, repository, tag)


def opened(reference, settings=QUICK):
    return open_sealed(reference, KeyRing(symmetric=(KEY,)), TrustPolicy(), stores=settings)


def content(image):
    filesystem = image.filesystem
    nid = filesystem.lookup(filesystem.root, b"file")
    return b"".join(filesystem.read(nid, 0, filesystem.attributes(nid).size))


@pytest.fixture(scope="module")
def expected(image):
    with open_sealed(image, KeyRing(symmetric=(KEY,)), TrustPolicy()) as local:
        return content(local)


def test_image_is_found_and_every_byte_is_right(server, image, expected):
    local = find_image(image)
    reference = server.reference("t/a", "v1")
    stored = find_stored(reference)
    assert (stored.manifest_digest, stored.manifest) == (local.manifest_digest, local.manifest)
    stored.store.close()
    for name in (reference, reference.pinned(local.manifest_digest)):
        with opened(name) as remote:
            assert content(remote) == expected


def test_files_are_read_by_ranges(server, image):
    blob = find_image(image).manifest.blobs[0]
    data = blob_path(image.folder, blob.digest).read_bytes()
    stored = find_stored(server.reference("t/a", "v1"))
    file = stored.open(blob)
    assert file.size == len(data)
    for offset, length in ((0, 0), (0, 1), (100, 1000), (len(data) - 1, 1), (0, len(data))):
        assert file.read_range(offset, length) == data[offset : offset + length]
    for offset, length in ((len(data), 1), (0, len(data) + 1)):
        with pytest.raises(StoreError, match=r"ends too early"):
            file.read_range(offset, length)
    stored.store.close()


def test_what_is_not_there_is_named(server):
    with pytest.raises(ImageNotFound, match=r"no such image in the registry"):
        find_stored(server.reference("t/a", "v2"), QUICK)
    with pytest.raises(ImageNotFound, match=r"no such image in the registry"):
        find_stored(server.reference("t/b", "v1"), QUICK)


def test_missing_blob_is_named(proxy):
    proxy.faults = [Fault(applies=lambda request: request.is_blob, times=None, status=404)]
    with pytest.raises(BlobNotFound, match=r"is not in the registry"):
        opened(through(proxy))


def test_nobody_listens():
    with pytest.raises(StoreUnavailable, match=r"cannot be reached.*tried 2 times"):
        find_stored(RegistryReference("127.0.0.1:9", "a"), StoreSettings(attempts=2))


def test_plain_http_is_for_this_machine_only(server):
    reference = RegistryReference("registry.invalid:5000", "a")
    with pytest.raises(StoreUnavailable, match=r"https://registry.invalid:5000/"):
        find_stored(reference, StoreSettings(attempts=1))
    with pytest.raises(StoreUnavailable, match=r"http://registry.invalid:5000/"):
        find_stored(reference, StoreSettings(attempts=1, plain_http=True))


def test_redirect_to_plain_http_of_another_host_is_refused(proxy):
    away = {"Location": "http://registry.invalid/x"}
    proxy.faults = [Fault(applies=lambda request: request.is_blob, status=307, headers=away)]
    with pytest.raises(StoreError, match=r"registry.invalid would be asked over plain http"):
        opened(through(proxy))


def test_redirect_loop_ends(proxy):
    around = {"Location": "/v2/t/a/manifests/v1"}
    proxy.faults = [Fault(applies=lambda request: True, times=None, status=307, headers=around)]
    with pytest.raises(StoreError, match=r"redirects on and on"):
        find_stored(through(proxy), QUICK)
    assert len(proxy.requests) == 6


# --- Logins -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, image):
    with registry(tmp_path_factory.mktemp("guarded"), login=True) as found:
        found.push(image, "t/a", "v1", f"--dest-creds={USER}:{PASSWORD}")
        yield found


def config_file(folder, host, user=USER, password=PASSWORD, **other):
    path = folder / "config.json"
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}} | other))
    return path


def test_login_out_of_docker_s_file(guarded, tmp_path, expected):
    settings = StoreSettings(docker_config=config_file(tmp_path, guarded.host))
    with opened(guarded.reference("t/a", "v1"), settings) as remote:
        assert content(remote) == expected


@pytest.mark.parametrize(
    "key",
    [
        *("HOST", "http://HOST", "https://HOST", "https://HOST/", "https://HOST/v1/", "https://HOST/v2/"),
        *("HOST/t", "HOST/t/a"),
    ],
)
def test_login_by_any_name_of_the_registry(guarded, tmp_path, key, expected):
    settings = StoreSettings(docker_config=config_file(tmp_path, key.replace("HOST", guarded.host)))
    with opened(guarded.reference("t/a", "v1"), settings) as remote:
        assert content(remote) == expected


def test_login_of_the_longest_name_counts(tmp_path):
    names = [
        "h:1",
        "h:1/t",
        "h:1/t/a/b",
        "https://h:2/v2/",
        "docker.io/library",
        "https://index.docker.io/v2/",
    ]
    auths = {name: {"username": name, "password": "p"} for name in names}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": auths}))
    for host, repository, name in (
        ("h:1", "t/a/b", "h:1/t/a/b"),
        ("h:1", "t/a", "h:1/t"),
        ("h:1", "t/a/bc", "h:1/t"),
        ("h:1", "tt", "h:1"),
        ("h:2", "t/a", "https://h:2/v2/"),
        ("docker.io", "library/x", "docker.io/library"),
        ("docker.io", "other/x", "https://index.docker.io/v2/"),
    ):
        login = find_login(host, path, repository)
        assert login is not None and login.user == name
    assert find_login("h", path, "t") is None


def test_login_out_of_a_credential_helper(guarded, tmp_path, monkeypatch, expected):
    helper = tmp_path / "docker-credential-test"
    answer = json.dumps({"ServerURL": "x", "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\nread host; [ \"$host\" = {guarded.host} ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credHelpers": {guarded.host: "test"}}))
    with opened(guarded.reference("t/a", "v1"), StoreSettings(docker_config=path)) as remote:
        assert content(remote) == expected


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({}, "the registry wants a login"),
        ({"auths": {"other:1": {"auth": "YTpi"}}}, "the registry wants a login"),
        ({"auths": {"HOST": {"auth": base64.b64encode(b"carol:wrong").decode()}}}, "refused to us"),
        ({"credsStore": "is-not-there"}, "docker-credential-is-not-there cannot be started"),
        ({"credsStore": "../x"}, "name of a credential helper"),
    ],
)
def test_without_a_login_it_is_refused(guarded, tmp_path, document, error):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document).replace("HOST", guarded.host))
    with pytest.raises(StoreError, match=error) as caught:
        find_stored(guarded.reference("t/a", "v1"), StoreSettings(docker_config=path))
    assert "wrong" not in str(caught.value)


def test_login_goes_to_nobody_else(guarded, tmp_path, server):
    settings = StoreSettings(docker_config=config_file(tmp_path, guarded.host), attempts=1)
    with fault_proxy(server.host) as elsewhere, fault_proxy(guarded.host) as proxy:
        config_file(tmp_path, proxy.host)
        away = {"Location": f"http://{elsewhere.host}/v2/t/a/manifests/v1"}
        asked = Fault(applies=lambda request: "authorization" in request.headers, status=307, headers=away)
        proxy.faults = [asked]
        find_stored(through(proxy), settings).store.close()
        assert [request.headers.get("authorization") for request in elsewhere.requests] == [None]
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{elsewhere.host}/token"'}
        elsewhere.requests.clear()
        elsewhere.faults = [Fault(applies=lambda request: True, times=None, status=401, headers=challenge)]
        asked.times = 1
        with pytest.raises(Denied):
            find_stored(through(proxy), settings)
        assert [request.path for request in elsewhere.requests] == ["/v2/t/a/manifests/v1"]


def test_token_is_fetched_once_and_again_when_it_has_expired(proxy, expected):
    proxy.token = "first"
    with opened(through(proxy)) as remote:
        assert proxy.tokens_given == 1
        proxy.token = "second"
        assert content(remote) == expected
    assert proxy.tokens_given == 2


def test_token_that_is_no_use_ends_in_a_refusal(proxy):
    challenge = {"WWW-Authenticate": f'Bearer realm="http://{proxy.host}/token"'}
    proxy.token = "t"
    proxy.faults = [
        Fault(
            applies=lambda request: "/manifests/" in request.path, times=None, status=401, headers=challenge
        )
    ]
    with pytest.raises(Denied, match=r"refused to us"):
        find_stored(through(proxy), QUICK)
    assert len(proxy.requests) == 3


# --- TLS, mirrors, proxies ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key", "-out", folder / "crt"]
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    names[-1], names[-3] = folder / "other", folder / "other key"
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    return folder


def ask(url):
    with closing(Http(StoreSettings())) as http, http.request("GET", url, Deadline(10)) as answer:
        return answer.read(1 << 20)


def test_own_authority_is_trusted_only_when_named(tmp_path, certificate, image, expected, monkeypatch):
    tls = {"certificate": str(certificate / "crt"), "key": str(certificate / "key")}
    with registry(tmp_path / "registry", tls=tls) as server:
        server.push(image, "t/a", "v1")
        reference = server.reference("t/a", "v1")
        with opened(reference, StoreSettings(ca_file=certificate / "crt")) as remote:
            assert content(remote) == expected
        other = tmp_path / "other.pem"
        other.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
        with pytest.raises(StoreError, match=r"certificates of authorities cannot be read"):
            find_stored(reference, StoreSettings(ca_file=other))
        with pytest.raises(StoreError, match=r"certificate is not trusted.*--ca-file"):
            find_stored(reference, StoreSettings(ca_file=certificate / "other"))
        with pytest.raises(StoreError, match=r"certificate is not trusted.*--ca-file"):  # by the system's
            ask(f"https://{server.host}/v2/")
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "gone" / "keys"))
        with pytest.raises(StoreError, match=r"TLS cannot be set up.*No such file"):
            ask(f"https://{server.host}/v2/")


def test_mirror_is_asked_first_and_left_alone_when_it_fails(server, expected):
    with fault_proxy(server.host) as mirror, fault_proxy(server.host) as origin:
        settings = StoreSettings(mirrors=(f"http://{mirror.host}",), deadline_s=5, stall_s=1)
        with opened(through(origin), settings) as remote:
            assert content(remote) == expected
            assert not origin.requests
            assert all(request.path.endswith(f"?ns={origin.host}") for request in mirror.requests)
        mirror.requests.clear()
        mirror.faults = [Fault(applies=lambda request: True, times=None, hang_up=True)]
        with opened(through(origin), settings) as remote:
            assert content(remote) == expected
        assert origin.requests
        assert len(mirror.requests) == 1


def test_mirror_without_the_image_is_no_failure(server, expected, tmp_path):
    with registry(tmp_path / "empty") as empty:
        settings = StoreSettings(mirrors=(f"http://{empty.host}",))
        with opened(server.reference("t/a", "v1"), settings) as remote:
            assert content(remote) == expected


def test_proxy_is_used_and_left_out_when_it_fails(server, expected):
    with fault_proxy("127.0.0.1:9") as forward:
        settings = StoreSettings(proxy=f"http://{forward.host}", deadline_s=5)
        with opened(server.reference("t/a", "v1"), settings) as remote:
            assert content(remote) == expected
            assert {request.path.partition("/v2/")[0] for request in forward.requests} == {
                f"http://{server.host}"
            }
        forward.faults = [Fault(applies=lambda request: True, times=None, status=502)]
        count = len(forward.requests)
        with opened(server.reference("t/a", "v1"), settings) as remote:
            assert content(remote) == expected
        assert len(forward.requests) == count + 1
