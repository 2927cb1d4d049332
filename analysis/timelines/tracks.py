"""What stood where and when: the intervals of a timeline, from a full record alone.

A record holds when each visit was routed and ended, when each expert ran and when each copy started and landed. What
the GPU did in between follows from it, because in a visit the GPU does one thing after another:

    dense part, decision | routed | stall, overhead, experts, stall, overhead, experts, ..., wait for the host | end

- **dense part and decision** share the time from the end of the visit before (or of the step's begin) to `routed`.
  Where the decision takes the same time in every visit, as on the virtual machines, that figure is the counter
  `decide_ns` shared equally, exactly. On a device, where every visit measures its own, the record does not tell them
  apart: the counter is shared out in proportion to those spans, so that the sum is right and a single one may not be.
- **head** and dense layers behind the last MoE layer share the time after the last visit of a step. Without such layers
  (the usual case) it is all head; with them, the record has only their sums, shared out in proportion again.
- **between routed and end**: `analysis.timelines.gaps`; why the GPU stalled: `analysis.timelines.stalls`.
- Experts of a group that a device ran in one kernel have one interval in the record; here they stand side by side in
  it, by tokens. A device's clocks are a little off: a copy is shown from the end of the one before it, if that is
  later.

All times are int64 ns. Steps before the end of the warm-up are there too; counters and summaries do not count them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.timelines.copies import copy_of, first_uses
from analysis.timelines.gaps import changes, gaps, shared
from analysis.timelines.stalls import by_cause
from sim.core.plan import CAUSES
from sim.errors import SpecError
from sim.machines.record import Group, RunRecord

Int = npt.NDArray[np.int64]

RESIDENT = len(CAUSES)  # here since before time 0, no copy brought it
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
    follows the last MoE layer}, decide, overhead, cpu_wait {step, layer}, stall {step, layer, cause: of
    STALLS}, head {step}; experts (on the GPU) and host (on the CPU) {visit, group, step, layer, expert, low,
    tokens, stand_in (tokens that it executes in another's place), copy (row of the transfer that brought it, -1 none),
    cause (that of the copy, or RESIDENT), wanted (HIT, LATE, MISS), first (1: the first use of its copy)}; copies
    {row, queued, layer, expert, low, cause, promoted, bytes, victim, outcome}.
    """

    steps: Slices
    layers: Slices
    dense: Slices
    decide: Slices
    overhead: Slices
    experts: Slices
    stall: Slices
    cpu_wait: Slices
    head: Slices
    host: Slices
    copies: Slices


def tracks(record: RunRecord) -> Tracks:
    """The intervals of a full record (analysis.reading.record_check has looked at one that came from a file).

    Raises SpecError, one line, unless every step has a visit of every MoE layer and time goes forward.
    """
    _check(record)
    n_steps, n_layers = len(record.steps["begin_ns"]), len(record.layer["hits"])
    visits, x = record.groups["visits"], record.groups["executions"]
    before = np.concatenate([record.steps["begin_ns"][:, None], visits["end_ns"].reshape(n_steps, n_layers)], axis=1)
    begins, here = before[:, :-1].reshape(-1), {"step": visits["step"], "layer": visits["layer"]}
    tail, head, tail_ns = _ends(record, before[:, -1])
    # what of the decisions comes before the routed instants: all that is neither dense part nor comes after
    counted = visits["step"] >= record.warmup_steps
    spans = visits["routed_ns"] - begins
    early = max(0, int(spans[counted].sum()) - record.counters["dense_ns"] + tail_ns)
    early = min(record.counters["decide_ns"], early)
    decided = visits["routed_ns"] - shared(spans, counted, early)
    executed = _executions(record)
    experts = executed.where(x["cpu"] == 0)
    waits = _waits(record, experts, record.counters["decide_ns"] - early)
    decide = _merged(Slices(decided, visits["routed_ns"], here), waits["decide"])
    kinds = ("hits", "late", "misses")
    return Tracks(
        steps=Slices(
            record.steps["begin_ns"],
            record.steps["end_ns"],
            {"step": np.arange(n_steps)} | {name: record.steps[name] for name in ("prefill", "rows")},
        ),
        layers=Slices(begins, visits["end_ns"], here | {name: visits[name] for name in kinds}),
        dense=_merged(Slices(begins, decided, here), tail),
        decide=decide,
        overhead=waits["overhead"],
        experts=experts,
        stall=waits["stall"],
        cpu_wait=Slices(visits["end_ns"] - visits["cpu_wait_ns"], visits["end_ns"], here),
        head=head,
        host=executed.where(x["cpu"] == 1),
        copies=_copies(record),
    )


