"""What no policy can beat: bounds on a run's time, each for a class of policies.

Classes. *Lossless*: every wanted expert executes on the GPU in the visit that wants it (miss policy fetch),
with any eviction, any prefetch and any transfer order: oracles included; on a machine without stages
(plan.on_miss is None) of policies that keep what they fetch, on one with them of those, too, that do not.
*Demand*: lossless, and nothing is transferred before the visit that wants it is routed (no prefetch). *Any*:
whatever the policy, by this run's own transfers and kernels, perfectly overlapped; it bounds no other run, for
another policy may need less of them. The plan's machine is given: costs, slots, first residents (each placement
has bounds of its own), `group` and `commit_depth`. A policy that changes the routing (a re-ranker) is in neither
of the first two.

Span. Everything is about what the figures are about: the time from the begin of step `plan.warmup_steps` to
the end of the run. After a warm-up it is not known who is resident or under way, so the bounds allow anything
that fits the slots.

`belady_misses`, the misses of a run with the belady eviction, is not among these. With several wanted experts
in a visit it is not even the least number of misses, and a policy with more misses may hide more of them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.plan import GROUPS, NOT_ALL_FETCHED, REMOTE, Plan

if TYPE_CHECKING:  # both import numba, which takes its time
    from sim.machines.record import RunRecord
    from sim.outcome.packing import Walk, Wants

Int = npt.NDArray[np.int64]

LOSSLESS = ("loads", "compute_ns", "link_ns", "lossless_ns")
DEMAND = ("demand_ns",)
ANY = ("executed_gpu_ns", "executed_link_ns", "executed_ns")
HOST = ("executed_host_ns",)  # class any, of runs with plan.on_miss
BLOCK = 1 << 16  # expert requests of a block of steps: its arrays stay in a core's own cache
BYTES = 64  # that a block's arrays have for each of its requests, about


class _Work(NamedTuple):
    """The work of the n visits of some steps, int64 [n] each. ns: before_ns from the end of the visit before to the
    routed instant; experts_ns the least its experts phase lasts; last_ns the least one group of it lasts, 0 where
    nothing is wanted. wanted: distinct experts; missing: packing.Walk.over's, forward."""

    before_ns: Int
    experts_ns: Int
    last_ns: Int
    wanted: Int
    missing: Int


@dataclass
class _Span:
    """What the work of the span adds up to. after_ns: from the end of the last visit to the end of the run; compute_ns
    and loads: see _work; shortest_ns: the shortest group any visit can run; hidden, partly: see _exposed_ns."""

    after_ns: int
    compute_ns: int
    loads: int = 0
    shortest_ns: int = 2**62
    hidden: int = 0
    partly: Counter[int] = field(default_factory=Counter)


