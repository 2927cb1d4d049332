"""The floor of a miss curve: held against every choice of residents, worked by hand, and below every eviction."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from analysis.curves.curve import Visits
from analysis.curves.floor import least_misses
from sim.core.plan import Choice, Plan
from sim.machines import compiled
from sim.outcome.packing import Wants
from tests.plans import EVICTIONS, evicting, plan, random_plan

NOBODY = np.zeros(0, np.int64)


def visits_of(p: Plan) -> Visits:
    """What a plan's visits want; what they take is no matter here."""
    wants = Wants.of(replace(p, warmup_steps=0))
    wide = np.diff(wants.offset)
    return Visits(wants, np.repeat(p.step_prefill, p.experts.shape[1]), wide, 0 * wide, 0, 0, 0)


def every_choice(visits: list[tuple[set[int], bool]], slots: int, first: frozenset[int]) -> int:
    """The fewest misses in decode visits of one scope, over all residents that may be kept after each visit."""
    least = {first: 0}
    for wanted, prompt in visits:
        coming: dict[frozenset[int], int] = {}
        for resident, misses in least.items():
            after = misses + (0 if prompt else len(wanted - resident))
            known = resident | wanted
            for kept in combinations(sorted(known), min(slots, len(known))):  # fewer are never better
                key = frozenset(kept)
                coming[key] = min(after, coming.get(key, after))
        least = coming
    return min(least.values())


def scopes_of(p: Plan) -> list[list[tuple[set[int], bool]]]:
    """By scope, (wanted global ids, whether in a prompt) of each visit."""
    layers = p.experts.shape[1]
    out: list[list[tuple[set[int], bool]]] = [[] for _ in range(1 if p.pooled else layers)]
    for step, prompt in enumerate(p.step_prefill.tolist()):
        rows = p.step_row[p.step_offset[step] : p.step_offset[step + 1]]
        for layer in range(layers):
            wanted = {layer * p.n_experts + e for e in p.experts[rows, layer].reshape(-1).tolist() if e >= 0}
            out[0 if p.pooled else layer].append((wanted, prompt))
    return out


def small_plan(seed: int) -> Plan:
    """Few experts, one or two layers, decode steps and prompts mixed."""
    rng = np.random.default_rng(seed)
    layers, pooled = int(rng.integers(1, 3)), bool(rng.integers(2))
    experts = 3 if layers == 2 and pooled else 5
    rows = [int(n) for n in rng.integers(1, 3, 10)]
    steps = np.split(np.arange(sum(rows)), np.cumsum(rows)[:-1])
    wanted = np.argsort(rng.random((sum(rows), layers, experts)), axis=-1)[..., : int(rng.integers(1, 3))]
    size = layers * experts if pooled else experts
    slots = [int(rng.integers(1, size + 1))] * (1 if pooled else layers)
    prefill = rng.random(10) < rng.choice([0.0, 0.4])
    first = NOBODY if rng.random() < 0.3 else None
    return plan(wanted, experts, slots, [s.tolist() for s in steps], prefill, first, pooled=pooled)


@pytest.mark.parametrize("chunk", range(4))
def test_it_is_the_best_of_all_choices(chunk: int) -> None:
    bypassed = 0
    for seed in range(60 * chunk, 60 * (chunk + 1)):
        p = small_plan(seed)
        first = frozenset(p.residents.tolist())
        best = sum(
            every_choice(visits, int(p.slots[0]), first & _within(p, s)) for s, visits in enumerate(scopes_of(p))
        )
        found = least_misses(p, visits_of(p), p.residents)
        assert found.sum() == best, seed
        assert not found[np.repeat(p.step_prefill, p.experts.shape[1])].any()
        bypassed += found.sum() > 0
    assert bypassed > 30


def _within(p: Plan, scope: int) -> frozenset[int]:
    ids = np.arange(p.experts.shape[1] * p.n_experts).reshape(len(p.slots), -1)
    return frozenset(ids[scope].tolist())


def test_bypass_by_hand() -> None:
    """One slot, cache empty, wanted 0 1 0 2 0: kept is 0, and 1 and 2 are used and not kept: 0, 1 and 2 miss, 3 in
    all. Without bypass every one of the five misses. With {0} resident at the start 1 and 2 alone."""
    p = plan([[[0]], [[1]], [[0]], [[2]], [[0]]], 3, 1, residents=[])
    assert least_misses(p, visits_of(p), NOBODY).tolist() == [1, 1, 0, 1, 0]
    assert decode_misses(replace(p, eviction=evicting("belady"))) == 5
    assert least_misses(p, visits_of(p), np.zeros(1, np.int64)).tolist() == [0, 1, 0, 1, 0]


def test_a_prompt_counts_for_nobody_by_hand() -> None:
    """One slot, cache empty: 0, a prompt of 1, then 0: nothing is gained by hits in the prompt, so 0 stays; and what a
    prompt brought may stay: 0, prompt of 1, then 1 and 0: one of the two misses."""
    wanted = [[[0]], [[1]], [[0]]]
    p = plan(wanted, 3, 1, prefill=[False, True, False], residents=[])
    assert least_misses(p, visits_of(p), NOBODY).tolist() == [1, 0, 0]
    p = plan([[[0]], [[1]], [[1]], [[0]]], 3, 1, prefill=[False, True, False, False], residents=[])
    assert least_misses(p, visits_of(p), NOBODY).sum() == 2


def test_a_run_of_prompts_does_not_compete_with_decode_steps() -> None:
    """One slot with {0}: prompts want 1, 1, 1, then a token 0. The most hits of all would be the two of 1; of decode
    steps it is the one of 0."""
    p = plan([[[1]], [[1]], [[1]], [[0]]], 2, 1, prefill=[True, True, True, False], residents=[0])
    assert least_misses(p, visits_of(p), p.residents).tolist() == [0, 0, 0, 0]


def decode_misses(p: Plan) -> int:
    v: Any = compiled.run(p, full=True).groups["visits"]
    return int(v["misses"][p.step_prefill[v["step"]] == 0].sum())


def test_no_eviction_misses_less() -> None:
    """On random plans, whatever they evict by; it is reached by some, or it might be far too low."""
    reached: Counter[str] = Counter()
    for seed in range(40 * len(EVICTIONS)):
        p = replace(random_plan(seed), miss=Choice("fetch", 0), prefetch=None, warmup_steps=0)
        floor, misses = int(least_misses(p, visits_of(p), p.residents).sum()), decode_misses(p)
        assert floor <= misses, (seed, p.eviction.name)
        reached[p.eviction.name] += floor == misses
    assert set(reached) == set(EVICTIONS) and min(reached.values()) > 0
