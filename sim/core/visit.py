"""One visit: what is decided at its routed instant, and what the GPU takes afterwards (design: section 6, 2a to 3).

`decide` does everything that happens at the routed instant: it classifies the wanted experts, withdraws prefetches that
turned out wrong, asks the miss policy, gives work to the GPU and the host, and queues transfers. What is absent from a
run (a miss policy other than fetch, a prefetcher, a log) is passed as None and is not compiled at all.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core.admission import admit, count_misses, count_uses
from sim.core.ahead import predict, withdraw_unwanted
from sim.core.answer import answer_by_rule, answer_each, defer, fetch, fetch_all
from sim.core.candidates import used_slots
from sim.core.hooks import ask_rerank
from sim.core.inputs import Route
from sim.core.jit import apart, choice, inlined, inner
from sim.core.plan import BY_NEXT_USE, GROUPS, LISTED, LOOKS_BACK, ONE_BY_ONE
from sim.core.remote import remotes_left
from sim.core.rerank import USER as USER_RERANKS
from sim.core.rerank import rerank
from sim.core.residency import executed, release, scope_of, touch_as_listed
from sim.core.rules import NOBODY, begin_visit, behind, class_of
from sim.core.stages import executed_copy, owe, stream_ahead
from sim.core.state import (
    COMMITTED,
    HIT,
    LATE,
    MISS,
    NEVER,
    RESIDENT,
    State,
)
from sim.core.swap import swap
from sim.core.worth import WINDOW_SWAP, look_back, visits_of_layer

Int = npt.NDArray[np.int64]
ONE, ALL = (GROUPS.index(mode) for mode in ("one", "all"))


@inlined
def _class(s: State, rules: Any, g: int) -> int:
    """Hit, late or miss."""
    now = s.expert[g].state
    kind = HIT if now == RESIDENT else (LATE if now == COMMITTED else MISS)
    if rules is not None:
        kind = class_of(s, rules, g)
    s.expert[g].kind = kind
    if kind == LATE:
        s.expert[g].fresh = 2
    elif s.expert[g].fresh == 1 and kind == HIT and now == RESIDENT:
        s.count.prefetch_used += 1
        s.expert[g].fresh = 0
    return kind


@inlined
def _count_kind(row: Any, kind: int) -> None:
    """One more distinct expert, of a layer or of a visit."""
    row.hits += kind == HIT
    row.late += kind == LATE
    row.misses += kind == MISS


@inner
def _load(s: State, route: Any, miss: Any, hooks: Any, step: int, layer: int) -> None:
    """2a: the visit's experts and weights, as the trace has them, then as the re-ranking policy wants them."""
    first, last = route.step_offset[step], route.step_offset[step + 1]
    for i in range(first, last):
        t = route.step_row[i]
        for k in range(route.experts.shape[2]):
            s.routed[i - first, k] = route.experts[t, layer, k]
            s.weight[i - first, k] = route.weights[t, layer, k] if len(route.weights) > 0 else 0.0
    if miss is not None and miss.policy.rerank >= 0:
        _count_before(s, last - first, layer)
        if miss.policy.rerank != USER_RERANKS:
            rerank(s, miss, route.step_row[first:last], layer)
        elif hooks is not None:
            visit = step * s.run.n_layers + layer
            for i in range(first, last):
                ask_rerank(s, hooks, miss.logits, visit, route.step_row[i], layer, i - first)


@inner
def _count_before(s: State, rows: int, layer: int) -> None:
    """Distinct experts that the trace itself wants in this visit."""
    seen = s.marked
    seen[: s.run.n_experts] = 0
    for row in range(rows):
        for k in range(s.routed.shape[1]):
            e = s.routed[row, k]
            if e >= 0 and seen[e] == 0:
                seen[e] = 1
                s.count.wanted_before += 1


@inner
def _note_next_uses(s: State, route: Any, step: int, layer: int) -> None:
    """Every expert that the trace wants here is next wanted later."""
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        for k in range(route.experts.shape[2]):
            e = route.experts[route.step_row[i], layer, k]
            if e >= 0:
                after = route.next_use[i, layer, k]
                g = layer * s.run.n_experts + e
                s.expert[g].next_use = after if after >= 0 else NEVER
                if s.run.n_full < s.run.stage_base:
                    s.expert[s.run.n_full + g].next_use = s.expert[g].next_use


