"""doc/SECURITY.md and the tests that it names stay together."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "doc/SECURITY.md").read_text()
ATTACKS = {path.name: path.read_text() for path in (ROOT / "tests/attacks").glob("test_*.py")}
TESTS = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}


def test_every_test_file_that_is_named_is_there_and_the_other_way_round():
    named = set(re.findall(r"`(test_\w+\.py)`", TEXT))
    assert named >= set(ATTACKS) - {Path(__file__).name}
    assert named <= set(TESTS)


def test_every_test_that_is_named_is_there():
    defined = {
        node.name
        for path in TESTS.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) >= 4
    assert named <= defined


def test_every_section_that_is_named_is_there():
    named = re.findall(r'`(test_\w+\.py)`, section\s+"([^"]+)"', TEXT)
    assert len(named) >= 3
    for file, section in named:
        assert f"# --- {section} ---" in ATTACKS[file]


def test_promises_are_numbered_and_each_names_a_test():
    promises = re.split(r"\n(?=\*\*\d+\. )", TEXT.split("## Promises")[1].split("\n## ")[0])[1:]
    assert [int(re.match(r"\*\*(\d+)\.", promise)[1]) for promise in promises] == list(range(1, 11))
    assert all("`test_" in promise for promise in promises)


def test_every_limit_and_option_that_is_named_is_there():
    command_line = "".join(path.read_text() for path in (ROOT / "rafsfs/cli").glob("*.py"))
    options = set(re.findall(r"`(--[a-z-]+)", TEXT.split("## Fuzzing")[0]))
    assert len(options) >= 6
    assert not {option for option in options if f'"{option}"' not in command_line}
