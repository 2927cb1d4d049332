"""Substitution: what a token's missing experts get by gates, stand-ins and a fallback, one method with parameters
(arXiv 2511.10054; what the paper leaves open is a parameter of ours).

    gates      may anything be substituted for this token, in this visit
    selector   which resident stands in: the buddy list, any, the best ranked by the live router, or nobody (drop)
    matched    only where the buddy list has a resident: the same gates and budget, another selector
    fallback   what the others get: fetch, drop, cpu, or the cheaper of cpu and fetch (Fiddler, arXiv 2402.07033)
"""

import math
from typing import Any

import numpy as np

from sim.core.hashing import hash64
from sim.core.jit import inlined, inner
from sim.core.plan import GATES, SUBSTITUTE_PARAMS
from sim.core.softmax import expert_of, insert, rank_of, read_odds
from sim.core.state import HIT, MISS, RESIDENT, State

ANSWER_FETCH, ANSWER_SUBSTITUTE, ANSWER_DROP, ANSWER_CPU, ANSWER_LOW, ANSWER_STREAM, ANSWER_REMOTE = range(7)
# plan.GATES
OPEN, PREFILL, TAE, MARGIN, DISTRIBUTION, RHO, NOBODY = range(1 + len(GATES))
SELECT_LIST, SELECT_RANDOM, SELECT_NEXT, SELECT_DROP, SELECT_NOBODY = range(5)
FALL_FETCH, FALL_DROP, FALL_CPU, FALL_CHEAPER = range(4)
(SELECTOR, MATCHED, TEMPERATURE, GAMMA, BETA, BUDGET, RHO_MAX, SEARCH, LOWEST_FIRST, FALLBACK) = range(10)
ETA, KAPPA, PARTITIONS, BACKGROUND, TOUCH, BACKLOG = range(10, len(SUBSTITUTE_PARAMS))
COST_CPU, COST_FETCH = 1 << 9, 1 << 10  # in ASKED: what the cheaper rule has said of this expert
MISS_DRAWS = 2**32  # ordinals of the draws of miss policies, apart from those of evictions


@inner
def asked(s: State, miss: Any, g: int) -> bool:
    """Whether the miss policy answers for expert g in this visit."""
    return s.expert[g].kind > HIT and (s.expert[g].kind == MISS or miss.policy.ask_late)


@inlined
def _tempered(weight: float, temperature: float) -> float:
    """weight ** (1 / temperature); at 1, the usual case, without the power, which would cost a fifth of the run."""
    return weight if temperature == 1.0 else math.pow(weight, 1.0 / temperature)


@inner
def entropy(weights: Any, ids: Any, temperature: float) -> float:
    """TAE (Eq. 1): -sum p ln p / ln k over the token's router weights, renormalised, in [0, 1]; 0 for k = 1.

    p is proportional to weight ** (1 / temperature): the softmax of the logits at that temperature, on the chosen
    experts.
    """
    total = 0.0
    for k in range(len(ids)):
        if ids[k] >= 0 and weights[k] > 0:
            total += _tempered(weights[k], temperature)
    if len(ids) < 2 or total <= 0.0:
        return 0.0
    out = 0.0
    for k in range(len(ids)):
        if ids[k] >= 0 and weights[k] > 0:
            p = _tempered(weights[k], temperature) / total
            if p > 0.0:
                out -= p * math.log(p)
    return out / math.log(float(len(ids)))


@inner
def margin(weights: Any, ids: Any) -> float:
    """The difference of the two largest renormalised router weights."""
    first, second, total = 0.0, 0.0, 0.0
    for k in range(len(ids)):
        if ids[k] < 0:
            continue
        total += weights[k]
        if weights[k] > first:
            first, second = weights[k], first
        elif weights[k] > second:
            second = weights[k]
    return (first - second) / total if total > 0.0 else 0.0


@inner
def _distribution_gate(s: State, params: Any) -> bool:
    """Eq. 2: too large a share of the wanted set is not on the GPU, or fetching it would pass the transfer budget."""
    away = 0
    for i in range(s.visit.n_wanted):
        away += s.expert[s.wanted[i]].kind != HIT
    if away >= params[BETA] * s.visit.n_wanted:
        return True
    return params[BUDGET] > 0 and away > params[BUDGET]


@inner
def _gate_by_weights(miss: Any, ids: Any, weights: Any, layer: int) -> int:
    """The first gate that is shut for a token whatever is resident, or OPEN."""
    if miss.tau[layer] >= 0.0 and entropy(weights, ids, miss.params[TEMPERATURE]) <= miss.tau[layer]:
        return TAE
    return MARGIN if miss.params[GAMMA] <= 1.0 and margin(weights, ids) >= miss.params[GAMMA] else OPEN


