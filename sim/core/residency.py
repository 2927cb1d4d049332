"""Who is where: the life of an expert, and the slots.

Every change of an expert's state goes through `move`, which knows the table of legal ones (state.LEGAL).
"""

from typing import Any

from sim.core import log as lg
from sim.core import state as st
from sim.core.eviction import count_use, victim
from sim.core.jit import choice, inlined, inner
from sim.core.plan import NOT_BY_TOUCH, SCORES_USES
from sim.core.state import (
    ABSENT,
    ARRIVING,
    BASE,
    CAPACITY,
    COMMITTED,
    DEMANDED,
    EVICTIONS,
    FRESH,
    LANDED,
    LEGAL,
    NEWER,
    OLDER,
    ORIGIN,
    QUEUED,
    RESIDENT,
    SLOT,
    STAMP,
    STATE,
    USED,
    USES,
    WAITED,
    WORK,
    IllegalTransition,
)

PREFETCH = 1  # plan.CAUSES


@inner
def _refuse(was: int, to: int) -> None:
    """Compiled code raises constants only: one line for each transition that the table does not know."""
    if was == ABSENT:
        if to == ABSENT:
            raise IllegalTransition(0, 0)
        if to == COMMITTED:
            raise IllegalTransition(0, 3)
        raise IllegalTransition(0, 4)
    if was == QUEUED:
        if to == QUEUED:
            raise IllegalTransition(1, 1)
        raise IllegalTransition(1, 4)
    if was == DEMANDED:
        if to == ABSENT:
            raise IllegalTransition(2, 0)
        if to == QUEUED:
            raise IllegalTransition(2, 1)
        if to == DEMANDED:
            raise IllegalTransition(2, 2)
        raise IllegalTransition(2, 4)
    if was == COMMITTED:
        if to == ABSENT:
            raise IllegalTransition(3, 0)
        if to == QUEUED:
            raise IllegalTransition(3, 1)
        if to == DEMANDED:
            raise IllegalTransition(3, 2)
        raise IllegalTransition(3, 3)
    if to == QUEUED:
        raise IllegalTransition(4, 1)
    if to == DEMANDED:
        raise IllegalTransition(4, 2)
    if to == COMMITTED:
        raise IllegalTransition(4, 3)
    raise IllegalTransition(4, 4)


@choice
def move(s: Any, g: int, to: Any) -> None:
    """Raises IllegalTransition when the table does not allow it."""
    was = s.x[g, STATE]
    if not LEGAL[was, to]:
        _refuse(was, to)
    s.x[g, STATE] = to


@inlined
def scope_of(s: Any, g: int) -> int:
    """The one pool, or the expert's layer."""
    return s.x[g, st.SCOPE]


@inlined
def _touch(s: Any, g: int) -> None:
    s.x[g, STAMP] = s.c[st.STAMPS]
    s.c[st.STAMPS] += 1


@inlined
def _join_order(s: Any, g: int) -> None:
    """Expert g becomes the newest of its scope."""
    end = len(s.x) + scope_of(s, g)
    newest = s.work[OLDER, end]
    s.work[NEWER, newest] = s.work[OLDER, end] = g
    s.work[OLDER, g], s.work[NEWER, g] = newest, end


@inlined
def _leave_order(s: Any, g: int) -> None:
    older, newer = s.work[OLDER, g], s.work[NEWER, g]
    s.work[NEWER, older], s.work[OLDER, newer] = newer, older


@choice
def place(s: Any, residents: Any) -> None:
    """First residents: they land one after another before time 0, in free slots."""
    for g in residents:
        scope = scope_of(s, g)
        slot = s.scope[scope, BASE] + s.scope[scope, USED]
        s.scope[scope, USED] += 1
        s.slot[slot] = g
        s.x[g, SLOT] = slot
        s.x[g, STATE] = RESIDENT
        s.x[g, LANDED] = s.c[st.STAMPS]
        _touch(s, g)
        _join_order(s, g)


@inlined
def _evict(s: Any, g: int) -> None:
    if s.x[g, WORK] > 0:
        raise RuntimeError("a held expert was chosen as victim")
    move(s, g, ABSENT)
    _leave_order(s, g)
    s.c[EVICTIONS] += 1
    if s.x[g, FRESH] == 1:
        s.c[st.PREFETCH_WASTED] += 1


@inlined
def claim(s: Any, log: Any, g: int, spare_from: int, hooks: Any) -> bool:
    """A slot for expert g at its commit: a free one of its scope, else the victim's; False where there is neither.

    On success g is COMMITTED and the victim is gone. Raises IllegalTransition if g was not queued.
    """
    scope = scope_of(s, g)
    gone = -1
    if s.scope[scope, USED] < s.scope[scope, CAPACITY]:
        slot = s.scope[scope, BASE] + s.scope[scope, USED]
        s.scope[scope, USED] += 1
    else:
        gone = victim(s, scope, spare_from, g, hooks)
        if gone < 0:
            return False
        _evict(s, gone)
        slot = s.x[gone, SLOT]
    move(s, g, COMMITTED)
    s.slot[slot] = g
    s.x[g, SLOT] = slot
    s.x[g, FRESH] = 0
    s.scope[scope, ARRIVING] += 1
    lg.committed(s, log, g, gone)
    return True


@choice
def land(s: Any, log: Any) -> int:
    """The oldest committed transfer has landed: its expert is resident, touched, and ready if this visit wants it."""
    head = s.c[st.FLIGHT_HEAD]
    g = s.work[st.FLIGHT, head]
    s.c[st.FLIGHT_HEAD] = head + 1 if head + 1 < len(s.x) else 0
    s.c[st.FLIGHT_LEN] -= 1
    move(s, g, RESIDENT)
    s.scope[scope_of(s, g), ARRIVING] -= 1
    s.x[g, LANDED] = s.c[st.STAMPS]
    _touch(s, g)
    _join_order(s, g)
    s.c[st.LANDED_DEMAND + s.x[g, ORIGIN]] += 1
    s.c[st.LANDED_LOW] += g >= s.c[st.N_FULL]
    if s.x[g, ORIGIN] == PREFETCH:
        if s.x[g, FRESH] == 2:  # wanted on its way
            s.c[st.PREFETCH_LATE] += 1
            s.x[g, FRESH] = 0
        else:
            s.x[g, FRESH] = 1
    if s.x[g, WAITED]:
        s.x[g, WAITED] = 0
        s.c[st.N_WAITED] -= 1
    if s.x[g, WORK] > 0:
        s.work[st.READY, s.c[st.N_READY]] = g
        s.c[st.N_READY] += 1
    lg.ended(s, log, g, 0)
    return g


@inlined
def executed(s: Any, g: int) -> None:
    """Expert g has run on the GPU: one touch, one use (unless it only stood in and that is not to count), and it is no
    longer held."""
    if s.c[st.NO_TOUCH] == 0 or s.x[g, st.STAND_IN] < s.x[g, WORK]:
        _touch(s, g)
        s.x[g, USES] += 1
        if s.c[st.EVICTION_MARKS] & NOT_BY_TOUCH == 0:
            _leave_order(s, g)
            _join_order(s, g)
        if s.c[st.EVICTION_MARKS] & SCORES_USES:
            count_use(s, g)
    s.x[g, WORK] = 0
    s.x[g, st.STAND_IN] = 0
