"""``rafsfs serve`` and ``rafsfs-virtiofsd`` as processes, with guests made of sockets and shared memory."""

import contextlib
import errno
import json
import os
import resource
import select
import socket
import struct
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from support import fuse_wire as wire
from support.fuse_client import FuseClient
from support.images import KEY, build, opened
from support.mounts import END_S, chunk_place, flip, rafsfs
from support.registries import registry
from support.serving import WAITING, serving
from support.stock import digest_of, layer, member, stock_image
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, read_image
from support.vhost_frontend import (
    ADD_MEM_REG,
    GET_MAX_MEM_SLOTS,
    GUEST_BASE,
    TIMEOUT_S,
    USER_BASE,
    FrontEnd,
    Memory,
)
from support.virtiofs_guest import REQUESTS, Guest
from support.virtiofsd import start_virtiofsd, virtiofsd

from rafsfs.cli.exit_codes import ExitCode
from rafsfs.cli.virtiofsd import arguments_of
from rafsfs.format.erofs import FileType
from rafsfs.trust.keys import save_key
from vhost.limits import REGIONS_MAX, TABLE_REGIONS_MAX

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

PAGE = 4096

PLAN = (
    Planned(b"", FileType.DIRECTORY, mtime_ns=5),
    Planned(b"big", FileType.REGULAR, 0o640, uid=7, mtime_ns=-1, segments=(Segment(700_000, 2),)),
    Planned(b"dir", FileType.DIRECTORY, 0o2775, xattrs=((b"user.colour", b"green"),)),
    Planned(b"dir/link", FileType.SYMLINK, 0o777, target=b"../big"),
    *(Planned(b"dir/%03d" % number, FileType.REGULAR, segments=(Segment(number, 3),)) for number in range(9)),
)


@pytest.fixture
def image(tmp_path):
    return build(PlannedSource(PLAN), tmp_path / "image")


@pytest.fixture
def key(tmp_path):
    file = tmp_path / "key"
    save_key(KEY, file)
    return file


@pytest.fixture
def paths(tmp_path):
    return [tmp_path / "vm1.sock", tmp_path / "vm2.sock"]


