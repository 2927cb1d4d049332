"""What stood where and when: the intervals of a timeline, from a full record and, where the run waited for whole
batches of copies, a little of its spec (analysis.timelines.asked).

A record holds when each visit was routed and ended, when each expert ran and when each copy started and landed. What
the GPU did in between follows from it, because in a visit the GPU does one thing after another:

    dense part, decision | routed | stall, overhead, experts, stall, overhead, experts, ..., wait for the host | end

(where the host goes first, beside=no, its wait stands behind `routed`)

- **dense part and decision** share the time from the end of the visit before (or of the step's begin) to `routed`.
  Where the decision takes the same time in every visit, as on the virtual machines, that figure is the counter
  `decide_ns` shared equally, exactly. On a device, where every visit measures its own, the record does not tell them
  apart: the counter is shared out in proportion to those spans, so that the sum is right and a single one may not be.
- **draft**: in runs that speculate, before the first dense part of a step: alike for each row that is guessed, which is
  exact on the virtual machines, so the counter and the rows tell it.
- **head** and dense layers behind the last MoE layer share the time after the last visit of a step. Without such layers
  (the usual case) it is all head; with them, the record has only their sums, shared out in proportion again.
- **between routed and end**: `analysis.timelines.gaps`; why the GPU stalled: `analysis.timelines.stalls`; what the
  host did, and when it slowed the link: `analysis.timelines.host`, `analysis.timelines.slowing`.
- Experts of a group that a device ran in one kernel have one interval in the record; here they stand side by side in
  it, by tokens. A device's clocks are a little off: a copy is shown from the end of the one before it, if that is
  later.

All times are int64 ns. Steps before the end of the warm-up are there too; counters and summaries do not count them.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.timelines.asked import NOTHING, Asked
from analysis.timelines.copies import STAGED, copy_of, first_uses, kinds, pieces, runs
from analysis.timelines.gaps import Ran, changes, gaps, shared
from analysis.timelines.host import HostWork, beside, by_rules, host_work, slow_spans, waits
from analysis.timelines.instants import when
from analysis.timelines.slowing import is_slowed
from analysis.timelines.stalls import by_cause
from sim.core.plan import CAUSES, OUTCOMES, PLACES
from sim.errors import SpecError
from sim.machines.record import Group, RunRecord, left_ns

Int = npt.NDArray[np.int64]

RESIDENT = len(CAUSES)  # here since before time 0, no copy brought it
HIT, LATE, MISS = range(3)
SLOT, REMOTE, HOST = (PLACES.index(name) for name in ("slot", "remote", "host"))
ADMISSION, REJECTED = CAUSES.index("admission"), OUTCOMES.index("rejected")


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

    steps {step, prefill, rows}, draft {step}, layers {step, layer, hits, late, misses}; the GPU's dense {step, layer: L
    is what follows the last MoE layer}, decide, overhead, cpu_wait {step, layer}, stall {step, layer, cause: of
    STALLS}, head {step}; experts (on the GPU) and host (on the CPU) {visit, group, step, layer, expert, low,
    tokens, stand_in (tokens that it executes in another's place), copy (row of the transfer that brought it, -1 none),
    run (its number over the link), cause (that of the copy, or RESIDENT), wanted (HIT, LATE, MISS), first (1: the first
    use of its copy, and not while it was read), place (of PLACES)}; copies, one for each transfer over the link,
    or chunk of one {chunk (its number, -1: all of it), event_committed, event (it landed), row (of the first expert it
    brings), run, queued and committed (ns), layer, expert, n (experts, from that one on), unwanted (of these so many
    landed and were never run), low, cause, promoted, bytes, victim, outcome, place}. Of runs with plan.on_miss, else
    empty: visits of the host {step, layer}, rejected admissions {row, layer, expert; they take no time}, and
    slowed {run, row, layer, expert}: pieces of copies in which the host took from the link.
    """

    steps: Slices
    draft: Slices
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
    host_visits: Slices
    rejected: Slices
    slowed: Slices


