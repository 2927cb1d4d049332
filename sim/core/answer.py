"""2d to 2f of a visit: every (token, slot) whose expert is not there gets its answer, and its work and transfers.

Without a miss policy everything is fetched (`fetch_all`); with one `answer_each` goes token by token, then fills the
queues in the order first answered. Where rows decide the rule (core.rules) `answer_by_rule` answers for each expert.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core.bypass import bypass
from sim.core.hooks import ask_miss
from sim.core.inputs import Route
from sim.core.jit import apart, inlined, inner
from sim.core.link import LAST_KEY, demand, join, withdraw
from sim.core.miss import ADMIT, CPU, REMOTE, SPLIT, SUBSTITUTE, USER, plan_token
from sim.core.plan import BYPASSES
from sim.core.remote import queue_remote
from sim.core.residency import PREFETCH
from sim.core.rules import keeps_out, stage_of
from sim.core.split import over_the_link
from sim.core.stages import demand_copy, demand_in_order
from sim.core.state import (
    ABSENT,
    HIT,
    LATE,
    MISS,
    QUEUED,
    RESIDENT,
    State,
)
from sim.core.substitution import (
    ANSWER_CPU,
    ANSWER_DROP,
    ANSWER_FETCH,
    ANSWER_LOW,
    ANSWER_REMOTE,
    ANSWER_STREAM,
    ANSWER_SUBSTITUTE,
    BACKGROUND,
    PREFILL,
    asked,
)

Int = npt.NDArray[np.int64]
ANSWERED = 1 << 8  # in ASKED, beside one bit per answer
ANSWER_OF_CODE = (-1, ANSWER_FETCH, ANSWER_DROP, ANSWER_CPU)  # by -code of view.FETCH, DROP, CPU


@inlined
def _work(s: State, g: int, tokens: int) -> None:
    """Expert g gets GPU work: held from now on; ready at once when it is resident, else when it lands."""
    if s.expert[g].work == 0:
        s.visit.n_work += 1
        s.ready[s.visit.n_ready] = g  # counts only when it is resident, without a branch
        s.visit.n_ready += s.expert[g].state == RESIDENT
    s.expert[g].work += tokens


@inlined
def _wait_for_late(s: State, g: int) -> None:
    if s.expert[g].waited == 0:
        s.expert[g].waited = 1
        s.visit.n_waited += 1


@inner
def _log_fetches(s: State, log: Any, route: Any, only: int, visit: int, step: int, layer: int) -> None:
    """Without a miss policy every entry of a missing expert is answered `fetch`; of one expert (`only`), or of all."""
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        t = route.step_row[i]
        for k in range(route.experts.shape[2]):
            e = route.experts[t, layer, k]
            g = layer * s.run.n_experts + e
            if e >= 0 and (only < 0 or g == only) and s.expert[g].kind == MISS:
                lg.answered(s, log, visit, t, k, e, ANSWER_FETCH, -1, 0)


@inlined
def fetch_all(s: State, log: Any, route: Route, visit: int, step: int, layer: int) -> None:
    """2d to 2f where every miss is fetched and every late expert waited for."""
    if log is not None:
        _log_fetches(s, log, route, -1, visit, step, layer)
    ready = hit = 0
    for i in range(s.visit.n_wanted):
        s.ready[ready] = s.wanted[i]  # counts only when it is hit, without a branch
        tokens = _fetch(s, log, s.wanted[i], visit)
        ready += tokens > 0
        hit += tokens
    s.visit.n_work, s.visit.n_ready = s.visit.n_wanted, ready
    s.count.slots_hit += hit


@inlined
def _fetch(s: State, log: Any, g: int, visit: int) -> int:
    """All the work of expert g in this visit, and what it waits for. Returns how many (token, slot) entries are hit."""
    tokens, kind = s.expert[g].tokens, s.expert[g].kind
    s.expert[g].work = tokens
    if kind == HIT:
        return tokens
    if kind == LATE:
        s.count.slots_late += tokens
        _wait_for_late(s, g)
    else:
        s.count.fetched += tokens
        demand(s, log, g, visit, None)
    return 0


@apart
def fetch(s: State, log: Any, route: Any, g: int, visit: int, step: int, layer: int) -> None:
    """The same for one expert whose turn has come."""
    if log is not None:
        _log_fetches(s, log, route, g, visit, step, layer)
    s.ready[s.visit.n_ready] = g
    tokens = _fetch(s, log, g, visit)
    s.visit.n_work += 1
    s.visit.n_ready += tokens > 0
    s.count.slots_hit += tokens


@inner
def _give_stand_in(s: State, g: int) -> None:
    """Resident expert g executes one more token, in another expert's place."""
    _work(s, g, 1)
    s.expert[g].stand_in += 1


