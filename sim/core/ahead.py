"""2b and 2g of a visit: queued prefetches that turned out wrong are withdrawn, ranked lists for coming layers join."""

from typing import Any

from sim.core.jit import inner
from sim.core.link import join, withdraw
from sim.core.rules import anywhere
from sim.core.state import (
    ABSENT,
    NEVER,
    State,
)


@inner
def withdraw_unwanted(s: State, log: Any, visit: int, layer: int) -> None:
    """2b: prefetches queued for this layer whose expert this visit does not want."""
    unwanted, n = s.marked, 0
    for i in range(s.link.n_queued):
        g = s.queue[i].expert
        if s.expert[g].layer == layer and s.expert[g].seen != visit + 1 and s.expert[g].origin == 1:
            unwanted[n] = g
            n += 1
    for i in range(n):
        withdraw(s, log, unwanted[i])


@inner
def _merge(s: State, route: Any, ahead: Any, d: int, step: int, layer: int, which: int) -> int:
    """Several tokens' lists for one target: rank by rank, then token by token, duplicates once. Returns the length."""
    lists = ahead.lists[min(d, ahead.lists.shape[0] - 1)]
    base, n = layer * s.run.n_experts, 0
    listed, ranks, merged = s.marked, s.order, s.merged[which]
    listed[: s.run.n_experts] = 0
    for r in range(lists.shape[2]):
        for i in range(route.step_offset[step], route.step_offset[step + 1]):
            row = ahead.row[d, i]
            e = lists[row, layer, r] if row >= 0 else -1
            if e >= 0 and listed[e] == 0:
                listed[e] = 1
                ranks[n] = r
                n += 1
                merged[n] = base + e
    merged[0] = n
    return n


@inner
def _in_time(s: State, ahead: Any, rules: Any, d: int, layer: int) -> bool:
    """Whether one more can land before the target is routed, behind all that is queued (but for admissions, which it
    passes) and under way, if the plan asks for that."""
    if ahead.within_ns.shape[0] == 0:
        return True
    before = s.link.demand_tail - s.link.demand_head + s.link.n_queued + s.link.n_flight
    if rules is not None:
        before += rules.run.n_streams
    return (before + 1) * ahead.each_ns <= ahead.within_ns[d, layer]


@inner
def predict(s: State, log: Any, route: Any, ahead: Any, rules: Any, visit: int) -> None:
    """2g: the ranked lists for coming layers join the prefetch queue, nearest layer first, within the budget."""
    layers, distances = s.run.n_layers, ahead.row.shape[0]
    left = s.run.budget if s.run.budget >= 0 else NEVER
    for d in range(ahead.nearest, distances):
        target = visit + d + 1
        if target >= layers * len(route.step_prefill):
            return
        which = (visit % (distances + 1)) * distances + d
        n = _merge(s, route, ahead, d, target // layers, target % layers, which)
        for i in range(n):
            g = s.merged[which, i + 1]
            there = s.expert[g].state != ABSENT or (rules is not None and anywhere(s, g))
            if left > 0 and not there and _in_time(s, ahead, rules, d, visit % layers):
                order = s.run.order
                key = target if order == 1 else (ahead.rank_key[d, s.order[i]] if order == 2 else 0)
                join(s, log, g, visit, 1, key, which)
                left -= 1
