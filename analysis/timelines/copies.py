"""Which copy of an expert an execution or an eviction is about: a full record's groups joined by expert and event."""

import numpy as np
import numpy.typing as npt

from sim.machines.record import RunRecord

Int = npt.NDArray[np.int64]


def ids(record: RunRecord, n_experts: int) -> Int:
    """The global id that each transfer brings, int64 [transfers]: low-precision copies stand behind all experts."""
    t = record.groups["transfers"]
    return (t["low"] * len(record.layer["hits"]) + t["layer"]) * n_experts + t["expert"]


def latest(expert: Int, event: Int, of: Int, before: Int) -> Int:
    """For each (of, before) the place in (expert, event) of that expert's last event before; -1 where there is none."""
    order = np.lexsort((event, expert))
    span = 1 + max(int(numbers.max(initial=0)) for numbers in (event, before))
    at = np.searchsorted((expert * span + event)[order], of * span + before) - 1
    if not len(order):
        return np.full(len(at), -1)
    return np.where((at >= 0) & (expert[order[at]] == of), order[at], -1)


def copy_of(record: RunRecord) -> Int:
    """The row of the last landing of each executed expert before its execution; -1: none, or it ran on the host."""
    x, t = record.groups["executions"], record.groups["transfers"]
    most = 1 + max(int(group["expert"].max(initial=0)) for group in (x, t))
    layer = x["low"] * len(record.layer["hits"]) + record.groups["visits"]["layer"][x["visit"]]
    rows = np.flatnonzero(t["landed_ns"] >= 0)
    found = latest(ids(record, most)[rows], t["event"][rows], layer * most + x["expert"], x["event"])
    return np.where((found >= 0) & (x["cpu"] == 0), np.append(rows, -1)[found], -1)


def first_uses(copy: Int) -> npt.NDArray[np.bool_]:
    """Of the executions that `copy_of` names copies for, which are the first that their copy serves."""
    out = np.zeros(len(copy), bool)
    out[np.unique(copy, return_index=True)[1]] = True
    return out & (copy >= 0)
