"""One visit: what is decided at its routed instant, and what the GPU takes afterwards (design: section 6, 2a to 3).

`decide` does everything that happens at the routed instant: it classifies the wanted experts, withdraws prefetches that
turned out wrong, asks the miss policy, gives work to the GPU and the host, and queues transfers. What is absent from a
run (a miss policy other than fetch, a prefetcher, a log) is passed as None and is not compiled at all.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core import state as st
from sim.core.eviction import ACTIVATION, BELADY, LEAST_STALE, WINDOW_SCORE, look_back
from sim.core.hooks import ask_miss, ask_rerank
from sim.core.jit import choice, frozen, inlined, inner
from sim.core.link import LAST_KEY, demand, join, withdraw
from sim.core.miss import (
    ANSWER_CPU,
    ANSWER_DROP,
    ANSWER_FETCH,
    ANSWER_LOW,
    ANSWER_SUBSTITUTE,
    BACKGROUND,
    GATE,
    OTHER,
    PREFILL,
    REPLY,
    SUBSTITUTE,
    USER,
    Miss,
    asked,
    plan_token,
)
from sim.core.plan import Leaving, Plan
from sim.core.rerank import USER as USER_RERANKS
from sim.core.rerank import rerank
from sim.core.residency import executed, scope_of
from sim.core.state import (
    ABSENT,
    CLASS,
    COMMITTED,
    FRESH,
    HIT,
    HOST,
    LATE,
    MISS,
    N_RUN,
    N_WANTED,
    N_WORK,
    NEVER,
    QUEUED,
    READY,
    RESIDENT,
    SEEN,
    STATE,
    TOKENS,
    WAITED,
    WANTED,
    WORK,
)

Int = npt.NDArray[np.int64]
ONE, READY_ONES, ALL = range(3)  # plan.GROUPS
ANSWERED = 1 << 8  # in ASKED, beside one bit per answer
ANSWER_OF_CODE = (-1, ANSWER_FETCH, ANSWER_DROP, ANSWER_CPU)  # by -code of view.FETCH, DROP, CPU


class Route(NamedTuple):
    """What the router wants: see plan.Plan and plan.Leaving. next_use int32 [R, L, K]: the next visit that wants the
    same expert, -1 never (belady only, else empty)."""

    experts: npt.NDArray[np.int16]
    step_offset: Int
    step_row: npt.NDArray[np.int32]
    step_prefill: npt.NDArray[np.bool_]
    next_use: npt.NDArray[np.int32]
    leaving_offset: Int
    leaving_row: npt.NDArray[np.int32]


class Ahead(NamedTuple):
    """What the prefetcher predicts: see plan.Prefetch."""

    lists: npt.NDArray[np.int16]
    row: npt.NDArray[np.int32]
    rank_key: Int


@choice
def _next_uses(experts: Any, step_offset: Any, step_row: Any, last: Any, n_experts: int, out: Any) -> None:
    """Walk the visits backwards; `last` [G] ends as the first visit that wants each expert."""
    layers, top_k = experts.shape[1], experts.shape[2]
    for step in range(len(step_offset) - 2, -1, -1):
        for layer in range(layers - 1, -1, -1):
            for i in range(step_offset[step], step_offset[step + 1]):
                for k in range(top_k):
                    e = experts[step_row[i], layer, k]
                    if e >= 0 and last[layer * n_experts + e] != NEVER:
                        out[i, layer, k] = last[layer * n_experts + e]
            for i in range(step_offset[step], step_offset[step + 1]):
                for k in range(top_k):
                    e = experts[step_row[i], layer, k]
                    if e >= 0:
                        last[layer * n_experts + e] = step * layers + layer


def inputs(plan: Plan, s: st.State, full: bool) -> tuple[Route, Miss | None, Ahead | None]:
    """The plan as `decide` takes it. For belady, also looks up each expert's next use (and its first, in the state).

    A run that fetches every miss, predicts nothing and keeps no full record has None for the other two, and is compiled
    without any of it. Every other run takes the one version that has everything: a few versions, not one per feature.
    """
    next_use = np.zeros((0, 0, 0), np.int32)
    if plan.eviction.kind == BELADY:
        next_use = np.full((len(plan.step_row), *plan.experts.shape[1:]), -1, np.int32)
        full = s.c[st.N_FULL]
        _next_uses(plan.experts, plan.step_offset, plan.step_row, s.x[:full, st.NEXT], plan.n_experts, next_use)
        s.x[full:, st.NEXT] = s.x[: len(s.x) - full, st.NEXT]
    leaving = plan.leaving or Leaving(np.zeros(len(plan.step_prefill) + 1, np.int64), np.zeros(0, np.int32))
    wanted = (plan.experts, plan.step_offset, plan.step_row, plan.step_prefill)
    route = Route(*map(frozen, (*wanted, next_use, leaving.offset, leaving.row)))
    miss = Miss.of(plan)
    plain = plan.eviction.function is None and plan.eviction.kind not in (WINDOW_SCORE, ACTIVATION)
    if plain and not full and not miss.asks and plan.prefetch is None:
        return route, None, None
    return route, miss, _ahead(plan)


def _ahead(plan: Plan) -> Ahead:
    if plan.prefetch is None:
        none = np.zeros((0, 0), np.int64)
        return Ahead(frozen(np.zeros((1, 0, 0, 0), np.int16)), frozen(none.astype(np.int32)), frozen(none))
    p = plan.prefetch
    key = p.rank_key if p.rank_key.size else np.zeros((p.row.shape[0], p.lists.shape[3]), np.int64)
    return Ahead(frozen(p.lists), frozen(p.row), frozen(key))


@inlined
def _want(s: Any, g: int, visit: int, layer: int) -> None:
    """The first entry of this visit that wants expert g: classify it, once."""
    s.x[g, SEEN] = visit + 1
    s.x[g, TOKENS] = 1
    now = s.x[g, STATE]
    kind = HIT if now == RESIDENT else (LATE if now == COMMITTED else MISS)
    s.x[g, CLASS] = kind
    if kind == LATE:
        s.x[g, FRESH] = 2
    elif s.x[g, FRESH] == 1 and kind == HIT:
        s.c[st.PREFETCH_USED] += 1
        s.x[g, FRESH] = 0
    s.layer[layer, kind] += 1
    s.work[WANTED, s.c[N_WANTED]] = g
    s.c[N_WANTED] += 1


@inner
def _load(s: Any, route: Any, miss: Any, hooks: Any, step: int, layer: int) -> None:
    """2a: the visit's experts and weights, as the trace has them, then as the re-ranking policy wants them."""
    first, last = route.step_offset[step], route.step_offset[step + 1]
    for i in range(first, last):
        t = route.step_row[i]
        for k in range(route.experts.shape[2]):
            s.routed[i - first, k] = route.experts[t, layer, k]
            s.weight[i - first, k] = miss.weights[t, layer, k] if len(miss.weights) > 0 else 0.0
    if miss.rerank >= 0:
        _count_before(s, last - first, layer)
        if miss.rerank != USER_RERANKS:
            rerank(s, miss, route.step_row[first:last], layer)
        elif hooks is not None:
            visit = step * s.c[st.N_LAYERS] + layer
            for i in range(first, last):
                ask_rerank(s, hooks, miss.logits, visit, route.step_row[i], layer, i - first)


