"""Evictions that keep lists of their own: sieve, clock, s3-fifo, arc, w-tinylfu.

Lists are rings (core.rings), ordered from the old end to the new one: where newcomers enter, and who goes. Ghosts are
experts that have gone and are remembered: ids in a list like residents. A *re-use* is any use but the first of an
expert that the visit being served demanded: that one is part of its coming.

sieve (Zhang et al. 2024): the hand walks to the new end, clears bits, and the first clear one goes. clock: the same
from the old end, whose set ones move to the new end. s3-fifo (Yang et al. 2023): newcomers in a small list; used twice
there: to main, else out and remembered; main is a clock that counts to 3. arc (Megiddo and Modha 2003, Fig. 4): T1, T2,
their ghosts B1, B2 and the target of T1. w-tinylfu (Einziger et al. 2017): a window, a segmented LRU behind it,
admission by frequencies that halve (of each expert: there are too few of them for a sketch).
"""

import math
from typing import Any

from sim.core.candidates import evictable, used_slots
from sim.core.jit import apart
from sim.core.rings import end_of, join, leave
from sim.core.state import RESIDENT, State
from sim.core.worth import ARC, CLOCK, S3_FIFO, SIEVE, W_TINYLFU, note_landing

NOBODY = -1
DEMAND = 0  # plan.CAUSES
SMALL, MAIN, GHOSTS = range(3)  # s3-fifo
T1, T2, B1, B2 = range(4)  # arc
WINDOW, PROBATION, PROTECTED = range(3)  # w-tinylfu
MOST_COUNTED, OFTEN = 3, 2  # s3-fifo's counts, and what takes an expert to main
HIGHEST, PERIOD = 15, 10  # w-tinylfu's frequencies; they halve every PERIOD x slots uses


@apart
def _move(s: State, g: int, which: int) -> None:
    """Expert g, which stands in a list, moves to the new end of another, or of the same."""
    here = s.lists[s.expert[g].scope]
    leave(s, g)
    here.size[s.kept[g].list] -= 1
    here.size[which] += 1
    s.kept[g].list = which
    join(s, g, end_of(s, s.expert[g].scope, which))


@apart
def _drop(s: State, g: int) -> None:
    """Expert g leaves its list."""
    leave(s, g)
    s.lists[s.expert[g].scope].size[s.kept[g].list] -= 1
    s.kept[g].list = NOBODY


@apart
def _forget(s: State, g: int) -> None:
    """Expert g, which is not there or goes, is nobody that the policy knows."""
    _drop(s, g)
    s.kept[g].enters = 0


@apart
def _oldest(s: State, rules: Any, scope: int, which: int, spare_from: int) -> int:
    """The first evictable expert of a list from its old end, or NOBODY."""
    end = end_of(s, scope, which)
    g = s.newer[end]
    while g != end and not evictable(s, rules, g, spare_from):
        g = s.newer[g]
    return g if g != end else NOBODY


# --- what a policy is told ---


@apart
def expected(s: State, g: int) -> None:
    """Expert g is on its way, and counts in the list that it will enter."""
    if s.kept[g].list != NOBODY:  # a ghost
        _drop(s, g)
    s.lists[s.expert[g].scope].size[s.kept[g].enters] += 1


@apart
def entered(s: State, g: int) -> None:
    """Expert g has landed."""
    note_landing(s, g)
    which, scope = s.kept[g].enters, s.expert[g].scope
    s.kept[g].list = which
    join(s, g, end_of(s, scope, which))
    if s.run.eviction == W_TINYLFU:
        _shrink_window(s, scope)
    else:
        s.kept[g].count = 0


@apart
def used(s: State, g: int) -> None:
    """Expert g was used; behind cpu-admit, which counts what runs elsewhere, perhaps without being here."""
    first = s.kept[g].landed == s.run.routed and s.expert[g].origin == DEMAND
    if s.run.eviction == W_TINYLFU:
        _count_frequency(s, g)
    if s.expert[g].state != RESIDENT:
        return
    if s.run.eviction == W_TINYLFU:
        _used_in_segments(s, g, first)
    elif s.run.eviction == ARC:
        _move(s, g, s.kept[g].list if first else T2)
    elif not first:
        s.kept[g].count = min(s.kept[g].count + 1, MOST_COUNTED if s.run.eviction == S3_FIFO else 1)


