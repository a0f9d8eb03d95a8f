"""What a check found wrong: the error that a reader would meet and the files it touches; never shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rafsfs.errors import RafsError
from rafsfs.limits import PROBLEM_PATHS_MAX, PROBLEMS_MAX


@dataclass(slots=True)
class Problem:
    """One thing that is wrong. ``paths`` are the first few of the ``path_count`` files that it touches."""

    error: RafsError
    paths: list[bytes] = field(default_factory=list)
    path_count: int = 0

    def touches(self, path: bytes) -> None:
        """Note one more file; they come one by one, none twice."""
        self.path_count += 1
        if len(self.paths) < PROBLEM_PATHS_MAX:
            self.paths.append(path)


class Problems:
    """All problems of a check: ``count`` of them, of which the first ``PROBLEMS_MAX`` are ``kept``.

    ``kinds`` counts all of them by class. A damaged metadata page is one problem, however many inodes lie in
    it.
    """

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.count = 0
        self.kinds: Counter[type[RafsError]] = Counter()
        self._pages: dict[int, Problem] = {}

    def add(self, error: RafsError, path: bytes | None = None) -> Problem:
        """Note an error, met at ``path`` (``b""`` is the root, None is no file)."""
        page = error.where.page
        problem = self._pages.get(page) if page is not None else None
        if problem is None:
            problem = Problem(error)
            self.count += 1
            self.kinds[type(error)] += 1
            if len(self.kept) < PROBLEMS_MAX:
                self.kept.append(problem)
                if page is not None:
                    self._pages[page] = problem
        if path is not None:
            problem.touches(path)
        return problem
