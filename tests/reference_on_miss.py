"""The independent reference's parts of what engines do on a miss: stages, admissions, the split, host work, link share.

Like the rest of the reference it shares nothing with the machines but the plan. Experts are global ids here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from sim.core.plan import ADMIT_PARAMS, SPLIT_PARAMS, SPLITS, Choice, OnMiss, Plan

TOTALS = (
    "streamed remote admitted admission_replaced admission_rejected link_transfers"
    " landed_demand landed_prefetch landed_background landed_admission landed_stream staged host_ns chunks"
)


def on_miss_of(plan: Plan) -> OnMiss:
    """What the plan says, or for one that says nothing: what changes nothing."""
    if plan.on_miss is not None:
        return plan.on_miss
    run_ns = np.stack([np.zeros(2, np.int64), plan.costs.transfer_ns], axis=1)
    return OnMiss(run_ns, np.zeros(len(plan.step_prefill), np.bool_))


def is_bulk(plan: Plan, step: int) -> bool:
    """Rows decide: whether the bulk rule answers in a step's visits."""
    on = plan.on_miss
    return on is not None and on.bulk is not None and bool(on.step_bulk[step])


def rule_of(plan: Plan, step: int) -> Choice:
    bulk = on_miss_of(plan).bulk
    return bulk if bulk is not None and is_bulk(plan, step) else plan.miss


def takes_no_slot(plan: Plan, layer: int) -> bool:
    """Whether nobody new gets a slot in a layer, because it has none or because residents are static."""
    if plan.on_miss is None:
        return False
    return plan.eviction.name == "static" or int(plan.slots[0 if plan.pooled else layer]) == 0


def streams(plan: Plan, step: int, layer: int) -> bool:
    """Whether a visit streams what it misses."""
    name = rule_of(plan, step).name
    return name == "stream" or (name == "fetch" and takes_no_slot(plan, layer))


class Stages:
    """Staging buffers of one expert each: claimed at a commit, holding a copy from its landing on."""

    def __init__(self, plan: Plan) -> None:
        on = on_miss_of(plan)
        self.number = on.stages or ((on.ahead + 1) * plan.n_experts if on.ahead else inf)
        self.coming = 0
        self.holding: set[int] = set()

    def free(self) -> float:
        return self.number - self.coming - len(self.holding)

    def claim(self) -> None:
        self.coming += 1

    def land(self, expert: int, stays: bool) -> None:
        self.coming -= 1
        if stays:
            self.holding.add(expert)

    def free_layer(self, layer: int, n_experts: int) -> None:
        self.holding = {expert for expert in self.holding if expert // n_experts != layer}


class Admissions:
    """Who may be admitted behind a miss that the CPU computes, and for whom it may be evicted."""

    def __init__(self, plan: Plan) -> None:
        self.on = plan.miss.name == "cpu-admit"
        params = plan.miss.params if self.on else np.zeros(len(ADMIT_PARAMS))
        self.params = dict(zip(ADMIT_PARAMS, map(float, params), strict=True))
        self.misses: Counter[int] = Counter()
        self.executed_at: dict[int, int] = {}  # expert -> visits of its layer decided when it last ran from its slot

    def limit(self, name: str) -> float:
        """A limit, -1 being none."""
        return inf if self.params[name] < 0 else self.params[name]

    def counts(self, bulk: bool) -> bool:
        return self.on and (not bulk or bool(self.params["warm"]))

    def takes_candidates(self, bulk: bool, rows: int) -> bool:
        return self.counts(bulk) and (bulk or rows <= self.limit("max_rows"))

    def is_candidate(self, expert: int, free: int) -> bool:
        return self.misses[expert] >= self.params["admit_after" if free > 0 else "replace_after"]

    def may_replace(self, expert: int) -> bool:
        return self.misses[expert] >= self.params["replace_after"]

    def spares(self, expert: int, decided: int) -> bool:
        """Whether a resident of a layer, of which so many visits are decided, ran in one of the last few."""
        return expert in self.executed_at and decided - self.executed_at[expert] < self.params["spare"]


def over_the_link(plan: Plan, rule: Choice, misses: Sequence[int], tokens: Mapping[int, int], gpu_ns: int) -> list[int]:
    """Which of a visit's misses (in order of first appearance) a split rule sends over the link, first one first.

    gpu_ns: what the experts that are hits take on the GPU.
    """
    params = dict(zip(SPLIT_PARAMS, map(int, rule.params), strict=True))
    order = sorted(misses, key=lambda expert: -tokens[expert])
    counts = [tokens[expert] for expert in order]
    kind = SPLITS[params["by"]]
    if kind == "share":
        return order[: share(plan, counts, params["least"])]
    if kind == "makespan":
        return order[: makespan(plan, counts, gpu_ns)]
    table = on_miss_of(plan).table
    return order[: int(table[min(len(order), len(table) - 1)])]


def share(plan: Plan, tokens: Sequence[int], least: int) -> int:
    """How many of the experts, in order, so that the link and the CPU are done soonest."""
    costs, visit_ns = plan.costs, on_miss_of(plan).cpu_visit_ns

    def cost(q: int) -> int:
        cpu_ns = sum(int(costs.cpu_expert_ns[1, count]) for count in tokens[q:])
        return max(q * int(costs.transfer_ns[1]), visit_ns + cpu_ns if q < len(tokens) else 0)

    return min(range(min(least, len(tokens)), len(tokens) + 1), key=cost)


def makespan(plan: Plan, tokens: Sequence[int], gpu_ns: int) -> int:
    """HybriMoE: the one with the most tokens by the link or the one with the fewest by the CPU, whoever ends first."""
    costs, left, q = plan.costs, list(tokens), 0
    gpu, link, cpu = gpu_ns, 0, on_miss_of(plan).cpu_visit_ns
    while left:
        by_link = max(link + int(costs.transfer_ns[1]), gpu) + int(costs.expert_ns[left[0]])
        by_cpu = cpu + int(costs.cpu_expert_ns[1, left[-1]])
        if by_link < by_cpu:
            link, gpu, q = link + int(costs.transfer_ns[1]), by_link, q + 1
            left.pop(0)
        else:
            cpu = by_cpu
            left.pop()
    return q


def deferred(on_cpu: Sequence[Sequence[tuple[int, int, float]]], n: int) -> set[int]:
    """Experts whose entries are all deferred. on_cpu: of each token the entries (slot, expert, weight) that the CPU
    computes, of which the n of least weight are deferred, of equal ones the later slot."""
    late, now = set[int](), set[int]()
    for entries in on_cpu:
        lightest = sorted(entries, key=lambda entry: (entry[2], -entry[0]))
        late |= {expert for _, expert, _ in lightest[:n]}
        now |= {expert for _, expert, _ in lightest[n:]}
    return late - now


def slowed(plan: Plan, full_ns: int, host_ns: int) -> int:
    """How long the link takes for `full_ns` of its full rate while the host works for the next `host_ns`."""
    n, d = on_miss_of(plan).link_share
    if host_ns <= 0 or n == d:
        return full_ns
    all_slow = -(-full_ns * d // n)
    return all_slow if all_slow <= host_ns else host_ns + full_ns - host_ns * n // d
