"""Habits of the code that linters do not know, asserted over the files of the checkout; never changes one."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rafsfs", "vhost")
PROJECT = (*PACKAGES, "tests", "tools", "doc", ".ci", "README.md", "pyproject.toml")

FILE_LINES_MAX = 450  # aim at 400
FUNCTION_LINES_MAX = 70


def whole(text: str) -> str:
    """Text without its ``~``: this file is looked at as well, so it must not spell what it looks for."""
    return text.replace("~", "")


UNFINISHED = re.compile(whole(r"\b(?:TO~DO|FIX~ME|XX~X)\b|pragma: no ~cover"))
IGNORED_TYPE = re.compile(whole(r"#\s*type:\s*ig~nore(?P<codes>\[[\w, -]+\])?(?P<reason>\s+#\s*\w.*)?"))
WORKPLACE = re.compile(whole(r"(?<![\w.])/(?:tmp/~v\b|wo~rk/)|(?<!scope=\")\bses~sions?\b"), re.IGNORECASE)


def text_files(*places: str) -> dict[str, str]:
    """Path in the checkout -> text, of all files in ``places`` that are text."""
    found = {}
    for place in places:
        start = ROOT / place
        for path in [start] if start.is_file() else sorted(start.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                if b"\0" not in content:
                    found[path.relative_to(ROOT).as_posix()] = content.decode("utf-8", "replace")
    return found


def matching_lines(pattern: re.Pattern[str], text: str, path: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            yield f"{path}:{number}: {line.strip()}"


def unfinished(text: str, path: str) -> Iterator[str]:
    """Work put off, or code that no test reaches and that says it is all right."""
    yield from matching_lines(UNFINISHED, text, path)


def workplace_words(text: str, path: str) -> Iterator[str]:
    """Names of the place where somebody once worked; they mean nothing to a reader."""
    yield from matching_lines(WORKPLACE, text, path)


def unreasoned_ignores(text: str, path: str) -> Iterator[str]:
    """A type error waved through without its code and, on the same line, a reason."""
    for number, line in enumerate(text.splitlines(), 1):
        for found in IGNORED_TYPE.finditer(line):
            if not (found["codes"] and found["reason"]):
                yield f"{path}:{number}: wants [code]  # and why: {line.strip()}"


def unopened(text: str, path: str) -> Iterator[str]:
    """A module that does not begin with a sentence on what it owns."""
    docstring = ast.get_docstring(ast.parse(text)) or ""
    sentence = re.match(r"(.+?)\.(?:\s|$)", docstring.partition("\n\n")[0], re.DOTALL)
    if not sentence or len(sentence[1].split()) < 3:
        yield f"{path}:1: wants a docstring that begins with a sentence on what the file owns"


def overlong(text: str, path: str) -> Iterator[str]:
    """Files and functions too long to be read in one go."""
    if (lines := len(text.splitlines())) > FILE_LINES_MAX:
        yield f"{path}:1: {lines} lines, at most {FILE_LINES_MAX}: it owns more than one thing"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def prints(text: str, path: str) -> Iterator[str]:
    """Output from a library; only the command line talks to a person."""
    if path.startswith("rafsfs/cli/"):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path}:{node.lineno}: prints; raise, return or log instead"


CHECKS = [
    (unfinished, PROJECT, ""),
    (workplace_words, PROJECT, ""),
    (unreasoned_ignores, PROJECT, ".py"),
    (unopened, (*PACKAGES, "tests", "tools"), ".py"),
    (overlong, PACKAGES, ".py"),
    (prints, PACKAGES, ".py"),
]


@pytest.mark.parametrize(("check", "places", "suffix"), CHECKS)
def test_project_keeps_the_habit(check, places, suffix):
    files = {path: text for path, text in text_files(*places).items() if path.endswith(suffix)}
    assert len(files) > len(PROJECT)
    found = [violation for path, text in files.items() for violation in check(text, path)]
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_test_files_have_names_of_their_own_and_form_no_package():
    paths = list((ROOT / "tests").rglob("*.py"))
    names = Counter(path.name for path in paths if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []
    assert "__init__.py" not in names


BROKEN = [
    (unfinished, "x = 1  # TO~DO: more"),
    (unfinished, "if x:  # pragma: no ~cover"),
    (workplace_words, "open('/wo~rk/shared/a')"),
    (workplace_words, "run `/tmp/~v/bin/python`"),
    (workplace_words, "as found in an earlier ses~sion"),
    (unreasoned_ignores, "x = y  # type: ig~nore"),
    (unreasoned_ignores, "x = y  # type: ig~nore[arg-type]"),
    (unreasoned_ignores, "x = y  # type: ig~nore  # because"),
    (unopened, "import os"),
    (unopened, '"""Chunk records"""'),
    (unopened, '"""Chunks."""'),
    (unopened, '"""Chunk records\n\nare read here. And written."""'),
    (overlong, "\n" * (FILE_LINES_MAX + 1)),
    (overlong, "def long():\n" + "    f()\n" * FUNCTION_LINES_MAX),
    (overlong, "class C:\n    async def long():\n" + "        f()\n" * FUNCTION_LINES_MAX),
    (prints, "def f():\n    print('x')"),
]

SOUND = [
    (unfinished, "mktemp -d /tmp/XXXXXX"),
    (workplace_words, '@pytest.fixture(scope="session")\ndef pytest_sessionfinish(): pass'),
    (workplace_words, "mount(lower, upper, 'over/work/dir', '/tmp/volume')"),
    (unreasoned_ignores, "x = y  # type: ig~nore[arg-type]  # the stub is wrong"),
    (unopened, '"""``rafsfs ls``: one directory,\nor many."""'),
    (unopened, '"""Chunk records of format 1.2 and their tables; no I/O.\n\nMore."""'),
    (overlong, "def long():\n" + "    f()\n" * (FUNCTION_LINES_MAX - 1)),
    (prints, "console.print('x')"),
]


@pytest.mark.parametrize(("check", "text"), BROKEN)
def test_check_finds(check, text):
    assert len(list(check(whole(text), "x.py"))) == 1


@pytest.mark.parametrize(("check", "text"), SOUND)
def test_check_leaves_alone(check, text):
    assert list(check(whole(text), "x.py")) == []
