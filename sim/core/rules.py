"""What a run knows beyond State where rows decide the rule, layers may lack slots, or the host is more than a resource
of one figure: plan.OnMiss as the core takes it, with its own counters. A run that uses none of it has None.

Ids behind those of State's slots: from `run.stage_base` on the copy of each expert in a stage, from `run.remote_base`
on an expert that is read over the link where it lies. They have their own lives in `State.expert`, so an expert may be
on its way to a slot and to a stage at once.
"""

from collections.abc import MutableSequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import miss as ms
from sim.core.jit import apart, choice, inlined
from sim.core.memory import Memory, Struct, between, together, zeros
from sim.core.plan import ADMIT_PARAMS, CAUSES, FIXED, SPLIT_PARAMS, OnMiss, Plan
from sim.core.state import ABSENT, COMMITTED, HIT, LATE, MISS, RESIDENT, State

Int = npt.NDArray[np.int64]
DEMAND, PREFETCH, BACKGROUND, ADMISSION, STREAM = range(len(CAUSES))
NOBODY = -1
UNLIMITED = 2**62
BY_RULE = (ms.FETCH, ms.CPU, ms.STREAM, ms.REMOTE, ms.ADMIT, ms.SPLIT)  # answered by expert; others token by token


class OfRules(Struct):
    # of the run
    miss: int  # kind of the miss policy,
    bulk: int  # and of the bulk rule
    static: int  # 1: no newcomer takes a slot
    by_token: int  # 1: the miss policy is asked about every token
    bulk_touch: int
    serial: int
    merge_runs: int
    whole_layer: int
    ahead: int
    defer: int
    # what counts on
    stages_free: int
    n_streams: int  # queued copies: Rules.streams[: n_streams]
    n_admits: int  # queued admissions
    runs: int  # link transfers committed
    chunks: int  # of an expert that goes in chunks; 1: all go whole
    rest: int  # the expert of which chunks are not committed yet, NOBODY,
    sent: int  # and how many are


class OfAdmission(Struct):  # plan.ADMIT_PARAMS
    on: int  # 1: the miss policy is cpu-admit
    inserts: int
    queue: int
    admit_after: int
    replace_after: int
    max_rows: int
    warm: int
    spare: int
    margin: float
    newcomer: int  # whose admission looks for a slot


class OfSplit(Struct):  # plan.SPLIT_PARAMS
    by: int
    least: int
    keep: int
    cpu_visit_ns: int


class Served(Struct):  # the visit being served
    rule: int  # kind of its rule
    bulk: int
    by_token: int  # 1: the miss policy is asked about every token
    admits: int  # 1: its rule is cpu-admit
    streams: int  # 1: it copies what it lacks into stages (see `streams`)
    gathers: int  # 1: its copies join in ascending id, after everything else
    copies_left: int  # of a serial one: copies that have not landed
    n_remote: int  # experts read where they lie: Rules.remote[: n_remote],
    remote_run: int  # of these, those that ran
    remote_waits: int  # 1: the GPU is free and the next of them waits for the link
    busy: int  # 1: the host pays the busy figure whatever is under way
    n_later: int  # of State.on_host, so many at its end are deferred
    run: int  # experts in the transfer that was committed last


class RuleCount(Struct):  # of the summary
    streamed: int  # (token, slot) entries
    remote: int
    deferred: int
    landed_admission: int
    landed_stream: int
    link_transfers: int
    admission_replaced: int
    admission_rejected: int
    staged: int  # copies landed in stages,
    unwanted: int  # of these nobody's
    remotes: int  # experts read where they lie,
    host_experts: int  # and those that the host computed
    chunks: int  # landed, of transfers that go in chunks
    stage_peak: int  # stages in use at once
    stages_used: int  # now (counts on)


class Ruled(Struct):  # an expert
    at: int  # the id that serves it in this visit: its own, or its copy's
    answer: int  # index into plan.ANSWERS, of this visit
    misses: int  # visits that missed it since it landed in a slot (cpu-admit)
    ran: int  # visits of its layer when it last ran from its slot
    deferred: int  # (token, slot) entries of this visit that may be deferred
    joined: int  # the visit for which its copy was queued
    next: int  # the copy behind it in one transfer, NOBODY
    owed: int  # 1: its copy is among Served.copies_left


class RuledLayer(Struct):
    slots: int  # 1: it has any
    joined: int  # the last visit that has begun, or that copies were queued for
    ended: int  # the last one that has ended


class Part(Struct):  # what one entry of State.flight is of its transfer
    number: int  # which chunk, from 0 on; -1: all of it
    last: int  # 1: it lands with this
    row: int  # in the record's chunks, -1 none