@inner
def _count_before(s: Any, rows: int, layer: int) -> None:
    """Distinct experts that the trace itself wants in this visit."""
    seen = s.work[st.SCRATCH]
    for e in range(s.c[st.N_EXPERTS]):
        seen[e] = 0
    for row in range(rows):
        for k in range(s.routed.shape[1]):
            e = s.routed[row, k]
            if e >= 0 and seen[e] == 0:
                seen[e] = 1
                s.c[st.WANTED_BEFORE] += 1


@inlined
def _expert(s: Any, route: Route, miss: Any, step: int, i: int, layer: int, k: int) -> int:
    """The expert of slot k of row i of the plan: the trace's, or what re-ranking made of it."""
    if miss is not None and miss.asks:
        return s.routed[i - route.step_offset[step], k]
    return route.experts[route.step_row[i], layer, k]


@inner
def _note_next_uses(s: Any, route: Any, step: int, layer: int) -> None:
    """Belady: every expert that the trace wants here is next wanted later."""
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        for k in range(route.experts.shape[2]):
            e = route.experts[route.step_row[i], layer, k]
            if e >= 0:
                after = route.next_use[i, layer, k]
                g = layer * s.c[st.N_EXPERTS] + e
                s.x[g, st.NEXT] = after if after >= 0 else NEVER
                if s.c[st.N_FULL] < len(s.x):
                    s.x[s.c[st.N_FULL] + g, st.NEXT] = s.x[g, st.NEXT]


