"""Random plans of what engines do on a miss beyond one rule: every pair of features occurs together.

Times are small and many are zero or equal, so that much happens at one instant.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from sim.core import eviction, miss
from sim.core.plan import ADMIT_PARAMS, ANSWERS_CPU, SPLIT_PARAMS, SUBSTITUTE_PARAMS, Choice, Costs, OnMiss, Plan
from sim.policies.registry import MISS
from tests.plans import EVICTIONS, SUBSTITUTES, low_of, named, plan, prefetch_of, scored, substitute_of

STATIC = Choice("static", eviction.STATIC)
SCORED = ("lfu", "decayed", "window-score", "activation-matrix")  # evictions that have a score to compare
OLD_RULES = ("fetch", "cpu", "drop", "drop-by-weight", "substitution")
NEW_RULES = ("stream", "remote", "cpu-admit", "split")
BULK_RULES = ("fetch", "cpu", "stream", "remote", "split")


def rule(name: str, *params: float) -> Choice:
    """A rule that streams, reads remotely, admits or splits, with its parameters in the plan's order."""
    kinds = {"stream": miss.STREAM, "remote": miss.REMOTE, "cpu-admit": miss.ADMIT, "split": miss.SPLIT}
    marks = ANSWERS_CPU if name in ("cpu-admit", "split") else 0
    return Choice(name, kinds[name], np.array(params, np.float64), marks=marks)


def cpu_admit(**given: float) -> Choice:
    """cpu-admit that admits at the first miss, replaces at the second, without limits unless given."""
    usual = {"inserts": -1, "queue": -1, "admit_after": 1, "replace_after": 2, "max_rows": -1, "spare": 0}
    return rule("cpu-admit", *((usual | given).get(name, 0) for name in ADMIT_PARAMS))


def split(**given: float) -> Choice:
    """by: index into SPLITS, 0 (share) unless given; least 0; keep 1."""
    return rule("split", *(({"by": 0, "least": 0, "keep": 1} | given)[name] for name in SPLIT_PARAMS))


def plan_of(seed: int, old: bool = False) -> Plan:
    """One plan of the whole space, or (`old`) of the part that is without `on_miss`."""
    rng = np.random.default_rng([seed, 15])
    base = _base(rng, old)
    base = replace(base, miss=_miss_of(rng, base, old))
    base = replace(base, late_counts_as_missing=base.late_counts_as_missing and base.miss.name in SUBSTITUTES)
    if rng.random() < (0.85 if base.miss.name == "cpu-admit" else 0.3):
        base = _with_a_backlog(base)
    return base if old else replace(base, on_miss=_on_miss_of(rng, base))


def plan_with_low_copies_of(seed: int) -> Plan:
    """The same where low-precision copies are an answer, too, if they may be: other rules than these have stages for
    what they themselves copy."""
    made, rng = plan_of(seed), np.random.default_rng([seed, 16])
    if made.miss.name not in OLD_RULES or made.eviction is STATIC or (made.on_miss and made.on_miss.serial):
        return made
    params = sorted(rng.choice([0.2, 0.5, 0.8, 0.95], 2, replace=False))
    return replace(made, miss=named(MISS["hobbit"], params), low=low_of(rng, made))


