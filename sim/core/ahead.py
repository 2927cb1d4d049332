"""2b and 2g of a visit: queued prefetches that turned out wrong are withdrawn, ranked lists for coming layers join."""

from typing import Any

from sim.core.jit import inlined, inner
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
def _merge(s: State, route: Any, ahead: Any, d: int, step: int, layer: int, which: int) -> None:
    """Several tokens' lists for one target: rank by rank, then token by token, duplicates once."""
    lists = ahead.lists[min(d, ahead.lists.shape[0] - 1)]
    base, n, number = layer * s.run.n_experts, 0, s.run.lists + 1
    ranks, merged = s.order, s.merged[which]
    s.run.lists = number
    first, last = route.step_offset[step], route.step_offset[step + 1]
    for r in range(lists.shape[2]):
        for i in range(first, last):
            row = ahead.row[d, i]
            e = lists[row, layer, r] if row >= 0 else -1
            if e >= 0 and s.expert[base + e].listed != number:
                s.expert[base + e].listed = number
                ranks[n] = r
                n += 1
                merged[n] = base + e
    merged[0], merged[len(merged) - 1] = n, number


@inner
def _in_time(s: State, ahead: Any, rules: Any, d: int, layer: int) -> bool:
    """Whether one more can land before the target is routed, behind all that is queued (but for admissions, which it
    passes) and under way, if the plan asks for that."""
    if ahead.within_ns.shape[0] == 0:
        return True
    before = s.link.demand_tail - s.link.demand_head + s.link.n_queued + s.link.n_flight
    if rules is not None:
        before += rules.run.n_streams
    return (before + 1) * ahead.run.each_ns <= ahead.within_ns[d, layer]


@inlined
def _queue(s: State, log: Any, ahead: Any, rules: Any, d: int, visit: int, layer: int, which: int, left: int) -> int:
    """Who is listed and nowhere joins the queue, until nothing is left of the budget. Returns what is."""
    merged, order = s.merged[which], s.run.order
    for i in range(merged[0]):
        if left == 0:
            break
        g = merged[i + 1]
        there = s.expert[g].state != ABSENT or (rules is not None and anywhere(s, g))
        if not there and _in_time(s, ahead, rules, d, layer):
            key = visit + d + 1 if order == 1 else (ahead.rank_key[d, s.order[i]] if order == 2 else 0)
            join(s, log, g, visit, 1, key, which)
            left -= 1
    return left


@inner
def predict(s: State, log: Any, route: Any, ahead: Any, rules: Any, step: int, layer: int) -> None:
    """2g: the ranked lists for coming layers join the prefetch queue, nearest layer first, within the budget."""
    layers, distances = s.run.n_layers, ahead.row.shape[0]
    left = s.run.budget if s.run.budget >= 0 else NEVER
    visit, to_step, to_layer = step * layers + layer, step, layer
    s.run.turn = s.run.turn + 1 if s.run.turn < distances else 0
    for d in range(distances):
        to_layer += 1
        if to_layer == layers:
            to_step, to_layer = to_step + 1, 0
        if to_step == len(route.step_prefill) or left == 0:
            return
        if d >= ahead.run.nearest:
            which = s.run.turn * distances + d
            _merge(s, route, ahead, d, to_step, to_layer, which)
            left = _queue(s, log, ahead, rules, d, visit, layer, which, left)