@inlined
def _classify(s: State, route: Route, miss: Any, hooks: Any, rules: Any, visit: int, step: int, layer: int) -> None:
    """2c: the distinct wanted experts, in order of first appearance, each a hit, late or a miss; where experts are
    served one by one, not before its turn has come."""
    s.run.routed, s.run.step, s.run.layer = visit + 1, step, layer
    new = s.visit
    new.n_wanted = new.n_ready = new.n_answered = new.n_host = new.n_work = new.n_run = new.n_waited = 0
    new.draws = new.miss_draws = new.host_ns = new.link_ns = 0
    base, at_once = layer * s.run.n_experts, hooks is None or s.run.eviction_marks & ONE_BY_ONE == 0
    n = slots = hits = late = 0
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        # the trace's, or what re-ranking made of them
        experts = route.experts[route.step_row[i], layer] if miss is None else s.routed[i - route.step_offset[step]]
        for k in range(route.experts.shape[2]):
            e = experts[k]
            if e < 0:
                continue
            g = base + e
            slots += 1
            if s.expert[g].seen == visit + 1:
                s.expert[g].tokens += 1
                continue
            s.expert[g].seen = visit + 1
            s.expert[g].tokens = 1
            s.wanted[n] = g
            n += 1
            if at_once:
                kind = _class(s, rules, g)
                hits += kind == HIT
                late += kind == LATE
    new.n_wanted = n
    s.count.slots_wanted += slots
    if at_once:
        row = s.layer[layer]
        row.hits += hits
        row.late += late
        row.misses += n - hits - late
    if s.run.eviction_marks & BY_NEXT_USE:
        _note_next_uses(s, route, step, layer)


@choice
def decide(
    s: State, log: Any, route: Route, miss: Any, ahead: Any, step: int, layer: int, hooks: Any, rules: Any
) -> None:
    """Everything decided at the routed instant of one visit. Raises IllegalTransition if a law would be broken."""
    visit = step * s.run.n_layers + layer
    if rules is None:
        s.link.demand_head = 0
        s.link.demand_tail = 0
    else:
        begin_visit(s, rules, visit, step, layer, route.step_offset[step + 1] - route.step_offset[step])
    if miss is not None or rules is not None:
        _load(s, route, miss, hooks, step, layer)
    _classify(s, route, miss, hooks, rules, visit, step, layer)
    if rules is not None:
        count_misses(s, rules)
    if hooks is not None and s.run.eviction_marks & LOOKS_BACK:
        look_back(s, route, step, layer)
    if log is not None:
        _log_visit(s, log, step, layer)
    if ahead is not None and s.link.n_queued > 0:
        withdraw_unwanted(s, log, visit, layer)
    if rules is not None and (miss is None or rules.visit.by_token == 0):
        answer_by_rule(s, log, route, hooks, rules, visit, step, layer)
    elif miss is not None:
        answer_each(s, log, route, miss, hooks, rules, visit, step, layer)
    elif hooks is not None and s.run.eviction_marks & ONE_BY_ONE:
        s.visit.n_turns = 0
        _next_turn(s, log, None if log is None else route)
    else:
        fetch_all(s, log, route, visit, step, layer)
    if rules is not None:
        _behind_the_answers(s, log, route, hooks, rules, visit, step, layer)
    if ahead is not None:
        predict(s, log, route, ahead, rules, step, layer)


@apart
def _next_turn(s: State, log: Any, route: Any) -> None:
    """Where a visit's experts are served one by one, the next one's turn has come, if there is one: it is classified,
    and fetched or waited for."""
    if s.visit.n_turns == s.visit.n_wanted:
        return
    visit = s.run.routed - 1
    step, layer = visit // s.run.n_layers, visit % s.run.n_layers
    g = s.wanted[s.visit.n_turns]
    s.visit.n_turns += 1
    kind = _class(s, None, g)
    _count_kind(s.layer[layer], kind)
    if log is not None:
        _count_kind(log.visits[s.rows.visits - 1], kind)
    fetch(s, log, route, g, visit, step, layer)


@apart
def _behind_the_answers(
    s: State, log: Any, route: Any, hooks: Any, rules: Any, visit: int, step: int, layer: int
) -> None:
    """What follows from the answers: deferred host work, whom a serial visit waits for, admissions, layers ahead."""
    rows, layers = route.step_offset[step + 1] - route.step_offset[step], s.run.n_layers
    if hooks is not None and s.run.eviction == WINDOW_SWAP:
        swap(s, log, visit, layer)
    if rules.run.defer > 0 and not route.step_prefill[step] and layer < layers - 1:
        defer(s, rules, rows, rules.run.defer)
    if rules.run.serial == 1:
        owe(s, rules, visit, layer)
    count_uses(s, rules)
    admit(s, log, rules, visit, layer, rows)
    if rules.run.ahead > 0:
        stream_ahead(s, log, rules, visit, visit + rules.run.ahead, len(route.step_prefill))


@inner
def _log_visit(s: State, log: Any, step: int, layer: int) -> None:
    row = log.visits[s.rows.visits]
    s.rows.visits += 1
    row.event, row.step, row.layer = lg.next_event(s), step, layer
    row.wanted = s.visit.n_wanted
    row.hits = row.late = row.misses = 0
    row.stall_demand_ns = row.stall_late_ns = row.stall_held_ns = row.cpu_wait_ns = 0
    if s.run.eviction_marks & ONE_BY_ONE == 0:
        for i in range(s.visit.n_wanted):
            _count_kind(row, s.expert[s.wanted[i]].kind)


