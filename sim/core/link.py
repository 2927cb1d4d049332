"""What goes over the link next: demand before prefetch before background, and who makes room for it.

The demand queue is first in, first out and lives within one visit. The prefetch queue is kept in the order in which it
will go: by key (the plan's transfer order), then by joining. Background transfers carry a key behind every prefetch.
"""

from typing import Any

import numpy as np

from sim.core import log as lg
from sim.core import state as st
from sim.core.jit import choice, inlined, inner
from sim.core.residency import claim, move
from sim.core.state import (
    ABSENT,
    DEMAND,
    DEMAND_HEAD,
    DEMAND_TAIL,
    DEMANDED,
    FLIGHT_HEAD,
    FLIGHT_LEN,
    ORIGIN,
    Q_EXPERT,
    Q_KEY,
    Q_LIST,
    QUEUE_LEN,
    QUEUED,
    STATE,
)

LAST_KEY = np.int64(2**62)  # of background transfers
WITHDRAWN, REJECTED, UNFINISHED = 1, 2, 3  # plan.OUTCOMES


@inlined
def demand(s: Any, log: Any, g: int, visit: int) -> None:
    """Expert g was answered `fetch`: it joins the demand queue, from the prefetch queue if it stood there."""
    if s.x[g, STATE] == QUEUED:
        _remove(s, _place_of(s, g))
        s.c[st.PROMOTED] += 1
        lg.promoted(s, log, g)
    else:
        lg.queued(s, log, g, visit, 0)
    move(s, g, DEMANDED)
    s.x[g, ORIGIN] = 0
    s.work[DEMAND, s.c[DEMAND_TAIL]] = g
    s.c[DEMAND_TAIL] += 1


@inlined
def _shift(s: Any, source: int, target: int) -> None:
    for column in range(Q_LIST + 1):
        s.queue[target, column] = s.queue[source, column]


@inner
def join(s: Any, log: Any, g: int, visit: int, cause: int, key: int | np.int64, which: int) -> None:
    """Expert g (absent) joins the prefetch queue behind every entry whose key is not greater."""
    move(s, g, QUEUED)
    s.x[g, ORIGIN] = cause
    lg.queued(s, log, g, visit, cause)
    i = s.c[QUEUE_LEN]
    while i > 0 and s.queue[i - 1, Q_KEY] > key:
        _shift(s, i - 1, i)
        i -= 1
    s.queue[i, Q_EXPERT], s.queue[i, Q_KEY], s.queue[i, Q_LIST] = g, key, which
    s.c[QUEUE_LEN] += 1


@inner
def _place_of(s: Any, g: int) -> int:
    i = 0
    while s.queue[i, Q_EXPERT] != g:
        i += 1
    return i


@inner
def _remove(s: Any, i: int) -> None:
    s.c[QUEUE_LEN] -= 1
    for j in range(i, s.c[QUEUE_LEN]):
        _shift(s, j + 1, j)


@inner
def withdraw(s: Any, log: Any, g: int) -> None:
    """The queued prefetch of expert g is not wanted any more."""
    _remove(s, _place_of(s, g))
    move(s, g, ABSENT)
    s.c[st.WITHDRAWN] += 1
    lg.ended(s, log, g, WITHDRAWN)


@inner
def _next_prefetch(s: Any, log: Any, hooks: Any) -> int:
    """The first queued prefetch that finds room; those before it are rejected. -1 where none does."""
    while s.c[QUEUE_LEN] > 0:
        g, which = s.queue[0, Q_EXPERT], s.queue[0, Q_LIST]
        _remove(s, 0)
        if claim(s, log, g, which, hooks):
            return g
        move(s, g, ABSENT)
        s.c[st.REJECTED] += 1
        lg.ended(s, log, g, REJECTED)
    return -1


@choice
def waiting(s: Any) -> bool:
    """Something is queued and the link may take it."""
    queued = s.c[DEMAND_HEAD] < s.c[DEMAND_TAIL] or s.c[QUEUE_LEN] > 0
    return queued and s.c[FLIGHT_LEN] < s.c[st.DEPTH]


@choice
def next_commit(s: Any, log: Any, hooks: Any = None) -> int:
    """Commit one transfer and return its expert, or -1: nothing is queued, or a demand waits for a slot.

    hooks (core.hooks.Hooks): the run's own policies of a user, None where it cannot have any."""
    if s.c[DEMAND_HEAD] < s.c[DEMAND_TAIL]:
        g = s.work[DEMAND, s.c[DEMAND_HEAD]]
        if not claim(s, log, g, -1, hooks):
            return -1
        s.c[DEMAND_HEAD] += 1
    else:
        g = _next_prefetch(s, log, hooks)
        if g < 0:
            return -1
    tail = s.c[FLIGHT_HEAD] + s.c[FLIGHT_LEN]
    s.work[st.FLIGHT, tail if tail < len(s.x) else tail - len(s.x)] = g
    s.c[FLIGHT_LEN] += 1
    return g


@choice
def abandon(s: Any, log: Any) -> int:
    """The run has ended: what is under way or queued is unfinished (in that order). Returns how many transfers."""
    left = s.c[FLIGHT_LEN] + s.c[DEMAND_TAIL] - s.c[DEMAND_HEAD] + s.c[QUEUE_LEN]
    for i in range(s.c[FLIGHT_LEN]):
        lg.ended(s, log, s.work[st.FLIGHT, (s.c[FLIGHT_HEAD] + i) % len(s.x)], UNFINISHED)
    for i in range(s.c[DEMAND_HEAD], s.c[DEMAND_TAIL]):
        lg.ended(s, log, s.work[DEMAND, i], UNFINISHED)
    for i in range(s.c[QUEUE_LEN]):
        lg.ended(s, log, s.queue[i, Q_EXPERT], UNFINISHED)
    return left
