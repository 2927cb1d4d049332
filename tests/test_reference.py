"""Hand-worked cases, for the reference and for every machine that claims to be the same.

The arithmetic is in the comments. Unless a case says otherwise: dense part 10, one expert 5 whatever its
tokens, a transfer 100, all else 0; one layer, one token a step, lru and fetch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from sim.core.plan import ANSWERS, GROUPS, ORDERS, Costs, Plan, Prefetch
from sim.policies.registry import EVICTION, MISS
from tests import groups
from tests.groups import lines, run_groups
from tests.laws import check_all
from tests.plans import named
from tests.reference import reference_steps, simulate
from tests.reference_miss import hash64, mix

Run = Callable[[Plan], dict[str, Any]]
MACHINES: dict[str, Run] = {"reference": simulate}
MACHINES |= {name: partial(run_groups, name) for name in groups.MACHINES}
LANDED, WITHDRAWN, REJECTED, UNFINISHED = range(4)
DEMAND, PREFETCH = range(2)


@pytest.fixture(params=sorted(MACHINES))
def run(request: pytest.FixtureRequest) -> Run:
    return MACHINES[request.param]


def costs_of(layers: int, steps: int, rows: int, **given: Any) -> Costs:
    per_token = given.pop("expert", [0] + [5] * rows)
    on_cpu = given.pop("cpu_expert", [[0] * (rows + 1)] * 2)
    return Costs(
        dense_ns=np.array([[given.pop("dense", 10)] * layers + [given.pop("dense_after", 0)]], np.int64),
        head_ns=np.array([given.pop("head", 0)], np.int64),
        cost_class=np.zeros(steps, np.int32),
        decide_ns=given.pop("decide", 0),
        group_ns=given.pop("group_ns", 0),
        expert_ns=np.array(per_token, np.int64),
        cpu_expert_ns=np.array(on_cpu, np.int64),
        transfer_ns=np.array(given.pop("transfer", [100, 100]), np.int64),
        commit_gap_ns=given.pop("gap", 0),
        commit_depth=given.pop("depth", 1),
        **given,
    )


def make(
    experts: Sequence[Any],
    n_experts: int,
    slots: Sequence[int],
    residents: Sequence[int],
    *,
    steps: Sequence[Sequence[int]] | None = None,
    eviction: str = "lru",
    params: Sequence[float] = (),
    miss: str = "fetch",
    group: str = "one",
    prefill: bool = False,
    costs: dict[str, Any] | None = None,
    **rest: Any,
) -> Plan:
    """A plan. `experts` is [token][layer][slot]; `steps` each step's rows, by default one token each."""
    routed = np.array(experts, np.int16)
    rows = [[token] for token in range(len(routed))] if steps is None else steps
    longest = max(map(len, rows), default=0)
    return Plan(
        experts=routed,
        n_experts=n_experts,
        step_offset=np.cumsum([0, *map(len, rows)]),
        step_row=np.array([row for step in rows for row in step], np.int32),
        step_prefill=np.full(len(rows), prefill),
        costs=costs_of(routed.shape[1], len(rows), longest, **(costs or {})),
        slots=np.array(slots, np.int64),
        residents=np.array(residents, np.int64),
        pooled=rest.pop("pooled", False),
        expert_bytes=1000,
        eviction=named(EVICTION[eviction], params),
        miss=named(MISS[miss], ()),
        group=GROUPS.index(group),
        **rest,
    )


def predicted(
    shape: tuple[int, int], lists: dict[tuple[int, int, int], list[int]], order: str = "fifo", **rest: Any
) -> Prefetch:
    """A prefetcher for `shape` = (tokens, layers), from (distance, token, layer) -> list, best first."""
    distances = max(distance for distance, _, _ in lists)
    width = max(map(len, lists.values()))
    array = np.full((distances, *shape, width), -1, np.int16)
    for (distance, token, layer), ranked in lists.items():
        array[distance - 1, token, layer, : len(ranked)] = ranked
    row = np.tile(np.arange(shape[0], dtype=np.int32), (distances, 1))
    return Prefetch(array, row, order=ORDERS.index(order), **rest)


def top1(*wanted: int) -> list[list[list[int]]]:
    return [[[expert]] for expert in wanted]