def tracks(record: RunRecord, asked: Asked = NOTHING) -> Tracks:
    """The intervals of a full record (analysis.reading.record_check has looked at one that came from a file).

    Raises SpecError, one line, unless every step has a visit of every MoE layer and time goes forward.
    """
    _check(record)
    n_steps, n_layers = len(record.steps["begin_ns"]), len(record.layer["hits"])
    visits, x = record.groups["visits"], record.groups["executions"]
    before = np.concatenate([record.steps["begin_ns"][:, None], visits["end_ns"].reshape(n_steps, n_layers)], axis=1)
    since, here = before[:, :-1].flatten(), {"step": visits["step"], "layer": visits["layer"]}
    drafted = before[:, 0] = _drafted(record, before[:, 0])
    begins = before[:, :-1].reshape(-1)
    tail, head, tail_ns = _ends(record, before[:, -1])
    # what of the decisions comes before the routed instants: all that is neither dense part nor comes after
    counted = visits["step"] >= record.warmup_steps
    spans = visits["routed_ns"] - begins
    early = max(0, int(spans[counted].sum()) - record.counters["dense_ns"] + tail_ns)
    early = min(record.counters["decide_ns"], early)
    decided = visits["routed_ns"] - shared(spans, counted, early)
    executed = _executions(record)
    experts = executed.where(x["cpu"] == 0)
    work = host_work(record)
    host_first, host_last = waits(record, work)
    free = visits["routed_ns"] + host_first, visits["end_ns"] - host_last
    between = _waits(record, asked, experts, free, record.counters["decide_ns"] - early)
    decide = _merged(Slices(decided, visits["routed_ns"], here), between["decide"])
    classes = ("hits", "late", "misses")
    waited = Slices(free[1], visits["end_ns"], here)
    if host_first.any():
        waited = _merged(Slices(visits["routed_ns"], free[0], here).where(host_first > 0), waited)
    copies = _copies(record)
    return Tracks(
        steps=Slices(
            record.steps["begin_ns"],
            record.steps["end_ns"],
            {"step": np.arange(n_steps)} | {name: record.steps[name] for name in ("prefill", "rows")},
        ),
        draft=Slices(record.steps["begin_ns"], drafted, {"step": np.arange(n_steps)}),
        layers=Slices(since, visits["end_ns"], here | {name: visits[name] for name in classes}),
        dense=_merged(Slices(begins, decided, here), tail),
        decide=decide,
        overhead=between["overhead"],
        experts=experts,
        stall=between["stall"],
        cpu_wait=waited,
        head=head,
        host=executed.where(x["cpu"] == 1),
        copies=copies,
        host_visits=Slices(work.begin, work.first, here).where(by_rules(record) & (work.first > work.begin)),
        rejected=_rejected(record),
        slowed=_slowed(record, asked, copies, work),
    )


def window(every: Tracks, record: RunRecord, first: int, last: int) -> Tracks:
    """What belongs to the steps `first` to before `last`; copies that are under way in them."""
    begin, end = record.steps["begin_ns"][first], record.steps["end_ns"][last - 1]
    out = {}
    for name, part in vars(every).items():
        if name in ("copies", "slowed", "rejected"):
            reaches = (np.maximum(part.end, part.begin + 1) > begin) & (part.begin < end)
        else:
            reaches = (part.of["step"] >= first) & (part.of["step"] < last)
        out[name] = part.where(reaches)
    return replace(every, **out)


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


