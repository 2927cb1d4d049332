"""What no policy can beat: bounds on a run's time, each for a class of policies.

Classes. *Lossless*: every wanted expert executes on the GPU in the visit that wants it (miss policy fetch),
with any eviction, any prefetch and any transfer order: oracles included. *Demand*: lossless, and nothing is
transferred before the visit that wants it is routed (no prefetch). *Any*: whatever the policy, by this
run's own transfers and kernels, perfectly overlapped; it bounds no other run, for another policy may need less
of them. The plan's machine is given: costs, slots, first residents (each placement has bounds of its own),
`group` and `commit_depth`. A policy that changes the routing (a re-ranker) is in neither of the first two.

Span. Everything is about what the figures are about: the time from the begin of step `plan.warmup_steps` to
the end of the run. After a warm-up it is not known who is resident or under way, so the bounds allow anything
that fits the slots.

`belady_misses`, the misses of a run with the belady eviction, is not among these. With several wanted experts
in a visit it is not even the least number of misses, and a policy with more misses may hide more of them.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core.plan import GROUPS, NOT_ALL_FETCHED, Plan

if TYPE_CHECKING:
    from sim.record import RunRecord  # imports numba, which takes its time

Int = npt.NDArray[np.int64]

LOSSLESS = ("loads", "compute_ns", "link_ns", "lossless_ns")
DEMAND = ("demand_ns",)
ANY = ("executed_gpu_ns", "executed_link_ns", "executed_ns")


class _Work(NamedTuple):
    """The work of the n visits of the span. ns: before_ns [n] from the end of the visit before to the routed
    instant; experts_ns [n] the least its experts phase lasts; last_ns [n] the least one group of it lasts;
    after_ns from the end of the last visit to the end of the run. wanted [n]: distinct experts; missing,
    suffix_dropped: packing.pack's, [n]."""

    before_ns: Int
    experts_ns: Int
    last_ns: Int
    after_ns: int
    wanted: Int
    missing: Int
    suffix_dropped: Int

    @property
    def compute_ns(self) -> int:
        return int(self.before_ns.sum() + self.experts_ns.sum()) + self.after_ns


class _Link(NamedTuple):
    """first_ns: from an idle link's commit to the landing; each_ns: the least between two landings, one after
    the other.

    Proof. A transfer committed with nothing in flight lands first_ns = commit_gap_ns + transfer_ns[0] later,
    and so at least that after the landing before it. Any other, possible with commit_depth > 1 only, starts
    when its predecessor lands.
    """

    first_ns: int
    each_ns: int

    @staticmethod
    def of(plan: Plan) -> "_Link":
        idle, following = plan.costs.transfer_ns.tolist()
        first = idle + plan.costs.commit_gap_ns
        return _Link(first, first if plan.costs.commit_depth == 1 else min(first, following))


def applicable(plan: Plan) -> tuple[str, ...]:
    """The names of the bounds that hold for this plan's own run.

    Whoever fetches every miss: all, `demand_ns` only without a prefetcher. Others (drop, cpu, stand-ins) leave out or
    move work: executed ones only.
    """
    if plan.miss.marks & NOT_ALL_FETCHED or plan.rerank is not None:
        return ANY
    return LOSSLESS + (DEMAND if plan.prefetch is None else ()) + ANY


def bounds(plan: Plan) -> dict[str, int]:
    """loads, compute_ns, link_ns, lossless_ns (class: lossless) and demand_ns (class: demand), for the plan's
    span.

    Which of them bind the plan's own run, `applicable` says. The arguments are with each function below.
    """
    if plan.warmup_steps >= len(plan.step_prefill):
        return dict.fromkeys(LOSSLESS + DEMAND, 0)
    work, link = _work(plan), _Link.of(plan)
    loads = int(work.missing.sum())
    link_ns = int(_link_prefix_ns(plan, work, link)[-1]) + work.after_ns if loads else 0
    lossless_ns = _lossless_ns(plan, work, link)
    return {
        "loads": loads,
        "compute_ns": work.compute_ns,
        "link_ns": link_ns,
        "lossless_ns": lossless_ns,
        "demand_ns": max(lossless_ns, work.compute_ns + _exposed_ns(plan, work, link, loads)),
    }


def _work(plan: Plan) -> _Work:
    """What any lossless run has to do.

    compute_ns, class lossless. The GPU runs every dense part, waits out every decision and runs every step's
    end; and each visit executes each distinct wanted expert once, with all its tokens, in at least one group,
    with group `one` in one group each. These do not overlap, so their sum is a bound.

    loads, class lossless: transfers that land in the span, for executions in it. When an expert executes,
    either it has been resident since it was last executed (or since the span's begin, if not executed in it),
    or it has landed since then. So every want that is not kept has a landing of its own, and packing.pack
    says how many wants can be kept at most.
    """
    from sim.packing import Wants, pack  # numba: only when a bound is asked for

    wants, costs = Wants.of(plan), plan.costs
    expert_ns = costs.expert_ns[wants.tokens]
    wanted, asked = np.diff(wants.offset), wants.offset[:-1] < wants.offset[1:]
    groups = wanted if GROUPS[plan.group] == "one" else asked
    experts_ns, last_ns = np.zeros((2, len(wanted)), np.int64)
    if asked.any():
        first = wants.offset[:-1][asked]
        experts_ns[asked] = np.add.reduceat(expert_ns, first)
        last_ns[asked] = np.minimum.reduceat(expert_ns, first) + costs.group_ns
    everyone = np.arange(plan.experts.shape[1] * plan.n_experts)
    initial = everyone if plan.warmup_steps else np.asarray(plan.residents, np.int64)
    before_ns, after_ns = _between(plan)
    return _Work(
        before_ns=before_ns,
        experts_ns=experts_ns + costs.group_ns * groups,
        last_ns=last_ns,
        after_ns=after_ns,
        wanted=wanted,
        missing=pack(plan, wants, initial)[0],
        suffix_dropped=pack(plan, wants, np.zeros(0, np.int64), backward=True)[1],
    )


