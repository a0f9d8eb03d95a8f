"""Imports httpcore without trio, which it takes for asynchronous pools that nobody here uses.

Importing trio takes as long as half of all else that a command which reads from a registry has to import,
and containers wait for that. httpcore does without it where it is not installed.
"""

from __future__ import annotations

import sys
from typing import Final

NAME: Final = "trio"

_was_there = NAME in sys.modules
if not _was_there:
    sys.modules[NAME] = None  # type: ignore[assignment]  # an import of it fails then (importlib)
try:
    import httpcore
finally:
    if not _was_there:
        del sys.modules[NAME]

__all__ = ["httpcore"]
