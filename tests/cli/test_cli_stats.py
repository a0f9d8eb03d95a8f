"""``rafsfs stats`` of real mounts through every front end: what it prints, also where there is nothing."""

import json
import os
import re
import signal

import pytest
from support.images import KEY, build
from support.mounts import chunk_place, flip, mounting, rafsfs, read_error, server_of, umount, wait_for_end

from rafsfs.cli import output
from rafsfs.frontends.mountpoint_linux import mount_on
from rafsfs.frontends.server_sockets import folders
from rafsfs.frontends.statistics_socket import ask
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

CHUNK = 16 * 1024
BIG = os.urandom(20 * CHUNK)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image with a damaged file, and its key."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tree" / "folder").mkdir(parents=True)
    (folder / "tree" / "big").write_bytes(BIG)
    (folder / "tree" / "damaged").write_bytes(os.urandom(CHUNK))
    (folder / "tree" / "folder" / "small").write_text("small")
    reference = build(folder / "tree", folder / "image", chunk_size=CHUNK)
    file, _, offset, _ = chunk_place(reference, b"damaged")
    flip(file, offset)
    save_key(KEY, folder / "key")
    return folder


@pytest.fixture(params=["devfuse", "pyfuse3", "erofs"])
def frontend(request):
    return request.param


@pytest.fixture
def mount(place, tmp_path, frontend):
    words = ["--frontend", frontend, "--log-file", tmp_path / "log", "--key", place / "key", "--allow-other"]
    with mounting(place / "image", tmp_path / "m", *words) as directory:
        yield directory


def stats(directory, *words):
    done = rafsfs("stats", directory, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_reads_and_damage_are_counted(mount, frontend):
    before = json.loads(stats(mount, "--json"))
    assert before["mount"]["frontend"] == frontend
    assert before["decoded"]["chunks"] == 0
    assert (mount / "big").read_bytes() == BIG
    assert read_error(mount / "damaged") != 0
    after = json.loads(stats(mount / "folder", "--json"))
    assert after["mount"] | {"uptime_s": 0} == before["mount"] | {"uptime_s": 0}
    assert after["mount"]["uptime_s"] > before["mount"]["uptime_s"]
    assert after["decoded"]["chunks"] >= 20
    assert after["decoded"]["chunk_bytes"] >= len(BIG)
    assert after["failures"]["authentication"] >= 1
    assert len(BIG) < after["cache"]["used_bytes"] <= after["cache"]["budget_bytes"]
    waited = after["requests"]["read_waited"]
    assert waited["count"] == sum(waited["buckets"].values()) > 0
    assert after["requests"].keys() >= {"getattr"} | ({"lookup"} if frontend == "erofs" else {"open"})


def test_for_people_and_for_prometheus(mount, place):
    (mount / "big").read_bytes()
    text = stats(mount)
    assert f"  image       {place / 'image'}:latest\n" in text
    # reading ahead may have met the damage
    assert re.search(r"^  failures    \d authentication, 0 format, 0 store$", text, re.MULTILINE)
    assert "  request " in text
    assert "  read_waited " in text
    assert max(map(len, text.splitlines()[1:])) < 80
    assert '\nrafsfs_failures_total{kind="store"} 0\n' in stats(mount, "--prometheus")


def test_nothing_is_left_of_a_server_that_ended(mount):
    device = mount_on(mount).device
    path = folders()[0] / f"{device.replace(':', '-')}.sock"
    ask(device)
    assert path.is_socket()
    umount(mount)
    assert not path.exists()
    done = rafsfs("stats", mount)
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.startswith("rafsfs: this is not in a rafsfs mount (path ")


def test_of_a_killed_server(mount, tmp_path):
    stats(mount)
    server = server_of(tmp_path / "log")
    os.kill(server, signal.SIGKILL)
    wait_for_end(server)
    done = rafsfs("stats", mount)
    assert (done.returncode, done.stdout) == (9, "")
    # another mount's server may have taken away by now what this one left
    assert re.match("rafsfs: the server tells no statistics: (Connection refused|.*no socket)", done.stderr)


def test_mistakes_of_usage(tmp_path):
    for arguments, code in ((["--json", "--prometheus"], 2), ([], 9)):
        done = rafsfs("stats", tmp_path, *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)


@pytest.mark.parametrize(
    ("microseconds", "expected"),
    [
        (0, "0.0 us"),
        (4.21, "4.2 us"),
        (380, "380 us"),
        (999.6, "1.00 ms"),
        (12_500, "12.5 ms"),
        (999_600, "1.00 s"),
        (99_940_000, "99.9 s"),
        (100_000_000, "2 min"),
        (12_000_000_000, "3 h 20 min"),
        (200_000_000_000, "2 days 7 h"),
    ],
)
def test_durations(microseconds, expected):
    assert output.duration(microseconds) == expected
