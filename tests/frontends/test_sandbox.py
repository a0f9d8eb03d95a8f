"""Processes in the sandbox try what they must not be able to do; those that serve are in test_serve.py."""

import ctypes
import errno
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rafsfs.frontends import seccomp

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

ROOT = Path(__file__).parents[2]
NOBODY = 65534

PROGRAM = f"""
import ctypes, json, logging, os, resource, signal, socket, sys, tempfile, threading
sys.path.insert(0, {str(ROOT)!r})
from rafsfs.errors import MountError
from rafsfs.frontends.sandbox import Filter, Walls, enter
walls, user, filtered = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "filtered"
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
os.umask(0o77)
libc = ctypes.CDLL(None, use_errno=True)

def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def connect():
    with socket.socket() as client:
        client.connect(("127.0.0.1", 9))

def fork():
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)

attempts = {{
    "open": lambda: open("/etc/passwd").close(),
    "make": lambda: os.mkdir("/made"),
    "leave": lambda: os.chroot("."),
    "socket": lambda: socket.socket().close(),
    "connect": connect,
    "fork": fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "ptrace": lambda: call(libc.ptrace, 16, os.getppid(), 0, 0),
    "mount": lambda: call(libc.mount, b"none", b"/", b"tmpfs", 0, None),
    "unshare": lambda: call(libc.unshare, 0x10000000),
    "setuid": lambda: os.setuid(1),
    "code": lambda: call(libc.mprotect, page, 4096, 7),
}}
libc.mmap.restype = ctypes.c_void_p
page = ctypes.c_void_p(libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0)))
status = os.open("/proc/self/status", os.O_RDONLY)
enter(Walls(walls), Filter.ON if filtered else Filter.OFF)
found = {{}}
for name, attempt in attempts.items():
    if name == "exec" and not filtered:
        continue
    try:
        attempt()
        found[name] = 0
    except OSError as error:
        found[name] = error.errno
result = []
thread = threading.Thread(target=lambda: result.append(os.eventfd(0)))
thread.start()
thread.join()
lines = dict(line.split(":\\t", 1) for line in os.pread(status, 65536, 0).decode().splitlines())
print(json.dumps({{
    "errors": found,
    "threads": len(result),
    "status": lines,
    "entries": None if filtered else os.listdir("/"),
}}))
"""


LINES = f"""
import logging, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from rafsfs.errors import StoreError
from rafsfs.frontends import logs
from rafsfs.frontends.sandbox import Walls, enter
logs.use(logs.to_standard_error(as_json=sys.argv[2] == "json"), "INFO")
enter(Walls(sys.argv[1]))
log = logging.getLogger("vhost")
log.warning("%s", "a\\nb\\x1b\\udcff\\u200b\\U000e0001")
log.error("%s", StoreError("c\\nd", found="e\\x00"))
def work():
    raise ValueError("f\\ng")
def fail():
    try:
        work()
    except ValueError:
        log.exception("h")
threads = [threading.Thread(target=fail), threading.Thread(target=work)]
for thread in threads:
    thread.start()
    thread.join()
log.warning("last")
"""


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("walls", ["auto", "none"])
def test_every_line_is_logged_also_names_and_tracebacks_that_nobody_has_seen_before(walls, form):
    done = subprocess.run(
        [sys.executable, "-c", LINES, walls, form], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr
    for what in (
        r"a\nb",
        r"\udcff\u200b",
        r"c\nd",
        "ValueError: f",
        '"h"' if form == "json" else ": h",
        "last",
    ):
        assert what in said, (what, said)
    assert said.count("Traceback") == 2  # the last thread's is that of Python itself
    assert len([line for line in said.splitlines() if "WARNING" in line.upper()]) == 2


def tried(walls, user=0, *, filtered=True):
    """What a process in the sandbox could do: errno by attempt, 0 for success."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, walls, str(user), "filtered" if filtered else "bare"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("user", [0, NOBODY])
@pytest.mark.parametrize("walls", ["auto", "namespace", "none"])
def test_filtered_it_can_do_nothing_but_serve(walls, user):
    found = tried(walls, user)
    assert found["errors"] == dict.fromkeys(found["errors"], errno.EPERM)
    assert len(found["errors"]) == 13
    assert found["threads"] == 1
    status = found["status"]
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    sets = [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
    assert sets == ["0" * 16] * 4
    assert user or status["CapBnd"] == "0" * 16


@pytest.mark.parametrize("user", [0, NOBODY])
def test_namespaces_alone_leave_an_empty_folder_and_no_network(user):
    found = tried("namespace", user, filtered=False)
    assert found["entries"] == []
    errors = found["errors"]
    assert errors["open"] == errno.ENOENT
    assert errors["make"] == (errno.EACCES if user else errno.EROFS) or errors["make"] == errno.EROFS
    assert errors["connect"] == errno.ENETUNREACH
    assert {errors[name] for name in ("leave", "mount", "ptrace")} == {errno.EPERM}


def test_an_empty_folder_alone_has_nothing_in_it_for_good():
    found = tried("chroot", filtered=False)
    assert found["entries"] == []
    assert found["errors"]["open"] == errno.ENOENT
    assert found["errors"]["make"] in (errno.ENOENT, errno.EACCES)
    assert found["errors"]["leave"] == errno.EPERM


def test_a_user_who_may_not_change_the_root_is_told_what_to_do():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "chroot", str(NOBODY), "filtered"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (
        "MountError: the root folder cannot be changed: Operation not permitted; choose another"
        in done.stderr
    )


def test_numbers_of_system_calls_are_those_of_the_kernel_headers():
    headers = {
        0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        1: Path("/usr/include/asm-generic/unistd.h"),
    }
    for place, header in headers.items():
        pattern = r"#define __NR(?:3264)?_(\w+) (\d+)"
        numbers = {name: int(number) for name, number in re.findall(pattern, header.read_text())}
        allowed = {name: pair[place] for name, pair in seccomp._ALLOWED.items()}
        assert allowed == {name: numbers.get(name) for name in allowed}
        limited = [call.numbers[place] for call in seccomp._LIMITED]
        fourth = "newfstatat" if place == 0 else "fstatat"
        assert limited == [numbers[name] for name in ("clone", "mmap", "mprotect", fourth, "ioctl")]
        assert numbers["clone3"] == seccomp._CLONE3
        assert numbers["seccomp"] == list(seccomp._SECCOMP.values())[place]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the 32-bit entry is x86's")
def test_another_architecture_s_entry_to_the_kernel_ends_the_process():
    """On x86 a program can call the kernel as 32-bit code does, where other numbers hold."""
    program = f"""
import ctypes, mmap, sys
sys.path.insert(0, {str(ROOT)!r})
from rafsfs.frontends import seccomp
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20 (getpid); int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
seccomp.allow_serving_only()
print("here", flush=True)
call()
print("there", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("here\n", -31)  # SIGSYS


def test_the_page_for_code_was_there():
    """``mprotect`` fails for want of permission, not of a page: without the filter it succeeds."""
    assert tried("none", filtered=False)["errors"]["code"] == 0
    assert ctypes.sizeof(ctypes.c_void_p) == 8