def test_the_worked_check_of_the_design(run: Run) -> None:
    # Token 0: dense to 10, hit 0, runs to 15. Token 1: dense to 25, misses 2; 1 is older than 0 (touched at
    # 15); lands at 125, runs to 130. Token 2: dense to 140, misses 1; 0 (15) is older than 2 (130); lands
    # 240, runs to 245.
    result = run(make(top1(0, 2, 1), 3, [2], [0, 1]))
    assert lines(result, "steps", "begin_ns", "end_ns", "rows") == [(0, 15, 1), (15, 130, 1), (130, 245, 1)]
    visits = lines(result, "visits", "routed_ns", "end_ns", "wanted", "hits", "misses", "stall_demand_ns")
    assert visits == [(10, 15, 1, 1, 0, 0), (25, 130, 1, 0, 1, 100), (140, 245, 1, 0, 1, 100)]
    columns = ("expert", "queued_ns", "committed_ns", "started_ns", "landed_ns", "victim", "outcome")
    assert lines(result, "transfers", *columns) == [
        (2, 25, 25, 25, 125, 1, LANDED),
        (1, 140, 140, 140, 240, 0, LANDED),
    ]
    totals = result["totals"]
    assert (totals["time_ns"], totals["dense_ns"], totals["experts_ns"], totals["stall_ns"]) == (
        245,
        30,
        15,
        200,
    )
    assert (totals["evictions"], totals["slots_hit"], totals["fetched"], totals["link_busy_ns"]) == (
        2,
        1,
        2,
        200,
    )
    assert totals["residents"] == [2, 1]  # 2 touched at 130, 1 at 245


def test_every_duration_has_its_place(run: Run) -> None:
    # dense 10, decide 3 -> routed 13; one group: 2 + 5 -> 20; 4 after the last layer, head 6 -> 30. Twice.
    costs = {"decide": 3, "group_ns": 2, "dense_after": 4, "head": 6}
    result = run(make(top1(0, 0), 1, [1], [0], costs=costs))
    assert lines(result, "steps", "begin_ns", "end_ns") == [(0, 30), (30, 60)]
    assert lines(result, "visits", "routed_ns", "end_ns") == [(13, 20), (43, 50)]
    assert lines(result, "executions", "begin_ns", "end_ns") == [(15, 20), (45, 50)]
    names = ("dense_ns", "decide_ns", "experts_ns", "head_ns", "stall_ns", "cpu_wait_ns")
    assert [result["totals"][name] for name in names] == [28, 6, 14, 12, 0, 0]


def test_a_visit_that_wants_nothing_still_takes_dense_part_and_decision(run: Run) -> None:
    result = run(make([[[-1], [0]]], 1, [1, 1], [0, 1], costs={"decide": 3}))
    # Layer 0: routed at 13 and over. Layer 1: dense to 23, routed 26, runs to 31.
    assert lines(result, "visits", "routed_ns", "end_ns", "wanted") == [(13, 13, 0), (26, 31, 1)]


def test_a_late_prefetch(run: Run) -> None:
    # At 10 the prefetch of 2 for the next step is committed: 0 is held, so 1 goes; it lands at 110. Token 1
    # is routed at 25: late, stall 85, runs 110 to 115.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    result = run(make(top1(0, 2), 3, [2], [0, 1], prefetch=prefetch))
    assert lines(result, "visits", "late", "stall_late_ns", "stall_demand_ns") == [(0, 0, 0), (1, 85, 0)]
    assert lines(result, "transfers", "visit", "cause", "victim", "landed_ns") == [(0, PREFETCH, 1, 110)]
    totals = result["totals"]
    assert (totals["time_ns"], totals["prefetched_late"], totals["slots_late"]) == (115, 1, 1)
    assert result["answers"]["event"] == []


def test_a_prefetch_in_time_and_what_lands_at_the_routed_instant_is_a_hit(run: Run) -> None:
    # As above with a transfer of 15: committed at 10, lands at 25, the instant at which token 1 is routed.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    result = run(make(top1(0, 2), 3, [2], [0, 1], prefetch=prefetch, costs={"transfer": [15, 15]}))
    assert lines(result, "visits", "hits", "routed_ns", "end_ns") == [(1, 10, 15), (1, 25, 30)]
    totals = result["totals"]
    assert (totals["prefetched_used"], totals["prefetched_late"], totals["prefetched_wasted"]) == (1, 0, 0)


def test_a_withdrawn_prefetch_and_the_numbers_of_events(run: Run) -> None:
    # At 10: 0 visit 0, 1 and 2 the prefetches of 2 and 3 join, 3 that of 2 is committed. 4 execution and 5
    # step end at 15. At 25: 6 visit 1 wants 2 (late), so 7 the queued 3 is withdrawn. 8 landed at 110, 9 and
    # 10 at 115.
    prefetch = predicted((2, 1), {(1, 1, 0): [2, 3]})
    result = run(make(top1(0, 2), 4, [2], [0, 1], prefetch=prefetch))
    columns = ("expert", "event_queued", "event_committed", "event", "outcome", "committed_ns", "landed_ns")
    assert lines(result, "transfers", *columns) == [
        (2, 1, 3, 8, LANDED, 10, 110),
        (3, 2, -1, 7, WITHDRAWN, -1, -1),
    ]
    assert result["visits"]["event"] == [0, 6]
    assert result["executions"]["event"] == [4, 9]
    assert result["steps"]["event"] == [5, 10]


