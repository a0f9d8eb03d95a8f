"""Runs a bundle's container in the foreground: signals in, its exit code out; makes and removes no bundle."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from rafsfs.errors import MountError, Where

RUNTIMES: Final = ("runc", "crun")
KILL_WAIT_S: Final = 30.0
"""How long the kernel may take to end a container that was killed."""

_UNIFIED: Final = Path("/sys/fs/cgroup/unified/cgroup.controllers")
"""Where systemd puts version 2 when it is not all there is (its 'hybrid' mode)."""

_FORWARDED: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT),
)


def run_container(runtime: str, bundle: Path, name: str) -> int:
    """Run the bundle's container until it ends; gives its exit code, 128 and the number for a signal.

    Signals are passed on to it. Raises MountError when the runtime is not installed.
    """
    try:
        child = subprocess.Popen([runtime, "run", "--bundle", str(bundle), name])
    except FileNotFoundError:
        raise _not_installed(runtime) from None
    with _forwarding(child):
        code = child.wait()
    return 128 - code if code < 0 else code


def kill_container(runtime: str, name: str) -> None:
    """Kill a container, if there is one, and have the runtime forget it."""
    subprocess.run(
        [runtime, "delete", "--force", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=KILL_WAIT_S,
    )


def check_runtime(runtime: str) -> None:
    """Raise MountError unless the runtime is installed, and runs containers on this machine."""
    import shutil

    if shutil.which(runtime) is None:
        raise _not_installed(runtime)
    # It says so itself when it is too late: the bundle is made, and its exit code might be the command's.
    if runtime == "crun" and (controllers := hybrid_controllers()):
        raise MountError(
            "crun runs nothing where control groups of both versions are in use",
            expected="no controllers of version 2 beside version 1",
            found=controllers,
            where=Where(file=str(_UNIFIED)),
            hint="use --runtime runc, or boot with systemd.unified_cgroup_hierarchy=1",
        )


def hybrid_controllers() -> str:
    """The controllers of control groups, version 2, on a machine that has version 1 as well."""
    try:
        return _UNIFIED.read_text().strip()
    except OSError:
        return ""


def _not_installed(runtime: str) -> MountError:
    return MountError(f"{runtime} is not installed", hint="install it, or choose another with --runtime")


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass signals on to the runtime, which passes them on to the container."""

    def forward(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
