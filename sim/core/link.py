"""What goes over the link next: demand before prefetch before background, and who makes room for it.

The demand queue is first in, first out and lives within one visit. The prefetch queue is kept in the order in which it
will go: by key (the plan's transfer order), then by joining. Background transfers carry a key behind every prefetch.
"""

from typing import Any

from sim.core import log as lg
from sim.core.admission import claim_admitted, leave
from sim.core.chunks import awaited_rest, is_cut, land_part, landed_with, put
from sim.core.jit import apart, choice, inlined, inner
from sim.core.remote import land_remote
from sim.core.residency import claim, land_in_slot, move
from sim.core.rules import ADMISSION, BACKGROUND, NOBODY, behind, keeps_out
from sim.core.stages import commit_demanded, commit_streamed, land_copies
from sim.core.state import (
    ABSENT,
    DEMANDED,
    QUEUED,
    State,
)
from sim.core.worth import WINDOW_SWAP

LAST_KEY = 2**62  # of background transfers
WITHDRAWN, REJECTED, UNFINISHED = 1, 2, 3  # plan.OUTCOMES


@inlined
def demand(s: State, log: Any, g: int, visit: int, rules: Any) -> None:
    """Expert g was answered `fetch`: it joins the demand queue, from the prefetch queue if it stood there."""
    if s.expert[g].state == QUEUED:
        if rules is not None and s.expert[g].origin == ADMISSION:
            leave(s, rules, g)
        else:
            _remove(s, _place_of(s, g))
        s.count.promoted += 1
        lg.promoted(s, log, g)
    else:
        lg.queued(s, log, g, visit, 0)
    move(s, g, DEMANDED)
    s.expert[g].origin = 0
    s.demand[s.link.demand_tail] = g
    s.link.demand_tail += 1


@inner
def join(s: State, log: Any, g: int, visit: int, cause: int, key: int, which: int) -> None:
    """Expert g (absent) joins the prefetch queue behind every entry whose key is not greater."""
    move(s, g, QUEUED)
    s.expert[g].origin = cause
    lg.queued(s, log, g, visit, cause)
    i = s.link.n_queued
    while i > 0 and s.queue[i - 1].key > key:
        s.queue[i] = s.queue[i - 1]
        i -= 1
    s.queue[i].expert, s.queue[i].key, s.queue[i].list = g, key, which
    s.link.n_queued += 1


@inner
def _place_of(s: State, g: int) -> int:
    i = 0
    while s.queue[i].expert != g:
        i += 1
    return i


@inner
def _remove(s: State, i: int) -> None:
    s.link.n_queued -= 1
    for j in range(i, s.link.n_queued):
        s.queue[j] = s.queue[j + 1]


@inner
def withdraw(s: State, log: Any, g: int) -> None:
    """The queued prefetch of expert g is not wanted any more."""
    _remove(s, _place_of(s, g))
    move(s, g, ABSENT)
    s.count.withdrawn += 1
    lg.ended(s, log, g, WITHDRAWN)


@inner
def _next_prefetch(s: State, log: Any, hooks: Any) -> int:
    """The first queued prefetch that finds room; those before it are rejected. -1 where none does."""
    while s.link.n_queued > 0:
        g, which = s.queue[0].expert, s.queue[0].list
        _remove(s, 0)
        if claim(s, log, g, which, hooks, None):
            return g
        _reject(s, log, g)
    return -1


@inlined
def _reject(s: State, log: Any, g: int) -> None:
    move(s, g, ABSENT)
    s.count.rejected += 1
    lg.ended(s, log, g, REJECTED)


@apart
def _next_by_rules(s: State, log: Any, hooks: Any, rules: Any) -> int:
    """What goes when nothing is demanded and there is no rest: a copy ahead (nothing passes one that finds no stage),
    else the first prefetch, then admission, then background that finds room. -1 where none does."""
    if rules.run.n_streams > 0:
        copy = rules.streams[0]
        return copy if commit_streamed(s, log, rules) else -1
    while s.link.n_queued > 0 or rules.run.n_admits > 0:
        if rules.run.n_admits > 0 and (s.link.n_queued == 0 or s.expert[s.queue[0].expert].origin == BACKGROUND):
            g = rules.admits[0]
            leave(s, rules, g)
            claimed = claim_admitted(s, log, rules, hooks, g)
            rules.count.admission_rejected += not claimed
        else:
            g, which = s.queue[0].expert, s.queue[0].list
            _remove(s, 0)
            swapped = s.run.eviction == WINDOW_SWAP and s.expert[g].origin == BACKGROUND
            out = keeps_out(s, rules, s.expert[g].layer) and not swapped
            claimed = not out and claim(s, log, g, which, hooks, rules)
        if claimed:
            return g
        _reject(s, log, g)
    return -1


@choice
def waiting(s: State, rules: Any) -> bool:
    """Something is queued and the link may take it."""
    queued = s.link.demand_head < s.link.demand_tail or s.link.n_queued > 0
    if rules is not None:
        queued = s.link.demand_head < s.link.demand_tail or rules.run.rest >= 0
        if rules.visit.remote_waits == 0:
            queued |= s.link.n_queued > 0 or rules.run.n_streams > 0 or rules.run.n_admits > 0
    return queued and s.link.n_flight < s.run.depth


@choice
def why_stalled(s: State, rules: Any) -> int:
    """What the GPU waits for, as the link stands: 0 a demand, 1 a late expert, 2 a slot or a stage."""
    if rules is not None and rules.visit.copies_left > 0 and rules.run.serial == 1:
        return 0
    if s.visit.n_waited > 0:
        return 1
    if rules is not None and s.visit.n_run == s.visit.n_work:  # what is left is read where it lies
        return 0
    blocked = s.link.demand_head < s.link.demand_tail and s.link.n_flight < s.run.depth
    return 2 if blocked else 0


