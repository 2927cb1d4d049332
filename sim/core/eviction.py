"""Which resident makes room: the victim among the evictable residents of a scope.

lru: the oldest touch or landing. fifo: the earliest landing. lfu: the fewest executions over the run. belady: the
expert whose next wanted visit lies furthest ahead (Belady 1966; the only one that reads the future). decayed: the
lowest score = uses, each multiplied by `decay` per visit of the expert's layer since. random: by hash64. least-stale:
the expert whose layer comes again last. window-score: the least router weight in the last `window` visits of its layer.
activation-matrix: the least (share of its layer's tokens + EPSILON) x (1 - layer / layers), over the tokens so far of
the requests being served. Ties: the older touch or landing.
"""

import math
from typing import Any

import numpy as np

from sim.core.hashing import hash64
from sim.core.hooks import CANDIDATES, ask_victim
from sim.core.jit import apart, inlined, inner
from sim.core.plan import BY_SCORE, BY_WEIGHT, FORGETS_ROWS
from sim.core.state import NEVER, RESIDENT, State

LRU, LFU, FIFO, RANDOM, DECAYED, BELADY, USER, LEAST_STALE, WINDOW_SCORE, ACTIVATION, STATIC = range(11)
ADMISSION = -2  # in the place of a list to spare
EPSILON = 1e-6  # of the activation matrix: an expert nobody asked for is still worth more in an early layer
WEIGHT_UNIT = 2.0**24  # the window's sums are whole multiples of 1 / WEIGHT_UNIT: exact in any order


@inlined
def visits_of_layer(s: State, g: int) -> int:
    """How many visits of expert g's layer have been routed so far."""
    layers = s.run.n_layers
    return (s.run.routed + layers - 1 - s.expert[g].layer) // layers


@inner
def decayed_score(s: State, g: int) -> float:
    """score * decay ** (visits of its layer since the score was brought up to date)."""
    return s.expert[g].score * math.pow(s.params[0], float(visits_of_layer(s, g) - s.expert[g].scored))


@inner
def _worth(s: State, g: int) -> float:
    """What the policies of a score keep an expert for; a low-precision copy is worth what its original is."""
    kind, layers = s.run.eviction, s.run.n_layers
    if kind == DECAYED:
        return decayed_score(s, g)
    layer, original = s.expert[g].layer, g if g < s.run.n_full else g - s.run.n_full
    if kind == LEAST_STALE:  # minus how many layers away its next visit is; the one being served comes last
        return -float((layer - s.run.routed) % layers)
    if kind == WINDOW_SCORE:
        return s.expert[original].score
    total = s.past[layer].score
    share = s.expert[original].score / total if total > 0.0 else 0.0
    return (share + EPSILON) * (1.0 - float(layer) / float(layers))


@inner
def look_back(s: State, route: Any, weights: Any, step: int, layer: int) -> None:
    """At a routed instant: what this visit's rows add to the scores, and what those that leave take away: rows leave a
    window layer by layer, a request leaves all at once."""
    if s.run.eviction_marks & FORGETS_ROWS:
        for i in range(route.leaving_offset[step], route.leaving_offset[step + 1]):
            _add(s, route, weights, route.leaving_row[i], layer, -1.0)
    elif layer == 0:
        for i in range(route.leaving_offset[step], route.leaving_offset[step + 1]):
            for each in range(s.run.n_layers):
                _add(s, route, weights, route.leaving_row[i], each, -1.0)
    for i in range(route.step_offset[step], route.step_offset[step + 1]):
        _add(s, route, weights, route.step_row[i], layer, 1.0)


@inner
def _add(s: State, route: Any, weights: Any, t: int, layer: int, sign: float) -> None:
    for k in range(route.experts.shape[2]):
        e = route.experts[t, layer, k]
        if e >= 0:
            by_weight = s.run.eviction_marks & BY_WEIGHT
            amount = sign * np.rint(float(weights[t, layer, k]) * WEIGHT_UNIT) if by_weight else sign
            s.expert[layer * s.run.n_experts + e].score += amount
            s.past[layer].score += amount


@inner
def count_use(s: State, g: int) -> None:
    """Bring the decayed score of an executed expert up to date: score = score * decay ** n + 1."""
    s.expert[g].score = decayed_score(s, g) + 1.0
    s.expert[g].scored = visits_of_layer(s, g)


@inlined
def _evictable(s: State, rules: Any, g: int, spare_from: int) -> bool:
    """Resident, not held, and not on the list whose prefetch asks (-1: a demand, which spares nobody)."""
    if s.expert[g].state != RESIDENT or s.expert[g].work > 0:
        return False
    if rules is not None and spare_from == ADMISSION:
        return _gives_way(s, rules, g)
    return spare_from < 0 or not _listed(s, g, spare_from)