def test_a_promoted_prefetch(run: Run) -> None:
    # 2 is on the link from 10 to 110, 3 queued behind it. Token 1 wants 3 at 25: a miss, its prefetch becomes
    # a demand. It is committed at 110 (victim 0, touched at 15; 2 landed at 110), lands at 210, runs to 215.
    prefetch = predicted((2, 1), {(1, 1, 0): [2, 3]})
    result = run(make(top1(0, 3), 4, [2], [0, 1], prefetch=prefetch))
    columns = ("expert", "cause", "promoted", "visit", "queued_ns", "committed_ns", "landed_ns", "victim")
    assert lines(result, "transfers", *columns) == [
        (2, PREFETCH, False, 0, 10, 10, 110, 1),
        (3, DEMAND, True, 0, 10, 110, 210, 0),
    ]
    assert lines(result, "visits", "misses", "stall_demand_ns") == [(0, 0), (1, 185)]
    totals = result["totals"]
    assert (totals["time_ns"], totals["prefetched_wasted"], totals["fetched"]) == (215, 1, 1)
    assert lines(result, "answers", "visit", "row", "slot", "wanted", "answer") == [(1, 1, 0, 3, 0)]


def test_one_slot_and_a_hit_that_holds_it(run: Run) -> None:
    # Routed at 10: 0 runs to 15 and is held so long; 1 is committed at 15, lands at 115, runs to 120.
    result = run(make([[[0, 1]]], 3, [1], [0]))
    assert lines(result, "transfers", "queued_ns", "committed_ns", "landed_ns", "victim") == [(10, 15, 115, 0)]
    assert lines(result, "visits", "stall_demand_ns", "stall_held_ns", "end_ns") == [(100, 0, 120)]


def test_one_slot_and_two_misses(run: Run) -> None:
    # 1 is committed at 10 (0 is not wanted: it goes), lands at 110 and is held to 115; only then 2: 215, 220.
    result = run(make([[[1, 2]]], 3, [1], [0]))
    assert lines(result, "transfers", "committed_ns", "landed_ns", "victim") == [(10, 110, 0), (115, 215, 1)]
    assert lines(result, "visits", "stall_demand_ns", "stall_held_ns", "end_ns") == [(200, 0, 220)]


def test_a_stall_for_want_of_a_slot(run: Run) -> None:
    # As above at depth 2: from 10 to 110 the link has room and 2 waits for a slot, so that stall is `held`.
    # At 115 the slot is released; nothing is on the link, so 2 pays the idle set-up: 215, runs to 220.
    result = run(make([[[1, 2]]], 3, [1], [0], costs={"depth": 2, "transfer": [100, 80]}))
    assert lines(result, "visits", "stall_held_ns", "stall_demand_ns", "end_ns") == [(100, 100, 220)]


def test_a_batch_of_two_that_shares_an_expert(run: Run) -> None:
    # One step, wants [0, 1] and [1, 2]; 1 token 5, 2 tokens 7, a group 1. At 10 the group {0, 1}: 0 from 11
    # to 16, 1 (two tokens) to 23. Touched in that order, so 0 goes for 2 at 23; lands at 123; its group: 124
    # to 129.
    costs = {"group_ns": 1, "expert": [0, 5, 7]}
    result = run(make([[[0, 1]], [[1, 2]]], 3, [2], [1, 0], steps=[[0, 1]], group="ready", costs=costs))
    columns = ("expert", "tokens", "begin_ns", "end_ns", "group")
    assert lines(result, "executions", *columns) == [
        (0, 1, 11, 16, 0),
        (1, 2, 16, 23, 0),
        (2, 1, 124, 129, 1),
    ]
    assert lines(result, "visits", "wanted", "hits", "misses") == [(3, 2, 1)]
    totals = result["totals"]
    assert (totals["slots_wanted"], totals["slots_hit"], totals["fetched"]) == (4, 3, 1)
    assert (totals["experts_ns"], totals["stall_ns"], totals["residents"]) == (19, 100, [1, 2])


def test_a_missing_expert_of_two_tokens_is_fetched_once_and_asked_twice(run: Run) -> None:
    result = run(make(top1(1, 1), 2, [1], [0], steps=[[0, 1]], costs={"expert": [0, 5, 7]}))
    assert lines(result, "answers", "row", "slot", "wanted") == [(0, 0, 1), (1, 0, 1)]
    assert lines(result, "executions", "tokens", "begin_ns", "end_ns") == [(2, 110, 117)]
    assert len(result["transfers"]["event"]) == 1
    assert result["totals"]["fetched"] == 2


def test_all_waits_for_everything(run: Run) -> None:
    # 0 is ready at 10, 1 lands at 110 in a free slot; one group: 1 + 5 + 5 from 110.
    result = run(make([[[0, 1]]], 2, [2], [0], group="all", costs={"group_ns": 1}))
    assert lines(result, "executions", "expert", "begin_ns", "end_ns", "group") == [
        (0, 111, 116, 0),
        (1, 116, 121, 0),
    ]


