"""Who is not kept: a newcomer that is worth less than every resident that could make room (Belady with bypass).

Decided at the routed instant for all that a visit fetches, together; what is not kept is copied into a stage instead.
"""

from typing import Any

from sim.core.candidates import used_slots
from sim.core.jit import apart
from sim.core.plan import ANSWERS
from sim.core.rules import stage_of
from sim.core.state import MISS, NEVER, RESIDENT, State
from sim.core.worth import BELADY_W, DECAYED, KNOWN, count_use, worth, worth_at_once

NOBODY = -1
FETCH, STREAM = ANSWERS.index("fetch"), ANSWERS.index("stream")


@apart
def bypass(s: State, rules: Any, layer: int) -> None:
    """What this visit fetches, best first, takes free slots, then the places of the worst residents that the visit does
    not want, as long as they are worth more."""
    scope = s.expert[layer * s.run.n_experts].scope
    free = s.scope[scope].capacity - s.scope[scope].used
    goes = s.marked
    _clear(s, scope, goes)
    for _ in range(s.visit.n_wanted):
        g = _best(s, rules, goes)
        if g == NOBODY:
            return
        goes[g] = 1
        if free > 0:
            free -= 1
            continue
        gone = _worst(s, scope, goes)
        if gone != NOBODY and _outweighs(s, g, gone):
            goes[gone] = 1
        else:
            rules.expert[g].answer, rules.expert[g].at = STREAM, stage_of(s, g)
            _count(s, rules, g)


@apart
def _count(s: State, rules: Any, g: int) -> None:
    """What is not kept is used all the same: else nobody who was left out once would ever be worth more. (Behind
    cpu-admit a visit counts uses itself: core.admission.)"""
    counts = rules.admission.on == 0 and (rules.visit.bulk == 0 or rules.run.bulk_touch == 1)
    if counts and s.run.eviction in (DECAYED, BELADY_W):
        count_use(s, g)


@apart
def _clear(s: State, scope: int, marks: Any) -> None:
    for i in used_slots(s, scope):
        marks[s.slot[i]] = 0
    for i in range(s.visit.n_wanted):
        marks[s.wanted[i]] = 0


@apart
def _best(s: State, rules: Any, done: Any) -> int:
    """The one that is worth most and has not had its turn (ties: the first wanted), or NOBODY."""
    best, most = NOBODY, 0.0
    for i in range(s.visit.n_wanted):
        g = s.wanted[i]
        if s.expert[g].kind != MISS or rules.expert[g].answer != FETCH or done[g] == 1:
            continue
        mine = _of_newcomer(s, g)
        if best < 0 or mine > most:
            best, most = g, mine
    return best


@apart
def _of_newcomer(s: State, g: int) -> float:
    """Worth after this visit's use."""
    value = worth(s, g)
    counts = s.run.eviction == DECAYED or (s.run.eviction == BELADY_W and value < KNOWN / 2.0)
    return value + 1.0 if counts else value


@apart
def _worst(s: State, scope: int, gone: Any) -> int:
    """The resident of a scope that this visit does not want and that is worth least (ties: the older touch)."""
    worst, least, oldest = NOBODY, 0.0, NEVER
    for i in used_slots(s, scope):
        g = s.slot[i]
        if s.expert[g].state != RESIDENT or gone[g] == 1 or s.expert[g].seen == s.run.routed:
            continue
        mine, stamp = worth_at_once(s, g), s.expert[g].stamp
        if worst < 0 or mine < least or (mine == least and stamp < oldest):
            worst, least, oldest = g, mine, stamp
    return worst


@apart
def _outweighs(s: State, g: int, gone: int) -> bool:
    """Whether newcomer g is kept in the place of a resident."""
    if s.run.eviction == DECAYED:
        return _of_newcomer(s, g) - worth(s, gone) > s.params[1]
    return _of_newcomer(s, g) >= worth(s, gone)
