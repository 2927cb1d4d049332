"""The compiled machine: virtual time in int64 ns, one straight loop, compiled with numba.

It asks the core what happens and knows only how long it takes. One rule orders an instant: nothing is committed at
`now` while anything else is due at `now`; so commits happen in the one place where the clock moves on (`_advance`)
and where the GPU has nothing to do but wait (`_stall`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core.hooks import explained
from sim.core.inputs import inputs
from sim.core.jit import apart, inlined, inner, whole
from sim.core.link import count_stall, land, next_commit, waiting, why_stalled
from sim.core.plan import Plan
from sim.core.remote import next_remote
from sim.core.stages import end_visit
from sim.core.state import NEVER, State
from sim.core.visit import decide, finish_group, finish_host, finish_remote, take_group, visit_lasts
from sim.machines.clock import (
    Clock,
    begin_run,
    busy,
    close,
    forget,
    last_place,
    log_commit,
    log_landing,
    reset,
    slow_the_link,
    slowed,
)
from sim.machines.durations import Durations, durations
from sim.machines.record import RunRecord

Int = npt.NDArray[np.int64]


@inlined
def _transfer_ns(s: State, hooks: Any, rules: Any, d: Durations, g: int, place: int, follows: int) -> int:
    """Of expert g, at that place of State.flight, on an idle link or following on; only a version with hooks can have
    low-precision copies, only one with rules chunks, or several experts in one transfer."""
    if rules is not None and rules.part[place].number >= 0:
        return d.chunk_ns[follows, rules.part[place].last]
    if rules is not None and g >= s.run.stage_base:
        return d.run_ns[follows, rules.visit.run]
    if hooks is not None and g >= s.run.n_full:
        return d.low_transfer_ns[follows]
    return d.transfer_ns[follows]


@inlined
def _commit_all(s: State, log: Any, hooks: Any, rules: Any, d: Durations, clock: Clock) -> None:
    """The commits of this instant, as far as the depth of the link and the slots allow."""
    now = clock.time.now_ns
    while waiting(s, rules):
        follows, begin = s.link.n_flight > 0, now
        if follows:
            begin = clock.lands[last_place(s)]
        g = next_commit(s, log, hooks, rules)
        if g < 0:
            return
        place = last_place(s)
        clock.starts[place] = begin if follows else now + d.each.commit_gap_ns
        ns = _transfer_ns(s, hooks, rules, d, g, place, 1 if follows else 0)
        clock.lands[place] = clock.starts[place] + ns
        if rules is not None:
            clock.full_ns[place] = ns
            beside = clock.host.until_ns - begin
            clock.lands[place] = begin + slowed(clock.lands[place] - begin, beside, d.each.share_n, d.each.share_d)
        if log is not None:
            log_commit(s, log, clock, rules, place)


@inlined
def _next_landing(s: State, clock: Clock) -> int:
    """When the oldest committed transfer lands; NEVER where nothing is under way."""
    return clock.lands[s.link.flight_head] if s.link.n_flight > 0 else NEVER


@inlined
def _land(s: State, log: Any, rules: Any, clock: Clock) -> None:
    """The oldest committed transfer lands now."""
    head = s.link.flight_head
    g = land(s, log, rules)
    busy(s, clock, rules, g, clock.time.now_ns - clock.starts[head])
    if log is not None:
        log_landing(s, log, clock, rules, head)


@inlined
def _advance(s: State, log: Any, hooks: Any, rules: Any, d: Durations, clock: Clock, ns: int) -> None:
    """The GPU is busy for ns; the link goes on beside it. Commits before the clock leaves an instant, lands and commits
    at every instant on the way, only lands at the last."""
    to, queued = clock.time.now_ns + ns, waiting(s, rules)
    if ns > 0 and not queued and _next_landing(s, clock) > to:
        clock.time.now_ns = to
        return
    while ns > 0:
        if queued:
            _commit_all(s, log, hooks, rules, d, clock)
        due = _next_landing(s, clock)
        now = clock.time.now_ns = min(due, to)
        while due == now:
            _land(s, log, rules, clock)
            due = _next_landing(s, clock)
        if now == to:
            return
        queued = waiting(s, rules)


@apart
def _advance_by_rules(s: State, log: Any, hooks: Any, rules: Any, d: Any, clock: Clock, ns: int) -> None:
    """The same where there are rules, or a draft: compiled once, and not wherever it is called."""
    _advance(s, log, hooks, rules, d, clock, ns)


@apart
def _commit_by_rules(s: State, log: Any, hooks: Any, rules: Any, d: Any, clock: Clock) -> None:
    _commit_all(s, log, hooks, rules, d, clock)


@inlined
def _stall(s: State, log: Any, hooks: Any, rules: Any, d: Durations, clock: Clock, layer: int) -> None:
    """The GPU has nothing to take and waits at `layer`, after the commits of this instant (which a visit with rules has
    made by now), for the next landing."""
    if rules is None and waiting(s, rules):
        _commit_all(s, log, hooks, rules, d, clock)
    due = now = _next_landing(s, clock)
    if due == NEVER:
        raise RuntimeError("deadlock: the GPU waits and nothing is under way")
    waited = due - clock.time.now_ns
    count_stall(s, log, layer, why_stalled(s, rules), waited)
    clock.time.stall_ns += waited
    clock.time.now_ns = due
    while due == now:
        _land(s, log, rules, clock)
        due = _next_landing(s, clock)


@inlined
def _group_ns(s: State, hooks: Any, d: Durations, n: int) -> int:
    """The next n ready experts, one after another behind one group set-up."""
    ns = d.each.group_ns
    for i in range(s.visit.n_run, s.visit.n_run + n):
        g = s.ready[i]
        if hooks is not None and s.run.n_full <= g < s.run.stage_base:
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
def _host_ns(s: State, d: Any, row: int, first: int, last: int) -> int:
    """How long the host computes some of what this visit gave it, one expert after another."""
    ns = 0
    for i in range(first, last):
        ns += d.cpu_expert_ns[row, s.expert[s.on_host[i]].host]
    return ns


@inner
def _wait_for_host(s: State, log: Any, hooks: Any, rules: Any, d: Any, clock: Clock, until: int) -> None:
    """The GPU waits for the host."""
    wait = max(0, until - clock.time.now_ns)
    clock.time.cpu_wait_ns += wait
    if log is not None:
        log.visits[s.rows.visits - 1].cpu_wait_ns += wait
    if rules is None:
        _advance(s, log, hooks, rules, d, clock, wait)
    else:
        _advance_by_rules(s, log, hooks, rules, d, clock, wait)


@inner
def _end_host(
    s: State, log: Any, hooks: Any, rules: Any, d: Any, clock: Clock, begin: int, row: int, until: int
) -> None:
    """The layer ends when the host is done too; it began at `begin`."""
    _wait_for_host(s, log, hooks, rules, d, clock, until)
    n = s.visit.n_host
    finish_host(s, log, rules)
    if log is not None:
        _time_executions(s, log, d.cpu_expert_ns[row], d.low_expert_ns, begin, n, -1)


@apart
def _host_work(s: State, rules: Any, d: Any, clock: Clock, row: int) -> tuple[int, int]:
    """When the host begins this visit's first expert, and when the layer's host work is done: deferred experts of the
    last visit, then this one's, of which the deferred may last beyond the layer. The link is slowed meanwhile."""
    routed, before = clock.time.now_ns, clock.host.deferred_ns
    clock.host.deferred_ns = 0
    if s.visit.n_host == 0:
        return routed, before
    begin = max(routed, before) + d.each.cpu_visit_ns
    at_once = s.visit.n_host - rules.visit.n_later
    done = begin + _host_ns(s, d, row, 0, at_once)
    last = done + _host_ns(s, d, row, at_once, s.visit.n_host)
    if rules.visit.n_later > 0:
        clock.host.deferred_ns = last
    rules.host_ns[0] += last - max(routed, before)
    if d.each.share_n < d.each.share_d:
        slow_the_link(s, clock, last, d.each.share_n, d.each.share_d)
    return begin, done if at_once > 0 else before