def test_all_with_too_few_slots(run: Run) -> None:
    # Both slots are held, so at 10 the group {0, 1} goes: 11 to 16 to 21. 2 for 0: 21 to 121. Not yet all,
    # but 1 is no longer held: 3 for 1, 121 to 221. Group {2, 3}: 222 to 227 to 232. The wait from 121 is for
    # the demand of 3.
    result = run(make([[[0, 1, 2, 3]]], 4, [2], [0, 1], group="all", costs={"group_ns": 1}))
    assert lines(result, "executions", "expert", "begin_ns", "end_ns", "group") == [
        (0, 11, 16, 0),
        (1, 16, 21, 0),
        (2, 222, 227, 1),
        (3, 227, 232, 1),
    ]
    assert lines(result, "visits", "stall_demand_ns", "stall_held_ns") == [(200, 0)]


def test_all_waits_while_a_prefetch_brings_an_expert_that_can_go(run: Run) -> None:
    # At 10 the prefetch of 3 takes 1's slot and lands at 110. Token 1 (routed 25) wants 0 and 2: 0 is held,
    # but 3 will not be, so `all` waits. 2 for 3: 110 to 210; group {0, 2} to 220. Stall 185, all for the
    # demand.
    prefetch = predicted((2, 1), {(1, 1, 0): [3]})
    result = run(make([[[0, -1]], [[0, 2]]], 4, [2], [1, 0], group="all", prefetch=prefetch))
    assert lines(result, "transfers", "expert", "committed_ns", "victim") == [(3, 10, 1), (2, 110, 3)]
    assert lines(result, "visits", "end_ns", "stall_demand_ns", "stall_held_ns") == [
        (15, 0, 0),
        (220, 185, 0),
    ]
    assert result["totals"]["prefetched_wasted"] == 1


def test_depth_two_pays_the_follow_on_set_up(run: Run) -> None:
    # 1 and 2 are committed at 10: 1 lands at 110, 2 follows on (80) and lands at 190; 3, committed at 110
    # behind 2, starts at 190 and lands at 270. Each runs on landing: 115, 195, 275. Stall 100 + 75 + 75.
    result = run(make([[[1, 2, 3]]], 4, [3], [], costs={"depth": 2, "transfer": [100, 80]}))
    columns = ("expert", "committed_ns", "started_ns", "landed_ns")
    assert lines(result, "transfers", *columns) == [(1, 10, 10, 110), (2, 10, 110, 190), (3, 110, 190, 270)]
    totals = result["totals"]
    assert (totals["time_ns"], totals["stall_ns"], totals["link_busy_ns"]) == (275, 250, 260)


def test_the_commit_gap(run: Run) -> None:
    # Depth 1: 1 is committed at 10, starts at 17, lands at 117; 2 is committed then, starts at 124, lands at
    # 224.
    result = run(make([[[1, 2]]], 3, [2], [], costs={"gap": 7}))
    columns = ("committed_ns", "started_ns", "landed_ns")
    assert lines(result, "transfers", *columns) == [(10, 17, 117), (117, 124, 224)]
    assert result["totals"]["link_busy_ns"] == 200


def test_the_commit_gap_is_not_paid_by_what_follows_on(run: Run) -> None:
    result = run(make([[[1, 2]]], 3, [2], [], costs={"gap": 7, "depth": 2, "transfer": [100, 80]}))
    columns = ("committed_ns", "started_ns", "landed_ns")
    assert lines(result, "transfers", *columns) == [(10, 17, 117), (10, 117, 197)]


def test_a_rejected_prefetch_lets_the_next_one_through(run: Run) -> None:
    # Layer 1 holds 0 and 1, both on the list [0, 1, 2] of the prefetch of 2: rejected at 10 (event 3, after
    # visit 0 and the joining of the two). The next in line, 2 of layer 0 for the next step, takes 1's slot: 0
    # is held. 10 to 110. Step 0 ends at 30; step 1 is routed at 40: late, 110 to 115; layer 1 from 125 to
    # 130.
    prefetch = predicted((2, 2), {(1, 0, 1): [0, 1, 2], (2, 1, 0): [2]})
    result = run(make([[[0], [0]], [[2], [0]]], 3, [2, 2], [0, 1, 3, 4], prefetch=prefetch))
    columns = ("layer", "expert", "outcome", "event_queued", "event_committed", "event", "victim")
    assert lines(result, "transfers", *columns)[0] == (1, 2, REJECTED, 1, -1, 3, -1)
    assert lines(result, "transfers", *columns[:5], "victim")[1] == (0, 2, LANDED, 2, 4, 1)
    assert (result["totals"]["time_ns"], result["totals"]["evictions"]) == (130, 1)


