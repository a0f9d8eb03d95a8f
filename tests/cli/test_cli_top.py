"""``rafsfs top`` on a terminal of 80 columns and on a real mount, and what it makes of two snapshots."""

import copy
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console
from support.images import KEY, build
from support.mounts import END_S, MIB, ROOT, mounting, rafsfs, umount

from rafsfs.cli.top import view
from rafsfs.frontends.statistics import difference
from rafsfs.trust.keys import save_key

SOURCE = "/a\x1b[31m[b]b[/b]"
BEFORE = {
    "version": 1,
    "mount": {"source": SOURCE, "device": "0:57", "frontend": "devfuse", "pid": 1, "uptime_s": 10.0},
    "requests": {
        "getattr": {"count": 1, "seconds": 0.1, "buckets": {"131072": 1}},
        "read": {"count": 100, "seconds": 1.0, "buckets": {"16384": 100}},
    },
    "cache": {"used_bytes": MIB, "budget_bytes": 4 * MIB, "chunk_hits": 0, "page_hits": 0, "evictions": 0},
    "decoded": {"chunks": 0, "chunk_bytes": 0, "pages": 0, "page_bytes": 0, "fetched_bytes": 0},
    "failures": {"authentication": 0, "format": 0, "store": 1},
    "read_ahead": {"chunks": 0, "used": 0},
}  # fmt: skip


def later(**changes):
    now = copy.deepcopy(BEFORE)
    for path, value in changes.items():
        *folders, name = path.split("__")
        place = now
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return now


NOW = later(
    mount__uptime_s=12.0,
    requests__read={"count": 4100, "seconds": 1.04, "buckets": {"16": 4000, "16384": 100}},
    requests__lookup={"count": 2, "seconds": 0.004, "buckets": {"2048": 2}},
    cache__chunk_hits=3000,
    decoded__chunks=1000,
    decoded__chunk_bytes=400_000_000,
    decoded__fetched_bytes=100_000_000,
)


def drawn(before, now):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(view(Path("/mnt"), before, now))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def row(lines, name):
    (line,) = (line for line in lines if line.startswith(name + " "))
    return " ".join(line.split()[1:])


def test_rates_and_latencies_are_of_the_interval():
    lines = drawn(BEFORE, NOW)
    assert row(lines, "read") == "2,000 10.0 us 12.0 us 15.2 us 15.9 us 4,100"
    assert row(lines, "lookup").startswith("1 2.00 ms ")
    assert row(lines, "getattr") == "0 1"
    assert row(lines, "decoded") == "200 MB/s out of 50 MB/s, 500 chunks/s"
    assert row(lines, "hits") == "1,500 chunks/s, 75 %"
    assert row(lines, "cache") == "[######..................] 1.00 MiB of 4.00 MiB"
    assert row(lines, "failures").startswith("1 since ")


def test_names_do_not_speak_to_the_terminal():
    text = "\n".join(drawn(BEFORE, BEFORE))
    assert "\x1b" not in text
    assert "/a\\x1b[31m[b]b[/b]" in text


def test_another_server_of_the_mount_begins_anew():
    new = later(
        mount__pid=2, mount__uptime_s=1.0, requests__read={"count": 7, "seconds": 0.0, "buckets": {"1": 7}}
    )
    assert row(drawn(NOW, new), "read").startswith("7 ")


def test_difference_of_nothing_and_of_more():
    assert difference({}, NOW) == NOW
    assert difference(NOW, NOW)["requests"]["read"] == {
        "count": 0,
        "seconds": 0,
        "buckets": {"16": 0, "16384": 0},
    }


# --- On a terminal --------------------------------------------------------------------------------------


class Terminal:
    """The command with a terminal of 80 columns of its own."""

    def __init__(self, *arguments):
        self.descriptor, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rafsfs", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(theirs)

    def read_until(self, pattern):
        deadline = time.monotonic() + END_S
        while not re.search(pattern, self.text):
            assert select.select([self.descriptor], [], [], deadline - time.monotonic())[0], self.text
            self.text += os.read(self.descriptor, 65536).decode()

    def end(self):
        try:
            while received := os.read(self.descriptor, 65536):
                self.text += received.decode()
        except OSError:  # EIO: nobody has the other end any more
            pass
        os.close(self.descriptor)
        return self.process.wait(END_S)


@pytest.fixture
def mount(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(os.urandom(100_000))
    build(tmp_path / "tree", tmp_path / "image")
    save_key(KEY, tmp_path / "key")
    with mounting(tmp_path / "image", tmp_path / "m", "--key", tmp_path / "key") as directory:
        yield directory


@pytest.mark.integration
@pytest.mark.requires_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_what_happens_until_it_is_interrupted(mount, number):
    terminal = Terminal("top", mount, "--interval", "0.1")
    terminal.read_until("getattr")
    assert "read_waited" not in terminal.text
    (mount / "file").read_bytes()
    terminal.read_until("read_waited")
    terminal.process.send_signal(number)
    assert terminal.end() == 0
    assert (
        terminal.text.count("\x1b[?1049h") == terminal.text.count("\x1b[?1049l") == 1
    )  # the screen is as it was


@pytest.mark.integration
@pytest.mark.requires_root
def test_it_ends_with_the_mount(mount):
    terminal = Terminal("top", mount, "--interval", "0.1")
    terminal.read_until("getattr")
    umount(mount)
    assert terminal.end() == 9
    after = terminal.text.partition("\x1b[?1049l")[2]
    assert re.search("rafsfs: (this is not in a rafsfs mount|the server tells no statistics)", after)


def test_without_a_terminal_it_says_what_to_use(tmp_path):
    done = rafsfs("top", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "rafsfs stats --json" in done.stderr
