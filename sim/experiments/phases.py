"""Where the time of decode steps went, and that of prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.core.plan import OUTCOMES, PLACES
from sim.machines.record import RunRecord
from sim.outcome.summary import STALLS

LANDED, REMOTE = OUTCOMES.index("landed"), PLACES.index("remote")
PARTS = ("stall", "cpu_wait", "experts", "rest")  # of a phase's time


@dataclass(frozen=True)
class Phase:
    """The decode steps of a run, or its prefill steps. tokens: their rows; time_ns: how long they took, and of that
    parts_ns by PARTS (`experts` has what the GPU reads over the link while it computes; `rest` is dense parts, the
    engine's time, decisions and the head); wanted, hits: experts of visits; on_host, on_gpu: experts that the host and
    the GPU computed; remote: that the GPU read where they lie; h2d_bytes: over the link, landed, by the step that asked
    for them."""

    tokens: int
    time_ns: int
    parts_ns: Mapping[str, int]
    wanted: int
    hits: int
    on_host: int
    on_gpu: int
    remote: int
    h2d_bytes: int

    @property
    def tokens_per_s(self) -> float | None:
        return self.tokens * 1e9 / self.time_ns if self.tokens and self.time_ns else None

    @property
    def hit_share(self) -> float:
        return self.hits / self.wanted if self.wanted else 0.0

    def ms(self, part: str | None = None) -> float:
        """Of a token, or of a part of it."""
        return (self.time_ns if part is None else self.parts_ns[part]) / 1e6 / self.tokens

    def share(self, part: str) -> float | None:
        """Of the phase's time; None where there is none."""
        return self.parts_ns[part] / self.time_ns if self.time_ns else None


def phase(record: RunRecord, prefill: bool) -> Phase:
    """One of the two, of a full record without warm-up. The parts of both add up to the run's."""
    steps, visits, executions = record.steps, *(record.groups[name] for name in ("visits", "executions"))
    mine = steps["prefill"].astype(bool) == prefill
    seen = mine[visits["step"]]
    ran = executions["end_ns"] - executions["begin_ns"]
    at, on_host = seen[executions["visit"]], executions["cpu"] > 0
    time_ns = int((steps["end_ns"] - steps["begin_ns"])[mine].sum())
    parts = {
        "stall": int(sum(visits[f"stall_{cause}_ns"][seen].sum() for cause in STALLS)),
        "cpu_wait": int(visits["cpu_wait_ns"][seen].sum()),
        "experts": int(ran[at & ~on_host].sum()),
    }
    return Phase(
        tokens=int(steps.get("accepted", steps["rows"])[mine].sum()),
        time_ns=time_ns,
        parts_ns=parts | {"rest": time_ns - sum(parts.values())},
        wanted=int(visits["wanted"][seen].sum()),
        hits=int(visits["hits"][seen].sum()),
        on_host=int((at & on_host).sum()),
        on_gpu=int((at & ~on_host).sum()),
        remote=int((at & (executions["place"] == REMOTE)).sum()) if "place" in executions else 0,
        h2d_bytes=_landed(record, seen, bool(mine[0])),
    )


def _landed(record: RunRecord, seen: npt.NDArray[np.bool_], first: bool) -> int:
    """Bytes; first: whether what was asked for at time 0, by no visit, is of this phase."""
    transfers = record.groups["transfers"]
    visit = transfers["visit"]
    asked = np.where(visit >= 0, seen[visit], first)
    return int(transfers["bytes"][(transfers["outcome"] == LANDED) & asked].sum())