# --- who goes ---


@apart
def victim(s: State, rules: Any, scope: int, spare_from: int, g: int) -> int:
    """The expert that goes from a full scope for expert g, or NOBODY, and then nothing has changed."""
    if not _anybody(s, rules, scope, spare_from):
        return NOBODY
    kind = s.run.eviction
    if kind == SIEVE:
        return _by_hand(s, rules, scope, spare_from)
    if kind == CLOCK:
        return _by_clock(s, rules, scope, spare_from)
    if kind == S3_FIFO:
        return _from_small_or_main(s, rules, scope, spare_from, g)
    if kind == ARC:
        return _adapted(s, rules, scope, spare_from, g)
    return _contested(s, rules, scope, spare_from)


@apart
def _anybody(s: State, rules: Any, scope: int, spare_from: int) -> bool:
    for i in used_slots(s, scope):
        if evictable(s, rules, s.slot[i], spare_from):
            return True
    return False


@apart
def _goes(s: State, g: int, ghosts: int) -> int:
    """Expert g goes, to a list of ghosts, whence it will enter another list than those nobody knows, or to none."""
    if ghosts == NOBODY:
        _forget(s, g)
    else:
        _move(s, g, ghosts)
        s.kept[g].enters = MAIN if s.run.eviction == S3_FIFO else T2
    return g


@apart
def _by_hand(s: State, rules: Any, scope: int, spare_from: int) -> int:
    end = end_of(s, scope, 0)
    hand = s.lists[scope].hand
    g = hand if hand != NOBODY else s.newer[end]
    while g == end or s.kept[g].count > 0 or not evictable(s, rules, g, spare_from):
        if g != end and evictable(s, rules, g, spare_from):
            s.kept[g].count = 0
        g = s.newer[g]
    after = s.newer[g]
    s.lists[scope].hand = NOBODY if after == end else after
    return _goes(s, g, NOBODY)


@apart
def _by_clock(s: State, rules: Any, scope: int, spare_from: int) -> int:
    end = end_of(s, scope, 0)
    g = s.newer[end]
    while g == end or s.kept[g].count > 0 or not evictable(s, rules, g, spare_from):
        after = s.newer[g]
        if g != end and evictable(s, rules, g, spare_from):
            s.kept[g].count = 0
            _move(s, g, 0)
        g = after
    return _goes(s, g, NOBODY)


@apart
def _from_small_or_main(s: State, rules: Any, scope: int, spare_from: int, newcomer: int) -> int:
    slots, size = s.scope[scope].capacity, s.lists[scope].size
    target = max(1, math.floor(s.params[0] * slots))
    if s.kept[newcomer].list == GHOSTS:  # before anybody takes its place
        _drop(s, newcomer)
    while True:
        small = _oldest(s, rules, scope, SMALL, spare_from)
        main = _oldest(s, rules, scope, MAIN, spare_from)
        if small != NOBODY and (size[SMALL] >= target or main == NOBODY):
            if s.kept[small].count < OFTEN:
                _make_room_for_a_ghost(s, scope, slots - target)
                return _goes(s, small, GHOSTS if slots > target else NOBODY)
            s.kept[small].count = 0
            _move(s, small, MAIN)
        elif s.kept[main].count > 0:
            s.kept[main].count -= 1
            _move(s, main, MAIN)
        else:
            return _goes(s, main, NOBODY)
    return NOBODY


@apart
def _make_room_for_a_ghost(s: State, scope: int, most: int) -> None:
    while s.lists[scope].size[GHOSTS] > 0 and s.lists[scope].size[GHOSTS] >= most:
        _forget_oldest(s, scope, GHOSTS)