def test_what_lands_when_a_group_ends_lands_first(run: Run) -> None:
    # The prefetch of 2 lands at 15, when 0's group ends: the landing is numbered before the touch, so 2 is
    # the older when 3 needs a slot at 25, on the link from 25 to 30.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    result = run(make(top1(0, 3), 4, [2], [0, 1], prefetch=prefetch, costs={"transfer": [5, 5]}))
    assert lines(result, "transfers", "expert", "landed_ns", "victim") == [(2, 15, 1), (3, 30, 2)]


def test_zero_everything(run: Run) -> None:
    # The worked check with nothing taking time: the same decisions, all at 0, in one order.
    costs = {"dense": 0, "expert": [0, 0], "transfer": [0, 0]}
    result = run(make(top1(0, 2, 1), 3, [2], [0, 1], costs=costs))
    assert result["visits"]["event"] == [0, 3, 10]
    assert result["executions"]["event"] == [1, 8, 15]
    assert result["steps"]["event"] == [2, 9, 16]
    assert result["answers"]["event"] == [4, 11]
    columns = ("expert", "victim", "event_queued", "event_committed", "event")
    assert lines(result, "transfers", *columns) == [(2, 1, 5, 6, 7), (1, 0, 12, 13, 14)]
    assert (result["totals"]["time_ns"], result["totals"]["evictions"]) == (0, 2)


def test_zero_everything_commits_nothing_before_the_next_decision(run: Run) -> None:
    # Visit 0 queues the prefetch of 2, but visit 1 falls on the same instant and comes first: a miss,
    # promoted.
    prefetch = predicted((3, 1), {(1, 1, 0): [2]})
    costs = {"dense": 0, "expert": [0, 0], "transfer": [0, 0]}
    result = run(make(top1(0, 2, 2), 3, [2], [0, 1], prefetch=prefetch, costs=costs))
    assert lines(result, "transfers", "expert", "cause", "promoted", "outcome") == [(2, DEMAND, True, LANDED)]
    assert lines(result, "visits", "hits", "late", "misses") == [(1, 0, 0), (0, 0, 1), (1, 0, 0)]


def test_the_commits_of_an_instant_are_one_phase(run: Run) -> None:
    # A transfer takes 0, or 80 following on. 1 and 2 are committed at 10, one behind the other; then the
    # instant repeats: 1 lands at 10 and runs to 15; 2 follows on, lands at 90 (stall 75) and runs to 95.
    result = run(make([[[1, 2]]], 3, [2], [], costs={"depth": 2, "transfer": [0, 80]}))
    assert lines(result, "transfers", "committed_ns", "landed_ns") == [(10, 10), (10, 90)]
    # visit 0, answers 1 and 2, queued 3 and 4, committed 5 and 6, landed 7, executed 8, landed 9
    assert lines(result, "transfers", "event_committed", "event") == [(5, 7), (6, 9)]
    assert (result["totals"]["time_ns"], result["totals"]["stall_ns"]) == (95, 75)


def test_on_the_cpu_beside_the_gpu(run: Run) -> None:
    # 0 runs on the GPU to 15; 1 and 2 on the CPU, 10 to 50 to 90: 75 of cpu_wait. Events: 0 visit, 1 and 2
    # answers, 3 the GPU's execution, then the CPU's at the layer's end.
    cpu = [[0, 40], [0, 60]]
    result = run(make([[[0, 1, 2]]], 3, [1], [0], miss="cpu", costs={"cpu_expert": cpu}))
    columns = ("event", "expert", "begin_ns", "end_ns", "group", "cpu")
    assert lines(result, "executions", *columns) == [
        (3, 0, 10, 15, 0, False),
        (4, 1, 10, 50, -1, True),
        (5, 2, 50, 90, -1, True),
    ]
    assert result["visits"]["cpu_wait_ns"] == [75]
    assert (result["totals"]["cpu"], result["totals"]["time_ns"], result["totals"]["stall_ns"]) == (2, 90, 0)


def test_the_cpu_pays_for_a_busy_link_and_a_queued_prefetch_is_withdrawn(run: Run) -> None:
    # 2 is on the link from 10; 3 is queued, and at 25 wanted and answered cpu: withdrawn. Link busy: 25 to
    # 85.
    prefetch = predicted((2, 1), {(1, 1, 0): [2, 3]})
    plan = make(top1(0, 3), 4, [2], [0, 1], miss="cpu", prefetch=prefetch, costs={"cpu_expert": [[0, 40], [0, 60]]})
    result = run(plan)
    assert lines(result, "executions", "expert", "begin_ns", "end_ns") == [(0, 10, 15), (3, 25, 85)]
    # The run ends at 85 with 2 under way since 10. Answer 7, withdrawal 8, execution 9, step 10, unfinished
    # 11.
    columns = ("expert", "outcome", "event", "started_ns", "landed_ns")
    assert lines(result, "transfers", *columns) == [(2, UNFINISHED, 11, 10, -1), (3, WITHDRAWN, 8, -1, -1)]
    assert result["totals"]["link_busy_ns"] == 75


