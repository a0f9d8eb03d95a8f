"""Servers that die while a supervisor, or a service manager, holds their mount: others go on with it."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from support import mounts
from support.fd_store import FdStore
from support.images import KEY, build
from support.load import fio_reads, readers, write_verifiable
from support.mounts import END_S, mounting, rafsfs, start_rafsfs, umount, wait_for_end, wait_for_lines

from rafsfs.frontends.server_sockets import device_of, folders
from rafsfs.frontends.statistics_socket import ask
from rafsfs.frontends.supervisor import QUICK_DEATHS_MAX
from rafsfs.trust.keys import save_key
from rafsfs.trust.material import SymmetricKey

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

MIB = 1 << 20
DEATHS = 3

KILL_ONCE_AT = """
import importlib, os, signal, sys
died, moment = sys.argv.pop(1), sys.argv.pop(1)
if not os.path.exists(died):
    module, *names = moment.split(":")
    place = importlib.import_module(module)
    for name in names[:-1]:
        place = getattr(place, name)
    def die(*_, **__):
        open(died, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(place, names[-1], die)
from rafsfs.cli.main import main
sys.exit(main())
"""
"""Runs the command; the first that is about to call a function is killed there."""

SUPERVISE_KILLED = """
import logging, sys
from pathlib import Path
from rafsfs.frontends.supervisor import supervise
from rafsfs.cli import exit_codes
logging.basicConfig(level=logging.INFO)
command = [sys.executable, "-c", {kill_at!r}, {died!r}, {moment!r}, "mount", "--foreground", *sys.argv[1:]]
sys.exit(exit_codes.run(lambda: supervise(command, Path(sys.argv[2]))))
"""
"""Supervises such a server, as ``rafsfs supervise`` would."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image, its tree, the key and another one."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tree").mkdir()
    (folder / "tree" / "big").write_bytes(os.urandom(8 * MIB))
    write_verifiable(folder / "tree" / "fio", 2 * MIB)
    build(folder / "tree", folder / "img")
    save_key(KEY, folder / "key")
    save_key(SymmetricKey.generate(), folder / "other key")
    return folder


@pytest.fixture
def supervise(place, tmp_path):
    """Start a supervisor on the folder ``m``; comes back when the mount serves."""
    (tmp_path / "m").mkdir()
    log = tmp_path / "log"
    shutil.copy(place / "key", tmp_path / "key")
    started = []

    def supervise(*words):
        words = ("--key", tmp_path / "key", "--log-file", log, *words)
        started.append(start_rafsfs("supervise", place / "img", tmp_path / "m", *words))
        log.touch()
        wait_for_lines(log, "serving")
        return started[-1], tmp_path / "m", log

    yield supervise
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=END_S)
    if mounts.mounted(tmp_path / "m"):
        rafsfs("umount", tmp_path / "m", "--lazy")  # unless it has just gone by itself


def server(directory):
    return ask(device_of(directory), wait_s=END_S)["mount"]["pid"]


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def ended(process):
    """Its exit code, and what it had to say."""
    _, errors = process.communicate(timeout=END_S)
    return process.returncode, errors


@pytest.mark.parametrize("words", [(), ("--frontend", "erofs", "--allow-other")], ids=["devfuse", "erofs"])
def test_no_read_fails_while_servers_are_killed(place, supervise, words, tally):
    process, directory, log = supervise(*words)
    with readers(place / "tree", directory, "big"):
        for number in range(DEATHS):
            kill(server(directory))
            assert fio_reads(directory / "fio") == 512
            wait_for_lines(log, "serving", number + 2)
    umount(directory)
    assert ended(process) == (0, "")
    assert log.read_text().count("by SIGKILL: starting another") == DEATHS
    assert list(folders()[0].glob(f"*{process.pid}*")) == []
    tally("servers killed under load", DEATHS)


def test_a_server_that_came_by_an_upgrade_is_replaced_too(place, supervise):
    process, directory, log = supervise()
    for _ in range(2):
        old = server(directory)
        done = rafsfs("upgrade", directory)
        assert (done.returncode, done.stderr) == (0, "")
        wait_for_end(old)
    wait_for_lines(log, "serves the mount now", 2)
    kill(server(directory))
    assert (directory / "big").read_bytes() == (place / "tree" / "big").read_bytes()
    assert process.poll() is None
    umount(directory)
    assert ended(process) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_unmounts(supervise, number):
    process, directory, log = supervise()
    last = server(directory)
    process.send_signal(number)
    assert ended(process) == (0, "")
    assert mounts.mounted(directory) is None
    wait_for_end(last)
    assert "unmounted" in log.read_text()


