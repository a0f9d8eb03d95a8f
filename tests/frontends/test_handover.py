"""Two servers of one connection: who answers which request, whatever goes wrong between the two."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fuse_wire as wire
from support.fuse_kernel import COLD, LONG_S, lookup

from rafsfs.errors import MountError
from rafsfs.frontends import handover_giver, server_sockets
from rafsfs.frontends.devfuse_transport import Transport
from rafsfs.frontends.handover import Handover, ImageIdentity, MountState, Taken, receive, send
from rafsfs.frontends.handover_giver import giving
from rafsfs.frontends.handover_taker import describe, take
from rafsfs.frontends.server_sockets import bound, connect, socket_name
from rafsfs.frontends.service_manager import ServiceManager
from rafsfs.fuse.negotiation import Negotiated
from rafsfs.fuse.server import FuseServer, ServerOptions

DEVICE = "0:4711"
IMAGE = ImageIdentity("sha256:" + "a" * 64, "sha256:" + "b" * 64)
MOUNTED_AS = {"image": "/images/tree"}
COUNTS = {"version": 1, "mount": {"uptime_s": 1.0}}
RESEND = bytes.fromhex("10000000 07000000 0000000000000000")
"""fuse_out_header: 16 bytes, FUSE_NOTIFY_RESEND of linux/fuse.h, no request."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A runtime folder of the test's own."""
    monkeypatch.setattr(server_sockets, "folders", lambda: [tmp_path / "runtime"])
    return tmp_path / "runtime"


@pytest.fixture
def mount(kernel):
    """A connection that is served and can be had; ends like a server does."""
    yield from served(kernel)


@pytest.fixture
def old_kernel(connect):
    """The same with a kernel that cannot ask again."""
    kernel = connect()
    kernel.start()
    kernel.server.negotiated = kernel.server.negotiated._replace(offered=0)
    yield from served(kernel)


def served(kernel):
    state = MountState("devfuse", DEVICE, "tree", IMAGE, kernel.server.negotiated)
    handover = Handover(MOUNTED_AS, ServiceManager("/run/manager"))
    with giving(kernel.transport, state, handover, lambda: COUNTS) as kernel.end_giving:
        yield kernel


class Successor:
    """Another server of a connection, which is the descriptor that it was given."""

    def __init__(self, kernel, taken):
        self.taken = taken
        self.handler = kernel.handler
        server = FuseServer(kernel.handler, ServerOptions(), taken.state.negotiated)
        self.ended = threading.Event()
        self.transport = Transport(taken.fd, server, alarm=lambda _: None, ended=self.ended.set, cores=2)

    def settle(self, kernel):
        """Settle with a predecessor whose main thread does what it has to."""

        def leave():
            assert kernel.ended.wait(LONG_S)
            kernel.end_giving().leave()

        main = threading.Thread(target=leave)
        main.start()
        self.taken.settle(self.transport)
        main.join(LONG_S)

    def end(self):
        self.transport.stop(LONG_S)
        os.close(self.taken.fd)


@pytest.fixture
def successor():
    """Make successors; end them."""
    made = []

    def make(kernel):
        made.append(Successor(kernel, take(DEVICE, IMAGE)))
        return made[-1]

    yield make
    for one in made:
        one.handler.gate.set()
        if one.taken.predecessor is not None:
            one.taken.predecessor.close()
        one.end()


def assert_serves(kernel, unique=900):
    kernel.send(lookup(b"hello", unique))
    while (answer := kernel.answer())[0] == 0:  # notifications
        pass
    assert answer == (unique, 0)


# --- A transport that pauses --------------------------------------------------------------------------------


def test_while_it_pauses_requests_stay_in_the_kernel(kernel):
    assert kernel.transport.pause(LONG_S)
    kernel.send(lookup(b"hello", 10))
    kernel.relieve()
    kernel.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        kernel.reply()
    kernel.socket.settimeout(LONG_S)
    kernel.transport.resume()
    assert kernel.answer() == (10, 0)
    assert_serves(kernel)


@pytest.mark.parametrize("request_", [lookup(b"hang", 10), wire.read(COLD, 0, 4096, unique=10)])
def test_what_was_taken_is_answered_while_it_pauses(kernel, request_):
    kernel.hang(request_)
    assert kernel.transport.pause(0.01)
    assert not kernel.transport.wait_until_answered(0.01)
    kernel.handler.gate.set()
    assert kernel.answer() == (10, 0)
    assert kernel.transport.wait_until_answered(LONG_S)
    kernel.transport.resume()
    assert_serves(kernel)


def test_a_read_that_waits_for_its_turn_is_answered_while_it_pauses(connect):
    kernel = connect()
    kernel.negotiate()
    kernel.handler.gate.clear()
    kernel.send(*(wire.read(COLD, 0, 4096, unique=unique) for unique in range(10, 30, 2)))
    kernel.transport.start()
    assert kernel.handler.hanging.acquire(timeout=LONG_S)
    assert kernel.transport.pause(0.01)
    kernel.handler.gate.set()
    assert kernel.transport.wait_until_answered(LONG_S)
    kernel.transport.resume()
    assert {kernel.answer() for _ in range(10)} == {(unique, 0) for unique in range(10, 30, 2)}


