"""The rows of the record that the choices write: what was decided, in one running order.

A log is five tables, long enough for the run, or None: numba then removes every line that writes one. The columns of
times are left to the machine, which knows them.
"""

from collections.abc import MutableSequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.jit import inlined
from sim.core.memory import Memory, Struct
from sim.core.plan import Plan
from sim.core.state import State


class VisitRow(Struct):  # one routed visit
    event: int
    step: int
    layer: int
    routed_ns: int
    end_ns: int
    wanted: int
    hits: int
    late: int
    misses: int
    stall_demand_ns: int
    stall_late_ns: int
    stall_held_ns: int
    cpu_wait_ns: int


class ExecutionRow(Struct):  # one expert executed in one visit
    event: int
    visit: int
    expert: int  # a global id
    tokens: int
    stand_in_tokens: int
    begin_ns: int
    end_ns: int
    group: int  # number in the visit, -1 on the CPU
    cpu: int  # 1 on the host; 2 there too, deferred
    low: int


class TransferRow(Struct):  # from its queue to its outcome; what has not happened is -1
    event: int
    visit: int
    expert: int  # a global id
    cause: int
    promoted: int
    queued_ns: int
    committed_ns: int
    started_ns: int
    landed_ns: int
    victim: int
    run: int  # number of the link transfer, which may bring several experts (runs with core.rules)
    outcome: int
    event_queued: int
    event_committed: int


class ChunkRow(Struct):  # of a transfer that goes in chunks; of one that has not landed event and landed_ns are -1
    event: int  # it landed
    event_committed: int
    transfer: int  # its row
    number: int  # from 0
    committed_ns: int
    started_ns: int
    landed_ns: int


class AnswerRow(Struct):  # of the miss policy to one (token, slot)
    event: int
    visit: int
    row: int  # of the trace
    slot: int
    wanted: int
    answer: int
    stand_in: int
    gate: int


TABLES = {
    "visits": VisitRow,
    "executions": ExecutionRow,
    "transfers": TransferRow,
    "answers": AnswerRow,
    "chunks": ChunkRow,
}
COLUMNS = {name: row.fields() for name, row in TABLES.items()}


class Log(Memory):
    """The five tables; `State.rows` says how long each is."""

    visits: MutableSequence[VisitRow]
    executions: MutableSequence[ExecutionRow]
    transfers: MutableSequence[TransferRow]
    answers: MutableSequence[AnswerRow]
    chunks: MutableSequence[ChunkRow]

    def columns(self, table: str, first: int, last: int) -> dict[str, npt.NDArray[np.int64]]:
        """Some rows of one table, by column."""
        rows = self.arrays[table][first:last]
        return {name: rows[name] for name in COLUMNS[table]}


def new_log(plan: Plan) -> Log:
    """Room for the longest record this plan can make; pages that stay untouched cost no memory."""
    steps, layers, top_k = len(plan.step_prefill), plan.experts.shape[1], plan.experts.shape[2]
    slots = len(plan.step_row) * layers * top_k
    prefetches = 0
    if plan.prefetch is not None:
        listed, width = np.count_nonzero(plan.prefetch.row >= 0, axis=1), plan.prefetch.lists.shape[3]
        prefetches = layers * int(np.minimum(steps * plan.n_experts, listed * width).sum())
    copies = 0
    if plan.on_miss is not None:
        resets = 0 if plan.resets is None else int(plan.resets.sum())
        whole = steps * layers * (plan.on_miss.whole_layer or plan.on_miss.ahead > 0) + resets * plan.on_miss.ahead
        copies = 3 * slots + whole * plan.n_experts
    return Log(
        visits=np.zeros(steps * layers, VisitRow),
        executions=np.empty(2 * slots, ExecutionRow),
        transfers=np.empty(2 * slots + prefetches + copies, TransferRow),
        answers=np.empty(slots, AnswerRow),
        chunks=np.empty((prefetches + copies) * plan.chunks if plan.chunks > 1 else 0, ChunkRow),
    )


@inlined
def next_event(s: State) -> int:
    """The running number of what happens now."""
    s.run.events += 1
    return s.run.events - 1


@inlined
def queued(s: State, log: Any, g: int, visit: int, cause: int) -> None:
    """A transfer of expert g joins a queue."""
    if log is not None:
        s.expert[g].transfer = s.rows.transfers
        row = log.transfers[s.rows.transfers]
        s.rows.transfers += 1
        row.visit, row.expert, row.cause, row.promoted, row.event_queued = visit, g, cause, 0, next_event(s)
        row.event = row.event_committed = row.victim = row.run = row.outcome = -1
        row.queued_ns = row.committed_ns = row.started_ns = row.landed_ns = -1


@inlined
def ended(s: State, log: Any, g: int, outcome: int) -> None:
    """The transfer of expert g landed, was withdrawn, was rejected, or is unfinished."""
    if log is not None:
        row = log.transfers[s.expert[g].transfer]
        row.outcome, row.event = outcome, next_event(s)


@inlined
def promoted(s: State, log: Any, g: int) -> None:
    """The queued prefetch of expert g becomes a demand; it keeps its place in the order of events."""
    if log is not None:
        row = log.transfers[s.expert[g].transfer]
        row.cause, row.promoted = 0, 1


@inlined
def committed(s: State, log: Any, g: int, victim: int, run: int) -> None:
    """The transfer of expert g goes on the link in the place of `victim` (-1: a free slot), number `run` of all."""
    if log is not None:
        row = log.transfers[s.expert[g].transfer]
        row.victim, row.run, row.event_committed = victim, run, next_event(s)


@inlined
def chunk_committed(s: State, log: Any, part: Any, g: int) -> None:
    """The next chunk of expert g goes on the link; the first with its transfer."""
    if log is not None:
        part.row = s.rows.chunks
        row = log.chunks[s.rows.chunks]
        s.rows.chunks += 1
        row.transfer, row.number = s.expert[g].transfer, part.number
        row.event_committed = next_event(s) if part.number > 0 else log.transfers[row.transfer].event_committed
        row.event = row.committed_ns = row.started_ns = row.landed_ns = -1


@inlined
def chunk_landed(s: State, log: Any, part: Any) -> None:
    """A chunk has landed, the last one with its transfer."""
    if log is not None:
        row = log.chunks[part.row]
        row.event = log.transfers[row.transfer].event if part.last == 1 else next_event(s)


@inlined
def answered(
    s: State, log: Any, visit: int, token: int, slot: int, wanted: int, answer: int, other: int, gate: int
) -> None:
    """The miss policy answered for one (token, slot); `gate` names what stopped a substitution, 0 = nothing."""
    if log is not None:
        row = log.answers[s.rows.answers]
        s.rows.answers += 1
        row.event, row.visit, row.row, row.slot = next_event(s), visit, token, slot
        row.wanted, row.answer, row.stand_in, row.gate = wanted, answer, other, gate