@inner
def _gate(s: State, miss: Any, ids: Any, weights: Any, t: int, layer: int) -> int:
    """The first gate that is shut for this token, in the paper's order, or OPEN. What its weights say is asked once."""
    shut = s.gates[t, layer] - 1 if len(s.gates) > 0 else -1
    if shut < 0:
        shut = _gate_by_weights(miss, ids, weights, layer)
        if len(s.gates) > 0:
            s.gates[t, layer] = shut + 1
    return DISTRIBUTION if shut == OPEN and _distribution_gate(s, miss.params) else shut


@inner
def _score(s: State, miss: Any, layer: int, i: int, rank: int, total: float) -> float:
    """psi (Eq. 3): q(j|i) (1 + eta z_j) (1 - kappa hop_j); z the softmax of the token's router logits (its
    normalisation is ours), hop the number of partitions between the two experts (E / partitions experts each)."""
    j, n = miss.peers[layer, i, rank], s.run.n_experts
    psi = float(miss.q[layer, i, rank])
    if miss.params[ETA] != 0.0:
        psi *= 1.0 + miss.params[ETA] * (s.odds[j] / total)
    if miss.params[KAPPA] != 0.0:
        parts = int(miss.params[PARTITIONS])
        psi *= 1.0 - miss.params[KAPPA] * abs(j * parts // n - i * parts // n)
    return psi


@inner
def _by_psi(s: State, miss: Any, t: int, layer: int, i: int) -> None:
    """B(i) into State.order, by psi; ties keep the list's order."""
    n, order, total = 0, s.order, 1.0
    if miss.params[ETA] != 0.0:
        total = read_odds(s, miss.logits[t, layer])
    while n < miss.peers.shape[2] and miss.peers[layer, i, n] >= 0:
        mine, place = _score(s, miss, layer, i, n, total), n
        while place > 0 and mine > s.chances[place - 1]:
            order[place], s.chances[place] = order[place - 1], s.chances[place - 1]
            place -= 1
        order[place], s.chances[place] = n, mine
        n += 1


@inner
def may_stand_in(s: State, base: int, j: int) -> bool:
    """Resident now, and not in the token's set U; without a branch."""
    return (s.expert[base + j].state == RESIDENT) & (s.expert[base + j].used_by != s.run.token)


@inner
def _buddy(s: State, miss: Any, t: int, layer: int, i: int) -> int:
    """Algorithm 1: the first resident of B(i) not in U, within the first H entries; -1 if there is none."""
    base, plain = layer * s.run.n_experts, miss.params[ETA] == 0.0 and miss.params[KAPPA] == 0.0
    if not plain:
        _by_psi(s, miss, t, layer, i)
    for r in range(min(miss.peers.shape[2], int(miss.params[SEARCH]))):
        if miss.peers[layer, i, r] < 0:
            return -1
        j = miss.peers[layer, i, r if plain else s.order[r]]
        if may_stand_in(s, base, j):
            return j
    return -1


@inner
def _list_free(s: State, layer: int) -> None:
    """The residents not in U into State.marked, ascending; in front how many."""
    free, n = s.marked, 0
    for j in range(s.run.n_experts):
        free[n + 1] = j
        n += may_stand_in(s, layer * s.run.n_experts, j)
    free[0] = n


@inner
def _any(s: State, layer: int, done: int) -> int:
    """A random resident not in U, by hash64(seed, visits routed, 2**32 + draws of this visit); -1 if there is none.
    They are listed for the first stand-in of a token; each leaves the list."""
    free = s.marked
    if done == 0:
        _list_free(s, layer)
    n = free[0]
    if n == 0:
        return -1
    drawn = hash64(s.run.seed, s.run.routed, MISS_DRAWS + s.visit.miss_draws)
    s.visit.miss_draws += 1
    at = 1 + np.int64(drawn % np.uint64(n))
    chosen = free[at]
    for i in range(at, n):
        free[i] = free[i + 1]
    free[0] = n - 1
    return chosen


@inner
def _rank_free(s: State, miss: Any, t: int, layer: int, most: int) -> None:
    """Of the residents not in U the `most` with the highest router logits into State.marked, ties by the lower id; in
    front how many."""
    free, n, logits = s.marked, 0, miss.logits[t, layer]
    for j in range(s.run.n_experts):
        rank = rank_of(logits, j)
        if (n < most or rank > free[n]) and may_stand_in(s, layer * s.run.n_experts, j):
            n += n < most
            insert(free, rank, 1, n)
    free[0] = n


@inner
def _best_ranked(s: State, miss: Any, t: int, layer: int, done: int, left: int) -> int:
    """The resident not in U with the highest router logit (ties: the lower id); -1 if there is none. As many as are
    left to be asked about are ranked for the first stand-in of a token, and taken in that order."""
    if done == 0:
        _rank_free(s, miss, t, layer, left)
    return expert_of(s.marked[done + 1]) if done < s.marked[0] else -1


@inner
def _select(s: State, miss: Any, t: int, layer: int, i: int, done: int, left: int) -> int:
    """The stand-in for expert i of this token: an id, -1 nobody, -2 leave it out (the drop control). done: slots that
    somebody stands in for; left: those to be asked about, this one among them."""
    selector = int(miss.params[SELECTOR])
    if selector == SELECT_NOBODY:
        return -1
    if selector == SELECT_LIST:
        return _buddy(s, miss, t, layer, i)
    if miss.params[MATCHED] != 0.0 and _buddy(s, miss, t, layer, i) < 0:
        return -1
    if selector == SELECT_RANDOM:
        return _any(s, layer, done)
    return _best_ranked(s, miss, t, layer, done, left) if selector == SELECT_NEXT else -2


@inner
def _cheaper(s: State, miss: Any, g: int) -> int:
    """Fiddler: the CPU where it is faster than transfer and GPU, once per expert and visit; with `backlog` each side
    also waits for what this visit has already given it."""
    if s.expert[g].asked & COST_CPU:
        return ANSWER_CPU
    if s.expert[g].asked & COST_FETCH:
        return ANSWER_FETCH
    tokens, busy = s.expert[g].tokens, 1 if s.link.n_flight > 0 else 0
    cpu_ns, gpu_ns = miss.cpu_ns[busy, tokens], miss.transfer_ns[0] + miss.expert_ns[tokens]
    if miss.params[BACKLOG] != 0.0:
        cpu_ns += s.visit.host_ns
        gpu_ns += s.visit.link_ns
    if cpu_ns < gpu_ns:
        s.visit.host_ns += miss.cpu_ns[busy, tokens]
        s.expert[g].asked |= COST_CPU
        return ANSWER_CPU
    s.visit.link_ns += miss.transfer_ns[0]
    s.expert[g].asked |= COST_FETCH
    return ANSWER_FETCH


@inner
def _fall_back(s: State, miss: Any, g: int, gate: int) -> int:
    """The answer for a slot that nobody stands in for; a shut gate or rho makes `drop` a fetch."""
    fallback = int(miss.params[FALLBACK])
    if fallback == FALL_CHEAPER:
        return _cheaper(s, miss, g)
    if fallback == FALL_CPU:
        return ANSWER_CPU
    return ANSWER_DROP if fallback == FALL_DROP and gate == NOBODY else ANSWER_FETCH


@inner
def _turns(s: State, miss: Any, ids: Any, weights: Any, base: int) -> int:
    """How many slots are asked about, and in what order: descending router weight, ties by slot, or ascending. The
    token's set goes into U."""
    n, lowest_first = 0, miss.params[LOWEST_FIRST] != 0.0
    s.run.token += 1
    for k in range(len(ids)):
        if ids[k] < 0:
            continue
        s.expert[base + ids[k]].used_by = s.run.token
        if not asked(s, miss, base + ids[k]):
            continue
        place, n = n, n + 1
        while place > 0 and _before(weights, k, s.reply[place - 1].turn, lowest_first):
            s.reply[place].turn = s.reply[place - 1].turn
            place -= 1
        s.reply[place].turn = k
    return n


@inlined
def _before(weights: Any, k: int, other: int, lowest_first: bool) -> bool:
    return weights[k] < weights[other] if lowest_first else weights[k] > weights[other]


@inner
def substitute(s: State, miss: Any, ids: Any, weights: Any, t: int, layer: int) -> None:
    """Gates, then Algorithm 1 over the token's missing slots, at most rho of them; U starts as the token's set."""
    base, done, gate = layer * s.run.n_experts, 0, _gate(s, miss, ids, weights, t, layer)
    turns = _turns(s, miss, ids, weights, base)
    for turn in range(turns):
        k = s.reply[turn].turn
        s.reply[k].other, s.reply[k].gate = -1, OPEN
        why = gate if gate > OPEN else (RHO if done >= miss.params[RHO_MAX] else OPEN)
        chosen = _select(s, miss, t, layer, ids[k], done, turns - turn) if why == OPEN else -1
        if chosen == -1:
            s.reply[k].gate = why if why > OPEN else NOBODY
            s.reply[k].answer = _fall_back(s, miss, base + ids[k], s.reply[k].gate)
            continue
        done += 1
        s.reply[k].answer = ANSWER_SUBSTITUTE if chosen >= 0 else ANSWER_DROP
        if chosen >= 0:
            s.reply[k].other = chosen
            s.expert[base + chosen].used_by = s.run.token