@inlined
def _classify(s: Any, route: Route, miss: Any, visit: int, step: int, layer: int) -> None:
    """2c: the distinct wanted experts, in order of first appearance, each a hit, late or a miss."""
    s.c[st.ROUTED] = visit + 1
    s.c[st.DRAWS] = 0
    for i in range(N_WANTED, st.N_HOST + 1):
        s.c[i] = 0
    base = layer * s.c[st.N_EXPERTS]
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        for k in range(route.experts.shape[2]):
            e = _expert(s, route, miss, step, i, layer, k)
            if e < 0:
                continue
            g = base + e
            s.c[st.SLOTS_WANTED] += 1
            if s.x[g, SEEN] == visit + 1:
                s.x[g, TOKENS] += 1
                continue
            _want(s, g, visit, layer)
    if s.c[st.EVICTION] == BELADY:
        _note_next_uses(s, route, step, layer)


@inlined
def _work(s: Any, g: int, tokens: int) -> None:
    """Expert g gets GPU work: held from now on; ready at once when it is resident, else when it lands."""
    if s.x[g, WORK] == 0:
        s.c[N_WORK] += 1
        s.work[READY, s.c[st.N_READY]] = g  # counts only when it is resident, without a branch
        s.c[st.N_READY] += s.x[g, STATE] == RESIDENT
    s.x[g, WORK] += tokens


@inlined
def _wait_for_late(s: Any, g: int) -> None:
    if s.x[g, WAITED] == 0:
        s.x[g, WAITED] = 1
        s.c[st.N_WAITED] += 1


@inner
def _log_fetches(s: Any, log: Any, route: Any, visit: int, step: int, layer: int) -> None:
    """Without a miss policy every entry of a missing expert is answered `fetch`."""
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        t = route.step_row[i]
        for k in range(route.experts.shape[2]):
            e = route.experts[t, layer, k]
            if e >= 0 and s.x[layer * s.c[st.N_EXPERTS] + e, CLASS] == MISS:
                lg.answered(s, log, visit, t, k, e, ANSWER_FETCH, -1, 0)


@inlined
def _fetch_all(s: Any, log: Any, route: Route, visit: int, step: int, layer: int) -> None:
    """2d to 2f where every miss is fetched and every late expert waited for."""
    if log is not None:
        _log_fetches(s, log, route, visit, step, layer)
    for i in range(s.c[N_WANTED]):
        g = s.work[WANTED, i]
        tokens, kind = s.x[g, TOKENS], s.x[g, CLASS]
        _work(s, g, tokens)
        if kind == HIT:
            s.c[st.SLOTS_HIT] += tokens
        elif kind == LATE:
            s.c[st.SLOTS_LATE] += tokens
            _wait_for_late(s, g)
        else:
            s.c[st.FETCHED] += tokens
            demand(s, log, g, visit)


@inner
def _give_stand_in(s: Any, g: int) -> None:
    """Resident expert g executes one more token, in another expert's place."""
    _work(s, g, 1)
    s.x[g, st.STAND_IN] += 1


@inner
def _give_host(s: Any, g: int) -> None:
    """The host computes one more token of expert g."""
    if s.x[g, HOST] == 0:
        s.work[st.ON_HOST, s.c[st.N_HOST]] = g
        s.c[st.N_HOST] += 1
    s.x[g, HOST] += 1


@inner
def _give_low(s: Any, g: int) -> None:
    """The low-precision copy of expert g (global id `low`) executes one more token, once it is there."""
    low = s.c[st.N_FULL] + g
    _work(s, low, 1)
    # resident or absent: a visit that asks for a copy does not end before the copy has landed and run
    if s.x[low, STATE] == ABSENT and s.x[low, st.ASKED] == 0:
        s.x[low, st.ASKED] = 1 << ANSWER_FETCH
        s.work[st.FIRST_ANSWERED, s.c[st.N_ANSWERED]] = low
        s.c[st.N_ANSWERED] += 1


