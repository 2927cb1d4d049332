"""What a full record says of durations: every nanosecond of a run given to one component, and observations to fit on.

The same definitions serve measured and simulated records, so that components compare. Of a visit,

    begin      the end of the visit before it, or the step's begin
    dense      from there to `dense_end_ns`, when the device had done the dense part
    decide     from there to the routed instant
    a group    begins when the one before it has ended (the first: at the routed instant) and all its experts have
               landed; its wait for the latter is stall, what it lasts is experts (launches and wake-ups with it)
    cpu_wait   from the last group's end to the visit's, where the host computed experts; else that is the group's
    head       from the last visit's end to the next step's begin: dense layers behind it, head, sampling

so that the components add up to the run's time. A transfer's *chance* is the earliest instant at which the simulated
link would have committed it: when it was queued, and when a landing made room in the depth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import OUTCOMES
from sim.costs.classes import StepShapes, layer_columns
from sim.machines.record import RunRecord
from sim.prepare import Setting

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
LANDED = OUTCOMES.index("landed")
NEVER = np.int64(-(2**62))
SPAN = np.int64(2**44)  # longer than any run in ns (4.9 hours)


@dataclass(frozen=True)
class TimedRun:
    """A full record and what it was made from; groups["visits"] has `dense_end_ns` too."""

    setting: Setting
    record: RunRecord

    @property
    def layers(self) -> int:
        return self.setting.trace.n_moe_layers

    @property
    def shapes(self) -> StepShapes:
        """Rows and positions of the steps."""
        spec, trace, steps = self.setting.spec, self.setting.trace, self.setting.steps
        positions = trace.position[steps.row].astype(np.int64) + spec.context_offset
        return StepShapes(
            steps.offset, positions, steps.prefill, trace.n_layers, np.asarray(trace.meta["moe_layers"], np.int64)
        )


def simulated(setting: Setting) -> TimedRun:
    """The run as the compiled machine has it; its dense parts end `decide_ns` before the routed instants."""
    from sim.machines.compiled import run

    record = run(setting.plan, True)
    visits = record.groups["visits"]
    visits["dense_end_ns"] = visits["routed_ns"] - setting.plan.costs.decide_ns
    return TimedRun(setting, record)


@dataclass(frozen=True)
class Groups:
    """What the GPU executed, group after group: visit, begin_ns, ready_ns, end_ns int64 [n]; member int64 [m]: the
    group of each execution; tokens int64 [m]."""

    visit: Int
    begin_ns: Int
    ready_ns: Int
    end_ns: Int
    member: Int
    tokens: Int

    @property
    def stall_ns(self) -> Int:
        return self.ready_ns - self.begin_ns

    @property
    def spent_ns(self) -> Int:
        return self.end_ns - self.ready_ns


def groups_of(run: TimedRun) -> Groups:
    """The groups of a run; each ends where the next begins, the last one with its visit unless the host was awaited."""
    visits, done = run.record.groups["visits"], run.record.groups["executions"]
    gpu = {name: column[done["cpu"] == 0] for name, column in done.items()}
    order = np.lexsort((gpu["event"], gpu["group"], gpu["visit"]))
    gpu = {name: column[order] for name, column in gpu.items()}
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(gpu["visit"]) != 0) | (np.diff(gpu["group"]) != 0)
    first = np.flatnonzero(new)
    if not len(first):
        none = np.zeros(0, np.int64)
        return Groups(none, none, none, none, none, none)
    visit, member = gpu["visit"][first], np.cumsum(new) - 1
    end = np.maximum.reduceat(gpu["end_ns"], first)
    of_visit = np.ones(len(first), bool)
    of_visit[1:] = np.diff(visit) != 0
    begin = np.where(of_visit, visits["routed_ns"][visit], np.concatenate([[0], end[:-1]]))
    last = np.append(of_visit[1:], True)
    awaited = np.zeros(len(visits["step"]), bool)
    awaited[done["visit"][done["cpu"] == 1]] = True
    end = np.where(last & ~awaited[visit], visits["end_ns"][visit], end)
    ready = np.maximum(begin, np.maximum.reduceat(_landings(run, gpu), first))
    return Groups(visit, begin, np.minimum(ready, end), end, member, gpu["tokens"])


def _landings(run: TimedRun, gpu: dict[str, Any]) -> Int:
    """For each execution the last landing of its expert before it ended, int64 [m]; NEVER where there is none."""
    sent = run.record.groups["transfers"]
    n = run.setting.plan.n_experts
    ok = sent["outcome"] == LANDED
    landed = np.sort((sent["layer"][ok] * n + sent["expert"][ok]) * SPAN + sent["landed_ns"][ok])
    layer = run.record.groups["visits"]["layer"][gpu["visit"]]
    expert = layer * n + gpu["expert"]
    at = np.searchsorted(landed, expert * SPAN + gpu["end_ns"], side="right") - 1
    found = landed[np.maximum(at, 0)] if len(landed) else np.full(len(at), NEVER)
    return np.where((at >= 0) & (found // SPAN == expert), found % SPAN, NEVER)


def begins(run: TimedRun) -> Int:
    """When each visit begins, int64 [V]."""
    visits, steps = run.record.groups["visits"], run.record.steps
    before = np.concatenate([[0], visits["end_ns"][:-1]])
    return np.where(visits["layer"] == 0, steps["begin_ns"][visits["step"]], before)


def heads(run: TimedRun) -> Int:
    """What follows the last visit of each step until the next step begins, int64 [S]."""
    steps = run.record.steps
    last = run.record.groups["visits"]["end_ns"][run.layers - 1 :: run.layers]
    return np.append(steps["begin_ns"][1:], steps["end_ns"][-1]) - last


def components(run: TimedRun) -> dict[str, int]:
    """ns of each of agreement.COMPONENTS in the counted steps, `total`, which is their sum, and `copies`: what the
    link was busy with."""
    visits, warm = run.record.groups["visits"], run.record.warmup_steps
    counted = visits["step"] >= warm
    taken = groups_of(run)
    in_group = counted[taken.visit]
    last = visits["routed_ns"].copy()
    np.maximum.at(last, taken.visit, taken.end_ns)
    host = (visits["end_ns"] - last)[counted]
    out = {
        "dense": int((visits["dense_end_ns"] - begins(run))[counted].sum()),
        "decide": int((visits["routed_ns"] - visits["dense_end_ns"])[counted].sum()),
        "experts": int(taken.spent_ns[in_group].sum()),
        "stall": int(taken.stall_ns[in_group].sum()),
        "cpu_wait": int(host.sum()),
        "head": int(heads(run)[warm:].sum()),
    }
    steps = run.record.steps
    out["total"] = int(steps["end_ns"][-1] - steps["begin_ns"][warm])
    out["copies"] = _link_ns(run, int(steps["begin_ns"][warm]), int(steps["end_ns"][-1]))
    return out


def _link_ns(run: TimedRun, begin: int, end: int) -> int:
    """How long the link moved data between two instants."""
    sent = run.record.on_link()
    under_way = sent["started_ns"] >= 0
    landed = np.where(sent["landed_ns"] >= 0, sent["landed_ns"], end)[under_way]
    started = np.maximum(sent["started_ns"][under_way], begin)
    return int(np.maximum(np.minimum(landed, end) - started, 0).sum())


def rows_done(run: TimedRun) -> int:
    """Tokens of the counted steps."""
    return int(run.record.steps["rows"][run.record.warmup_steps :].sum())


# --- observations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    """Dense parts [n]: rows, KV entries scored by kind of attention, phase, column of the dense table, ns. Where layers
    stand behind the last MoE layer, also what follows it in each step, which ends with the head on `logits` rows (0 for
    all others)."""

    rows: Int
    entries: dict[str, Int]
    prefill: npt.NDArray[np.bool_]
    column: Int
    logits: Int
    ns: Int


def dense_of(run: TimedRun) -> Dense:
    """Observations of the dense part, of the counted steps."""
    visits, warm = run.record.groups["visits"], run.record.warmup_steps
    counted = visits["step"] >= warm
    step, column = visits["step"][counted], visits["layer"][counted]
    ns = (visits["dense_end_ns"] - begins(run))[counted]
    logits = np.zeros(len(step), np.int64)
    if columns_of(run)[-1]:
        steps = np.arange(warm, len(run.record.steps["rows"]))
        step, column = np.append(step, steps), np.append(column, np.full(len(steps), run.layers))
        ns, logits = np.append(ns, heads(run)[warm:]), np.append(logits, logits_of(run)[warm:])
    entries = {kind: sums[step] for kind, sums in entries_of(run).items()}
    return Dense(run.record.steps["rows"][step], entries, run.setting.steps.prefill[step], column, logits, ns)


def logits_of(run: TimedRun) -> Int:
    """Rows of each step whose logits are needed, int64 [S]: of a prompt one."""
    rows = run.record.steps["rows"]
    return np.where(run.setting.steps.prefill, np.minimum(rows, 1), rows)


def entries_of(run: TimedRun) -> dict[str, Int]:
    """KV entries scored in each step, int64 [S], by kind of attention."""
    shapes, model = run.shapes, run.setting.model
    out = {"full": np.add.reduceat(shapes.positions + 1, shapes.step_offset[:-1])}
    if model is not None and model.window is not None:
        near = np.minimum(shapes.positions + 1, model.window)
        out["window"] = out["sparse"] = np.add.reduceat(near, shapes.step_offset[:-1])
    return out


def columns_of(run: TimedRun) -> list[list[tuple[str, str]]]:
    """For each column of the dense table (MoE layers, then what follows the last) the kinds of its layers."""
    shapes, model = run.shapes, run.setting.model
    moe = set(shapes.moe_layers.tolist())
    out: list[list[tuple[str, str]]] = [[] for _ in range(len(shapes.moe_layers) + 1)]
    for layer, column in enumerate(layer_columns(shapes)):
        attention = "full" if model is None else model.attention_kind(layer)
        out[column].append(("moe" if layer in moe else "ffn", attention))
    return out


def decide_of(run: TimedRun) -> Float:
    """ns between the end of the dense part and the routed instant, of each counted visit of the decode steps; of the
    prefill steps, which have more rows to read back and little to gain by it, where there are no others."""
    visits = run.record.groups["visits"]
    counted = visits["step"] >= run.record.warmup_steps
    decode = counted & ~run.setting.steps.prefill[visits["step"]]
    ns = visits["routed_ns"] - visits["dense_end_ns"]
    return np.asarray(ns[decode if decode.any() else counted], np.float64)


@dataclass(frozen=True)
class Transfers:
    """Landed transfers that began in the counted steps: gap_ns from the chance to the start of those on an idle link;
    idle_ns, following_ns how long the two kinds last."""

    gap_ns: Float
    idle_ns: Float
    following_ns: Float


def transfers_of(run: TimedRun) -> Transfers:
    """Observations of the link. Demands of a visit that wants more experts than its layer has slots may have waited for
    a slot, and prefetches for what was ahead of them: no gap is taken from those."""
    sent, visits = run.record.groups["transfers"], run.record.groups["visits"]
    where = np.flatnonzero((sent["outcome"] == LANDED) & (sent["committed_ns"] >= 0))
    order = where[np.argsort(sent["event_committed"][where], kind="stable")]
    t = {name: column[order] for name, column in sent.items()}
    before = np.concatenate([[NEVER], t["landed_ns"][:-1]])
    depth = run.setting.plan.costs.commit_depth
    room = np.concatenate([np.full(min(depth, len(order)), NEVER), t["landed_ns"][:-depth]])[: len(order)]
    chance = np.maximum(t["queued_ns"], room)
    following = t["committed_ns"] < before
    plan = run.setting.plan
    slots = plan.slots[np.zeros(len(order), np.int64) if plan.pooled else t["layer"]]
    roomy = (t["cause"] == 0) & (t["promoted"] == 0) & (visits["wanted"][t["visit"]] <= slots)
    begin = run.record.steps["begin_ns"][run.record.warmup_steps]
    counted = t["queued_ns"] >= begin
    idle = counted & ~following
    return Transfers(
        gap_ns=np.asarray((t["started_ns"] - chance)[idle & roomy], np.float64),
        idle_ns=np.asarray((t["landed_ns"] - t["started_ns"])[idle], np.float64),
        following_ns=np.asarray((t["landed_ns"] - before)[counted & following], np.float64),
    )


def host_of(run: TimedRun) -> tuple[Int, Int, npt.NDArray[np.bool_]]:
    """(tokens, ns, whether the link was busy) of each expert that the host computed in the counted steps."""
    done, visits = run.record.groups["executions"], run.record.groups["visits"]
    sent = run.record.groups["transfers"]
    ok = (done["cpu"] == 1) & (visits["step"][done["visit"]] >= run.record.warmup_steps)
    routed = visits["routed_ns"][done["visit"][ok]]
    flown = sent["committed_ns"] >= 0
    committed = np.sort(sent["committed_ns"][flown])
    landed = np.sort(sent["landed_ns"][flown & (sent["outcome"] == LANDED)])
    busy = np.searchsorted(committed, routed, side="left") > np.searchsorted(landed, routed, side="right")
    return done["tokens"][ok], (done["end_ns"] - done["begin_ns"])[ok], busy