def _drafted(record: RunRecord, begins: Int) -> Int:
    """int64 [S]: when the draft of each step, which begins at `begins`, is done."""
    if not record.windows:
        return begins.copy()
    guessed = np.bincount(record.windows["step"], record.windows["rows"] - 1, len(begins)).astype(np.int64)
    counted = max(1, int(guessed[record.warmup_steps :].sum()))
    routed = record.groups["visits"]["routed_ns"][:: len(record.layer["hits"])]
    return np.asarray(np.minimum(begins + guessed * record.counters.get("draft_ns", 0) // counted, routed), np.int64)


def _ends(record: RunRecord, after: Int) -> tuple[Slices, Slices, int]:
    """(dense part behind the last MoE layer, head, ns of the former in counted steps), `after` the last visit [S]."""
    ends, step = record.steps["end_ns"], np.arange(len(after))
    counted = step >= record.warmup_steps
    headed = ends - shared(ends - after, counted, record.counters["head_ns"])
    layer = np.full(len(after), len(record.layer["hits"]))
    tail_ns = int((headed - after)[counted].sum())
    return Slices(after, headed, {"step": step, "layer": layer}), Slices(headed, ends, {"step": step}), tail_ns


def _waits(
    record: RunRecord, asked: Asked, experts: Slices, free: tuple[Int, Int], decide_ns: int
) -> dict[str, Slices]:
    """decide (what comes after the routed instant), stall by cause, overhead: the GPU between two experts. free: from
    when to when the GPU did not wait for the host, ns [visits]."""
    visits, of = record.groups["visits"], experts.of
    ran = Ran(of["visit"], of["group"], experts.begin, experts.end, of["place"] == REMOTE)
    found = gaps(record, ran, free, decide_ns)
    begin, end = found.stall
    stalls = by_cause(record, begin, end, found.visit, asked)

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
    run = np.where(brought, runs(t)[copy], -1) if len(t["event"]) else landed
    place = x["place"] if by_rules(record) else np.where(x["cpu"] == 1, HOST, SLOT)
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
        "run": run,
        "cause": cause,
        "wanted": wanted,
        "first": (first_uses(copy) & (place != REMOTE)).astype(np.int64),
        "place": place,
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
    """Every transfer over the link, or chunk, that started; what is under way at a reset or the end ends there."""
    t, sent, run = record.groups["transfers"], pieces(record), runs(record.groups["transfers"])
    sent = {name: column[sent["started_ns"] >= 0] for name, column in sent.items()}
    order = np.lexsort((sent["event_committed"], sent["started_ns"]))
    sent = {name: column[order] for name, column in sent.items()}
    rows, begin, landed = sent["transfer"], sent["started_ns"], sent["landed_ns"]
    end = np.where(landed >= 0, landed, np.maximum(begin, left_ns(record)[rows]))
    begin = np.maximum(begin, np.append(0, np.maximum.accumulate(end))[:-1])
    end = np.maximum(begin, end)
    of = {name: t[name][rows] for name in ("layer", "expert", "low", "cause", "promoted", "victim", "outcome")}
    of |= {"row": rows, "run": run[rows], "queued": t["queued_ns"][rows], "chunk": sent["number"]}
    of |= {name: sent[name] for name in ("event_committed", "event")} | {"committed": sent["committed_ns"]}
    of["place"] = t["place"][rows] if by_rules(record) else np.zeros_like(rows)
    for name, values in (("n", np.ones_like(run)), ("bytes", t["bytes"]), ("unwanted", _unwanted(record))):
        of[name] = np.zeros(1 + run.max(initial=0), np.int64)
        np.add.at(of[name], run, values)
        of[name] = of[name][run[rows]]
    of["bytes"] = np.where(sent["number"] < 0, of["bytes"], sent["bytes"])
    return Slices(begin, end, of)


def _unwanted(record: RunRecord) -> Int:
    """1 for each transfer whose copy landed in a stage and was never run, int64 [transfers]."""
    t, copy = record.groups["transfers"], copy_of(record)
    out: Int = ((kinds(t) == STAGED) & (t["landed_ns"] >= 0)).astype(np.int64)
    out[copy[copy >= 0]] = 0
    return out


def _rejected(record: RunRecord) -> Slices:
    """Admissions that found no room when their turn came."""
    t = record.groups["transfers"]
    rows = np.flatnonzero((t["cause"] == ADMISSION) & (t["outcome"] == REJECTED))
    at = when(record, t["event"][rows])
    return Slices(at, at, {"row": rows} | {name: t[name][rows] for name in ("layer", "expert")})


def _slowed(record: RunRecord, asked: Asked, copies: Slices, work: HostWork) -> Slices:
    """The pieces of copies that lie beside host work, where that slows the link."""
    names = ("run", "row", "layer", "expert")
    if not by_rules(record):
        return Slices(copies.begin[:0], copies.end[:0], {name: copies.of[name][:0] for name in names})
    owner, begin, end = beside(slow_spans(record, work), copies.begin, copies.end)
    owner, begin, end = (column[end > begin] for column in (owner, begin, end))
    touched = np.isin(np.arange(len(copies)), owner)
    lasts, (sizes, place) = copies.end - copies.begin, (copies.of[name] for name in ("bytes", "place"))
    slow = is_slowed(asked, copies.of, lasts, sizes, place, touched)
    slower = Slices(begin, end, {name: copies.of[name][owner] for name in names})
    return slower.where(np.full(len(begin), slow))
