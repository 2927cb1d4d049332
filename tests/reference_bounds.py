"""The bounds of sim.outcome.bounds in a second spelling: plain Python over all visits at once, and another greedy (drop
the interval that ends furthest; sim.outcome.packing keeps those that end first). Small plans only."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from sim.core.plan import GROUPS, Plan
from tests.plans import plan

Visit = Counter[int]  # rows of each wanted global id


def visits_of(p: Plan) -> list[Visit]:
    """From step `warmup_steps` on."""
    out = []
    for s in range(p.warmup_steps, len(p.step_prefill)):
        rows = p.step_row[p.step_offset[s] : p.step_offset[s + 1]]
        for layer in range(p.experts.shape[1]):
            ids = [layer * p.n_experts + e for e in p.experts[rows, layer].ravel().tolist() if e >= 0]
            out.append(Counter(ids))
    return out


def drop_the_furthest(p: Plan, visits: list[Visit], initial: list[int]) -> tuple[list[int], list[int]]:
    """For each visit: wants before which no interval was kept, and intervals dropped at it or right behind it. The
    visits of one scope are those that want experts of it."""
    following: list[dict[int, float]] = []
    ahead: dict[int, float] = {}
    for i in range(len(visits) - 1, -1, -1):
        following.append({g: ahead.get(g, math.inf) for g in visits[i]})
        ahead |= dict.fromkeys(visits[i], i)
    following.reverse()
    scope_of = lambda g: 0 if p.pooled else g // p.n_experts  # noqa: E731 - a def would say no more
    opened: list[dict[int, float]] = [{} for _ in p.slots]
    for g in initial:
        opened[scope_of(g)][g] = ahead.get(g, math.inf)
    for mine, slots in zip(opened, p.slots.tolist(), strict=True):
        trim(mine, slots)
    missing, dropped = [0] * len(visits), [0] * len(visits)
    for i, wanted in enumerate(visits):
        for g in list(wanted)[:1]:
            mine, slots = opened[scope_of(g)], int(p.slots[scope_of(g)])
            missing[i] = sum(mine.pop(g, None) is None for g in wanted)
            dropped[i] = trim(mine, slots - 1)
            mine |= following[i]
            dropped[i] += trim(mine, slots)
    return missing, dropped


def trim(opened: dict[int, float], most: int) -> int:
    gone = sorted(opened, key=lambda g: opened[g])[most:]
    for g in gone:
        del opened[g]
    return len(gone)


def reference_bounds(p: Plan) -> dict[str, int]:
    """What sim.outcome.bounds.bounds returns."""
    c, visits, layers = p.costs, visits_of(p), p.experts.shape[1]
    if not visits:
        return dict.fromkeys(("loads", "compute_ns", "link_ns", "lossless_ns", "demand_ns"), 0)
    one, every = GROUPS[p.group] == "one", GROUPS[p.group] == "all"
    first = int(c.transfer_ns[0]) + c.commit_gap_ns
    each = first if c.commit_depth == 1 else min(first, int(c.transfer_ns[1]))
    before, experts, least = [], [], []
    for v, wanted in enumerate(visits):
        kind = c.cost_class[p.warmup_steps + v // layers]
        behind = c.cost_class[p.warmup_steps + v // layers - 1]
        end = int(c.dense_ns[behind, -1] + c.head_ns[behind]) if v and v % layers == 0 else 0
        draft = int(c.draft_ns[p.warmup_steps + v // layers]) if len(c.draft_ns) and v % layers == 0 else 0
        before.append(end + draft + int(c.dense_ns[kind, v % layers]) + c.decide_ns)
        ns = [int(c.expert_ns[n]) for n in wanted.values()]
        experts.append(sum(ns) + c.group_ns * (len(ns) if one else min(1, len(ns))))
        least.append(min(ns) + c.group_ns if ns else None)
    after = int(c.dense_ns[c.cost_class[-1], -1] + c.head_ns[c.cost_class[-1]])
    shortest = min((ns for ns in least if ns is not None), default=0)
    everyone = list(range(layers * p.n_experts))
    missing, _ = drop_the_furthest(p, visits, everyone if p.warmup_steps else p.residents.tolist())
    dropped = drop_the_furthest(p, visits[::-1], [])[1][::-1]
    begin = 0 if p.warmup_steps else before[0] + first

    def link(loads: int, around: int) -> int:
        return around + (loads - 1) * each + shortest if loads else 0

    compute, loads = sum(before) + sum(experts) + after, sum(missing)
    cuts = []
    for b in range(len(visits) + 1):
        left = max(sum(before[:b]) + sum(experts[:b]), link(sum(missing[:b]), begin))
        right = max(sum(before[b:]) + sum(experts[b:]) + after, link(sum(dropped[b:]), after))
        cuts.append(left + right)
    increments = []
    for wanted, ns, last in zip(visits, experts, least, strict=True):
        room = 0 if every or last is None else max(0, ns - last - (first - each))
        increments += [max(0, (m + 1) * each - room) - max(0, m * each - room) for m in range(len(wanted))]
    stall = sum(sorted(increments)[:loads])
    return {
        "loads": loads,
        "compute_ns": compute,
        "link_ns": link(loads, begin) + after if loads else 0,
        "lossless_ns": max(cuts),
        "demand_ns": max(*cuts, compute + stall),
    }


def long_plan(seed: int) -> Plan:
    """A plan of many more visits than slots, over everything that the bounds read."""
    rng = np.random.default_rng([seed, 7])
    some = lambda *values: int(rng.choice(values))  # noqa: E731 - a def would say no more
    layers, n_experts, tokens = some(1, 2, 3), some(2, 4, 9), some(30, 90)
    order = np.argsort(rng.random((tokens, layers, n_experts)) ** (1 + np.arange(n_experts)), axis=-1)
    wanted = order[..., : some(1, 2, n_experts)]
    wanted = np.where(rng.random(wanted.shape) < rng.choice([0, 0.1, 0.5]), -1, wanted)
    cuts = np.sort(rng.choice(np.arange(1, tokens), tokens - some(1, 2, tokens // 2), replace=False))
    steps = [part.tolist() for part in np.split(rng.permutation(tokens), cuts)]
    pooled = bool(rng.random() < 0.4)
    slots = rng.integers(1, n_experts * (layers if pooled else 1) + 1, 1 if pooled else layers)
    residents = rng.permutation(layers * n_experts)
    if pooled:
        residents = residents[: slots[0]]
    else:
        residents = np.concatenate([residents[residents // n_experts == i][: slots[i]] for i in range(layers)])
    p = plan(
        wanted, n_experts, slots, steps, residents=residents[: some(0, 1, len(residents))], pooled=pooled,
        group=some(0, 1, 2), group_set_up=some(0, 2, 150), expert=some(0, 1, 5, 20), per_token=some(0, 2),
        transfer=(some(0, 1, 10, 100), some(0, 1, 10, 90)), gap=some(0, 3), depth=some(1, 1, 2, 100), decide=some(0, 4),
    )  # fmt: skip
    costs = replace(
        p.costs,
        cost_class=rng.integers(0, 3, len(steps)).astype(np.int32),
        dense_ns=rng.choice([0, 1, 10, 300], (3, layers + 1)),
        head_ns=rng.choice([0, 7], 3),
    )
    return replace(p, costs=costs, warmup_steps=some(0, 0, 1, 5, len(steps) - 1))
