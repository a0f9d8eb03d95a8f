"""Runs a server in the background and tells the caller when it serves; knows nothing of what is served."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from rafsfs.errors import MountError, RafsError

log = logging.getLogger("rafsfs.mount")

_READY: Final = b"\0"
_MESSAGE_BYTES_MAX: Final = (
    64 * 1024
)  # what a pipe takes at once, so that the child never waits for its parent
_LAST_THREAD_S: Final = 1.0
_LOOK_AGAIN_S: Final = 0.001


def inherited_descriptors() -> frozenset[int]:
    """Return the open descriptors above standard error; call it before anything of ours is opened.

    The server must not keep them: who waits for the end of a pipe, or a lock, would wait for the unmount.
    """
    listed = [int(entry.name) for entry in Path("/dev/fd").iterdir()]
    return frozenset(number for number in listed if number > 2 and _is_open(number))


def _is_open(descriptor: int) -> bool:
    # The one that listed the folder is in its own listing, but closed by now.
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def run_in_background(
    serve: Callable[[Callable[[], None]], None],
    check_serving: Callable[[], None],
    *,
    output: int | None = None,
    unwanted: frozenset[int] = frozenset(),
) -> None:
    """Call ``serve`` in a process of its own; return when it serves.

    ``serve`` gets a function to call when it is up, and returns when its work is over. ``check_serving`` then
    runs here and raises when the server does not answer after all. ``output`` is the descriptor that becomes
    the server's standard output and error, the null device when None; ``unwanted`` are closed in it.

    Raises ``MountError`` with what the server said when it fails before it is up. Call it while this
    process has one thread: others would not exist in the server, and what they hold would be held for ever.
    """
    is_alone = _is_alone()
    assert is_alone, "the server has to be started while no other thread is there"
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_server(serve, writing, output, unwanted)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            message = pipe.read(_MESSAGE_BYTES_MAX)
        if message == _READY:
            check_serving()
            return
    except BaseException:
        os.kill(child, signal.SIGTERM)  # it then unmounts; not waited for yet, so the number is still its own
        os.waitpid(child, 0)
        raise
    _, status = os.waitpid(child, 0)
    raise _failure(os.waitstatus_to_exitcode(status), message)


def _be_the_server(
    serve: Callable[[Callable[[], None]], None], writing: int, output: int | None, unwanted: frozenset[int]
) -> NoReturn:
    """Leave the caller's terminal and folder, serve, and end without going back to the caller's code."""
    code = 1
    is_ready = False
    try:
        os.setsid()
        os.chdir("/")
        _replace_standard_streams(output)
        for descriptor in unwanted:
            os.close(descriptor)

        def ready() -> None:
            nonlocal is_ready
            os.write(writing, _READY)
            os.close(writing)
            is_ready = True

        serve(ready)
        code = 0
    except BaseException as error:
        text = (
            str(error)
            if isinstance(error, RafsError)
            else f"the server failed: {type(error).__name__}: {error}"
        )
        log.critical("%s", text)
        log.debug("its traceback", exc_info=error)
        if not is_ready:
            with suppress(BrokenPipeError):  # our parent was killed, and nobody else wants to know
                os.write(writing, text.encode(errors="replace")[:_MESSAGE_BYTES_MAX])
    finally:
        logging.shutdown()
        os._exit(code)


def _replace_standard_streams(output: int | None) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    for stream in (1, 2):
        os.dup2(null if output is None else output, stream)
    if null > 2:
        os.close(null)


def _failure(code: int, message: bytes) -> MountError:
    if message:
        return MountError(message.decode(errors="replace"))
    ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return MountError(f"the server ended before it was up, {ended}", hint="see the log, or try --foreground")


def _is_alone() -> bool:
    """Whether this process has one thread. One that was joined may be about to end for a moment yet."""
    deadline = time.monotonic() + _LAST_THREAD_S
    while _thread_count() > 1:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)
    return True


def _thread_count() -> int:
    tasks = Path("/proc/self/task")  # knows of threads that native libraries started
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()