@inner
def _reply(
    s: Any, log: Any, miss: Any, visit: int, t: int, layer: int, k: int, e: int, weight: float, lossless: bool
) -> None:
    """2d for one (token, slot) whose expert is not there: the planned answer, counted, and its work."""
    base = layer * s.c[st.N_EXPERTS]
    g, reply, other, gate = base + e, s.reply[REPLY, k], s.reply[OTHER, k], s.reply[GATE, k]
    if lossless and reply != ANSWER_FETCH and reply != ANSWER_CPU:
        reply, other, gate = ANSWER_FETCH, -1, PREFILL
    if s.x[g, st.ASKED] & ANSWERED == 0:
        s.work[st.FIRST_ANSWERED, s.c[st.N_ANSWERED]] = g
        s.c[st.N_ANSWERED] += 1
    s.x[g, st.ASKED] |= ANSWERED | 1 << reply
    late = s.x[g, CLASS] == LATE
    s.c[st.SLOTS_LATE if late and reply == ANSWER_FETCH else st.FETCHED + reply] += 1
    s.c[st.STOPPED + gate] += 1
    lg.answered(s, log, visit, t, k, e, reply, other, gate)
    if reply == ANSWER_FETCH:
        _work(s, g, 1)
        if late:
            _wait_for_late(s, g)
    elif reply == ANSWER_CPU:
        _give_host(s, g)
    elif reply == ANSWER_LOW:
        _give_low(s, g)
    else:
        if reply == ANSWER_SUBSTITUTE:
            _give_stand_in(s, base + other)
        s.quality[layer, 1 if reply == ANSWER_SUBSTITUTE else 2] += weight
        s.loss[t] += weight
        alike = reply == ANSWER_SUBSTITUTE and len(miss.similarity) > 0
        s.quality[layer, 3] += weight * (1.0 - miss.similarity[layer, e, other]) if alike else weight


@inner
def _ask_user(s: Any, miss: Any, hooks: Any, visit: int, t: int, layer: int, row: int, k: int) -> None:
    """A user's own miss policy answers for one slot when its turn comes; the earlier ones stand in State.reply."""
    answer = ask_miss(s, hooks, miss.logits, visit, t, layer, row, k, s.reply[OTHER])
    s.reply[OTHER, k] = answer if answer >= 0 else -1
    s.reply[REPLY, k] = ANSWER_SUBSTITUTE if answer >= 0 else ANSWER_OF_CODE[-answer]


@inner
def _answer_token(
    s: Any, log: Any, miss: Any, hooks: Any, visit: int, t: int, layer: int, row: int, lossless: bool
) -> None:
    """2d for one token: plan its answers where it needs any, then slot by slot."""
    ids, weights = s.routed[row], s.weight[row]
    base, missing = layer * s.c[st.N_EXPERTS], False
    for k in range(len(ids)):
        missing |= ids[k] >= 0 and asked(s, miss, base + ids[k])
    if missing:
        plan_token(s, miss, ids, weights, t, layer)
    for k in range(len(ids)):
        if ids[k] < 0:
            continue
        g = base + ids[k]
        s.quality[layer, 0] += weights[k]
        if asked(s, miss, g):
            if hooks is not None and miss.kind == USER:
                _ask_user(s, miss, hooks, visit, t, layer, row, k)
            _reply(s, log, miss, visit, t, layer, k, ids[k], weights[k], lossless)
            continue
        _work(s, g, 1)
        s.c[st.SLOTS_HIT if s.x[g, CLASS] == HIT else st.SLOTS_LATE] += 1
        if s.x[g, CLASS] == LATE:
            _wait_for_late(s, g)


