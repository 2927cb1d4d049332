"""Re-ranking: other experts for a token than the router chose, decided before hits and misses are told apart (2a).

All look at the residents as they are at the routed instant and change the visit's ids and weights (State.routed,
State.weight) in place. Ranks are by router logit, ties by the lower id; p is the softmax over all experts.

cache-prior (arXiv 2412.00099): logit + strength * D * resident, D the running mean of max - min logit of the layer.
max-rank (same): the first `always` by rank, then residents among the first `among`, then by rank.
cache-prior-mass (same): as max-rank among the first whose p add up to `mass`, however many that are.
tolerance (2608.18261): slot by slot the best of those left, or the best resident left with p >= (1 - tolerance) its p.
smoe (2508.18983): with m the (K+1)-th p, a missing slot with p < m (1 + margin) takes the best unused resident with p
in (m (1 - margin), m). adapmoe (2408.10284): no slot but the strongest where weight^2 < threshold.
sere (2602.07616): in a batch, a secondary expert that is nobody's primary goes to the most similar primary one.
"""

import math
from typing import Any

from sim.core.jit import inner
from sim.core.softmax import put_in_order, read_odds
from sim.core.state import RESIDENT, State

CACHE_PRIOR, MAX_RANK, SMOE, ADAPMOE, SERE, USER, CACHE_PRIOR_MASS, TOLERANCE = range(8)


@inner
def rerank(s: State, miss: Any, tokens: Any, layer: int) -> None:
    """Every token of the visit, in row order; tokens [rows]: their places in the trace."""
    if miss.policy.rerank == SERE:
        _sere(s, miss, len(tokens), layer)
        return
    for row in range(len(tokens)):
        if miss.policy.rerank == ADAPMOE:
            _adapmoe(s, miss, row)
        else:
            _by_logits(s, miss, miss.logits[tokens[row], layer], layer, row)


@inner
def _by_logits(s: State, miss: Any, logits: Any, layer: int, row: int) -> None:
    """One token; logits [E]. total: of the odds."""
    total = read_odds(s, logits)
    if miss.policy.rerank == CACHE_PRIOR:
        _cache_prior(s, miss, layer, row, total)
    elif miss.policy.rerank == MAX_RANK:
        among = int(miss.rerank_params[1])
        _rank(s, logits, row, max(among, s.routed.shape[1]))
        _residents_first(s, miss, layer, row, among, total)
    elif miss.policy.rerank == CACHE_PRIOR_MASS:
        _residents_first(s, miss, layer, row, _rank_of_mass(s, logits, row, miss.rerank_params[1], total), total)
    elif miss.policy.rerank == TOLERANCE:
        _tolerance(s, miss, logits, layer, row, total)
    else:
        _smoe(s, miss, logits, layer, row, total)


@inner
def _rank(s: State, logits: Any, row: int, most: int) -> int:
    """The experts of the `most` highest logits into State.order, as a rule the router's own and more. Returns how many
    there are."""
    n = 0
    for k in range(s.routed.shape[1]):
        s.order[n] = s.routed[row, k]
        n += s.routed[row, k] >= 0
    return _rank_more(s, logits, n, most)


@inner
def _rank_more(s: State, logits: Any, n: int, most: int) -> int:
    """The same where the first n are there."""
    most = min(most, s.run.n_experts)
    put_in_order(s, logits, n, most)
    return most


@inner
def _resident(s: State, layer: int, e: int) -> bool:
    return s.expert[layer * s.run.n_experts + e].state == RESIDENT


@inner
def _weigh(s: State, miss: Any, row: int, total: float) -> None:
    """Weights of the chosen set: its own p, renormalised where the model does."""
    chosen = 0.0
    for k in range(s.routed.shape[1]):
        e = s.routed[row, k]
        s.weight[row, k] = s.odds[e] / total if e >= 0 else 0.0
        chosen += s.weight[row, k]
    if miss.policy.norm_topk and chosen > 0.0:
        for k in range(s.routed.shape[1]):
            s.weight[row, k] /= chosen


