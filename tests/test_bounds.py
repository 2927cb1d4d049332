"""Bounds: proved in sim.outcome.bounds, and here held against runs, against exhaustive search, and worked by hand."""

import itertools
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sim.core import miss
from sim.core.plan import CAUSES, REMOTE, Choice, Costs, OnMiss, Plan, Prefetch
from sim.machines import compiled
from sim.machines.record import RunRecord
from sim.outcome.bounds import ANY, DEMAND, HOST, LOSSLESS, applicable, bounds, executed_bounds
from sim.outcome.packing import Walk, Wants
from sim.outcome.span import BLOCK, BYTES, block_size, blocks
from tests.on_miss_plans import plan_of
from tests.plans import EVICTIONS, MISSES, plan, random_plan
from tests.reference_bounds import long_plan, reference_bounds

SEEDS = 3000
CHUNKS = 6
FETCH = Choice("fetch", MISSES["fetch"])
NOBODY = np.zeros(0, np.int64)


def span_ns(p: Plan, record: RunRecord) -> int:
    return int(record.steps["end_ns"][-1] - record.steps["begin_ns"][p.warmup_steps])


def oracle(p: Plan, distances: int = 1) -> Prefetch:
    """The lists are the truth."""
    row = np.tile(np.arange(len(p.experts), dtype=np.int32), (distances, 1))
    return Prefetch(p.experts[None], row)


# --- every bound <= time, for its class ---------------------------------------------------------------------