def _check(record: RunRecord) -> None:
    """What everything else here rests on."""
    steps, visits, x = record.steps, record.groups["visits"], record.groups["executions"]
    wanted = len(steps["begin_ns"]) * len(record.layer["hits"])
    if len(visits["step"]) != wanted or not wanted:
        raise SpecError(f"record: visits: has {len(visits['step'])} rows; steps x MoE layers are {wanted}")
    on_gpu = x["cpu"] == 0
    falls = {
        "steps.begin_ns, end_ns": np.stack([steps["begin_ns"], steps["end_ns"]], axis=1).reshape(-1),
        "visits.routed_ns, end_ns": np.stack([visits["routed_ns"], visits["end_ns"]], axis=1).reshape(-1),
        "executions.visit": x["visit"][on_gpu],
        "executions.begin_ns": x["begin_ns"][on_gpu],
        "executions.end_ns": x["end_ns"][on_gpu],
    }
    for name, column in falls.items():
        wrong = np.flatnonzero(column[1:] < column[:-1])
        if len(wrong):
            raise SpecError(f"record: {name}: falls from {column[wrong[0]]} to {column[wrong[0] + 1]}; it must rise")


def _ends(record: RunRecord, after: Int) -> tuple[Slices, Slices, int]:
    """(dense part behind the last MoE layer, head, ns of the former in counted steps), `after` the last visit [S]."""
    ends, step = record.steps["end_ns"], np.arange(len(after))
    counted = step >= record.warmup_steps
    headed = ends - shared(ends - after, counted, record.counters["head_ns"])
    layer = np.full(len(after), len(record.layer["hits"]))
    tail_ns = int((headed - after)[counted].sum())
    return Slices(after, headed, {"step": step, "layer": layer}), Slices(headed, ends, {"step": step}), tail_ns


def _waits(record: RunRecord, experts: Slices, decide_ns: int) -> dict[str, Slices]:
    """decide (what comes after the routed instant), stall by cause, overhead: the GPU between two experts."""
    visits = record.groups["visits"]
    found = gaps(record, experts.of["visit"], experts.of["group"], experts.begin, experts.end, decide_ns)
    begin, end = found.stall
    stalls = by_cause(record, begin, end, found.visit)

    def slices(begin: Int, end: Int, visit: Int, **more: Int) -> Slices:
        return Slices(begin, end, {"step": visits["step"][visit], "layer": visits["layer"][visit]} | more)

    late = found.decide > 0
    return {
        "decide": slices(found.begin, begin, found.visit).where(late),
        "stall": slices(stalls.begin, stalls.end, stalls.visit, cause=stalls.cause),
        "overhead": slices(end, found.end, found.visit),
    }


def _merged(first: Slices, second: Slices) -> Slices:
    """Both, in order of time."""
    begin, end = np.concatenate([first.begin, second.begin]), np.concatenate([first.end, second.end])
    order = np.lexsort((end, begin))
    of = {name: np.concatenate([first.of[name], second.of[name]])[order] for name in first.of}
    return Slices(begin[order], end[order], of)


# --- experts and copies --------------------------------------------------------------------------------------------


def _executions(record: RunRecord) -> Slices:
    """Every execution, on the GPU and on the host, with the copy that brought its expert."""
    x, visits, t = (record.groups[name] for name in ("executions", "visits", "transfers"))
    visit = x["visit"]
    copy = copy_of(record)
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
        "low": x["low"],
        "tokens": x["tokens"],
        "stand_in": x["stand_in_tokens"],
        "copy": copy,
        "cause": cause,
        "wanted": wanted,
        "first": first_uses(copy).astype(np.int64),
    }
    return Slices(*_apart(x), of)


def _apart(x: Group) -> tuple[Int, Int]:
    """(begin, end) of each execution; those that ran in one kernel share its interval by their tokens."""
    parts = (changes(x[name]) for name in ("visit", "group", "begin_ns", "end_ns"))
    new = np.logical_or.reduce([*parts, x["end_ns"] == x["begin_ns"]])
    first, kernel = np.flatnonzero(new), np.cumsum(new) - 1
    if not len(first):
        return x["begin_ns"], x["end_ns"]
    upto = np.cumsum(x["tokens"])
    before = (upto - x["tokens"])[first][kernel]
    whole = np.maximum(np.add.reduceat(x["tokens"], first)[kernel], 1)
    lasts = x["end_ns"] - x["begin_ns"]
    begin = x["begin_ns"] + lasts * (upto - x["tokens"] - before) // whole
    return begin, x["begin_ns"] + lasts * (upto - before) // whole


def _copies(record: RunRecord) -> Slices:
    """Every transfer that started; one under way at the end of the run ends there."""
    t = record.groups["transfers"]
    rows = np.flatnonzero(t["started_ns"] >= 0)
    rows = rows[np.lexsort((t["event_committed"][rows], t["started_ns"][rows]))]
    started, landed = t["started_ns"][rows], t["landed_ns"][rows]
    end = np.where(landed >= 0, landed, np.maximum(started, record.steps["end_ns"][-1]))
    started = np.maximum(started, np.append(0, np.maximum.accumulate(end))[:-1])
    end = np.maximum(started, end)
    names = ("layer", "expert", "low", "cause", "promoted", "bytes", "victim", "outcome")
    return Slices(started, end, {"row": rows, "queued": t["queued_ns"][rows]} | {name: t[name][rows] for name in names})
