"""Images run: by runc and crun out of bundles, by rafsfs run; nothing is left behind, however it ends."""

import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.images import KEY
from support.mounts import ROOT, rafsfs, wait_for_end, wait_until_gone
from support.stock import layer, member, stock_image, symlink

from rafsfs.frontends.container_run import hybrid_controllers
from rafsfs.frontends.mountpoint_linux import mount_on, mounts
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

BUSYBOX = Path("/bin/busybox").read_bytes()
CONFIG = {
    "Env": ["GREETING=hello"],
    "Cmd": ["/bin/sh", "-c", "echo $GREETING from $(id -u):$(id -g) in $(pwd)"],
    "User": "app:users",
    "WorkingDir": "/home/of/app",
}
LAYERS = (
    layer(
        member("bin/"),
        member("bin/busybox", BUSYBOX, mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in ("sh", "id", "cat", "kill", "sleep", "ls", "mount")),
        member("etc/"),
        member("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:100::/home/app:/bin/sh\n"),
        member("etc/group", b"users:x:100:\n"),
        member("removed", b"x"),
        member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    ),
    layer(member(".wh.removed", b""), member("added", b"by the second layer"), member("tmp/", mode=0o1777)),
)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """Arguments that name an image of two layers and its key."""
    work = tmp_path_factory.mktemp("containers")
    save_key(KEY, work / "key")
    source = stock_image(work / "stock", *LAYERS, config=CONFIG)
    done = rafsfs("convert", source, work / "sealed", "--key", work / "key")
    assert done.returncode == 0, done.stderr
    return work / "sealed", "--key", work / "key"


@pytest.fixture(autouse=True)
def clean(tmp_path):
    """Nothing may be left of a test: no mount, no folder."""
    yield
    assert [mount for mount in mounts() if mount.directory.startswith(str(tmp_path))] == []


def runtime(name, bundle, container):
    """Run a bundle; by crun, which runs nothing where both versions of control groups are, past version 2."""
    words = [name, "run", "--bundle", str(bundle), container]
    if name == "crun" and hybrid_controllers():
        script = 'umount /sys/fs/cgroup/unified && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", *words]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def run(tmp_path, *arguments, **options):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    return rafsfs(
        "run", *arguments, env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}, **options
    )


def start(tmp_path, *arguments):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "rafsfs", "run", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
    )


def left(tmp_path):
    return list((tmp_path / "run").iterdir())