@inner
def _give_host(s: State, g: int) -> None:
    """The host computes one more token of expert g."""
    if s.expert[g].host == 0:
        s.on_host[s.visit.n_host] = g
        s.visit.n_host += 1
    s.expert[g].host += 1


@inner
def _give_low(s: State, g: int) -> None:
    """The low-precision copy of expert g (global id `low`) executes one more token, once it is there."""
    low = s.run.n_full + g
    _work(s, low, 1)
    # resident or absent: a visit that asks for a copy does not end before the copy has landed and run
    if s.expert[low].state == ABSENT and s.expert[low].asked == 0:
        s.expert[low].asked = 1 << ANSWER_FETCH
        s.answered[s.visit.n_answered] = low
        s.visit.n_answered += 1


@inlined
def _runs_as(rules: Any, g: int) -> int:
    """The id that serves expert g in this visit: its own, or its copy's in a stage."""
    return g if rules is None else rules.expert[g].at


@inner
def _reply(
    s: State,
    log: Any,
    miss: Any,
    rules: Any,
    visit: int,
    t: int,
    layer: int,
    row: int,
    k: int,
    e: int,
    weight: float,
    lossless: bool,
) -> None:
    """2d for one (token, slot) whose expert is not there: the planned answer, counted, and its work."""
    base = layer * s.run.n_experts
    g, reply, other, gate = base + e, s.reply[k].answer, s.reply[k].other, s.reply[k].gate
    if lossless and reply != ANSWER_FETCH and reply != ANSWER_CPU:
        reply, other, gate = ANSWER_FETCH, -1, PREFILL
    at = _runs_as(rules, g)
    if s.expert[g].asked & ANSWERED == 0:
        s.answered[s.visit.n_answered] = g
        s.visit.n_answered += 1
    s.expert[g].asked |= ANSWERED | 1 << reply
    s.count.stopped[gate] += 1
    copied = reply == ANSWER_FETCH and rules is not None and keeps_out(s, rules, s.expert[g].layer)
    lg.answered(s, log, visit, t, k, e, ANSWER_STREAM if copied else reply, other, gate)
    if reply == ANSWER_FETCH:
        _work(s, at, 1)
        if s.expert[g].kind == LATE:
            s.count.slots_late += 1
            _wait_for_late(s, at)
        else:
            s.count.fetched += not copied
            if rules is not None:
                rules.count.streamed += copied
                rules.expert[g].answer = ANSWER_STREAM if copied else ANSWER_FETCH
    elif reply == ANSWER_CPU:
        s.count.cpu += 1
        _give_host(s, g)
        if rules is not None:
            rules.on_cpu[row, k] = 1
    elif reply == ANSWER_LOW:
        s.count.low += 1
        _give_low(s, g)
    elif reply == ANSWER_SUBSTITUTE:
        s.count.substituted += 1
        _give_stand_in(s, base + other)
        s.layer[layer].weight_substituted += weight
        _lose(s, t, layer, weight, miss.similarity[layer, e, other] if len(miss.similarity) > 0 else 0.0)
    else:
        s.count.dropped += 1
        s.layer[layer].weight_dropped += weight
        _lose(s, t, layer, weight, 0.0)


