"""cpu-admit: the host computes a miss, and a few experts are brought behind it.

Expert caches in public forks of llama.cpp count misses and admit an expert after `admit_after` of them where a slot is
free, after `replace_after` where another must go; the defaults are theirs.
"""

from typing import Any

from sim.core import log as lg
from sim.core.candidates import ADMITS
from sim.core.jit import apart, inlined
from sim.core.plan import ANSWERS, TOLD_OF_USES
from sim.core.residency import claim, move, scope_of, tell_of_use
from sim.core.rules import ADMISSION, keeps_out
from sim.core.state import ABSENT, MISS, QUEUED, State

CPU, REMOTE = ANSWERS.index("cpu"), ANSWERS.index("remote")


@apart
def count_misses(s: State, rules: Any) -> None:
    """One more visit that missed each expert; in bulk visits only where these warm the cache."""
    if rules.admission.on == 1 and (rules.visit.bulk == 0 or rules.admission.warm == 1):
        for i in range(s.visit.n_wanted):
            g = s.wanted[i]
            rules.expert[g].misses += s.expert[g].kind == MISS


@apart
def count_uses(s: State, rules: Any) -> None:
    """A visit that wants an expert is a use of it wherever it runs; those in slots count theirs when they have run."""
    if rules.admission.on == 0 or (rules.visit.bulk == 1 and rules.run.bulk_touch == 0):
        return
    for i in range(s.visit.n_wanted):
        g, answer = s.wanted[i], rules.expert[s.wanted[i]].answer
        if rules.expert[g].at != g or answer in (CPU, REMOTE):
            s.expert[g].uses += 1
            s.run.stamps += 1  # no touch, but after all that was before
            if s.run.eviction_marks & TOLD_OF_USES:
                tell_of_use(s, g)


@apart
def admit(s: State, log: Any, rules: Any, visit: int, layer: int, rows: int) -> None:
    """At most `inserts` candidates of this visit join the admission queue, in order of first appearance."""
    may, joined = rules.admission, 0
    allowed = may.warm == 1 if rules.visit.bulk == 1 else rows <= may.max_rows
    if may.on == 0 or not allowed or keeps_out(s, rules, layer):
        return
    for i in range(s.visit.n_wanted):
        if joined >= may.inserts or rules.run.n_admits >= may.queue:
            return
        g = s.wanted[i]
        if s.expert[g].kind == MISS and s.expert[g].state == ABSENT and _is_candidate(s, rules, g):
            _join(s, log, rules, g, visit)
            joined += 1


@inlined
def _is_candidate(s: State, rules: Any, g: int) -> bool:
    scope = scope_of(s, g)
    free = s.scope[scope].capacity - s.scope[scope].used - rules.queued[scope]
    after = rules.admission.admit_after if free > 0 else rules.admission.replace_after
    return rules.expert[g].misses >= after


@apart
def _join(s: State, log: Any, rules: Any, g: int, visit: int) -> None:
    lg.queued(s, log, g, visit, ADMISSION)
    move(s, g, QUEUED)
    s.expert[g].origin = ADMISSION
    rules.admits[rules.run.n_admits] = g
    rules.run.n_admits += 1
    rules.queued[scope_of(s, g)] += 1


@apart
def leave(s: State, rules: Any, g: int) -> None:
    """Expert g leaves the admission queue, from wherever it stands."""
    i = 0
    while rules.admits[i] != g:
        i += 1
    rules.run.n_admits -= 1
    for j in range(i, rules.run.n_admits):
        rules.admits[j] = rules.admits[j + 1]
    rules.queued[scope_of(s, g)] -= 1


@apart
def claim_admitted(s: State, log: Any, rules: Any, hooks: Any, g: int) -> bool:
    """A slot at its commit: one that is still free, or another's where it has been missed often enough."""
    scope = scope_of(s, g)
    free = s.scope[scope].used < s.scope[scope].capacity
    if not free and rules.expert[g].misses < rules.admission.replace_after:
        return False
    rules.admission.newcomer = g
    claimed = claim(s, log, g, ADMITS, hooks, rules)
    rules.count.admission_replaced += claimed and not free
    return claimed
