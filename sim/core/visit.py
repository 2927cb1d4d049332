"""One visit: what is decided at its routed instant, and what the GPU takes afterwards (design: section 6, 2a to 3).

`decide` does everything that happens at the routed instant: it classifies the wanted experts, withdraws prefetches that
turned out wrong, asks the miss policy, gives work to the GPU and the host, and queues transfers. What is absent from a
run (a miss policy other than fetch, a prefetcher, a log) is passed as None and is not compiled at all.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core import state as st
from sim.core.ahead import predict, withdraw_unwanted
from sim.core.answer import answer_each, fetch_all
from sim.core.eviction import look_back
from sim.core.hooks import ask_rerank
from sim.core.inputs import Route
from sim.core.jit import choice, inlined, inner
from sim.core.plan import BY_NEXT_USE, LOOKS_BACK
from sim.core.rerank import USER as USER_RERANKS
from sim.core.rerank import rerank
from sim.core.residency import executed, scope_of
from sim.core.state import (
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
    READY,
    RESIDENT,
    SEEN,
    STATE,
    TOKENS,
    WANTED,
    WORK,
)

Int = npt.NDArray[np.int64]
ONE, READY_ONES, ALL = range(3)  # plan.GROUPS


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
    """Every expert that the trace wants here is next wanted later."""
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
    if s.c[st.EVICTION_MARKS] & BY_NEXT_USE:
        _note_next_uses(s, route, step, layer)


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
    if miss is not None and s.c[st.EVICTION_MARKS] & LOOKS_BACK:
        look_back(s, route, miss.weights, step, layer)
    if log is not None:
        _log_visit(s, log, step, layer)
    if ahead is not None and s.c[st.QUEUE_LEN] > 0:
        withdraw_unwanted(s, log, visit, layer)
    if miss is not None and asks:
        answer_each(s, log, route, miss, hooks, visit, step, layer)
    else:
        fetch_all(s, log, route, visit, step, layer)
    if ahead is not None:
        predict(s, log, route, ahead, visit)


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
