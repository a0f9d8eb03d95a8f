"""Another source with names left out, for sources that know no patterns; never looks at a file system."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rafsfs.build.exclude import Exclude
from rafsfs.build.source import Entry, Source, refusal, shown
from rafsfs.format.erofs import FileType


class ExcludingSource:
    """``source`` without what ``patterns`` leave out: see ``rafsfs.build.exclude.Exclude``.

    Raises OptionError for a pattern that names nothing, BuildError in ``entries`` for a hard link to a name
    that is left out: its content would be needed.
    """

    def __init__(self, source: Source, patterns: Sequence[str]) -> None:
        self._source = source
        self._exclude = Exclude(patterns)

    def close(self) -> None:
        """Close the other source."""
        self._source.close()

    def entries(self) -> Iterator[Entry]:
        """See ``Source.entries``."""
        out: dict[bytes, bool] = {b"": False}
        for entry in self._source.entries():
            if self._is_out(entry.path, entry.kind is FileType.DIRECTORY, out):
                continue
            if entry.hard_link_to is not None and self._is_out(entry.hard_link_to, False, out):
                raise refusal(
                    entry.path,
                    "a hard link leads to a file that is left out",
                    found=shown(entry.hard_link_to),
                    hint="leave the link out as well, or neither of the two",
                )
            yield entry

    def _is_out(self, path: bytes, is_directory: bool, directories_out: dict[bytes, bool]) -> bool:
        """Tell whether a name or a directory above it is left out; directories are asked about once."""
        parent, _, name = path.rpartition(b"/")
        if path in directories_out and is_directory:
            return directories_out[path]
        is_out = (parent != path and self._is_out(parent, True, directories_out)) or (
            self._exclude(os.fsdecode(path), os.fsdecode(name), is_directory=is_directory)
        )
        if is_directory:
            directories_out[path] = is_out
        return is_out
