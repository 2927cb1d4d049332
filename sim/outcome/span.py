"""The work of a run's span, which begins with step `plan.warmup_steps`, a block of steps at a time: what any lossless
run has to do in it, and how long the link takes for so many loads. What `sim.outcome.bounds` are made of.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.plan import GROUPS, Plan

if TYPE_CHECKING:  # both import numba, which takes its time
    from sim.outcome.packing import Spent, Walk, Wants

Int = npt.NDArray[np.int64]

BLOCK = 1 << 16  # wants of a block of steps, at most: its arrays stay in a core's own cache
KEPT = 2  # blocks whose work is remembered: all of a short run
BYTES = 64  # that a block's arrays have for each of them, about


class Work(NamedTuple):
    """The work of the n visits of some steps, int64 [n] each: ns from the end of the visit before to its own end, if
    nothing is waited for; how many of its wants are not kept (packing.Walk.over, forward); what its experts take."""

    ns: Int
    missing: Int
    spent: "Spent"


@dataclass
class Span:
    """What the work of the span adds up to. after_ns: from the end of the last visit to the end of the run; compute_ns
    and loads: see work_of; shortest_ns: the shortest group any visit can run; hidden, partly: see
    sim.outcome.bounds._exposed_ns."""

    after_ns: int
    compute_ns: int
    loads: int = 0
    shortest_ns: int = 2**62
    hidden: int = 0
    partly: Counter[int] = field(default_factory=Counter)


class Block(NamedTuple):
    """Steps first .. last - 1, and what lies before them in the span: where the walk stands, compute, loads. work: None
    of all but the last (KEPT), found again from there."""

    first: int
    last: int
    walk: "Walk"
    compute_ns: int
    loads: int
    work: Work | None = None


class Landings(NamedTuple):
    """first_ns: from an idle link's commit to the landing; each_ns: the least between two landings, one after
    the other.

    Proof. A transfer committed with nothing in flight lands first_ns = commit_gap_ns + transfer_ns[0] later,
    and so at least that after the landing before it. Any other, possible with commit_depth > 1 only, starts
    when its predecessor lands. One transfer of several experts (merge_runs) takes at least so many times the least
    share of one of them in a transfer of any length, so with both figures that share, m experts take m of them.

    Transfers in chunks (plan.chunks > 1) take their chunks' times, each with its own set-up, whatever goes between
    them: so m experts still take first_ns + (m - 1) each_ns of the link, with the least of both ways. But at an instant
    within the run one of them may be sent in part, beside the one that is under way: `partly` more of them may then
    land at once.
    """

    first_ns: int
    each_ns: int
    partly: int = 0

    @staticmethod
    def of(plan: Plan) -> "Landings":
        first, each = plan.costs.in_a_row_ns
        if plan.chunks > 1:
            in_chunks = _in_chunks_ns(plan)
            first, each = min(first, in_chunks[0]), min(first, each, in_chunks[1])
        if plan.on_miss is not None and plan.on_miss.merge_runs:
            run_ns = plan.on_miss.run_ns[:, 1:]
            least = int((run_ns // np.arange(1, run_ns.shape[1] + 1)).min())
            first, each = min(first, least), min(each, least)
        return Landings(first, min(first, each), int(plan.chunks > 1))


def _in_chunks_ns(plan: Plan) -> tuple[int, int]:
    """The least that the chunks of one expert take, the first of them on an idle link from its commit on; and any."""
    assert plan.on_miss is not None
    idle, following = plan.on_miss.chunk_ns + np.array([[plan.costs.commit_gap_ns], [0]])
    full, last = idle if plan.costs.commit_depth == 1 else np.minimum(idle, following)
    others = int((plan.chunks - 2) * full + last)
    return int(idle[0]) + others, int(full) + others


def block_size(plan: Plan, walk: "Walk") -> int:
    """Wants of a block, at most; more than BLOCK where a walk's state is large and the span long: all states together
    are then as large as a block's arrays, and both grow as the square root of the span."""
    steps = len(plan.step_prefill) - plan.warmup_steps
    rows = int(plan.step_offset[-1] - plan.step_offset[plan.warmup_steps])
    wants = min(rows * plan.experts.shape[2], steps * plan.n_experts) * plan.experts.shape[1]
    return max(BLOCK, isqrt(wants * walk.nbytes // BYTES))


def blocks(plan: Plan, block: int) -> Iterator[tuple[int, int]]:
    """The span's steps in blocks, first and last + 1, that want at most `block` experts, a visit each of them at most
    once, in no more visits; or of one step."""
    layers, top_k = plan.experts.shape[1:]
    first, most = plan.warmup_steps, block // layers
    while first < len(plan.step_prefill):
        rows = np.diff(plan.step_offset[first : first + most + 1])
        wants = np.cumsum(np.minimum(rows * top_k, plan.n_experts))
        last = first + max(1, int(np.searchsorted(wants, most, "right")))
        yield first, last
        first = last


def span_of(plan: Plan, link: Landings, block: int | None) -> tuple[Span, list[Block]]:
    """What the work of all visits adds up to, and the blocks."""
    from sim.outcome.packing import Walk, Wants  # numba: only when a bound is asked for

    everyone = np.arange(plan.experts.shape[1] * plan.n_experts)
    walk = Walk.begin(plan, everyone if plan.warmup_steps else np.asarray(plan.residents, np.int64))
    after_ns = int(_step_end_ns(plan, slice(-1, None))[0])
    span, found = Span(after_ns, 0), []
    for first, last in blocks(plan, block or block_size(plan, walk)):
        here = Block(first, last, walk.copy(), span.compute_ns, span.loads)
        work = work_of(plan, link, Wants.of(plan, first, last), here, walk)
        found.append(here._replace(work=work))
        found[:-KEPT] = [each._replace(work=None) for each in found[:-KEPT]]
        _add(span, work)
    span.compute_ns += after_ns
    return span, found


def _add(span: Span, work: Work) -> None:
    """A block's work to the span's."""
    span.compute_ns += int(work.ns.sum())
    span.loads += int(work.missing.sum())
    span.shortest_ns = min(span.shortest_ns, work.spent.shortest_ns)
    span.hidden += work.spent.hidden
    for ns, visits in zip(work.spent.part_ns.tolist(), work.spent.part_visits.tolist(), strict=True):
        span.partly[ns] += visits


def work_of(plan: Plan, link: Landings, wants: "Wants", block: Block, walk: "Walk") -> Work:
    """What any lossless run has to do in a block; the walk goes on over it.

    compute_ns, class lossless. The GPU runs every dense part, waits out every decision and runs every step's
    end; and each visit executes each distinct wanted expert once, with all its tokens, in at least one group,
    with group `one` in one group each. These do not overlap, so their sum is a bound.

    loads, class lossless: transfers that land in the span, for executions in it. When an expert executes,
    either it has been resident since it was last executed (or since the span's begin, if not executed in it),
    or it has landed since then. So every want that is not kept has a landing of its own, and sim.outcome.packing
    says how many wants can be kept at most.
    """
    lag_ns = 2**62 if GROUPS[plan.group] == "all" else link.first_ns - link.each_ns
    spent = wants.spent(plan.costs, GROUPS[plan.group] == "one", link.each_ns, lag_ns)
    return Work(_before_ns(plan, block.first, block.last) + spent.experts_ns, walk.over(wants), spent)


def _before_ns(plan: Plan, first: int, last: int) -> Int:
    """int64 [n], for each visit of the steps first .. last - 1: from the end of its predecessor (or the span's begin)
    to its routed instant."""
    costs = plan.costs
    before = costs.dense_ns[costs.cost_class[first:last], :-1] + costs.decide_ns
    behind = max(first, plan.warmup_steps + 1)  # the first step that comes after another's end
    before[behind - first :, 0] += _step_end_ns(plan, slice(behind - 1, last - 1))
    if len(costs.draft_ns):
        before[:, 0] += costs.draft_ns[first:last]
    return before.reshape(-1)


def _step_end_ns(plan: Plan, steps: slice) -> Int:
    """int64 [steps]: what follows the last visit of each."""
    costs, classes = plan.costs, plan.costs.cost_class[steps]
    return np.asarray(costs.dense_ns[classes, -1] + costs.head_ns[classes], np.int64)


def before_each(plan: Plan, link: Landings, block: Block) -> tuple[Int, Int]:
    """int64 [n] each: compute (ns) and loads that lie before each of a block's visits."""
    from sim.outcome.packing import Wants

    work = block.work or work_of(plan, link, Wants.of(plan, block.first, block.last), block, block.walk.copy())
    return block.compute_ns + np.cumsum(work.ns) - work.ns, block.loads + np.cumsum(work.missing) - work.missing


def _routed_ns(plan: Plan) -> int:
    """From the span's begin to its first routed instant."""
    costs, first = plan.costs, plan.warmup_steps
    draft = int(costs.draft_ns[first]) if len(costs.draft_ns) else 0
    return draft + int(costs.dense_ns[costs.cost_class[first], 0]) + costs.decide_ns


def first_commit_ns(plan: Plan) -> int:
    """The least until a first transfer: the first routed instant; the run's begin where layers ahead are streamed."""
    return 0 if plan.on_miss is not None and plan.on_miss.ahead else _routed_ns(plan)


def left_link_ns(plan: Plan, link: Landings, span: Span, loads: Int | int) -> Int:
    """int64, as `loads`: least time from the span's begin to the end of a visit, by the loads that are needed until
    then; 0 without any.

    link_ns, class lossless, is this for all loads and what follows the last visit. Proof. Of the m loads, the
    first lands first_ns after its commit at least, the others each_ns after one another (Landings); nothing is
    committed before the run's first routed instant, where the queues are first filled. The last one to land
    executes after it has landed. After a warm-up the first may be about to land at the span's begin.
    """
    if plan.warmup_steps:
        return np.where(np.greater(loads, 0), _from_within_ns(link, loads) + span.shortest_ns, 0)
    begin = first_commit_ns(plan) + link.first_ns
    return np.where(np.greater(loads, 0), begin + (loads - 1) * link.each_ns + span.shortest_ns, 0)


def _from_within_ns(link: Landings, loads: Int | int) -> Int:
    """int64, as `loads`: the least until so many landings, all behind one instant within the run: the first may come at
    once."""
    return np.asarray(np.maximum(0, loads - 1 - link.partly) * link.each_ns, np.int64)


def right_link_ns(link: Landings, span: Span, loads: Int | int) -> Int:
    """int64, as `loads`: least time from a cut to the end of the run, by the loads that are needed behind it."""
    return np.where(np.greater(loads, 0), _from_within_ns(link, loads) + span.shortest_ns + span.after_ns, 0)
