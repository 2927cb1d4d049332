"""Buddy coverage against every set; slots over layers against every spread, a plain LRU and the machine."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.errors import SpecError
from sim.fit.buddies import BuddyLists, BuddyProfile
from sim.fit.placement import coverage_order, covers, first_residents, wanted_units
from sim.fit.slots import best_spread, hit_curves, spread_slots
from sim.machines import compiled
from tests.gen import random_trace, trace_of, traces
from tests.plans import plan
from traces.format.trace import RoutingTrace
from traces.statistics.counts import expert_counts


def lists_of(peers: Any) -> BuddyLists:
    """peers [L][E][W], -1 after the end."""
    array = np.asarray(peers, np.int16)
    return BuddyLists(array, (array >= 0).astype(np.float32), np.ones(array.shape[:2]), {"alpha": 1.0})


def drawn_lists(rng: np.random.Generator, layers: int, experts: int) -> BuddyLists:
    """Lists of random length, empty ones among them."""
    width = max(1, min(3, experts - 1))
    peers = np.full((layers, experts, width), -1, np.int16)
    for layer, i in itertools.product(range(layers), range(experts)):
        others = rng.permutation([j for j in range(experts) if j != i])[: rng.integers(0, width + 1)]
        peers[layer, i, : len(others)] = others
    return lists_of(peers)


def covered(residents: Any, lists: BuddyLists, worth: np.ndarray) -> int:
    """Wanted units of the experts (global ids) that are resident or have a resident buddy, spelled out."""
    n, held = lists.n_experts, {int(r) for r in residents}
    total = 0
    for layer, i in itertools.product(range(lists.n_moe_layers), range(n)):
        buddies = [int(j) for j in lists.peers[layer, i] if j >= 0]
        if any(layer * n + j in held for j in [i, *buddies]):
            total += int(worth[layer, i])
    return total


# --- buddy coverage -----------------------------------------------------------------------------------------


def test_coverage_by_hand() -> None:
    # Weights: expert 0: 4, 1: 3, 2: 2, 3: 2, 4: 1. 0 and 1 may be replaced by 3, 2 by 4.
    weights = np.array([4, 3, 2, 2, 1]).reshape(5, 1, 1) / 4
    calibration = trace_of([[[e]] for e in range(5)], 5, weights)
    lists = lists_of([[[3, -1], [3, 4], [4, -1], [-1, -1], [-1, -1]]])
    assert covers(lists.peers[0]).astype(int).tolist() == [
        *([1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0], [0, 1, 1, 0, 1])
    ]
    order, gain = coverage_order(calibration, lists)
    # 3 covers 0, 1 and 3: 4 + 3 + 2 = 9. Then 4 covers 2 and 4: 3 (2 alone: 2). Then nothing is left: by use,
    # all once, so by id: 0, 1, 2.
    assert order.tolist() == [[3, 4, 0, 1, 2]]
    unit = int(wanted_units(calibration)[0, 4])
    assert gain.tolist() == [[9 * unit, 3 * unit, 0, 0, 0]]
    room = np.array([3], np.int64)
    found = first_residents("buddy-coverage", 1, 5, room, False, calibration, lists=lists)
    assert found.dtype == np.int64 and found.tolist() == [0, 4, 3]  # the most valuable lands last


def test_what_counts_is_weight_and_uses_only_without_weights() -> None:
    ids = [[[0]], [[0]], [[0]], [[1]], [[-1]]]
    nobody = lists_of([[[-1], [-1]]])
    for weights, first in ((None, 0), ([[[0.1]]] * 3 + [[[0.9]], [[5.0]]], 1)):
        order, _ = coverage_order(trace_of(ids, 2, weights), nobody)
        assert order[0, 0] == first


def test_equal_gains_go_to_the_more_popular_then_to_the_lower_id() -> None:
    # weight 1 each; uses 1, 2, 2, 1
    ids = [[[0]], [[1]], [[1]], [[2]], [[2]], [[3]]]
    calibration = trace_of(ids, 4, np.array([1, 0.5, 0.5, 0.5, 0.5, 1]).reshape(6, 1, 1))
    order, _ = coverage_order(calibration, lists_of([[[-1]] * 4]))
    assert order.tolist() == [[1, 2, 0, 3]]


def test_without_buddies_and_weights_it_is_popular() -> None:
    calibration = random_trace(np.random.default_rng(4), weights=False)
    nobody = lists_of(np.full((3, 8, 1), -1))
    for room, pooled in ((np.array([3, 1, 8]), False), (np.array([7]), True)):
        here = first_residents("buddy-coverage", 3, 8, room, pooled, calibration, lists=nobody)
        assert here.tolist() == first_residents("popular", 3, 8, room, pooled, calibration).tolist()


@settings(max_examples=150)
@given(
    trace=traces(max_tokens=12, max_layers=2, max_experts=5),
    seed=some.integers(0, 999),
    room=some.integers(0, 10),
    pooled=some.booleans(),
)
def test_greedy_against_every_set(trace: RoutingTrace, seed: int, room: int, pooled: bool) -> None:
    layers, n = trace.n_moe_layers, trace.n_experts
    lists, worth = drawn_lists(np.random.default_rng(seed), layers, n), wanted_units(trace)
    slots = np.array([room]) if pooled else np.array([room % (n + 1), room // 2][:layers])
    found = first_residents("buddy-coverage", layers, n, slots, pooled, trace, lists=lists)
    scopes = [range(layers * n)] if pooled else [range(at * n, at * n + n) for at in range(layers)]
    for scope, size in zip(scopes, np.minimum(slots, [len(s) for s in scopes]), strict=True):
        mine = [r for r in found.tolist() if r in scope]
        assert len(mine) == len(set(mine)) == size
        best = max(covered(c, lists, worth) for c in itertools.combinations(scope, int(size)))
        share = 1 - (1 - 1 / size) ** size if size else 1
        assert share * best <= covered(mine, lists, worth) <= best
        # Chosen one at a time, each of the highest gain there was; the earliest chosen lands last.
        chosen = mine[::-1]
        for at, expert in enumerate(chosen):
            before = covered(chosen[:at], lists, worth)
            gains = {e: covered([*chosen[:at], e], lists, worth) - before for e in scope if e not in chosen[:at]}
            uses = expert_counts(trace).reshape(-1)
            assert expert == min(gains, key=lambda e: (-gains[e], -uses[e], e))


def test_the_greedy_choice_can_miss_the_optimum() -> None:
    # the bound of the docstring is of use: 4 covers 0, 1, 2 and itself first, but 5 and 6 cover everything
    peers = [[4, 5], [4, 5], [4, 6], [6, -1], [5, -1], [-1, -1], [-1, -1]]
    weights = np.array([3, 3, 4, 5, 1, 1, 1], np.float32).reshape(7, 1, 1)
    calibration = trace_of([[[e]] for e in range(7)], 7, weights)
    lists, worth = lists_of([peers]), wanted_units(calibration)
    found = first_residents("buddy-coverage", 1, 7, np.array([2]), False, calibration, lists=lists)
    unit = int(worth[0, 6])
    assert found.tolist() == [6, 4]
    assert covered(found, lists, worth) == 17 * unit and covered([5, 6], lists, worth) == 18 * unit


def test_coverage_of_learned_lists_keeps_one_of_each_pair() -> None:
    # experts 2 c and 2 c + 1 always run together, pair 0 the most: popular leaves pair 2 without anybody
    pairs = [0] * 5 + [1] * 4 + [2] * 3
    calibration = trace_of([[[2 * c, 2 * c + 1]] for c in pairs], 6)
    lists = BuddyProfile(k_max=1).fit(calibration).lists_
    room = np.array([3])
    here = first_residents("buddy-coverage", 1, 6, room, False, calibration, lists=lists)
    there = first_residents("popular", 1, 6, room, False, calibration)
    assert here.tolist() == [4, 2, 0] and there.tolist() == [2, 1, 0]
    worth = wanted_units(calibration)
    assert (covered(here, lists, worth), covered(there, lists, worth)) == (24, 18)


def test_refusals_of_coverage() -> None:
    calibration, room = random_trace(np.random.default_rng(0)), np.full(3, 2)
    lists = lists_of(np.full((3, 8, 1), -1))
    with pytest.raises(SpecError, match=r"^placement buddy-coverage needs a calibration trace$"):
        first_residents("buddy-coverage", 3, 8, room, False, None, lists=lists)
    with pytest.raises(SpecError, match=r"^placement buddy-coverage needs buddy lists$"):
        first_residents("buddy-coverage", 3, 8, room, False, calibration)
    with pytest.raises(SpecError, match=r"has 3 MoE layers of 8 experts; 3 of 9 are required$"):
        first_residents("buddy-coverage", 3, 9, room, False, calibration, lists=lists)
    with pytest.raises(SpecError, match=r"^buddy lists are of 3 MoE layers and 7 experts; the trace .* 3 and 8$"):
        small = lists_of(np.full((3, 7, 1), -1))
        first_residents("buddy-coverage", 3, 8, room, False, calibration, lists=small)


# --- slots over layers --------------------------------------------------------------------------------------


def plain_hits(trace: RoutingTrace, layer: int, slots: int, as_decode: bool) -> int:
    """An LRU list, one visit at a time."""
    stack: list[int] = []
    hits = 0
    for t in range(trace.n_tokens):
        if trace.prefill[t] and not as_decode:
            continue
        wanted = [int(e) for e in trace.experts[t, layer] if e >= 0]
        hits += sum(e in stack[:slots] for e in wanted)
        stack = wanted[::-1] + [e for e in stack if e not in wanted]
    return hits


def total_hits(hits: np.ndarray, slots: Any) -> int:
    return int(sum(row[s] for row, s in zip(hits, slots, strict=True)))


def even(total: int, layers: int) -> list[int]:
    return [total // layers + (layer < total % layers) for layer in range(layers)]


def test_hit_curves_by_hand() -> None:
    # layer 0: 0 1 0 2 0: depths -, -, 1, -, 1: two hits from 2 slots on. Layer 1: 1 1 2 1 2: 0, then 1, 1.
    run = trace_of(list(zip([[0], [1], [0], [2], [0]], [[1], [1], [2], [1], [2]], strict=True)), 3)
    assert hit_curves(run).tolist() == [[0, 0, 2, 2], [0, 1, 3, 3]]
    # a visit of two: both are asked for before either is counted as used
    pairs = trace_of([[[0, 1]], [[1, 2]], [[0, 1]]], 3)
    # 1 lies on top (one slot is enough); then the stack is 2 1 0: 0 needs three, 1 two
    assert hit_curves(pairs).tolist() == [[0, 1, 2, 3]]


@settings(max_examples=100)
@given(trace=traces(), as_decode=some.booleans(), chunk=some.sampled_from([1, 20, 1 << 18]))
def test_hit_curves_are_those_of_a_plain_lru(trace: RoutingTrace, as_decode: bool, chunk: int) -> None:
    if not as_decode and trace.prefill.all():
        with pytest.raises(SpecError, match=r"^slots: the calibration trace has no decode rows; as_decode"):
            hit_curves(trace)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.fit.slots._CHUNK_ELEMENTS", chunk)
        found = hit_curves(trace, as_decode)
    assert found.dtype == np.int64 and (np.diff(found, axis=1) >= 0).all()
    for layer, c in itertools.product(range(trace.n_moe_layers), range(trace.n_experts + 1)):
        assert found[layer, c] == plain_hits(trace, layer, c, as_decode)


@pytest.mark.parametrize("k", [1, 2])
def test_the_machine_hits_as_often(k: int) -> None:
    """Equal for one expert a visit; for two, the order within a visit may differ, by less than 2 %."""
    run = random_trace(np.random.default_rng(6), tokens=300, experts=8, k=k, requests=1, prompt=0.0, skew=1.5)
    curves, slots = hit_curves(run), [2, 3, 6]
    record = compiled.run(plan(run.experts, 8, slots, residents=[]))
    hits = record.layer["hits"].tolist()
    wanted = [int(row[c]) for row, c in zip(curves, slots, strict=True)]
    if k == 1:
        assert hits == wanted
    assert np.abs(np.array(hits) - wanted).max() <= 0.02 * run.n_tokens * k


def test_spread_by_hand() -> None:
    # A loop over 3 experts hits only from 3 slots on (7 of 10 visits); a steady expert hits 9 with one slot.
    run = trace_of([[[t % 3], [0]] for t in range(10)], 3)
    assert hit_curves(run).tolist() == [[0, 0, 0, 7], [0, 9, 9, 9]]
    assert spread_slots(run, 4, 2, 3).tolist() == [3, 1]  # one slot at a time would see no gain in layer 0
    assert spread_slots(run, 3, 2, 3).tolist() == [2, 1]  # nothing to gain: as even as can be
    assert spread_slots(run, 5, 2, 3).tolist() == [3, 2]
    assert spread_slots(run, 99, 2, 3).tolist() == [3, 3]
    assert spread_slots(run, 4, 2, 3, least=2).tolist() == [2, 2]


@settings(max_examples=150)
@given(data=some.data(), layers=some.integers(1, 4), experts=some.integers(1, 5))
def test_spread_against_every_spread(data: Any, layers: int, experts: int) -> None:
    steps = some.lists(some.integers(0, 3), min_size=experts, max_size=experts)
    curve = some.lists(steps, min_size=layers, max_size=layers)
    hits = np.pad(np.cumsum(np.array(data.draw(curve), np.int64), axis=1), ((0, 0), (1, 0)))
    least = data.draw(some.integers(1, experts))
    total = data.draw(some.integers(layers * least, layers * experts))
    every = [s for s in itertools.product(range(least, experts + 1), repeat=layers) if sum(s) == total]
    found = best_spread(hits, total, least)
    assert found.dtype == np.int64

    def rank(slots: Any) -> tuple[int, int, Any]:
        return -total_hits(hits, slots), sum(s * s for s in slots), tuple(slots[::-1])

    assert tuple(found.tolist()) == min(every, key=rank)


@settings(max_examples=60)
@given(trace=traces(prompt=0.0), share=some.floats(0, 1))
def test_never_fewer_hits_than_the_even_spread(trace: RoutingTrace, share: float) -> None:
    layers, n = trace.n_moe_layers, trace.n_experts
    total = layers + round(share * layers * (n - 1))
    found, hits = spread_slots(trace, total, layers, n), hit_curves(trace)
    assert found.sum() == total and found.min() >= 1 and found.max() <= n
    assert total_hits(hits, found) >= total_hits(hits, even(total, layers))


def test_refusals_of_slots() -> None:
    run = random_trace(np.random.default_rng(0), prompt=0.0)
    for arguments, message in (
        ((6, 3, 9), "slots: the calibration trace has 3 MoE layers of 8 experts; 3 of 9 are required"),
        ((2, 3, 8), "slots: 2 in all; 3 layers need at least 1 each"),
    ):
        with pytest.raises(SpecError) as raised:
            spread_slots(run, *arguments)
        assert str(raised.value) == message
    with pytest.raises(SpecError, match=r"^slots: least is 9; a number from 1 to 8 is required$"):
        spread_slots(run, 30, 3, 8, least=9)
