"""What the commands that look into an image share: lines, paths, exit codes of problems; opens nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rafsfs.cli.exit_codes import ExitCode, exit_code_of
from rafsfs.cli.names import absolute, shown, text_fields
from rafsfs.errors import PathNotFound, RafsError, Where
from rafsfs.frontends.logs import one_line
from rafsfs.fs.problems import Problem, Problems

PRECEDENCE: Final = (
    ExitCode.AUTHENTICATION,
    ExitCode.FORMAT,
    ExitCode.VERSION,
    ExitCode.NOT_FOUND,
    ExitCode.NO_BLOB,
    ExitCode.TRUNCATED,
    ExitCode.STORE,
)
"""Of several problems the first of these gives the exit code."""


def write_line(text: str) -> None:
    """Write a line to standard output, with escapes for what its encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


@contextmanager
def about(path: str | bytes) -> Iterator[None]:
    """Let errors of looking up a path say that it is one of the image, and which."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PathNotFound(
            f"{error.strerror} in the image",
            where=Where(path=shown(absolute(os.fsencode(path)))),
            hint="`rafsfs ls IMAGE` lists what is there",
        ) from None
    except OSError as error:
        name = shown(absolute(os.fsencode(path)))
        raise type(error)(error.errno, f"{error.strerror} in the image", name) from None
    except RafsError as error:
        raise error.at(path=shown(absolute(os.fsencode(path)))) from None


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Let errors of the system say where they were met, if they do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(place)
        raise


def problem_line(problem: Problem) -> str:
    """Tell a problem in one line: the file that it touches, what is wrong, where."""
    text = str(problem.error)
    if problem.paths:
        more = problem.path_count - 1
        text = f"{shown(absolute(problem.paths[0]))}{f' and {more:,} more' if more else ''}: {text}"
    return one_line(text)


def problem_json(problem: Problem) -> dict[str, Any]:
    """The same for programs; ``paths`` are the first few of ``path_count``."""
    error = problem.error
    where = {name: getattr(error.where, name) for name in error.where.__dataclass_fields__}
    return {
        "kind": type(error).__name__,
        "exit_code": int(exit_code_of(error)),
        "what": error.what,
        "expected": None if error.expected is None else str(error.expected),
        "found": None if error.found is None else str(error.found),
        "where": {name: value for name, value in where.items() if value is not None},
        "paths": [text_fields("path", absolute(path)) for path in problem.paths],
        "path_count": problem.path_count,
    }


def problems_json(problems: Problems) -> dict[str, Any]:
    """All problems that were kept, and how many there were."""
    return {"problem_count": problems.count, "problems": list(map(problem_json, problems.kept))}


def more_problems(problems: Problems, shown_count: int) -> str:
    """What follows a list that is not whole; empty when it is."""
    left = problems.count - shown_count
    return f"... and {left:,} more problems" if left else ""


def exit_code_of_problems(problems: Problems) -> ExitCode:
    """The exit code that the problems deserve together; 0 without any."""
    codes = _codes(problems.kinds)
    return next((code for code in PRECEDENCE if code in codes), ExitCode.UNEXPECTED if codes else ExitCode.OK)


def _codes(kinds: Iterable[type[RafsError]]) -> set[ExitCode]:
    return {exit_code_of(kind("")) for kind in kinds}