@apart
def _forget_oldest(s: State, scope: int, which: int) -> None:
    _forget(s, s.newer[end_of(s, scope, which)])


@apart
def _adapted(s: State, rules: Any, scope: int, spare_from: int, newcomer: int) -> int:
    """arc, Fig. 4, cases II to IV."""
    here, size, slots = s.lists[scope], s.lists[scope].size, s.scope[scope].capacity
    was = s.kept[newcomer].list
    if was == B1:
        here.target = min(float(slots), here.target + max(1.0, size[B2] / size[B1]))
    elif was == B2:
        here.target = max(0.0, here.target - max(1.0, size[B1] / size[B2]))
    elif size[T1] + size[B1] >= slots:
        if size[B1] == 0:
            oldest = _oldest(s, rules, scope, T1, spare_from)
            if oldest != NOBODY:
                return _goes(s, oldest, NOBODY)
        else:
            _forget_oldest(s, scope, B1)
    elif size[T1] + size[T2] + size[B1] + size[B2] >= 2 * slots:
        _forget_oldest(s, scope, B2)
    return _replaced(s, rules, scope, spare_from, was == B2)


@apart
def _replaced(s: State, rules: Any, scope: int, spare_from: int, from_b2: bool) -> int:
    here, first = s.lists[scope], s.lists[scope].size[T1]
    recent = _oldest(s, rules, scope, T1, spare_from)
    frequent = _oldest(s, rules, scope, T2, spare_from)
    over = float(first) > here.target or (from_b2 and float(first) == here.target)
    if recent != NOBODY and ((first >= 1 and over) or frequent == NOBODY):
        return _goes(s, recent, B1)
    return _goes(s, frequent, B2)


@apart
def _contested(s: State, rules: Any, scope: int, spare_from: int) -> int:
    """w-tinylfu: the oldest of the window against the oldest behind it."""
    slots = s.scope[scope].capacity
    newer = _oldest(s, rules, scope, WINDOW, spare_from)
    older = _oldest(s, rules, scope, PROBATION, spare_from)
    if older == NOBODY:
        older = _oldest(s, rules, scope, PROTECTED, spare_from)
    if newer == NOBODY or older == NOBODY:
        return _goes(s, older if newer == NOBODY else newer, NOBODY)
    if s.lists[scope].size[WINDOW] >= _window(s, slots):
        if s.kept[newer].count <= s.kept[older].count:
            return _goes(s, newer, NOBODY)
        _move(s, newer, PROBATION)
    return _goes(s, older, NOBODY)


# --- w-tinylfu's segments ---


@apart
def _window(s: State, slots: int) -> int:
    return max(1, math.floor(s.params[0] * slots))


@apart
def _shrink_window(s: State, scope: int) -> None:
    """Whoever is one too many in the window goes on to probation; those on their way are not there yet."""
    most, there, end = _window(s, s.scope[scope].capacity), 0, end_of(s, scope, WINDOW)
    g = s.newer[end]
    while g != end:
        there += 1
        g = s.newer[g]
    for _ in range(there - most):
        _move(s, s.newer[end], PROBATION)


@apart
def _used_in_segments(s: State, g: int, first: bool) -> None:
    scope, which = s.expert[g].scope, s.kept[g].list
    _move(s, g, PROTECTED if which == PROBATION and not first else which)
    slots = s.scope[scope].capacity
    most = math.floor(s.params[1] * (slots - _window(s, slots)))
    while s.lists[scope].size[PROTECTED] > most:
        _move(s, s.newer[end_of(s, scope, PROTECTED)], PROBATION)


@apart
def _count_frequency(s: State, g: int) -> None:
    here, slots = s.lists[s.expert[g].scope], s.scope[s.expert[g].scope].capacity
    s.kept[g].count = min(s.kept[g].count + 1, HIGHEST)
    here.uses += 1
    if here.uses >= PERIOD * slots:
        here.uses = PERIOD * slots // 2
        for i in range(len(s.kept)):
            if s.expert[i].scope == s.expert[g].scope:
                s.kept[i].count //= 2