class Rules(Memory):
    """E experts of a layer, G of all."""

    run: OfRules
    admission: OfAdmission
    split: MutableSequence[OfSplit]  # [2] of the miss policy, and of the bulk rule
    visit: Served
    count: RuleCount
    totals: Int  # the memory of count, to be set to zero
    busy_ns: Int  # [5] how long the link moved data, by cause (a machine's)
    host_ns: Int  # [1] how long the host computed (a machine's),
    remote_ns: Int  # [1] and how long the GPU read experts where they lie
    expert: MutableSequence[Ruled]  # [G]
    layer: MutableSequence[RuledLayer]  # [L]
    queued: Int  # [scopes] queued admissions
    streams: Int  # [G] the stream queue: ids of copies
    admits: Int  # [G] the admission queue
    part: MutableSequence[Part]  # [as State.flight]
    remote: Int  # [E] experts of this visit that are read where they lie
    order: Int  # [E] scratch: the misses of a split
    on_cpu: Int  # [rows, K] 1: answered `cpu` in this visit
    bulk: Int  # [S] 1: the step's visits use the bulk rule
    table: Int  # plan.OnMiss.table
    cpu_ns: Int  # [2, tokens] plan.Costs, which a split weighs
    expert_ns: Int  # [tokens]
    transfer_ns: Int  # [2]
    forgotten: Int  # the memory of all of this but of what is `_kept`
    at_start: Int  # the same as it was at time 0; empty in a run that is never reset


def new_rules(plan: Plan, s: State) -> Rules | None:
    """What a plan with `on_miss` counts with, before anything."""
    on = plan.on_miss
    if on is None:
        return None
    arrays, words = together(len(Rules.__annotations__), count=(RuleCount,), **_forgotten(plan, s), **_kept(plan))
    arrays["totals"] = arrays["count"].reshape(1).view(np.int64)[:-1]  # stages in use are no figure
    arrays["forgotten"] = forgotten = between(words, arrays["run"], arrays["busy_ns"])
    _begin(plan, on, arrays)
    return Rules(words, **arrays, at_start=forgotten.copy() if plan.resets is not None else zeros(0))


def _kept(plan: Plan) -> dict[str, tuple[Any, ...]]:
    """The dtype and shape of what a reset leaves alone beside the count: figures, which visits have begun and ended,
    and what never changes."""
    return dict(
        busy_ns=(np.int64, len(CAUSES)),
        host_ns=(np.int64, 1),
        remote_ns=(np.int64, 1),
        layer=(RuledLayer, plan.experts.shape[1]),
        bulk=(np.int64, len(plan.step_prefill)),
        table=(np.int64, 0 if plan.on_miss is None else len(plan.on_miss.table)),
        **{name: (np.int64, *ns.shape) for name, ns in _weighed(plan).items()},
    )


def _forgotten(plan: Plan, s: State) -> dict[str, tuple[Any, ...]]:
    """And of the rest."""
    experts, rows = s.run.n_full, s.arrays["routed"].shape[0]
    return dict(
        run=(OfRules,),
        admission=(OfAdmission,),
        visit=(Served,),
        split=(OfSplit, 2),
        expert=(Ruled, experts),
        queued=(np.int64, len(s.arrays["scope"])),
        streams=(np.int64, experts),
        admits=(np.int64, experts),
        part=(Part, len(s.arrays["flight"])),
        remote=(np.int64, plan.n_experts),
        order=(np.int64, plan.n_experts),
        on_cpu=(np.int64, rows, plan.experts.shape[2]),
    )


def _weighed(plan: Plan) -> dict[str, Int]:
    """The durations that a split weighs."""
    c = plan.costs
    return dict(cpu_ns=c.cpu_expert_ns, expert_ns=c.expert_ns, transfer_ns=c.transfer_ns)


def _begin(plan: Plan, on: OnMiss, arrays: dict[str, Any]) -> None:
    """What is not zero before anything; nothing under way is a chunk."""
    _begin_run(plan, on, arrays["run"])
    _begin_admission(plan, arrays["admission"])
    _begin_split(plan, on, arrays["split"])
    part, layer = arrays["part"], arrays["layer"]
    part["number"] = part["row"] = NOBODY
    part["last"] = 1
    layer["slots"] = np.broadcast_to(plan.slots > 0, len(layer))
    layer["joined"] = layer["ended"] = -1
    steps = len(arrays["bulk"])  # of a plan that was cut short, not of the whole
    arrays["bulk"][:] = 0 if on.bulk is None else on.step_bulk[:steps]
    arrays["table"][:] = on.table
    for name, ns in _weighed(plan).items():
        arrays[name][:] = ns