def _base(rng: np.random.Generator, old: bool) -> Plan:
    """Shapes, wants, slots, durations; everything that lossy answers read."""
    some = lambda *values: int(rng.choice(values))  # noqa: E731 - a def would say no more
    layers, n_experts = int(rng.integers(1, 6)), int(rng.integers(3, 11))
    top_k, tokens = int(rng.integers(1, min(3, n_experts) + 1)), int(rng.integers(8, 40))
    skewed = rng.random((tokens, layers, n_experts)) ** (1 + some(0, 1) * np.arange(n_experts))
    order = np.argsort(skewed, axis=-1)[..., :top_k]
    wanted = np.where(rng.random(order.shape) < rng.choice([0, 0, 0.1, 0.5]), -1, order)
    steps, prefill = _steps_of(rng, tokens)
    pooled = bool(rng.random() < 0.3)
    slots, residents = _slots_of(rng, layers, n_experts, pooled, 1 if old else 0)
    evicts = str(rng.choice(sorted({*EVICTIONS} - {STATIC.name})))
    made = plan(
        wanted, n_experts, slots, steps, prefill, residents, pooled=pooled, eviction=evicts,
        dense=some(0, 0, 0, 1, 10, 30), tail=some(0, 3), head=some(0, 7), decide=some(0, 0, 4),
        group=int(rng.integers(3)), group_set_up=some(0, 0, 2),
        expert=some(0, 1, 5, 20), per_token=some(0, 2),
        transfer=(some(0, 1, 10, 30, 120, 300), some(0, 1, 10, 25, 90, 300)),
        gap=some(0, 0, 3), depth=some(1, 1, 2, 3, 4), seed=some(0, 1, 2**40), lossy_prefill=bool(rng.random() < 0.3),
        prefetch=prefetch_of(rng, tokens, layers, n_experts) if rng.random() < 0.4 else None,
    )  # fmt: skip
    rows = made.costs.cpu_expert_ns.shape[1]
    cpu_ns = np.array([[some(0, 1, 7, 20)], [some(0, 1, 9, 30)]]) + some(0, 1, 4) * np.arange(rows)
    made = scored(rng.spawn(1)[0], replace(made, costs=replace(made.costs, cpu_expert_ns=cpu_ns)))
    static = not old and rng.random() < 0.12
    return replace(made, eviction=STATIC if static else made.eviction, low=None)


def _with_a_backlog(made: Plan) -> Plan:
    """The same where nearly all that takes time is the link: much is queued when a visit is decided."""
    costs = made.costs
    costs = replace(
        costs,
        dense_ns=costs.dense_ns // 10,
        head_ns=costs.head_ns // 10,
        expert_ns=costs.expert_ns // 10,
        cpu_expert_ns=costs.cpu_expert_ns // 10,
        transfer_ns=costs.transfer_ns + 100,
    )
    return replace(made, costs=costs)


def _steps_of(rng: np.random.Generator, tokens: int) -> tuple[list[list[int]], list[bool]]:
    """Chunks of a prompt and decode steps, mixed."""
    steps: list[list[int]] = []
    prefill: list[bool] = []
    at = 0
    while at < tokens:
        prefill.append(bool(rng.random() < 0.4))
        n = int(rng.choice([2, 3, 5, 8] if prefill[-1] else [1, 1, 1, 1, 2, 3]))
        steps.append(list(range(at, min(tokens, at + n))))
        at += n
    return steps, prefill