@choice
def count_stall(s: State, log: Any, layer: int, why: int, ns: int) -> None:
    """The GPU has waited for ns in the visit being served."""
    _add_stall(s.layer[layer], why, ns)
    if log is not None:
        _add_stall(log.visits[s.rows.visits - 1], why, ns)


@inlined
def _add_stall(row: Any, why: int, ns: int) -> None:
    if why == 0:
        row.stall_demand_ns += ns
    elif why == 1:
        row.stall_late_ns += ns
    else:
        row.stall_held_ns += ns


@apart
def _next_behind_demand(s: State, log: Any, hooks: Any, rules: Any) -> int:
    """What goes where no demand does, or one finds no room: a rest; else, where nothing is demanded, the next by rules.
    While an expert waits to be read where it lies, none."""
    if rules.visit.remote_waits == 1:
        return NOBODY
    if rules.run.rest >= 0 or s.link.demand_head < s.link.demand_tail:
        return rules.run.rest
    return _next_by_rules(s, log, hooks, rules)


@choice
def next_commit(s: State, log: Any, hooks: Any, rules: Any) -> int:
    """Commit one transfer, or one chunk, and return its (first) expert, or -1: nothing is queued, or a demand waits for
    room. A rest waits for no demand that finds none: its landing may be what brings the room.

    hooks (core.hooks.Hooks): the run's own policies of a user, None where it cannot have any; rules: core.rules."""
    g, cut = NOBODY, False
    if rules is not None:
        g = awaited_rest(s, rules)
        cut = g >= 0
    if rules is not None and cut:
        pass
    elif s.link.demand_head < s.link.demand_tail:
        first = s.demand[s.link.demand_head]
        if rules is not None and first >= s.run.stage_base:
            if commit_demanded(s, log, rules):
                g = first
        elif claim(s, log, first, -1, hooks, rules):
            s.link.demand_head += 1
            g = first
    elif rules is None:
        g = _next_prefetch(s, log, hooks)
    if rules is not None and g < 0:
        g = _next_behind_demand(s, log, hooks, rules)
        cut = is_cut(s, rules, g)
    if g < 0:
        return -1
    _take_off(s, log, g, rules, cut)
    return g


@inlined
def _take_off(s: State, log: Any, g: int, rules: Any, cut: bool) -> None:
    """A transfer, or a chunk of one, is under way; g: its first expert."""
    tail = s.link.flight_head + s.link.n_flight
    place = tail if tail < len(s.flight) else tail - len(s.flight)
    if rules is not None:
        put(s, log, rules, place, g, cut)
    s.flight[place] = g
    s.link.n_flight += 1


@choice
def land(s: State, log: Any, rules: Any) -> int:
    """The oldest committed transfer, or chunk, has landed. Returns its (first) expert."""
    head = s.link.flight_head
    g = s.flight[head]
    s.link.flight_head = head + 1 if head + 1 < len(s.flight) else 0
    s.link.n_flight -= 1
    if rules is None:
        land_in_slot(s, log, g)
    elif not land_part(s, log, rules, head):
        _land_whole(s, log, rules, g)
        landed_with(s, log, rules, head)
    return g


@apart
def _land_whole(s: State, log: Any, rules: Any, g: Any) -> None:
    """All of a transfer has landed."""
    rules.count.link_transfers += 1
    if g < s.run.stage_base:
        land_in_slot(s, log, g)
        rules.count.landed_admission += s.expert[g].origin == ADMISSION
        if g < s.run.n_full:
            rules.expert[g].misses = 0
    elif g < s.run.stage_base + s.run.n_full:
        land_copies(s, log, rules, g)
    else:
        land_remote(s, log, rules, g)


@choice
def abandon(s: State, log: Any, rules: Any) -> int:
    """The run, or a request of a run with resets, has ended: what is under way or queued is unfinished (in that order,
    one that has a rest behind the others under way). Returns of how many experts."""
    left = s.link.demand_tail - s.link.demand_head + s.link.n_queued
    for i in range(s.link.n_flight):
        place = (s.link.flight_head + i) % len(s.flight)
        if rules is None or rules.part[place].last == 1:
            left += _abandon(s, log, s.flight[place], rules)
    if rules is not None and rules.run.rest >= 0:
        left += _abandon(s, log, rules.run.rest, rules)
    for i in range(s.link.demand_head, s.link.demand_tail):
        lg.ended(s, log, s.demand[i], UNFINISHED)
    if rules is not None:
        left += rules.run.n_streams + rules.run.n_admits
        for i in range(rules.run.n_streams):
            lg.ended(s, log, rules.streams[i], UNFINISHED)
    for i in range(s.link.n_queued):
        lg.ended(s, log, s.queue[i].expert, UNFINISHED)
    if rules is not None:
        for i in range(rules.run.n_admits):
            lg.ended(s, log, rules.admits[i], UNFINISHED)
    return left


@inlined
def _abandon(s: State, log: Any, g: Any, rules: Any) -> int:
    """A transfer that is under way, of one expert or of several."""
    lg.ended(s, log, g, UNFINISHED)
    n = 1
    if rules is not None:
        g = behind(s, rules, g)
        while g != NOBODY:
            lg.ended(s, log, g, UNFINISHED)
            g = behind(s, rules, g)
            n += 1
    return n
