"""Patterns on sources that know none: what they leave out, and what hangs on it."""

import pytest
from support.trees import Planned, PlannedSource, Segment

from rafsfs.build.excluding_source import ExcludingSource
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FileType

DIRECTORY, REGULAR = FileType.DIRECTORY, FileType.REGULAR
PLAN = (
    Planned(b"", DIRECTORY),
    Planned(b"cache", DIRECTORY),
    Planned(b"cache/deep", DIRECTORY),
    Planned(b"cache/deep/file", REGULAR, segments=(Segment(10, 1),)),
    Planned(b"src", DIRECTORY),
    Planned(b"src/cache", REGULAR),
    Planned(b"src/a.pyc", REGULAR),
    Planned(b"src/\xff.pyc", REGULAR),
    Planned(b"link", REGULAR, hard_link_to=b"src/cache"),
)


def paths(*patterns, plan=PLAN):
    return [entry.path for entry in ExcludingSource(PlannedSource(plan), patterns).entries()]


ALL = [item.path for item in PLAN]
CASES = {
    "nothing that is there": (["nothing"], []),
    "a name anywhere, and what the link to it has": (["cache", "link"], ["cache*", "src/cache", "link"]),
    "a directory only": (["cache/"], ["cache*"]),
    "a path": (["/cache/deep"], ["cache/deep*"]),
    "a glob on names of any bytes": (["*.pyc"], ["src/a.pyc", "src/\udcff.pyc"]),
    "a glob over slashes": (["/src/*", "link"], ["src/cache", "src/a.pyc", "src/\udcff.pyc", "link"]),
}


@pytest.mark.parametrize(("patterns", "out"), CASES.values(), ids=CASES)
def test_left_out(patterns, out):
    def is_out(path):
        return any(
            path.startswith(name[:-1].encode())
            if name.endswith("*")
            else path == name.encode("utf-8", "surrogateescape")
            for name in out
        )

    assert paths(*patterns) == [path for path in ALL if not is_out(path)]


def test_what_comes_late_into_a_directory_that_is_out_is_out():
    """As archives that were appended to have it."""
    plan = (
        *PLAN,
        Planned(b"cache/late", REGULAR),
        Planned(b"cache", DIRECTORY),
        Planned(b"cache/later", REGULAR),
    )
    assert paths("/cache", plan=plan) == [path for path in ALL if not path.startswith(b"cache")]


@pytest.mark.parametrize("pattern", ["src/cache", "/src"])
def test_a_hard_link_to_what_is_left_out_is_refused(pattern):
    with pytest.raises(
        BuildError, match=r"hard link leads to a file that is left out: src/cache \(path link\)"
    ):
        paths(pattern)


def test_a_hard_link_is_left_out_without_a_word():
    assert paths("link") == ALL[:-1]


def test_the_root_stays():
    assert paths("*") == [b""]