def test_drop(run: Run) -> None:
    result = run(make([[[0, 1]]], 2, [1], [0], miss="drop"))
    assert lines(result, "answers", "wanted", "answer") == [(1, ANSWERS.index("drop"))]
    assert (result["totals"]["dropped"], result["totals"]["slots_hit"], result["totals"]["time_ns"]) == (
        1,
        1,
        15,
    )


@pytest.mark.parametrize(("lossy", "time_ns"), [(False, 120), (True, 15)])
def test_no_lossy_answer_in_a_prefill_step_unless_asked(run: Run, lossy: bool, time_ns: int) -> None:
    # 0 runs 10 to 15; if 1 is fetched, it is committed at 15, lands at 115 and runs to 120.
    result = run(make([[[0, 1]]], 2, [1], [0], miss="drop", prefill=True, lossy_prefill=lossy))
    assert result["totals"]["time_ns"] == time_ns
    assert result["answers"]["answer"] == [ANSWERS.index("drop" if lossy else "fetch")]


@pytest.mark.parametrize(("miss", "time_ns", "counted"), [("fetch", 115, "slots_late"), ("drop", 25, "dropped")])
def test_late_counts_as_missing(run: Run, miss: str, time_ns: int, counted: str) -> None:
    # Late from 25 to 110: waited for (runs to 115), or dropped, and the layer is over at 25.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    plan = make(top1(0, 2), 3, [2], [0, 1], miss=miss, prefetch=prefetch, late_counts_as_missing=True)
    result = run(plan)
    assert (result["totals"]["time_ns"], result["totals"][counted]) == (time_ns, 1)
    assert lines(result, "answers", "visit", "wanted", "answer") == [(1, 2, ANSWERS.index(miss))]
    assert len(result["transfers"]["event"]) == 1


def test_what_is_committed_but_not_started_at_the_end_is_unfinished(run: Run) -> None:
    # Three prefetches at depth 2: 2 from 10 (gap 0), 3 behind it, 4 queued. The run ends at 25.
    prefetch = predicted((2, 1), {(1, 1, 0): [2, 3, 4, 0]})
    plan = make([[[0]], [[-1]]], 5, [4], [0, 1], prefetch=prefetch, costs={"depth": 2, "transfer": [100, 80]})
    result = run(plan)
    # At visit 1 nothing is wanted, so the queued 4 is withdrawn (event 9), after 0 visit, 1 2 3 joined, 4 5
    # committed, 6 execution, 7 step, 8 visit; then 10 step, 11 and 12 unfinished in commit order.
    columns = ("expert", "started_ns", "outcome", "event")
    assert lines(result, "transfers", *columns) == [
        (2, 10, UNFINISHED, 11),
        (3, -1, UNFINISHED, 12),
        (4, -1, WITHDRAWN, 9),
    ]
    assert result["totals"]["link_busy_ns"] == 15


def test_what_lands_at_the_last_instant_has_landed(run: Run) -> None:
    # The prefetch for the second visit (which wants nothing) is under way from 10 to 25, when the run ends.
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    result = run(make([[[0]], [[-1]]], 3, [2], [0, 1], prefetch=prefetch, costs={"transfer": [15, 15]}))
    assert lines(result, "transfers", "outcome", "landed_ns") == [(LANDED, 25)]
    assert (result["totals"]["time_ns"], result["totals"]["prefetched_wasted"]) == (25, 1)


@pytest.mark.parametrize(
    ("eviction", "params", "wanted", "victim"),
    [
        ("lru", (), (0, 2), 1),  # 0 has been touched since it landed
        ("fifo", (), (0, 2), 0),  # 0 landed first
        ("lfu", (), (0, 0, 1, 2), 1),  # 2 uses against 1
        ("lru", (), (0, 0, 1, 2), 0),
        ("lfu", (), (0, 1, 2), 0),  # 1 use each: the older touch
        ("belady", (), (1, 0, 2, 1), 0),  # 1 is wanted again, 0 never
        ("belady", (), (1, 0, 2), 1),  # neither is: the older touch
        ("decayed", (0.5,), (0, 0, 0, 1, 2), 0),  # at visit 5: 0 has 1.75 x 0.5^2 = 0.4375, 1 has 0.5
        ("decayed", (0.9,), (0, 0, 0, 1, 2), 1),  # at visit 5: 0 has 2.71 x 0.9^2 = 2.1951, 1 has 0.9
    ],
)
def test_who_goes(run: Run, eviction: str, params: tuple[float, ...], wanted: tuple[int, ...], victim: int) -> None:
    result = run(make(top1(*wanted), 3, [2], [0, 1], eviction=eviction, params=params))
    assert result["transfers"]["victim"][0] == victim


