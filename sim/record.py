"""The record: what one run decided and when, the same from every machine; and the summary computed from it alone.

A record always has its steps, its requests and its counters. With `full` it has every visit, execution, transfer and
answer too, as parallel int64 columns with one event number over all groups.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import state as st
from sim.core.log import COLUMNS, Log
from sim.core.plan import CAUSES, Plan

Int = npt.NDArray[np.int64]
Group = dict[str, Int]

CLOCK = "link_busy_ns dense_ns decide_ns experts_ns stall_ns cpu_wait_ns head_ns unfinished".split()
COUNTERS = {
    name: getattr(st, name.upper())
    for name in (
        "evictions slots_wanted slots_hit slots_late fetched substituted dropped cpu low landed_demand landed_prefetch "
        "landed_background promoted withdrawn rejected prefetch_used prefetch_late prefetch_wasted"
    ).split()
}
LAYER = {
    "hits": st.L_HITS,
    "late": st.L_LATE,
    "misses": st.L_MISSES,
    "stall_demand_ns": st.L_STALL_DEMAND,
    "stall_late_ns": st.L_STALL_LATE,
    "stall_held_ns": st.L_STALL_HELD,
}


@dataclass(frozen=True)
class RunRecord:
    """steps {prefill, begin_ns, end_ns, rows} [S] (and event with `full`); counters name -> int, times in ns, after
    warm-up; layer name -> int64 [L], after warm-up; groups visits, executions, transfers, answers, or empty."""

    steps: Group
    counters: dict[str, int]
    layer: Group
    groups: dict[str, Group]
    warmup_steps: int
    expert_bytes: int

    @staticmethod
    def of(plan: Plan, s: st.State, log: Log | None, clock: Any) -> "RunRecord":
        """From what a machine ends with (clock: machines.clock.Clock)."""
        counters = {name: int(s.c[i]) for name, i in COUNTERS.items()}
        counters |= {name: int(clock.k[1 + i]) for i, name in enumerate(CLOCK)}
        steps: Group = {
            "prefill": plan.step_prefill.astype(np.int64),
            "begin_ns": clock.begin,
            "end_ns": clock.end,
            "rows": np.diff(plan.step_offset),
        }
        if log is not None:
            steps["event"] = clock.event
        layer = {name: s.layer[:, i].copy() for name, i in LAYER.items()}
        groups = {} if log is None else _groups(plan, s, log)
        return RunRecord(steps, counters, layer, groups, plan.warmup_steps, plan.expert_bytes)


def _groups(plan: Plan, s: st.State, log: Log) -> dict[str, Group]:
    rows = dict(zip(COLUMNS, (s.c[i] for i in (st.R_VISITS, st.R_EXECUTIONS, st.R_TRANSFERS, st.R_ANSWERS)), strict=True))
    out = {}
    for name, table in zip(COLUMNS, log, strict=True):
        out[name] = {column: table[: rows[name], i] for i, column in enumerate(COLUMNS[name].split())}
    for name in ("executions", "transfers"):
        ids = out[name]["expert"]
        out[name]["expert"] = ids % plan.n_experts
        if name == "transfers":
            out[name]["layer"] = ids // plan.n_experts
            out[name]["bytes"] = np.full(len(ids), plan.expert_bytes)
    return out