@inner
def _lose(s: State, t: int, layer: int, weight: float, alike: float) -> None:
    """Router weight of trace token t goes to another expert, alike in [0, 1], or to nobody."""
    s.loss[t] += weight
    s.layer[layer].weight_missed += weight * (1.0 - alike)


@inner
def _ask_user(s: State, miss: Any, hooks: Any, visit: int, t: int, layer: int, row: int, k: int) -> None:
    """A user's own miss policy answers for one slot when its turn comes; the earlier ones stand in State.reply."""
    answer = ask_miss(s, hooks, miss.logits, visit, t, layer, row, k)
    s.reply[k].other = answer if answer >= 0 else -1
    s.reply[k].answer = ANSWER_SUBSTITUTE if answer >= 0 else ANSWER_OF_CODE[-answer]


@inner
def _answer_token(
    s: State, log: Any, miss: Any, hooks: Any, rules: Any, visit: int, t: int, layer: int, row: int, lossless: bool
) -> None:
    """2d for one token: plan its answers where it needs any, then slot by slot."""
    ids, weights = s.routed[row], s.weight[row]
    base, missing = layer * s.run.n_experts, False
    for k in range(len(ids)):
        missing |= ids[k] >= 0 and asked(s, miss, base + ids[k])
    if missing:
        plan_token(s, miss, ids, weights, t, layer)
    for k in range(len(ids)):
        if ids[k] < 0:
            continue
        g = base + ids[k]
        s.layer[layer].weight_wanted += weights[k]
        if asked(s, miss, g):
            if hooks is not None and miss.policy.kind == USER:
                _ask_user(s, miss, hooks, visit, t, layer, row, k)
            _reply(s, log, miss, rules, visit, t, layer, row, k, ids[k], weights[k], lossless)
            continue
        _work(s, _runs_as(rules, g), 1)
        if s.expert[g].kind == LATE:
            s.count.slots_late += 1
            _wait_for_late(s, _runs_as(rules, g))
        else:
            s.count.slots_hit += 1


@inner
def answer_each(
    s: State, log: Any, route: Any, miss: Any, hooks: Any, rules: Any, visit: int, step: int, layer: int
) -> None:
    """2d to 2f with a miss policy: token by token, then the queues in the order first answered."""
    lossless, logged = route.step_prefill[step] and not miss.policy.lossy_prefill, s.rows.answers
    for i in range(s.visit.n_wanted):
        s.expert[s.wanted[i]].asked = 0
    first = route.step_offset[step]
    for i in range(first, route.step_offset[step + 1]):
        if layer == 0:
            s.loss[route.step_row[i]] = 0.0  # a rejected row runs again
        _answer_token(s, log, miss, hooks, rules, visit, route.step_row[i], layer, i - first, lossless)
    if rules is not None and s.run.eviction_marks & BYPASSES:
        _restage(s, log, rules, layer, logged)
    for i in range(s.visit.n_answered):
        g = s.answered[i]
        if g >= s.run.n_full:
            s.expert[g].asked = 0
            demand(s, log, g, visit, rules)
        elif s.expert[g].kind == LATE:
            continue
        elif s.expert[g].asked & (1 << ANSWER_FETCH) and _runs_as(rules, g) == g:
            demand(s, log, g, visit, rules)
        else:
            _withdraw_prefetch(s, log, g)
            if rules is not None and rules.expert[g].answer == ANSWER_STREAM and rules.visit.gathers == 0:
                demand_copy(s, log, rules, g, visit)
    if rules is not None and rules.visit.gathers == 1:
        demand_in_order(s, log, rules, visit, layer)
    if miss.policy.kind == SUBSTITUTE and miss.params[BACKGROUND] != 0.0:
        _fetch_in_background(s, log, visit)


