"""Who is where: the life of an expert, and the slots.

Every change of an expert's state goes through `move`, which knows the table of legal ones (state.LEGAL).
"""

from typing import Any

from sim.core import log as lg
from sim.core import queues
from sim.core.eviction import newer_than, victim
from sim.core.jit import apart, choice, inlined, inner, whole
from sim.core.plan import NOT_BY_TOUCH, OWN_LISTS, TOLD_OF_LANDINGS, TOLD_OF_USES
from sim.core.rings import end_of, join, leave, to_the_new_end
from sim.core.state import (
    ABSENT,
    COMMITTED,
    DEMANDED,
    QUEUED,
    RESIDENT,
    IllegalTransition,
    State,
    may_become,
)
from sim.core.worth import LEAST_STALE, begin_decay, count_use, note_landing

DEMAND, PREFETCH, BACKGROUND = range(3)  # plan.CAUSES


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
def move(s: State, g: int, to: Any) -> None:
    """Raises IllegalTransition when the table does not allow it."""
    was = s.expert[g].state
    if not may_become(was, to):
        _refuse(was, to)
    s.expert[g].state = to


@inlined
def scope_of(s: State, g: int) -> int:
    """The one pool, or the expert's layer."""
    return s.expert[g].scope


@inlined
def _touch(s: State, g: int) -> None:
    s.expert[g].stamp = s.run.stamps
    s.run.stamps += 1


@inlined
def _stand_in_order(s: State, g: int) -> None:
    """Expert g has landed: the newest of its scope, in a ring of touches or landings or in a list of the policy's."""
    if s.run.eviction_marks & TOLD_OF_LANDINGS:
        _tell_of_landing(s, g)
    else:
        join(s, g, end_of(s, scope_of(s, g), 0))


@apart
def _tell_of_landing(s: State, g: int) -> None:
    if s.run.eviction_marks & OWN_LISTS:
        queues.entered(s, g)
    else:
        note_landing(s, g)
        join(s, g, newer_than(s, g) if s.run.eviction == LEAST_STALE else end_of(s, scope_of(s, g), 0))


@apart
def tell_of_use(s: State, g: int) -> None:
    """Expert g was used, for a policy that wants to know."""
    if s.run.eviction_marks & OWN_LISTS:
        queues.used(s, g)
    else:
        count_use(s, g)


@whole
def place(s: State, residents: Any) -> None:
    """First residents: they land one after another before time 0, in free slots."""
    begin_decay(s)
    for g in residents:
        scope = scope_of(s, g)
        slot = s.scope[scope].base + s.scope[scope].used
        s.scope[scope].used += 1
        s.slot[slot] = g
        s.expert[g].slot = slot
        s.expert[g].state = RESIDENT
        s.expert[g].landed = s.run.stamps
        _touch(s, g)
        if s.run.eviction_marks & OWN_LISTS:
            queues.expected(s, g)
        _stand_in_order(s, g)


@inlined
def _evict(s: State, g: int) -> None:
    if s.expert[g].work > 0:
        raise RuntimeError("a held expert was chosen as victim")
    move(s, g, ABSENT)
    s.count.evictions += 1
    if s.expert[g].fresh == 1:
        s.count.prefetch_wasted += 1


@inlined
def claim(s: State, log: Any, g: int, spare_from: int, hooks: Any, rules: Any) -> bool:
    """A slot for expert g at its commit: a free one of its scope, else the victim's; False where there is neither.

    On success g is COMMITTED and the victim is gone. Raises IllegalTransition if g was not queued.
    """
    if (rules is None or hooks is not None) and s.run.eviction_marks & OWN_LISTS:
        return _claim_with_lists(s, log, g, spare_from, rules)
    scope = scope_of(s, g)
    gone = -1
    if s.scope[scope].used < s.scope[scope].capacity:
        slot = s.scope[scope].base + s.scope[scope].used
        s.scope[scope].used += 1
    else:
        gone = victim(s, scope, spare_from, g, hooks, rules)
        if gone < 0:
            return False
        leave(s, gone)
        _evict(s, gone)
        slot = s.expert[gone].slot
    _commit(s, log, rules, g, gone, slot)
    return True


