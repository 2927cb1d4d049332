"""Plans for the laws: small, drawn at random over everything a plan can hold, and one in which everything is plain."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from sim.core.plan import (
    ANSWERS_CPU,
    FORGETS_ROWS,
    LOSSY,
    SUBSTITUTE_PARAMS,
    SUBSTITUTION,
    Choice,
    Costs,
    Leaving,
    Low,
    Plan,
    Prefetch,
)
from sim.core.worth import LFRU
from sim.on_miss import OWN
from sim.policies.policy import Policy
from sim.policies.registry import EVICTION, MISS, RERANK

ON_MISS = ("static", *(policy.name for policy in MISS.values() if policy.kind in OWN))


def codes(table: dict[str, Policy]) -> dict[str, int]:
    """The code of each policy in the core, by name, in the order of the codes: what is drawn stays as it was. Without
    those that only a plan with `on_miss` can have (tests.on_miss_plans)."""
    known = [policy for policy in table.values() if policy.name not in ON_MISS]
    return {policy.name: policy.kind for policy in sorted(known, key=lambda policy: policy.kind)}


MISSES, RERANKERS = codes(MISS), codes(RERANK)
EVICTIONS = {name: code for name, code in codes(EVICTION).items() if code < LFRU}  # tests.eviction_plans has the others
LOSSLESS_OR_DROP = ("fetch", "drop", "cpu")
SUBSTITUTES = [name for name, code in MISSES.items() if code == SUBSTITUTION]
OPEN = {
    "selector": 0, "matched": 0, "temperature": 1, "gamma": 2, "beta": math.inf, "budget": 0,
    "rho": 1000, "search": 1000, "lowest_first": 0, "fallback": 0, "eta": 0, "kappa": 0,
    "partitions": 1, "background": 0, "touch": 1, "backlog": 0,
}  # fmt: skip


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
    params = np.asarray(kw.pop("miss_params", ()), np.float64)
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
        eviction=evicting(eviction),
        leaving=fields.pop("leaving", None) or leaving_of(eviction, steps),
        miss=named(MISS[miss], params),
        **fields,
    )


def named(policy: Policy, params: Any) -> Choice:
    """A policy of the registry, with its marks and other parameters."""
    return replace(policy.choice({}), params=np.asarray(params, np.float64))


def evicting(name: str) -> Choice:
    """An eviction: a window of two steps, or a decay of 0.9, whoever takes a parameter."""
    return named(EVICTION[name], [2.0 if name == "window-score" else 0.9])


def leaving_of(eviction: str, steps: list[list[int]]) -> Leaving | None:
    """A window of two steps; or requests of three trace rows each, gone after the last step that any of them is in."""
    gone: list[list[int]] = [[] for _ in steps]
    if eviction == "window-score":
        gone = [steps[s - 2] if s >= 2 else [] for s in range(len(steps))]
    elif eviction == "activation-matrix":
        last: dict[int, int] = {}
        for s, rows in enumerate(steps):
            last |= {row // 3: s for row in rows}
        for s in range(1, len(steps)):
            gone[s] = [row for rows in steps[:s] for row in rows if last[row // 3] == s - 1]
    else:
        return None
    return Leaving(np.cumsum([0, *map(len, gone)]), np.array([row for rows in gone for row in rows], np.int32))


def leaving_within(made: Plan, window: int) -> Leaving:
    """Of a plan whose eviction forgets the rows of `window` steps ago."""
    bounds = made.step_offset
    first = range(-window, len(bounds) - 1 - window)
    gone = [made.step_row[bounds[s] : bounds[s + 1]] if s >= 0 else [] for s in first]
    return Leaving(np.cumsum([0, *map(len, gone)]), np.array([row for rows in gone for row in rows], np.int32))


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


def random_plan(seed: int, experts: int = 7) -> Plan:
    """One plan of the whole space: shapes (up to `experts`), batches, costs, scopes, depths, groups, policies."""
    rng = np.random.default_rng(seed)
    layers, n_experts = int(rng.integers(1, 5)), int(rng.integers(1, experts + 1))
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
    some = lambda *values: int(rng.choice(values))  # noqa: E731 - a def would say no more
    eviction = str(rng.choice(list(EVICTIONS)))
    weights = rng.random(wanted.shape).astype(np.float16) if eviction == "window-score" else None
    return plan(
        wanted, n_experts, slots, steps, rng.random(len(steps)) < 0.3, rng.permutation(residents),
        pooled=pooled, eviction=eviction, weights=weights,
        miss=str(rng.choice(LOSSLESS_OR_DROP, p=[0.6, 0.2, 0.2])),
        dense=some(0, 1, 10, 50), tail=some(0, 3), head=some(0, 7), decide=some(0, 0, 4),
        group=int(rng.integers(3)), group_set_up=some(0, 2),
        expert=some(0, 1, 5, 20), per_token=some(0, 2), transfer=(some(0, 1, 10, 100), some(0, 1, 10, 90)),
        gap=some(0, 0, 3), depth=some(1, 1, 2, 3, 100), seed=some(0, 1, 2**40), lossy_prefill=bool(rng.random() < 0.3),
        late_counts_as_missing=bool(rng.random() < 0.3),
        prefetch=prefetch_of(rng, tokens, layers, n_experts) if rng.random() < 0.6 else None,
    )  # fmt: skip


def substitute(name: str, **given: float) -> Choice:
    """A miss policy of the substitution family: every gate open, no limit, unless given."""
    params = np.array([float((OPEN | given)[key]) for key in SUBSTITUTE_PARAMS])
    return Choice(name, MISSES[name], params, marks=LOSSY | ANSWERS_CPU)


def peers_of(rng: np.random.Generator, layers: int, n_experts: int) -> tuple[Any, Any]:
    """Ragged lists of other experts, -1 padded, and their q, mostly falling, with ties."""
    width = int(rng.integers(0, n_experts + 1))
    others = np.argsort(rng.random((layers, n_experts, n_experts)), axis=-1)
    own = others == np.arange(n_experts)[None, :, None]
    others = np.take_along_axis(others, np.argsort(own, axis=-1, kind="stable"), axis=-1)  # itself goes last
    length = rng.integers(0, n_experts, (layers, n_experts, 1))
    peers = np.where(np.arange(n_experts) < length, others, -1)[..., :width].astype(np.int16)
    q = rng.integers(0, 6, peers.shape) / np.float32(7)
    return peers, (-np.sort(-q, axis=-1) if rng.random() < 0.7 else q).astype(np.float32)


def weights_of(rng: np.random.Generator, logits: Any, experts: Any, norm_topk: bool) -> Any:
    """Softmax of the logits at the routed experts; now and then flat, or something else altogether."""
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    p = np.take_along_axis(p / p.sum(-1, keepdims=True), np.maximum(experts, 0).astype(int), axis=-1)
    if rng.random() < 0.3:
        p = rng.choice([0.0, 0.1, 0.25, 0.5], p.shape)  # many ties, sums of nothing
    held = np.where(experts >= 0, p, 0)
    if norm_topk:
        held = held / np.maximum(held.sum(-1, keepdims=True), 1e-9)
    unused = 0.9 if rng.random() < 0.2 else 0.0  # what a slot without an expert says counts for nothing
    return np.where(experts >= 0, held, unused).astype(np.float16 if rng.random() < 0.8 else np.float32)


def miss_of(rng: np.random.Generator) -> Choice:
    some = lambda *values: float(rng.choice(values))  # noqa: E731 - a def would say no more
    others = [name for name in MISSES if name not in SUBSTITUTES]
    name = str(rng.choice(SUBSTITUTES if rng.random() < 0.75 else others))
    if name in ("drop-by-weight", "mean-output"):
        return named(MISS[name], [some(0, 0.1, 0.25, 0.5, 2)])
    if name == "hobbit":
        return named(MISS[name], sorted([some(0, 0.3, 0.6), some(0.3, 0.6, 0.9, 1)]))
    if name not in SUBSTITUTES:
        return named(MISS[name], list(MISS[name].params.values()))
    return substitute_of(rng, name)


def substitute_of(rng: np.random.Generator, name: str) -> Choice:
    """One of the substitution family, under that name."""
    some = lambda *values: float(rng.choice(values))  # noqa: E731 - a def would say no more
    mostly = lambda usual, *values: float(usual if rng.random() < 0.75 else rng.choice(values))  # noqa: E731 - a def would say no more
    return substitute(
        name,
        selector=some(0, 0, 1, 2, 3, 4),
        matched=some(0, 0, 1),
        temperature=some(1, 1, 0.8, 1.2, 0.1, 8),
        gamma=mostly(2, 1, 0.5, 0.2, 0),
        beta=mostly(math.inf, 2, 1, 0.75, 0.5, 0),
        budget=mostly(0, 1, 2),
        rho=mostly(1000, 0, 1, 2),
        search=mostly(1000, 0, 1, 2),
        lowest_first=some(0, 1),
        fallback=some(0, 1, 2, 3),
        eta=some(0, 0, 1, 10),
        kappa=some(0, 0, 0.3, 2),
        partitions=some(1, 2, 3, 8),
        background=some(0, 1),
        touch=some(1, 0),
        backlog=some(0, 1),
    )


def rerank_of(rng: np.random.Generator) -> Choice:
    some = lambda *values: float(rng.choice(values))  # noqa: E731 - a def would say no more
    name = str(rng.choice(list(RERANK)))
    params = {
        "cache-prior": [some(0, 0.2, 0.5, 1, 10)],
        "max-rank": [some(0, 1, 2, 4), some(0, 2, 4, 12)],
        "cache-prior-mass": [some(0, 1, 2, 4), some(0, 0.3, 0.6, 0.9, 1)],
        "tolerance": [some(0, 0.1, 0.35, 0.7, 1)],
        "smoe": [some(0, 0.25, 0.9, 1)],
        "adapmoe": [some(0, 0.005, 0.04, 0.3, 1)],
        "sere": [some(0, 0.3, 0.6, 2), some(0, 1, 1, 2)],
    }.get(name, list(RERANK[name].params.values()))
    return Choice(name, RERANK[name].kind, np.array(params))


def random_lossy_plan(seed: int) -> Plan:
    """A random plan with a lossy miss policy, weights, logits, stand-ins, TAE gates and, at times, re-ranking."""
    rng = np.random.default_rng([seed, 1])
    return scored(rng, random_plan(seed, int(rng.choice([7, 16]))))


def scored(rng: np.random.Generator, base: Plan) -> Plan:
    """The plan with all that lossy answers and re-ranking read, and such policies."""
    tokens, layers, _ = base.experts.shape
    n_experts = base.n_experts
    logits = rng.normal(0, float(rng.choice([0.1, 1, 3, 10])), (tokens, layers, n_experts)).astype(np.float16)
    if rng.random() < 0.2:
        logits = np.round(logits / np.float16(2)) * np.float16(2)  # ties
    if rng.random() < 0.7:  # the slots in descending router score, as in a real trace
        scores = np.take_along_axis(logits, np.maximum(base.experts, 0).astype(int), axis=-1)
        order = np.argsort(np.where(base.experts < 0, np.inf, -scores), axis=-1, kind="stable")
        base = replace(base, experts=np.take_along_axis(base.experts, order, axis=-1))
    norm_topk = bool(rng.random() < 0.5)
    peers, q = peers_of(rng, layers, n_experts)
    alike = rng.choice([0, 0.25, 0.5, 0.75, 1], (layers, n_experts, n_experts)).astype(np.float32)
    miss = miss_of(rng)
    return replace(
        base,
        miss=miss,
        low=low_of(rng, base) if miss.name == "hobbit" else None,
        logits=logits,
        weights=weights_of(rng, logits, base.experts, norm_topk),
        tau=rng.choice([-1, -1, 0.3, 0.6, 0.9], layers) if rng.random() < 0.35 else np.zeros(0),
        peers=peers,
        peer_q=q,
        rerank=rerank_of(rng) if rng.random() < 0.25 else None,
        similarity=alike,
        predicted=predicted_of(rng, base) if miss.name == "speculate" else None,
        norm_topk=norm_topk,
        late_counts_as_missing=bool(rng.random() < 0.4),
    )


def predicted_of(rng: np.random.Generator, base: Plan) -> Any:
    """Lists of K experts, now and then shorter or none, in half of the plans of the first few experts alone, which are
    often all resident."""
    n = int(base.n_experts if rng.random() < 0.5 else min(base.n_experts, base.experts.shape[2] + 1))
    lists = np.argsort(rng.random((*base.experts.shape[:2], n)), axis=-1)[..., : base.experts.shape[2]]
    return np.where(rng.random(lists.shape) < float(rng.choice([0, 0, 0.3])), -1, lists).astype(np.int16)


def low_of(rng: np.random.Generator, base: Plan) -> Low:
    """Copies in few slots, of other durations than the originals."""
    some = lambda *values: int(rng.choice(values))  # noqa: E731 - a def would say no more
    slots = np.minimum(rng.integers(1, 4, len(base.slots)), base.n_experts)
    transfer = np.array([some(0, 1, 7, 40), some(0, 1, 6)], np.int64)
    return Low(slots, 2, transfer, np.arange(len(base.costs.expert_ns)) * some(0, 1, 3))


def any_plan(seed: int) -> Plan:
    """A plan of either kind, for the laws; nothing is re-ranked: the laws read what is wanted from the trace."""
    return random_plan(seed) if seed % 2 else replace(random_lossy_plan(seed), rerank=None)


def with_resets(plan: Plan, seed: int) -> Plan:
    """The plan, begun again at some of its steps; what looks back forgets only what has come since."""
    rng, steps = np.random.default_rng([seed, 1]), len(plan.step_prefill)
    resets = rng.random(steps) < rng.choice([0.2, 0.5, 1.0])
    resets[:1] = False
    leaving = None if plan.leaving is None else _leaving_since(plan, plan.leaving, resets)
    return replace(plan, resets=resets, leaving=leaving)


def _leaving_since(plan: Plan, leaving: Leaving, resets: Any) -> Leaving:
    """What leaves and has come since the last reset: a window forgets a step, others every run of a row."""
    rows_of = [plan.step_row[a:b].tolist() for a, b in zip(plan.step_offset[:-1], plan.step_offset[1:], strict=True)]
    gone, since = list[list[int]](), 0
    for step, (first, last) in enumerate(zip(leaving.offset[:-1], leaving.offset[1:], strict=True)):
        since = step if resets[step] else since
        rows = leaving.row[first:last].tolist()
        if plan.eviction.marks & FORGETS_ROWS:
            gone.append(rows if step - int(plan.eviction.params[0]) >= since else [])
        else:
            ran = [row for rows in rows_of[since:step] for row in rows]
            gone.append([row for row in dict.fromkeys(rows) for _ in range(ran.count(row))])
    return Leaving(np.cumsum([0, *map(len, gone)]), np.array([row for rows in gone for row in rows], np.int32))