def stats(path):
    done = rafsfs("stats", path, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- Serving ------------------------------------------------------------------------------------------------


def test_guests_share_one_cache_reconnect_and_are_counted(image, key, paths):
    with serving(image, paths, "--key", key) as server:
        for path in (*paths, *paths):
            with Guest(path) as guest:
                assert_same_tree(FuseClient(guest).tree(), expected(PLAN))
        told = [stats(path) for path in paths]
        assert [each["mount"]["device"] for each in told] == list(map(str, paths))
        for each in told:
            assert (each["mount"]["frontend"], each["mount"]["pid"]) == ("virtiofs", server.process.pid)
            assert each["requests"]["init"]["count"] == 4
            assert each["decoded"]["chunk_bytes"] < 800_000  # read four times, decoded once
    assert not [line for line in server.lines if "WARNING" in line or "ERROR" in line]


def test_damage_is_named_in_the_log_of_a_server_that_can_open_no_more_files(image, key, paths):
    file, _, place, _ = chunk_place(image, b"big")
    flip(file, place)
    with serving(image, paths[:1], "--key", key) as server, Guest(paths[0]) as guest:
        client = FuseClient(guest)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            client.read(client.find(b"big"), 0, 4096)
        assert client.read(client.find(b"dir/008"), 0, 4096) == Segment(8, 3).plain()
    assert any("ERROR" in line and "/big" in line for line in server.lines), server.lines
    assert stats_failure(paths[0])


@pytest.mark.parametrize("packing", ["gzip", "zstd", "tar"])
def test_layers_of_a_stock_image_are_read_where_no_file_can_be_opened(key, paths, tmp_path, packing):
    noise = os.urandom(300_000)
    source = stock_image(tmp_path / "stock", layer(member("a/"), member("a/noise", noise)), packing=[packing])
    done = rafsfs("index", source, tmp_path / "sealed", "--key", key)
    assert done.returncode == 0, done.stderr
    with serving(tmp_path / "sealed", paths[:1], "--key", key) as server, Guest(paths[0]) as guest:
        assert FuseClient(guest).tree()[b"a/noise"].content == digest_of(noise)[7:]
    assert not [line for line in server.lines if "WARNING" in line or "ERROR" in line]


def stats_failure(path):
    """What is said of a server that has gone."""
    done = rafsfs("stats", path)
    return done.returncode == ExitCode.MOUNT and "the server tells no statistics" in done.stderr


def test_a_hostile_guest_disturbs_nobody(image, key, paths):
    with serving(image, paths, "--key", key) as server, Guest(paths[0]) as good:
        client = FuseClient(good)
        for attack in (b"", b"\xff" * 300, struct.pack("=III", 5, 1, 4096)):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(os.fspath(paths[1]))
                bad.sendall(attack)
                bad.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    assert bad.recv(1) == b""
            assert client.read(client.find(b"dir/008"), 0, 8) == Segment(8, 3).plain()
        with Guest(paths[1]) as bad:
            wire.joined(bad.handle(wire.init()))
            queue = bad.queues[REQUESTS]
            queue.offer(60_000)
            os.eventfd_write(queue.kick, 1)
            assert select.select([queue.err], [], [], TIMEOUT_S)[0]  # it is told that it went wrong
            assert_same_tree(client.tree(), expected(PLAN))
        with Guest(paths[1]) as again:
            assert_same_tree(FuseClient(again).tree(), expected(PLAN))
    assert all("vm2.sock" in line for line in server.lines if "WARNING" in line)


def test_guests_leave_each_other_enough_open_files(image, key, tmp_path):
    paths = [tmp_path / f"vm{number}.sock" for number in range(3)]
    with (
        serving(image, paths, "--key", key, "--rlimit-nofile", 400) as server,
        Memory(600 * PAGE) as memory,
        contextlib.ExitStack() as stack,
    ):
        for path in paths[1:]:
            greedy = stack.enter_context(FrontEnd(path))
            greedy.negotiate()
            most = greedy.number(GET_MAX_MEM_SLOTS)
            added = 0
            while greedy.do(ADD_MEM_REG, one_page(added), [memory.fd]) == 0:
                added += 1
            assert TABLE_REGIONS_MAX <= added == most < REGIONS_MAX
        for _ in range(2):
            with Guest(paths[0]) as guest:
                assert_same_tree(FuseClient(guest).tree(), expected(PLAN))
    assert not [line for line in server.lines if "could not be accepted" in line]


def one_page(number):
    """A payload of ADD_MEM_REG: a page, with a gap behind it."""
    gap = 2 * number * PAGE
    return struct.pack("=QQQQQ", 0, GUEST_BASE + gap, PAGE, USER_BASE + gap, number * PAGE)


def test_the_server_may_have_as_many_files_as_its_hard_limit(image, key, paths):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    try:
        with serving(image, paths[:1], "--key", key) as server:
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def switches(pid):
    """How often the threads of a process were put to sleep so far."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                found[task.name] = int(line.split()[1])
    return found


def test_an_idle_server_never_wakes_up(image, key, paths):
    with serving(image, paths, "--key", key) as server, Guest(paths[0]) as guest:
        FuseClient(guest).tree()
        before = None
        for _ in range(40):  # timers of the last reads run out
            if (now := switches(server.process.pid)) == before:
                return
            before = now
            time.sleep(0.5)  # nothing shall happen, so there is nothing to wait for
        pytest.fail(f"it was never idle: {before}")


def test_one_shot_ends_when_all_guests_have_gone(image, key, paths):
    with serving(image, paths, "--key", key, "--one-shot") as server:
        for path in paths:
            with Guest(path) as guest:
                FuseClient(guest)
        assert server.process.wait(END_S) == 0


@pytest.mark.parametrize("walls", ["auto", "namespace", "chroot", "none"])
def test_what_the_server_has_given_up(image, key, paths, walls):
    with serving(image, paths[:1], "--key", key, "--sandbox", walls) as server:
        process = Path(f"/proc/{server.process.pid}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        own = {name: (process / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink()
               for name in ("mnt", "net", "ipc", "uts")}  # fmt: skip
        assert set(own.values()) == {walls in ("auto", "namespace")}
        if walls != "none":
            assert list((process / "root").iterdir()) == []
        command = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert bytes(range(32)).hex().encode() not in command
        with Guest(paths[0]) as guest:
            assert_same_tree(FuseClient(guest).tree(), expected(PLAN))


def test_a_server_without_the_filter(image, key, paths):
    with serving(image, paths[:1], "--key", key, "--seccomp", "off") as server:
        assert "Seccomp:\t0" in Path(f"/proc/{server.process.pid}/status").read_text()
        with Guest(paths[0]) as guest:
            assert_same_tree(FuseClient(guest).tree(), expected(PLAN))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sandbox", "namespace"), "cannot be locked up"),
        (("--sandbox", "chroot"), "cannot be locked up"),
        (("--seccomp", "on"), "system calls cannot be filtered"),
    ],
)
def test_a_sandbox_that_is_insisted_on_is_had_or_refused(key, paths, words, said):
    for image in ("docker://127.0.0.1:9/image:v1", "http://127.0.0.1:9/image:v1"):
        done = rafsfs("serve", image, "--key", key, "--socket-path", paths[0], *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (ExitCode.MOUNT, 1), done.stderr
        assert said in done.stderr
        assert "needs the machine's network" in done.stderr
    assert not paths[0].exists()


def test_an_image_in_a_registry_is_served_without_walls(key, paths, tmp_path):
    with registry(tmp_path / "registry") as store:
        image = store.push(build(PlannedSource(PLAN), tmp_path / "image"), "t/a", "v1")
        with serving(image, paths[:1], "--key", key) as server, Guest(paths[0]) as guest:
            assert_same_tree(FuseClient(guest).tree(), expected(PLAN))
    assert any("its folder is the machine's" in line for line in server.lines)


def test_memory_that_can_be_truncated_is_refused_where_told_so(image, key, paths):
    with serving(image, paths[:1], "--key", key, "--sealed-memory"), pytest.raises(ConnectionError):
        Guest(paths[0])


# --- Sealed -------------------------------------------------------------------------------------------------


def copy_out(client, folder):
    """Everything that a guest sees, as files."""
    for path, found in sorted(client.tree().items()):
        place = folder / os.fsdecode(path)
        if found.content:
            node = client.find(path)
            place.write_bytes(
                b"".join(client.read(node, at, 1 << 16) for at in range(0, found.size, 1 << 16))
            )
        else:
            place.mkdir(exist_ok=True)


def test_a_sealed_image_is_opened_by_its_guest(image, paths, tmp_path):
    build(PlannedSource(PLAN[:1]), image.folder, "of-somebody-else")
    (tmp_path / "copy").mkdir()
    with serving(image, paths[:1], "--sealed") as server:
        with Guest(paths[0]) as guest:
            copy_out(FuseClient(guest), tmp_path / "copy")
        assert stats(paths[0])["requests"]["read"]["count"] > 3
    with opened(image) as original:
        manifest = original.stored.manifest
        names = {blob.digest.removeprefix("sha256:") for blob in (*manifest.blobs, manifest.bootstrap)}
        names |= {manifest.config.digest[7:], original.stored.manifest_digest[7:]}
    copied = tmp_path / "copy"
    assert {path.name for path in (copied / "blobs/sha256").iterdir()} == names
    for name in names:
        place = Path("blobs/sha256", name)
        assert (copied / place).read_bytes() == (image.folder / place).read_bytes()
    assert b"somebody" not in (copied / "index.json").read_bytes()
    with opened(type(image)(copied, image.tag)) as inside:
        assert_same_tree(read_image(inside.filesystem), expected(PLAN))
    assert not [line for line in server.lines if "WARNING" in line or "ERROR" in line]


@pytest.mark.parametrize("what", ["link", "fifo", "gone", "short"])
def test_a_sealed_image_that_is_not_whole_is_not_served(image, paths, what):
    file = chunk_place(image, b"big")[0]
    content = file.read_bytes()
    file.unlink()
    if what == "link":
        file.symlink_to("/etc/passwd")
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "short":
        file.write_bytes(content[:-1])
    done = rafsfs("serve", image, "--sealed", "--socket-path", paths[0])
    codes = {"gone": ExitCode.NO_BLOB, "fifo": ExitCode.STORE}
    assert done.returncode == codes.get(what, ExitCode.TRUNCATED)
    assert len(done.stderr.splitlines()) == 1
    assert not paths[0].exists()


# --- virtiofsd's command line -------------------------------------------------------------------------------


def test_kata_hands_over_a_socket_and_looks_for_a_line(image, key, paths):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(paths[0]))
        listening.listen()
        words = ["--syslog", "--cache=auto", f"--shared-dir={image}", f"--fd={listening.fileno()}"]
        words += ["--thread-pool-size=1", "--announce-submounts", "--key", key]
        process = start_virtiofsd(*words, pass_fds=[listening.fileno()])
    assert WAITING in process.stderr.readline()
    with Guest(paths[0]) as guest:
        assert_same_tree(FuseClient(guest).tree(), expected(PLAN))
    output, errors = process.communicate(timeout=END_S)  # the guest has gone, and it with it
    assert (output, errors, process.returncode) == ("", "", 0)


def test_an_option_that_says_nothing_is_named_in_the_log(image, key, paths):
    words = [
        "-o",
        f"source={image},cache=always,xattr,rlimit_nofile=0,key={key}",
        "-f",
        "--readonly",
        "--socket-path",
        paths[0],
    ]
    process = start_virtiofsd(*words)
    lines = []
    while WAITING not in (line := process.stderr.readline()):
        assert line
        lines.append(line)
    with FrontEnd(paths[0]) as front_end:
        front_end.negotiate()
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert "these options say nothing to an image: cache, readonly, xattr" in "".join(lines)
    assert process.returncode == 0, errors


def test_version():
    said = {(done.stdout, done.returncode) for done in (virtiofsd("-V"), virtiofsd("--version"))}
    assert said == {(f"rafsfs-virtiofsd {version('rafsfs')}\n", 0)}


def test_one_image_of_a_folder_is_chosen_by_its_tag(image, key, paths):
    build(PlannedSource(PLAN[:2]), image.folder, "other")
    for name, plan in ((f"{image.folder}:other", PLAN[:2]), (image, PLAN)):
        process = start_virtiofsd("--shared-dir", name, "--key", key, "--socket-path", paths[0])
        while WAITING not in (line := process.stderr.readline()):
            assert line
        with Guest(paths[0]) as guest:
            assert_same_tree(FuseClient(guest).tree(), expected(plan))
        process.communicate(timeout=END_S)
        assert process.returncode == 0


def test_capabilities():
    done = virtiofsd("--print-capabilities")
    assert json.loads(done.stdout) == {"type": "fs", "features": ["migrate-precopy", "separate-options"]}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), ExitCode.USAGE, "give an image"),
        (("--shared-dir", "/"), ExitCode.USAGE, "give a --socket-path, or --fd"),
        (("--shared-dir", "/", "--fd", "0"), ExitCode.NOT_FOUND, "a plain folder cannot be shared"),
        (("--writeback",), ExitCode.USAGE, "--writeback cannot be had: an image cannot be written to"),
        (("-o", "source=/,flock"), ExitCode.USAGE, "--flock cannot be had"),
        (("-oxattrmap=:map::user.:",), ExitCode.USAGE, "--xattrmap cannot be had"),
        (("--translate-uid", "map:0:1:1"), ExitCode.USAGE, "--uid and --gid"),
        (("-o", "sauce=/"), ExitCode.USAGE, "there is no such option"),
        (("--sandbox", "perhaps"), ExitCode.USAGE, "--sandbox"),
        (("--daemonize",), ExitCode.USAGE, "service manager"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(words, code, said):
    done = virtiofsd(*words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert said in done.stderr


def test_old_options_are_the_new_ones():
    assert arguments_of(["-o", "source=/a,no_xattr", "-d", "-otimeout=1", "--cache=auto", "-o"]) == [
        *("--shared-dir=/a", "--no-xattr", "-d", "--timeout=1", "--cache=auto"),
    ]


# --- Mistakes on the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), ExitCode.USAGE, "give a --socket-path, or --fd"),
        (("--socket-path", "/gone/s"), ExitCode.MOUNT, "the socket cannot be made"),
        (("--socket-path", "x" * 108), ExitCode.MOUNT, "too long"),
        (("--fd", "99"), ExitCode.MOUNT, "the descriptor cannot be used"),
        (("--socket-path", "s", "--tag", "t" * 37), ExitCode.USAGE, "1 to 36 bytes"),
        (("--socket-path", "s", "--socket-group", "gone"), ExitCode.MOUNT, "no such group"),
        (("--socket-path", "s", "--num-request-queues", "65"), ExitCode.USAGE, "65"),
        (("--socket-path", "s", "--sealed"), ExitCode.USAGE, "the guest's business"),
    ],
)
def test_mistakes_are_told_in_one_line(image, key, tmp_path, words, code, said):
    done = rafsfs("serve", image, "--key", key, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("files", "said"), [(90, "too few files"), (1 << 40, "open files cannot be set")])
def test_a_limit_of_open_files_that_cannot_be(image, key, paths, files, said):
    done = rafsfs("serve", image, "--key", key, "--socket-path", paths[0], "--rlimit-nofile", files)
    assert (done.returncode, len(done.stderr.splitlines())) == (ExitCode.MOUNT, 1), done.stderr
    assert said in done.stderr


def test_a_socket_that_is_in_use_is_left_alone(image, key, paths):
    with serving(image, paths[:1], "--key", key):
        done = rafsfs("serve", image, "--key", key, "--socket-path", paths[0])
        assert done.returncode == ExitCode.MOUNT
        assert "Address already in use" in done.stderr
        with Guest(paths[0]) as guest:
            FuseClient(guest)


def test_a_server_that_was_killed_leaves_nothing_in_the_way(image, key, paths):
    with pytest.raises(AssertionError), serving(image, paths, "--key", key) as server:
        server.process.kill()
    with serving(image, paths, "--key", key), Guest(paths[0]) as guest:
        assert_same_tree(FuseClient(guest).tree(), expected(PLAN))


def test_the_file_that_libvirt_looks_for(tmp_path):
    program = (
        "import sys; sys.executable = sys.argv.pop(1); from rafsfs.cli.main import main; sys.exit(main())"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rafsfs-virtiofsd").touch()
    python = tmp_path / "bin" / "python"

    def helper(*words):
        command = [
            os.sys.executable,
            "-c",
            program,
            python,
            "helper",
            "vhost-user",
            "--folder",
            tmp_path / "etc",
        ]
        return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout

    assert "installed" in helper()
    found = json.loads((tmp_path / "etc" / "50-rafsfs-virtiofsd.json").read_text())
    assert (found["type"], found["binary"]) == ("fs", str(tmp_path / "bin" / "rafsfs-virtiofsd"))
    assert "separate-options" in found["features"]
    assert "removed" in helper("--remove")
    assert "not installed" in helper("--remove")