def _slots_of(
    rng: np.random.Generator, layers: int, n_experts: int, pooled: bool, least: int
) -> tuple[np.ndarray, list[int]]:
    """Slots, in a layer of its own perhaps none, and first residents in some of them."""
    if pooled:
        slots = rng.integers(1, max(2, layers * n_experts // 2), 1)
        candidates = rng.permutation(layers * n_experts)[: slots[0]]
    else:
        slots = np.where(rng.random(layers) < 0.25, least, rng.integers(1, n_experts + 1, layers))
        candidates = np.concatenate([layer * n_experts + np.arange(n) for layer, n in enumerate(slots)])
    if rng.random() < 0.5:
        candidates = candidates[: int(rng.integers(0, len(candidates) + 1))]
    return slots, rng.permutation(candidates).tolist()


def _miss_of(rng: np.random.Generator, base: Plan, old: bool) -> Choice:
    shares = [0.3, 0.15, 0.1, 0.15, 0.3] if old else [0.05, 0.03, 0.02, 0.02, 0.22, 0.12, 0.07, 0.33, 0.14]
    name = str(rng.choice(OLD_RULES if old else OLD_RULES + NEW_RULES, p=shares))
    if name == "substitution":
        return _substitute_of(rng)
    if name == "drop-by-weight":
        return named(MISS[name], [float(rng.choice([0.1, 0.25, 0.5]))])
    if name in OLD_RULES:
        return named(MISS[name], [])
    return _rule_of(rng, name, base)


def _substitute_of(rng: np.random.Generator) -> Choice:
    """Its gates mostly open, mostly with what it left out fetched in the background."""
    drawn = substitute_of(rng, str(rng.choice(SUBSTITUTES)))
    params = dict(zip(SUBSTITUTE_PARAMS, drawn.params, strict=True))
    if rng.random() < 0.7:
        params |= {"selector": float(rng.choice([0, 1, 2])), "beta": np.inf, "rho": 1000.0, "background": 1.0}
    return replace(drawn, params=np.array([params[name] for name in SUBSTITUTE_PARAMS]))


def _rule_of(rng: np.random.Generator, name: str, base: Plan) -> Choice:
    some = lambda *values: float(rng.choice(values))  # noqa: E731 - a def would say no more
    if name == "split":
        return split(by=some(0, 0, 1, 1, 2), least=some(0, 0, 1, 2), keep=some(0, 1))
    if name != "cpu-admit":
        return rule(name)
    first = some(1, 1, 1, 2)
    return cpu_admit(
        inserts=some(-1, -1, 1, 2),
        queue=some(-1, -1, 1, 3),
        admit_after=first,
        replace_after=some(1, 1, first, first + 1, 5),
        max_rows=some(-1, -1, -1, 1, 2),
        warm=some(0, 1),
        spare=some(0, 0, 1, 2),
        margin=some(0, 0.5, 1, 1.5) if base.eviction.name in SCORED else 0,
    )


def _bulk_of(rng: np.random.Generator, base: Plan) -> Choice | None:
    """None in a third; more often fetch than another behind cpu-admit, where it promotes admissions."""
    name = str(rng.choice(BULK_RULES))
    if base.miss.name == "cpu-admit" and rng.random() < 0.6:
        name = "fetch"
    if rng.random() < 0.33:
        return None
    return named(MISS[name], []) if name in OLD_RULES else _rule_of(rng, name, base)


def _on_miss_of(rng: np.random.Generator, base: Plan) -> OnMiss:
    some = lambda *values: int(rng.choice(values))  # noqa: E731 - a def would say no more
    rows, n, bulk = np.diff(base.step_offset), base.n_experts, _bulk_of(rng, base)
    ahead = some(0, 0, 0, 0, 1, 1, 2, 3)
    whole, serial = ahead > 0 or rng.random() < 0.3, bool(rng.random() < 0.3)
    least = (ahead + 1) * n if whole else min(n, int(rows.max()) * base.experts.shape[2]) if serial else 1
    shares = ((1, 1), (1, 1), (1, 2), (7, 20), (2, 3), (1, 10))
    return OnMiss(
        run_ns=_run_ns(rng, base.costs, n),
        step_bulk=rows >= some(1, 2, 2, 2, 2, 3, 3, 4) if bulk else np.zeros(len(rows), bool),
        bulk=bulk,
        bulk_touch=bool(rng.random() < 0.5),
        table=rng.integers(0, 4, some(1, 2, 4)),
        stages=some(0, least, least, least + 1),
        serial=serial,
        merge_runs=bool(rng.random() < 0.5),
        whole_layer=whole,
        ahead=ahead,
        cpu_visit_ns=some(0, 0, 3, 15),
        beside=bool(rng.random() < 0.6),
        defer=some(0, 0, 1, 2),
        link_share=shares[some(*range(len(shares)))],
    )


def _run_ns(rng: np.random.Generator, costs: Costs, n_experts: int) -> Any:
    """One more expert costs nothing, a little, or as much as the first."""
    more = rng.choice([0, 1, 7, int(costs.transfer_ns[1])], (2, 1)) * np.ones((2, n_experts), np.int64)
    more[:, 0] = costs.transfer_ns
    return np.cumsum(np.concatenate([np.zeros((2, 1), np.int64), more], axis=1), axis=1)


def plan_in_chunks_of(seed: int) -> Plan:
    """The same where what a demand may pass is cut, mostly with a prefetcher."""
    made, rng = plan_with_low_copies_of(seed) if seed % 4 == 0 else plan_of(seed), np.random.default_rng([seed, 18])
    some = lambda *values: int(rng.choice(values))  # noqa: E731 - a def would say no more
    assert made.on_miss is not None
    if made.prefetch is None and rng.random() < 0.7:
        tokens, layers, _ = made.experts.shape
        made = replace(made, prefetch=prefetch_of(rng, tokens, layers, made.n_experts))
    size, chunks = some(5, 8, 12), some(2, 2, 3, 4, 7)
    full = np.array([[some(0, 1, 5, 20, 60)], [some(0, 1, 4, 20, 50)]], np.int64)
    chunk_ns = np.concatenate([full, np.maximum(full - some(0, 0, 1, 9), 0)], axis=1)
    on = replace(made.on_miss, chunk_bytes=size, chunk_ns=chunk_ns)
    return replace(made, expert_bytes=size * chunks - some(0, 0, size - 1), on_miss=on)
