"""Plans for the laws: small, drawn at random over everything a plan can hold, and one in which everything is plain."""

from typing import Any

import numpy as np

from sim.core.plan import Choice, Costs, Plan, Prefetch

EVICTIONS = {"lru": 0, "lfu": 1, "fifo": 2, "random": 3, "decayed": 4, "belady": 5}
MISSES = {"fetch": 0, "drop": 1, "cpu": 2}


def costs(layers: int, steps: int, rows: int, **ns: Any) -> Costs:
    """The same durations everywhere, in ns; `transfer` may be (idle, following)."""
    transfer = ns.get("transfer", 100)
    idle, follow = transfer if isinstance(transfer, tuple) else (transfer, transfer)
    tokens = np.arange(rows + 1)
    return Costs(
        dense_ns=np.array([[ns.get("dense", 10)] * layers + [ns.get("tail", 0)]], np.int64),
        head_ns=np.array([ns.get("head", 0)], np.int64),
        cost_class=np.zeros(steps, np.int32),
        decide_ns=ns.get("decide", 0),
        group_ns=ns.get("group_set_up", 0),
        expert_ns=(ns.get("expert", 5) + ns.get("per_token", 0) * tokens).astype(np.int64),
        cpu_expert_ns=np.array([ns.get("cpu", 7) + tokens, ns.get("cpu_busy", 9) + 2 * tokens], np.int64),
        transfer_ns=np.array([idle, follow], np.int64),
        commit_gap_ns=ns.get("gap", 0),
        commit_depth=ns.get("depth", 1),
    )


def plan(
    wanted: Any, n_experts: int, slots: Any, steps: Any = None, prefill: Any = None, residents: Any = None, **kw: Any
) -> Plan:
    """wanted [T][L][K]; steps: rows of each step (default one token each); other arguments: Plan's, or costs'."""
    experts = np.asarray(wanted, np.int16)
    steps = [[t] for t in range(len(experts))] if steps is None else steps
    layers, pooled = experts.shape[1], kw.pop("pooled", False)
    slots = np.asarray(slots, np.int64).reshape(-1)
    if residents is None:
        residents = _first(layers, n_experts, slots, pooled)
    fields = {k: kw.pop(k) for k in list(kw) if k in Plan.__dataclass_fields__}
    eviction, miss = fields.pop("eviction", "lru"), fields.pop("miss", "fetch")
    rows = max(map(len, steps))
    return Plan(
        experts=experts,
        n_experts=n_experts,
        step_offset=np.cumsum([0, *map(len, steps)]),
        step_row=np.array([t for rows in steps for t in rows], np.int32),
        step_prefill=np.zeros(len(steps), bool) if prefill is None else np.asarray(prefill, bool),
        costs=fields.pop("costs", None) or costs(layers, len(steps), rows, **kw),
        slots=slots,
        pooled=pooled,
        residents=np.asarray(residents, np.int64),
        expert_bytes=3,
        eviction=Choice(eviction, EVICTIONS[eviction], np.array([0.9])),
        miss=Choice(miss, MISSES[miss]),
        **fields,
    )


def _first(layers: int, n_experts: int, slots: Any, pooled: bool) -> list[int]:
    if pooled:
        order = [layer * n_experts + e for e in range(n_experts) for layer in range(layers)]
        return order[: slots[0]]
    return [layer * n_experts + e for layer in range(layers) for e in range(slots[layer])]


def prefetch_of(rng: np.random.Generator, tokens: int, layers: int, n_experts: int) -> Prefetch:
    """Random ranked lists with holes, repeated experts only across tokens."""
    distances, width = int(rng.integers(1, min(layers, 3) + 1)), int(rng.integers(1, n_experts + 1))
    lists = np.argsort(rng.random((distances if rng.random() < 0.7 else 1, tokens, layers, n_experts)), axis=-1)
    lists = np.where(rng.random(lists.shape) < 0.2, -1, lists)[..., :width].astype(np.int16)
    row = np.where(rng.random((distances, tokens)) < 0.1, -1, np.arange(tokens)).astype(np.int32)
    return Prefetch(
        lists=lists,
        row=row,
        budget=int(rng.choice([-1, 1, 2, 3])),
        order=int(rng.integers(3)),
        rank_key=rng.integers(0, 5, (distances, width)).astype(np.int64),
    )


def random_plan(seed: int) -> Plan:
    """One plan of the whole space: shapes, batches, costs (zero, small, large), scopes, depths, groups, policies."""
    rng = np.random.default_rng(seed)
    layers, n_experts = int(rng.integers(1, 5)), int(rng.integers(1, 8))
    top_k, tokens = int(rng.integers(1, min(n_experts, 4) + 1)), int(rng.integers(1, 14))
    order = np.argsort(rng.random((tokens, layers, n_experts)) ** (1 + np.arange(n_experts)), axis=-1)[..., :top_k]
    wanted = np.where(rng.random(order.shape) < rng.choice([0, 0.1, 0.5]), -1, order)
    cuts = np.sort(rng.choice(np.arange(1, tokens), min(tokens - 1, int(rng.integers(0, tokens))), replace=False))
    steps = [part.tolist() for part in np.split(np.arange(tokens), cuts)]
    pooled = bool(rng.random() < 0.4)
    size = 1 if pooled else layers
    slots = rng.integers(1, n_experts * (layers if pooled else 1) + 1, size)
    ids = _first(layers, n_experts, slots, pooled)
    residents = [] if rng.random() < 0.3 else ids[: int(rng.integers(0, len(ids) + 1))]
    some = lambda *values: int(rng.choice(values))  # noqa: E731
    return plan(
        wanted, n_experts, slots, steps, rng.random(len(steps)) < 0.3, rng.permutation(residents),
        pooled=pooled, eviction=str(rng.choice(list(EVICTIONS))), miss=str(rng.choice(list(MISSES), p=[0.6, 0.2, 0.2])),
        dense=some(0, 1, 10, 50), tail=some(0, 3), head=some(0, 7), decide=some(0, 0, 4), group=int(rng.integers(3)), group_set_up=some(0, 2),
        expert=some(0, 1, 5, 20), per_token=some(0, 2), transfer=(some(0, 1, 10, 100), some(0, 1, 10, 90)),
        gap=some(0, 0, 3), depth=some(1, 1, 2, 3, 100), seed=some(0, 1, 2**40), lossy_prefill=bool(rng.random() < 0.3),
        late_counts_as_missing=bool(rng.random() < 0.3),
        prefetch=prefetch_of(rng, tokens, layers, n_experts) if rng.random() < 0.6 else None,
    )  # fmt: skip
