"""The compiled machine: virtual time in int64 ns, one straight loop, compiled with numba.

It asks the core what happens and knows only how long it takes. One rule orders an instant: nothing is committed at
`now` while anything else is due at `now`; so commits happen in the one place where the clock moves on (`_link_until`)
and where the GPU has nothing to do but wait (`_stall`).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core.hooks import explained, new_hooks
from sim.core.inputs import inputs
from sim.core.jit import choice, inlined, inner
from sim.core.link import count_stall, next_commit, waiting, why_stalled
from sim.core.plan import Plan
from sim.core.residency import land
from sim.core.state import NEVER, State
from sim.core.visit import decide, finish_group, finish_host, take_group
from sim.machines.clock import (
    Clock,
    begin_run,
    close,
    forget,
)
from sim.machines.record import RunRecord

Int = npt.NDArray[np.int64]
UNTIL_LANDING = -1  # in the place of a duration: the GPU stalls


class Durations(NamedTuple):
    """plan.Costs as the loop takes it, and plan.Low's (the same again where there is none)."""

    dense_ns: Int
    head_ns: Int
    cost_class: npt.NDArray[np.int32]
    expert_ns: Int
    cpu_expert_ns: Int
    transfer_ns: Int
    low_expert_ns: Int
    low_transfer_ns: Int
    decide_ns: int
    group_ns: int
    commit_gap_ns: int


@inlined
def _transfer_ns(s: State, hooks: Any, d: Durations, g: int, follows: int) -> int:
    """Of expert g, on an idle link or following on; only a version with hooks can have low-precision copies."""
    if hooks is not None and g >= s.run.n_full:
        return d.low_transfer_ns[follows]
    return d.transfer_ns[follows]


@inlined
def _commit_all(s: State, log: Any, hooks: Any, d: Durations, clock: Clock) -> None:
    """The commits of this instant, as far as the depth of the link and the slots allow."""
    now = clock.time.now_ns
    while waiting(s):
        behind = s.link.n_flight > 0
        if behind:
            tail = s.link.flight_head + s.link.n_flight - 1
            last = s.flight[tail if tail < len(s.expert) else tail - len(s.expert)]
        g = next_commit(s, log, hooks)
        if g < 0:
            return
        clock.starts[g] = clock.lands[last] if behind else now + d.commit_gap_ns
        clock.lands[g] = clock.starts[g] + _transfer_ns(s, hooks, d, g, 1 if behind else 0)
        if log is not None:
            row = log.transfers[s.expert[g].transfer]
            row.committed_ns, row.started_ns = now, clock.starts[g]


@inlined
def _next_landing(s: State, clock: Clock) -> int:
    """When the oldest committed transfer lands; NEVER where nothing is under way."""
    return clock.lands[s.flight[s.link.flight_head]] if s.link.n_flight > 0 else NEVER


@inlined
def _land(s: State, log: Any, clock: Clock) -> None:
    """The oldest committed transfer lands now."""
    g = land(s, log)
    clock.time.link_busy_ns += clock.time.now_ns - clock.starts[g]
    if log is not None:
        log.transfers[s.expert[g].transfer].landed_ns = clock.time.now_ns


@inlined
def _stalled(s: State, log: Any, clock: Clock, layer: int, due: int) -> None:
    """The GPU has nothing to take and waits, after the commits of this instant, until `due`."""
    if due == NEVER:
        raise RuntimeError("deadlock: the GPU waits and nothing is under way")
    waited = due - clock.time.now_ns
    count_stall(s, log, layer, why_stalled(s), waited)
    clock.time.stall_ns += waited


@inlined
def _advance(s: State, log: Any, hooks: Any, d: Durations, clock: Clock, ns: int, layer: int) -> None:
    """The GPU is busy for ns, or (UNTIL_LANDING) it waits at `layer` for the next landing; the link goes on beside it.

    Commits before the clock leaves an instant, lands and commits at every instant on the way, only lands at the last.
    """
    to = clock.time.now_ns + ns
    if ns > 0 and s.link.n_flight == 0 and not waiting(s):
        clock.time.now_ns = to
        return
    while ns != 0:
        if waiting(s):
            _commit_all(s, log, hooks, d, clock)
        due = _next_landing(s, clock)
        if ns == UNTIL_LANDING:
            _stalled(s, log, clock, layer, due)
            to = due
        clock.time.now_ns = min(due, to)
        while _next_landing(s, clock) == clock.time.now_ns:
            _land(s, log, clock)
        if due >= to:
            return


@inlined
def _group_ns(s: State, hooks: Any, d: Durations, n: int) -> int:
    """The next n ready experts, one after another behind one group set-up."""
    ns = d.group_ns
    for i in range(s.visit.n_run, s.visit.n_run + n):
        g = s.ready[i]
        if hooks is not None and g >= s.run.n_full:
            ns += d.low_expert_ns[s.expert[g].work]
        else:
            ns += d.expert_ns[s.expert[g].work]
    return ns