@apart
def _work_under_way(s: State, rules: Any) -> bool:
    """Whether what is on the link brings an expert that the visit has work for."""
    for i in range(s.link.n_flight):
        place = s.link.flight_head + i
        g = s.flight[place if place < len(s.flight) else place - len(s.flight)]
        while g != NOBODY:
            if s.expert[g].work > 0:
                return True
            g = behind(s, rules, g)
    return False  # nor has it a rest: that would have gone before the demand that finds no stage


@inner
def _stuck(s: State, rules: Any) -> bool:
    """Nothing more can land while the rest is held: the first demand finds no slot and nothing under way brings one,
    nor, among copies of another precision, more work."""
    if s.link.demand_head >= s.link.demand_tail:
        return False
    first = s.demand[s.link.demand_head]
    if rules is not None and first >= s.run.stage_base:
        return rules.run.stages_free == 0 and not _work_under_way(s, rules)
    scope = scope_of(s, first)
    if s.scope[scope].used < s.scope[scope].capacity:
        return False
    twin = scope
    if s.run.n_full < s.run.stage_base:
        twin = (scope + len(s.scope) // 2) % len(s.scope)
    if s.scope[scope].arriving > 0 or s.scope[twin].arriving > 0:
        return False
    for i in used_slots(s, scope):
        if s.expert[s.slot[i]].work == 0:
            return False
    return True


@choice
def take_group(s: State, mode: int, rules: Any) -> int:
    """How many of the ready experts the free GPU takes now (from place N_RUN of the ready list); 0: it stalls."""
    ready = s.visit.n_ready - s.visit.n_run
    if rules is not None and rules.run.serial == 1 and rules.visit.copies_left > 0:
        return 0
    if mode == ONE:
        return min(ready, 1)
    if mode == ALL and s.visit.n_ready < s.visit.n_work and not _stuck(s, rules):
        return 0
    return ready


@choice
def visit_lasts(s: State, rules: Any) -> bool:
    """Whether the visit waits for anything but the host: work on the GPU, or copies that must land."""
    if s.visit.n_run < s.visit.n_work or rules is None:
        return s.visit.n_run < s.visit.n_work
    return remotes_left(rules) or (rules.run.serial == 1 and rules.visit.copies_left > 0)


@choice
def finish_group(s: State, log: Any, route: Any, n: int, rules: Any) -> None:
    """The group of the next n ready experts has run: touched and released in its order. route: None in a version
    without the evictions that have more to do then."""
    first, marks = s.visit.n_run, s.run.eviction_marks
    for i in range(first, first + n):
        g = s.ready[i]
        if log is not None:
            _log_execution(s, log, g, s.expert[g].work, s.expert[g].stand_in, 0)
        if rules is None:
            executed(s, g, marks)
        else:
            _executed(s, rules, g, marks)
    s.visit.n_run = first + n
    if route is not None and marks & (LISTED | ONE_BY_ONE) and s.visit.n_run == s.visit.n_work:
        _all_have_run(s, log, None if log is None else route, rules)


@apart
def _all_have_run(s: State, log: Any, route: Any, rules: Any) -> None:
    if rules is None and s.run.eviction_marks & ONE_BY_ONE:
        _next_turn(s, log, route)
    elif rules is None or rules.visit.bulk == 0 or rules.run.bulk_touch == 1:
        touch_as_listed(s)


@inlined
def _executed(s: State, rules: Any, g: int, marks: int) -> None:
    if g >= s.run.stage_base:
        executed_copy(s, rules, g)
    elif rules.visit.bulk == 1 and rules.run.bulk_touch == 0:
        release(s, g)
    else:
        executed(s, g, marks)
        if g < s.run.n_full:
            rules.expert[g].ran = visits_of_layer(s, g)


@choice
def finish_remote(s: State, log: Any, rules: Any, there: int) -> None:
    """What was read where it lies has run."""
    g = rules.remote[rules.visit.remote_run]
    if log is not None:
        _log_execution(s, log, there, s.expert[g].tokens, 0, 0)
    rules.visit.remote_run += 1


@choice
def finish_host(s: State, log: Any, rules: Any) -> None:
    """The visit's experts on the CPU have run, or (deferred ones) will."""
    at_once = s.visit.n_host if rules is None else s.visit.n_host - rules.visit.n_later
    if rules is not None:
        rules.count.host_experts += s.visit.n_host
    for i in range(s.visit.n_host):
        g = s.on_host[i]
        if log is not None:
            _log_execution(s, log, g, s.expert[g].host, 0, 1 if i < at_once else 2)
        s.expert[g].host = 0


@inner
def _log_execution(s: State, log: Any, g: int, tokens: int, stand_in: int, cpu: int) -> None:
    row = log.executions[s.rows.executions]
    s.rows.executions += 1
    row.event, row.visit = lg.next_event(s), s.run.routed - 1
    row.expert, row.tokens, row.stand_in_tokens, row.cpu = g, tokens, stand_in, cpu
    row.low = 1 if s.run.n_full <= g < s.run.stage_base else 0
