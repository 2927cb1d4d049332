"""How many intervals fit: the packing in words of bits against two spellings of the greedy in plain Python, the law
that it states (nothing that is covered is full) and the slots that tell it (the one free for the shortest time)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from sim.core.plan import OnMiss, Plan
from sim.outcome.bounds import bounds
from sim.outcome.packing import WORD, Walk, Wants
from sim.outcome.span import BYTES, block_size
from tests.bench import captures, repeated
from tests.on_miss_plans import plan_of
from tests.plans import plan, random_plan
from tests.reference_bounds import long_plan, reference_bounds, visits_of

Greedy = Callable[[list[list[int]], list[int], int, bool], list[int]]
Int = npt.NDArray[np.int64]
NOBODY = np.zeros(0, np.int64)


def unless_full(visits: list[list[int]], initial: list[int], slots: int, stages: bool) -> list[int]:
    """Of each visit of a scope, the wants before which nothing is kept. An interval (u, w) is accepted when it ends, if
    at each visit that it passes over, and between any two that it lies across, there is room. Visit v is place 2 v,
    what follows it place 2 v + 1; the first residents begin at -1."""
    room = {-1: slots} | {2 * v + at: slots - (at == 0 and not stages) for v in range(len(visits)) for at in (0, 1)}
    last, missing = dict.fromkeys(initial, -1), []
    for w, wanted in enumerate(visits):
        kept = 0
        for g in wanted:
            covered = range(last[g], 2 * w) if g in last else range(0)
            if g in last and all(room[place] > 0 for place in covered):
                room |= {place: room[place] - 1 for place in covered}
                kept += 1
            last[g] = 2 * w + 1
        missing.append(len(wanted) - kept)
    return missing


def nearest_slot(visits: list[list[int]], initial: list[int], slots: int, stages: bool) -> list[int]:
    """The same: accepted if a slot has been free since u, in the one that has been free for the shortest time."""
    free, last, missing = [-1] * slots, dict.fromkeys(initial, -1), []
    for w, wanted in enumerate(visits):
        kept = 0
        for g in wanted:
            since = [t for t in free if g in last and t <= last[g]]
            if since:
                free.remove(max(since))
                kept += 1
            last[g] = w
        if wanted and kept == 0 and not stages:
            free.remove(max(free))
            kept = 1
            missing.append(len(wanted))
        else:
            missing.append(len(wanted) - kept)
        free += [w] * kept
    return missing


def by_scope(p: Plan, greedy: Greedy, initial: list[int], backward: bool = False) -> list[int]:
    """What a greedy says of each visit of a plan, where a scope's visits are those that want something of it."""
    visits = [list(wanted) for wanted in visits_of(p)]
    scopes, layers = len(p.slots), p.experts.shape[1]
    out = [0] * len(visits)
    for scope in range(scopes):
        mine = [v for v in range(len(visits)) if visits[v] and (scopes == 1 or v % layers == scope)]
        mine = mine[::-1] if backward else mine
        there = [g for g in initial if scopes == 1 or g // p.n_experts == scope]
        found = greedy([visits[v] for v in mine], there, int(p.slots[scope]), p.on_miss is not None)
        for v, missing in zip(mine, found, strict=True):
            out[v] = missing
    return out


def check(p: Plan, greedy: Greedy) -> None:
    """Each visit's misses are those of the greedy: so all prefixes' are. From the end backwards what is kept is the
    same, so what ends in each visit is, too; of what begins there more is open (Belady's greedy)."""
    everyone = list(range(p.experts.shape[1] * p.n_experts))
    for initial in (p.residents.tolist(), everyone):
        walk = Walk.begin(p, np.array(initial, np.int64))
        assert walk.over(Wants.of(p)).tolist() == by_scope(p, greedy, initial)
    missing = by_scope(p, greedy, [], backward=True)
    dropped = Walk.begin(p, NOBODY, backward=True).over(Wants.of(p)).tolist()
    assert dropped == open_and_dropped(p, missing)


def open_and_dropped(p: Plan, missing: list[int]) -> list[int]:
    """What a walk from the end drops, visit by visit, by how many of its wants are not kept."""
    opened, out, layers = [0] * len(p.slots), [0] * len(missing), p.experts.shape[1]
    for v in range(len(missing) - 1, -1, -1):
        scope = 0 if len(p.slots) == 1 else v % layers
        asked = opened[scope] + missing[v]
        opened[scope] = min(asked, int(p.slots[scope]))
        out[v] = asked - opened[scope]
    return out


@pytest.mark.parametrize("greedy", [unless_full, nearest_slot])
@pytest.mark.parametrize("make", [long_plan, random_plan, plan_of])
def test_it_is_the_greedy_on_every_prefix_and_suffix(make: Callable[[int], Plan], greedy: Greedy) -> None:
    for seed in range(40):
        check(replace(make(seed), warmup_steps=0), greedy)


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("slots", [1, 2, WORD - 2, WORD - 1, WORD, WORD + 1, 3 * WORD])
def test_slots_of_less_than_a_word_of_one_and_of_more(slots: int, stages: bool) -> None:
    """Long enough that places run out many times; visits that want one, some, and more than there are slots."""
    rng = np.random.default_rng(slots)
    n_experts = slots + int(rng.integers(2, 40))
    for top_k in (1, 3, min(n_experts, slots + 1, 40)):
        order = np.argsort(rng.random((300 // top_k + 30, 1, n_experts)) ** (1 + np.arange(n_experts)), axis=-1)
        p = plan(
            order[..., :top_k], n_experts, [slots], residents=rng.permutation(n_experts)[: rng.integers(slots + 1)]
        )
        if stages:
            p = replace(p, on_miss=OnMiss(np.array([[0, 1], [0, 1]]), np.zeros(1, np.bool_)))
        check(p, nearest_slot)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("pooled", [False, True])
def test_it_is_the_greedy_on_captures(share: float, pooled: bool) -> None:
    for trace in captures().values():
        p = repeated(trace, 6000)
        layers, n_experts = trace.n_moe_layers, trace.n_experts
        slots = max(1, round(share * n_experts))
        p = replace(p, slots=np.full(layers, slots), residents=p.residents[p.residents % n_experts < slots])
        if pooled:
            p = replace(p, pooled=True, slots=np.array([layers * slots]))
        check(p, nearest_slot)


def test_nothing_is_walked_over_backward_where_no_cut_can_be_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is bound by the link from the first step on, so nothing is; with two slow steps behind it, what comes after
    the last transfer is. The bounds are those of the reference, which looks at every cut."""
    wanted, backward = np.arange(400)[:, None, None] % 4, []
    over = Walk.over

    def noted(walk: Walk, wants: Wants) -> Int:
        backward.append(walk.backward)
        return over(walk, wants)

    monkeypatch.setattr(Walk, "over", noted)
    p = plan(wanted, 4, [2], residents=[], dense=0, expert=1, transfer=100)
    assert bounds(p, 20) == reference_bounds(p)
    assert backward and not any(backward)
    slow = plan(np.concatenate([wanted, np.full((2, 1, 1), -1)]), 4, [2], residents=[], dense=0, expert=1, transfer=100)
    dense = np.array([[0, 0], [9000, 0]])
    costs = replace(slow.costs, dense_ns=dense, head_ns=np.zeros(2, np.int64))
    costs = replace(costs, cost_class=np.r_[np.zeros(400, np.int32), np.ones(2, np.int32)])
    p = replace(slow, costs=costs)
    backward.clear()
    assert bounds(p, 20) == reference_bounds(p)
    assert bounds(p, 20)["lossless_ns"] > max(bounds(p, 20)[name] for name in ("compute_ns", "link_ns"))


def test_a_walk_takes_eight_bytes_an_expert_and_bits() -> None:
    """61 layers of 256 experts in one pool: 8 B each and three bits for a slot, so that states of 10^8 requests' blocks
    and a block together stay small."""
    p = plan(np.zeros((1, 61, 8)), 256, [61 * 128], pooled=True)
    p = replace(p, step_offset=np.array([0, 10**8 // 488]), step_prefill=np.broadcast_to(False, 10**8 // 488))
    walk = Walk.begin(p, p.residents)
    assert walk.nbytes < 61 * 256 * 9
    assert 2 * block_size(p, walk) * BYTES < 100e6
