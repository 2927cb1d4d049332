"""Where the prompt of each request lies, and who comes after it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.fit.activation import Turns
from sim.fit.prediction import Int
from traces.format.trace import RoutingTrace


@dataclass(frozen=True)
class Prompts:
    """start, end int64 [requests]: the trace rows start[r] .. end[r] are the prompt of request r; none where equal."""

    start: Int
    end: Int

    @staticmethod
    def of(trace: RoutingTrace) -> "Prompts":
        starts, _ = trace.requests()
        return Prompts(starts, starts + np.add.reduceat(trace.prefill.astype(np.int64), starts))

    def request_of(self, turns: Turns) -> Int:
        """int64 [G]: the place of each turn's request."""
        return np.searchsorted(self.start, turns.start[:-1], side="right") - 1

    def over(self, turns: Turns) -> npt.NDArray[np.bool_]:
        """bool [G]: whether the request has a prompt, and all of it has run before the turn."""
        request = self.request_of(turns)
        there = self.end[request] > self.start[request]
        return there & (turns.start[:-1] >= self.end[request])

    def first_behind(self, turns: Turns) -> Int:
        """int64 [requests]: the first turn behind each prompt, which may be another request's where nothing is."""
        return np.searchsorted(turns.start[:-1], self.end)
