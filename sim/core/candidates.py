"""Who may go: the evictable residents of a scope, for a demand, a prefetch or an admission."""

from typing import Any

from sim.core.jit import apart, inlined, inner
from sim.core.state import RESIDENT, State
from sim.core.worth import visits_of_layer, worth

DEMANDS, ADMITS = -1, -2  # in the place of a list to spare


@inlined
def used_slots(s: State, scope: int) -> Any:
    """The used slots of a scope."""
    base = s.scope[scope].base
    return range(base, base + s.scope[scope].used)


@inlined
def ids_of(s: State, scope: int) -> Any:
    """The ids of all experts of a scope, resident or not."""
    n = s.run.n_experts * (s.run.n_layers if s.run.pooled == 1 else 1)
    return range(scope * n, (scope + 1) * n)


@inlined
def at_rest(s: State, g: int) -> bool:
    """Resident, and not held; without a branch."""
    return (s.expert[g].state == RESIDENT) & (s.expert[g].work == 0)


@inlined
def evictable(s: State, rules: Any, g: int, spare_from: int) -> bool:
    """Resident, not held, and not on the list whose prefetch asks (DEMANDS: a demand, which spares nobody)."""
    if not at_rest(s, g):
        return False
    if rules is not None and spare_from == ADMITS:
        return _gives_way(s, rules, g)
    return spare_from < 0 or not _listed(s, g, spare_from)


@apart
def _gives_way(s: State, rules: Any, g: int) -> bool:
    """Of an admission: not run in the last `spare` visits of its layer, and worth `margin` times less."""
    may, ran = rules.admission, rules.expert[g].ran
    if ran > 0 and visits_of_layer(s, g) - ran < may.spare:
        return False
    return may.margin == 0.0 or worth(s, g) * may.margin < worth(s, may.newcomer)


@inner
def _listed(s: State, g: int, which: int) -> bool:
    merged, last = s.merged[which], s.expert[g].listed
    if last <= merged[len(merged) - 1]:
        return last == merged[len(merged) - 1]
    for i in range(1, merged[0] + 1):
        if merged[i] == g:
            return True
    return False
