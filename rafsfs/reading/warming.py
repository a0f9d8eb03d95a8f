"""Decodes listed chunks into the cache before anybody asks, while nobody waits; knows no image, no file.

It takes what room the cache has and evicts nothing. A reader waits for it at most as long as one chunk takes,
and not even that when it is another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from rafsfs.errors import RafsError, StoreError
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.reading.engine import ReadEngine
from rafsfs.types import BlobIndex, ChunkIndex

log = logging.getLogger("rafsfs.reading")


class Warmer:
    """One pass over a list, on a daemon thread: one that hangs in a store holds up no exit."""

    def __init__(
        self,
        engine: ReadEngine,
        load_runs: Callable[[], Sequence[PrefetchRun]],
        prepare: Callable[[], object],
    ) -> None:
        """The thread calls ``prepare``, then ``load_runs``. Starts nothing yet, so that a fork may follow."""
        self._engine = engine
        self._prepare = prepare
        self._load_runs = load_runs
        self._stopped = False
        self.done = threading.Event()
        """Set when the pass is over, or was stopped."""

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="rafsfs-warm", daemon=True).start()

    def stop(self) -> None:
        """Begin no further chunk; waits for nobody."""
        self._stopped = True
        self._engine.demand.wake()

    def _run(self) -> None:
        try:
            self._prepare()
            runs = self._load_runs()
        except RafsError as error:
            log.warning("the image's prefetch list is not used: %s", error)
        else:
            self._pass(runs)
        finally:
            self.done.set()

    def _pass(self, runs: Sequence[PrefetchRun]) -> None:
        for run in runs:
            for number in range(run.first_chunk, run.first_chunk + run.chunk_count):
                self._engine.demand.wait_for_none(lambda: self._stopped)
                if self._stopped:
                    return
                try:
                    if not self._engine.warm(BlobIndex(run.blob), ChunkIndex(number)):
                        log.debug("warming ends: the cache has no more room for it")
                        return
                except StoreError as error:
                    log.info("warming ends: %s", error)  # the next one would fail as well, and cost as much
                    return
                except RafsError as error:
                    log.debug("not warmed: %s", error)  # who comes for it is told
