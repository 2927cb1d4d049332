"""Which of a visit's misses go over the link and which the host computes, decided for all of them together.

share: the number that ends earliest, link and host side by side (rates of both measured together, as FreeToken and
Fiddler, arXiv 2402.07033, weigh them). makespan: the expert of the most tokens by the link, the one of the fewest by
the host, whichever would end first (HybriMoE, arXiv 2504.05897). table: stated, as published engines do.
"""

from typing import Any

from sim.core.jit import apart
from sim.core.plan import SPLITS
from sim.core.state import HIT, MISS, State

SHARE, MAKESPAN, TABLE = range(len(SPLITS))
BUSY, FOLLOWING = 1, 1  # rows of cpu_expert_ns and transfer_ns: the link is at work, a transfer follows another


@apart
def over_the_link(s: State, rules: Any) -> int:
    """Fill Rules.order with the visit's misses, most tokens first; the first so many, returned, go over the link.

    (By makespan the link takes from the front and the host from the back, so that is a front part too.)"""
    m = _sorted_misses(s, rules)
    if rules.split[rules.visit.bulk].by == TABLE:
        return min(m, rules.table[min(m, len(rules.table) - 1)])
    if rules.split[rules.visit.bulk].by == SHARE:
        return _by_share(s, rules, m)
    return _by_makespan(s, rules, m)


@apart
def _sorted_misses(s: State, rules: Any) -> int:
    """By tokens, descending, ties by first appearance. Returns how many."""
    m, order = 0, rules.order
    for i in range(s.visit.n_wanted):
        g = s.wanted[i]
        if s.expert[g].kind != MISS:
            continue
        j = m
        while j > 0 and s.expert[order[j - 1]].tokens < s.expert[g].tokens:
            order[j] = order[j - 1]
            j -= 1
        order[j] = g
        m += 1
    return m


@apart
def _by_share(s: State, rules: Any, m: int) -> int:
    host = rules.split[rules.visit.bulk].cpu_visit_ns
    for i in range(m):
        host += rules.cpu_ns[BUSY, s.expert[rules.order[i]].tokens]
    best, least = -1, 0
    for q in range(m + 1):
        cost = max(q * rules.transfer_ns[FOLLOWING], 0 if q == m else host)
        if q >= min(rules.split[rules.visit.bulk].least, m) and (best < 0 or cost < least):
            best, least = q, cost
        if q < m:
            host -= rules.cpu_ns[BUSY, s.expert[rules.order[q]].tokens]
    return best


@apart
def _by_makespan(s: State, rules: Any, m: int) -> int:
    gpu, link, host = 0, 0, rules.split[rules.visit.bulk].cpu_visit_ns
    for i in range(s.visit.n_wanted):
        if s.expert[s.wanted[i]].kind == HIT:
            gpu += rules.expert_ns[s.expert[s.wanted[i]].tokens]
    first, last = 0, m - 1
    while first <= last:
        most, fewest = s.expert[rules.order[first]].tokens, s.expert[rules.order[last]].tokens
        by_link = max(link + rules.transfer_ns[FOLLOWING], gpu) + rules.expert_ns[most]
        by_host = host + rules.cpu_ns[BUSY, fewest]
        if by_host <= by_link:
            host = by_host
            last -= 1
        else:
            link, gpu = link + rules.transfer_ns[FOLLOWING], by_link
            first += 1
    return first
