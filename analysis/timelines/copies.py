"""Which copy of an expert an execution or an eviction is about: a full record's groups joined by expert and event."""

import numpy as np
import numpy.typing as npt

from sim.core.plan import PLACES
from sim.machines.record import Group, RunRecord

Int = npt.NDArray[np.int64]
SLOT = PLACES.index("slot")
STAGED, READ = (1 + PLACES.index(name) for name in ("stage", "remote"))  # of kinds


def kinds(group: Group) -> Int:
    """Which kind of copy each row of executions or transfers is about, int64 [n]: an expert in a slot, its
    low-precision copy, a copy in a stage, one that is read where it lies (and further ones, on the host)."""
    place = group.get("place")
    return group["low"] if place is None else np.where(place > SLOT, 1 + place, group["low"])


def ids(record: RunRecord, n_experts: int) -> Int:
    """The global id that each transfer brings, int64 [transfers]: of each kind of copies behind those of the kinds
    before it."""
    t = record.groups["transfers"]
    return (kinds(t) * len(record.layer["hits"]) + t["layer"]) * n_experts + t["expert"]


def runs(transfers: Group) -> Int:
    """The number of each row's transfer over the link, int64 [transfers]: rows of one number are one transfer. Rows
    that were not committed have numbers of their own, too."""
    rows = np.arange(len(transfers["event"]))
    run = transfers.get("run")
    return rows if run is None else np.where(run >= 0, run, len(rows) + rows)


def heads(transfers: Group) -> npt.NDArray[np.bool_]:
    """Of the rows of each transfer over the link the one that was committed first, bool [transfers]."""
    out = np.zeros(len(transfers["event"]), bool)
    order = np.argsort(transfers["event_committed"], kind="stable")
    out[order[np.unique(runs(transfers)[order], return_index=True)[1]]] = True
    return out


def pieces(record: RunRecord) -> Group:
    """What crossed the link one after another, as RunRecord.on_link has it, of several experts in one the first."""
    sent = record.on_link()
    one = heads(record.groups["transfers"])[sent["transfer"]]
    return {name: column[one] for name, column in sent.items()}


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
    layer = kinds(x) * len(record.layer["hits"]) + record.groups["visits"]["layer"][x["visit"]]
    rows = np.flatnonzero(t["landed_ns"] >= 0)
    found = latest(ids(record, most)[rows], t["event"][rows], layer * most + x["expert"], x["event"])
    return np.where((found >= 0) & (x["cpu"] == 0), np.append(rows, -1)[found], -1)


def first_uses(copy: Int) -> npt.NDArray[np.bool_]:
    """Of the executions that `copy_of` names copies for, which are the first that their copy serves."""
    out = np.zeros(len(copy), bool)
    out[np.unique(copy, return_index=True)[1]] = True
    return out & (copy >= 0)
