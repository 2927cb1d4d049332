"""The clock of a virtual machine: now, where the time went, and what both virtual machines do at a run's two ends."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core import state as st
from sim.core.jit import apart, choice, inner
from sim.core.link import abandon
from sim.core.memory import Memory, Struct, together
from sim.core.plan import Plan
from sim.core.reset import as_at_start, remember_start
from sim.core.residency import place
from sim.core.rules import NOBODY, Rules, behind, new_rules
from sim.core.stages import begin_streams
from sim.core.state import State
from sim.errors import SpecError

Int = npt.NDArray[np.int64]


class Time(Struct):
    now_ns: int
    # where it went since the warm-up
    link_busy_ns: int
    draft_ns: int
    dense_ns: int
    decide_ns: int
    experts_ns: int
    stall_ns: int
    cpu_wait_ns: int
    head_ns: int
    unfinished: int  # transfers


class Host(Struct):
    until_ns: int  # the host slows the link until then,
    deferred_ns: int  # and deferred work of the last visit ends


class Clock(Memory):
    """What time it is, and was."""

    time: Time
    host: Host
    totals: Int  # the memory of time but for now, to be set to zero
    starts: Int  # [as State.flight] when what is committed there starts
    lands: Int  # and lands
    full_ns: Int  # what it lasts with the whole link to itself
    begin: Int  # [S] of each step
    end: Int  # [S]
    event: Int  # [S] its number, with a log

    def spend(self, what: str, ns: int) -> None:
        """ns more for a field of Time."""
        setattr(self.time, what, getattr(self.time, what) + ns)


def new_clock(flights: int, steps: int) -> Clock:
    """Time 0, of so many places in State.flight."""
    of_flights, of_steps = (np.int64, flights), (np.int64, steps)
    arrays, words = together(
        len(Clock.__annotations__),
        time=(Time,),
        host=(Host,),
        **dict.fromkeys(("starts", "lands", "full_ns"), of_flights),
        **dict.fromkeys(("begin", "end", "event"), of_steps),
    )
    arrays["totals"] = arrays["time"].reshape(1).view(np.int64)[1:]
    return Clock(words, **arrays)


def begin_run(plan: Plan, full: bool) -> tuple[st.State, lg.Log | None, Clock, Rules | None]:
    """Time 0: the first residents have landed; nothing is queued but what layers ahead stream."""
    s = st.new_state(plan)
    place(s, np.ascontiguousarray(plan.residents, np.int64))
    remember_start(s)
    clock = new_clock(len(s.flight), len(plan.step_prefill))
    log, rules = _log(plan) if full else None, new_rules(plan, s)
    if rules is not None and rules.run.ahead > 0:
        begin_streams(s, log, rules, len(plan.step_prefill))
        if log is not None:
            log.arrays["transfers"]["queued_ns"][: s.rows.transfers] = 0
    return s, log, clock, rules


def _log(plan: Plan) -> lg.Log:
    """Raises SpecError where its chunks have no room."""
    try:
        return lg.new_log(plan)
    except (MemoryError, ValueError):  # more than there is, or than can be addressed
        if plan.chunks == 1:
            raise
        wrong = f"full: experts in {plan.chunks} chunks have no room in memory"
        raise SpecError(f"record: {wrong}; give a larger --transfer-chunk, or fewer steps (--max-steps)") from None


@choice
def forget(s: State, clock: Clock, rules: Any) -> None:
    """Warm-up is over: every counter starts here, and a transfer under way counts for what is left of it."""
    s.totals[:] = 0
    s.of_layers[:] = 0
    s.loss[:] = 0.0
    clock.totals[:] = 0
    if rules is not None:
        rules.totals[:] = 0
        rules.busy_ns[:] = 0
        rules.host_ns[:] = 0
        rules.remote_ns[:] = 0
    if s.link.n_flight > 0:
        head = s.link.flight_head
        busy(s, clock, rules, s.flight[head], min(0, clock.starts[head] - clock.time.now_ns))


@choice
def busy(s: State, clock: Clock, rules: Any, g: int, ns: int) -> None:
    """The link has moved data for ns, in the transfer (or a chunk of it) that begins with expert g."""
    clock.time.link_busy_ns += ns
    if rules is not None:
        rules.busy_ns[s.expert[g].origin] += ns


@choice
def last_place(s: State) -> int:
    """Where in State.flight what was committed last stands."""
    tail = s.link.flight_head + s.link.n_flight - 1
    return tail if tail < len(s.flight) else tail - len(s.flight)


@choice
def log_commit(s: State, log: Any, clock: Clock, rules: Any, place: int) -> None:
    """When what stands at a place of State.flight was committed (now) and starts, in the rows of the experts that it
    brings, and of its chunk; the start of a transfer is that of its first."""
    g = s.flight[place]
    number = -1 if rules is None else rules.part[place].number
    if rules is not None and number >= 0:
        chunk = log.chunks[rules.part[place].row]
        chunk.committed_ns, chunk.started_ns = clock.time.now_ns, clock.starts[place]
    while number <= 0 and g != NOBODY:
        row = log.transfers[s.expert[g].transfer]
        row.committed_ns, row.started_ns = clock.time.now_ns, clock.starts[place]
        g = NOBODY if rules is None else behind(s, rules, g)


@choice
def log_landing(s: State, log: Any, clock: Clock, rules: Any, place: int) -> None:
    """What stood at a place of State.flight has landed now; when it started a busy host may have put off."""
    g = s.flight[place]
    number, last = -1, 1
    if rules is not None:
        number, last = rules.part[place].number, rules.part[place].last
        if number >= 0:
            chunk = log.chunks[rules.part[place].row]
            chunk.started_ns, chunk.landed_ns = clock.starts[place], clock.time.now_ns
    while g != NOBODY:
        row = log.transfers[s.expert[g].transfer]
        if number <= 0:
            row.started_ns = clock.starts[place]
        if last == 1:
            row.landed_ns = clock.time.now_ns
        g = NOBODY if rules is None else behind(s, rules, g)


@inner
def _log_start(s: State, log: Any, clock: Clock, rules: Any, place: int) -> None:
    """When what has not landed has started, in the rows of the experts that it brings, and of its chunk; -1 it has
    not."""
    g = s.flight[place]
    started = clock.starts[place] if clock.starts[place] <= clock.time.now_ns else -1
    number = -1 if rules is None else rules.part[place].number
    if rules is not None and number >= 0:
        log.chunks[rules.part[place].row].started_ns = started
    while number <= 0 and g != NOBODY:
        log.transfers[s.expert[g].transfer].started_ns = started
        g = NOBODY if rules is None else behind(s, rules, g)


@choice
def close(s: State, log: Any, clock: Clock, rules: Any) -> None:
    """The end of the run: what is queued or under way stays unfinished."""
    _leave_unfinished(s, log, clock, rules)


@choice
def reset(s: State, log: Any, clock: Clock, hooks: Any, rules: Any, steps: int) -> None:
    """A request begins as the first one did, with the link idle; what is queued or under way stays unfinished."""
    _leave_unfinished(s, log, clock, rules)
    first = s.rows.transfers
    as_at_start(s, log, hooks, rules, steps)
    if log is not None:
        for i in range(first, s.rows.transfers):
            log.transfers[i].queued_ns = clock.time.now_ns


@apart
def _leave_unfinished(s: State, log: Any, clock: Clock, rules: Any) -> None:
    now = clock.time.now_ns
    for i in range(s.link.n_flight):
        place = (s.link.flight_head + i) % len(s.flight)
        busy(s, clock, rules, s.flight[place], max(0, now - clock.starts[place]))
        if log is not None:
            _log_start(s, log, clock, rules, place)
    clock.time.unfinished += abandon(s, log, rules)
    for g in range(len(s.expert)):
        s.count.prefetch_wasted += s.expert[g].state == st.RESIDENT and s.expert[g].fresh == 1


# --- the host and the link share the host's memory ---


@choice
def slowed(ns: int, beside: int, n: int, d: int) -> int:
    """How long a transfer lasts that needs ns with the link to itself and has n / d of it while the host computes, for
    `beside` more ns (engines.md, "Memory is shared both ways")."""
    if beside <= 0 or n == d:
        return ns
    alone = -(-ns * d // n)
    return alone if alone <= beside else beside + ns - beside * n // d


@choice
def slow_the_link(s: State, clock: Clock, until: int, n: int, d: int) -> None:
    """The host computes from now on until then: what is under way takes longer, and what is committed behind it starts
    later. Their log and events are the machine's."""
    now, clock.host.until_ns = clock.time.now_ns, until
    lands = now
    for i in range(s.link.n_flight):
        place = (s.link.flight_head + i) % len(s.flight)
        if i == 0:
            lands = now + slowed(clock.lands[place] - now, until - now, n, d)
        else:
            clock.starts[place] = lands
            lands += slowed(clock.full_ns[place], until - lands, n, d)
        clock.lands[place] = lands
