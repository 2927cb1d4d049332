"""The reference machine driven one visit at a time, and what it says of each visit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.closed_loop.routed import Int
from sim.core.hooks import explained
from sim.core.plan import ANSWERS, Plan
from sim.machines.discrete import Machine, Process

FETCH, SUBSTITUTE, DROP, CPU, LOW, STREAM, REMOTE = range(len(ANSWERS))
HIT = -1


class Committed(NamedTuple):
    """A transfer was committed: expert (global id) takes the slot, whose former resident is gone. Low-precision copies
    have ids and slots of their own, behind all others (sim.core.plan.Low)."""

    expert: int
    slot: int


class Computed(NamedTuple):
    """The GPU computes these experts (global ids) in this order."""

    experts: tuple[int, ...]


class Served(NamedTuple):
    """What a visit's slots got, in the router's own order of slots; n rows, K slots.

    ids int64 [n, K]: the expert that answers (-1 nobody). weights float64 [n, K], or None: all as the router has
    them. reweighted bool [n]: rows whose `weights` count, the other rows keep the router's. answers int8 [n, K]:
    index into plan.ANSWERS of slots that missed, -1 of the others. ops: committed copies and groups that ran, since
    the visit before, in the machine's order.
    """

    ids: Int
    weights: npt.NDArray[np.float64] | None
    reweighted: npt.NDArray[np.bool_]
    answers: npt.NDArray[np.int8]
    ops: list[Committed | Computed]

    @property
    def untouched(self) -> bool:
        """Every slot is answered by its own expert, wherever it is computed, with its own weight."""
        return self.weights is None and not (self.answers[self.answers != CPU] > FETCH).any()


class VisitByVisit(Machine):
    """The reference machine, driven one visit at a time; keeps what was copied and computed, in order."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, full=True)
        self.ops: list[Committed | Computed] = []
        self.step_ns: tuple[list[int], int] = ([], 0)  # of the step that runs: dense parts, head

    def durations(self, step: int) -> tuple[list[int], int]:
        return self.step_ns

    def commit(self, event: Any) -> None:
        s, before = self.s, int(self.s.link.n_flight)
        super().commit(event)
        for i in range(before, int(s.link.n_flight)):
            g = int(s.flight[(s.link.flight_head + i) % len(s.flight)])
            self.ops.append(Committed(g, int(s.expert[g].slot)))

    def run_group(self, n: int, group: int) -> Process:
        run = self.s.visit.n_run
        self.ops.append(Computed(tuple(self.s.ready[run : run + n].tolist())))
        yield from super().run_group(n, group)

    def until(self, process: Process) -> None:
        """Let the clock run until this is done."""
        with explained(self.plan, self.hooks):
            self.env.run(until=self.env.process(process))