def test_a_signal_reaches_a_server_that_came_by_an_upgrade(supervise):
    process, directory, _ = supervise()
    assert rafsfs("upgrade", directory).returncode == 0
    last = server(directory)
    process.terminate()
    assert ended(process) == (0, "")
    assert mounts.mounted(directory) is None
    wait_for_end(last)


@pytest.mark.parametrize("words", [(), ("--frontend", "erofs", "--allow-other")], ids=["devfuse", "erofs"])
def test_an_unmount_while_a_server_is_replaced_is_not_undone(supervise, words):
    """Whether the next server has just got the mount, or finds that it is gone."""
    process, directory, _ = supervise(*words)
    kill(server(directory))
    umount(directory)
    assert ended(process) == (0, "")
    assert mounts.mounted(directory) is None


def test_an_unmount_before_the_next_server_looks_is_not_undone(place, supervise, tmp_path):
    """It comes while servers die at once, so that another one is begun after it."""
    process, directory, log = supervise()
    shutil.copy(place / "other key", tmp_path / "key")
    kill(server(directory))
    wait_for_lines(log, "starting another", 2)
    umount(directory)
    assert ended(process)[0] in (0, 4)
    assert mounts.mounted(directory) is None
    assert log.read_text().count("serving") == 1


def test_servers_that_die_at_once_are_given_up(place, supervise, tmp_path):
    process, directory, log = supervise()
    file = os.open(directory / "big", os.O_RDONLY)
    try:
        shutil.copy(place / "other key", tmp_path / "key")
        kill(server(directory))
        code, errors = ended(process)
        assert code == 9
        assert f"die again and again: {QUICK_DEATHS_MAX + 1} within" in errors
        assert "the last one, with 4" in errors
        assert mounts.mounted(directory) is None
    finally:
        mounts.close_of_a_dead_mount(file)
    assert log.read_text().count("starting another") == QUICK_DEATHS_MAX


def test_a_signal_ends_the_supervisor_while_no_server_comes_up(place, supervise, tmp_path):
    process, directory, log = supervise()
    shutil.copy(place / "other key", tmp_path / "key")
    kill(server(directory))
    wait_for_lines(log, "starting another", 2)
    process.terminate()
    code, _ = ended(process)
    assert code in (0, 4, -signal.SIGTERM & 0xFF)
    assert mounts.mounted(directory) is None


