"""Hand-worked cases of re-ranking, for the reference and every machine that claims to be the same.

Costs and plans are those of test_reference_lossy. Most cases drop what is missing, so that the dropped
weights show what the re-ranker wrote.
"""

from dataclasses import replace
from math import exp, log
from typing import Any

import numpy as np
import pytest

from sim.core.plan import OUTCOMES
from tests.test_reference import MACHINES, Run, lines, predicted
from tests.test_reference_lossy import answers, executed, lossy

LANDED, WITHDRAWN, REJECTED, UNFINISHED = range(len(OUTCOMES))


@pytest.fixture(params=sorted(MACHINES))
def run(request: pytest.FixtureRequest) -> Run:
    return MACHINES[request.param]


def wanted(result: dict[str, Any]) -> list[tuple[int, ...]]:
    """Per visit: distinct experts wanted, hits, misses."""
    return lines(result, "visits", "wanted", "hits", "misses")


def test_cache_prior(run: Run) -> None:
    # Logits 3 2 1 0, 2 and 3 resident: D = 3, and .5 x 3 is added to them: 3 2 2.5 1.5, so 0 and 2, of
    # weights e^3 and e^1 over their sum: .8808 and .1192. 0 is dropped.
    given: dict[str, Any] = {"policy": "drop", "rerank": ("cache-prior", 0.5)}
    result = run(lossy([[[0, 1]]], 4, [2], [2, 3], logits=[[[3, 2, 1, 0]]], **given))
    assert (wanted(result), executed(result)) == ([(2, 1, 1)], [(2, 1, 0)])
    totals = result["totals"]
    assert totals["weight_dropped"] == pytest.approx(1 / (1 + exp(-2)))
    assert (totals["weight_wanted"], totals["wanted_before"]) == (pytest.approx(1), 2)


def test_cache_prior_without_renormalisation(run: Run) -> None:
    # The same, weights e^3 and e^1 over e^3 + e^2 + e + 1.
    given: dict[str, Any] = {"policy": "drop", "rerank": ("cache-prior", 0.5), "norm_topk": False}
    totals = run(lossy([[[0, 1]]], 4, [2], [2, 3], logits=[[[3, 2, 1, 0]]], **given))["totals"]
    assert totals["weight_wanted"] == pytest.approx((exp(3) + exp(1)) / (exp(3) + exp(2) + exp(1) + 1))


def test_cache_prior_remembers_the_spread_of_its_layer(run: Run) -> None:
    # Token 0: D = 4, .5 x 4 for 2 and 3: 4 0 2 2: 0 and 2. Token 1 spreads over 2: D = 3; 2 1 1.5 1.5: 0 and
    # 2 (its own spread would give 2 1 1 1: 0 and 1). A slot without an expert is filled.
    given: dict[str, Any] = {"policy": "drop", "rerank": ("cache-prior", 0.5)}
    logits = [[[4, 0, 0, 0]], [[2, 1, 0, 0]]]
    result = run(lossy([[[0, 1]], [[0, -1]]], 4, [2], [2, 3], logits=logits, **given))
    assert executed(result) == [(2, 1, 0), (2, 1, 0)]
    assert (result["totals"]["slots_wanted"], result["totals"]["wanted_before"]) == (4, 3)


@pytest.mark.parametrize(
    ("always", "among", "expected"),
    [
        (1, 3, [0, 2]),  # 0, then 2, the resident among the first three
        (1, 2, [0, 1]),  # none among the first two: by rank
        (0, 5, [2, 4]),  # the residents alone
        (3, 5, [0, 1]),  # no more than K
        (2, 5, [0, 1]),
    ],
)
def test_max_rank(run: Run, always: int, among: int, expected: list[int]) -> None:
    given: dict[str, Any] = {"policy": "cpu", "rerank": ("max-rank", always, among)}
    result = run(lossy([[[0, 1]]], 5, [2], [4, 2], logits=[[[4, 3, 2, 1, 0]]], **given))
    assert sorted(result["executions"]["expert"]) == expected


def test_max_rank_writes_in_the_order_chosen(run: Run) -> None:
    # Logits 2 2 1 0: 0 before 1 by id. J = 1, M = 4: 0, then the resident 3, then 1. In slot order 3 is the
    # second; its weight is 1 / (2 e^2 + 1).
    given: dict[str, Any] = {"policy": "drop", "rerank": ("max-rank", 1, 4)}
    result = run(lossy([[[0, 1, 2]]], 4, [1], [3], logits=[[[2, 2, 1, 0]]], **given))
    assert lines(result, "answers", "slot", "wanted") == [(0, 0), (2, 1)]
    assert result["totals"]["weight_dropped"] == pytest.approx(2 * exp(2) / (2 * exp(2) + 1))