def test_command_of_the_image(sealed, tmp_path):
    done = run(tmp_path, *sealed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from 1000:100 in /home/of/app\n", "")
    assert left(tmp_path) == []


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_code_is_the_containers(sealed, tmp_path, code):
    assert run(tmp_path, *sealed, "sh", "-c", f"exit {code}").returncode == code


def test_standard_input_and_options_of_the_command(sealed, tmp_path):
    done = run(tmp_path, "--user", "0", *sealed, "sh", "-e", "-c", "cat; id -u >&2", input="over there")
    assert (done.returncode, done.stdout, done.stderr) == (0, "over there", "0\n")


def test_options_change_what_the_image_says(sealed, tmp_path):
    options = ["--env", "GREETING=hi", "--workdir", "/tmp", "--user", "7:8", "--hostname", "box"]
    done = run(tmp_path, *options, *sealed, "sh", "-c", "echo $GREETING $(id -u):$(id -g) $(pwd) $HOSTNAME")
    assert done.stdout == "hi 7:8 /tmp box\n"


def test_tree_is_merged_and_can_be_written(sealed, tmp_path):
    script = "cat /added; ls /removed 2>&1; echo new >/etc/new && cat /etc/new; echo x >/null && echo device"
    done = run(tmp_path, "--user", "0", *sealed, "sh", "-c", script)
    assert done.stdout.startswith("by the second layerls: /removed: No such file")
    assert "new\n" in done.stdout
    again = run(tmp_path, *sealed, "cat", "/etc/new")
    assert again.returncode == 1 and again.stdout == ""


def test_network_is_empty_unless_the_hosts_is_asked_for(sealed, tmp_path):
    script = "cat /proc/net/dev"
    own = run(tmp_path, *sealed, "sh", "-c", script).stdout
    host = run(tmp_path, "--net", "host", *sealed, "sh", "-c", script).stdout
    names = [line.split(":")[0].strip() for line in own.splitlines()[2:]]
    assert names == ["lo"]
    expected = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    assert [line.split(":")[0].strip() for line in host.splitlines()[2:]] == expected


def test_terminal_is_the_containers(sealed, tmp_path):
    ours, theirs = pty.openpty()
    (tmp_path / "run").mkdir()
    words = [*map(str, sealed), "sh", "-c", "test -t 0 && test -t 1 && echo on $TERM"]
    child = subprocess.Popen(
        [sys.executable, "-m", "rafsfs", "run", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TMPDIR": str(tmp_path / "run"), "PYTHONPATH": str(ROOT), "TERM": "vt52"},
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    try:
        while b"on vt52" not in said and (data := os.read(ours, 4096)):
            said += data
    except OSError:
        pass  # the terminal is closed
    assert child.wait(60) == 0 and b"on vt52" in said
    os.close(ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on(sealed, tmp_path, number):
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 3' {name}; echo ready; while :; do sleep 0.1; done"
    child = start(tmp_path, *sealed, "sh", "-c", script)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    out, errors = child.communicate(timeout=60)
    assert (child.returncode, out, errors) == (3, f"got {name}\n", "")
    assert left(tmp_path) == []


def test_container_that_is_killed(sealed, tmp_path):
    done = run(tmp_path, *sealed, "sh", "-c", "(sleep 0; kill -9 $$) & exec sh -c 'kill -9 $$; exit 5'")
    assert done.returncode in (5, 137)
    assert left(tmp_path) == []


def test_killed_run_is_cleaned_up_behind(sealed, tmp_path):
    """By the janitor: not at the next start, and without anybody's doing."""
    child = start(tmp_path, *sealed, "sh", "-c", "echo ready; while :; do sleep 0.1; done")
    assert child.stdout.readline() == "ready\n"
    (bundle,) = left(tmp_path)
    assert mount_on(bundle / "rootfs") is not None
    child.kill()
    child.wait()
    wait_until_gone(bundle)
    child.stdout.read()  # ends when nobody of the container is left
    assert subprocess.run(["runc", "state", bundle.name], capture_output=True, check=False).returncode == 1
    child.communicate()


def test_errors_before_it_starts(sealed, tmp_path):
    image, option, key = sealed
    cases = [
        (3, [tmp_path / "none", option, key]),
        (4, [image]),
        (9, ["--user", "nobody", *sealed]),
        (2, ["--runtime", "docker", *sealed]),
        (2, ["--env", "A", *sealed]),
        (2, []),
    ]
    for code, words in cases:
        done = run(tmp_path, *words)
        assert done.returncode == code, done.stderr
        assert left(tmp_path) == []


def bundle(sealed, folder, *arguments):
    done = rafsfs("bundle", sealed[0], folder, *sealed[1:], *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def remove(folder, code=0):
    done = rafsfs("bundle", "--remove", folder)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["runc", "crun"])
def test_runtimes_run_a_bundle(sealed, tmp_path, name):
    folder = bundle(sealed, tmp_path / "bundle")
    try:
        done = runtime(name, folder, f"test-{os.getpid()}")
        assert (done.returncode, done.stdout) == (0, "hello from 1000:100 in /home/of/app\n"), done.stderr
        assert (folder / "config.json").stat().st_mode & 0o777 == 0o600
    finally:
        remove(folder)
    assert not folder.exists()


def test_crun_is_told_to_run_only_where_it_can(sealed, tmp_path):
    done = run(tmp_path, "--runtime", "crun", *sealed)
    if hybrid_controllers():
        assert done.returncode == 9 and "use --runtime runc" in done.stderr and done.stdout == ""
    else:
        assert (done.returncode, done.stdout) == (0, "hello from 1000:100 in /home/of/app\n")
    assert left(tmp_path) == []


def test_what_is_written_is_kept_in_a_folder(sealed, tmp_path):
    for text in ("one", "two"):
        script = f"cat /srv 2>/dev/null; echo {text} >>/srv"
        options = ["--user", "0", "--upper", tmp_path / "upper"]
        folder = bundle(sealed, tmp_path / "bundle", *options, "sh", "-c", script)
        done = runtime("runc", folder, f"test-{os.getpid()}")
        remove(folder)
    assert done.stdout == "one\n"
    assert (tmp_path / "upper/upper/srv").read_text() == "one\ntwo\n"
    assert sorted(path.name for path in (tmp_path / "upper").iterdir()) == ["upper"]


def test_folder_of_yours_keeps_all_that_is_yours(sealed, tmp_path):
    """Also what is called as an overlay's own folder is elsewhere; and when nothing came to be mounted."""
    upper = tmp_path / "upper"
    (upper / "work").mkdir(parents=True)
    (upper / "work/thesis").write_text("mine")
    remove(bundle(sealed, tmp_path / "bundle", "--upper", upper))
    failed = rafsfs("bundle", tmp_path / "none", tmp_path / "bundle", *sealed[1:], "--upper", upper)
    assert failed.returncode == 3, failed.stderr
    assert (upper / "work/thesis").read_text() == "mine"
    assert sorted(path.name for path in upper.iterdir()) == ["upper", "work"]


def test_folder_of_yours_is_one_bundles(sealed, tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    (tmp_path / "same").symlink_to(upper)
    first = bundle(sealed, tmp_path / "first", "--upper", tmp_path / "same")
    for name in (upper, tmp_path / "same"):
        done = rafsfs("bundle", sealed[0], tmp_path / "second", *sealed[1:], "--upper", name)
        assert done.returncode == 9 and f"another bundle writes into this folder: {first}" in done.stderr
        assert not (tmp_path / "second").exists()
    assert runtime("runc", first, f"test-{os.getpid()}").returncode == 0
    remove(first)
    remove(bundle(sealed, tmp_path / "second", "--upper", upper))


def test_marker_names_no_folder_but_ours(sealed, tmp_path):
    folder, mine = tmp_path / "bundle", tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    marker = {"version": 1, "work": str(mine), "made": True}
    (folder / "rafsfs-bundle.json").write_text(json.dumps(marker))
    assert "not a bundle" in remove(folder, code=9)
    assert mine.exists()


def test_bundle_of_a_dead_server_is_removed(sealed, tmp_path):
    folder = bundle(sealed, tmp_path / "bundle")
    (server,) = {
        int(pid.name)
        for pid in Path("/proc").iterdir()
        if pid.name.isdigit() and str(folder).encode() in _command_line(pid)
    }
    os.kill(server, signal.SIGKILL)
    wait_for_end(server)
    remove(folder)
    assert not folder.exists()


def _command_line(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_half_made_bundles_are_removed(sealed, tmp_path):
    """As a kill at any step would leave them."""
    folder = bundle(sealed, tmp_path / "bundle")
    subprocess.run(["umount", folder / "rootfs"], check=True)
    remove(folder)
    bundle(sealed, folder)
    (folder / "config.json").unlink()
    subprocess.run(["umount", folder / "rootfs", folder / "writable"], check=True)
    (folder / "writable").rmdir()
    assert rafsfs("umount", folder / "image").returncode == 0
    (folder / "image").rmdir()
    remove(folder)
    assert not folder.exists()


def test_bundle_in_use_is_left_alone(sealed, tmp_path):
    folder = bundle(sealed, tmp_path / "bundle")
    descriptor = os.open(folder / "rootfs/etc/passwd", os.O_RDONLY)
    try:
        assert "end what uses it" in remove(folder, code=9)
    finally:
        os.close(descriptor)
    remove(folder)


def test_folders_of_others_are_left_alone(sealed, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "file").write_text("mine")
    assert "not a bundle" in remove(folder, code=9)
    done = rafsfs("bundle", sealed[0], folder, *sealed[1:])
    assert done.returncode == 9 and "not empty" in done.stderr
    (folder / "rafsfs-bundle.json").write_text(json.dumps({"version": 2}))
    assert "not a bundle" in remove(folder, code=9)
    assert (folder / "file").read_text() == "mine"


def test_failed_bundle_leaves_nothing(sealed, tmp_path):
    done = rafsfs("bundle", sealed[0], tmp_path / "bundle", *sealed[1:], "--upper", "/proc")
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "bundle").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert rafsfs("bundle", sealed[0], empty).returncode == 4
    assert list(empty.iterdir()) == []
