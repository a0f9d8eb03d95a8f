"""What commands print: sizes, tables, fields; on terminals and elsewhere, whatever is in them."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.cli import output

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_230, "9.99 KiB"),
        (10_240, "10.0 KiB"),
        (102_400, "100 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (1536 * 1024, "1.50 MiB"),
        (5 * 1024**3, "5.00 GiB"),
        (2**63 - 1, "8192 PiB"),
    ],
)
def test_sizes(count, text):
    assert output.byte_size(count) == text


@given(st.integers(0, 2**63))
def test_sizes_are_short_and_true(count):
    number, unit = output.byte_size(count).split()
    factor = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}[unit]
    assert len(number) <= 4
    assert float(number) * factor == pytest.approx(count, rel=0.006)


def test_speeds_and_shares():
    assert output.speed(213_400_000, 1) == "213 MB/s"
    assert output.speed(2_130_000, 1) == "2.1 MB/s"
    assert output.speed(0, 0) == "0.0 MB/s"
    assert output.share(1, 3) == "33 %"
    assert output.share(0, 0) == "0 %"


def test_times():
    assert output.utc(0) == "1970-01-01 00:00:00 UTC"
    assert output.utc(2**40) == f"{2**40} seconds after 1970"


def test_json_takes_names_of_any_bytes(capsys):
    name = os.fsdecode(b"\xff\x00\n\x1b")
    output.print_json({"name": name})
    assert os.fsencode(json.loads(capsys.readouterr().out)["name"]) == b"\xff\x00\n\x1b"


def test_what_the_encoding_lacks_is_escaped():
    program = "from rafsfs.cli import output; output.print_line('caf\u00e9 \u4e16')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == b"caf\xe9 \\u4e16\n"


def test_fields_are_aligned_and_each_on_its_line(capsys):
    output.print_fields([("a", "1"), ("longer", "two\nlines\x1b[2J"), ("empty", "")])
    assert capsys.readouterr().out == "  a       1\n  longer  two\\nlines\\x1b[2J\n  empty\n"


def test_tables_are_not_folded_where_nobody_looks(capsys):
    rows = [("x" * 300, "1"), ("[red]y[/]", "1,000")]
    output.print_table(("NAME", "SIZE"), rows, right=("SIZE",), indent=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  NAME" + " " * 296 + "   SIZE"
    assert lines[1] == "  " + "x" * 300 + "      1"
    assert lines[2] == "  [red]y[/]" + " " * 291 + "  1,000"


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_no_cell_breaks_a_row_or_speaks_to_a_terminal(cells):
    program = _captured(lambda: output.print_table(["A"], [[cell] for cell in cells]))
    lines = program.splitlines()
    assert len(lines) == 1 + len(cells)
    assert all(line.isprintable() for line in lines)


def _captured(print_something):
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as printed:
        print_something()
    return printed.getvalue()


ON_TERMINAL = """
from rafsfs.cli import output
output.print_table(("NAME", "KIND"), [("n" * 100, "kind"), ("short", "kind")])
"""


def test_tables_are_folded_to_the_width_of_a_terminal():
    terminal, side = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", ON_TERMINAL], stdout=side, check=True, cwd=ROOT, env=environment)
    os.close(side)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(terminal, 4096).decode())
    os.close(terminal)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert lines[1].replace("kind", "").strip() + lines[2] == "n" * 100


def test_progress_is_silent_where_there_is_no_terminal(capfd):
    with output.progress("Building") as update:
        assert update is None
    assert capfd.readouterr() == ("", "")


SLOWLY = """
import sys
from rafsfs.cli import output
with output.progress("Testing", fraction=lambda: 0.5) as update:
    if update is not None:
        update(12345, 6 << 20)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_progress_on_a_terminal(term):
    """The program waits until the numbers were seen; where the terminal can do nothing it shows nothing."""
    terminal, side = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": term}
    program = [sys.executable, "-c", SLOWLY]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stderr=side, cwd=ROOT, env=environment) as process:
        os.close(side)
        shown = b""
        while b"12,345" not in shown:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the program has ended
                break
        process.communicate(b"\n")
    assert process.returncode == 0
    os.close(terminal)
    if term == "dumb":
        assert shown == b""
        return
    line = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode().splitlines()[-1].split("\r")[-1]
    assert re.fullmatch(r"Testing +\S+ +50 % +12,345 entries +6\.00 MiB +[\d.,]+ MB/s +0:\d\d *", line)
    assert len(line) <= 77