@apart
def _run_remote(s: State, log: Any, hooks: Any, rules: Any, d: Any, clock: Clock, there: int, group: int) -> None:
    """The GPU reads an expert over the idle link while it computes it."""
    now = clock.time.now_ns
    tokens = s.expert[rules.remote[rules.visit.remote_run]].tokens
    read = slowed(d.transfer_ns[0], clock.host.until_ns - now, d.each.share_n, d.each.share_d)
    ns = max(d.expert_ns[tokens], read)
    place = last_place(s)
    clock.starts[place], clock.lands[place] = now, now + ns
    if log is not None:
        log_commit(s, log, clock, rules, place)
    _advance_by_rules(s, log, hooks, rules, d, clock, ns)
    if ns == 0:
        _land(s, log, rules, clock)
    clock.time.experts_ns += ns
    rules.remote_ns[0] += ns
    finish_remote(s, log, rules, there)
    if log is not None:
        row = log.executions[s.rows.executions - 1]
        row.begin_ns, row.end_ns, row.group = now, now + ns, group


@inner
def _log_queued(s: State, log: Any, first: int, now: int) -> None:
    """When the transfers from row `first` on were queued."""
    for i in range(first, s.rows.transfers):
        log.transfers[i].queued_ns = now


@inlined
def _visit(
    s: State,
    log: Any,
    route: Any,
    miss: Any,
    ahead: Any,
    hooks: Any,
    rules: Any,
    d: Any,
    clock: Clock,
    mode: int,
    step: int,
    layer: int,
) -> None:
    """One visit from its routed instant to the end of its layer."""
    first_transfer = s.rows.transfers
    decide(s, log, route, miss, ahead, step, layer, hooks, rules)
    routed, row = clock.time.now_ns, 1 if s.link.n_flight > 0 else 0  # of cpu_expert_ns: the link is idle, or busy
    if log is not None:
        log.visits[s.rows.visits - 1].routed_ns = routed
        _log_queued(s, log, first_transfer, routed)
    host_begin, host_done = routed, routed
    if rules is not None:
        row = max(row, rules.visit.busy)
        host_begin, host_done = _host_work(s, rules, d, clock, row)
        if not d.each.beside and s.visit.n_host > rules.visit.n_later:
            _wait_for_host(s, log, hooks, rules, d, clock, host_done)
    elif miss is not None:
        host_done += _host_ns(s, d, row, 0, s.visit.n_host)
    group = gpu_ns = 0
    while visit_lasts(s, rules):
        n, begin = take_group(s, mode, rules), clock.time.now_ns
        if rules is not None:
            there = next_remote(s, log, rules, n)
            if there >= 0:
                _run_remote(s, log, hooks, rules, d, clock, there, group)
                group += 1
                continue
            if n == 0:  # what is committed now may leave it nothing to wait for
                _commit_by_rules(s, log, hooks, rules, d, clock)
                n = take_group(s, mode, rules)
        if n == 0:
            _stall(s, log, hooks, rules, d, clock, layer)
            continue
        ns = _group_ns(s, hooks, d, n)
        if rules is None:
            _advance(s, log, hooks, rules, d, clock, ns)
        else:
            _advance_by_rules(s, log, hooks, rules, d, clock, ns)
        gpu_ns += ns
        first_transfer = s.rows.transfers
        finish_group(s, log, None if hooks is None else route, n, rules)
        if log is not None:
            _log_queued(s, log, first_transfer, clock.time.now_ns)
            _time_executions(s, log, d.expert_ns, d.low_expert_ns, begin + d.each.group_ns, n, group)
        group += 1
    clock.time.experts_ns += gpu_ns
    if rules is not None or (miss is not None and s.visit.n_host > 0):
        _end_host(s, log, hooks, rules, d, clock, host_begin, row, host_done)
    if rules is not None:
        end_visit(s, rules)
    if log is not None:
        log.visits[s.rows.visits - 1].end_ns = clock.time.now_ns