@inner
def _answer_each(s: Any, log: Any, route: Any, miss: Any, hooks: Any, visit: int, step: int, layer: int) -> None:
    """2d to 2f with a miss policy: token by token, then the queues in the order first answered."""
    lossless = route.step_prefill[step] and not miss.lossy_prefill
    s.c[st.MISS_DRAWS], s.c[st.HOST_NS], s.c[st.LINK_NS] = 0, 0, 0
    for i in range(s.c[N_WANTED]):
        s.x[s.work[WANTED, i], st.ASKED] = 0
    first = route.step_offset[step]
    for i in range(first, route.step_offset[step + 1]):
        _answer_token(s, log, miss, hooks, visit, route.step_row[i], layer, i - first, lossless)
    for i in range(s.c[st.N_ANSWERED]):
        g = s.work[st.FIRST_ANSWERED, i]
        if g >= s.c[st.N_FULL]:
            s.x[g, st.ASKED] = 0
            demand(s, log, g, visit)
        elif s.x[g, CLASS] == LATE:
            continue
        elif s.x[g, st.ASKED] & (1 << ANSWER_FETCH):
            demand(s, log, g, visit)
        elif s.x[g, STATE] == QUEUED and s.x[g, st.ORIGIN] == 1:
            withdraw(s, log, g)
    if miss.kind == SUBSTITUTE and miss.params[BACKGROUND] != 0.0:
        _fetch_in_background(s, log, visit)


@inner
def _fetch_in_background(s: Any, log: Any, visit: int) -> None:
    """Experts that somebody stood in for follow behind every prefetch, for the visits to come."""
    for i in range(s.c[st.N_ANSWERED]):
        g = s.work[st.FIRST_ANSWERED, i]
        if s.x[g, st.ASKED] & (1 << ANSWER_SUBSTITUTE) and s.x[g, STATE] == ABSENT:
            join(s, log, g, visit, 2, LAST_KEY, -1)


@inner
def _withdraw_unwanted(s: Any, log: Any, visit: int, layer: int) -> None:
    """2b: prefetches queued for this layer whose expert this visit does not want."""
    n_experts, unwanted, n = s.c[st.N_EXPERTS], s.work[st.SCRATCH], 0
    for i in range(s.c[st.QUEUE_LEN]):
        g = s.queue[i, st.Q_EXPERT]
        if g // n_experts == layer and s.x[g, SEEN] != visit + 1 and s.x[g, st.ORIGIN] == 1:
            unwanted[n] = g
            n += 1
    for i in range(n):
        withdraw(s, log, unwanted[i])


@inner
def _merge(s: Any, route: Any, ahead: Any, d: int, step: int, layer: int, which: int) -> int:
    """Several tokens' lists for one target: rank by rank, then token by token, duplicates once. Returns the length."""
    lists = ahead.lists[min(d, ahead.lists.shape[0] - 1)]
    base, n = layer * s.c[st.N_EXPERTS], 0
    listed, ranks = s.work[st.SCRATCH], s.work[st.RANKS]
    listed[: s.c[st.N_EXPERTS]] = 0
    for r in range(lists.shape[2]):
        for i in range(route.step_offset[step], route.step_offset[step + 1]):
            row = ahead.row[d, route.step_row[i]]
            e = lists[row, layer, r] if row >= 0 else -1
            if e >= 0 and listed[e] == 0:
                listed[e] = 1
                ranks[n] = r
                n += 1
                s.merged[which, n] = base + e
    s.merged[which, 0] = n
    return n