@apart
def _gives_way(s: State, rules: Any, g: int) -> bool:
    """Of an admission: not run in the last `spare` visits of its layer, and worth `margin` times less."""
    may, ran = rules.admission, rules.expert[g].ran
    if ran > 0 and visits_of_layer(s, g) - ran < may.spare:
        return False
    return may.margin == 0.0 or _score(s, g) * may.margin < _score(s, may.newcomer)


@apart
def _score(s: State, g: int) -> float:
    """Of the policies that have one."""
    return float(s.expert[g].uses) if s.run.eviction == LFU else _worth(s, g)


@inner
def _listed(s: State, g: int, which: int) -> bool:
    merged = s.merged[which]
    for i in range(1, merged[0] + 1):
        if merged[i] == g:
            return True
    return False


@inlined
def _oldest(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """The first evictable expert in the order of touches (lru) or landings (fifo), or -1."""
    end = len(s.expert) + scope
    g = s.newer[end]
    while g != end and not _evictable(s, rules, g, spare_from):
        g = s.newer[g]
    return np.int64(g) if g != end else -1  # type: ignore[return-value]


@inlined
def _key(s: State, g: int) -> int:
    """What lfu and belady keep an expert for."""
    return s.expert[g].uses if s.run.eviction == LFU else -s.expert[g].next_use


@inlined
def _least(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """The evictable expert with the least key, then the oldest stamp, or -1."""
    best, best_key, best_stamp = -1, NEVER, NEVER
    base = s.scope[scope].base
    for i in range(base, base + s.scope[scope].used):
        g = s.slot[i]
        key, stamp = _key(s, g), s.expert[g].stamp
        better = key < best_key or (key == best_key and stamp < best_stamp)
        if better and _evictable(s, rules, g, spare_from):
            best, best_key, best_stamp = g, key, stamp
    return best


@inner
def _least_score(s: State, rules: Any, scope: int, spare_from: int) -> int:
    best, best_key, best_stamp = -1, 0.0, np.int64(0)
    base = s.scope[scope].base
    for i in range(base, base + s.scope[scope].used):
        g = s.slot[i]
        if not _evictable(s, rules, g, spare_from):
            continue
        key, stamp = _worth(s, g), s.expert[g].stamp
        if best < 0 or key < best_key or (key == best_key and stamp < best_stamp):
            best, best_key, best_stamp = g, key, stamp
    return best


@inner
def _smallest(candidates: Any, n: int, rank: int | np.int64) -> int:
    """The candidate with `rank` smaller ones among the first n (all different)."""
    for i in range(n):
        smaller = 0
        for j in range(n):
            smaller += candidates[j] < candidates[i]
        if smaller == rank:
            return candidates[i]
    return -1


@inner
def _random(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """Candidate number hash64(seed, visits routed, draws since) mod n, candidates in ascending id."""
    base = s.scope[scope].base
    candidates = s.marked
    n = 0
    for i in range(base, base + s.scope[scope].used):
        if _evictable(s, rules, s.slot[i], spare_from):
            candidates[n] = s.slot[i]
            n += 1
    if n == 0:
        return -1
    drawn = hash64(s.run.seed, s.run.routed, s.visit.draws)
    s.visit.draws += 1
    return _smallest(candidates, n, np.int64(drawn % np.uint64(n)))


@inner
def _by_user(s: State, rules: Any, hooks: Any, scope: int, spare_from: Any, g: Any) -> int:
    """The user's own function chooses, among the evictable in the order of their slots."""
    base, n = s.scope[scope].base, np.int64(0)
    for i in range(base, base + s.scope[scope].used):
        if _evictable(s, rules, s.slot[i], spare_from):
            hooks.of_each[CANDIDATES, n] = s.slot[i]
            n += 1
    return ask_victim(s, hooks, n, g) if n > 0 else -1


@inlined
def victim(s: State, scope: int, spare_from: int, g: int, hooks: Any, rules: Any) -> int:
    """The expert that goes from a full scope for expert g, or -1. spare_from: the merged list to spare, -1 a demand,
    ADMISSION one for an admission."""
    kind = s.run.eviction
    if hooks is not None and kind == USER:
        return _by_user(s, rules, hooks, scope, np.int64(spare_from), np.int64(g))
    if s.run.eviction_marks & BY_SCORE:
        return _least_score(s, rules, scope, spare_from)
    if kind == RANDOM:
        return _random(s, rules, scope, spare_from)
    if kind in (LFU, BELADY):
        return _least(s, rules, scope, spare_from)
    return _oldest(s, rules, scope, spare_from)