@pytest.mark.parametrize(
    ("always", "mass", "expected"),
    [
        (1, 0.8, [0, 2]),  # .4 + .3 + .2 = .9 is the first sum from .8 on: among 0, 1 and 2, of which 2 is resident
        (1, 0.6, [0, 1]),  # .4 + .3 = .7: no resident among 0 and 1, by rank
        (0, 0.95, [2, 3]),  # all four: the residents alone
        (0, 0, [0, 1]),  # no window
        (2, 1, [0, 1]),  # no more than K
    ],
)
def test_cache_prior_by_mass(run: Run, always: int, mass: float, expected: list[int]) -> None:
    given: dict[str, Any] = {"policy": "cpu", "rerank": ("cache-prior-mass", always, mass)}
    result = run(lossy([[[0, 1]]], 4, [2], [3, 2], logits=logs(0.4, 0.3, 0.2, 0.1), **given))
    assert sorted(result["executions"]["expert"]) == expected


def test_the_window_by_mass_ends_where_the_mass_is_reached(run: Run) -> None:
    # Four of p = 1/4 each, 2 and 3 resident. At .5 the window is 0 and 1, .25 + .25: no resident, so by rank.
    given: dict[str, Any] = {"policy": "cpu", "rerank": ("cache-prior-mass", 1, 0.5)}
    result = run(lossy([[[0, 1]]], 4, [2], [2, 3], logits=[[[0, 0, 0, 0]]], **given))
    assert sorted(result["executions"]["expert"]) == [0, 1]


@pytest.mark.parametrize(("mass", "expected"), [(0.7, [5]), (0.6, [0])])
def test_a_window_by_mass_is_as_long_as_it_takes(run: Run, mass: float, expected: list[int]) -> None:
    # Eight of p = 1/8 each, K = 1, the sixth resident: .75 is the first sum from .7 on, .625 (of five) that from .6 on.
    given: dict[str, Any] = {"policy": "cpu", "rerank": ("cache-prior-mass", 0, mass)}
    result = run(lossy([[[0]]], 8, [1], [5], logits=[[[0] * 8]], **given))
    assert list(result["executions"]["expert"]) == expected


def test_tolerance_looks_as_far_as_it_must(run: Run) -> None:
    # Eight of p = 1/8 each, K = 1: the last of them, the one resident, is as good as the first.
    given: dict[str, Any] = {"policy": "drop", "rerank": ("tolerance", 0)}
    assert executed(run(lossy([[[0]]], 8, [1], [7], logits=[[[0] * 8]], **given))) == [(7, 1, 0)]


def test_a_bonus_in_which_logits_get_lost_makes_residents_alike(run: Run) -> None:
    # 3 is above 2 by 1, but not by anything with 3 x 10^20 added to both: of equals the lower id.
    given: dict[str, Any] = {"policy": "drop", "rerank": ("cache-prior", 1e20)}
    assert executed(run(lossy([[[0]]], 4, [2], [2, 3], logits=[[[3, 2, 0, 1]]], **given))) == [(2, 1, 0)]


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [
        (0.4, [0, 2]),  # 0: nobody resident from .4 x .6 = .24 on; then 1: 2 (.2) from .3 x .6 = .18 on
        (0.3, [0, 1]),  # .3 x .7 = .21: 2 is too far below
        (0.55, [2, 0]),  # .4 x .45 = .18: 2; then the best left is 0 again, and 3 (.1) is below .18
        (0.8, [2, 3]),  # .4 x .2 = .08: 2 is the better of the two residents, then 3
        (0, [0, 1]),
    ],
)
def test_tolerance(run: Run, tolerance: float, expected: list[int]) -> None:
    given: dict[str, Any] = {"policy": "drop", "rerank": ("tolerance", tolerance)}
    result = run(lossy([[[0, 1]]], 4, [2], [2, 3], logits=logs(0.4, 0.3, 0.2, 0.1), **given))
    p = (0.4, 0.3, 0.2, 0.1)
    gone = [p[e] for e in expected if e < 2]
    assert result["totals"]["weight_dropped"] == pytest.approx(sum(gone) / sum(p[e] for e in expected), abs=2e-3)
    assert sorted(result["executions"]["expert"]) == sorted(e for e in expected if e >= 2)


