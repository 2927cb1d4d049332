"""Hand-worked cases of lossy answers, for the reference and every machine that claims to be the same.

As in test_reference: dense part 10, one expert 5 whatever its tokens, a transfer 100, all else 0; one layer,
one token a step, lru. The miss policy is `buddy` with every gate open and no limits unless a case says
otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest

from sim.core.plan import ANSWERS, OUTCOMES, SUBSTITUTE_PARAMS, Choice, Plan
from sim.policies.registry import MISS, RERANK
from tests.plans import MISSES, named, substitute
from tests.reference_miss import adaptive_entropy, hash64
from tests.test_reference import MACHINES, Run, lines, make, predicted

FETCH, SUBSTITUTE, DROP, CPU = (ANSWERS.index(name) for name in ("fetch", "substitute", "drop", "cpu"))
LANDED, WITHDRAWN, REJECTED, UNFINISHED = range(len(OUTCOMES))
DEMAND, PREFETCH, BACKGROUND = range(3)
PREFILL, TAE, MARGIN, DISTRIBUTION, RHO, NOBODY = range(1, 7)


@pytest.fixture(params=sorted(MACHINES))
def run(request: pytest.FixtureRequest) -> Run:
    return MACHINES[request.param]


def listed(plan: Plan, peers: Mapping[int, Sequence[int]], q: Mapping[int, Sequence[float]]) -> Plan:
    """The plan with these stand-ins of each expert, the same in every layer, and their q (0 unless given)."""
    shape = (plan.experts.shape[1], plan.n_experts, max(map(len, peers.values())))
    ids, shares = np.full(shape, -1, np.int16), np.zeros(shape, np.float32)
    for expert, others in peers.items():
        ids[:, expert, : len(others)] = others
        shares[:, expert, : len(others)] = q.get(expert, [0.0] * len(others))
    return replace(plan, peers=ids, peer_q=shares)


def lossy(experts: Sequence[Any], n_experts: int, slots: Sequence[int], residents: Sequence[int], **given: Any) -> Plan:
    """As make; `policy` its name, the family's parameters by name, weights, logits as [token][layer][...],
    peers expert -> list, q expert -> list, tau one number, rerank (name, parameters...)."""
    params = {name: given.pop(name) for name in SUBSTITUTE_PARAMS if name in given}
    policy, threshold = given.pop("policy", "buddy"), given.pop("threshold", ())
    peers, q, rerank = given.pop("peers", {}), given.pop("q", {}), given.pop("rerank", None)
    weights = given.pop("weights", np.full(np.shape(experts), 1 / np.shape(experts)[2]))
    if "tau" in given:
        given["tau"] = np.full(np.shape(experts)[1], given["tau"], np.float64)
    if "logits" in given:
        given["logits"] = np.array(given["logits"], np.float16)
    plan = make(experts, n_experts, slots, residents, weights=np.array(weights, np.float32), **given)
    plain = named(MISS[policy], np.reshape(threshold, -1))
    plan = replace(plan, miss=substitute(policy, **params) if MISSES[policy] == MISSES["buddy"] else plain)
    if rerank:
        plan = replace(plan, rerank=Choice(rerank[0], RERANK[rerank[0]].kind, np.array(rerank[1:], np.float64)))
    return listed(plan, peers, q) if peers else plan


def answers(result: dict[str, Any]) -> list[tuple[int, ...]]:
    """(wanted, answer, stand-in, gate) of every answer."""
    return lines(result, "answers", "wanted", "answer", "stand_in", "gate")


def executed(result: dict[str, Any]) -> list[tuple[int, ...]]:
    return lines(result, "executions", "expert", "tokens", "stand_in_tokens")


def gates(run: Run, *arguments: Any, **given: Any) -> list[int]:
    """The gate codes of the answers of one run."""
    return list(run(lossy(*arguments, **given))["answers"]["gate"])


# One token wants 2 and 3, neither resident; 0 and 1 can stand in for either.
PAIR = ([[[2, 3]]], 4, [2], [0, 1])
EITHER = {2: [0, 1], 3: [0, 1]}


def test_a_substitution(run: Run) -> None:
    # Routed at 10; 0 runs in the place of 2 until 15; nothing crosses the link. 0 becomes the more recent.
    result = run(lossy([[[2]]], 3, [2], [0, 1], peers={2: [0, 1]}))
    assert answers(result) == [(2, SUBSTITUTE, 0, 0)]
    assert lines(result, "executions", "expert", "tokens", "stand_in_tokens", "end_ns") == [(0, 1, 1, 15)]
    assert result["transfers"]["event"] == []
    assert lines(result, "visits", "wanted", "hits", "misses", "end_ns") == [(1, 0, 1, 15)]
    totals = result["totals"]
    assert (totals["substituted"], totals["fetched"], totals["residents"]) == (1, 0, [1, 0])


def test_without_touch_a_stand_in_grows_no_younger(run: Run) -> None:
    # As above; then 3, which has no list, takes the slot of 0, still the older.
    plan = lossy([[[2]], [[3]]], 4, [2], [0, 1], peers={2: [0, 1]}, touch=0)
    result = run(plan)
    assert lines(result, "transfers", "expert", "victim") == [(3, 0)]
    assert result["totals"]["residents"] == [1, 3]


def test_without_touch_what_was_wanted_too_is_touched(run: Run) -> None:
    # A batch of two: token 0 wants 2 (0 stands in), token 1 wants 0 itself: one execution of two tokens.
    result = run(lossy([[[2]], [[0]]], 3, [2], [0, 1], steps=[[0, 1]], peers={2: [0]}, touch=0))
    assert executed(result) == [(0, 2, 1)]
    assert result["totals"]["residents"] == [1, 0]


@pytest.mark.parametrize(
    ("weights", "tau", "temperature", "code"),
    [
        # .5/.5: TAE = (2 x .5 ln 2) / ln 2 = 1 exactly; shut where TAE <= tau.
        ((0.5, 0.5), 0.99, 1, 0),
        ((0.5, 0.5), 1.0, 1, TAE),
        # .9/.1: (.9 x .10536 + .1 x 2.30259) / .69315 = .32508 / .69315 = .4690
        ((0.9, 0.1), 0.468, 1, 0),
        ((0.9, 0.1), 0.470, 1, TAE),
        ((0.45, 0.05), 0.468, 1, 0),  # the scale of the weights does not matter
        ((0.45, 0.05), 0.470, 1, TAE),
        # T = .5: .81/.01 -> .98780/.01220: (.98780 x .01227 + .01220 x 4.40672) / .69315 = .0950
        ((0.9, 0.1), 0.094, 0.5, 0),
        ((0.9, 0.1), 0.096, 0.5, TAE),
        ((0.9, 0.0), 0.0, 1, TAE),  # one weight alone: 0
        ((0.0, 0.0), 0.0, 1, TAE),  # and no weight at all: 0
        ((0.0, 0.0), -1.0, 1, 0),  # a negative tau: the gate is off
    ],
)
def test_the_tae_gate(run: Run, weights: tuple[float, float], tau: float, temperature: float, code: int) -> None:
    given: dict[str, Any] = {"weights": [[weights]], "tau": tau, "temperature": temperature, "peers": EITHER}
    assert gates(run, *PAIR, **given) == [code, code]


def test_tae_by_hand() -> None:
    assert adaptive_entropy([0.5, 0.5], 2, 1) == 1.0
    assert adaptive_entropy([0.9, 0.1], 2, 1) == pytest.approx(0.4690, abs=5e-5)
    assert adaptive_entropy([0.9, 0.1], 2, 0.5) == pytest.approx(0.0950, abs=5e-5)
    assert adaptive_entropy([0.5, 0.5], 3, 1) == pytest.approx(log(2) / log(3))
    assert adaptive_entropy([1.0], 1, 1) == 0


def test_tae_ignores_empty_slots_but_counts_them_in_k(run: Run) -> None:
    # .5/.5 in three slots: ln 2 / ln 3 = .6309, whatever the empty slot's weight says.
    given: dict[str, Any] = {"weights": [[[0.5, 0.5, 0.9]]], "peers": EITHER}
    assert gates(run, [[[2, 3, -1]]], *PAIR[1:], tau=0.630, **given) == [0, 0]
    assert gates(run, [[[2, 3, -1]]], *PAIR[1:], tau=0.632, **given) == [TAE, TAE]


def test_a_layer_without_the_gate(run: Run) -> None:
    plan = lossy([[[2], [2]]], 3, [2, 2], [0, 1, 3, 4], peers={2: [0]})
    result = run(replace(plan, tau=np.array([-1.0, 0.5])))  # top-1: TAE is 0
    assert result["answers"]["gate"] == [0, TAE]
    assert result["answers"]["answer"] == [SUBSTITUTE, FETCH]


@pytest.mark.parametrize(
    ("weights", "gamma", "code"),
    [
        ((0.25, 0.75), 0.5, MARGIN),  # (.75 - .25) / 1 = .5
        ((0.25, 0.75), 0.501, 0),
        ((0.5, 1.5), 0.5, MARGIN),  # (1.5 - .5) / 2
        ((0.0, 0.0), 0.0, MARGIN),  # a sum of 0 counts as a margin of 0
        ((0.0, 0.0), 0.1, 0),
        ((1.0, 0.0), 1.0, MARGIN),
        ((1.0, 0.0), 1.01, 0),  # beyond 1 it is off
    ],
)
def test_the_margin_gate(run: Run, weights: tuple[float, float], gamma: float, code: int) -> None:
    assert gates(run, *PAIR, weights=[[weights]], gamma=gamma, peers=EITHER) == [code, code]


def test_the_margin_of_a_token_with_one_expert_is_whole(run: Run) -> None:
    assert gates(run, [[[2, -1]]], *PAIR[1:], weights=[[[0.2, 0.2]]], gamma=1, peers=EITHER) == [MARGIN]


def test_the_first_shut_gate_is_noted(run: Run) -> None:
    shut: dict[str, Any] = {"weights": [[[1.0, 0.0]]], "peers": EITHER}
    assert gates(run, *PAIR, tau=0, gamma=0.5, beta=0, rho=0, **shut) == [TAE, TAE]
    assert gates(run, *PAIR, gamma=0.5, beta=0, rho=0, **shut) == [MARGIN, MARGIN]
    assert gates(run, *PAIR, beta=0, rho=0, **shut) == [DISTRIBUTION, DISTRIBUTION]
    assert gates(run, *PAIR, rho=0, **shut) == [RHO, RHO]


def test_the_distribution_gate(run: Run) -> None:
    # Two tokens want {0, 2} and {0, 3}: three distinct, two of them away: 2 >= beta x 3?
    batch: Any = ([[[0, 2]], [[0, 3]]], 4, [2], [0, 1])
    given: dict[str, Any] = {"steps": [[0, 1]], "peers": {2: [1], 3: [1]}}
    assert gates(run, *batch, beta=0.66, **given) == [DISTRIBUTION, DISTRIBUTION]
    assert gates(run, *batch, beta=0.67, **given) == [0, 0]
    assert gates(run, *batch, budget=1, **given) == [DISTRIBUTION, DISTRIBUTION]
    assert gates(run, *batch, budget=2, **given) == [0, 0]


@pytest.mark.parametrize(("beta", "code"), [(1.0, DISTRIBUTION), (1.01, 0)])
def test_a_late_expert_is_away(run: Run, beta: float, code: int) -> None:
    # The prefetch of 2, committed at 10, takes the slot of 1. At 25 token 1 wants 2 (late) and 3 (a miss): 2
    # of 2. The late one is not asked about and is waited for.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    plan = lossy([[[0, -1]], [[2, 3]]], 4, [2], [0, 1], prefetch=prefetch, peers=EITHER, beta=beta)
    result = run(plan)
    assert lines(result, "answers", "wanted", "gate") == [(3, code)]
    assert result["totals"]["slots_late"] == 1


def test_a_late_expert_that_counts_as_missing_is_substituted(run: Run) -> None:
    # As above, and 0 runs at once for 2 (25 to 30), which lands at 110 all the same, after the end.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    plan = lossy([[[0]], [[2]]], 4, [2], [0, 1], prefetch=prefetch, peers={2: [0]}, late_counts_as_missing=True)
    result = run(plan)
    assert answers(result) == [(2, SUBSTITUTE, 0, 0)]
    assert lines(result, "visits", "late", "stall_late_ns", "end_ns") == [(0, 0, 15), (1, 0, 30)]
    assert lines(result, "transfers", "expert", "cause", "outcome") == [(2, PREFETCH, UNFINISHED)]
    assert (result["totals"]["substituted"], result["totals"]["slots_late"]) == (1, 0)


@pytest.mark.parametrize(
    ("lowest_first", "weights", "expected"),
    [
        (0, (0.2, 0.5, 0.3), [RHO, 0, RHO]),
        (1, (0.2, 0.5, 0.3), [0, RHO, RHO]),
        (0, (0.3, 0.4, 0.4), [RHO, 0, RHO]),  # a tie: the lower slot
        (1, (0.4, 0.3, 0.3), [RHO, 0, RHO]),
    ],
)
def test_rho_goes_by_weight(run: Run, lowest_first: int, weights: Any, expected: list[int]) -> None:
    wants: Any = ([[[2, 3, 4]]], 5, [3], [0, 1])
    peers = {expert: [0, 1] for expert in (2, 3, 4)}
    given: dict[str, Any] = {"weights": [[weights]], "peers": peers, "lowest_first": lowest_first}
    assert gates(run, *wants, rho=1, **given) == expected
    assert gates(run, *wants, rho=0, **given) == [RHO, RHO, RHO]


def test_one_stand_in_serves_one_slot_of_a_token(run: Run) -> None:
    # 3 weighs more and is looked at first: it takes 0, 2 must take 1. Answers and work are in slot order.
    result = run(lossy(*PAIR, weights=[[[0.4, 0.6]]], peers=EITHER))
    assert answers(result) == [(2, SUBSTITUTE, 1, 0), (3, SUBSTITUTE, 0, 0)]
    assert executed(result) == [(1, 1, 1), (0, 1, 1)]
    result = run(lossy(*PAIR, weights=[[[0.4, 0.6]]], peers={2: [0], 3: [0]}))
    assert answers(result) == [(2, FETCH, -1, NOBODY), (3, SUBSTITUTE, 0, 0)]


def test_one_stand_in_serves_two_tokens(run: Run) -> None:
    result = run(lossy([[[2]], [[3]]], 4, [2], [0, 1], steps=[[0, 1]], peers=EITHER))
    assert answers(result) == [(2, SUBSTITUTE, 0, 0), (3, SUBSTITUTE, 0, 0)]
    assert executed(result) == [(0, 2, 2)]


def test_what_the_token_wants_anyway_cannot_stand_in(run: Run) -> None:
    result = run(lossy([[[0, 2]]], 3, [2], [0, 1], peers={2: [0, 1]}))
    assert answers(result) == [(2, SUBSTITUTE, 1, 0)]


def test_search_counts_entries_resident_or_not(run: Run) -> None:
    wants: Any = ([[[2]]], 4, [2], [0, 1])
    assert gates(run, *wants, peers={2: [3, 0]}, search=1) == [NOBODY]
    assert gates(run, *wants, peers={2: [3, 0]}, search=2) == [0]
    assert gates(run, *wants, peers={2: [3, 0]}, search=0) == [NOBODY]


@pytest.mark.parametrize(
    ("fallback", "nobody", "stopped"),
    [(0, FETCH, FETCH), (1, DROP, FETCH), (2, CPU, CPU)],
)
def test_the_fallbacks(run: Run, fallback: int, nobody: int, stopped: int) -> None:
    # 2 finds nobody; with rho = 0 it is not even looked for. Only `drop` makes a difference between the two.
    wants: Any = ([[[2]]], 4, [2], [0, 1])
    assert answers(run(lossy(*wants, fallback=fallback))) == [(2, nobody, -1, NOBODY)]
    assert answers(run(lossy(*wants, fallback=fallback, rho=0))) == [(2, stopped, -1, RHO)]


# Selectors

LIST, RANDOM, NEXT_RANKED, LEAVE_OUT, NONE = range(5)


def test_random_draws_among_residents_not_in_use(run: Run) -> None:
    # Wants 0, 4, 5; resident 0..3. Slot 1 is the heavier of the missing: draw 0 among [1, 2, 3], visit 1;
    # slot 2: draw 1 among the two that are left.
    seed = 7
    first = [1, 2, 3][hash64(seed, 1, 2**32) % 3]
    left = [expert for expert in (1, 2, 3) if expert != first]
    second = left[hash64(seed, 1, 2**32 + 1) % 2]
    given: dict[str, Any] = {"policy": "random", "selector": RANDOM, "seed": seed}
    result = run(lossy([[[0, 4, 5]]], 6, [4], [0, 1, 2, 3], weights=[[[0.5, 0.3, 0.2]]], **given))
    assert answers(result) == [(4, SUBSTITUTE, first, 0), (5, SUBSTITUTE, second, 0)]


def test_a_draw_without_candidates_does_not_count(run: Run) -> None:
    # Token 0 wants 3 and all residents: nobody left, no draw. Token 1 of the same visit makes draw 0.
    given: dict[str, Any] = {"policy": "random", "selector": RANDOM, "steps": [[0, 1]], "seed": 3}
    result = run(lossy([[[0, 1, 2, 3]], [[4, -1, -1, -1]]], 5, [3], [0, 1, 2], **given))
    assert answers(result) == [(3, FETCH, -1, NOBODY), (4, SUBSTITUTE, hash64(3, 1, 2**32) % 3, 0)]


def test_draws_are_numbered_within_the_visit(run: Run) -> None:
    # Draw 0 of visit 1, then draw 0 of visit 2.
    given: dict[str, Any] = {"policy": "random", "selector": RANDOM, "seed": 11}
    result = run(lossy([[[3]], [[4]]], 5, [3], [0, 1, 2], **given))
    assert result["answers"]["stand_in"] == [hash64(11, visit, 2**32) % 3 for visit in (1, 2)]


def test_next_ranked_is_the_resident_of_highest_logit(run: Run) -> None:
    given: dict[str, Any] = {"policy": "next-ranked", "selector": NEXT_RANKED}
    result = run(lossy([[[4]]], 5, [3], [0, 1, 2], logits=[[[1, 2, 2, 9, 8]]], **given))
    assert answers(result) == [(4, SUBSTITUTE, 1, 0)]  # 3 is not here; 1 and 2 tie


@pytest.mark.parametrize(
    ("policy", "selector", "expected"),
    [
        ("matched-random", RANDOM, (SUBSTITUTE, hash64(0, 1, 2**32) % 3)),
        ("matched-next-ranked", NEXT_RANKED, (SUBSTITUTE, 2)),
        ("matched-drop", LEAVE_OUT, (DROP, -1)),
    ],
)
def test_matched_selects_only_where_the_list_would(
    run: Run, policy: str, selector: int, expected: tuple[int, int]
) -> None:
    # 4's list holds a resident, 5's does not: 4 is answered by the selector, 5 fetched.
    given: dict[str, Any] = {
        "policy": policy,
        "selector": selector,
        "matched": 1,
        "logits": [[[0, 1, 2, 3, 4, 5]]] * 2,
    }
    peers = {4: [3, 0], 5: [3, 4]}
    result = run(lossy([[[5]], [[4]]], 6, [3], [0, 1, 2], steps=[[0, 1]], peers=peers, **given))
    assert answers(result) == [(5, FETCH, -1, NOBODY), (4, *expected, 0)]


def test_dropping_without_matching_needs_nobody_and_counts_for_rho(run: Run) -> None:
    result = run(lossy(*PAIR, policy="mixed", selector=LEAVE_OUT, rho=1, weights=[[[0.6, 0.4]]]))
    assert answers(result) == [(2, DROP, -1, 0), (3, FETCH, -1, RHO)]


def test_with_selector_nobody_all_is_left_to_the_fallback(run: Run) -> None:
    result = run(lossy(*PAIR, policy="mixed", selector=NONE, fallback=1, peers=EITHER))
    assert answers(result) == [(2, DROP, -1, NOBODY), (3, DROP, -1, NOBODY)]


def test_eta_prefers_what_the_router_scores(run: Run) -> None:
    # softmax(0, 2, 0) = 1 / 9.389, 7.389 / 9.389, ... = .1065, .7870. eta 1: 0 gets .5 x 1.1065 = .553, 1
    # gets .4 x 1.7870 = .715. eta .1: .5053 and .4315, the list's order.
    given: dict[str, Any] = {"peers": {2: [0, 1]}, "q": {2: [0.5, 0.4]}, "logits": [[[0, 2, 0]]]}
    assert answers(run(lossy([[[2]]], 3, [2], [0, 1], eta=1, **given)))[0][2] == 1
    assert answers(run(lossy([[[2]]], 3, [2], [0, 1], eta=0.1, **given)))[0][2] == 0


def test_kappa_prefers_the_own_partition(run: Run) -> None:
    # Two partitions of four: {0, 1} and {2, 3}. For 3: 0 is one hop off, .5 x (1 - .3) = .35; 2 keeps .4.
    # kappa .1: .5 x .9 = .45 against .4. One partition: no hops.
    given: dict[str, Any] = {"peers": {3: [0, 2]}, "q": {3: [0.5, 0.4]}}
    assert answers(run(lossy([[[3]]], 4, [2], [0, 2], kappa=0.3, partitions=2, **given)))[0][2] == 2
    assert answers(run(lossy([[[3]]], 4, [2], [0, 2], kappa=0.1, partitions=2, **given)))[0][2] == 0
    assert answers(run(lossy([[[3]]], 4, [2], [0, 2], kappa=0.3, partitions=1, **given)))[0][2] == 0


def test_equal_psi_keeps_the_order_of_the_list_and_search_follows_psi(run: Run) -> None:
    # kappa .5, two partitions: 1 gets .5 x .5 = .25, 0 the same, 2 keeps .375: the order is 2, 1, 0.
    given: dict[str, Any] = {
        "peers": {3: [1, 0, 2]},
        "q": {3: [0.5, 0.5, 0.375]},
        "kappa": 0.5,
        "partitions": 2,
    }
    assert answers(run(lossy([[[3]]], 4, [2], [0, 1], **given)))[0][2] == 1
    assert answers(run(lossy([[[3]]], 4, [2], [0, 1], search=1, **given))) == [(3, FETCH, -1, NOBODY)]


# The cheaper of CPU and transfer

CHEAPER: dict[str, Any] = {"policy": "fiddler", "selector": NONE, "fallback": 3}
FIDDLER = {"expert": [0, 5, 7], "cpu_expert": [[0, 60, 200], [0, 110, 210]]}


def test_fiddler_compares(run: Run) -> None:
    # One token: 60 on the CPU, 100 + 5 over the link: CPU. Two tokens: 200 against 107: fetch, for both.
    result = run(lossy([[[1]]], 2, [1], [0], costs=FIDDLER, **CHEAPER))
    assert answers(result) == [(1, CPU, -1, NOBODY)]
    assert lines(result, "executions", "expert", "begin_ns", "end_ns", "cpu") == [(1, 10, 70, True)]
    result = run(lossy([[[1]], [[1]]], 2, [1], [0], steps=[[0, 1]], costs=FIDDLER, **CHEAPER))
    assert answers(result) == [(1, FETCH, -1, NOBODY)] * 2
    even = FIDDLER | {"cpu_expert": [[0, 105, 0]] * 2}
    assert answers(run(lossy([[[1]]], 2, [1], [0], costs=even, **CHEAPER))) == [(1, FETCH, -1, NOBODY)]


def test_fiddler_while_the_link_is_busy(run: Run) -> None:
    # The prefetch of 1 is on the link from 10 to 110; at 25 token 1 wants 2: 110 on the CPU, 105 by fetch.
    prefetch = predicted((2, 1), {(1, 1, 0): [1]})
    result = run(lossy([[[0]], [[2]]], 3, [2], [0], prefetch=prefetch, costs=FIDDLER, **CHEAPER))
    assert answers(result) == [(2, FETCH, -1, NOBODY)]


def test_fiddler_with_backlog(run: Run) -> None:
    # 1: 60 < 105, CPU. 2: 60 + 60 against 105, fetch. 3: 60 + 60 against 105 + 100, CPU. Without: all CPU.
    given = CHEAPER | {"weights": [[[0.5, 0.3, 0.2]]], "costs": FIDDLER}
    result = run(lossy([[[1, 2, 3]]], 4, [1], [0], backlog=1, **given))
    assert result["answers"]["answer"] == [CPU, FETCH, CPU]
    assert run(lossy([[[1, 2, 3]]], 4, [1], [0], **given))["answers"]["answer"] == [CPU, CPU, CPU]


def test_the_backlog_grows_in_the_order_of_weight_and_holds_for_the_visit(run: Run) -> None:
    # Token 0 looks at 2 (.7) before 1 (.3): 2 to the CPU, 1 by fetch (120 against 105). Token 1 wants 3: 60 +
    # 60 against 105 + 100, CPU.
    given = CHEAPER | {"weights": [[[0.3, 0.7]], [[1.0, 0.0]]], "steps": [[0, 1]], "costs": FIDDLER}
    result = run(lossy([[[1, 2]], [[3, -1]]], 4, [1], [0], backlog=1, **given))
    assert lines(result, "answers", "wanted", "answer") == [(1, FETCH), (2, CPU), (3, CPU)]


def test_one_visit_with_a_substitution_a_cpu_answer_and_a_fetch(run: Run) -> None:
    # Routed at 10. 0 stands in for 2 and runs to 15. 3 finds nobody: 60 < 105, on the CPU from 10 to 70. 4:
    # 60 + 60 against 105: fetched from 10, for 1 as 0 is held; lands at 110 (stall 95), runs to 115.
    given: dict[str, Any] = {"policy": "mixed", "fallback": 3, "backlog": 1, "costs": FIDDLER}
    plan = lossy([[[2, 3, 4]]], 5, [2], [0, 1], weights=[[[0.5, 0.25, 0.25]]], peers={2: [0], 3: [0]}, **given)
    result = run(plan)
    assert answers(result) == [(2, SUBSTITUTE, 0, 0), (3, CPU, -1, NOBODY), (4, FETCH, -1, NOBODY)]
    columns = ("expert", "stand_in_tokens", "begin_ns", "end_ns", "cpu")
    # The CPU's work is recorded as the layer is left.
    assert lines(result, "executions", *columns) == [
        (0, 1, 10, 15, False),
        (4, 0, 110, 115, False),
        (3, 0, 10, 70, True),
    ]
    assert lines(result, "transfers", "expert", "victim", "landed_ns") == [(4, 1, 110)]
    assert lines(result, "visits", "end_ns", "stall_demand_ns", "cpu_wait_ns") == [(115, 95, 0)]
    totals = result["totals"]
    assert [totals[name] for name in ("substituted", "cpu", "fetched", "dropped")] == [1, 1, 1, 0]
    assert (totals["weight_substituted"], totals["gates"]) == (0.5, [1, 0, 0, 0, 0, 0, 2])


def test_one_expert_with_two_answers(run: Run) -> None:
    # 2 is wanted by both tokens; token 0 has 0 for it, token 1 wants 0 itself and must fetch: 0 runs two
    # tokens at 10, 2 lands at 110 for one.
    plan = lossy([[[2, -1]], [[2, 0]]], 3, [2], [0, 1], steps=[[0, 1]], peers={2: [0]})
    result = run(plan)
    assert answers(result) == [(2, SUBSTITUTE, 0, 0), (2, FETCH, -1, NOBODY)]
    assert executed(result) == [(0, 2, 1), (2, 1, 0)]
    assert lines(result, "transfers", "expert", "victim") == [(2, 1)]


# Prefetches and background transfers


@pytest.mark.parametrize("fetched_too", [False, True])
def test_a_substituted_expert_loses_its_queued_prefetch_unless_another_token_fetches_it(
    run: Run, fetched_too: bool
) -> None:
    # Token 0: the prefetches of 4 (on the link from 10) and 2 (queued). The next step wants 2: 0 stands in.
    # A second token, which wants 0 itself, fetches it.
    prefetch = predicted((3, 1), {(1, 1, 0): [4, 2]})
    wants = [[[0, -1]], [[2, -1]], [[2, 0] if fetched_too else [0, -1]]]
    plan = lossy(wants, 5, [2], [0, 1], steps=[[0], [1, 2]], prefetch=prefetch, peers={2: [0]})
    result = run(plan)
    fate = (2, DEMAND, True, LANDED) if fetched_too else (2, PREFETCH, False, WITHDRAWN)
    assert lines(result, "transfers", "expert", "cause", "promoted", "outcome")[1] == fate


def test_a_background_transfer(run: Run) -> None:
    # 0 stands in for 2 at 10; 2 follows in the background in the slot of 1 and lands at 110. Token 1 is
    # routed at 25, finds it late, waits: 110 to 115. Token 2: a hit at 125.
    plan = lossy([[[2]], [[2]], [[2]]], 3, [2], [0, 1], peers={2: [0]}, background=1)
    result = run(plan)
    columns = (
        "visit",
        "expert",
        "cause",
        "promoted",
        "queued_ns",
        "committed_ns",
        "landed_ns",
        "victim",
        "outcome",
    )
    assert lines(result, "transfers", *columns) == [(0, 2, BACKGROUND, False, 10, 10, 110, 1, LANDED)]
    assert lines(result, "visits", "hits", "late", "misses", "end_ns") == [
        (0, 0, 1, 15),
        (0, 1, 0, 115),
        (1, 0, 0, 130),
    ]
    # 0 visit, 1 answer, 2 queued, 3 committed, 4 execution, 5 step, 6 visit, 7 landed.
    assert lines(result, "transfers", "event_queued", "event_committed", "event") == [(2, 3, 7)]
    totals = result["totals"]
    assert [totals[f"prefetched_{fate}"] for fate in ("used", "late", "wasted")] == [0, 0, 0]


def test_a_background_transfer_finds_no_slot(run: Run) -> None:
    # The only slot is held by the stand-in.
    result = run(lossy([[[1]]], 2, [1], [0], peers={1: [0]}, background=1))
    assert lines(result, "transfers", "cause", "outcome", "victim") == [(BACKGROUND, REJECTED, -1)]


def test_background_goes_behind_prefetches_which_never_see_it_twice(run: Run) -> None:
    # At 10 0 stands in for 2, which joins in the background; of the list [2, 3] only 3 joins, and goes first.
    # At 25 0 stands in for 2 again, which is queued already. At 40 the third token hits 0; it ends at 45.
    prefetch = predicted((3, 1), {(1, 1, 0): [2, 3]})
    given: dict[str, Any] = {"peers": {2: [0]}, "background": 1, "prefetch": prefetch}
    result = run(lossy([[[2]], [[2]], [[0]]], 5, [3], [0, 1, 4], **given))
    columns = ("expert", "cause", "queued_ns", "committed_ns", "outcome")
    assert lines(result, "transfers", *columns) == [
        (2, BACKGROUND, 10, -1, UNFINISHED),
        (3, PREFETCH, 10, 10, UNFINISHED),
    ]
    assert result["answers"]["answer"] == [SUBSTITUTE, SUBSTITUTE]


def test_a_background_transfer_is_not_withdrawn_and_can_be_promoted(run: Run) -> None:
    # At 10 0 and 1 stand in for 2 and 3, which join in the background: 2 is committed for 4 (10 to 110), 3
    # waits. Token 1 (routed 30) does not want 3: it stays queued. Token 2 (routed 45; margin (1 - 0) / 1 >=
    # .9) has to fetch 3: promoted. Committed at 110, for 1 (touched at 20; 0 at 35; 2 landed at 110); runs
    # 210 to 215.
    wants = [[[2, 3]], [[0, -1]], [[3, -1]]]
    weights = [[[0.5, 0.5]], [[1.0, 0.0]], [[1.0, 0.0]]]
    given: dict[str, Any] = {"peers": {2: [0], 3: [1]}, "background": 1, "gamma": 0.9}
    result = run(lossy(wants, 5, [3], [4, 0, 1], weights=weights, **given))
    columns = ("expert", "cause", "promoted", "visit", "queued_ns", "committed_ns", "landed_ns", "victim")
    assert lines(result, "transfers", *columns) == [
        (2, BACKGROUND, False, 0, 10, 10, 110, 4),
        (3, DEMAND, True, 0, 10, 110, 210, 1),
    ]
    assert answers(result)[-1] == (3, FETCH, -1, MARGIN)
    assert result["totals"]["time_ns"] == 215


# Dropping, prefill, quality


def test_drop_by_weight(run: Run) -> None:
    plan = lossy([[[1, 2]]], 3, [1], [0], policy="drop-by-weight", threshold=0.25, weights=[[[0.25, 0.125]]])
    result = run(plan)
    assert answers(result) == [(1, FETCH, -1, 0), (2, DROP, -1, 0)]
    totals = result["totals"]
    assert (totals["weight_wanted"], totals["weight_dropped"], totals["weight_substituted"]) == (
        0.375,
        0.125,
        0,
    )


# What was predicted runs: p = what was predicted for each token at the one layer


def speculating(experts: Sequence[Any], residents: Sequence[int], p: Sequence[Sequence[int]], **given: Any) -> Plan:
    """Five experts and as many slots as residents; `p` are the predicted ids of each token."""
    plan = lossy(experts, 5, [len(residents)], residents, policy="speculate", **given)
    return replace(plan, predicted=np.array(p, np.int16)[:, None])


def test_what_was_predicted_runs_in_place_of_what_is_missing(run: Run) -> None:
    # The token wants 3, 0 and 4; 1, 0 and 2 were predicted and are there: 0 is a hit, so 1 runs for 3 and 2 for 4, in
    # the order of the list. Routed at 10, one expert after another: 0 to 15, 1 to 20, 2 to 25.
    result = run(speculating([[[3, 0, 4]]], [0, 1, 2], [[1, 0, 2]]))
    assert answers(result) == [(3, SUBSTITUTE, 1, 0), (4, SUBSTITUTE, 2, 0)]
    assert sorted(executed(result)) == [(0, 1, 0), (1, 1, 1), (2, 1, 1)]
    assert (result["transfers"]["event"], result["totals"]["time_ns"]) == ([], 25)


def test_a_hit_that_was_not_predicted_runs_all_the_same(run: Run) -> None:
    # 2 is resident and no one foretold it: it runs; 3 gives way to 0, the first of the list, and 1 has no part.
    result = run(speculating([[[2, 3]]], [0, 1, 2], [[0, 1]]))
    assert answers(result) == [(3, SUBSTITUTE, 0, 0)] and sorted(executed(result)) == [(0, 1, 1), (2, 1, 0)]


@pytest.mark.parametrize(
    ("predicted_ids", "expected"),
    [
        ([0, 4], (3, FETCH, -1, NOBODY)),  # 4 is not there: the whole set must be
        ([-1, -1], (3, FETCH, -1, NOBODY)),  # nothing was predicted
        ([-1, 1], (3, SUBSTITUTE, 1, 0)),  # a shorter list is a set, too
    ],
)
def test_the_whole_predicted_set_must_be_there(run: Run, predicted_ids: list[int], expected: tuple[int, ...]) -> None:
    assert answers(run(speculating([[[3, 2]]], [0, 1, 2], [predicted_ids]))) == [expected]


def test_a_short_list_serves_as_many_slots_as_it_can(run: Run) -> None:
    # One was predicted, two are missing: the first slot gets it, the second waits 100 for its own.
    result = run(speculating([[[3, 4]]], [0, 1], [[1, -1]]))
    assert answers(result) == [(3, SUBSTITUTE, 1, 0), (4, FETCH, -1, NOBODY)]


def test_each_token_has_its_own_prediction(run: Run) -> None:
    # Both want 3. For the first 0 and 1 were predicted, for the second 1 and 4: it waits, and 3 runs for it alone.
    result = run(speculating([[[3, 0]], [[3, 0]]], [0, 1, 2], [[0, 1], [1, 4]], steps=[[0, 1]]))
    assert answers(result) == [(3, SUBSTITUTE, 1, 0), (3, FETCH, -1, NOBODY)]


@pytest.mark.parametrize(
    ("given", "lossy_answer"),
    [
        ({"policy": "buddy", "peers": {1: [0]}}, (1, SUBSTITUTE, 0, 0)),
        ({"policy": "buddy", "fallback": 1}, (1, DROP, -1, NOBODY)),
        ({"policy": "matched-drop", "selector": 3}, (1, DROP, -1, 0)),
        ({"policy": "drop-by-weight", "threshold": 2}, (1, DROP, -1, 0)),
        ({"policy": "drop"}, (1, DROP, -1, 0)),
    ],
)
def test_prefill_is_spared_unless_the_plan_says_otherwise(
    run: Run, given: dict[str, Any], lossy_answer: tuple[int, ...]
) -> None:
    spared = run(lossy([[[1]]], 2, [1], [0], prefill=True, **given))
    assert answers(spared) == [(1, FETCH, -1, PREFILL)]
    assert executed(spared) == [(1, 1, 0)]
    assert (spared["totals"]["weight_wanted"], spared["totals"]["weight_dropped"]) == (1, 0)
    assert answers(run(lossy([[[1]]], 2, [1], [0], prefill=True, lossy_prefill=True, **given))) == [lossy_answer]


def test_in_prefill_a_lossless_answer_keeps_its_code(run: Run) -> None:
    result = run(lossy([[[1]]], 2, [1], [0], prefill=True, fallback=2))
    assert answers(result) == [(1, CPU, -1, NOBODY)]
    result = run(lossy([[[1]]], 2, [1], [0], prefill=True, peers={1: [0]}, rho=0, background=1))
    assert answers(result) == [(1, FETCH, -1, RHO)]


def test_in_prefill_nothing_follows_in_the_background(run: Run) -> None:
    given: dict[str, Any] = {"policy": "random", "selector": RANDOM, "background": 1, "prefill": True}
    result = run(lossy([[[2]], [[3]]], 4, [2], [0, 1], steps=[[0, 1]], **given))
    assert answers(result) == [(2, FETCH, -1, PREFILL), (3, FETCH, -1, PREFILL)]
    assert result["transfers"]["cause"] == [DEMAND, DEMAND]


def test_quality_by_layer(run: Run) -> None:
    # Layer 0: 2 (.5) by 0, 3 (.25) dropped. Layer 1: 0 (.75) hit, 2 (.125) by 1 as 0 is the token's own.
    peers = {2: [0, 1], 3: [2]}
    plan = lossy(
        [[[2, 3], [0, 2]]],
        4,
        [2, 2],
        [0, 1, 4, 5],
        weights=[[[0.5, 0.25], [0.75, 0.125]]],
        peers=peers,
        fallback=1,
    )
    totals = run(plan)["totals"]
    assert totals["by_layer"] == {
        "weight_wanted": [0.75, 0.875],
        "weight_substituted": [0.5, 0.125],
        "weight_dropped": [0.25, 0.0],
    }
    assert [totals[name] for name in totals["by_layer"]] == [1.625, 0.625, 0.25]
    assert totals["gates"] == [2, 0, 0, 0, 0, 0, 1]


def test_fetches_queue_by_an_experts_first_answer_of_any_kind(run: Run) -> None:
    # A batch of two. Token 0 leaves 2 out (weight .05 < .1) and waits for 3; token 1 waits for 2 (weight 1).
    # 2 was answered first, though not with a fetch, so it goes first: on the link 10..110 in the slot of 0, runs until
    # 115 for token 1 alone; 3 follows 110..210 in the slot of 1 and runs until 215. By first *fetch* 3 would be first.
    weights = [[[0.05, 0.95]], [[1.0, 0.0]]]
    plan = lossy([[[2, 3]], [[2, -1]]], 4, [2], [0, 1], steps=[[0, 1]], policy="drop-by-weight", threshold=0.1,
                 weights=weights)  # fmt: skip
    result = run(plan)
    assert answers(result) == [(2, DROP, -1, 0), (3, FETCH, -1, 0), (2, FETCH, -1, 0)]
    assert lines(result, "transfers", "expert", "victim", "started_ns", "landed_ns") == [
        (2, 0, 10, 110),
        (3, 1, 110, 210),
    ]
    assert lines(result, "executions", "expert", "tokens", "end_ns") == [(2, 1, 115), (3, 1, 215)]
