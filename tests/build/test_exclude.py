"""Exclude patterns, one table."""

import os

import pytest

from rafsfs.build.exclude import Exclude
from rafsfs.errors import BuildError

RAW = os.fsdecode(b"\xff\xfe")

MATCHES = [
    # pattern, path, is it a directory, is it out
    ("cache", "cache", False, True),
    ("cache", "var/cache", True, True),
    ("cache", "var/cached", False, False),
    ("cache", "cache/file", False, False),  # never asked for: the directory is not entered
    ("*.o", "a/b.o", False, True),
    ("*.o", "a.o/b", False, False),
    ("*.O", "a/b.o", False, False),
    ("?.txt", "ä.txt", False, True),
    ("?" * 2, RAW, False, True),
    ("[!a]", "b", False, True),
    ("[!a]", "a", False, False),
    ("/cache", "cache", False, True),
    ("/cache", "var/cache", False, False),
    ("var/cache", "var/cache", True, True),
    ("/var/cache", "var/cache", True, True),
    ("var/*", "var/a/b", False, True),
    ("/var/*", "usr/var/a", False, False),
    ("*/cache", "a/b/cache", True, True),
    ("tmp/", "tmp", True, True),
    ("tmp/", "a/tmp", True, True),
    ("tmp/", "tmp", False, False),
    ("/a/tmp/", "a/tmp", True, True),
    ("/a/tmp/", "a/tmp", False, False),
    ("a\nb", "a\nb", False, True),
    ("a.b", "axb", False, False),
]


@pytest.mark.parametrize(("pattern", "path", "is_directory", "out"), MATCHES)
def test_pattern(pattern, path, is_directory, out):
    exclude = Exclude(["nothing-else", "not/this", pattern, "nor-this/"])
    assert exclude(path, path.rpartition("/")[2], is_directory=is_directory) is out


@pytest.mark.parametrize("pattern", ["", "/", "//"])
def test_pattern_that_names_nothing_is_refused(pattern):
    with pytest.raises(BuildError, match="names nothing"):
        Exclude(["fine", pattern])
