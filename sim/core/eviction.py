"""Which resident makes room: the victim among the evictable residents of a scope.

lru: the oldest touch or landing. fifo: the earliest landing. lfu: the fewest executions over the run. belady: the
expert whose next wanted visit lies furthest ahead (Belady 1966; it reads the future), and min: the same, and a newcomer
that is wanted later than everybody is not kept. random: by hash64. What a score decides stands in core.worth, what
lists decide in core.queues. Ties: the older touch or landing, or (--set ties=id) the larger id.
"""

import math
from typing import Any

import numpy as np

from sim.core.candidates import at_rest, evictable, ids_of, used_slots
from sim.core.hashing import hash64
from sim.core.hooks import CANDIDATES, ask_victim
from sim.core.jit import apart, inlined, inner
from sim.core.plan import BY_ID, BY_SCORE, KEEPS_OUT, TOLD_OF_USES
from sim.core.rings import end_of
from sim.core.state import NEVER, POWERS, State
from sim.core.worth import (
    ACTIVATION,
    BELADY,
    DECAYED,
    FIFO,
    LAYER_DISTANCE,
    LEAST_STALE,
    LFRU,
    LFU,
    LRU,
    MRS,
    RANDOM,
    USER,
    WINDOW_SCORE,
    WINDOW_SWAP,
    clock_of,
    decayed_score,
    layers_away,
    original,
    visits_of_layer,
    worth,
    worth_at_once,
)

NOBODY = -1
DEMAND = 0  # plan.CAUSES
DEMANDS = -1  # in the place of a list to spare: a demand, which spares nobody (candidates.ADMITS: an admission)


