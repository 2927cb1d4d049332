"""Experts that the GPU reads over the link where they lie in host memory (zero-copy): nothing becomes resident."""

from typing import Any

from sim.core import log as lg
from sim.core.chunks import awaited_rest, put
from sim.core.jit import apart, choice, inlined
from sim.core.residency import move
from sim.core.rules import DEMAND, NOBODY
from sim.core.state import ABSENT, COMMITTED, DEMANDED, RESIDENT, State


@inlined
def _id(s: State, g: int) -> int:
    return s.run.stage_base + s.run.n_full + g


@apart
def queue_remote(s: State, log: Any, rules: Any, g: int, visit: int) -> None:
    """Expert g was answered `remote`: it waits for the GPU and the link together."""
    there = _id(s, g)
    lg.queued(s, log, there, visit, DEMAND)
    move(s, there, DEMANDED)
    s.expert[there].origin = DEMAND
    rules.remote[rules.visit.n_remote] = g
    rules.visit.n_remote += 1


@inlined
def remotes_left(rules: Any) -> bool:
    """Whether the visit still has experts to read where they lie."""
    return rules.visit.remote_run < rules.visit.n_remote


@choice
def next_remote(s: State, log: Any, rules: Any, group: int) -> int:
    """The free GPU may take so many experts as a group; where there is none, the id of what it reads over the link now,
    which is committed. NOBODY: nothing."""
    rules.visit.remote_waits = 0
    if group > 0 or not remotes_left(rules) or s.visit.n_ready > s.visit.n_run:
        return NOBODY
    under_way = s.link.n_flight > 0 or awaited_rest(s, rules) != NOBODY
    if under_way or (rules.run.serial == 1 and rules.visit.copies_left > 0):
        rules.visit.remote_waits = 1
        return NOBODY
    g = rules.remote[rules.visit.remote_run]
    there = _id(s, g)
    move(s, there, COMMITTED)
    lg.committed(s, log, there, NOBODY, rules.run.runs)
    put(s, log, rules, s.link.flight_head, there, False)
    s.flight[s.link.flight_head] = there
    s.link.n_flight = 1
    return there


@apart
def land_remote(s: State, log: Any, rules: Any, there: int) -> None:
    """All of it has been read."""
    move(s, there, RESIDENT)
    move(s, there, ABSENT)
    s.count.landed_demand += 1
    rules.count.remotes += 1
    lg.ended(s, log, there, 0)
