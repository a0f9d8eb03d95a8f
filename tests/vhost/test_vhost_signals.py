"""Signals over descriptors whose other owner wants us to hang: each call comes back, whatever is there."""

import os
import socket
import threading
from contextlib import contextmanager

import pytest
from support.vhost_frontend import TIMEOUT_S

from vhost import signals
from vhost.errors import RefusedError
from vhost.kernel_signals import KernelSignals
from vhost.signals import Bell

FULL = 2**64 - 2


def full_eventfd():
    event = os.eventfd(0)
    os.eventfd_write(event, FULL)
    return event


@pytest.fixture(params=["kernel", "without"])
def kernel(request):
    """What signals eventfds; and none, as where the kernel has no asynchronous requests."""
    made = KernelSignals()
    if request.param == "without":
        made.close()
        made.close = lambda: None
    else:
        assert made.is_available
    yield made
    made.close()


@pytest.fixture
def bell(kernel):
    made = Bell(kernel)
    yield made
    made.close()


def test_eventfd_counts_its_signals(bell):
    event = os.eventfd(0, os.EFD_NONBLOCK)
    bell.replace(os.dup(event))
    for count in (1, 3, 200):  # more than there is room for events
        for _ in range(count):
            bell.ring()
        assert os.eventfd_read(event) == count
    os.close(event)


def test_pipes_and_sockets_carry_eight_bytes_for_each_signal(bell):
    ends = socket.socketpair()
    for reader, writer in (os.pipe(), (ends[0].detach(), ends[1].detach())):
        bell.replace(writer)
        bell.ring()
        bell.ring()
        assert os.read(reader, 100) == signals._ONE * 2
        bell.close()
        os.close(reader)


def test_full_eventfd_that_was_made_to_wait_has_been_signalled(bell):
    event = full_eventfd()
    bell.replace(os.dup(event))
    os.set_blocking(event, True)
    bell.ring()
    assert os.eventfd_read(event) >= FULL
    os.close(event)


@contextmanager
def made_to_wait(descriptor):
    """Take O_NONBLOCK away, again and again."""
    ended = threading.Event()

    def work():
        while not ended.is_set():
            os.set_blocking(descriptor, True)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(TIMEOUT_S)


def test_whoever_takes_the_flag_away_all_the_time_hangs_nobody():
    kernel = KernelSignals()
    bell = Bell(kernel)
    event = full_eventfd()
    bell.replace(os.dup(event))
    with made_to_wait(event):
        for _ in range(5_000):
            bell.ring()
            os.eventfd_read(event)
            signals.clear(event)  # there is nothing
            os.eventfd_write(event, FULL)
    bell.close()
    kernel.close()
    os.close(event)


def test_what_is_not_there_is_not_waited_for():
    ends = socket.socketpair()
    for reader, writer in (os.pipe(), (ends[0].detach(), ends[1].detach())):
        os.set_blocking(reader, True)
        signals.clear(reader)
        with pytest.raises(BlockingIOError):
            signals.read(reader, 8)
        os.write(writer, b"some")
        assert signals.read(reader, 8) == b"some"
        os.close(writer)
        with pytest.raises(BrokenPipeError):
            signals.clear(reader)
        os.close(reader)


def test_a_full_pipe_is_not_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    with pytest.raises(BlockingIOError):
        signals.write(writer, b"more")
    os.close(reader)
    os.close(writer)


def test_a_bell_that_nobody_hears_is_given_back(bell):
    reader, writer = os.pipe()
    os.close(reader)
    bell.replace(writer)
    with pytest.raises(BrokenPipeError):
        bell.ring()
    bell.ring()  # nobody wants to hear any more


def test_what_is_anonymous_and_no_eventfd_cannot_be_signalled():
    kernel = KernelSignals()
    bell = Bell(kernel)
    bell.replace(os.pidfd_open(os.getpid()))
    with pytest.raises(OSError, match="Invalid argument"):
        bell.ring()
    kernel.close()


def test_files_are_refused_as_signals(bell):
    with pytest.raises(RefusedError, match="cannot signal: a file"):
        bell.replace(os.memfd_create("file"))


def test_files_in_memory_carry_a_state():
    file = signals.adopt(os.memfd_create("file"), may_be_file=True)
    assert signals.write(file, b"state") == 5
    os.lseek(file, 0, os.SEEK_SET)
    assert [signals.read(file, 9), signals.read(file, 9)] == [b"state", b""]
    os.close(file)
