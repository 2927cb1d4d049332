"""Rows of many runs, on workers of this machine that stay between one batch and the next."""

from collections.abc import Sequence

from sim.sweeps.config import Run
from sim.sweeps.dispatch import Dispatcher
from sim.sweeps.local import LocalPool
from sim.sweeps.rows import Row
from sim.sweeps.session import inspect, to_compile


class Evaluator:
    """Call it with runs of the same files each time; close it at the end."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._dispatcher: Dispatcher | None = None

    def __call__(self, runs: Sequence[Run]) -> Sequence[Row]:
        if self._dispatcher is None:
            self._dispatcher = Dispatcher(LocalPool(inspect(runs)[0]), self.workers)
            self._dispatcher.warm_up(to_compile(runs))
        return [row for rows in self._dispatcher.run(runs) for row in rows]

    def close(self) -> None:
        """End the workers."""
        if self._dispatcher is not None:
            self._dispatcher.close()
