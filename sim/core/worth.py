"""What evictions that keep a score keep an expert for: the resident that is worth least goes.

decayed: uses, each multiplied by `decay` per visit of its layer since. lfru: uses / (age + 1). lru-k: when the k-th
last use was (O'Neil et al. 1993). layer-distance: minus how many layers away its next visit is. least-stale: touched in
this step, then its last use. reuse-interval: minus the visits until its predicted next use, by a mean of intervals.
window-score: its router weight in the last `window` visits of its layer; window-swap: its entries. activation-matrix:
(share of its layer's tokens + EPSILON) x (1 - layer / layers), over the requests being served (MoE-Infinity). mrs: a
moving mean of its probability where it is among the 2 K highest (HybriMoE). hobbit-priority: uses / steps + recent /
layers until it comes again (HOBBIT). belady-w: the next use where it is near, else decayed uses. With --set ties=id lru
and fifo are scores, too: the visit of the last touch or landing. A low-precision copy is worth what its original is
where routing makes the score.
"""

import math
from typing import Any

import numpy as np

from sim.core.jit import apart, inlined, inner
from sim.core.plan import BY_ID, BY_LOGITS, BY_SLOT, BY_WEIGHT, FORGETS_ROWS, FROM_FRESH
from sim.core.rings import to_the_new_end
from sim.core.softmax import put_in_order, read_odds
from sim.core.state import NEVER, RESIDENT, State

(
    LRU, LFU, FIFO, RANDOM, DECAYED, BELADY, USER, LAYER_DISTANCE, WINDOW_SCORE, ACTIVATION, STATIC, LFRU, LRU_K, SIEVE,
    CLOCK, S3_FIFO, ARC, W_TINYLFU, MRS, HOBBIT, LEAST_STALE,
    REUSE_INTERVAL, WINDOW_SWAP, MIN, BELADY_W,
) = range(25)  # fmt: skip
EPSILON = 1e-6  # of the activation matrix: an expert nobody asked for is still worth more in an early layer
WEIGHT_UNIT = 2.0**24  # the window's sums are whole multiples of 1 / WEIGHT_UNIT: exact in any order
KNOWN = 1e12  # worth of a next use that is known: above any decayed score
SOON = 0.1  # of hobbit-priority: in layers, added to the distance


@inlined
def visits_of_layer(s: State, g: int) -> int:
    """How many visits of expert g's layer have been routed so far."""
    return s.run.step + (s.expert[g].layer <= s.run.layer)


@inlined
def layers_away(s: State, g: int) -> int:
    """How many visits from the one being served the next one of expert g's layer is."""
    away = s.expert[g].layer - s.run.layer
    return away if away > 0 else away + s.run.n_layers


@inner
def decayed_score(s: State, g: int) -> float:
    """score * decay ** (visits of its layer since the score was brought up to date)."""
    visits = visits_of_layer(s, g) - s.expert[g].scored
    return s.expert[g].score * (s.powers[visits] if visits < len(s.powers) else math.pow(_decay(s), float(visits)))


@inlined
def _decay(s: State) -> float:
    """Of belady-w a half in as many visits as it is told."""
    return math.pow(0.5, 1.0 / s.params[1]) if s.run.eviction == BELADY_W else s.params[0]


@apart
def begin_decay(s: State) -> None:
    """Before the first use: most powers are asked for again and again."""
    if s.run.eviction in (DECAYED, BELADY_W):
        for visits in range(len(s.powers)):
            s.powers[visits] = math.pow(_decay(s), float(visits))


@inlined
def original(s: State, g: int) -> int:
    """Whose low-precision copy g is; itself."""
    return g if g < s.run.n_full else g - s.run.n_full


@inlined
def clock_of(s: State, g: int) -> int:
    """Visits routed of expert g's scope: of its layer, or all of them where there is one pool."""
    return s.run.routed if s.run.pooled == 1 else visits_of_layer(s, g)


@apart
def worth(s: State, g: int) -> float:
    """What expert g is worth, resident or not."""
    return worth_at_once(s, g)


