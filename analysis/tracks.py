"""What stood where and when: the intervals of a timeline, from a full record alone.

A record holds when each visit was routed and ended, when each expert ran and when each copy started and landed. What
the GPU did in between follows from it, because in a visit the GPU does one thing after another:

    dense part, decision | routed | stall, set-up, experts, stall, set-up, experts, ..., wait for the host | end

- **dense part and decision** share the time from the end of the visit before (or of the step's begin) to `routed`.
  Where the decision takes the same time in every visit, as on the virtual machines, that figure is the counter
  `decide_ns` shared equally, exactly. On a device, where every visit measures its own, the record does not tell them
  apart: the counter is shared out in proportion to those spans, so that the sum is right and a single one may not be.
- **head** and dense layers behind the last MoE layer share the time after the last visit of a step. Without such layers
  (the usual case) it is all head; with them, the record has only their sums, shared out in proportion again.
- **set-up of a group** is `experts_ns` less what the experts ran, shared equally over the groups; on a device, each
  visit's own rest.
- **stall** is what is left in front of a group; its cause is constant between two landings (ARCHITECTURE.md, reading 4)
  and is told by the same rule as on the machines, see `analysis.stalls`.

All times are int64 ns. Steps before the end of the warm-up are there too; counters and summaries do not count them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.stalls import by_cause
from sim.errors import SpecError
from sim.record import RunRecord

Int = npt.NDArray[np.int64]

RESIDENT = 3  # behind sim.core.plan.CAUSES: here since before time 0, no copy brought it
HIT, LATE, MISS = range(3)


@dataclass(frozen=True)
class Slices:
    """Intervals of one kind in order of time: begin and end int64 [n] ns; of: what is known of each, int64 [n]."""

    begin: Int
    end: Int
    of: dict[str, Int]

    def __len__(self) -> int:
        return len(self.begin)

    def where(self, keep: npt.NDArray[np.bool_]) -> "Slices":
        """Those that `keep` bool [n] marks."""
        return Slices(self.begin[keep], self.end[keep], {name: column[keep] for name, column in self.of.items()})


@dataclass(frozen=True)
class Tracks:
    """Every interval of a run.

    steps {step, prefill, rows}, layers {step, layer, hits, late, misses}; the GPU's dense {step, layer: L is what
    follows the last MoE layer}, decide, set_up, cpu_wait {step, layer}, stall {step, layer, cause: of stalls.CAUSES},
    head {step}; experts (on the GPU) and host (on the CPU) {visit, group, step, layer, expert, tokens, stand_in (tokens
    that it executes in another's place), copy (row of the transfer that brought it, -1 none), cause (that of the copy,
    or RESIDENT), wanted (HIT, LATE, MISS), first (1: the first use of its copy)}; copies {row, queued, layer, expert,
    cause, promoted, bytes, victim, outcome}.
    """

    steps: Slices
    layers: Slices
    dense: Slices
    decide: Slices
    set_up: Slices
    experts: Slices
    stall: Slices
    cpu_wait: Slices
    head: Slices
    host: Slices
    copies: Slices


def tracks(record: RunRecord) -> Tracks:
    """The intervals of a full record (analysis.record_check has looked at one that came from a file).

    Raises SpecError, one line, unless every step has a visit of every MoE layer.
    """
    n_steps, n_layers = len(record.steps["begin_ns"]), len(record.layer["hits"])
    visits, x = record.groups["visits"], record.groups["executions"]
    if len(visits["step"]) != n_steps * n_layers:
        raise SpecError(f"record: visits: {len(visits['step'])} rows; steps x MoE layers are {n_steps * n_layers}")
    counted = visits["step"] >= record.warmup_steps
    before = np.concatenate([record.steps["begin_ns"][:, None], visits["end_ns"].reshape(n_steps, n_layers)], axis=1)
    begins = before[:, :-1].reshape(-1)
    decided = visits["routed_ns"] - shared(visits["routed_ns"] - begins, counted, record.counters["decide_ns"])
    here = {"step": visits["step"], "layer": visits["layer"]}
    after, ends = before[:, -1], record.steps["end_ns"]
    steps = np.arange(n_steps)
    headed = ends - shared(ends - after, steps >= record.warmup_steps, record.counters["head_ns"])
    tail = Slices(after, headed, {"step": steps, "layer": np.full(n_steps, n_layers)})
    on_gpu = x["cpu"] == 0
    executed = _executions(record)
    set_up, stall = _waits(record, executed.where(on_gpu))
    return Tracks(
        steps=Slices(
            record.steps["begin_ns"],
            ends,
            {"step": steps, "prefill": record.steps["prefill"], "rows": record.steps["rows"]},
        ),
        layers=Slices(begins, visits["end_ns"], here | {name: visits[name] for name in ("hits", "late", "misses")}),
        dense=_merged(Slices(begins, decided, here), tail),
        decide=Slices(decided, visits["routed_ns"], here),
        set_up=set_up,
        experts=executed.where(on_gpu),
        stall=stall,
        cpu_wait=Slices(visits["end_ns"] - visits["cpu_wait_ns"], visits["end_ns"], here),
        head=Slices(headed, ends, {"step": steps}),
        host=executed.where(~on_gpu),
        copies=_copies(record),
    )


def _merged(first: Slices, second: Slices) -> Slices:
    """Both, in order of time."""
    begin, end = np.concatenate([first.begin, second.begin]), np.concatenate([first.end, second.end])
    order = np.lexsort((end, begin))
    of = {name: np.concatenate([first.of[name], second.of[name]])[order] for name in first.of}
    return Slices(begin[order], end[order], of)


# --- what is known only as a sum ---------------------------------------------------------------------------------


def shared(spans: Int, counted: npt.NDArray[np.bool_], total: int) -> Int:
    """Parts of `spans` [n] that add up to `total` over those `counted` [n]: equal ones where that is possible to the
    nanosecond, else in proportion to the spans (those not counted get the same share)."""
    n = int(counted.sum())
    if n and total % n == 0 and total // n <= spans.min():
        return np.full(len(spans), total // n, np.int64)
    whole = int(spans[counted].sum())
    total = min(total, whole)
    out = np.zeros(len(spans), np.int64)
    if whole:
        out[counted] = _in_proportion(spans[counted], total)
        rest = spans[~counted]
        out[~counted] = _in_proportion(rest, int(rest.sum()) * total // whole)
    return out


def _in_proportion(spans: Int, total: int) -> Int:
    """Parts of `spans`, none larger than its span, that add up to `total` (at most their sum)."""
    upto = np.cumsum(spans)
    if not len(spans) or not upto[-1]:
        return np.zeros(len(spans), np.int64)
    whole = int(upto[-1])
    parts = [int(at) * total // whole for at in upto.tolist()]  # Python's integers: ns * ns does not fit 64 bits
    return np.diff(np.array([0, *parts], np.int64))


# --- the GPU between the routed instant and the end of a visit -----------------------------------------------------


def _waits(record: RunRecord, experts: Slices) -> tuple[Slices, Slices]:
    """(set-up of each group, stalls by cause)."""
    visits, visit = record.groups["visits"], experts.of["visit"]
    at = np.flatnonzero(_changes(visit) | _changes(experts.of["group"]))
    v = visit[at]
    begin, end = visits["routed_ns"][v], experts.begin[at]
    inner = np.flatnonzero(~_changes(v))
    begin[inner] = experts.end[at[inner] - 1]
    gaps = end - begin
    set_up = _set_up(record, experts, v, gaps)
    here = {"step": visits["step"][v], "layer": visits["layer"][v]}
    stalls = by_cause(record, begin, end - set_up, v)
    where = {"step": visits["step"][stalls.visit], "layer": visits["layer"][stalls.visit], "cause": stalls.cause}
    return Slices(end - set_up, end, here), Slices(stalls.begin, stalls.end, where)


def _changes(values: Int) -> npt.NDArray[np.bool_]:
    """Whether each value differs from the one before it; the first does."""
    return np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])


def _set_up(record: RunRecord, experts: Slices, v: Int, gaps: Int) -> Int:
    """How much of the gap before each group was its set-up, [groups]; v: the visit of each."""
    visits, warm = record.groups["visits"], record.warmup_steps
    ran = int((experts.end - experts.begin)[experts.of["step"] >= warm].sum())
    counted = visits["step"][v] >= warm
    parts = shared(gaps, counted, max(0, record.counters["experts_ns"] - ran)) if len(gaps) else gaps
    stalled = sum(visits[f"stall_{cause}_ns"] for cause in ("demand", "late", "held"))
    left = np.bincount(v, gaps - parts, len(stalled)).astype(np.int64)  # float64: exact below 2**53 ns, 104 days
    if np.array_equal(left, stalled):
        return parts
    for one in np.flatnonzero(left != stalled):  # a device: each visit has its own rest
        own = v == one
        parts[own] = _in_proportion(gaps[own], max(0, int(gaps[own].sum() - stalled[one])))
    return parts


# --- experts and copies --------------------------------------------------------------------------------------------


def _executions(record: RunRecord) -> Slices:
    """Every execution, on the GPU and on the host, with the copy that brought its expert."""
    x, visits, t = (record.groups[name] for name in ("executions", "visits", "transfers"))
    visit = x["visit"]
    copy = _copy_of(record)
    brought = copy >= 0
    landed = np.where(brought, t["event"][copy], -1) if len(t["event"]) else np.full(len(copy), -1)
    committed = np.where(brought, t["event_committed"][copy], -1) if len(t["event"]) else landed
    in_visit = landed > visits["event"][visit]
    wanted = np.where(in_visit, np.where(committed < visits["event"][visit], LATE, MISS), HIT)
    wanted[x["cpu"] == 1] = MISS
    cause = np.where(brought, t["cause"][copy], RESIDENT) if len(t["cause"]) else np.full(len(copy), RESIDENT)
    of = {
        "visit": visit,
        "group": x["group"],
        "step": visits["step"][visit],
        "layer": visits["layer"][visit],
        "expert": x["expert"],
        "tokens": x["tokens"],
        "stand_in": x["stand_in_tokens"],
        "copy": copy,
        "cause": cause,
        "wanted": wanted,
        "first": _first_uses(copy),
    }
    return Slices(x["begin_ns"], x["end_ns"], of)


def _copy_of(record: RunRecord) -> Int:
    """The row of the last landing of each executed expert before its execution; -1: none, or it ran on the host."""
    x, t = record.groups["executions"], record.groups["transfers"]
    layer = record.groups["visits"]["layer"][x["visit"]]
    rows = np.flatnonzero(t["landed_ns"] >= 0)
    width = 1 + max(int(group["event"].max(initial=0)) for group in (x, t))
    most = 1 + max(int(group["expert"].max(initial=0)) for group in (x, t))
    keys = (t["layer"][rows] * most + t["expert"][rows]) * width + t["event"][rows]
    order = np.argsort(keys, kind="stable")
    mine = (layer * most + x["expert"]) * width
    at = np.searchsorted(keys[order], mine + x["event"]) - 1
    if not len(rows):
        return np.full(len(at), -1)
    found = rows[order][at]
    same = (at >= 0) & (keys[order][at] >= mine) & (x["cpu"] == 0)
    return np.where(same, found, -1)


def _first_uses(copy: Int) -> Int:
    """1 for the first execution that each copy serves."""
    _, first = np.unique(copy, return_index=True)
    out = np.zeros(len(copy), np.int64)
    out[first] = 1
    out[copy < 0] = 0
    return out


def _copies(record: RunRecord) -> Slices:
    """Every transfer that started; one under way at the end of the run ends there."""
    t = record.groups["transfers"]
    rows = np.flatnonzero(t["started_ns"] >= 0)
    rows = rows[np.lexsort((t["event_committed"][rows], t["started_ns"][rows]))]
    started, landed = t["started_ns"][rows], t["landed_ns"][rows]
    end = np.where(landed >= 0, landed, np.maximum(started, record.steps["end_ns"][-1]))
    names = ("layer", "expert", "cause", "promoted", "bytes", "victim", "outcome")
    return Slices(started, end, {"row": rows, "queued": t["queued_ns"][rows]} | {name: t[name][rows] for name in names})
