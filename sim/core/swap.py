"""window-swap (DALI, arXiv 2602.03495): a fixed set per layer, a few of which change places every `window` visits."""

import math
from typing import Any

from sim.core.candidates import used_slots
from sim.core.jit import apart
from sim.core.link import LAST_KEY, join
from sim.core.rules import BACKGROUND
from sim.core.state import ABSENT, NEVER, RESIDENT, State
from sim.core.worth import visits_of_layer

NOBODY = -1


@apart
def swap(s: State, log: Any, visit: int, layer: int) -> None:
    """In every `window`-th visit of a layer the best outsiders are sent for, each while it is worth more than the
    resident that it would replace: the best for the worst, the next for the next, behind slots that are free."""
    first = layer * s.run.n_experts
    if visits_of_layer(s, first) % int(s.params[0]) != 0:
        return
    free, paired = _free(s, layer), s.marked
    paired[first : first + s.run.n_experts] = 0
    for i in range(int(s.params[1])):
        best, least = _best_outside(s, first), 0.0
        if i >= free:
            worst = _worst_inside(s, layer, paired)
            if worst == NOBODY:
                return
            paired[worst] = 1
            least = s.expert[worst].score
        if best == NOBODY or s.expert[best].score <= least:
            return
        join(s, log, best, visit, BACKGROUND, LAST_KEY, -1)


@apart
def _free(s: State, layer: int) -> int:
    """Slots that nobody has and nobody is sent for."""
    sent = 0
    for i in range(s.link.n_queued):
        g = s.queue[i].expert
        sent += (s.expert[g].layer == layer) & (s.expert[g].origin == BACKGROUND)
    return s.scope[layer].capacity - s.scope[layer].used - sent


@apart
def _best_outside(s: State, first: int) -> int:
    best, most = NOBODY, 0.0
    for g in range(first, first + s.run.n_experts):
        if s.expert[g].state == ABSENT and (best < 0 or s.expert[g].score > most):
            best, most = g, s.expert[g].score
    return best


@apart
def _worst_inside(s: State, layer: int, paired: Any) -> int:
    """The resident with no pair yet that is worth least (ties: the older touch), or NOBODY."""
    worst, least, oldest = NOBODY, math.inf, NEVER
    for i in used_slots(s, layer):
        g = s.slot[i]
        mine = s.expert[g].score
        if mine > least or s.expert[g].state != RESIDENT or paired[g] == 1:
            continue
        if mine < least or s.expert[g].stamp < oldest:
            worst, least, oldest = g, mine, s.expert[g].stamp
    return worst
