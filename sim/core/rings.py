"""Lists of experts as rings: the residents of a scope in an order, and the lists of evictions that keep several.

A scope has LISTS rings, from its old end to its new end; all but core.queues use the first. An expert stands in one at
most, so its neighbours are in State.older and State.newer; an entry of each ring begins and ends it.
"""

from sim.core.jit import inlined
from sim.core.state import State


@inlined
def end_of(s: State, scope: int, which: int) -> int:
    """The entry before the oldest and behind the newest of a ring."""
    return len(s.expert) + which * len(s.scope) + scope


@inlined
def join(s: State, g: int, end: int) -> None:
    """Expert g becomes the newest of the ring."""
    newest = s.older[end]
    s.newer[newest] = s.older[end] = g
    s.older[g], s.newer[g] = newest, end


@inlined
def leave(s: State, g: int) -> None:
    """Expert g stands in no ring."""
    older, newer = s.older[g], s.newer[g]
    s.newer[older], s.older[newer] = newer, older


@inlined
def to_the_new_end(s: State, g: int) -> None:
    """Expert g, which stands in the first ring of its scope, becomes its newest."""
    leave(s, g)
    join(s, g, end_of(s, s.expert[g].scope, 0))
