"""The rows of the record that the choices write: what was decided, in one running order.

A log is four int64 arrays [rows, columns], long enough for the run, or None: numba then removes every line that
writes one. The columns of times are left to the machine, which knows them.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.jit import inlined
from sim.core.plan import Plan
from sim.core.state import EVENTS, R_ANSWERS, R_TRANSFERS, TRANSFER

Int = npt.NDArray[np.int64]

# one routed visit
V_EVENT, V_STEP, V_LAYER, V_ROUTED, V_END, V_WANTED, V_HITS, V_LATE, V_MISSES = range(9)
V_STALL_DEMAND, V_STALL_LATE, V_STALL_HELD, V_CPU_WAIT, V_COLUMNS = range(9, 14)
# one expert executed in one visit
X_EVENT, X_VISIT, X_EXPERT, X_TOKENS, X_STAND_IN, X_BEGIN, X_END, X_GROUP, X_CPU, X_LOW, X_COLUMNS = range(11)
# one transfer, from its queue to its outcome; its expert is a global id
T_EVENT, T_VISIT, T_EXPERT, T_CAUSE, T_PROMOTED, T_QUEUED, T_COMMITTED, T_STARTED, T_LANDED = range(9)
T_VICTIM, T_OUTCOME, T_EVENT_QUEUED, T_EVENT_COMMITTED, T_COLUMNS = range(9, 14)
# one answer of the miss policy to one (token, slot)
A_EVENT, A_VISIT, A_ROW, A_SLOT, A_WANTED, A_ANSWER, A_STAND_IN, A_GATE, A_COLUMNS = range(9)

COLUMNS = {
    "visits": "event step layer routed_ns end_ns wanted hits late misses "
    "stall_demand_ns stall_late_ns stall_held_ns cpu_wait_ns",
    "executions": "event visit expert tokens stand_in_tokens begin_ns end_ns group cpu low",
    "transfers": "event visit expert cause promoted queued_ns committed_ns started_ns landed_ns "
    "victim outcome event_queued event_committed",
    "answers": "event visit row slot wanted answer stand_in gate",
}


class Log(NamedTuple):
    """visits [V, V_COLUMNS], executions [n, X_COLUMNS], transfers [n, T_COLUMNS], answers [n, A_COLUMNS]."""

    visits: Int
    executions: Int
    transfers: Int
    answers: Int


def new_log(plan: Plan) -> Log:
    """Room for the longest record this plan can make; pages that stay untouched cost no memory."""
    steps, layers, top_k = len(plan.step_prefill), plan.experts.shape[1], plan.experts.shape[2]
    slots = len(plan.step_row) * layers * top_k
    prefetches = 0
    if plan.prefetch is not None:
        distances, width = plan.prefetch.row.shape[0], plan.prefetch.lists.shape[3]
        prefetches = distances * layers * min(steps * plan.n_experts, len(plan.step_row) * width)
    return Log(
        visits=np.empty((steps * layers, V_COLUMNS), np.int64),
        executions=np.empty((2 * slots, X_COLUMNS), np.int64),
        transfers=np.empty((2 * slots + prefetches, T_COLUMNS), np.int64),
        answers=np.empty((slots, A_COLUMNS), np.int64),
    )


@inlined
def next_event(s: Any) -> int:
    """The running number of what happens now."""
    s.c[EVENTS] += 1
    return s.c[EVENTS] - 1


@inlined
def queued(s: Any, log: Any, g: int, visit: int, cause: int) -> None:
    """A transfer of expert g joins a queue."""
    if log is not None:
        i = s.c[R_TRANSFERS]
        s.c[R_TRANSFERS] += 1
        s.x[g, TRANSFER] = i
        row = log.transfers[i]
        for j in range(T_COLUMNS):
            row[j] = -1
        row[T_VISIT], row[T_EXPERT], row[T_CAUSE], row[T_PROMOTED] = visit, g, cause, 0
        row[T_EVENT_QUEUED] = next_event(s)


@inlined
def ended(s: Any, log: Any, g: int, outcome: int) -> None:
    """The transfer of expert g landed, was withdrawn, was rejected, or is unfinished."""
    if log is not None:
        row = log.transfers[s.x[g, TRANSFER]]
        row[T_OUTCOME], row[T_EVENT] = outcome, next_event(s)


@inlined
def promoted(s: Any, log: Any, g: int) -> None:
    """The queued prefetch of expert g becomes a demand; it keeps its place in the order of events."""
    if log is not None:
        row = log.transfers[s.x[g, TRANSFER]]
        row[T_CAUSE], row[T_PROMOTED] = 0, 1


@inlined
def committed(s: Any, log: Any, g: int, victim: int) -> None:
    """The transfer of expert g goes on the link in the place of `victim` (-1: a free slot)."""
    if log is not None:
        row = log.transfers[s.x[g, TRANSFER]]
        row[T_VICTIM], row[T_EVENT_COMMITTED] = victim, next_event(s)


@inlined
def answered(
    s: Any, log: Any, visit: int, token: int, slot: int, wanted: int, answer: int, other: int, gate: int
) -> None:
    """The miss policy answered for one (token, slot); `gate` names what stopped a substitution, 0 = nothing."""
    if log is not None:
        i = s.c[R_ANSWERS]
        s.c[R_ANSWERS] += 1
        row = log.answers[i]
        row[A_EVENT], row[A_VISIT], row[A_ROW], row[A_SLOT] = next_event(s), visit, token, slot
        row[A_WANTED], row[A_ANSWER], row[A_STAND_IN], row[A_GATE] = wanted, answer, other, gate