class _Landings(NamedTuple):
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
    def of(plan: Plan) -> "_Landings":
        first, each = plan.costs.in_a_row_ns
        if plan.chunks > 1:
            in_chunks = _in_chunks_ns(plan)
            first, each = min(first, in_chunks[0]), min(first, each, in_chunks[1])
        if plan.on_miss is not None and plan.on_miss.merge_runs:
            run_ns = plan.on_miss.run_ns[:, 1:]
            least = int((run_ns // np.arange(1, run_ns.shape[1] + 1)).min())
            first, each = min(first, least), min(each, least)
        return _Landings(first, min(first, each), int(plan.chunks > 1))


def _in_chunks_ns(plan: Plan) -> tuple[int, int]:
    """The least that the chunks of one expert take, the first of them on an idle link from its commit on; and any."""
    assert plan.on_miss is not None
    idle, following = plan.on_miss.chunk_ns + np.array([[plan.costs.commit_gap_ns], [0]])
    full, last = idle if plan.costs.commit_depth == 1 else np.minimum(idle, following)
    others = int((plan.chunks - 2) * full + last)
    return int(idle[0]) + others, int(full) + others


def applicable(plan: Plan) -> tuple[str, ...]:
    """The names of the bounds that hold for this plan's own run.

    Whoever brings every miss over the link, to a slot or a stage: all, `demand_ns` only where nothing comes before the
    visit that wants it (no prefetcher, no layers ahead, no copies that a visit leaves to the next). Others (drop, cpu,
    stand-ins, reads of host memory) leave out or move work: executed ones only, and what the host did. So with resets,
    at each of which the first residents come free of charge.
    """
    on = plan.on_miss
    any_run = ANY if on is None else (*ANY, *HOST)
    if plan.resets is not None:
        return any_run
    rules = [plan.miss] if on is None or on.bulk is None else [plan.miss, on.bulk]
    if any(rule.marks & NOT_ALL_FETCHED or rule.kind == REMOTE for rule in rules) or plan.rerank is not None:
        return any_run
    early = on is not None and (on.ahead > 0 or (on.whole_layer and not on.serial))
    return LOSSLESS + (DEMAND if plan.prefetch is None and not early else ()) + any_run


def bounds(plan: Plan, block: int | None = None) -> dict[str, int]:
    """loads, compute_ns, link_ns, lossless_ns (class: lossless) and demand_ns (class: demand), for the plan's
    span.

    Which of them bind the plan's own run, `applicable` says. The arguments are with each function below.

    The span is walked twice, a block of steps at a time: forward, adding up; then, for the best cut, from the end. A
    cut asks for what lies before it and behind it at once; what lies before the visits of a block is found again
    there, from where the first walk stood at its begin. So memory is that of one block, and of one such state for
    each. block: expert requests of a block, about (default: _block's); no value depends on it.
    """
    if plan.warmup_steps >= len(plan.step_prefill):
        return dict.fromkeys(LOSSLESS + DEMAND, 0)
    plan = replace(plan, experts=np.ascontiguousarray(plan.experts))
    link = _Landings.of(plan)
    span, begins = _span(plan, link, block)
    compute_ns = lossless_ns = span.compute_ns
    link_ns = 0
    if span.loads:
        link_ns = int(_link_ns(plan, link, span, np.array(span.loads))) + span.after_ns
        lossless_ns = max(compute_ns, link_ns, _best_cut_ns(plan, link, span, begins))
    return {
        "loads": span.loads,
        "compute_ns": compute_ns,
        "link_ns": link_ns,
        "lossless_ns": lossless_ns,
        "demand_ns": max(lossless_ns, compute_ns + _exposed_ns(link, span)),
    }


def _block(plan: Plan, walk: "Walk") -> int:
    """Expert requests of a block; more than BLOCK where a walk's state is large and the span long: all states together
    are then as large as a block's arrays, and both grow as the square root of the span."""
    rows = int(plan.step_offset[-1] - plan.step_offset[plan.warmup_steps])
    requests = rows * plan.experts.shape[1] * plan.experts.shape[2]
    return max(BLOCK, isqrt(requests * walk.nbytes // BYTES))


def blocks(plan: Plan, block: int) -> Iterator[tuple[int, int]]:
    """The span's steps in blocks, first and last + 1, of at most `block` expert requests or one step."""
    offset, first = plan.step_offset, plan.warmup_steps
    rows = block // (plan.experts.shape[1] * plan.experts.shape[2])
    while first < len(plan.step_prefill):
        last = max(first + 1, int(np.searchsorted(offset, offset[first] + rows, "right")) - 1)
        yield first, last
        first = last


def _span(plan: Plan, link: _Landings, block: int | None) -> tuple[_Span, list[tuple[int, int, "Walk"]]]:
    """What the work of all visits adds up to, and each block with the walk that stands at its begin."""
    from sim.outcome.packing import Walk, Wants  # numba: only when a bound is asked for

    everyone = np.arange(plan.experts.shape[1] * plan.n_experts)
    walk = Walk.begin(plan, everyone if plan.warmup_steps else np.asarray(plan.residents, np.int64))
    after_ns = int(_step_end_ns(plan, slice(-1, None))[0])
    span, begins = _Span(after_ns, after_ns), []
    for first, last in blocks(plan, block or _block(plan, walk)):
        begins.append((first, last, walk.copy()))
        work = _work(plan, Wants.of(plan, first, last), first, last, walk)
        span.compute_ns += int(work.before_ns.sum() + work.experts_ns.sum())
        span.loads += int(work.missing.sum())
        span.shortest_ns = int(work.last_ns.min(initial=span.shortest_ns, where=work.wanted > 0))
        _spread(plan, link, work, span)
    return span, begins


def _work(plan: Plan, wants: "Wants", first: int, last: int, walk: "Walk") -> _Work:
    """What any lossless run has to do in the steps first .. last - 1; the walk goes on over them.

    compute_ns, class lossless. The GPU runs every dense part, waits out every decision and runs every step's
    end; and each visit executes each distinct wanted expert once, with all its tokens, in at least one group,
    with group `one` in one group each. These do not overlap, so their sum is a bound.

    loads, class lossless: transfers that land in the span, for executions in it. When an expert executes,
    either it has been resident since it was last executed (or since the span's begin, if not executed in it),
    or it has landed since then. So every want that is not kept has a landing of its own, and sim.outcome.packing
    says how many wants can be kept at most.
    """
    group_ns = plan.costs.group_ns
    expert_ns, least_ns = wants.spent(plan.costs.expert_ns)
    wanted = np.diff(wants.offset)
    groups = wanted if GROUPS[plan.group] == "one" else wanted > 0
    return _Work(
        before_ns=_before_ns(plan, first, last),
        experts_ns=expert_ns + group_ns * groups,
        last_ns=least_ns + group_ns * (wanted > 0),
        wanted=wanted,
        missing=walk.over(wants)[0],
    )


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


def _routed_ns(plan: Plan) -> int:
    """From the span's begin to its first routed instant."""
    costs, first = plan.costs, plan.warmup_steps
    draft = int(costs.draft_ns[first]) if len(costs.draft_ns) else 0
    return draft + int(costs.dense_ns[costs.cost_class[first], 0]) + costs.decide_ns


def _first_commit_ns(plan: Plan) -> int:
    """The least until a first transfer: the first routed instant; the run's begin where layers ahead are streamed."""
    return 0 if plan.on_miss is not None and plan.on_miss.ahead else _routed_ns(plan)


def _link_ns(plan: Plan, link: _Landings, span: _Span, loads: Int) -> Int:
    """int64, as `loads`: least time from the span's begin to the end of a visit, by the loads that are needed until
    then; 0 without any.

    link_ns, class lossless, is this for all loads and what follows the last visit. Proof. Of the m loads, the
    first lands first_ns after its commit at least, the others each_ns after one another (_Landings); nothing is
    committed before the run's first routed instant, where the queues are first filled. The last one to land
    executes after it has landed. After a warm-up the first may be about to land at the span's begin.
    """
    if plan.warmup_steps:
        return np.where(loads > 0, _from_within_ns(link, loads) + span.shortest_ns, 0)
    begin = _first_commit_ns(plan) + link.first_ns
    return np.where(loads > 0, begin + (loads - 1) * link.each_ns + span.shortest_ns, 0)


def _from_within_ns(link: _Landings, loads: Int) -> Int:
    """int64, as `loads`: the least until so many landings, all behind one instant within the run: the first may come at
    once."""
    return np.asarray(np.maximum(0, loads - 1 - link.partly) * link.each_ns, np.int64)


def _best_cut_ns(plan: Plan, link: _Landings, span: _Span, begins: list[tuple[int, int, "Walk"]]) -> int:
    """lossless_ns, class lossless: the best cut of the run in two, at a visit's begin; with compute_ns and link_ns,
    which are the cuts at both ends.

    Proof. Cut the span at the end of any visit's predecessor. Each part takes at least its own compute; the
    first part also at least its link time (_link_ns). The second part too: whoever is resident at the
    cut, at most what fits, m of its wants have to land after it (packing.Walk, backward), the first perhaps
    at once (_from_within_ns), the others each_ns after one another, and the last of them then executes, with what
    follows the last visit behind it. So time >= the sum of both for every cut.
    """
    from sim.outcome.packing import Walk, Wants

    best = 0
    back = Walk.begin(plan, np.zeros(0, np.int64), backward=True)
    compute_behind, loads_behind, loads_before = span.after_ns, 0, span.loads
    for first, last, walk in reversed(begins):
        wants = Wants.of(plan, first, last)
        work = _work(plan, wants, first, last, walk)
        compute = compute_behind + _from_each(work.before_ns + work.experts_ns)
        behind = loads_behind + _from_each(back.over(wants)[1])
        before = loads_before - _from_each(work.missing)
        right_ns = np.where(behind > 0, _from_within_ns(link, behind) + span.shortest_ns + span.after_ns, 0)
        left = np.maximum(span.compute_ns - compute, _link_ns(plan, link, span, before))
        best = max(best, int((left + np.maximum(compute, right_ns)).max()))
        compute_behind, loads_behind, loads_before = int(compute[0]), int(behind[0]), int(before[0])
    return best


def _from_each(values: Int) -> Int:
    """int64 [n]: the sum of the values from each place on."""
    sums: Int = np.cumsum(values[::-1])[::-1]
    return sums


def _spread(plan: Plan, link: _Landings, work: _Work, span: _Span) -> None:
    """Add what a block's visits can hide to the span's `hidden` and `partly`: see _exposed_ns."""
    if link.each_ns == 0:
        return
    room = np.maximum(0, work.experts_ns - work.last_ns - (link.first_ns - link.each_ns))
    if GROUPS[plan.group] == "all":
        room[:] = 0
    hidden = np.minimum(room // link.each_ns, work.wanted)
    partly = ((hidden + 1) * link.each_ns - room)[hidden < work.wanted]
    span.hidden += int(hidden.sum())
    values, counts = np.unique(partly, return_counts=True)
    span.partly.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _exposed_ns(link: _Landings, span: _Span) -> int:
    """demand_ns, class demand, is compute_ns and this: the least stall when each visit's transfers lie inside
    its experts phase.

    Proof. A visit's m transfers start after its routed instant on an idle link (those of earlier visits have
    landed, for somebody waited for them), and the last to land executes afterwards: the phase lasts at least
    first_ns + (m - 1) each_ns + last_ns. It can hide at most room_ns = experts_ns - last_ns - (first_ns -
    each_ns), and is longer than experts_ns by at least m each_ns - room_ns. With group `all` it hides
    nothing: no group runs while a transfer is under way or can be committed. As a function of m this excess
    is 0 up to some m, then rises by a part of each_ns, then by each_ns; m is at most the number of wanted
    experts. It is convex, so giving the loads to the cheapest increments is the least sum over all ways to
    spread them, and any run spreads at least `loads` (_work).

    Of these increments the span knows how many are 0 (hidden), and of the parts of each_ns how many there are of each
    value (partly): no more values than there are visits that differ in the tokens of their experts.
    """
    left, exposed = max(0, span.loads - span.hidden), 0
    for ns, visits in sorted(span.partly.items()):
        exposed += ns * min(left, visits)
        left -= min(left, visits)
    return exposed + left * link.each_ns


def executed_bounds(plan: Plan, record: "RunRecord") -> dict[str, int]:
    """executed_gpu_ns, executed_link_ns and their maximum executed_ns (class any): this run's own transfers and
    kernels, perfectly overlapped.

    Proof. Drafts, dense parts, decisions, groups and step ends are never two at a time, so the time is at least the
    sum of those of this run (executed_gpu_ns): the time with the same work and no waiting. The link carries
    one transfer at a time and, without a warm-up, none before the first routed instant, so the time is at
    least that instant and the link's busy time (executed_link_ns). What the host computed is in neither; where it
    is counted (plan.on_miss), it does one thing at a time, too (executed_host_ns). Needs no full record.
    """
    k = record.counters
    gpu_ns = k["dense_ns"] + k["decide_ns"] + k["experts_ns"] + k["head_ns"] + k.get("draft_ns", 0)
    link_ns = k["link_busy_ns"]
    if link_ns and not plan.warmup_steps:
        link_ns += _first_commit_ns(plan)
    host = {} if plan.on_miss is None else {"executed_host_ns": int(k["host_ns"])}
    most = max(gpu_ns, link_ns, *host.values())
    return {"executed_gpu_ns": gpu_ns, "executed_link_ns": link_ns, "executed_ns": most, **host}