def law_plan(seed: int) -> Plan:
    """A random plan: two of three lossless; without prefetch, with an oracle's or random lists; one of four
    with warm-up."""
    p, rng = random_plan(seed), np.random.default_rng([seed, 1])
    if seed % 3:
        p = replace(p, miss=FETCH)
    if seed % 4 < 2:
        p = replace(p, prefetch=oracle(p, int(rng.integers(p.experts.shape[1])) + 1) if seed % 4 else None)
    if rng.random() < 0.25:
        p = replace(p, warmup_steps=int(rng.integers(len(p.step_prefill))))
    return p


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_bound_exceeds_what_a_run_of_its_class_took(chunk: int) -> None:
    reached: Counter[str] = Counter()
    for seed in range(chunk * SEEDS // CHUNKS, (chunk + 1) * SEEDS // CHUNKS):
        p = law_plan(seed)
        record = compiled.run(p)
        least = bounds(p) | executed_bounds(p, record)
        assert set(least) == {*LOSSLESS, *DEMAND, *ANY}
        for name in applicable(p):
            landed = record.counters["landed_demand"] + record.counters["landed_prefetch"]
            took = landed if name == "loads" else span_ns(p, record)
            assert 0 <= least[name] <= took, (seed, name)
            reached[name] += least[name] == took
    assert set(reached) == {*LOSSLESS, *DEMAND, *ANY}
    assert min(reached[name] for name in reached) > 0, "a bound that no run reaches may be far too low"


def test_no_bound_exceeds_what_an_engine_took_that_does_more_on_a_miss() -> None:
    reached: Counter[str] = Counter()
    for seed in range(1500):
        p = plan_of(seed)
        record = compiled.run(p)
        least = bounds(p) | executed_bounds(p, record)
        assert set(least) == {*LOSSLESS, *DEMAND, *ANY, *HOST}
        for name in applicable(p):
            landed = sum(record.counters[f"landed_{cause}"] for cause in CAUSES)
            took = landed if name == "loads" else span_ns(p, record)
            assert 0 <= least[name] <= took, (seed, name)
            reached[name] += least[name] == took
    assert min(reached[name] for name in reached if name != "link_ns") > 0


@pytest.mark.parametrize(
    ("more", "link_ns"), [({}, 10 + 100 + 5), ({"merge_runs": True}, 10 + 90 + 5), ({"ahead": 1}, 105)]
)
def test_a_layer_without_slots_by_hand(more: dict[str, Any], link_ns: int) -> None:
    """A dense part of 10, a copy of 100 and an expert of 5; a run of two takes 180, so one of them 90 at least; what is
    streamed ahead may begin at time 0. (Copies of both cost as much and more.)"""
    made = plan([[[1]]], 2, [0], dense=10, expert=5, transfer=100, eviction="lru", miss="fetch")
    run_ns = np.array([[0, 100, 180], [0, 100, 180]])
    made = replace(made, on_miss=OnMiss(run_ns, np.zeros(1, np.bool_), **more))
    least = bounds(made)
    assert (least["loads"], least["link_ns"]) == (1, link_ns)
    assert (span_ns(made, compiled.run(made)) == link_ns) == (not more)


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("distances", [0, 1, 3])
def test_the_lossless_bound_holds_whatever_the_policy_is(eviction: str, distances: int) -> None:
    """One workload, so one bound, above which every policy's time lies."""
    rng = np.random.default_rng(5)
    wanted = np.argsort(rng.random((40, 3, 8)) * np.arange(1, 9), axis=-1)[..., :2]
    p = plan(wanted, 8, [3, 4, 3], eviction=eviction, expert=40, depth=2, transfer=(60, 50))
    if distances:
        p = replace(p, prefetch=oracle(p, distances))
    least = bounds(p)
    assert least == bounds(replace(p, eviction=Choice("fifo", EVICTIONS["fifo"]), prefetch=None))
    assert max(least["compute_ns"], least["link_ns"]) <= least["lossless_ns"] <= span_ns(p, compiled.run(p))
    assert least["demand_ns"] >= least["lossless_ns"]


# --- loads, against exhaustive search -----------------------------------------------------------------------


def visits_of(p: Plan) -> list[set[int]]:
    """The wanted global ids of every visit."""
    out = []
    for s in range(len(p.step_prefill)):
        rows = p.step_row[p.step_offset[s] : p.step_offset[s + 1]]
        for layer in range(p.experts.shape[1]):
            ids = set(p.experts[rows, layer].ravel().tolist()) - {-1}
            out.append({layer * p.n_experts + e for e in ids})
    return out


def intervals(visits: list[set[int]], first: set[int]) -> list[tuple[int, int]]:
    """(u, w): wanted in u and next in w; u = -1 for a first resident."""
    last, out = dict.fromkeys(first, -1), []
    for v, wanted in enumerate(visits):
        out += [(last[g], v) for g in wanted if g in last]
        last |= dict.fromkeys(wanted, v)
    return out


def fits(kept: tuple[tuple[int, int], ...], visits: list[set[int]], slots: int) -> bool:
    during = all(sum(u < v < w for u, w in kept) < slots for v, wanted in enumerate(visits) if wanted)
    return during and all(sum(u < v <= w for u, w in kept) <= slots for v in range(len(visits)))


def most_kept(visits: list[set[int]], first: set[int], slots: int) -> int:
    """The size of the largest set of intervals that fits, of all sets."""
    every = intervals(visits, first)
    sizes = range(len(every), -1, -1)
    return next(n for n in sizes if any(fits(kept, visits, slots) for kept in itertools.combinations(every, n)))


def tiny(seed: int, top_k: int = 2) -> Plan:
    """One layer, up to seven visits, some of which want nothing."""
    rng = np.random.default_rng(seed)
    tokens, n_experts = int(rng.integers(1, 8)), int(rng.integers(2, 6))
    wanted = np.argsort(rng.random((tokens, 1, n_experts)), axis=-1)[..., :top_k]
    wanted = np.where(rng.random(wanted.shape) < rng.choice([0, 0.3]), -1, wanted)
    slots = int(rng.integers(1, n_experts + 1))
    return plan(wanted, n_experts, [slots], residents=rng.permutation(n_experts)[: rng.integers(slots + 1)])


def loads_of(visits: list[set[int]], first: set[int], slots: int) -> int:
    return sum(map(len, visits)) - most_kept(visits, first, slots)


def test_greedy_packs_as_many_intervals_as_the_best_of_all_sets_for_every_prefix_and_suffix() -> None:
    for seed in range(250):
        p = tiny(seed)
        visits, first, slots = visits_of(p), set(p.residents.tolist()), int(p.slots[0])
        missing = Walk.begin(p, p.residents).over(Wants.of(p))
        dropped = Walk.begin(p, NOBODY, backward=True).over(Wants.of(p))
        for b in range(len(visits) + 1):
            assert missing[:b].sum() == loads_of(visits[:b], first, slots), (seed, b)
            assert dropped[b:].sum() == loads_of(visits[b:], set(range(p.n_experts)), slots), (seed, b)


def fewest_loads(visits: list[set[int]], first: set[int], slots: int) -> int:
    """The least number of loads of a free machine: a visit executes its experts in any order, evicting whom
    it likes."""

    @cache
    def least(v: int, to_do: frozenset[int], resident: frozenset[int]) -> int:
        if not to_do:
            return 0 if v + 1 == len(visits) else least(v + 1, frozenset(visits[v + 1]), resident)
        return min(cost + least(v, to_do - {g}, after) for g in to_do for cost, after in made_resident(g, resident))

    def made_resident(g: int, resident: frozenset[int]) -> Iterator[tuple[int, frozenset[int]]]:
        if g in resident:
            yield 0, resident
        elif len(resident) < slots:
            yield 1, resident | {g}
        else:
            yield from ((1, resident - {gone} | {g}) for gone in resident)

    return least(0, frozenset(visits[0]), frozenset(first))


def test_loads_are_what_the_best_of_all_machines_needs_with_one_want_a_visit() -> None:
    for seed in range(200):
        p = tiny(seed, top_k=1)
        assert bounds(p)["loads"] == fewest_loads(visits_of(p), set(p.residents.tolist()), int(p.slots[0])), seed


def test_loads_are_at_most_what_the_best_of_all_machines_needs_with_several() -> None:
    """Seldom less: a visit that wants three, two of them kept into it and out of it, needs a third slot."""
    short = 0
    for seed in range(300):
        p = tiny(seed, top_k=2 + seed % 2)
        free = fewest_loads(visits_of(p), set(p.residents.tolist()), int(p.slots[0]))
        assert bounds(p)["loads"] <= free, seed
        short += bounds(p)["loads"] < free
    assert short < 60


def test_after_a_warm_up_forward_and_backward_count_the_same_loads() -> None:
    for seed in range(200):
        p = random_plan(seed)
        p = replace(p, warmup_steps=len(p.step_prefill) // 2)
        if p.warmup_steps:
            dropped = Walk.begin(p, NOBODY, backward=True).over(Wants.of(p))
            assert bounds(p)["loads"] == dropped.sum()


@pytest.mark.parametrize(
    ("residents", "slots", "loads"),
    [
        # 0 1 2 0 1 2. Intervals 0-3, 1-4, 2-5. Two slots: over visit 2 pass 0-3 and 1-4, one may: 1-4 goes.
        # Over visit 3 passes 2-5 alone. So 6 wants - 2 kept.
        ([], 2, 4),
        ([0, 1], 2, 2),  # and 0 and 1 are there at first
        ([], 1, 6),  # nothing may pass over anything
        ([], 3, 3),  # everything fits; each once
    ],
)
def test_loads_by_hand(residents: list[int], slots: int, loads: int) -> None:
    p = plan([[[e]] for e in (0, 1, 2, 0, 1, 2)], 3, [slots], residents=residents)
    assert bounds(p)["loads"] == loads


def test_loads_by_layer_and_pooled() -> None:
    """Two layers want 0 0 in turn, then 0 again. A slot each: kept. One slot for both: each passes over the
    other."""
    wanted = [[[0], [0]]] * 3
    assert bounds(plan(wanted, 2, [1, 1], residents=[]))["loads"] == 2
    assert bounds(plan(wanted, 2, [1], residents=[], pooled=True))["loads"] == 6
    assert bounds(plan(wanted, 2, [2], residents=[], pooled=True))["loads"] == 2


def test_a_visit_that_wants_more_than_the_slots_loads_the_rest_every_time() -> None:
    """Four wanted at once, three slots: one load each visit, and a machine that executes in id order needs no
    more here."""
    p = plan([[[0, 1, 2, 3]]] * 3, 4, [3], residents=[0, 1, 2])
    assert bounds(p)["loads"] == 3


# --- block by block: a second spelling over all visits at once ----------------------------------------------


def blocks_of(p: Plan) -> tuple[int, ...]:
    """Requests of blocks of one, two, three rows, of one step whatever its rows, and of the whole span."""
    row = p.experts.shape[1] * p.experts.shape[2]
    return 1, row, 2 * row, 3 * row, 10 * row, BLOCK


@pytest.mark.parametrize("chunk", range(4))
def test_the_bounds_are_those_of_the_reference_whatever_the_blocks(chunk: int) -> None:
    for seed in range(chunk * 30, (chunk + 1) * 30):
        for p in (law_plan(seed), long_plan(seed)):
            expected = reference_bounds(p)
            assert [bounds(p, block) for block in blocks_of(p)] == [expected] * 6, seed
            assert bounds(p) == expected


def test_every_step_of_the_span_is_in_one_block() -> None:
    for seed in range(50):
        p = long_plan(seed)
        for block in blocks_of(p):
            steps = list(blocks(p, block))
            assert [s for first, last in steps for s in range(first, last)] == [
                *range(p.warmup_steps, len(p.costs.cost_class))
            ]
            for first, last in steps:
                wants = np.minimum(np.diff(p.step_offset[first : last + 1]) * p.experts.shape[2], p.n_experts).sum()
                assert last == first + 1 or wants * p.experts.shape[1] <= block


def test_a_walk_taken_up_again_goes_the_same_way() -> None:
    """What a walk knows at a block's begin is enough, and a copy is one's own."""
    for seed in range(100):
        p = long_plan(seed)
        half = (p.warmup_steps + len(p.step_prefill)) // 2
        for backward in (False, True):
            parts = [Wants.of(p, p.warmup_steps, half), Wants.of(p, half, len(p.step_prefill))]
            walk = Walk.begin(p, NOBODY, backward)
            behind = walk.over(parts.pop(-1 if backward else 0))
            again = walk.copy()
            ahead = walk.over(parts[0])
            np.testing.assert_array_equal(again.over(parts[0]), ahead)
            whole = (ahead, behind) if backward else (behind, ahead)
            np.testing.assert_array_equal(np.concatenate(whole), Walk.begin(p, NOBODY, backward).over(Wants.of(p)))


def test_memory_does_not_grow_with_the_steps() -> None:
    """From 480,000 to 3,840,000 requests: what is allocated beside the plan stays what it was."""
    rng = np.random.default_rng(0)
    wanted = np.argsort(rng.random((600, 4, 8)), axis=-1)[..., :2]
    once = plan(wanted, 8, [4] * 4)
    bounds(once)  # compiled, loaded

    def peak(times: int) -> int:
        n = 600 * times
        row, costs = np.tile(once.step_row, times), replace(once.costs, cost_class=np.zeros(n, np.int32))
        p = replace(once, step_offset=np.arange(n + 1), step_row=row, step_prefill=np.zeros(n, bool), costs=costs)
        tracemalloc.start()
        bounds(p)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(800) < 1.1 * peak(100)


def test_a_large_state_makes_the_blocks_larger() -> None:
    """10^8 requests of 61 layers of 256 experts in one pool: as much in all states as in one block, below 50 MB."""
    layers, top_k, rows = 61, 8, 10**8 // (61 * 8)
    p = plan(np.zeros((1, layers, top_k)), 256, [layers * 128], pooled=True)
    p = replace(p, step_offset=np.array([0, rows]), step_prefill=np.broadcast_to(False, rows))
    walk = Walk.begin(p, p.residents)
    block = block_size(p, walk)
    assert 10**8 / block * walk.nbytes == pytest.approx(block * BYTES, rel=0.01)
    assert block * BYTES < 50e6


# --- times by hand ------------------------------------------------------------------------------------------


def test_with_everything_resident_compute_is_the_time() -> None:
    """2 tokens x 2 layers x (dense 10 + decide 4 + 2 x (group 2 + expert 5)) + 2 x (tail 3 + head 7) = 4 x 28
    + 20."""
    p = plan([[[0, 1], [2, 0]]] * 2, 3, [3, 3], decide=4, group_set_up=2, tail=3, head=7)
    least = bounds(p)
    assert least == {"loads": 0, "compute_ns": 132, "link_ns": 0, "lossless_ns": 132, "demand_ns": 132}
    assert span_ns(p, compiled.run(p)) == 132
    assert bounds(replace(p, group=1))["compute_ns"] == 132 - 4 * 2  # one group a visit may do


ALTERNATING = [[[0]], [[1]], [[0]], [[1]]]


def test_one_slot_and_alternating_experts_without_prefetch() -> None:
    """Each token: dense 10, gap 3 and transfer 100, expert 5; nothing hides behind the only expert. 4 x 118 =
    472. Lossless: routed at 10, four transfers of 103 back to back, the last expert 5: 427."""
    p = plan(ALTERNATING, 2, [1], residents=[], gap=3)
    assert bounds(p) == {"loads": 4, "compute_ns": 60, "link_ns": 427, "lossless_ns": 427, "demand_ns": 472}
    assert span_ns(p, compiled.run(p)) == 472


def test_one_slot_and_alternating_experts_with_an_oracle_are_bound_by_the_link() -> None:
    """Experts take no time: routed at 10, transfers land at 110, 210, 310, 410, each committed as the one
    before has run."""
    p = plan(ALTERNATING, 2, [1], residents=[], expert=0)
    p = replace(p, prefetch=oracle(p))
    assert bounds(p)["link_ns"] == bounds(p)["lossless_ns"] == 410
    assert span_ns(p, compiled.run(p)) == 410


def test_following_transfers_cost_what_they_cost_only_where_they_can_follow() -> None:
    """Both commits at 10: land at 110 and at 110 + 90; depth 1: at 210. Then the last expert, 5."""
    p = plan([[[0, 1]]], 2, [2], residents=[], transfer=(100, 90), depth=2)
    assert bounds(p)["link_ns"] == bounds(p)["demand_ns"] == span_ns(p, compiled.run(p)) == 205
    p = plan([[[0, 1]]], 2, [2], residents=[], transfer=(100, 90), depth=1)
    assert bounds(p)["link_ns"] == bounds(p)["demand_ns"] == span_ns(p, compiled.run(p)) == 215


def test_loads_first_and_compute_afterwards_add_up() -> None:
    """The link-bound run above (410), then two steps that want nothing and take 500 each: neither link nor
    compute alone."""
    p = plan([*ALTERNATING, [[-1]], [[-1]]], 2, [1], residents=[], expert=0)
    p = replace(p, prefetch=oracle(p), costs=slow_steps(p, [4, 5]))
    least = bounds(p)
    assert (least["compute_ns"], least["link_ns"], least["lossless_ns"]) == (1040, 410, 1410)
    assert span_ns(p, compiled.run(p)) == 1410


def test_compute_first_and_loads_afterwards_add_up() -> None:
    """Two steps of 500 that want nothing, then 0 1 0 1 0 1: one may be there when they end, another about to
    land; four transfers more: 1000 + 4 x 100. A run starts at 1000 with the first of six."""
    p = plan([[[-1]], [[-1]], *ALTERNATING, *ALTERNATING[:2]], 2, [1], residents=[], expert=0)
    p = replace(p, prefetch=oracle(p), costs=slow_steps(p, [0, 1]))
    least = bounds(p)
    assert (least["compute_ns"], least["link_ns"], least["lossless_ns"]) == (1060, 1100, 1400)
    assert span_ns(p, compiled.run(p)) == 1600


def slow_steps(p: Plan, slow: list[int]) -> Costs:
    """The costs of p, with a dense part of 500 in some steps."""
    c = p.costs
    cost_class = np.zeros_like(c.cost_class)
    cost_class[slow] = 1
    dense = np.concatenate([c.dense_ns, c.dense_ns])
    dense[1, 0] = 500
    return replace(c, cost_class=cost_class, dense_ns=dense, head_ns=np.repeat(c.head_ns, 2))


@pytest.mark.parametrize(
    ("wanted", "group", "time_ns"),
    [
        # 0 is there and runs 10-70; 1 lands at 110 and runs to 170
        ([0, 1], 0, 170),
        # ... and 2 lands at 210 and runs to 270: one transfer hides behind two executions, the other by 20 of
        # 100
        ([0, 1, 2], 0, 270),
        # all: both land first, then 3 x 60
        ([0, 1, 2], 2, 390),
    ],
)
def test_what_a_demand_can_hide(wanted: list[int], group: int, time_ns: int) -> None:
    p = plan([[wanted]], 3, [3], residents=[0], expert=60, group=group)
    assert bounds(p)["demand_ns"] == span_ns(p, compiled.run(p)) == time_ns


def test_after_a_warm_up_anyone_may_be_resident() -> None:
    """0 1 0 1 from step 1 on: 1 0 1, one slot; the first may be there, two are not. 3 x (10 + 5) + 2 x 100
    for a demand. Lossless: one about to land at once, one transfer 100 later, and its execution: 105."""
    p = replace(plan(ALTERNATING, 2, [1], residents=[]), warmup_steps=1)
    assert bounds(p) == {"loads": 2, "compute_ns": 45, "link_ns": 105, "lossless_ns": 105, "demand_ns": 245}
    assert span_ns(p, compiled.run(p)) == 3 * 115
    assert set(bounds(replace(p, warmup_steps=4)).values()) == {0}


def test_executed_bounds_count_what_a_lossy_run_did() -> None:
    """drop: 0 is resident, 1 is left out. 4 x 10 + 2 x 5, and nothing on the link."""
    p = plan(ALTERNATING, 2, [1], miss="drop")
    record = compiled.run(p)
    assert executed_bounds(p, record) == {"executed_gpu_ns": 50, "executed_link_ns": 0, "executed_ns": 50}
    assert span_ns(p, record) == 50 < bounds(p)["lossless_ns"]


def test_executed_bounds_of_a_busy_link_start_at_the_first_routed_instant() -> None:
    p = plan(ALTERNATING, 2, [1], residents=[], expert=0, decide=4)
    p = replace(p, prefetch=oracle(p))
    record = compiled.run(p)
    assert executed_bounds(p, record)["executed_ns"] == span_ns(p, record) == 414
    assert executed_bounds(p, record)["executed_gpu_ns"] == 4 * 14


@pytest.mark.parametrize(
    ("miss", "ahead", "names"),
    [
        ("fetch", False, (*LOSSLESS, *DEMAND, *ANY)),
        ("fetch", True, (*LOSSLESS, *ANY)),
        ("drop", False, ANY),
        ("cpu", True, ANY),
    ],
)
def test_which_bounds_apply(miss: str, ahead: bool, names: tuple[str, ...]) -> None:
    p = plan(ALTERNATING, 2, [1], miss=miss)
    assert applicable(replace(p, prefetch=oracle(p)) if ahead else p) == names


def test_importing_the_bounds_does_not_import_numba() -> None:
    assert REMOTE == miss.REMOTE  # said twice for that
    code = "import sys, sim.outcome.bounds; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