@pytest.mark.parametrize(
    ("frontend", "moment", "goes_on"),
    [
        ("devfuse", "rafsfs.frontends.devfuse_transport:Transport:negotiate", False),
        ("devfuse", "rafsfs.frontends.service_manager:ServiceManager:hold", False),
        ("devfuse", "rafsfs.frontends.service_manager:ServiceManager:ready", True),
        ("erofs", "rafsfs.frontends.kernel_erofs_mount:ErofsMount:raise_read_ahead", False),
        ("erofs", "rafsfs.frontends.service_manager:ServiceManager:hold", False),
        ("erofs", "rafsfs.frontends.service_manager:ServiceManager:ready", True),
    ],
)
def test_a_first_server_that_dies_leaves_no_dead_mount(place, tmp_path, frontend, moment, goes_on):
    """Killed before it gave its mount away it takes it along, afterwards the mount has another server."""
    directory, died = tmp_path / "m", tmp_path / "died"
    directory.mkdir()
    words = (place / "img", directory, "--key", place / "key", "--frontend", frontend, "--allow-other")
    program = SUPERVISE_KILLED.format(kill_at=KILL_ONCE_AT, died=os.fspath(died), moment=moment)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(mounts.ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if goes_on:
            while "serving" not in process.stderr.readline() or not died.exists():
                assert process.poll() is None
            assert (directory / "big").read_bytes() == (place / "tree" / "big").read_bytes()
            umount(directory)
            assert process.wait(END_S) == 0
        else:
            code, errors = ended(process)
            assert code == 9, errors
            assert "died, and nothing is left to go on with: it ended by SIGKILL" in errors
        assert died.exists()
        assert mounts.mounted(directory) is None
    finally:
        process.kill()
        process.communicate(timeout=END_S)


def test_a_mount_that_cannot_be_made_is_not_tried_again(place, tmp_path):
    (tmp_path / "m").mkdir()
    done = rafsfs("supervise", place / "img", tmp_path / "m", "--key", place / "other key")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert mounts.mounted(tmp_path / "m") is None


@pytest.mark.parametrize(
    ("words", "code", "saying"),
    [
        (("--passphrase-file", "-"), 4, "cannot be read a second time: -"),
        (("--passphrase",), 4, "cannot be read a second time: --passphrase"),
        (("--key", "/dev/fd/5"), 4, "cannot be read a second time: /dev/fd/5"),
        (("--frontend", "pyfuse3"), 9, "cannot be supervised"),
        (("--uid", "-1"), 2, "--uid"),
    ],
)
def test_what_a_second_server_could_not_do_is_refused(place, tmp_path, words, code, saying):
    (tmp_path / "m").mkdir()
    done = rafsfs("supervise", place / "img", tmp_path / "m", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert saying in done.stderr


# --- A service manager --------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    with FdStore(tmp_path) as store:
        yield store


@pytest.fixture
def words(place, tmp_path):
    (tmp_path / "m").mkdir()
    yield place / "img", tmp_path / "m", "--key", place / "key"
    if mounts.mounted(tmp_path / "m"):
        rafsfs("umount", tmp_path / "m", "--lazy")


def names(store):
    return sorted(name for name, _ in store.held)


def test_a_manager_s_next_server_goes_on(place, store, words):
    directory = words[1]
    process = store.start(*words)
    try:
        store.hear_until("FDNAME", "rafsfs-fuse")
        store.hear_until("FDSTORE")
        while len(store.held) < 2:
            store.hear()
        assert names(store) == ["rafsfs-fuse", "rafsfs-state"]
        with readers(place / "tree", directory, "big"):
            for _ in range(DEATHS):
                process.kill()
                assert ended(process)[0] == -signal.SIGKILL
                process = store.start(*words)
                store.hear_until("READY")
                assert fio_reads(directory / "fio") == 512
        process.terminate()
        assert ended(process)[0] == 0
        store.hear_until("STOPPING")
        while store.held:
            store.hear()
        assert mounts.mounted(directory) is None
    finally:
        process.kill()
        process.communicate(timeout=END_S)


def test_a_manager_learns_of_an_upgrade(store, words):
    process = store.start(*words)
    try:
        while len(store.held) < 2:
            store.hear()
        assert rafsfs("upgrade", words[1]).returncode == 0
        store.hear_until("MAINPID", str(server(words[1])))
        assert ended(process)[0] == 0
        os.kill(server(words[1]), signal.SIGTERM)
        store.hear_until("STOPPING")
        while store.held:
            store.hear()
    finally:
        process.kill()
        process.communicate(timeout=END_S)


@pytest.mark.parametrize("lets_go", [False, True], ids=["of nothing", "of dev fuse"])
def test_a_mount_that_was_unmounted_meanwhile_is_not_made_again(store, words, lets_go):
    """systemd lets go of descriptors that have come to their end, and of no others."""
    process = store.start(*words)
    try:
        while len(store.held) < 2:
            store.hear()
        process.kill()
        ended(process)
        umount(words[1], "--lazy")
        if lets_go:
            store.let_go("rafsfs-fuse")
        process = store.start(*words)
        code, errors = ended(process)
        assert code == 0
        assert "was unmounted while nobody served it" in errors
        store.hear_until("READY")
        store.hear_until("STOPPING")
        while store.held:
            store.hear()
        assert mounts.mounted(words[1]) is None
        assert list(words[1].iterdir()) == []
    finally:
        process.kill()
        process.communicate(timeout=END_S)


def test_a_dead_mount_that_a_manager_holds_is_named(store, words):
    process = store.start(*words)
    try:
        while len(store.held) < 2:
            store.hear()
        store.let_go("rafsfs-fuse")
        process.kill()
        ended(process)
        process = store.start(*words)
        code, errors = ended(process)
        assert code == 9
        assert "a mount whose server has died is on the mount point" in errors
    finally:
        process.kill()
        process.communicate(timeout=END_S)


@pytest.mark.parametrize(
    ("with_state", "saying"),
    [(False, "one rafsfs-fuse and one rafsfs-state"), (True, "the state of the mount cannot be read")],
)
def test_what_a_manager_passes_has_to_make_sense(store, words, with_state, saying):
    process = store.start(*words)
    try:
        while len(store.held) < 2:
            store.hear()
        process.kill()
        ended(process)
        store.let_go("rafsfs-state")
        if with_state:
            store.held.append(("rafsfs-state", os.memfd_create("empty")))
        process = store.start(*words)
        code, errors = ended(process)
        assert code == 9
        assert saying in errors
    finally:
        process.kill()
        process.communicate(timeout=END_S)


def test_a_server_in_the_background_tells_a_manager_nothing(store, words, monkeypatch):
    """It was started by something that has a manager of its own, and is none of its business."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(store.address))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with mounting(*words):
        store._socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            store.hear()
