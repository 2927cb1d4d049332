"""The clock of a virtual machine: now, where the time went, and what both virtual machines do at a run's two ends."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core import log as lg
from sim.core import state as st
from sim.core.jit import choice
from sim.core.link import abandon
from sim.core.plan import Plan
from sim.core.residency import place
from sim.core.state import FLIGHT_HEAD, FLIGHT_LEN, TRANSFER

Int = npt.NDArray[np.int64]

# one int64 each, ns; UNFINISHED counts transfers
NOW, LINK_BUSY, DENSE, DECIDE, EXPERTS, STALL, CPU_WAIT, HEAD, UNFINISHED, N_CLOCK = range(10)


class Clock(NamedTuple):
    """k [N_CLOCK]; when each committed expert's transfer starts and lands, [G] each; begin, end and (with a log) event
    number of each step, [S] each."""

    k: Int
    starts: Int
    lands: Int
    begin: Int
    end: Int
    event: Int


def begin_run(plan: Plan, full: bool) -> tuple[st.State, lg.Log | None, Clock]:
    """Time 0: the first residents have landed, nothing is queued."""
    s = st.new_state(plan)
    place(s, np.asarray(plan.residents, np.int64))
    steps, n = len(plan.step_prefill), len(s.x)
    clock = Clock(*(st.zeros(size) for size in (N_CLOCK, n, n, steps, steps, steps)))
    return s, lg.new_log(plan) if full else None, clock


@choice
def forget(s: Any, clock: Any) -> None:
    """Warm-up is over: every counter starts here, and a transfer under way counts for what is left of it."""
    s.c[st.FIRST_COUNTER : st.LAST_COUNTER + 1] = 0
    s.c[st.LANDED_LOW] = 0
    s.layer[:] = 0
    s.quality[:] = 0.0
    s.loss[:] = 0.0
    now = clock.k[NOW]
    clock.k[1:] = 0
    if s.c[FLIGHT_LEN] > 0:
        clock.k[LINK_BUSY] -= max(0, now - clock.starts[s.work[st.FLIGHT, s.c[FLIGHT_HEAD]]])


@choice
def close(s: Any, log: Any, clock: Any) -> None:
    """The end of the run: what is queued or under way stays unfinished."""
    now = clock.k[NOW]
    for i in range(s.c[FLIGHT_LEN]):
        g = s.work[st.FLIGHT, (s.c[FLIGHT_HEAD] + i) % len(s.x)]
        clock.k[LINK_BUSY] += max(0, now - clock.starts[g])
        if log is not None and clock.starts[g] > now:
            log.transfers[s.x[g, TRANSFER], lg.T_STARTED] = -1
    clock.k[UNFINISHED] = abandon(s, log)
    for g in range(len(s.x)):
        if s.x[g, st.STATE] == st.RESIDENT and s.x[g, st.FRESH] == 1:
            s.c[st.PREFETCH_WASTED] += 1
