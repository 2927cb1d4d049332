"""The clock of a virtual machine: now, where the time went, and what both virtual machines do at a run's two ends."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core import state as st
from sim.core.jit import choice
from sim.core.link import abandon
from sim.core.memory import Memory, Struct, zeros
from sim.core.plan import Plan
from sim.core.residency import place
from sim.core.state import State

Int = npt.NDArray[np.int64]


class Time(Struct):
    now_ns: int
    # where it went since the warm-up
    link_busy_ns: int
    dense_ns: int
    decide_ns: int
    experts_ns: int
    stall_ns: int
    cpu_wait_ns: int
    head_ns: int
    unfinished: int  # transfers


class Clock(Memory):
    """What time it is, and was."""

    time: Time
    totals: Int  # the memory of time but for now, to be set to zero
    starts: Int  # [G] when each committed expert's transfer starts
    lands: Int  # [G] and lands
    begin: Int  # [S] of each step
    end: Int  # [S]
    event: Int  # [S] its number, with a log

    def spend(self, what: str, ns: int) -> None:
        """ns more for a field of Time."""
        setattr(self.time, what, getattr(self.time, what) + ns)


def begin_run(plan: Plan, full: bool) -> tuple[st.State, lg.Log | None, Clock]:
    """Time 0: the first residents have landed, nothing is queued."""
    s = st.new_state(plan)
    place(s, np.asarray(plan.residents, np.int64))
    time, experts, steps = zeros(Time.dtype.itemsize // 8), len(s.expert), len(plan.step_prefill)
    clock = Clock(
        time=time.view(Time.dtype).reshape(()),
        totals=time[1:],
        starts=zeros(experts),
        lands=zeros(experts),
        begin=zeros(steps),
        end=zeros(steps),
        event=zeros(steps),
    )
    return s, lg.new_log(plan) if full else None, clock


@choice
def forget(s: State, clock: Clock) -> None:
    """Warm-up is over: every counter starts here, and a transfer under way counts for what is left of it."""
    s.totals[:] = 0
    s.loss[:] = 0.0
    clock.totals[:] = 0
    if s.link.n_flight > 0:
        clock.time.link_busy_ns -= max(0, clock.time.now_ns - clock.starts[s.flight[s.link.flight_head]])


@choice
def close(s: State, log: Any, clock: Clock) -> None:
    """The end of the run: what is queued or under way stays unfinished."""
    now = clock.time.now_ns
    for i in range(s.link.n_flight):
        g = s.flight[(s.link.flight_head + i) % len(s.expert)]
        clock.time.link_busy_ns += max(0, now - clock.starts[g])
        if log is not None and clock.starts[g] > now:
            log.transfers[s.expert[g].transfer].started_ns = -1
    clock.time.unfinished = abandon(s, log)
    for g in range(len(s.expert)):
        s.count.prefetch_wasted += s.expert[g].state == st.RESIDENT and s.expert[g].fresh == 1
