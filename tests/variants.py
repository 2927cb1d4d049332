"""Plans made from other plans, and plans of one special kind: for laws that hold only there."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from sim.core.plan import Plan
from sim.policies.registry import MISS
from tests.plans import evicting, leaving_of, named, plan


def with_eviction(plan: Plan, name: str) -> Plan:
    """The same under another eviction, with what that one looks back on (weights drawn where there are none)."""
    steps = [plan.step_row[lo:hi].tolist() for lo, hi in pairwise(plan.step_offset)]
    weights = plan.weights
    if name == "window-score" and weights is None:
        weights = np.random.default_rng(0).random(plan.experts.shape).astype(np.float16)
    return replace(plan, eviction=evicting(name), leaving=leaving_of(name, steps), weights=weights)


def with_slots(plan: Plan, slots: int) -> Plan:
    """The same run with this many slots in every scope, all empty at first."""
    return replace(plan, slots=np.full_like(plan.slots, slots), residents=np.zeros(0, np.int64))


def lossless(plan: Plan) -> Plan:
    """The same wants under lru and fetch, without prefetch."""
    return replace(with_eviction(plan, "lru"), prefetch=None, miss=named(MISS["fetch"], ()))


def per_layer(plan: Plan) -> Plan:
    """The same with slots of its own for each layer: a pool is shared out evenly and starts empty."""
    if not plan.pooled:
        return plan
    layers = plan.experts.shape[1]
    slots = np.full(layers, min(plan.n_experts, 1 + plan.slots[0] // layers))
    return replace(plan, pooled=False, slots=slots, residents=np.zeros(0, np.int64))


def everything_resident(plan: Plan) -> Plan:
    n = plan.experts.shape[1] * plan.n_experts
    slots = np.array([n]) if plan.pooled else np.full_like(plan.slots, plan.n_experts)
    return replace(plan, slots=slots, residents=np.arange(n))


def compute_ns(plan: Plan) -> int:
    """Dense parts, decisions, experts and heads, by hand: nothing waits."""
    costs, layers, ns = plan.costs, plan.experts.shape[1], 0
    for step, kind in enumerate(costs.cost_class):
        ns += int(costs.dense_ns[kind].sum()) + layers * costs.decide_ns + int(costs.head_ns[kind])
        wanted = plan.experts[plan.step_row[plan.step_offset[step] : plan.step_offset[step + 1]]]
        for layer in range(layers):
            tokens = np.unique(wanted[:, layer][wanted[:, layer] >= 0], return_counts=True)[1]
            groups = len(tokens) if plan.group == 0 else min(len(tokens), 1)
            ns += groups * costs.group_ns + int(costs.expert_ns[tokens].sum())
    return ns


def without_transfer_time(plan: Plan) -> Plan:
    none = np.zeros(2, np.int64)
    low = None if plan.low is None else replace(plan.low, transfer_ns=none)
    on = None if plan.on_miss is None else replace(plan.on_miss, run_ns=np.zeros_like(plan.on_miss.run_ns))
    return replace(plan, costs=replace(plan.costs, transfer_ns=none, commit_gap_ns=0), low=low, on_miss=on)


def rerouted_after(plan: Plan, step: int, seed: int) -> Plan:
    """The same plan with other wanted experts in every step behind `step`; the prefetcher's lists stay."""
    rng = np.random.default_rng(seed)
    experts = plan.experts.copy()
    for token in plan.step_row[plan.step_offset[step + 1] :]:
        for layer in range(experts.shape[1]):
            experts[token, layer] = rng.permutation(plan.n_experts)[: experts.shape[2]]
    return replace(plan, experts=experts)


def one_expert_a_visit(seed: int) -> Plan:
    """One token a step, top-1, some visits that want nothing; no prefetch, fetch; either scope."""
    rng = np.random.default_rng(seed)
    layers, n_experts, tokens = (int(rng.integers(1, high)) for high in (4, 9, 80))
    skewed = (rng.random((tokens, layers, 1)) ** rng.choice([1, 2]) * n_experts).astype(int)
    wanted = np.where(rng.random(skewed.shape) < 0.05, -1, skewed)
    pooled = bool(rng.random() < 0.4)
    slots = rng.integers(1, n_experts * (layers if pooled else 1) + 1, 1 if pooled else layers)
    residents: list[int] | None = None if rng.random() < 0.5 else []
    return plan(wanted, n_experts, slots, residents=residents, pooled=pooled, seed=seed % 7)