@inlined
def worth_at_once(s: State, g: int) -> float:
    """The same as part of a loop over many."""
    kind = s.run.eviction
    if kind == DECAYED:
        return decayed_score(s, g)
    if kind in (WINDOW_SCORE, WINDOW_SWAP, MRS):
        return s.expert[original(s, g)].score
    if kind == ACTIVATION:
        return _activation(s, original(s, g))
    if kind == LAYER_DISTANCE:  # the one being served comes last
        return -float(layers_away(s, g))
    if kind == HOBBIT:
        return _hobbit(s, original(s, g))
    if kind in (MIN, BELADY):
        return -float(s.expert[original(s, g)].next_use)
    if kind == BELADY_W:
        return _within(s, g)
    return _other_worth(s, g)


@apart
def _other_worth(s: State, g: int) -> float:
    kind = s.run.eviction
    if kind == LFRU:
        return float(s.kept[g].count) / float(clock_of(s, g) - s.kept[g].clock + 1)
    if kind == LRU_K:
        return float(s.history[g, s.history.shape[1] - 1])
    if kind == REUSE_INTERVAL:
        return -_until_reuse(s, g)
    return float(s.kept[g].count) if len(s.kept) > 0 else float(s.expert[g].uses)  # lfu


@inlined
def _activation(s: State, g: int) -> float:
    layer = s.past[s.expert[g].layer]
    share = s.expert[g].score / layer.score if layer.score > 0.0 else 0.0
    return (share + EPSILON) * layer.left


@inlined
def _hobbit(s: State, g: int) -> float:
    steps, away = s.run.step - s.run.fresh_step + 1, layers_away(s, g)
    since = visits_of_layer(s, g) - s.kept[g].clock
    recent = s.kept[g].used > 0 and since <= (1 if away == s.run.n_layers else 0)
    return s.expert[g].score / float(steps) + (1.0 if recent else 0.0) / (float(away) + SOON)


@inlined
def _until_reuse(s: State, g: int) -> float:
    """An overdue one is expected after as long again as it has waited."""
    mean, waited = s.kept[g].mean, float(s.run.routed - s.kept[g].used)
    if mean < 0.0:
        return math.inf
    return mean - waited if mean >= waited else waited


@inlined
def _within(s: State, g: int) -> float:
    after = s.expert[original(s, g)].next_use
    beyond = (float(s.run.step) + s.params[0] + 1.0) * float(s.run.n_layers)  # the first visit that it does not see
    if after != NEVER and float(after) < beyond:
        return KNOWN - float(after - s.run.routed)
    return decayed_score(s, g)


# --- told of uses and landings ---


@inner
def count_use(s: State, g: int) -> None:
    """Expert g was used: what its score is made of is brought up to date."""
    if s.run.eviction == LFRU:
        s.kept[g].count += 1
        s.kept[g].clock = clock_of(s, g)
    elif s.run.eviction in (DECAYED, BELADY_W):
        s.expert[g].score = decayed_score(s, g) + 1.0
        s.expert[g].scored = visits_of_layer(s, g)
    else:
        _note_use(s, g)
    if s.run.eviction_marks & BY_SLOT and s.expert[g].state == RESIDENT:
        _beside_its_slot(s, g)


@apart
def _note_use(s: State, g: int) -> None:
    kind, kept = s.run.eviction, s.kept[g]
    if kind == LRU_K:
        _remember(s, g, s.run.routed if s.run.eviction_marks & BY_ID else s.run.stamps)
    elif kind == REUSE_INTERVAL and kept.used > 0:
        interval, share = float(s.run.routed - kept.used), s.params[0]
        kept.mean = interval if kept.mean < 0.0 else share * interval + (1.0 - share) * kept.mean
    elif kind == HOBBIT:
        whose = original(s, g)
        s.expert[whose].score += 1.0 if whose == g else s.params[0]
        s.kept[whose].used, s.kept[whose].clock = s.run.routed, visits_of_layer(s, g)
    kept.count += 1
    kept.used = kept.touched = s.run.routed
    kept.used_stamp = s.run.stamps
    if kind in (LRU, LEAST_STALE, LAYER_DISTANCE) and s.expert[g].state == RESIDENT:  # in the order of uses
        to_the_new_end(s, g)


