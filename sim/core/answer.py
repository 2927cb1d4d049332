"""2d to 2f of a visit: every (token, slot) whose expert is not there gets its answer, and its work and transfers.

Without a miss policy everything is fetched (`fetch_all`); with one `answer_each` goes token by token, then fills the
queues in the order first answered.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core import state as st
from sim.core.hooks import ask_miss
from sim.core.inputs import Route
from sim.core.jit import inlined, inner
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
    asked,
    plan_token,
)
from sim.core.state import (
    ABSENT,
    CLASS,
    HIT,
    HOST,
    LATE,
    MISS,
    N_WANTED,
    N_WORK,
    QUEUED,
    READY,
    RESIDENT,
    STATE,
    TOKENS,
    WAITED,
    WANTED,
    WORK,
)

Int = npt.NDArray[np.int64]
ANSWERED = 1 << 8  # in ASKED, beside one bit per answer
ANSWER_OF_CODE = (-1, ANSWER_FETCH, ANSWER_DROP, ANSWER_CPU)  # by -code of view.FETCH, DROP, CPU


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
def fetch_all(s: Any, log: Any, route: Route, visit: int, step: int, layer: int) -> None:
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
def answer_each(s: Any, log: Any, route: Any, miss: Any, hooks: Any, visit: int, step: int, layer: int) -> None:
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
