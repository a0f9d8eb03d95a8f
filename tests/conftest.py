"""What all tests share: skips that fail in CI, hypothesis profiles, a watch on litter; never test data."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

IN_CI = os.environ.get("CI", "").lower() not in {"", "0", "false"}
EXAMPLES = int(os.environ.get("RAFSFS_EXAMPLES", "100"))
"""Examples for each property that does not set its own number: raise it for a long search."""

# A shared machine is slow now and then; that proves nothing about the code.
settings.register_profile(
    "dev", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# The same examples every time: a red run in CI is red for everybody who repeats it.
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if IN_CI else "dev")

# Programs that tests start would ignore the signals that they are to end by: in a run started by nohup(1) the
# hang-up, in one that a shell without job control started in the background the interrupt.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

RUN_MARK = "RAFSFS_TEST_RUN"
TALLY = "tally: "
EXIT_GRACE_S = 10.0


# --- Skips --------------------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("requires_root") and os.geteuid() != 0:
        pytest.skip("needs to be root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that cannot run is a failure: nobody reads the list of skipped tests of a green run."""
    if IN_CI and call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        failure = pytest.fail.Exception(f"skipped, a failure in CI: {call.excinfo.value}", pytrace=False)
        call.excinfo = pytest.ExceptionInfo.from_exception(failure.with_traceback(call.excinfo.tb))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself."""
    report = yield
    if IN_CI and report.outcome == "skipped":
        report.outcome = "failed"
        assert isinstance(report.longrepr, tuple)  # (file, line, reason)
        report.longrepr = f"{collector.nodeid}: skipped, a failure in CI: {report.longrepr[2]}"
    return report


# --- Counts -------------------------------------------------------------------------------------------------


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Count what a test tried: ``tally("byte flips refused", 4096)``. The sums close the run's output."""
    return lambda what, count: record_property(TALLY + what, count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            if name.startswith(TALLY):
                counts[name.removeprefix(TALLY)] += count
    if counts:
        terminalreporter.section("counted by tests that passed")
        for what, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:>12,}  {what}")


# --- What is left behind ------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail at the very end if a mount or a process of this run is still there; then clear it away.

    Others may mount and serve on the same machine meanwhile, so only this run's own are looked at. Mounts:
    those that are new and lie in its temporary folder, where ``tempfile`` is made to point too. Processes:
    children, and whatever inherited the mark in the environment or has the temporary folder in its arguments.
    """
    base = tmp_path_factory.getbasetemp().resolve()
    scratch = base / "tmp"
    scratch.mkdir()
    run = f"{RUN_MARK}={uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*run.split("="))
        patch.setenv("TMPDIR", str(scratch))
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        patch.setattr(tempfile, "tempdir", str(scratch))
        mounts_before = mount_points(base)
        yield
        processes = [pid for pid in own_processes(run, base) if not exits(pid)]
        mounts = [mount for mount in mount_points(base) if mount not in mounts_before]
        left = [f"process {pid}: {command_line(pid)}" for pid in processes]
        left += [f"mount: {mount!r}" for mount in mounts]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):  # it may end at last
                os.kill(pid, signal.SIGKILL)
        for mount in reversed(mounts):
            subprocess.run(["umount", "--lazy", mount], check=False)
    if left:
        pytest.fail("the tests left behind:\n" + "\n".join(left), pytrace=False)


def mount_points(base: Path) -> list[str]:
    """Mount points in ``base``, outer ones first; none where there is no /proc."""
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except FileNotFoundError:
        return []
    # proc(5): field 5 is the mount point, with space, tab, newline and backslash as octal escapes.
    raw = (line.split(b" ")[4] for line in table.splitlines())
    points = (os.fsdecode(point.decode("unicode_escape").encode("latin-1")) for point in raw)
    return sorted(point for point in points if Path(point).is_relative_to(base))


def own_processes(run: str, base: Path) -> list[int]:
    """Living processes that this run started; those of other users are not ours to see."""
    me = os.getpid()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            # proc_pid_stat(5): the name is in parentheses and may hold anything; state and parent follow.
            state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if pid == me or state in b"ZX" or b"multiprocessing.resource_tracker" in command:
            continue
        if int(parent) == me or run.encode() in environment or os.fsencode(base) in command:
            found.append(pid)
    return found


def exits(pid: int) -> bool:
    """Whether a process ends within the grace that a server needs after its unmount."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], EXIT_GRACE_S)[0])
    finally:
        os.close(process)


def command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return "(ended)"
    return os.fsdecode(b" ".join(words)).strip()