def test_tolerance_takes_a_resident_of_the_same_probability_and_the_best_if_it_is_one(run: Run) -> None:
    # p = .3 .3 .3 .1, 1 and 2 resident. Slot 0: 0 is best, and at tolerance 0 residents of .3 may stand for it: 1, the
    # lower id. Slot 1: the best left is 0 again, and 2 has its .3. Nothing is missing.
    given: dict[str, Any] = {"policy": "drop", "rerank": ("tolerance", 0)}
    result = run(lossy([[[0, 1]]], 4, [2], [1, 2], logits=logs(0.3, 0.3, 0.3, 0.1), **given))
    assert wanted(result) == [(2, 2, 0)] and sorted(result["executions"]["expert"]) == [1, 2]


def logs(*probabilities: float) -> list[list[list[float]]]:
    return [[[log(p) for p in probabilities]]]


def test_smoe(run: Run) -> None:
    # p = .35 .25 .22 .18, K = 2, so m = .22. 0 scores above .22 x 1.25 = .275 and stays; 1 (.25) gives way to
    # 3: .165 < .18 < .22 (2 is not below m). Weight .4 x .18 / .25 = .288. 0, dropped, keeps .6.
    given: dict[str, Any] = {
        "policy": "drop",
        "weights": [[[0.6, 0.4]]],
        "logits": logs(0.35, 0.25, 0.22, 0.18),
    }
    result = run(lossy([[[0, 1]]], 4, [2], [2, 3], rerank=("smoe", 0.25), **given))
    assert executed(result) == [(3, 1, 0)]
    totals = result["totals"]
    assert totals["weight_dropped"] == pytest.approx(0.6)
    assert totals["weight_wanted"] == pytest.approx(0.6 + 0.288, rel=1e-3)  # float16 logits


def test_smoe_leaves_what_is_resident_or_finds_nobody(run: Run) -> None:
    given: dict[str, Any] = {
        "policy": "drop",
        "logits": logs(0.35, 0.25, 0.22, 0.18),
        "rerank": ("smoe", 0.25),
    }
    assert executed(run(lossy([[[0, 1]]], 4, [2], [1, 3], **given))) == [(1, 1, 0)]
    narrow = given | {"rerank": ("smoe", 0.15)}  # .22 x .85 = .187 > .18, and .22 x 1.15 = .253 > .25
    assert wanted(run(lossy([[[0, 1]]], 4, [2], [2, 3], **narrow))) == [(2, 0, 2)]


def test_smoe_uses_a_resident_once(run: Run) -> None:
    # m = .2; 0 and 1 (.22 each) are below .25; 3 (.19) goes to slot 0, and 4 (.17) to slot 1.
    given: dict[str, Any] = {
        "policy": "drop",
        "logits": logs(0.22, 0.22, 0.2, 0.19, 0.17),
        "rerank": ("smoe", 0.25),
    }
    assert executed(run(lossy([[[0, 1]]], 5, [2], [4, 3], **given))) == [(3, 1, 0), (4, 1, 0)]


def test_adapmoe(run: Run) -> None:
    # .3^2 = .09 stays, .1^2 = .01 goes, .5 is the largest. With 1 as threshold the largest alone is left: of
    # two equal ones that in the lower slot.
    wants: Any = ([[[0, 1, 2]]], 3, [3], [0, 1, 2])
    result = run(lossy(*wants, policy="fetch", weights=[[[0.1, 0.5, 0.3]]], rerank=("adapmoe", 0.04)))
    assert executed(result) == [(1, 1, 0), (2, 1, 0)]
    totals = result["totals"]
    assert totals["weight_wanted"] == pytest.approx(0.8)
    assert (totals["slots_wanted"], totals["wanted_before"]) == (2, 3)
    result = run(lossy(*wants, policy="fetch", weights=[[[0.25, 0.5, 0.5]]], rerank=("adapmoe", 1)))
    assert executed(result) == [(1, 1, 0)]


def alike(n_experts: int, pairs: dict[tuple[int, int], float]) -> Any:
    array = np.zeros((1, n_experts, n_experts), np.float32)
    for (expert, other), value in pairs.items():
        array[0, expert, other] = value
    return array