@inner
def _cache_prior(s: State, miss: Any, layer: int, row: int, total: float) -> None:
    high, low, n = s.logit[0], s.logit[0], s.run.n_experts
    for e in range(1, n):
        high, low = max(high, s.logit[e]), min(low, s.logit[e])
    s.past[layer].logit_range += high - low
    s.past[layer].n_ranges += 1.0
    bonus = miss.rerank_params[0] * (s.past[layer].logit_range / s.past[layer].n_ranges)
    for e in range(n):
        s.chances[e] = s.logit[e] + (bonus if _resident(s, layer, e) else 0.0)
    _take_highest(s, row)
    _weigh(s, miss, row, total)


@inner
def _take_highest(s: State, row: int) -> None:
    """The token gets the K experts of the highest State.chances, descending, ties by the lower id: none is below the
    least of those that it has."""
    order, chances, top_k, n, least = s.order, s.chances, s.routed.shape[1], 0, math.inf
    for k in range(top_k):
        least = min(least, chances[s.routed[row, k]] if s.routed[row, k] >= 0 else -math.inf)
    left, others = 0, s.marked
    for e in range(s.run.n_experts):
        others[left] = e
        left += chances[e] >= least
    for i in range(left):
        e = others[i]
        if n == top_k and chances[e] <= chances[order[n - 1]]:
            continue
        place = n if n < top_k else n - 1
        n = place + 1
        while place > 0 and chances[order[place - 1]] < chances[e]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = e
    for k in range(top_k):
        s.routed[row, k] = order[k] if k < n else -1


@inner
def _rank_of_mass(s: State, logits: Any, row: int, mass: float, total: float) -> int:
    """How many of State.order, from the front, it takes for their p to add up to `mass`. Where those that are there do
    not do, twice as many are put in order."""
    n, sum_p = 0, 0.0
    ordered = _rank(s, logits, row, 4 * s.routed.shape[1])
    while n < s.run.n_experts and sum_p < mass:
        if n == ordered:
            ordered = _rank_more(s, logits, n, 2 * n)
        sum_p += s.odds[s.order[n]] / total
        n += 1
    return n


@inner
def _residents_first(s: State, miss: Any, layer: int, row: int, among: int, total: float) -> None:
    """Of State.order the first `always`, then residents among the first `among`, then the others."""
    top_k = s.routed.shape[1]
    ranks = min(s.run.n_experts, max(among, top_k))  # nobody behind them gets a slot
    n = _take(s, layer, row, 0, min(int(miss.rerank_params[0]), ranks), True)
    n = _take(s, layer, row, n, min(among, ranks), False)
    n = _take(s, layer, row, n, ranks, True)
    while n < top_k:
        s.routed[row, n] = -1
        n += 1
    _weigh(s, miss, row, total)


@inner
def _take(s: State, layer: int, row: int, n: int, ranks: int, anybody: bool) -> int:
    """Behind the n experts that the token has, those left among the first ranks, anybody or residents, until it has K.
    Returns how many it has."""
    r = 0
    while r < ranks and n < s.routed.shape[1]:
        e = s.order[r]
        if e >= 0 and (anybody or _resident(s, layer, e)):
            s.routed[row, n] = e
            n += 1
            s.order[r] = -1
        r += 1
    return n


