"""Servers in the background: each test starts one from a fresh interpreter, which has one thread."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """
import os, signal, sys, threading
from rafsfs.errors import KeyFileError, MountError
from rafsfs.frontends.daemon import inherited_descriptors, run_in_background
"""


def start(body, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HEAD + body, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def run(body, *arguments, **options):
    """Return the caller's (exit code, output, errors); comes back only when the server let go of them."""
    process = start(body, *arguments, **options)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def wait_for_end(pid):
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 60)[0]
    finally:
        os.close(descriptor)


@pytest.fixture
def fifo(tmp_path):
    """A server blocks on this until the test opens it, or tells the test something through it."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_the_caller_goes_on_when_the_server_is_up_and_the_server_lives_on(fifo):
    code, output, errors = run(
        """
def serve(ready):
    ready()
    open(sys.argv[1], "w").write(f"{os.getpid()} {os.getsid(0)} {os.getcwd()}")

checked = []
run_in_background(serve, lambda: checked.append(os.getpid()))
print(os.getpid() in checked)
""",
        fifo,
    )
    assert (code, output, errors) == (0, "True\n", "")
    pid, leader, folder = fifo.read_text().split()
    assert pid == leader
    assert folder == "/"
    wait_for_end(int(pid))


def test_a_thread_that_was_joined_is_no_thread_any_more():
    code, output, errors = run(
        """
for _ in range(100):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()  # which comes back before the kernel has forgotten it
    run_in_background(lambda ready: ready(), lambda: None)
print("all")
"""
    )
    assert (code, output, errors) == (0, "all\n", "")


def test_the_server_keeps_nothing_of_its_caller_s(fifo, tmp_path):
    pipe_reading, pipe_writing = os.pipe()
    code, output, errors = run(
        """
unwanted = inherited_descriptors()
own = os.open("/dev/zero", os.O_RDONLY)

def serve(ready):
    ready()
    with open(sys.argv[1], "w") as told:
        print(sys.argv[2] in os.listdir("/dev/fd"), os.read(own, 1), file=told)
        print(*(os.readlink(f"/proc/self/fd/{n}") for n in range(3)), file=told)

run_in_background(serve, lambda: None, unwanted=unwanted)
""",
        fifo,
        pipe_writing,
        pass_fds=[pipe_writing],
    )
    os.close(pipe_writing)
    try:
        assert (code, output, errors) == (0, "", "")
        assert (
            os.read(pipe_reading, 1) == b""
        )  # nobody holds the other end, so whoever reads it is not kept waiting
    finally:
        os.close(pipe_reading)
    assert fifo.read_text() == "False b'\\x00'\n/dev/null /dev/null /dev/null\n"


def test_output_goes_to_the_file_that_is_given(fifo, tmp_path):
    file = tmp_path / "output"
    code, output, errors = run(
        """
file = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)

def serve(ready):
    ready()
    os.write(1, b"one ")
    os.write(2, b"two")
    open(sys.argv[1], "w").close()

run_in_background(serve, lambda: None, output=file)
""",
        fifo,
        file,
    )
    assert (code, output, errors) == (0, "", "")
    assert fifo.read_text() == ""
    assert file.read_text() == "one two"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise MountError('no', hint='do')", "no; do"),
        ("raise KeyFileError('bad key')", "bad key"),
        ("raise ZeroDivisionError('by zero')", "the server failed: ZeroDivisionError: by zero"),
        ("sys.exit('gone')", "the server failed: SystemExit: gone"),
        ("raise MountError('x' * 100_000)", "x" * 65536),
        ("os._exit(7)", "the server ended before it was up, with exit code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the server ended before it was up, by SIGKILL"),
        ("return", "the server ended before it was up, with exit code 0"),
    ],
)
def test_what_keeps_the_server_from_coming_up_is_the_caller_s_error(failure, message):
    code, output, errors = run(
        f"""
def serve(ready):
    {failure}

try:
    run_in_background(serve, lambda: print("checked"))
except MountError as error:
    print(error)
"""
    )
    assert code == 0, errors
    assert output.startswith(message)
    assert "checked" not in output


def test_a_server_that_does_not_answer_is_ended(fifo):
    code, output, errors = run(
        """
def serve(ready):
    ready()
    signal.sigwait({signal.SIGTERM})

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
def check():
    raise MountError("no answer")

try:
    run_in_background(serve, check)
except MountError as error:
    print(error)
try:
    os.wait()
except ChildProcessError:
    print("no child is left")
"""
    )
    assert (code, output, errors) == (0, "no answer\nno child is left\n", "")


def test_an_interrupted_caller_takes_the_server_with_it(fifo):
    process = start(
        """
def serve(ready):
    with open(sys.argv[1], "w") as told:
        told.write(str(os.getpid()))
    signal.pause()

run_in_background(serve, lambda: None)
""",
        fifo,
    )
    server = int(fifo.read_text())
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert "KeyboardInterrupt" in errors
    wait_for_end(server)


def test_a_server_whose_caller_was_killed_ends_when_it_wants_to_report(fifo):
    process = start(
        """
def serve(ready):
    with open(sys.argv[1], "w") as told:
        told.write(str(os.getpid()))
    open(sys.argv[1]).read()  # until the test is done with the caller
    ready()
    signal.pause()

run_in_background(serve, lambda: None)
""",
        fifo,
    )
    server = int(fifo.read_text())
    process.kill()
    process.communicate()
    fifo.write_text("go on")
    wait_for_end(server)


def test_threads_must_not_exist_yet():
    code, output, errors = run(
        """
blocker = threading.Event()
thread = threading.Thread(target=blocker.wait)
thread.start()
try:
    run_in_background(lambda ready: None, lambda: None)
except AssertionError as error:
    print(error)
blocker.set()
"""
    )
    assert (code, output, errors) == (0, "the server has to be started while no other thread is there\n", "")