@inlined
def _oldest(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """The first evictable expert in the order of touches (lru) or landings (fifo), or -1."""
    end = len(s.expert) + scope
    g = s.newer[end]
    while g != end and not evictable(s, rules, g, spare_from):
        g = s.newer[g]
    return g if g != end else -1


@inlined
def _key(s: State, g: int, lfu: bool, since: bool) -> int:
    """What lfu (perhaps since a landing) and belady keep an expert for."""
    if not lfu:
        return -s.expert[g].next_use
    return s.kept[g].count if since else s.expert[g].uses


@inlined
def _tied(s: State, g: int, by_id: bool) -> int:
    """Of equals the least goes."""
    return -np.int64(g) if by_id else s.expert[g].stamp  # type: ignore[return-value]


@inlined
def _least(s: State, rules: Any, scope: int, spare_from: int, since: bool, by_id: bool) -> int:
    """The evictable expert with the least key, then of the equals the first to go, or -1."""
    best, best_key, best_tied = -1, NEVER, NEVER
    lfu = s.run.eviction == LFU
    for i in used_slots(s, scope):
        g = s.slot[i]
        key, tied = _key(s, g, lfu, since), _tied(s, g, by_id)
        better = key < best_key or (key == best_key and tied < best_tied)
        if better and evictable(s, rules, g, spare_from):
            best, best_key, best_tied = g, key, tied
    return best


@apart
def _least_as_counted(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """The same where uses count since a landing, or of equals the larger id goes."""
    marks = s.run.eviction_marks
    return _least(s, rules, scope, spare_from, marks & TOLD_OF_USES != 0, marks & BY_ID != 0)


@apart
def newer_than(s: State, g: int) -> int:
    """The entry of the ring of g's scope that was last used after it: where it lands in a ring in the order of uses."""
    end, used = end_of(s, s.expert[g].scope, 0), s.kept[g].used_stamp
    newest = s.older[end]
    if newest == end or s.kept[newest].used_stamp <= used:
        return end
    after = s.newer[end]
    while s.kept[after].used_stamp <= used:
        after = s.newer[after]
    return after


@apart
def _stalest(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """least-stale: the ring is in the order of uses, before it those never used by touch; who was touched in this step
    goes last."""
    end, fresh = end_of(s, scope, 0), NOBODY
    g = s.newer[end]
    while g != end:
        stale = s.expert[g].stamp < s.run.step_stamp
        if (stale or fresh == NOBODY) and evictable(s, rules, g, spare_from):
            if stale:
                return g
            fresh = g
        g = s.newer[g]
    return fresh


@apart
def _oldest_visit(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """lru and fifo where a visit is one instant: the ring is in its order; the largest id of the oldest goes."""
    end, best, when = end_of(s, scope, 0), NOBODY, 0
    g = s.newer[end]
    while g != end:
        mine = s.kept[g].touched if s.run.eviction == LRU else s.kept[g].landed
        if best != NOBODY and mine != when:
            break
        if g > best and evictable(s, rules, g, spare_from):
            best, when = g, mine
        g = s.newer[g]
    return best


@apart
def _most_distant(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """layer-distance: the ring is in the order of touches, and the layer being served is the last to come again."""
    end, best, most = end_of(s, scope, 0), NOBODY, 0
    g = s.newer[end]
    while g != end and most < s.run.n_layers:
        away = layers_away(s, g)
        if away > most and evictable(s, rules, g, spare_from):
            best, most = g, away
        g = s.newer[g]
    return best


@apart
def _least_noted(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """_least_score where the score that stands with an expert decides, of a window or of one layer."""
    best, best_key, best_tied = NOBODY, math.inf, NEVER
    by_id = s.run.eviction_marks & BY_ID != 0
    for i in used_slots(s, scope):
        g = s.slot[i]
        key = s.expert[original(s, g)].score
        if key > best_key:
            continue
        tied = _tied(s, g, by_id)
        if (key < best_key or tied < best_tied) and evictable(s, rules, g, spare_from):
            best, best_key, best_tied = g, key, tied
    return best


@apart
def _least_decayed(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """_least_score of decayed, over what stands by slot, where a scope is a layer's."""
    best, best_key, best_tied = NOBODY, math.inf, NEVER
    by_id = s.run.eviction_marks & BY_ID != 0
    now = visits_of_layer(s, s.slot[s.scope[scope].base])
    for i in used_slots(s, scope):
        visits = now - s.in_slot[i].clock
        key = s.in_slot[i].score * s.powers[visits] if visits < POWERS else decayed_score(s, s.slot[i])
        if key > best_key:
            continue
        g = s.slot[i]
        tied = _tied(s, g, by_id)
        if (key < best_key or tied < best_tied) and evictable(s, rules, g, spare_from):
            best, best_key, best_tied = g, key, tied
    return best


@apart
def _least_score(s: State, rules: Any, scope: int, spare_from: int) -> int:
    best, best_key, best_tied = -1, math.inf, NEVER
    by_id = s.run.eviction_marks & BY_ID != 0
    for i in used_slots(s, scope):
        g = s.slot[i]
        key, tied = worth_at_once(s, g), _tied(s, g, by_id)
        less = key < best_key or (key == best_key and tied < best_tied)
        if less and evictable(s, rules, g, spare_from):
            best, best_key, best_tied = g, key, tied
    return best


@apart
def _least_uses_by_age(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """_least_score of lfru, without a division: uses / (age + 1), compared crosswise."""
    best, uses, ages, best_tied = -1, 1, 0, NEVER  # anybody is worth less
    by_id = s.run.eviction_marks & BY_ID != 0
    now = clock_of(s, s.slot[s.scope[scope].base]) + 1
    for i in used_slots(s, scope):
        mine, age = s.in_slot[i].count, now - s.in_slot[i].clock
        less = mine * ages - uses * age
        if less > 0:
            continue
        g = s.slot[i]
        tied = _tied(s, g, by_id)
        if (less < 0 or tied < best_tied) and evictable(s, rules, g, spare_from):
            best, uses, ages, best_tied = g, mine, age, tied
    return best


@apart
def _by_score(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """The evictable expert of least score, found in the order in which a policy keeps them, or among all of a scope."""
    kind, by_id = s.run.eviction, s.run.eviction_marks & BY_ID != 0
    if kind == LFRU:
        return _least_uses_by_age(s, rules, scope, spare_from)
    if kind == LEAST_STALE:
        return _stalest(s, rules, scope, spare_from)
    if kind in (LRU, FIFO):
        return _oldest_visit(s, rules, scope, spare_from)
    if kind == LAYER_DISTANCE and not by_id:
        return _most_distant(s, rules, scope, spare_from)
    if kind in (WINDOW_SCORE, WINDOW_SWAP, MRS) or (kind == ACTIVATION and s.run.pooled == 0):
        return _least_noted(s, rules, scope, spare_from)
    if kind == DECAYED and s.run.pooled == 0:
        return _least_decayed(s, rules, scope, spare_from)
    return _least_score(s, rules, scope, spare_from)


@apart
def _random(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """Candidate number hash64(seed, visits routed, draws since) mod n, candidates in ascending id."""
    candidates, n = s.marked, 0
    for g in ids_of(s, scope):
        candidates[n] = g
        n += at_rest(s, g) if spare_from == DEMANDS else evictable(s, rules, g, spare_from)
    if n == 0:
        return -1
    drawn = hash64(s.run.seed, s.run.routed, s.visit.draws)
    s.visit.draws += 1
    return candidates[drawn % np.uint64(n)]


@inner
def _by_user(s: State, rules: Any, hooks: Any, scope: int, spare_from: Any, g: Any) -> int:
    """The user's own function chooses, among the evictable in the order of their slots."""
    n = 0
    for i in used_slots(s, scope):
        if evictable(s, rules, s.slot[i], spare_from):
            hooks.of_each[CANDIDATES, n] = s.slot[i]
            n += 1
    return ask_victim(s, hooks, n, g) if n > 0 else -1


@apart
def _worth_it(s: State, g: int, gone: int, spare_from: int) -> int:
    """The victim, unless newcomer g is worth less, or of window-swap no more: then nobody goes. What a visit demands
    was weighed when it was decided (core.bypass)."""
    if gone < 0 or (spare_from == DEMANDS and s.expert[g].origin == DEMAND):
        return gone
    if s.run.eviction == WINDOW_SWAP:
        return gone if worth(s, g) > worth(s, gone) else -1
    return -1 if worth(s, g) < worth(s, gone) else gone


@inlined
def victim(s: State, scope: int, spare_from: int, g: int, hooks: Any, rules: Any) -> int:
    """The expert that goes from a full scope for expert g, or -1. spare_from: the merged list to spare, DEMANDS, or
    candidates.ADMITS."""
    if s.run.eviction in (LRU, FIFO) and s.run.eviction_marks & BY_SCORE == 0:
        return _oldest(s, rules, scope, spare_from)
    return _of_another_order(s, scope, spare_from, g, hooks, rules)


@apart
def _of_another_order(s: State, scope: int, spare_from: int, g: int, hooks: Any, rules: Any) -> int:
    """The same where the ring says nothing of who goes."""
    kind, marks = s.run.eviction, s.run.eviction_marks
    if kind in (LFU, BELADY):
        if marks & (BY_ID | TOLD_OF_USES):
            return _least_as_counted(s, rules, scope, spare_from)
        return _least(s, rules, scope, spare_from, False, False)
    if rules is not None and hooks is None:
        return _random(s, rules, scope, spare_from)
    if hooks is not None and kind == USER:
        return _by_user(s, rules, hooks, scope, spare_from, g)
    if hooks is not None and rules is not None and marks & KEEPS_OUT:
        return _worth_it(s, g, _by_score(s, rules, scope, spare_from), spare_from)
    return _random(s, rules, scope, spare_from) if kind == RANDOM else _by_score(s, rules, scope, spare_from)
