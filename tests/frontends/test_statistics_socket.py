"""The socket of a mount's statistics: who finds it, who may not, and that nothing is left of dead servers."""

import json
import os
import socket
import stat
import subprocess
import threading

import pytest

from rafsfs.errors import MountError
from rafsfs.frontends import server_sockets
from rafsfs.frontends.server_sockets import device_of
from rafsfs.frontends.statistics import VERSION
from rafsfs.frontends.statistics_socket import ask, offered

DEVICE = "0:4711"
SNAPSHOT = {"version": VERSION, "mount": {"device": DEVICE}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A runtime folder of the test's own."""
    place = tmp_path / "runtime"
    monkeypatch.setattr(server_sockets, "folders", lambda: [place])
    return place


@pytest.fixture
def path(folder):
    return folder / "0-4711.sock"


def said(path, request, *, ended=True):
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(os.fspath(path))
        asking.sendall(request)
        if ended:
            asking.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: asking.recv(4096), b""))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def left_by_a_dead_server(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()


def test_who_asks_gets_a_snapshot_of_now(path):
    uptimes = iter(range(10))
    with offered(DEVICE, lambda: {**SNAPSHOT, "now": next(uptimes)}):
        assert ask(DEVICE) == {**SNAPSHOT, "now": 0}
        assert json.loads(said(path, b"")) == {**SNAPSHOT, "now": 1}
        assert json.loads(said(path, b"please\n", ended=False)) == {**SNAPSHOT, "now": 2}


def test_nobody_else_may_ask(folder, path):
    with offered(DEVICE, lambda: SNAPSHOT):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert names_in(folder) == [path.name]


@pytest.mark.parametrize("target", [b"/", b"/statistics.json", b"/?x=1"])
def test_by_http(path, target):
    with offered(DEVICE, lambda: SNAPSHOT):
        answer = said(path, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target, ended=False)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert json.loads(body) == SNAPSHOT


@pytest.mark.parametrize(
    "request_line", [b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"GET\n", b"GET " + b"/" * 4092]
)
def test_by_http_for_what_is_not_there(path, request_line):
    with offered(DEVICE, lambda: SNAPSHOT):
        assert said(path, request_line, ended=False).startswith(b"HTTP/1.0 404 Not Found\r\n")


def test_those_who_go_away_and_failures_do_not_end_it(path, caplog):
    answers = iter([KeyError("a mistake"), SNAPSHOT])

    def collect():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with offered(DEVICE, collect):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(os.fspath(path))
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
                asking.sendall(b"GET /nothing")
                asking.shutdown(socket.SHUT_WR)
        assert said(path, b"") == b""
        assert ask(DEVICE) == SNAPSHOT
    assert "a mistake" in caplog.text


def test_the_end_leaves_nothing(folder):
    with offered(DEVICE, lambda: SNAPSHOT):
        names = {thread.name for thread in threading.enumerate()}
    assert "rafsfs-statistics" in names
    assert "rafsfs-statistics" not in {thread.name for thread in threading.enumerate()}
    assert names_in(folder) == []
    with pytest.raises(MountError, match="tells no statistics"):
        ask(DEVICE, wait_s=0)


def test_a_new_server_of_the_same_mount_takes_over(path):
    old = offered(DEVICE, lambda: {**SNAPSHOT, "by": "old"})
    with offered(DEVICE, lambda: SNAPSHOT):
        pass
    with old:
        new = offered(DEVICE, lambda: {**SNAPSHOT, "by": "new"})
        new.__enter__()
        assert ask(DEVICE)["by"] == "new"
    assert ask(DEVICE)["by"] == "new"  # the old one's end has not taken it away
    new.__exit__(None, None, None)
    assert not path.exists()


def test_sockets_of_dead_servers_go_when_another_starts_and_those_of_living_ones_stay(folder, path):
    with offered("0:1", lambda: SNAPSHOT):
        left_by_a_dead_server(folder / "0-2.sock")
        left_by_a_dead_server(path)
        with pytest.raises(MountError, match="tells no statistics"):
            ask(DEVICE, wait_s=0)
        with offered(DEVICE, lambda: SNAPSHOT):
            assert names_in(folder) == ["0-1.sock", path.name]
            assert ask(DEVICE) == ask("0:1") == SNAPSHOT


def test_sockets_that_are_being_made_stay_while_their_maker_lives(folder):
    """They do not listen yet, and refuse like those of the dead."""
    with subprocess.Popen(["true"]) as dead:
        pass
    folder.mkdir(0o700)
    for maker in (os.getpid(), dead.pid, "x"):
        left_by_a_dead_server(folder / f".{maker}-0-2.sock")
    with offered("0:1", lambda: SNAPSHOT):
        assert names_in(folder) == [f".{os.getpid()}-0-2.sock", "0-1.sock"]


@pytest.mark.parametrize("obstacle", ["open", "link", "file", "missing"])
def test_without_a_safe_folder_the_mount_goes_on(folder, tmp_path, caplog, obstacle):
    match obstacle:
        case "open":
            folder.mkdir()
            folder.chmod(0o770)
        case "link":
            (tmp_path / "elsewhere").mkdir(0o700)
            folder.symlink_to(tmp_path / "elsewhere")
        case "file":
            folder.touch(0o600)
        case "missing":
            folder.parent.rename(tmp_path.with_name(tmp_path.name + " away"))
    with offered(DEVICE, lambda: SNAPSHOT):
        with pytest.raises(MountError, match="tells no statistics"):
            ask(DEVICE, wait_s=0)
        assert "this mount tells no statistics" in caplog.text
    if obstacle == "link":
        assert names_in(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"version": 0}', b"\xff", b"[" * 100_000])
def test_answers_that_are_none(folder, path, answer):
    folder.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()

        def tell():
            connection, _ = listening.accept()
            with connection:
                connection.sendall(answer)

        thread = threading.Thread(target=tell)
        thread.start()
        with pytest.raises(MountError, match="tells no statistics"):
            ask(DEVICE)
        thread.join()


def test_what_is_no_mount_of_ours_has_none(tmp_path):
    with pytest.raises(MountError, match="not in a rafsfs mount"):
        device_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        device_of(tmp_path / "missing")
