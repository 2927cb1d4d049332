"""Which resident makes room: the victim among the evictable residents of a scope.

lru: the oldest touch or landing. fifo: the earliest landing. lfu: the fewest executions over the run. belady: the
expert whose next wanted visit lies furthest ahead (Belady 1966; it reads the future), and min: the same, and a newcomer
that is wanted later than everybody is not kept. random: by hash64. What a score decides stands in core.worth, what
lists decide in core.queues. Ties: the older touch or landing, or (--set ties=id) the larger id.
"""

import math
from typing import Any

import numpy as np

from sim.core.candidates import evictable, used_slots
from sim.core.hashing import hash64
from sim.core.hooks import CANDIDATES, ask_victim
from sim.core.jit import apart, inlined, inner
from sim.core.plan import BY_ID, BY_SCORE, KEEPS_OUT, TOLD_OF_USES
from sim.core.state import NEVER, State
from sim.core.worth import BELADY, FIFO, LFRU, LFU, LRU, RANDOM, USER, WINDOW_SWAP, clock_of, worth

DEMAND = 0  # plan.CAUSES
DEMANDS = -1  # in the place of a list to spare: a demand, which spares nobody (candidates.ADMITS: an admission)


@inlined
def _oldest(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """The first evictable expert in the order of touches (lru) or landings (fifo), or -1."""
    end = len(s.expert) + scope
    g = s.newer[end]
    while g != end and not evictable(s, rules, g, spare_from):
        g = s.newer[g]
    return np.int64(g) if g != end else -1  # type: ignore[return-value]


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
def _least_score(s: State, rules: Any, scope: int, spare_from: int) -> int:
    best, best_key, best_tied = -1, math.inf, NEVER
    by_id = s.run.eviction_marks & BY_ID != 0
    for i in used_slots(s, scope):
        g = s.slot[i]
        key, tied = worth(s, g), _tied(s, g, by_id)
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


@apart
def _random(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """Candidate number hash64(seed, visits routed, draws since) mod n, candidates in ascending id."""
    candidates = s.marked
    n = 0
    for i in used_slots(s, scope):
        candidates[n] = s.slot[i]
        n += evictable(s, rules, s.slot[i], spare_from)
    if n == 0:
        return -1
    drawn = hash64(s.run.seed, s.run.routed, s.visit.draws)
    s.visit.draws += 1
    return _smallest(candidates, n, np.int64(drawn % np.uint64(n)))


@inner
def _by_user(s: State, rules: Any, hooks: Any, scope: int, spare_from: Any, g: Any) -> int:
    """The user's own function chooses, among the evictable in the order of their slots."""
    n = np.int64(0)
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
    kind = s.run.eviction
    marks = s.run.eviction_marks
    if kind in (LRU, FIFO) and marks & BY_SCORE == 0:
        return _oldest(s, rules, scope, spare_from)
    if kind in (LFU, BELADY):
        if marks & (BY_ID | TOLD_OF_USES):
            return _least_as_counted(s, rules, scope, spare_from)
        return _least(s, rules, scope, spare_from, False, False)
    if hooks is not None and kind == USER:
        return _by_user(s, rules, hooks, scope, np.int64(spare_from), np.int64(g))
    if rules is not None and marks & KEEPS_OUT:
        return _worth_it(s, g, _least_score(s, rules, scope, spare_from), spare_from)
    if kind == LFRU:
        return _least_uses_by_age(s, rules, scope, spare_from)
    return _random(s, rules, scope, spare_from) if kind == RANDOM else _least_score(s, rules, scope, spare_from)