@whole
def _loop(
    s: State,
    log: Any,
    route: Any,
    miss: Any,
    ahead: Any,
    hooks: Any,
    rules: Any,
    d: Any,
    clock: Clock,
    mode: int,
    warmup: int,
) -> None:
    """The whole run."""
    layers = route.experts.shape[1]
    for step in range(len(route.step_prefill)):
        if step == warmup and warmup > 0:
            forget(s, clock, rules)
        if len(route.resets) > 0 and route.resets[step]:
            reset(s, log, clock, hooks, rules, len(route.step_prefill))
        clock.begin[step] = clock.time.now_ns
        dense, head = d.dense_ns[d.cost_class[step]], d.head_ns[d.cost_class[step]]
        draft = d.draft_ns[step] if len(d.draft_ns) > 0 else 0
        for layer in range(layers + 1):
            then = d.each.decide_ns if layer < layers else head
            if layer == 0:
                then += draft
            if rules is None:
                _advance(s, log, hooks, rules, d, clock, dense[layer] + then)
            else:
                _advance_by_rules(s, log, hooks, rules, d, clock, dense[layer] + then)
            if layer < layers:
                _visit(s, log, route, miss, ahead, hooks, rules, d, clock, mode, step, layer)
        clock.end[step] = clock.time.now_ns
        clock.time.draft_ns += draft
        clock.time.dense_ns += d.dense_in_all_ns[d.cost_class[step]]
        clock.time.decide_ns += layers * d.each.decide_ns
        clock.time.head_ns += head
        if log is not None:
            clock.event[step] = lg.next_event(s)
    close(s, log, clock, rules)


def run(plan: Plan, full: bool = False) -> RunRecord:
    """Simulate a plan; `full` keeps the detail of every visit, execution, transfer and answer."""
    s, log, clock, rules = begin_run(plan, full)
    route, miss, ahead, hooks = inputs(plan, s)
    with explained(plan, hooks):
        _loop(s, log, route, miss, ahead, hooks, rules, durations(plan), clock, plan.group, plan.warmup_steps)
    return RunRecord.of(plan, s, log, clock, rules)