def test_it_pauses_again_and_again(kernel):
    for unique in range(10, 50, 2):
        assert kernel.transport.pause(LONG_S)
        kernel.transport.resume()
        assert_serves(kernel, unique)


def test_it_can_be_stopped_while_it_pauses(kernel):
    assert kernel.transport.pause(LONG_S)
    assert kernel.stop(LONG_S)
    assert not kernel.transport.pause(LONG_S)


def test_waiting_for_answers_can_be_given_up(kernel):
    kernel.hang(lookup(b"hang", 10))
    assert kernel.transport.pause(0.01)
    assert not kernel.transport.wait_until_answered(LONG_S, lambda: True)


# --- From one server to the next ----------------------------------------------------------------------------


def test_the_next_server_has_it(mount, successor):
    found = describe(DEVICE)
    assert (found.pid, found.mounted_as, found.manager) == (os.getpid(), MOUNTED_AS, "/run/manager")
    new = successor(mount)
    assert new.taken.before == COUNTS
    assert not new.taken.has_open_requests
    mount.send(lookup(b"hello", 10))
    new.settle(mount)
    assert mount.answer() == (10, 0)
    assert mount.transport.has_ended
    assert_serves(mount)
    with pytest.raises(MountError, match="dead"):
        take(DEVICE, IMAGE)


def test_requests_that_hang_are_asked_again_where_the_kernel_can(mount, successor):
    mount.hang(wire.read(COLD, 0, 4096, unique=10))
    new = successor(mount)
    assert new.taken.has_open_requests
    new.settle(mount)
    assert mount.reply() == RESEND
    assert not mount.end_giving().open_requests_are_mine


def test_requests_that_hang_are_answered_by_who_took_them_where_it_cannot(old_kernel, successor):
    old_kernel.hang(wire.read(COLD, 0, 4096, unique=10))
    new = successor(old_kernel)
    new.settle(old_kernel)
    assert old_kernel.end_giving().open_requests_are_mine
    old_kernel.send(lookup(b"hello", 12))
    assert old_kernel.answer() == (12, 0)
    old_kernel.handler.gate.set()
    assert old_kernel.transport.wait_until_answered(LONG_S)
    assert old_kernel.answer() == (10, 0)


def test_a_dead_server_s_requests_are_asked_again(kernel, successor):
    state = MountState("devfuse", DEVICE, "tree", IMAGE, kernel.server.negotiated)
    kernel.transport.pause(LONG_S)
    with_fd = handover_taken(kernel, state)
    new = Successor(kernel, with_fd)
    try:
        new.taken.settle(new.transport)
        assert kernel.reply() == RESEND
        assert_serves(kernel)
    finally:
        new.end()


def test_where_they_cannot_the_log_says_so(kernel, caplog):
    negotiated = kernel.server.negotiated._replace(offered=0)
    kernel.transport.pause(LONG_S)
    new = Successor(kernel, handover_taken(kernel, MountState("devfuse", DEVICE, "tree", IMAGE, negotiated)))
    try:
        new.taken.settle(new.transport)
        assert_serves(kernel)
    finally:
        new.end()
    assert "wait until the mount is aborted" in caplog.text


def handover_taken(kernel, state):
    return Taken(os.dup(kernel.device.fileno()), state, predecessor=None)


# --- What goes wrong ----------------------------------------------------------------------------------------


def asked(*messages):
    """The answers to messages on one connection."""
    with connect(socket_name(DEVICE, "handover"), socket.SOCK_SEQPACKET, LONG_S) as connection:
        for message in messages:
            if isinstance(message, bytes):
                connection.sendall(message)
            else:
                send(connection, message)
        answer, descriptors = receive(connection)
        for descriptor in descriptors:
            os.close(descriptor)
        return answer


@pytest.mark.parametrize(
    "last_words",
    [(), (b"{",), (b"[]",), ({"do": "stay"},), (b"x" * 1000,)],
    ids=["none", "no JSON", "no object", "others", "noise"],
)
def test_when_a_successor_fails_the_old_server_goes_on(mount, caplog, last_words):
    answer = asked({"do": "take", "superblock": IMAGE.superblock}, *last_words)
    assert answer["statistics"] == COUNTS
    assert mount.reply() == RESEND  # it may have taken requests
    assert_serves(mount)
    assert not mount.transport.has_ended
    assert describe(DEVICE).mounted_as == MOUNTED_AS


def test_a_successor_that_says_nothing_is_not_waited_for_for_ever(mount, monkeypatch):
    monkeypatch.setattr(handover_giver, "LEAVE_WAIT_S", 0.05)
    with connect(socket_name(DEVICE, "handover"), socket.SOCK_SEQPACKET, LONG_S) as connection:
        send(connection, {"do": "take", "superblock": IMAGE.superblock})
        _, descriptors = receive(connection)
        os.close(*descriptors)
        assert mount.reply() == RESEND
        assert_serves(mount)


