"""The command group: it imports only what is asked for, and its help shows all."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rafsfs.cli.main import SUMMARIES, command

ROOT = Path(__file__).parents[2]
WRITTEN = [name for name in SUMMARIES if importlib.util.find_spec(f"rafsfs.cli.{name}")]


def rafsfs(*arguments, **environment):
    command_line = [sys.executable, "-m", "rafsfs", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command_line, capture_output=True, text=True, env=environment, check=False)


def modules_after(code):
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    return set(done.stdout.split())


def test_help_lists_all_commands_and_imports_none():
    done = rafsfs("--help")
    assert done.returncode == 0
    for name, summary in SUMMARIES.items():
        assert f"  {name} " in done.stdout
        assert summary in done.stdout
    modules = modules_after(
        "from rafsfs.cli.main import command\nimport contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n    command.main(['--help'], standalone_mode=False)"
    )
    assert {f"rafsfs.cli.{name}" for name in SUMMARIES}.isdisjoint(modules)
    assert modules.isdisjoint({"trio", "pyfuse3", "cryptography", "rich"})


def test_mounting_imports_nothing_that_it_does_not_use():
    modules = modules_after(
        "import rafsfs.cli.mount, rafsfs.frontends.library, rafsfs.frontends.pyfuse3_mount"
    )
    assert "pyfuse3" in modules
    unused = {"rich", "multiprocessing", "asyncio", "http.client", "unittest", "xml"}
    assert modules.isdisjoint(unused)
    assert not [name for name in modules if name.startswith("rafsfs.build")]


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_explains_itself_with_examples(name):
    shown = CliRunner().invoke(command, [name, "--help"], prog_name="rafsfs")
    assert shown.exit_code == 0
    assert f"Usage: rafsfs {name}" in shown.output
    assert "Example" in shown.output
    assert f"rafsfs {name} " in shown.output.partition("Example")[2]


def test_mount_and_umount_are_there():
    assert {"mount", "umount", "helper"} <= set(WRITTEN)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["moutn"], "rafsfs: No such command 'moutn'"),
        (["mount"], "rafsfs: Missing argument 'IMAGE'; see rafsfs mount --help"),
        (["mount", "a"], "rafsfs: Missing argument 'DIR'; see rafsfs mount --help"),
        (["mount", "a", "b", "--kye", "c"], "rafsfs: No such option"),
        (["mount", "a", "b", "--uid", "-1"], "rafsfs: Invalid value for '--uid'"),
        (["mount", "a", "b", "--uid", str(2**32 - 1)], "rafsfs: Invalid value for '--uid'"),
        (
            ["mount", "a", "b", "--cache-size", "much"],
            "rafsfs: Invalid value for '--cache-size': 'much' is not a size",
        ),
        (["umount", ""], "rafsfs: Invalid value for 'DIR': the name is empty"),
        (["mount", "a", "b", "--key", ""], "rafsfs: Invalid value for '--key': the name is empty"),
        (["mount", "a", "b", "--log-level", "all"], "rafsfs: Invalid value for '--log-level'"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(arguments, complaint):
    done = rafsfs(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(complaint)
    assert done.stderr.count("\n") == 1


def test_no_command_shows_the_help():
    done = rafsfs()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def test_version():
    done = rafsfs("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("rafsfs")
