"""window-swap (DALI, arXiv 2602.03495): a fixed set per layer, a few of which change places every `window` visits."""

from typing import Any

from sim.core.jit import apart
from sim.core.link import LAST_KEY, join
from sim.core.rules import BACKGROUND
from sim.core.state import ABSENT, NEVER, QUEUED, RESIDENT, State
from sim.core.worth import visits_of_layer, worth, worth_at_once

NOBODY = -1


@apart
def swap(s: State, log: Any, visit: int, layer: int) -> None:
    """In every `window`-th visit of a layer the best outsiders are sent for, each while it is worth more than the
    resident that it would replace: the best for the worst, the next for the next, behind slots that are free."""
    first = layer * s.run.n_experts
    if visits_of_layer(s, first) % int(s.params[0]) != 0:
        return
    free, paired = _free(s, layer, first), s.marked
    paired[first : first + s.run.n_experts] = 0
    for i in range(int(s.params[1])):
        best, least = _best_outside(s, first), 0.0
        if i >= free:
            worst = _worst_inside(s, first, paired)
            if worst == NOBODY:
                return
            paired[worst] = 1
            least = worth(s, worst)
        if best == NOBODY or worth(s, best) <= least:
            return
        join(s, log, best, visit, BACKGROUND, LAST_KEY, -1)


@apart
def _free(s: State, layer: int, first: int) -> int:
    """Slots that nobody has and nobody is sent for."""
    sent = 0
    for g in range(first, first + s.run.n_experts):
        sent += s.expert[g].state == QUEUED and s.expert[g].origin == BACKGROUND
    return s.scope[layer].capacity - s.scope[layer].used - sent


@apart
def _best_outside(s: State, first: int) -> int:
    best, most = NOBODY, 0.0
    for g in range(first, first + s.run.n_experts):
        mine = worth_at_once(s, g)
        if s.expert[g].state == ABSENT and (best < 0 or mine > most):
            best, most = g, mine
    return best


@apart
def _worst_inside(s: State, first: int, paired: Any) -> int:
    worst, least, oldest = NOBODY, 0.0, NEVER
    for g in range(first, first + s.run.n_experts):
        if s.expert[g].state != RESIDENT or paired[g] == 1:
            continue
        mine, stamp = worth_at_once(s, g), s.expert[g].stamp
        if worst < 0 or mine < least or (mine == least and stamp < oldest):
            worst, least, oldest = g, mine, stamp
    return worst
