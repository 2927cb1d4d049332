"""The rows of the record that the choices write: what was decided, in one running order.

A log is five tables, long enough for the run, or None: numba then removes every line that writes one. The columns of
times are left to the machine, which knows them. Memory that is touched for the first time is what a row costs, so a
number takes no more of it than a run of ordinary size needs: see `largest`.
"""

from collections.abc import MutableSequence
from typing import Annotated, Any

import numpy as np

from sim.core.jit import inlined
from sim.core.memory import Memory, Struct
from sim.core.plan import Plan
from sim.core.spare import lent
from sim.core.state import Number, State, Word

Few = Annotated[int, np.int16]  # what one layer, or one token, has


class VisitRow(Struct):  # one routed visit
    event: Number
    step: Number
    layer: Few
    routed_ns: int
    end_ns: int
    wanted: Few
    hits: Few
    late: Few
    misses: Few
    stall_demand_ns: int
    stall_late_ns: int
    stall_held_ns: int
    cpu_wait_ns: int


class ExecutionRow(Struct):  # one expert executed in one visit
    event: Number
    visit: Number
    expert: Number  # a global id
    tokens: Number
    stand_in_tokens: Number
    begin_ns: int
    end_ns: int
    group: Few  # number in the visit, -1 on the CPU
    cpu: Word  # 1 on the host; 2 there too, deferred
    low: Word


class TransferRow(Struct):  # from its queue to its outcome; what has not happened is -1
    event: Number
    visit: Number
    expert: Number  # a global id
    cause: Word
    promoted: Word
    queued_ns: int
    committed_ns: int
    started_ns: int
    landed_ns: int
    victim: Number
    run: Number  # number of the link transfer, which may bring several experts (runs with core.rules)
    outcome: Word
    event_queued: Number
    event_committed: Number


class ChunkRow(Struct):  # of a transfer that goes in chunks; of one that has not landed event and landed_ns are -1
    event: Number  # it landed
    event_committed: Number
    transfer: Number  # its row
    number: Number  # from 0
    committed_ns: int
    started_ns: int
    landed_ns: int


class AnswerRow(Struct):  # of the miss policy to one (token, slot)
    event: Number
    visit: Number
    row: Number  # of the trace
    slot: Few
    wanted: Few
    answer: Word
    stand_in: Few
    gate: Word


TABLES = {
    "visits": VisitRow,
    "executions": ExecutionRow,
    "transfers": TransferRow,
    "answers": AnswerRow,
    "chunks": ChunkRow,
}
COLUMNS = {name: row.fields() for name, row in TABLES.items()}
MOST_NUMBER, MOST_FEW = 2**31 - 1, 2**15 - 1


class Log(Memory):
    """The five tables; `State.rows` says how long each is."""

    visits: MutableSequence[VisitRow]
    executions: MutableSequence[ExecutionRow]
    transfers: MutableSequence[TransferRow]
    answers: MutableSequence[AnswerRow]
    chunks: MutableSequence[ChunkRow]


def new_log(plan: Plan) -> Log:
    """Room for the longest record this plan can make, with anything in it; pages that stay untouched cost no memory. A
    run whose numbers might not fit has int64 for each, for which numba compiles a version of its own."""
    rows, (number, few) = most_rows(plan), largest(plan)
    narrow = number <= MOST_NUMBER and few <= MOST_FEW
    return Log(**{name: lent(name, rows[name], row if narrow else _wide(row)) for name, row in TABLES.items()})


def most_rows(plan: Plan) -> dict[str, int]:
    """The most that each table may need: an entry (token, slot) of the routing gives work to one expert at most, and
    has one transfer at most; copies in stages, admissions and what is swapped come on top."""
    steps, layers, top_k = len(plan.step_prefill), plan.experts.shape[1], plan.experts.shape[2]
    slots = len(plan.step_row) * layers * top_k
    prefetches = 0
    if plan.prefetch is not None:
        listed, width = np.count_nonzero(plan.prefetch.row >= 0, axis=1), plan.prefetch.lists.shape[3]
        prefetches = layers * int(np.minimum(steps * plan.n_experts, listed * width).sum())
        if plan.prefetch.budget >= 0:
            prefetches = min(prefetches, steps * layers * plan.prefetch.budget)
    copies = 0
    if plan.on_miss is not None:
        resets = 0 if plan.resets is None else int(plan.resets.sum())
        whole = steps * layers * (plan.on_miss.whole_layer or plan.on_miss.ahead > 0) + resets * plan.on_miss.ahead
        copies = 3 * slots + whole * plan.n_experts
    return {
        "visits": steps * layers,
        "executions": slots,
        "transfers": slots + prefetches + copies,
        "answers": slots,
        "chunks": (prefetches + copies) * plan.chunks if plan.chunks > 1 else 0,
    }


def largest(plan: Plan) -> tuple[int, int]:
    """What no Number and no Few of the record is above. The largest are the numbers of events, of which a transfer has
    three and a chunk two, and the four ids of each expert; a visit has no more groups than its layer has ids."""
    n, (_, layers, top_k), rows = plan.n_experts, plan.experts.shape, most_rows(plan)
    events = len(plan.step_prefill) + sum(rows.values()) + 2 * rows["transfers"] + rows["chunks"]
    return max(events, 4 * layers * n, plan.chunks), max(4 * n, top_k, layers)


def _wide(row: type[Struct]) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in row.fields()])


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