def _between(plan: Plan) -> tuple[Int, int]:
    """int64 [n] from the end of each visit's predecessor (or the span's begin) to its routed instant; and
    what follows the last."""
    costs, classes = plan.costs, plan.costs.cost_class[plan.warmup_steps :]
    before = costs.dense_ns[classes, :-1] + costs.decide_ns
    step_end = costs.dense_ns[classes, -1] + costs.head_ns[classes]
    before[1:, 0] += step_end[:-1]
    return before.reshape(-1), int(step_end[-1])


def _shortest_ns(work: _Work) -> int:
    """The shortest group any visit can run, 0 if none wants anything."""
    groups = work.last_ns[work.wanted > 0]
    return int(groups.min()) if len(groups) else 0


def _link_prefix_ns(plan: Plan, work: _Work, link: _Link) -> Int:
    """int64 [n + 1]: least time from the span's begin to the end of visit b - 1, by the loads its visits
    need; 0 without any.

    link_ns, class lossless, is the last of these and what follows the last visit. Proof. Of the m loads, the
    first lands first_ns after its commit at least, the others each_ns after one another (_Link); nothing is
    committed before the run's first routed instant, where the queues are first filled. The last one to land
    executes after it has landed. After a warm-up the first may be about to land at the span's begin.
    """
    loads = np.concatenate([[0], np.cumsum(work.missing)])
    begin = 0 if plan.warmup_steps else int(work.before_ns[0]) + link.first_ns
    return np.where(loads > 0, begin + (loads - 1) * link.each_ns + _shortest_ns(work), 0)


def _lossless_ns(plan: Plan, work: _Work, link: _Link) -> int:
    """lossless_ns, class lossless: the best cut of the run in two.

    Proof. Cut the span at the end of any visit's predecessor. Each part takes at least its own compute; the
    first part also at least its link time (_link_prefix_ns). The second part too: whoever is resident at the
    cut, at most what fits, m of its wants have to land after it (packing.pack, backward), the first perhaps
    at once, the others each_ns after one another, and the last of them then executes, with what follows the
    last visit behind it. So time >= the sum of both for every cut. The cuts at both ends make this at least
    compute_ns and at least link_ns.
    """
    compute = np.concatenate([[0], np.cumsum(work.before_ns + work.experts_ns)])
    loads = np.concatenate([np.cumsum(work.suffix_dropped[::-1])[::-1], [0]])
    link_suffix = np.where(loads > 0, (loads - 1) * link.each_ns + _shortest_ns(work) + work.after_ns, 0)
    left = np.maximum(compute, _link_prefix_ns(plan, work, link))
    right = np.maximum(work.compute_ns - compute, link_suffix)
    return int((left + right).max())


def _exposed_ns(plan: Plan, work: _Work, link: _Link, loads: int) -> int:
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
    """
    if link.each_ns == 0 or loads == 0:
        return 0
    room = np.maximum(0, work.experts_ns - work.last_ns - (link.first_ns - link.each_ns))
    if GROUPS[plan.group] == "all":
        room[:] = 0
    hidden = np.minimum(room // link.each_ns, work.wanted)
    partly = np.sort(((hidden + 1) * link.each_ns - room)[hidden < work.wanted])
    left = max(0, loads - int(hidden.sum()))
    return int(partly[:left].sum()) + max(0, left - len(partly)) * link.each_ns


def executed_bounds(plan: Plan, record: "RunRecord") -> dict[str, int]:
    """executed_gpu_ns, executed_link_ns and their maximum executed_ns (class any): this run's own transfers and
    kernels, perfectly overlapped.

    Proof. Dense parts, decisions, groups and step ends are never two at a time, so the time is at least the
    sum of those of this run (executed_gpu_ns): the time with the same work and no waiting. The link carries
    one transfer at a time and, without a warm-up, none before the first routed instant, so the time is at
    least that instant and the link's busy time (executed_link_ns). What the host computed is not in either.
    Needs no full record.
    """
    k = record.counters
    gpu_ns = k["dense_ns"] + k["decide_ns"] + k["experts_ns"] + k["head_ns"]
    link_ns = k["link_busy_ns"]
    if link_ns and not plan.warmup_steps:
        link_ns += int(_between(plan)[0][0])
    return {"executed_gpu_ns": gpu_ns, "executed_link_ns": link_ns, "executed_ns": max(gpu_ns, link_ns)}
