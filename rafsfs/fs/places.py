"""Where a walk is: a name linked to its parent, so that a tree of any depth costs the same for each name."""

from __future__ import annotations

from typing import NamedTuple

PATH_BYTES_SHOWN = 4_096  # PATH_MAX: what is longer can be opened by nobody, and is cut where it is shown


class Place(NamedTuple):
    """A directory below the root of a walk; ``parent`` is None and ``name`` empty for the root itself."""

    parent: Place | None
    name: bytes
    depth: int

    def below(self, name: bytes) -> Place:
        """The place of one of its names."""
        return Place(self, name, self.depth + 1)

    def names(self) -> list[bytes]:
        """All names from the root down to here, one for each level of ``depth``."""
        names = []
        place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        names.reverse()
        return names

    def path(self, name: bytes = b"") -> bytes:
        """The path of ``name`` in here, or of this place; the end of it where it is longer than PATH_MAX."""
        parts = [name] if name else []
        length = len(name)
        place = self
        while place.parent is not None and length <= PATH_BYTES_SHOWN:
            parts.append(place.name)
            length += len(place.name) + 1
            place = place.parent
        path = b"/".join(reversed(parts))
        return path if len(path) <= PATH_BYTES_SHOWN else b"..." + path[3 - PATH_BYTES_SHOWN :]


ROOT = Place(None, b"", 0)