@inner
def _predict(s: Any, log: Any, route: Any, ahead: Any, visit: int) -> None:
    """2g: the ranked lists for coming layers join the prefetch queue, nearest layer first, within the budget."""
    layers, distances = s.c[st.N_LAYERS], ahead.row.shape[0]
    left = s.c[st.BUDGET] if s.c[st.BUDGET] >= 0 else NEVER
    for d in range(distances):
        target = visit + d + 1
        if target >= layers * len(route.step_prefill):
            return
        which = (visit % (distances + 1)) * distances + d
        n = _merge(s, route, ahead, d, target // layers, target % layers, which)
        for i in range(n):
            g = s.merged[which, i + 1]
            if left > 0 and s.x[g, STATE] == ABSENT:
                order = s.c[st.ORDER]
                key = target if order == 1 else (ahead.rank_key[d, s.work[st.RANKS, i]] if order == 2 else 0)
                join(s, log, g, visit, 1, key, which)
                left -= 1


@choice
def decide(s: Any, log: Any, route: Route, miss: Any, ahead: Any, step: int, layer: int, hooks: Any = None) -> None:
    """Everything decided at the routed instant of one visit. Raises IllegalTransition if a law would be broken."""
    visit = step * s.c[st.N_LAYERS] + layer
    s.c[st.DEMAND_HEAD] = 0
    s.c[st.DEMAND_TAIL] = 0
    asks = miss is not None and miss.asks
    if miss is not None and asks:
        _load(s, route, miss, hooks, step, layer)
    _classify(s, route, miss, visit, step, layer)
    if miss is not None and s.c[st.EVICTION] > LEAST_STALE:
        look_back(s, route, miss.weights, step, layer)
    if log is not None:
        _log_visit(s, log, step, layer)
    if ahead is not None and s.c[st.QUEUE_LEN] > 0:
        _withdraw_unwanted(s, log, visit, layer)
    if miss is not None and asks:
        _answer_each(s, log, route, miss, hooks, visit, step, layer)
    else:
        _fetch_all(s, log, route, visit, step, layer)
    if ahead is not None:
        _predict(s, log, route, ahead, visit)


@inner
def _log_visit(s: Any, log: Any, step: int, layer: int) -> None:
    row = log.visits[s.c[st.R_VISITS]]
    s.c[st.R_VISITS] += 1
    for i in range(lg.V_COLUMNS):
        row[i] = 0
    row[lg.V_EVENT], row[lg.V_STEP], row[lg.V_LAYER] = lg.next_event(s), step, layer
    row[lg.V_WANTED] = s.c[N_WANTED]
    for i in range(s.c[N_WANTED]):
        row[lg.V_HITS + s.x[s.work[WANTED, i], CLASS]] += 1


@inner
def _stuck(s: Any) -> bool:
    """Nothing more can land while the rest is held: the first demand finds no slot and nothing under way brings one,
    nor, among copies of another precision, more work."""
    if s.c[st.DEMAND_HEAD] >= s.c[st.DEMAND_TAIL]:
        return False
    scope = scope_of(s, s.work[st.DEMAND, s.c[st.DEMAND_HEAD]])
    if s.scope[scope, st.USED] < s.scope[scope, st.CAPACITY]:
        return False
    twin = scope
    if s.c[st.N_FULL] < len(s.x):
        twin = (scope + len(s.scope) // 2) % len(s.scope)
    if s.scope[scope, st.ARRIVING] > 0 or s.scope[twin, st.ARRIVING] > 0:
        return False
    base = s.scope[scope, st.BASE]
    for i in range(base, base + s.scope[scope, st.USED]):
        if s.x[s.slot[i], WORK] == 0:
            return False
    return True


@choice
def take_group(s: Any, mode: int) -> int:
    """How many of the ready experts the free GPU takes now (from place N_RUN of the ready list); 0: it stalls."""
    ready = s.c[st.N_READY] - s.c[N_RUN]
    if mode == ONE:
        return min(ready, 1)
    if mode == ALL and s.c[st.N_READY] < s.c[N_WORK] and not _stuck(s):
        return 0
    return ready


@choice
def finish_group(s: Any, log: Any, n: int) -> None:
    """The group of the next n ready experts has run: touched and released in its order."""
    for i in range(s.c[N_RUN], s.c[N_RUN] + n):
        g = s.work[READY, i]
        if log is not None:
            _log_execution(s, log, g, s.x[g, WORK], s.x[g, st.STAND_IN], 0)
        executed(s, g)
    s.c[N_RUN] += n


@choice
def finish_host(s: Any, log: Any) -> None:
    """The visit's experts on the CPU have run."""
    for i in range(s.c[st.N_HOST]):
        g = s.work[st.ON_HOST, i]
        if log is not None:
            _log_execution(s, log, g, s.x[g, HOST], 0, 1)
        s.x[g, HOST] = 0


@inner
def _log_execution(s: Any, log: Any, g: int, tokens: int, stand_in: int, cpu: int) -> None:
    row = log.executions[s.c[st.R_EXECUTIONS]]
    s.c[st.R_EXECUTIONS] += 1
    row[lg.X_EVENT], row[lg.X_VISIT] = lg.next_event(s), s.c[st.ROUTED] - 1
    row[lg.X_EXPERT], row[lg.X_TOKENS], row[lg.X_STAND_IN], row[lg.X_CPU] = g, tokens, stand_in, cpu
    row[lg.X_LOW] = 1 if g >= s.c[st.N_FULL] else 0
