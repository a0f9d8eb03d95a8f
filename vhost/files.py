"""Owns open files that a front end has passed until somebody takes them; what nobody takes is closed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType


class Files:
    """Descriptors received with a message, in the order in which they came."""

    def __init__(self, descriptors: Iterable[int] = ()) -> None:
        self._descriptors = list(descriptors)

    def __len__(self) -> int:
        return len(self._descriptors)

    def __iter__(self) -> Iterator[int]:
        return iter(self._descriptors)

    def add(self, descriptors: Iterable[int]) -> None:
        """Own these as well."""
        self._descriptors.extend(descriptors)

    def take(self) -> int:
        """Hand the first one over to the caller, who has to close it."""
        return self._descriptors.pop(0)

    def close(self) -> None:
        """Close those that are left; can be called again."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
