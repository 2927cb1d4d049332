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

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sim.core.plan import NOT_ALL_FETCHED, REMOTE, Plan
from sim.outcome.span import (
    Block,
    Landings,
    Span,
    before_each,
    first_commit_ns,
    left_link_ns,
    right_link_ns,
    span_of,
)

if TYPE_CHECKING:  # imports numba, which takes its time
    from sim.machines.record import RunRecord

LOSSLESS = ("loads", "compute_ns", "link_ns", "lossless_ns")
DEMAND = ("demand_ns",)
ANY = ("executed_gpu_ns", "executed_link_ns", "executed_ns")
HOST = ("executed_host_ns",)  # class any, of runs with plan.on_miss
Pairs = list[tuple[Block, Block]]  # each block of the span, and the one behind it


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

    The span is walked forward, a block of steps at a time, adding up; then, for the best cut, from the end back to
    the first block in which there may be one. A cut asks for what lies before it and behind it at once; what lies
    before the visits of a block is found again there, from where the first walk stood at its begin. So memory is that
    of one block, and of one such state for each. block: wants of a block, at most (default: block_size's); no value
    depends on it.
    """
    if plan.warmup_steps >= len(plan.step_prefill):
        return dict.fromkeys(LOSSLESS + DEMAND, 0)
    plan = replace(plan, experts=np.ascontiguousarray(plan.experts))
    link = Landings.of(plan)
    span, found = span_of(plan, link, block)
    compute_ns = lossless_ns = span.compute_ns
    link_ns = 0
    if span.loads:
        link_ns = int(left_link_ns(plan, link, span, span.loads)) + span.after_ns
        lossless_ns = _best_cut_ns(plan, link, span, found, max(compute_ns, link_ns))
    return {
        "loads": span.loads,
        "compute_ns": compute_ns,
        "link_ns": link_ns,
        "lossless_ns": lossless_ns,
        "demand_ns": max(lossless_ns, compute_ns + _exposed_ns(link, span)),
    }


def _best_cut_ns(plan: Plan, link: Landings, span: Span, found: list[Block], best: int) -> int:
    """lossless_ns, class lossless: the best cut of the run in two, at a visit's begin. best: the better of compute_ns
    and link_ns, which are the cuts at both ends.

    Proof. Cut the span at the end of any visit's predecessor. Each part takes at least its own compute; the
    first part also at least its link time (left_link_ns). The second part too: whoever is resident at the
    cut, at most what fits, m of its wants have to land after it (packing.Walk, backward), the first perhaps
    at once (_from_within_ns), the others each_ns after one another, and the last of them then executes, with what
    follows the last visit behind it. So time >= the sum of both for every cut.

    Nothing is walked backward for a block of which it is known from what lies before (_forward) that no cut in it is
    better, unless it lies behind one of which that is not known.
    """
    ends = [*found[1:], Block(0, 0, found[0].walk, span.compute_ns - span.after_ns, span.loads)]
    pairs = list(zip(found, ends, strict=True))
    best, done = _forward(plan, link, span, pairs, best)
    return _backward(plan, link, span, pairs[done:], best)


def _forward(plan: Plan, link: Landings, span: Span, pairs: Pairs, best: int) -> tuple[int, int]:
    """(the best, how many blocks hold no better cut) by the cuts with the link before them and compute behind, which
    need nothing from behind; and by what the others do not exceed: the loads behind a cut are no more than those of the
    span that are not before it (_twice_ns)."""
    for done, (block, end) in enumerate(pairs):
        if _most_ns(plan, link, span, block, end, span.loads - block.loads) <= best:
            continue
        before_ns, before = before_each(plan, link, block)
        left_ns = left_link_ns(plan, link, span, before)
        best = max(best, int((left_ns + span.compute_ns - before_ns).max()))
        others_ns = np.maximum(before_ns, left_ns) + right_link_ns(link, span, span.loads - before)
        if others_ns.max() > best:
            return best, done
    return best, len(pairs)


def _backward(plan: Plan, link: Landings, span: Span, pairs: Pairs, best: int) -> int:
    """The best, by all cuts in these blocks, the last of the span."""
    from sim.outcome.packing import Walk, Wants

    back, loads_behind = Walk.begin(plan, np.zeros(0, np.int64), backward=True), 0
    for block, end in reversed(pairs):
        dropped = back.over(Wants.of(plan, block.first, block.last))
        behind = loads_behind + np.cumsum(dropped[::-1])[::-1]
        loads_behind = int(behind[0])
        if _most_ns(plan, link, span, block, end, loads_behind) > best:
            before_ns, before = before_each(plan, link, block)
            left_ns = np.maximum(before_ns, left_link_ns(plan, link, span, before))
            right_ns = np.maximum(span.compute_ns - before_ns, right_link_ns(link, span, behind))
            best = max(best, int((left_ns + right_ns).max()))
    return best


def _most_ns(plan: Plan, link: Landings, span: Span, block: Block, end: Block, behind: int) -> int:
    """What no cut in a block exceeds but compute_ns, if `behind` loads are needed behind its begin. end: the next one.

    What lies before a cut grows with it, and what lies behind it falls: so compute before and link behind are at most
    those of the block's end and of its begin, and the other way round. The link on both sides: see _twice_ns.
    """
    before_ns = int(left_link_ns(plan, link, span, end.loads))
    behind_ns = int(right_link_ns(link, span, behind))
    one_side = max(end.compute_ns + behind_ns, before_ns + span.compute_ns - block.compute_ns)
    return max(_twice_ns(plan, link, span), one_side)


def _twice_ns(plan: Plan, link: Landings, span: Span) -> int:
    """What no cut exceeds with the link on both sides: link_ns, with a group on both.

    For the loads before a cut and behind it are no more than those of the span: an interval kept in the best packing of
    all ends before the cut, or begins behind it, or is cut off, and then it may be kept behind it.
    """
    link_ns = int(left_link_ns(plan, link, span, span.loads)) + span.after_ns
    return link_ns + max(0, span.shortest_ns - (link.each_ns if span.loads > 1 + link.partly else 0))


def _exposed_ns(link: Landings, span: Span) -> int:
    """demand_ns, class demand, is compute_ns and this: the least stall when each visit's transfers lie inside
    its experts phase.

    Proof. A visit's m transfers start after its routed instant on an idle link (those of earlier visits have
    landed, for somebody waited for them), and the last to land executes afterwards: the phase lasts at least
    first_ns + (m - 1) each_ns + last_ns. It can hide at most room_ns = experts_ns - last_ns - (first_ns -
    each_ns), and is longer than experts_ns by at least m each_ns - room_ns. With group `all` it hides
    nothing: no group runs while a transfer is under way or can be committed. As a function of m this excess
    is 0 up to some m, then rises by a part of each_ns, then by each_ns; m is at most the number of wanted
    experts. It is convex, so giving the loads to the cheapest increments is the least sum over all ways to
    spread them, and any run spreads at least `loads` (work_of).

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
        link_ns += first_commit_ns(plan)
    host = {} if plan.on_miss is None else {"executed_host_ns": int(k["host_ns"])}
    most = max(gpu_ns, link_ns, *host.values())
    return {"executed_gpu_ns": gpu_ns, "executed_link_ns": link_ns, "executed_ns": most, **host}
