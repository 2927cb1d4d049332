"""What a machine has executed: jobs, and the kernels that do them."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]


class Job(NamedTuple):
    """What one expert executes in one visit: rows of the step [n] and the router weight of each."""

    expert: int
    rows: Int
    weights: npt.NDArray[np.float32]


def by_expert(experts: Any, weights: Any, which: Any) -> dict[int, Job]:
    """Rows and weights by global expert, of the (row, slot) entries that `which` marks; in order of appearance."""
    rows: dict[int, list[int]] = {}
    shares: dict[int, list[float]] = {}
    for i, (row, marked) in enumerate(zip(experts.tolist(), which.tolist(), strict=True)):
        for k, g in enumerate(row):
            if g >= 0 and marked[k]:
                rows.setdefault(g, []).append(i)
                shares.setdefault(g, []).append(float(weights[i, k]))
    return {g: Job(g, np.array(at, np.int64), np.array(shares[g], np.float32)) for g, at in rows.items()}


class Work(Protocol):
    """The kernels. All but `begin_step`, `routed`, `check` and `on_host` run inside a launch on `port.compute`."""

    @property
    def group(self) -> bool:
        """Whether the experts of a group may run in one kernel."""

    def begin_step(self, step: int) -> None:
        """A step begins; may launch (its time is the dense part's)."""

    def dense(self, column: int) -> None:
        """The dense part in front of MoE layer `column` (the number of MoE layers: what follows the last one)."""

    def read_back(self) -> None:
        """The router's ids, to the host."""

    def routed(self, jobs: dict[int, Job], host_jobs: dict[int, Job], later: Collection[int] = ()) -> None:
        """What this visit executes on the GPU, by the core's id (of a copy in a stage: its own), and on the CPU, by
        global expert; `later`: of these, what is added at the end of the next layer."""

    def expert(self, g: int, slot: int) -> None:
        """One expert of `jobs`, from its slot or stage (numbered as the store does)."""

    def experts(self, layer: int, jobs: Sequence[Job], slots: Sequence[int]) -> None:
        """Several at once; only called where `group` is true and a group has more than one."""

    def on_host(self, job: Job) -> None:
        """One expert of `host_jobs`; in the thread of `port.host`."""

    def join_host(self) -> None:
        """Add what the CPU computed of this visit at once, and of the last one later."""

    def end(self) -> None:
        """The end of the step."""

    def check(self) -> None:
        """The step has run. Raises DeviceError when what came out is wrong."""