def test_uses_are_kept_across_evictions(run: Run) -> None:
    # 0 0 0 1 | 2 for 1 (3 uses against 1) | 1 for 2 (3 against 1) | 1 now has 2 uses, so 2 for 1, not for 0.
    result = run(make(top1(0, 0, 0, 1, 2, 1, 2), 3, [2], [0, 1], eviction="lfu"))
    assert result["transfers"]["victim"] == [1, 2, 1]


def test_random_is_the_documented_hash(run: Run) -> None:
    # mix(0) is the first output of the published splitmix64 seeded with 0. Two demands at the second visit,
    # the draws 0 and 1 of visit 2; 0 is committed first among the residents 0, 1, 2, 3 (none held), 5 among
    # the three left.
    assert mix(0) == 0xE220A8397B1DCDAF
    plan = make([[[-1, -1]], [[4, 5]]], 6, [4], [0, 1, 2, 3], eviction="random", seed=7, costs={"depth": 2})
    left = [0, 1, 2, 3]
    expected = [left.pop(hash64(7, 2, 0) % 4), left.pop(hash64(7, 2, 1) % 3)]
    assert run(plan)["transfers"]["victim"] == expected


def test_a_pool_evicts_across_layers(run: Run) -> None:
    # The pool of 2 holds 0 of layer 0 and 0 of layer 1 (global 2). Layer 0 wants 1 (global 1) at 10: 0 is the
    # older. 110 to 115. Layer 1, routed at 125, wants its 0: still there.
    result = run(make([[[1], [0]]], 2, [2], [0, 2], pooled=True))
    assert lines(result, "visits", "hits", "misses", "end_ns") == [(0, 1, 115), (1, 0, 130)]
    assert result["totals"]["residents"] == [1, 2]


def test_a_prefetch_spares_what_is_on_its_own_list(run: Run) -> None:
    # Pool of 3: global 0 and, of layer 1, 3 and 4, landed in this order. At 10 0 is held; the prefetch of 5
    # spares 3, which is on its list, and takes 4.
    prefetch = predicted((1, 2), {(1, 0, 1): [2, 0]})
    result = run(make([[[0], [0]]], 3, [3], [0, 3, 4], pooled=True, prefetch=prefetch, eviction="fifo"))
    assert lines(result, "transfers", "expert", "victim") == [(2, 4)]


@pytest.mark.parametrize(
    ("order", "expected"), [("fifo", [2, 5, 3]), ("nearest-layer", [2, 5, 3]), ("probability", [2, 3, 5])]
)
def test_transfer_order(run: Run, order: str, expected: list[int]) -> None:
    # Visit 0 (10) queues 2 of layer 1 (distance 1) and, distance 2, 5 and 3 of layer 0 for step 1. At 10 each
    # order begins with the first in line; keys: distance 1 rank 0 -> 0, distance 2 rank 0 -> 9, rank 1 -> 4.
    lists = {(1, 0, 1): [2], (2, 1, 0): [5, 3]}
    keys = np.array([[0, 1], [9, 4]], np.int64)
    prefetch = predicted((2, 2), lists, order, rank_key=keys)
    experts = [[[0], [0]], [[5], [0]]]
    plan = make(experts, 6, [6, 6], [0, 6], prefetch=prefetch, costs={"dense": 500})
    result = run(plan)
    by_commit = sorted(lines(result, "transfers", "event_committed", "expert"))
    assert [expert for _, expert in by_commit] == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [("nearest-layer", [(1, 10), (3, 30), (2, 50)]), ("fifo", [(1, 10), (2, 30), (3, 50)])],
)
def test_nearest_layer_goes_before_what_joined_earlier(run: Run, order: str, expected: list[tuple[int, int]]) -> None:
    # A transfer takes 20. Visit 0 (10) queues 1 and 2 for visit 3, visit 1 (25) queues 3 for visit 2. 1 is on
    # the link from 10 to 30; then the nearer 3 passes 2. With fifo 2 goes first, and 3 is promoted at 40,
    # when visit 2 wants it.
    prefetch = predicted((2, 3), {(3, 1, 0): [1, 2], (1, 0, 2): [3]}, order)
    experts = [[[0], [0], [3]], [[1], [0], [0]]]
    result = run(make(experts, 4, [4, 4, 4], [0, 4, 8], prefetch=prefetch, costs={"transfer": [20, 20]}))
    assert sorted(lines(result, "transfers", "expert", "committed_ns"), key=lambda line: line[1]) == expected


def test_lists_merge_rank_by_rank_and_the_budget_counts_what_joins(run: Run) -> None:
    # Two tokens with the lists [3, 1, 4] and [2, 3, 5]: merged 3, 2, 1, 4, 5. 1 is resident and costs
    # nothing.
    prefetch = predicted((4, 1), {(1, 2, 0): [3, 1, 4], (1, 3, 0): [2, 3, 5]}, budget=3)
    experts = top1(0, 0, 0, 0)
    result = run(make(experts, 6, [6], [0, 1], steps=[[0, 1], [2, 3]], prefetch=prefetch))
    assert result["transfers"]["expert"] == [3, 2, 4]