@inner
def _time_executions(s: State, log: Any, expert_ns: Any, low_ns: Any, begin: int, n: int, group: int) -> None:
    """When each of the last n executions began and ended."""
    last = s.rows.executions
    for i in range(last - n, last):
        row = log.executions[i]
        row.begin_ns, row.group = begin, group
        begin += low_ns[row.tokens] if row.low == 1 else expert_ns[row.tokens]
        row.end_ns = begin


@inner
def _host_ns(s: State, d: Any) -> int:
    """How long the host computes what this visit gave it: one expert after another from the routed instant."""
    busy = 1 if s.link.n_flight > 0 else 0
    ns = 0
    for i in range(s.visit.n_host):
        ns += d.cpu_expert_ns[busy, s.expert[s.on_host[i]].host]
    return ns


@inner
def _wait_for_host(s: State, log: Any, hooks: Any, d: Any, clock: Clock, routed: int, busy: int, ns: int) -> None:
    """The layer ends when the host is done too."""
    wait = max(0, routed + ns - clock.time.now_ns)
    clock.time.cpu_wait_ns += wait
    _advance(s, log, hooks, d, clock, wait, s.run.routed)  # no stall: any layer
    n = s.visit.n_host
    finish_host(s, log)
    if log is not None:
        log.visits[s.rows.visits - 1].cpu_wait_ns = wait
        _time_executions(s, log, d.cpu_expert_ns[busy], d.low_expert_ns, routed, n, -1)


@inlined
def _visit(
    s: State,
    log: Any,
    route: Any,
    miss: Any,
    ahead: Any,
    hooks: Any,
    d: Any,
    clock: Clock,
    mode: int,
    step: int,
    layer: int,
) -> None:
    """One visit from its routed instant to the end of its layer."""
    first_transfer = s.rows.transfers
    decide(s, log, route, miss, ahead, step, layer, hooks)
    routed, busy = clock.time.now_ns, 1 if s.link.n_flight > 0 else 0
    if log is not None:
        log.visits[s.rows.visits - 1].routed_ns = routed
        for i in range(first_transfer, s.rows.transfers):
            log.transfers[i].queued_ns = routed
    host_ns = 0
    if miss is not None:
        host_ns = _host_ns(s, d)
    group = 0
    while s.visit.n_run < s.visit.n_work:
        n, begin = take_group(s, mode), clock.time.now_ns
        ns = _group_ns(s, hooks, d, n) if n > 0 else UNTIL_LANDING
        _advance(s, log, hooks, d, clock, ns, layer)
        if n > 0:
            clock.time.experts_ns += ns
            finish_group(s, log, n)
            if log is not None:
                _time_executions(s, log, d.expert_ns, d.low_expert_ns, begin + d.group_ns, n, group)
            group += 1
    if miss is not None and s.visit.n_host > 0:
        _wait_for_host(s, log, hooks, d, clock, routed, busy, host_ns)
    if log is not None:
        log.visits[s.rows.visits - 1].end_ns = clock.time.now_ns


@choice
def _loop(
    s: State, log: Any, route: Any, miss: Any, ahead: Any, hooks: Any, d: Any, clock: Clock, mode: int, warmup: int
) -> None:
    """The whole run."""
    layers = route.experts.shape[1]
    for step in range(len(route.step_prefill)):
        if step == warmup and warmup > 0:
            forget(s, clock)
        clock.begin[step] = clock.time.now_ns
        dense, head = d.dense_ns[d.cost_class[step]], d.head_ns[d.cost_class[step]]
        for layer in range(layers + 1):
            then = d.decide_ns if layer < layers else head
            _advance(s, log, hooks, d, clock, dense[layer] + then, layer)
            if layer < layers:
                _visit(s, log, route, miss, ahead, hooks, d, clock, mode, step, layer)
        clock.end[step] = clock.time.now_ns
        clock.time.dense_ns += dense.sum()
        clock.time.decide_ns += layers * d.decide_ns
        clock.time.head_ns += head
        if log is not None:
            clock.event[step] = lg.next_event(s)
    close(s, log, clock)


def durations(plan: Plan) -> Durations:
    """The plan's costs as one flat tuple of one type."""
    c = plan.costs
    low = plan.low or c
    arrays = (c.dense_ns, c.head_ns, c.cost_class, c.expert_ns, c.cpu_expert_ns, c.transfer_ns)
    return Durations(*arrays, low.expert_ns, low.transfer_ns, c.decide_ns, c.group_ns, c.commit_gap_ns)


def run(plan: Plan, full: bool = False) -> RunRecord:
    """Simulate a plan; `full` keeps the detail of every visit, execution, transfer and answer."""
    s, log, clock = begin_run(plan, full)
    route, miss, ahead = inputs(plan, s, full)
    hooks = None if miss is None else new_hooks(plan)
    with explained(plan, hooks):
        _loop(s, log, route, miss, ahead, hooks, durations(plan), clock, plan.group, plan.warmup_steps)
    return RunRecord.of(plan, s, log, clock)