@inner
def _rank_of_least(s: State, logits: Any, row: int, tolerance: float, total: float) -> int:
    """How many are put in order so that, of the rest, none does for any slot: the last slot's best has rank K."""
    n = _rank(s, logits, row, s.routed.shape[1] + (s.routed.shape[1] + 1) // 2)
    least = (1.0 - tolerance) * (s.odds[s.order[s.routed.shape[1] - 1]] / total)
    while n < s.run.n_experts and s.odds[s.order[n - 1]] / total >= least:
        n = _rank_more(s, logits, n, 2 * n)
    return n


@inner
def _tolerance(s: State, miss: Any, logits: Any, layer: int, row: int, total: float) -> None:
    ranks = _rank_of_least(s, logits, row, miss.rerank_params[0], total)
    first = 0
    for k in range(s.routed.shape[1]):
        while first < ranks and s.order[first] < 0:
            first += 1
        best, least = -1, 0.0
        for r in range(first, ranks):
            e = s.order[r]
            if e < 0:
                continue
            p = s.odds[e] / total
            if best < 0:
                best, least = r, (1.0 - miss.rerank_params[0]) * p
            if p < least:
                break
            if _resident(s, layer, e):
                best = r
                break
        s.routed[row, k] = s.order[best] if best >= 0 else -1
        if best >= 0:
            s.order[best] = -1
    _weigh(s, miss, row, total)


@inner
def _smoe(s: State, miss: Any, logits: Any, layer: int, row: int, total: float) -> None:
    top_k, n = s.routed.shape[1], s.run.n_experts
    if top_k >= n:
        return
    _rank(s, logits, row, top_k + 1)
    a, m = miss.rerank_params[0], float(s.odds[s.order[top_k]]) / total
    for k in range(top_k):
        e = s.routed[row, k]
        if e < 0 or _resident(s, layer, e):
            continue
        p = s.odds[e] / total
        if p >= m * (1.0 + a):
            continue
        other = _stand_in(s, layer, row, m, a, total)
        if other >= 0:
            s.weight[row, k] = s.weight[row, k] * (s.odds[other] / total) / p
            s.routed[row, k] = other


@inner
def _stand_in(s: State, layer: int, row: int, m: float, a: float, total: float) -> int:
    """The resident with the highest p in (m (1 - a), m) that the token does not use; -1 if there is none."""
    best, best_p = -1, 0.0
    for e in range(s.run.n_experts):
        p = s.odds[e] / total
        if m * (1.0 - a) < p < m and (best < 0 or p > best_p) and _resident(s, layer, e) and not _uses(s, row, e):
            best, best_p = e, p
    return best


@inner
def _uses(s: State, row: int, e: int) -> bool:
    for k in range(s.routed.shape[1]):
        if s.routed[row, k] == e:
            return True
    return False


@inner
def _adapmoe(s: State, miss: Any, row: int) -> None:
    strongest = -1
    for k in range(s.routed.shape[1]):
        if s.routed[row, k] >= 0 and (strongest < 0 or s.weight[row, k] > s.weight[row, strongest]):
            strongest = k
    for k in range(s.routed.shape[1]):
        if k != strongest and s.weight[row, k] * s.weight[row, k] < miss.rerank_params[0]:
            s.routed[row, k] = -1


@inner
def _is_primary(s: State, row: int, k: int, primary: int) -> bool:
    """Whether slot k is among the `primary` strongest of its token (ties: the lower slot)."""
    stronger, mine = 0, s.weight[row, k]
    for j in range(s.routed.shape[1]):
        w = s.weight[row, j]
        stronger += (s.routed[row, j] >= 0) & ((w > mine) | ((w == mine) & (j < k)))
    return stronger < primary


@inner
def _sere(s: State, miss: Any, rows: int, layer: int) -> None:
    threshold, count = miss.rerank_params[0], int(miss.rerank_params[1])
    primary, listed, n = s.marked, s.order, 0
    for e in range(s.run.n_experts):
        primary[e] = 0
    for row in range(rows):
        for k in range(s.routed.shape[1]):
            if s.routed[row, k] >= 0 and _is_primary(s, row, k, count):
                primary[s.routed[row, k]] = 1
    for e in range(s.run.n_experts):
        listed[n] = e
        n += primary[e]
    for row in range(rows):
        for k in range(s.routed.shape[1]):
            e = s.routed[row, k]
            if e >= 0 and primary[e] == 0:
                _to_primary(s, miss, layer, row, k, e, n, threshold)


@inner
def _to_primary(s: State, miss: Any, layer: int, row: int, k: int, e: int, n: int, threshold: float) -> None:
    """Slot k goes to the most similar of the n primary experts in State.order; where the token has it already, only its
    weight does."""
    best = -1
    for i in range(n):
        j = s.order[i]
        if best < 0 or miss.similarity[layer, e, j] > miss.similarity[layer, e, best]:
            best = j
    if best < 0 or miss.similarity[layer, e, best] < threshold:
        return
    for j in range(s.routed.shape[1]):
        if s.routed[row, j] == best:
            s.weight[row, j] += s.weight[row, k]
            s.routed[row, k] = -1
            return
    s.routed[row, k] = best