def test_a_token_without_a_list_gives_nothing(run: Run) -> None:
    prefetch = predicted((2, 1), {(1, 1, 0): [2]})
    without = Prefetch(prefetch.lists, np.full((1, 2), -1, np.int32))
    result = run(make(top1(0, 0), 3, [2], [0, 1], prefetch=without))
    assert result["transfers"]["expert"] == []


def test_steps_of_requests() -> None:
    # Request 7: prompt rows 0-2, decode 3, 4. Request 8: prompt 5 alone. Request 9: prompt 6, decode 7.
    sequence = [7, 7, 7, 7, 7, 8, 9, 9]
    prefill = [True, True, True, False, False, True, True, False]
    assert reference_steps(sequence, prefill, 1, 2) == [
        (True, [0, 1]),
        (True, [2]),
        (False, [3]),
        (False, [4]),
        (True, [5]),
        (True, [6]),
        (False, [7]),
    ]
    # Two places: 8 leaves after its prompt, so 9 is admitted before the first decode step.
    assert reference_steps(sequence, prefill, 2, 512) == [
        (True, [0, 1, 2]),
        (True, [5]),
        (True, [6]),
        (False, [3, 7]),
        (False, [4]),
    ]
    decode = [(False, [0, 5]), (False, [1, 6]), (False, [2, 7]), (False, [3]), (False, [4])]
    assert reference_steps(sequence, prefill, 2, 512, as_decode=True) == decode


def random_plan(seed: int) -> Plan:
    """A small plan, every feature drawn at random; few durations, often 0, so that instants coincide."""
    rng = np.random.default_rng(seed)
    tokens, layers, top_k, n_experts = (int(rng.integers(1, high)) for high in (9, 4, 4, 7))
    n_experts = max(n_experts, top_k)
    experts = np.array([[rng.permutation(n_experts)[:top_k] for _ in range(layers)] for _ in range(tokens)], np.int16)
    experts[rng.random(experts.shape) < 0.1] = -1
    cuts = [token for token in range(1, tokens) if rng.random() < 0.7]
    steps = [list(map(int, rows)) for rows in np.split(np.arange(tokens), cuts)]
    pooled = bool(rng.random() < 0.3)
    most = n_experts * layers if pooled else n_experts
    slots = [int(rng.integers(1, most + 1)) for _ in range(1 if pooled else layers)]
    few = [layer * n_experts + e for e in range(n_experts) for layer in range(layers)]
    if rng.random() < 0.2:
        few = []
    residents: list[int] = []
    for expert in few:
        scope = 0 if pooled else expert // n_experts
        in_scope = [e for e in residents if pooled or e // n_experts == scope]
        residents += [expert] if len(in_scope) < slots[scope] else []
    distances = int(rng.integers(0, layers + 1))
    width = int(rng.integers(1, 4))
    lists = rng.integers(-1, n_experts, (distances, tokens, layers, width)).astype(np.int16)
    for ranked in lists:  # half of the first guesses are right
        ranked[..., 0] = np.where(rng.random((tokens, layers)) < 0.5, experts[..., 0], ranked[..., 0])
    row = np.array([np.arange(tokens) - (rng.random(tokens) < 0.1) for _ in range(distances)], np.int32)
    keys = rng.integers(0, 5, (distances, width))
    prefetch = Prefetch(lists, row, int(rng.integers(-1, 4)), int(rng.integers(0, 3)), keys)
    short = [int(value) for value in rng.choice([0, 1, 5, 10], 6)]
    costs = {
        "dense": short[0],
        "decide": short[1],
        "group_ns": short[2],
        "gap": short[3],
        "dense_after": short[4],
        "head": short[5],
        "expert": np.r_[0, rng.integers(0, 6, tokens)],
        "cpu_expert": rng.integers(0, 30, (2, tokens + 1)),
        "transfer": [int(value) for value in rng.choice([0, 5, 40, 150], 2)],
        "depth": int(rng.choice([1, 1, 2, 5])),
    }
    return make(
        experts.tolist(),
        n_experts,
        slots,
        residents,
        steps=steps,
        eviction=str(rng.choice(["lru", "lfu", "fifo", "random", "decayed", "belady"])),
        params=(0.9,),
        miss=str(rng.choice(["fetch", "fetch", "drop", "cpu"])),
        group=str(rng.choice(GROUPS)),
        prefill=bool(rng.random() < 0.3),
        lossy_prefill=bool(rng.random() < 0.3),
        late_counts_as_missing=bool(rng.random() < 0.3),
        prefetch=prefetch if distances else None,
        pooled=pooled,
        seed=seed,
        costs=costs,
    )


@pytest.mark.parametrize("seed", range(200))
def test_the_laws_on_random_plans(run: Run, seed: int) -> None:
    plan = random_plan(seed)
    result = run(plan)
    check_all(plan, result)