@apart
def _restage(s: State, log: Any, rules: Any, layer: int, logged: int) -> None:
    """What is not kept runs from a stage, and was answered `stream`; logged: the first answer of this visit."""
    bypass(s, rules, layer)
    for i in range(s.visit.n_wanted):
        g, copy = s.wanted[i], rules.expert[s.wanted[i]].at
        if copy != g and s.expert[g].work > 0:
            s.count.fetched -= s.expert[g].work
            rules.count.streamed += s.expert[g].work
            s.expert[copy].work, s.expert[g].work = s.expert[g].work, 0
            if log is not None:
                _log_stream(s, log, g % s.run.n_experts, logged)


@inner
def _log_stream(s: State, log: Any, e: int, first: int) -> None:
    for i in range(first, s.rows.answers):
        if log.answers[i].wanted == e and log.answers[i].answer == ANSWER_FETCH:
            log.answers[i].answer = ANSWER_STREAM


@inlined
def _withdraw_prefetch(s: State, log: Any, g: int) -> None:
    """2f: whatever is answered but `fetch` makes a queued prefetch needless."""
    if s.expert[g].state == QUEUED and s.expert[g].origin == PREFETCH:
        withdraw(s, log, g)


@inner
def _fetch_in_background(s: State, log: Any, visit: int) -> None:
    """Experts that somebody stood in for follow behind every prefetch, for the visits to come."""
    for i in range(s.visit.n_answered):
        g = s.answered[i]
        if s.expert[g].asked & (1 << ANSWER_SUBSTITUTE) and s.expert[g].state == ABSENT:
            join(s, log, g, visit, 2, LAST_KEY, -1)


# --- by the visit's rule ---


@apart
def answer_by_rule(s: State, log: Any, route: Any, hooks: Any, rules: Any, visit: int, step: int, layer: int) -> None:
    """2d to 2f where every token that misses an expert gets the same answer."""
    over = over_the_link(s, rules) if rules.visit.rule == SPLIT else 0
    rules.visit.busy = 1 if over > 0 else 0
    for i in range(s.visit.n_wanted):
        if s.expert[s.wanted[i]].kind == MISS:
            rules.expert[s.wanted[i]].answer = _by_rule(s, rules, s.wanted[i])
    for i in range(over):
        _over_the_link(s, rules, rules.order[i])
    if hooks is not None and s.run.eviction_marks & BYPASSES:
        bypass(s, rules, layer)
    _log_answers(s, log, route, rules, visit, step, layer)
    for i in range(s.visit.n_wanted):
        _give(s, log, rules, s.wanted[i], visit, over == 0)
    for i in range(over):
        _queue(s, log, rules, rules.order[i], visit)
    if rules.visit.gathers == 1:
        demand_in_order(s, log, rules, visit, layer)


@inlined
def _by_rule(s: State, rules: Any, g: int) -> int:
    """What the rule answers for a missing expert; of a split, those that stay with the host."""
    rule = rules.visit.rule
    if rule == REMOTE:
        return ANSWER_REMOTE
    if rule in (CPU, ADMIT, SPLIT):
        return ANSWER_CPU
    return ANSWER_STREAM if rules.expert[g].at != g else ANSWER_FETCH


@inlined
def _over_the_link(s: State, rules: Any, g: int) -> None:
    """An expert of a split is fetched, or copied where it is not kept or cannot be."""
    copied = rules.split[rules.visit.bulk].keep == 0 or keeps_out(s, rules, s.expert[g].layer)
    rules.expert[g].answer = ANSWER_STREAM if copied else ANSWER_FETCH
    rules.expert[g].at = stage_of(s, g) if copied else g


