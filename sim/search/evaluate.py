"""Rows of many runs, on workers of this machine that stay between one batch and the next, until their time is over."""

import math
import time
from collections.abc import Sequence
from typing import IO

from sim.sweeps.config import Configuration
from sim.sweeps.dispatch import Dispatcher
from sim.sweeps.local import LocalPool
from sim.sweeps.rows import Row
from sim.sweeps.session import inspect
from sim.sweeps.versions import to_compile

PIECE = 64  # runs given out together: those of the first pieces are done when time is over


class Evaluator:
    """Call it with runs of the same files each time, those that matter most first; close it at the end.

    limit_s: seconds from when all workers are ready and what the runs need is compiled; None: no limit. When they are
    over the workers are ended, whatever they do, and what was not done has no row. out: of the progress, where it is a
    terminal.
    """

    def __init__(self, workers: int, limit_s: float | None, out: IO[str]) -> None:
        self.workers, self.limit_s, self.out = workers, limit_s, out
        self._dispatcher: Dispatcher | None = None
        self._deadline = math.inf

    def __call__(self, runs: Sequence[Configuration]) -> Sequence[Row]:
        dispatcher = self._dispatcher or self._begin(runs)
        rows = [row for found in dispatcher.run(runs, self._deadline, PIECE) for row in found]
        if len(rows) < len(runs):
            self.close()
        return rows

    def _begin(self, runs: Sequence[Configuration]) -> Dispatcher:
        self._dispatcher = Dispatcher(LocalPool(inspect(runs)[0]), self.workers)
        self._dispatcher.warm_up(to_compile(runs), self.workers)
        if self.limit_s is not None:
            self._deadline = time.monotonic() + self.limit_s
        return self._dispatcher

    def close(self) -> None:
        """End the workers."""
        if self._dispatcher is not None:
            self._dispatcher.close()