def test_sere(run: Run) -> None:
    # Primary {0, 1}. Token 0: 2 is nearest to 1 (.75 >= .6): its slot wants 1. Token 1: 3 is nearest to 1,
    # which the token has: .4 is added to it. So token 1 wants 1 alone; 1 runs two tokens.
    similarity = alike(4, {(2, 0): 0.5, (2, 1): 0.75, (3, 0): 0.2, (3, 1): 0.9})
    given: dict[str, Any] = {"weights": [[[0.75, 0.25]], [[0.625, 0.375]]], "steps": [[0, 1]]}
    plan = lossy([[[0, 2]], [[1, 3]]], 4, [4], [0, 1, 2, 3], policy="fetch", rerank=("sere", 0.6, 1), **given)
    result = run(replace(plan, similarity=similarity))
    assert executed(result) == [(0, 1, 0), (1, 2, 0)]
    totals = result["totals"]
    assert (totals["slots_wanted"], totals["weight_wanted"], totals["wanted_before"]) == (3, 2.0, 4)


def test_sere_leaves_what_is_like_nobody_and_what_is_primary_elsewhere(run: Run) -> None:
    # As above at .8: 2 stays, 3 still goes to 1. With token 1 wanting 2 in its second slot and P = 2 for
    # both, all is primary.
    similarity = alike(4, {(2, 0): 0.5, (2, 1): 0.75, (3, 0): 0.2, (3, 1): 0.9})
    given: dict[str, Any] = {
        "weights": [[[0.75, 0.25]], [[0.625, 0.375]]],
        "steps": [[0, 1]],
        "policy": "fetch",
    }
    wants: Any = ([[[0, 2]], [[1, 3]]], 4, [4], [0, 1, 2, 3])
    result = run(replace(lossy(*wants, rerank=("sere", 0.8, 1), **given), similarity=similarity))
    assert executed(result) == [(0, 1, 0), (2, 1, 0), (1, 1, 0)]
    result = run(replace(lossy(*wants, rerank=("sere", 0, 2), **given), similarity=similarity))
    assert len(executed(result)) == 4


def test_sere_ties_go_to_the_lower_id(run: Run) -> None:
    similarity = alike(4, {(2, 0): 0.5, (2, 1): 0.5})
    given: dict[str, Any] = {"weights": [[[1.0, 0.0]], [[0.75, 0.25]]], "steps": [[0, 1]], "policy": "fetch"}
    plan = lossy([[[0, -1]], [[1, 2]]], 4, [4], [0, 1, 2, 3], rerank=("sere", 0.5, 1), **given)
    assert executed(run(replace(plan, similarity=similarity))) == [(0, 2, 0), (1, 1, 0)]


def test_what_is_no_longer_wanted_is_withdrawn_and_not_asked_about(run: Run) -> None:
    # The trace's 2 is prefetched behind 3 (on the link from 10). At 25 max-rank makes it 0, which is here.
    prefetch = predicted((2, 1), {(1, 1, 0): [3, 2]})
    given: dict[str, Any] = {
        "prefetch": prefetch,
        "rerank": ("max-rank", 0, 4),
        "logits": [[[9, 0, 0, 0]], [[1, 0, 9, 0]]],
    }
    result = run(lossy([[[0]], [[2]]], 4, [2], [0, 1], peers={2: [1]}, **given))
    assert lines(result, "transfers", "expert", "outcome") == [(3, UNFINISHED), (2, WITHDRAWN)]
    assert answers(result) == []
    assert executed(result) == [(0, 1, 0), (0, 1, 0)]


def test_residents_are_those_of_the_routed_instant_and_the_layer(run: Run) -> None:
    # One pool over two layers. The prefetch of 2 of layer 1 (global 5) takes 25 ns: it lands at 35, when
    # layer 1 is routed (10 + 5 for layer 0, then 10, and 10 more to decide, twice). There 2 is the resident
    # then.
    prefetch = predicted((1, 2), {(1, 0, 1): [2]})
    given: dict[str, Any] = {"rerank": ("max-rank", 0, 3), "logits": [[[9, 0, 0], [2, 1, 0]]], "pooled": True}
    costs = {"transfer": [25, 25], "decide": 10}
    plan = lossy([[[0], [0]]], 3, [2], [0], prefetch=prefetch, costs=costs, **given)
    result = run(plan)
    assert lines(result, "visits", "routed_ns", "hits") == [(20, 1), (45, 1)]
    assert lines(result, "executions", "visit", "expert") == [(0, 0), (1, 2)]