@apart
def _log_answers(s: State, log: Any, route: Any, rules: Any, visit: int, step: int, layer: int) -> None:
    """Every entry of a missing expert, token by token and slot by slot; and which of them the host may defer."""
    first = route.step_offset[step]
    for i in range(first, route.step_offset[step + 1]):
        for k in range(s.routed.shape[1]):
            e = s.routed[i - first, k]
            if e < 0:
                continue
            s.layer[layer].weight_wanted += s.weight[i - first, k]
            g = layer * s.run.n_experts + e
            if s.expert[g].kind == MISS:
                answer = rules.expert[g].answer
                rules.on_cpu[i - first, k] = 1 if answer == ANSWER_CPU else 0
                s.count.stopped[0] += 1
                lg.answered(s, log, visit, route.step_row[i], k, e, answer, -1, 0)


@apart
def _give(s: State, log: Any, rules: Any, g: int, visit: int, queue: bool) -> None:
    """2e and 2f for one wanted expert: its work, and unless a split has its own order what follows from its answer."""
    tokens, kind, answer = s.expert[g].tokens, s.expert[g].kind, rules.expert[g].answer
    if kind != MISS or answer in (ANSWER_FETCH, ANSWER_STREAM):
        _work(s, rules.expert[g].at, tokens)
    if kind == HIT:
        s.count.slots_hit += tokens
    elif kind == LATE:
        s.count.slots_late += tokens
        _wait_for_late(s, rules.expert[g].at)
    elif answer == ANSWER_CPU:
        s.count.cpu += tokens
        s.on_host[s.visit.n_host] = g
        s.visit.n_host += 1
        s.expert[g].host = tokens
    else:
        s.count.fetched += tokens if answer == ANSWER_FETCH else 0
        rules.count.streamed += tokens if answer == ANSWER_STREAM else 0
        rules.count.remote += tokens if answer == ANSWER_REMOTE else 0
    if kind == MISS:
        if answer != ANSWER_FETCH:
            _withdraw_prefetch(s, log, g)
        if queue:
            _queue(s, log, rules, g, visit)


@inlined
def _queue(s: State, log: Any, rules: Any, g: int, visit: int) -> None:
    """2f: what crosses the link for a missing expert joins its queue."""
    answer = rules.expert[g].answer
    if answer == ANSWER_FETCH:
        demand(s, log, g, visit, rules)
    elif answer == ANSWER_STREAM and rules.visit.gathers == 0:
        demand_copy(s, log, rules, g, visit)
    elif answer == ANSWER_REMOTE:
        queue_remote(s, log, rules, g, visit)


@apart
def defer(s: State, rules: Any, rows: int, n: int) -> None:
    """KTransformers' deferral: of each token the n entries of least weight that the host computes (ties: the later
    slot) may wait; an expert does whose entries all may. They go behind the others in State.on_host."""
    for i in range(s.visit.n_host):
        rules.expert[s.on_host[i]].deferred = 0
    for row in range(rows):
        for _ in range(n):
            _defer_least(s, rules, row)
    _part_host(s, rules)


@apart
def _defer_least(s: State, rules: Any, row: int) -> None:
    """One more entry of a token that may wait."""
    least = -1
    for k in range(s.routed.shape[1]):
        if rules.on_cpu[row, k] == 1 and (least < 0 or s.weight[row, k] <= s.weight[row, least]):
            least = k
    if least >= 0:
        rules.on_cpu[row, least] = 2
        g = (s.run.routed - 1) % s.run.n_layers * s.run.n_experts + s.routed[row, least]
        rules.expert[g].deferred += 1


@apart
def _part_host(s: State, rules: Any) -> None:
    """The experts that wait go behind the others, both in their order."""
    n, waiting = 0, s.marked
    for i in range(s.visit.n_host):
        g = s.on_host[i]
        if rules.expert[g].deferred == s.expert[g].host:
            waiting[rules.visit.n_later] = g
            rules.visit.n_later += 1
            rules.count.deferred += s.expert[g].host
        else:
            s.on_host[n] = g
            n += 1
    for i in range(rules.visit.n_later):
        s.on_host[n + i] = waiting[i]
