"""The patterns of ``--exclude``; owns what matches, never looks at a file system."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from rafsfs.errors import OptionError


class Exclude:
    """Decides which names stay out of an image.

    A pattern is a glob as Python's ``fnmatch`` knows them: ``*`` any run of characters, ``?`` any one,
    ``[seq]`` any of these, ``[!seq]`` any other; capitals are not small letters. A pattern with a slash in it
    (a leading one may be left out if there is another) is matched on the whole path from the root of the
    tree, where ``*`` and ``?`` match slashes too; one without on the last name, wherever it is. With a slash
    at its end it matches directories only. A directory that matches is not entered.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises OptionError on a pattern that names nothing."""
        paths: dict[bool, list[str]] = {False: [], True: []}
        names: dict[bool, list[str]] = {False: [], True: []}
        for pattern in patterns:
            directories_only = pattern.endswith("/")
            glob = pattern.rstrip("/")
            if not glob:
                raise OptionError(
                    "an exclude pattern names nothing", found=repr(pattern), hint="name what to leave out"
                )
            if "/" in glob:
                paths[directories_only].append(glob.lstrip("/"))
            else:
                names[directories_only].append(glob)
        self._path = _any_of(paths[False])
        self._name = _any_of(names[False])
        self._directory_path = _any_of(paths[False] + paths[True])
        self._directory_name = _any_of(names[False] + names[True])

    def __call__(self, path: str, name: str, *, is_directory: bool) -> bool:
        """Tell whether ``path``, which ends in ``name``, is out; both as ``os.fsdecode`` gives them."""
        if is_directory:
            by_name, by_path = self._directory_name, self._directory_path
        else:
            by_name, by_path = self._name, self._path
        return bool((by_name and by_name.match(name)) or (by_path and by_path.match(path)))


def _any_of(globs: Iterable[str]) -> re.Pattern[str] | None:
    translated = [fnmatch.translate(glob) for glob in globs]
    return re.compile("|".join(translated)) if translated else None