@inlined
def _beside_its_slot(s: State, g: int) -> None:
    here = s.in_slot[s.expert[g].slot]
    if s.run.eviction == LFRU:
        here.count, here.clock = s.kept[g].count, s.kept[g].clock
    else:
        here.score, here.clock = s.expert[g].score, s.expert[g].scored


@apart
def _remember(s: State, g: int, number: int) -> None:
    """One more use of expert g, in front of those before."""
    for i in range(s.history.shape[1] - 1, 0, -1):
        s.history[g, i] = s.history[g, i - 1]
    s.history[g, 0] = number


@inlined
def note_landing(s: State, g: int) -> None:
    """Expert g has landed in a slot."""
    kept = s.kept[g]
    kept.touched = kept.landed = s.run.routed
    if s.run.eviction in (LFU, LFRU, LRU_K) and s.params[len(s.params) - 1] == 0.0:  # since=landing
        kept.count = 0
        if s.run.eviction == LRU_K:
            s.history[g, :] = -1
    if s.run.eviction_marks & BY_SLOT:
        _beside_its_slot(s, g)


# --- told of what is routed ---


@inner
def look_back(s: State, route: Any, step: int, layer: int) -> None:
    """At a routed instant: what this visit's rows add to the scores, and what those that leave take away: rows leave a
    window layer by layer, a request leaves all at once."""
    if s.run.eviction_marks & FROM_FRESH:
        _begin_again(s, step, layer, route.fresh[step])
    elif s.run.eviction_marks & BY_LOGITS:
        first, last = route.step_offset[step], route.step_offset[step + 1]
        _by_probability(s, route, first, last, layer)
    else:
        _by_entries(s, route, route.weights, step, layer)


@inner
def _by_entries(s: State, route: Any, weights: Any, step: int, layer: int) -> None:
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
    base, by_weight, total = layer * s.run.n_experts, s.run.eviction_marks & BY_WEIGHT != 0, 0.0
    for k in range(route.experts.shape[2]):
        e = route.experts[t, layer, k]
        if e >= 0:
            amount = sign * np.rint(float(weights[t, layer, k]) * WEIGHT_UNIT) if by_weight else sign
            s.expert[base + e].score += amount
            total += amount
    s.past[layer].score += total


@apart
def _begin_again(s: State, step: int, layer: int, fresh: bool) -> None:
    """A step begins; where it is the first of a request that is served alone, nothing was used before."""
    if layer == 0:
        s.run.step_stamp = s.run.stamps
    if layer == 0 and s.run.eviction == HOBBIT and fresh:
        s.run.fresh_step = step
        for g in range(len(s.kept)):
            s.expert[g].score = 0.0
            s.kept[g].used = 0


@apart
def _by_probability(s: State, route: Any, first: int, last: int, layer: int) -> None:
    """mrs: alpha x mean over the rows of TopP(softmax) + (1 - alpha) x score; P the 2 K highest, ties the lower id."""
    n, base, alpha = s.run.n_experts, layer * s.run.n_experts, s.params[0]
    sums = s.chances
    sums[:n] = 0.0
    for i in range(first, last):
        _add_highest(s, route, route.step_row[i], layer)
    if last - first > 1:
        for e in range(n):
            sums[e] /= float(last - first)
    for e in range(n):
        s.expert[base + e].score = (1.0 - alpha) * s.expert[base + e].score + alpha * sums[e]


@apart
def _add_highest(s: State, route: Any, t: int, layer: int) -> None:
    """To State.chances, the softmax of a token's logits at its 2 K highest: those that are routed, and more."""
    logits, n, top_k = route.logits[t, layer], 0, route.experts.shape[2]
    total = read_odds(s, logits)
    for k in range(top_k):
        s.order[n] = route.experts[t, layer, k]
        n += route.experts[t, layer, k] >= 0
    most = min(2 * top_k, s.run.n_experts)
    put_in_order(s, logits, n, most)
    for r in range(most):
        e = s.order[r]
        s.chances[e] += s.odds[e] / total