@apart
def _claim_with_lists(s: State, log: Any, g: int, spare_from: int, rules: Any) -> bool:
    """The same where the eviction keeps lists of its own, which the victim left when it was chosen."""
    scope, gone = scope_of(s, g), -1
    if s.scope[scope].used < s.scope[scope].capacity:
        slot = s.scope[scope].base + s.scope[scope].used
        s.scope[scope].used += 1
    else:
        gone = queues.victim(s, rules, scope, spare_from, g)
        if gone < 0:
            return False
        _evict(s, gone)
        slot = s.expert[gone].slot
    queues.expected(s, g)
    _commit(s, log, rules, g, gone, slot)
    return True


@inlined
def _commit(s: State, log: Any, rules: Any, g: int, gone: int, slot: int) -> None:
    """Expert g is on its way to a slot, which `gone` has left (-1: it was free)."""
    move(s, g, COMMITTED)
    s.slot[slot] = g
    s.expert[g].slot = slot
    s.expert[g].fresh = 0
    s.scope[scope_of(s, g)].arriving += 1
    lg.committed(s, log, g, gone, -1 if rules is None else rules.run.runs)


@inlined
def _count_landing(s: State, g: int) -> None:
    """By cause; a prefetch that nobody has wanted yet is fresh."""
    if s.expert[g].origin == DEMAND:
        s.count.landed_demand += 1
    elif s.expert[g].origin == PREFETCH:
        s.count.landed_prefetch += 1
        late = s.expert[g].fresh == 2  # wanted on its way
        s.count.prefetch_late += late
        s.expert[g].fresh = 0 if late else 1
    else:
        s.count.landed_background += s.expert[g].origin == BACKGROUND


@inlined
def arrived(s: State, g: int) -> None:
    """Expert g, or its copy, is there: waited for no longer, and ready if this visit has work for it."""
    if s.expert[g].waited:
        s.expert[g].waited = 0
        s.visit.n_waited -= 1
    if s.expert[g].work > 0:
        s.ready[s.visit.n_ready] = g
        s.visit.n_ready += 1


@inlined
def land_in_slot(s: State, log: Any, g: int) -> None:
    """The transfer of expert g has landed: it is resident, touched, and ready if this visit wants it."""
    move(s, g, RESIDENT)
    s.scope[scope_of(s, g)].arriving -= 1
    s.expert[g].landed = s.run.stamps
    _touch(s, g)
    _stand_in_order(s, g)
    if g >= s.run.n_full:
        s.count.landed_low += 1
    _count_landing(s, g)
    arrived(s, g)
    lg.ended(s, log, g, 0)


@inner
def touch_as_listed(s: State) -> None:
    """A visit's residents once more, in the order in which the router wants them and not in which they ran."""
    for i in range(s.visit.n_wanted):
        if s.expert[s.wanted[i]].state == RESIDENT:
            _touch(s, s.wanted[i])
            to_the_new_end(s, s.wanted[i])


@inlined
def executed(s: State, g: int, marks: int) -> None:
    """Expert g has run on the GPU: one touch, one use (unless it only stood in and that is not to count), and it is no
    longer held. marks: run.eviction_marks."""
    # the first follows from the last, and is read from a line that is there anyway: 2 % of lru + fetch
    if s.expert[g].stand_in == 0 or s.run.no_touch == 0 or s.expert[g].stand_in < s.expert[g].work:
        _touch(s, g)
        s.expert[g].uses += 1
        if marks & NOT_BY_TOUCH == 0:
            to_the_new_end(s, g)
        if marks & TOLD_OF_USES:
            tell_of_use(s, g)
    release(s, g)


@inlined
def release(s: State, g: int) -> None:
    """Its work is done: no longer held."""
    s.expert[g].work = 0
    s.expert[g].stand_in = 0
