"""What goes over the link next: demand before prefetch before background, and who makes room for it.

The demand queue is first in, first out and lives within one visit. The prefetch queue is kept in the order in which it
will go: by key (the plan's transfer order), then by joining. Background transfers carry a key behind every prefetch.
"""

from typing import Any

import numpy as np

from sim.core import log as lg
from sim.core.jit import choice, inlined, inner
from sim.core.residency import claim, move
from sim.core.state import (
    ABSENT,
    DEMANDED,
    QUEUED,
    State,
)

LAST_KEY: Any = np.int64(2**62)  # of background transfers
WITHDRAWN, REJECTED, UNFINISHED = 1, 2, 3  # plan.OUTCOMES


@inlined
def demand(s: State, log: Any, g: int, visit: int) -> None:
    """Expert g was answered `fetch`: it joins the demand queue, from the prefetch queue if it stood there."""
    if s.expert[g].state == QUEUED:
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
        if claim(s, log, g, which, hooks):
            return g
        move(s, g, ABSENT)
        s.count.rejected += 1
        lg.ended(s, log, g, REJECTED)
    return -1


@choice
def waiting(s: State) -> bool:
    """Something is queued and the link may take it."""
    queued = s.link.demand_head < s.link.demand_tail or s.link.n_queued > 0
    return queued and s.link.n_flight < s.run.depth


@choice
def why_stalled(s: State) -> int:
    """What the GPU waits for, as the link stands: 0 a demand, 1 a late expert, 2 a slot."""
    if s.visit.n_waited > 0:
        return 1
    return 2 if waiting(s) else 0


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


@choice
def next_commit(s: State, log: Any, hooks: Any = None) -> int:
    """Commit one transfer and return its expert, or -1: nothing is queued, or a demand waits for a slot.

    hooks (core.hooks.Hooks): the run's own policies of a user, None where it cannot have any."""
    if s.link.demand_head < s.link.demand_tail:
        g = s.demand[s.link.demand_head]
        if not claim(s, log, g, -1, hooks):
            return -1
        s.link.demand_head += 1
    else:
        g = _next_prefetch(s, log, hooks)
        if g < 0:
            return -1
    tail = s.link.flight_head + s.link.n_flight
    s.flight[tail if tail < len(s.expert) else tail - len(s.expert)] = g
    s.link.n_flight += 1
    return g


@choice
def abandon(s: State, log: Any) -> int:
    """The run has ended: what is under way or queued is unfinished (in that order). Returns how many transfers."""
    left = s.link.n_flight + s.link.demand_tail - s.link.demand_head + s.link.n_queued
    for i in range(s.link.n_flight):
        lg.ended(s, log, s.flight[(s.link.flight_head + i) % len(s.expert)], UNFINISHED)
    for i in range(s.link.demand_head, s.link.demand_tail):
        lg.ended(s, log, s.demand[i], UNFINISHED)
    for i in range(s.link.n_queued):
        lg.ended(s, log, s.queue[i].expert, UNFINISHED)
    return left