def _begin_run(plan: Plan, on: OnMiss, run: Any) -> None:
    run["miss"], run["bulk"] = plan.miss.kind, -1 if on.bulk is None else on.bulk.kind
    run["static"] = bool(plan.eviction.marks & FIXED)
    run["by_token"] = asked_by_token(plan)
    run["bulk_touch"], run["serial"], run["merge_runs"] = on.bulk_touch, on.serial, on.merge_runs
    run["whole_layer"], run["ahead"], run["defer"] = on.whole_layer or on.ahead > 0, on.ahead, on.defer
    run["chunks"], run["rest"] = plan.chunks, NOBODY
    run["stages_free"] = on.stages or ((on.ahead + 1) * plan.n_experts if on.ahead else UNLIMITED)


def asked_by_token(plan: Plan) -> bool:
    """Whether the miss policy is asked about every token, and not about every expert of a visit."""
    return plan.miss.kind not in BY_RULE or plan.late_counts_as_missing


def _begin_admission(plan: Plan, out: Any) -> None:
    out["on"] = plan.miss.kind == ms.ADMIT
    if out["on"]:
        for name, value in zip(ADMIT_PARAMS, plan.miss.params, strict=True):
            out[name] = UNLIMITED if value < 0 else value


def _begin_split(plan: Plan, on: OnMiss, out: Any) -> None:
    for i, rule in enumerate((plan.miss, on.bulk)):
        if rule is not None and rule.kind == ms.SPLIT:
            for name, value in zip(SPLIT_PARAMS, rule.params, strict=True):
                out[name][i] = value
    out["cpu_visit_ns"] = on.cpu_visit_ns


@inlined
def stage_of(s: State, g: int) -> int:
    """The id of expert g's copy in a stage."""
    return s.run.stage_base + g


@inlined
def keeps_out(s: State, rules: Any, layer: int) -> bool:
    """No newcomer may take a slot here: the layer has none, or the residents are fixed."""
    return rules.run.static == 1 or rules.layer[layer].slots == 0


@inlined
def rule_of(rules: Any, step: int) -> int:
    """The kind of the rule of a step's visits."""
    return rules.run.bulk if rules.bulk[step] == 1 else rules.run.miss


@apart
def streams(s: State, rules: Any, step: int, layer: int) -> bool:
    """Whether a visit copies into stages what it lacks: its rule is stream, or fetch where no newcomer takes a slot."""
    rule = rule_of(rules, step)
    return rule == ms.STREAM or (rule == ms.FETCH and keeps_out(s, rules, layer))


@apart
def begin_visit(s: State, rules: Any, visit: int, step: int, layer: int, rows: int) -> None:
    """Before anything is decided: which rule the visit has."""
    now, run = rules.visit, rules.run
    now.rule, now.bulk = rule_of(rules, step), rules.bulk[step]
    now.by_token = run.by_token if now.bulk == 0 else 0
    now.admits = 1 if now.rule == ms.ADMIT else 0
    now.streams = 1 if streams(s, rules, step, layer) else 0
    now.gathers = 1 if run.merge_runs == 1 or (run.whole_layer == 1 and now.streams == 1) else 0
    now.copies_left = now.n_remote = now.remote_run = now.remote_waits = now.busy = now.n_later = 0
    rules.layer[layer].joined = max(rules.layer[layer].joined, visit)
    if run.defer > 0:
        rules.on_cpu[:rows] = 0
    _keep_left_over(s)


@inlined
def _keep_left_over(s: State) -> None:
    """The demand queue begins at 0 again; what an earlier visit left in it stands in front."""
    left = s.link.demand_tail - s.link.demand_head
    for i in range(left):
        s.demand[i] = s.demand[s.link.demand_head + i]
    s.link.demand_head, s.link.demand_tail = 0, left


@apart
def class_of(s: State, rules: Any, g: int) -> int:
    """HIT, LATE or MISS of a wanted expert, and where it will run: in its slot, or in a stage."""
    own, copy = s.expert[g], s.expert[stage_of(s, g)]
    rules.expert[g].at, rules.expert[g].answer = g, NOBODY
    if own.state == RESIDENT:
        return HIT
    rules.expert[g].at = stage_of(s, g)
    if copy.state == RESIDENT:
        return HIT
    admitted = own.origin == ADMISSION and rules.visit.admits == 1
    if own.state == COMMITTED and not admitted:
        rules.expert[g].at = g
        return LATE
    if copy.state == COMMITTED:
        return LATE
    if rules.visit.streams == 0 and not keeps_out(s, rules, own.layer):
        rules.expert[g].at = g
    return MISS


@apart
def anywhere(s: State, g: int) -> bool:
    """Expert g is resident, in a stage, on its way or queued, in whatever cause."""
    return s.expert[g].state != ABSENT or s.expert[stage_of(s, g)].state != ABSENT


@choice
def behind(s: State, rules: Any, g: int) -> int:
    """The expert behind g in one transfer, or NOBODY: only copies for stages share one."""
    copy = g - s.run.stage_base
    return rules.expert[copy].next if 0 <= copy < s.run.n_full else NOBODY