def test_when_the_old_server_has_to_end_the_new_one_does_not_have_it(mount, successor):
    new = successor(mount)
    assert mount.end_giving() is None
    with pytest.raises((OSError, MountError)):
        new.taken.settle(new.transport)


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b"\xff", b"[" * 10_000, b"x" * (1 << 17)])
def test_who_speaks_no_sense_changes_nothing(mount, caplog, text):
    caplog.set_level(logging.CRITICAL, "rafsfs.mount")
    with connect(socket_name(DEVICE, "handover"), socket.SOCK_SEQPACKET, LONG_S) as connection:
        connection.sendall(text)
        assert connection.recv(100) == b""
    assert describe(DEVICE).pid == os.getpid()
    assert_serves(mount)


def test_requests_that_are_none_are_refused(mount):
    assert asked({"do": "dance"}) == {"error": "there are describe and take"}
    assert asked({}) == {"error": "there are describe and take"}
    refused = {"error": "the mount is of another image"}
    assert asked({"do": "take"}) == refused
    assert asked({"do": "take", "superblock": IMAGE.manifest}) == refused
    with pytest.raises(MountError, match="another image"):
        take(DEVICE, ImageIdentity("sha256:" + "c" * 64, IMAGE.manifest))
    assert_serves(mount)


def test_descriptors_that_nobody_asked_for_are_closed(mount):
    reading, writing = os.pipe()
    with connect(socket_name(DEVICE, "handover"), socket.SOCK_SEQPACKET, LONG_S) as connection:
        send(connection, {"do": "describe"}, (writing,) * 16)
        receive(connection)
    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody else has the other end
    os.close(reading)


@pytest.mark.requires_root
def test_other_users_are_refused(mount, folder):
    """Also where the folder and the socket were opened to them."""
    program = """
import json, os, socket, sys
os.chdir(sys.argv[1])
os.setuid(65533)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(sys.argv[2])
    connection.sendall(b'{"do": "take", "superblock": "%s"}' % sys.argv[3].encode())
    print(connection.recv(4096).decode())
"""
    folder.chmod(0o755)
    (folder / socket_name(DEVICE, "handover")).chmod(0o666)
    done = subprocess.run(
        [sys.executable, "-c", program, folder, socket_name(DEVICE, "handover"), IMAGE.superblock],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG_S,
    )
    folder.chmod(0o700)
    assert (done.stderr, json.loads(done.stdout)) == ("", {"error": "Operation not permitted"})
    assert_serves(mount)


def test_a_mount_that_has_ended_is_not_to_be_had(mount, monkeypatch):
    monkeypatch.setattr(mount.server, "handle", lambda _: 1 / 0)
    mount.send(lookup(b"hello", 10))
    assert mount.ended.wait(LONG_S)
    with pytest.raises(MountError, match="the mount has ended"):
        take(DEVICE, IMAGE)


def test_a_mount_goes_on_where_there_is_no_place_for_the_socket(kernel, monkeypatch, caplog):
    monkeypatch.setattr(server_sockets, "folders", list)
    for _ in served(kernel):
        assert_serves(kernel)
        assert kernel.end_giving() is None
    assert "this mount cannot be handed over" in caplog.text


@pytest.mark.parametrize("answer", [{}, {"pid": "1"}, {"state": {}}, {"error": "no"}])
def test_a_server_of_another_release_is_not_trusted_to_be_like_this_one(answer):
    with bound(socket_name(DEVICE, "handover"), socket.SOCK_SEQPACKET) as (listening, _):

        def serve():
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    receive(connection)
                    send(connection, answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(MountError):
            describe(DEVICE)
        with pytest.raises(MountError):
            take(DEVICE, IMAGE)
        thread.join(LONG_S)


# --- What is told -------------------------------------------------------------------------------------------

NEGOTIATED = Negotiated(41, 2**40, 7, 1 << 20, 60 << 10, 256, 64, 48)
STATE = MountState("devfuse", DEVICE, 'odd "source" \udcff', IMAGE, NEGOTIATED)


def test_a_state_is_read_as_it_was_written():
    assert MountState.from_json(json.loads(json.dumps(STATE.to_json()))) == STATE


def places(value, path=()):
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))


WRONG = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.integers()), st.just({}))


@given(place=st.sampled_from(sorted(places(STATE.to_json()))), wrong=WRONG, is_missing=st.booleans())
def test_a_state_that_is_bent_is_refused_or_makes_sense(place, wrong, is_missing):
    bent = json.loads(json.dumps(STATE.to_json()))
    if not place:
        bent = wrong
    else:
        *way, name = place
        inner = bent
        for step in way:
            inner = inner[step]
        if is_missing:
            del inner[name]
        else:
            inner[name] = wrong
    try:
        state = MountState.from_json(bent)
    except MountError as error:
        assert "cannot be read" in str(error)
    else:
        assert all(isinstance(number, int) and number >= 0 for number in state.negotiated)
        ServerOptions(max_write_bytes=max(4096, state.negotiated.max_write_bytes))
