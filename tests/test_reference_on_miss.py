"""Hand-worked cases of what engines do on a miss beyond one rule, for the reference and every machine in RUNS.

The arithmetic is in the comments. Unless a case says otherwise, as in test_reference: dense part 10, one expert 5
whatever its tokens, a transfer 100 (n experts as one 100 n), all else 0; one layer, one token a step, lru.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from sim.core.plan import ANSWERS, OUTCOMES, PLACES, SPLITS, Choice, OnMiss, Plan
from sim.policies.registry import MISS
from tests.groups import MACHINES, lines, run_groups
from tests.on_miss_plans import STATIC, cpu_admit, plan_of, rule, split
from tests.plans import named
from tests.reference import simulate
from tests.test_reference import Run, make, predicted, top1

RUNS: dict[str, Run] = {"reference": simulate, **{name: partial(run_groups, name) for name in MACHINES}}
FETCH, SUBSTITUTE, DROP, CPU, LOW, STREAM, REMOTE = range(len(ANSWERS))
LANDED, WITHDRAWN, REJECTED, UNFINISHED = range(len(OUTCOMES))
DEMAND, PREFETCH, BACKGROUND, ADMISSION, STREAMED = range(5)
SLOT, STAGE, FROM_AFAR, HOST, DEFERRED = range(len(PLACES))


@pytest.fixture(params=sorted(RUNS))
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


def case(
    experts: Sequence[Any],
    n_experts: int,
    slots: Sequence[int],
    residents: Sequence[int],
    miss: Choice | str,
    **given: Any,
) -> Plan:
    """As make; further arguments of OnMiss; `run`: what 1, 2, ... experts take as one transfer; `cpu`: of one on the
    host, whatever its tokens; `bulk_rows`: the threshold of the rule `bulk`."""
    on = {name: given.pop(name) for name in list(given) if name in OnMiss.__dataclass_fields__}
    costs, bulk_rows = given.pop("costs", {}), given.pop("bulk_rows", 1 if on.get("bulk") else None)
    run = [0, *given.pop("run", [100 * (i + 1) for i in range(n_experts)])]
    cpu, static = given.pop("cpu", 20), given.pop("static", False)
    rows = max(map(len, given.get("steps") or [[0]]))
    costs = {"transfer": [run[1], run[1]], "cpu_expert": [[cpu] * (rows + 1)] * 2} | costs
    plan = make(experts, n_experts, slots, residents, costs=costs, **given)
    step_bulk = np.diff(plan.step_offset) >= (bulk_rows or plan.step_row.size + 1)
    chosen = named(MISS[miss], ()) if isinstance(miss, str) else miss
    on_miss = OnMiss(np.array([run, run], np.int64), step_bulk, **on)
    return replace(plan, miss=chosen, on_miss=on_miss, eviction=STATIC if static else plan.eviction)


def ran(result: dict[str, Any]) -> list[tuple[int, ...]]:
    """(expert, place, begin, end) of every execution."""
    return lines(result, "executions", "expert", "place", "begin_ns", "end_ns")


def answers(result: dict[str, Any]) -> list[tuple[int, ...]]:
    """(step, wanted, answer) of every answer in a trace of one layer."""
    return lines(result, "answers", "visit", "wanted", "answer")


def waits(result: dict[str, Any]) -> list[tuple[int, ...]]:
    """(demand, late, held, cpu) of every visit."""
    return lines(result, "visits", "stall_demand_ns", "stall_late_ns", "stall_held_ns", "cpu_wait_ns")


# --- streams


def test_a_stream_leaves_residents_alone(run: Run) -> None:
    # Both want 1, which is nowhere: copied twice, 0 stays. Routed at 10, lands at 110, runs to 115; again from 125.
    result = run(case(top1(1, 1), 2, [1], [0], rule("stream")))
    assert answers(result) == [(0, 1, STREAM), (1, 1, STREAM)]
    assert ran(result) == [(1, STAGE, 110, 115), (1, STAGE, 225, 230)]
    transfers = lines(result, "transfers", "expert", "cause", "place", "run", "landed_ns", "victim", "outcome")
    assert transfers == [(1, DEMAND, STAGE, 0, 110, -1, LANDED), (1, DEMAND, STAGE, 1, 225, -1, LANDED)]
    totals = result["totals"]
    assert (totals["streamed"], totals["fetched"], totals["staged"], totals["evictions"]) == (2, 0, 2, 0)
    assert (totals["landed_demand"], totals["landed_stream"], totals["link_transfers"]) == (2, 0, 2)
    assert totals["residents"] == [0] and totals["busy_ns_by_cause"] == [200, 0, 0, 0, 0]


def serial_with_a_hit(serial: bool) -> Plan:
    return case([[[0, 1]]], 2, [1], [0], rule("stream"), serial=serial)


def test_serial_with_a_hit(run: Run) -> None:
    # 0 is resident, 1 is copied from 10 to 110. Serial: both run behind that. Else 0 runs from 10 to 15.
    result = run(serial_with_a_hit(True))
    assert ran(result) == [(0, SLOT, 110, 115), (1, STAGE, 115, 120)]
    assert waits(result) == [(100, 0, 0, 0)]
    result = run(serial_with_a_hit(False))
    assert ran(result) == [(0, SLOT, 10, 15), (1, STAGE, 110, 115)]
    assert waits(result) == [(95, 0, 0, 0)]


def serial_whole_layer() -> Plan:
    return case([[[1]], [[-1]]], 3, [1], [0], rule("stream"), serial=True, whole_layer=True, stages=3)


def test_serial_waits_for_what_nobody_wants(run: Run) -> None:
    # Step 0: 1 and 2 are copied, to 110 and 210; 1 runs from 210. Step 1 (routed at 225) wants nothing: both again,
    # for 200, then the step ends.
    result = run(serial_whole_layer())
    assert ran(result) == [(1, STAGE, 210, 215)]
    assert waits(result) == [(200, 0, 0, 0), (200, 0, 0, 0)]
    assert lines(result, "transfers", "visit", "expert", "cause", "landed_ns") == [
        (0, 1, DEMAND, 110), (0, 2, DEMAND, 210), (1, 1, DEMAND, 325), (1, 2, DEMAND, 425),
    ]  # fmt: skip
    assert lines(result, "steps", "end_ns") == [(215,), (425,)]


def run_cut_by_stages(depth: int) -> Plan:
    run = {"run": [100, 150, 180], "stages": 2, "merge_runs": True, "costs": {"depth": depth}}
    return case([[[2, 0, 1]]], 3, [0], [], rule("stream"), group="ready", **run)


@pytest.mark.parametrize(("depth", "first_wait"), [(1, (150, 0)), (2, (0, 150))])
def test_a_run_cut_by_stages(run: Run, depth: int, first_wait: tuple[int, int]) -> None:
    # In ascending id 0, 1 and 2; there are stages for 0 and 1: one transfer of 150, from 10 to 160. They run to 170,
    # which frees two stages: 2 is copied from 170 to 270 and runs to 275. Until 160 the GPU waits for the link, or,
    # if that has room for one more, for a stage ("held"); then 100 for the link.
    result = run(run_cut_by_stages(depth))
    columns = ("expert", "run", "committed_ns", "started_ns", "landed_ns")
    assert lines(result, "transfers", *columns) == [(0, 0, 10, 10, 160), (1, 0, 10, 10, 160), (2, 1, 170, 170, 270)]
    assert ran(result) == [(0, STAGE, 160, 165), (1, STAGE, 165, 170), (2, STAGE, 270, 275)]
    assert waits(result) == [(first_wait[0] + 100, 0, first_wait[1], 0)]
    totals = result["totals"]
    assert (totals["link_transfers"], totals["landed_demand"], totals["link_busy_ns"]) == (2, 3, 250)


def all_closes_for_a_stage() -> Plan:
    return case([[[0, 1, 2]]], 3, [1], [0], rule("stream"), stages=1, group="all")


def test_all_closes_when_the_first_demand_finds_no_stage(run: Run) -> None:
    # 0 is resident and waits; 1 takes the one stage, lands at 110. 2 finds none and nothing that is waited for is
    # under way: 0 and 1 run from 110 to 120. Then 2, from 120 to 220, and runs to 225.
    result = run(all_closes_for_a_stage())
    assert lines(result, "executions", "expert", "group", "begin_ns", "end_ns") == [
        (0, 0, 110, 115), (1, 0, 115, 120), (2, 1, 220, 225),
    ]  # fmt: skip
    assert waits(result) == [(200, 0, 0, 0)]


def ring_of_two_ahead(transfer: int) -> Plan:
    return case([[[0], [0], [0]]], 2, [0, 0, 0], [], rule("stream"), ahead=2, whole_layer=True, run=[transfer] * 2)


def test_a_ring_of_two_layers_ahead(run: Run) -> None:
    # At 0 the experts of layers 0 and 1 join the stream queue, a copy takes 20. Layer 0 is routed at 10: its 0 is
    # under way (late), lands at 20, runs to 25; layer 2 joins. Layer 1 is routed at 35: its 0 is queued (a miss),
    # becomes a demand and follows 1 of layer 0, which lands at 40 for nobody: it lands at 60, runs to 65. Layer 2 is
    # routed at 75 and the same: behind 1 of layer 1 (60 to 80), from 80 to 100, to 105. 1 of layer 2 is on its way.
    result = run(ring_of_two_ahead(20))
    columns = ("visit", "layer", "expert", "cause", "promoted", "queued_ns", "committed_ns", "landed_ns", "outcome")
    assert lines(result, "transfers", *columns) == [
        (-1, 0, 0, STREAMED, False, 0, 0, 20, LANDED),
        (-1, 0, 1, STREAMED, False, 0, 20, 40, LANDED),
        (-1, 1, 0, DEMAND, True, 0, 40, 60, LANDED),
        (-1, 1, 1, STREAMED, False, 0, 60, 80, LANDED),
        (0, 2, 0, DEMAND, True, 10, 80, 100, LANDED),
        (0, 2, 1, STREAMED, False, 10, 100, -1, UNFINISHED),
    ]
    assert ran(result) == [(0, STAGE, 20, 25), (0, STAGE, 60, 65), (0, STAGE, 100, 105)]
    assert lines(result, "visits", "hits", "late", "misses") == [(0, 1, 0), (0, 0, 1), (0, 0, 1)]
    assert waits(result) == [(0, 10, 0, 0), (25, 0, 0, 0), (25, 0, 0, 0)]
    totals = result["totals"]
    assert (totals["slots_late"], totals["streamed"], totals["landed_stream"], totals["landed_demand"]) == (1, 2, 3, 2)
    assert totals["busy_ns_by_cause"] == [40, 0, 0, 0, 65]  # the last one has run for 5


def test_a_layer_ahead_that_is_in_time(run: Run) -> None:
    # A copy takes 5: both of layer 0 are there at 10, of layer 1 at 20, of layer 2 (joined at 10) at 30. All hits.
    result = run(ring_of_two_ahead(5))
    assert lines(result, "visits", "routed_ns", "hits", "end_ns") == [(10, 1, 15), (25, 1, 30), (40, 1, 45)]
    assert [row[1] for row in ran(result)] == [STAGE] * 3 and result["answers"]["event"] == []
    assert result["totals"]["slots_hit"] == 3 and result["totals"]["landed_stream"] == 6


def left_over(dense: int) -> Plan:
    costs = {"dense": dense}
    return case(top1(0, 2), 3, [0], [], rule("stream"), whole_layer=True, run=[20, 40, 60], costs=costs)


def test_the_next_visit_of_the_layer_takes_over_what_is_left(run: Run) -> None:
    # Step 0: copies of 0, 1, 2; 0 lands at 30, runs to 35, the visit ends. Step 1 is routed at 45: 1 is under way and
    # now stays till the end of the visit, 2 is queued and keeps its place, 0 joins behind it. 2: from 50 to 70, runs
    # to 75. 0 is under way when the run ends.
    result = run(left_over(10))
    assert lines(result, "transfers", "visit", "expert", "cause", "promoted", "landed_ns", "outcome") == [
        (0, 0, DEMAND, False, 30, LANDED),
        (0, 1, DEMAND, False, 50, LANDED),
        (0, 2, DEMAND, False, 70, LANDED),
        (1, 0, DEMAND, False, -1, UNFINISHED),
    ]
    assert ran(result) == [(0, STAGE, 30, 35), (2, STAGE, 70, 75)]
    assert answers(result) == [(0, 0, STREAM), (1, 2, STREAM)]
    assert waits(result) == [(20, 0, 0, 0), (25, 0, 0, 0)]


def test_what_lands_between_two_visits_of_its_layer_is_gone(run: Run) -> None:
    # The dense part takes 100: 0 lands at 120, runs to 125; 1 lands at 140, 2 at 160, for nobody. Step 1 is routed at
    # 225 and copies all three again, 2 last: lands at 285, runs to 290.
    result = run(left_over(100))
    assert lines(result, "transfers", "visit", "expert", "landed_ns") == [
        (0, 0, 120), (0, 1, 140), (0, 2, 160), (1, 0, 245), (1, 1, 265), (1, 2, 285),
    ]  # fmt: skip
    assert ran(result)[1] == (2, STAGE, 285, 290)


def static_with_a_free_slot(first: int) -> Plan:
    ahead = predicted((2, 1), {(1, 1, 0): [1]})
    return case(top1(first, 1), 2, [2], [0], "fetch", static=True, prefetch=ahead)


def test_static_streams(run: Run) -> None:
    # One slot is free and stays so: 1 is copied twice. In step 0 it is queued as a copy: no prefetch joins.
    result = run(static_with_a_free_slot(1))
    assert [row[2] for row in answers(result)] == [STREAM, STREAM]
    assert [row[1] for row in ran(result)] == [STAGE, STAGE]
    assert result["totals"]["residents"] == [0] and result["transfers"]["cause"] == [DEMAND, DEMAND]


def test_a_prefetch_under_static_is_rejected(run: Run) -> None:
    # Step 0 wants 0; the prefetch of 1 for step 1 joins at 10 and is rejected when its turn comes, at once.
    result = run(static_with_a_free_slot(0))
    assert lines(result, "transfers", "cause", "place", "committed_ns", "landed_ns", "outcome") == [
        (PREFETCH, SLOT, -1, -1, REJECTED),
        (DEMAND, STAGE, 25, 125, LANDED),
    ]


def one_layer_without_slots() -> Plan:
    return case([[[1], [1]]], 2, [0, 1], [2], "fetch")


def test_fetch_in_a_layer_without_slots(run: Run) -> None:
    # Layer 0 has none: 1 is streamed, to 110, runs to 115. Layer 1 has one: routed at 125, 1 takes the place of 0.
    result = run(one_layer_without_slots())
    assert [row[2] for row in answers(result)] == [STREAM, FETCH]
    assert ran(result) == [(1, STAGE, 110, 115), (1, SLOT, 225, 230)]
    assert lines(result, "transfers", "place", "victim") == [(STAGE, -1), (SLOT, 2)]
    assert (result["totals"]["streamed"], result["totals"]["fetched"]) == (1, 1)
    assert result["totals"]["residents"] == [3]


# --- bulk rules


def bulk_at_two_rows() -> Plan:
    steps = [[0], [1, 2], [3, 4, 5]]
    return case(top1(*[1] * 6), 2, [1], [0], "cpu", bulk=rule("stream"), bulk_rows=2, steps=steps, cpu=20)


def test_the_bulk_rule_begins_at_exactly_its_rows(run: Run) -> None:
    result = run(bulk_at_two_rows())
    assert [row[2] for row in answers(result)] == [CPU] + [STREAM] * 5
    assert lines(result, "executions", "place", "tokens") == [(HOST, 1), (STAGE, 2), (STAGE, 3)]


def bulk_touch(touch: bool) -> Plan:
    # Slots for 0 and 1, 1 the more recent. A bulk step of two rows runs 0; then 2 is fetched.
    return case(
        top1(0, 0, 2), 3, [2], [0, 1], "fetch", bulk=named(MISS["cpu"], ()), bulk_rows=2, steps=[[0, 1], [2]],
        bulk_touch=touch,
    )  # fmt: skip


@pytest.mark.parametrize(("touch", "victim"), [(True, 1), (False, 0)])
def test_whether_a_bulk_visit_touches(run: Run, touch: bool, victim: int) -> None:
    assert run(bulk_touch(touch))["transfers"]["victim"] == [victim]


# --- remote


def remote_after_a_ready_one() -> Plan:
    return case([[[1, 0]]], 2, [1], [0], rule("remote"))


def test_remote_after_what_is_ready(run: Run) -> None:
    # 1 comes first, but 0 is ready: it runs from 10 to 15. 1 then, on GPU and link together, for max(5, 100).
    result = run(remote_after_a_ready_one())
    assert ran(result) == [(0, SLOT, 10, 15), (1, FROM_AFAR, 15, 115)]
    columns = ("queued_ns", "committed_ns", "started_ns", "landed_ns", "place", "cause", "run", "victim")
    assert lines(result, "transfers", *columns) == [(10, 15, 15, 115, FROM_AFAR, DEMAND, 0, -1)]
    assert waits(result) == [(0, 0, 0, 0)]
    totals = result["totals"]
    assert (totals["experts_ns"], totals["link_busy_ns"], totals["remote"], totals["residents"]) == (105, 100, 1, [0])


def remote_in_two_layers(expert: int) -> Plan:
    costs = {"expert": [0, expert], "gap": 3, "group_ns": 2}
    return case([[[0], [0]]], 2, [1, 1], [1, 3], rule("remote"), costs=costs, run=[40, 80])


@pytest.mark.parametrize(("expert", "lasts"), [(5, 40), (60, 60)])
def test_how_long_a_remote_takes(run: Run, expert: int, lasts: int) -> None:
    # max(expert, 40), without gap and group set-up; the link counts as busy all the time. Then 10 of the next layer.
    result = run(remote_in_two_layers(expert))
    assert ran(result) == [(0, FROM_AFAR, 10, 10 + lasts), (0, FROM_AFAR, 20 + lasts, 20 + 2 * lasts)]
    assert result["totals"]["link_busy_ns"] == result["totals"]["experts_ns"] == 2 * lasts


def remote_and_prefetch() -> Plan:
    ahead = predicted((1, 2), {(1, 0, 1): [0]})
    return case([[[0], [1]]], 2, [1, 1], [1, 3], rule("remote"), prefetch=ahead, run=[40, 80])


def test_while_a_remote_waits_only_demand_is_committed(run: Run) -> None:
    # Layer 0: remote from 10 to 50, committed first; the prefetch of 0 for layer 1 is committed behind it, once the
    # link is free: at 50, to 90. Layer 1 (routed at 60) wants its 1, whose slot that prefetch took: it waits for the
    # link, 30, and is read from 90 to 130.
    result = run(remote_and_prefetch())
    assert lines(result, "transfers", "place", "committed_ns", "landed_ns", "victim") == [
        (FROM_AFAR, 10, 50, -1), (SLOT, 50, 90, 3), (FROM_AFAR, 90, 130, -1),
    ]  # fmt: skip
    assert waits(result) == [(0, 0, 0, 0), (30, 0, 0, 0)]


# --- cpu-admit


def no_victim() -> Plan:
    return case([[[0, 1]]], 2, [1], [0], cpu_admit(replace_after=1))


def test_an_admission_that_finds_no_victim(run: Run) -> None:
    # 1 is computed on the host, 10 to 30, and may be admitted at its first miss; but 0 is held. Rejected at once.
    result = run(no_victim())
    assert answers(result) == [(0, 1, CPU)]
    assert lines(result, "transfers", "cause", "queued_ns", "committed_ns", "outcome") == [
        (ADMISSION, 10, -1, REJECTED)
    ]
    assert ran(result) == [(0, SLOT, 10, 15), (1, HOST, 10, 30)]
    assert waits(result) == [(0, 0, 0, 15)]
    totals = result["totals"]
    assert (totals["admission_rejected"], totals["admitted"], totals["residents"]) == (1, 0, [0])


def admitted_at_the_second_miss() -> Plan:
    return case(top1(1, 1, 1, 1, 1), 2, [2], [0], cpu_admit(admit_after=2, replace_after=9), run=[30, 60])


def test_an_admission_is_not_waited_for(run: Run) -> None:
    # Steps take 10 + 20 on the host. The first miss (10) is not enough; the second (40) is: copied from 40 to 70. At
    # 70 the third is routed, just behind the landing: a hit.
    result = run(admitted_at_the_second_miss())
    assert [row[2] for row in answers(result)] == [CPU, CPU]
    assert lines(result, "transfers", "queued_ns", "landed_ns", "victim") == [(40, 70, -1)]
    assert lines(result, "visits", "routed_ns", "hits", "misses")[:3] == [(10, 0, 1), (40, 0, 1), (70, 1, 0)]
    assert (result["totals"]["admitted"], result["totals"]["landed_admission"]) == (1, 1)
    assert result["totals"]["admission_replaced"] == 0 and result["totals"]["busy_ns_by_cause"] == [0, 0, 0, 30, 0]


def on_its_way() -> Plan:
    return case(top1(1, 1), 2, [2], [0], cpu_admit(), run=[100, 200])


def test_an_expert_in_flight_as_admission_is_a_miss(run: Run) -> None:
    # Under way from 10 to 110; the step routed at 40 computes it on the host again and ends at 60.
    result = run(on_its_way())
    assert lines(result, "visits", "late", "misses", "end_ns") == [(0, 1, 30), (0, 1, 60)]
    assert lines(result, "transfers", "outcome", "started_ns") == [(UNFINISHED, 10)]


def counts_from_nothing() -> Plan:
    # One slot, its resident 0 of no use to anybody; replaced at the second miss.
    return case(top1(1, 1, 2, 1, 2), 3, [1], [0], cpu_admit(replace_after=2), run=[5, 10, 15])


def test_a_landing_sets_the_count_to_nothing(run: Run) -> None:
    # Misses of 1: one (no free slot: 1 < 2), two: admitted in the place of 0. Then 2: one. 1 is a hit. 2: two, in the
    # place of 1.
    result = run(counts_from_nothing())
    assert lines(result, "transfers", "visit", "expert", "victim") == [(1, 1, 0), (4, 2, 1)]
    # And once 1 has gone its next miss is a first one: nothing more is admitted.
    later = run(replace(counts_from_nothing(), **routed_to(1, 1, 2, 1, 2, 1, 0)))
    assert lines(later, "transfers", "visit", "expert", "victim") == [(1, 1, 0), (4, 2, 1)]
    assert later["totals"]["admission_replaced"] == 2


def routed_to(*wanted: int) -> dict[str, Any]:
    """The fields of a plan of one token a step that wants these."""
    plan = case(top1(*wanted), 3, [1], [0], "fetch")
    shapes = (plan.experts, plan.step_offset, plan.step_row, plan.step_prefill, plan.costs, plan.on_miss)
    names = ("experts", "step_offset", "step_row", "step_prefill", "costs", "on_miss")
    made = dict(zip(names, shapes, strict=True))
    run_ns = np.array([[0, 5, 10, 15]] * 2)
    costs = replace(plan.costs, transfer_ns=run_ns[:, 1])
    assert plan.on_miss is not None
    return made | {"costs": costs, "on_miss": replace(plan.on_miss, run_ns=run_ns)}


def limits(**given: float) -> Plan:
    return case([[[1, 2, 3]], [[1, 2, 3]]], 4, [4], [0], cpu_admit(**given), run=[1000, 2000, 3000, 4000])


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        ({}, [(0, 1), (0, 2), (0, 3)]),
        ({"inserts": 1}, [(0, 1), (1, 2)]),  # one a visit: 1 first, then (1 is under way) 2
        ({"queue": 1}, [(0, 1), (1, 2)]),  # 1 waits when 2 would join; in the second visit it is under way
        ({"max_rows": 0}, []),
        ({"admit_after": 2}, [(1, 1), (1, 2), (1, 3)]),
    ],
)
def test_limits_of_admission(run: Run, given: dict[str, float], joined: list[tuple[int, int]]) -> None:
    assert lines(run(limits(**given)), "transfers", "visit", "expert") == joined


def promoted_by_a_bulk_visit() -> Plan:
    experts = [[[1, 2]], [[2, -1]], [[2, 1]]]
    bulk = {"bulk": named(MISS["fetch"], ()), "bulk_rows": 2, "steps": [[0], [1, 2]]}
    return case(experts, 3, [3], [0], cpu_admit(), cpu=10, **bulk)


def test_a_bulk_fetch_promotes_a_queued_admission(run: Run) -> None:
    # Step 0: 1 and 2 on the host (10 to 30); both join, 1 is under way from 10 to 110. Step 1 (bulk, routed at 40)
    # wants 2, queued: a miss, fetched, its admission a demand from then on, 110 to 210; and 1, in flight: late.
    result = run(promoted_by_a_bulk_visit())
    assert lines(result, "transfers", "visit", "expert", "cause", "promoted", "landed_ns") == [
        (0, 1, ADMISSION, False, 110), (0, 2, DEMAND, True, 210),
    ]  # fmt: skip
    assert lines(result, "visits", "late", "misses") == [(0, 2), (1, 1)]
    assert answers(result)[2:] == [(1, 2, FETCH), (1, 2, FETCH)]
    # Late until 110, then 1 runs to 115 and 95 more for 2.
    assert waits(result)[1] == (95, 70, 0, 0)
    totals = result["totals"]
    assert (totals["admitted"], totals["landed_demand"], totals["landed_admission"]) == (1, 1, 1)


def with_margin(margin: float) -> Plan:
    return case(
        top1(0, 1, 1, 1, 1), 2, [1], [0], cpu_admit(replace_after=1, margin=margin), eviction="lfu", run=[5, 10]
    )


@pytest.mark.parametrize(("margin", "replaced_at"), [(0, 1), (1, 2), (2, 3), (2.5, 3), (3, 4)])
def test_a_victim_is_worth_less_by_the_margin(run: Run, margin: float, replaced_at: int) -> None:
    # Step 0 uses 0 once; then 1 is wanted, its uses (each at its routed instant) 1, 2, 3, 4. A victim with 1 use goes
    # when 1 x margin < these: without a margin at once, at 1 when there are 2, at 2 or 2.5 when 3, at 3 when 4.
    result = run(with_margin(margin))
    assert lines(result, "transfers", "visit", "victim", "outcome") == [
        *((visit, -1, REJECTED) for visit in range(1, replaced_at)), (replaced_at, 0, LANDED),
    ]  # fmt: skip


def with_spare(spare: int) -> Plan:
    return case(top1(0, 1, 1, 1), 2, [1], [0], cpu_admit(replace_after=1, spare=spare), run=[5, 10])


@pytest.mark.parametrize(("spare", "replaced_at"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_who_ran_lately_is_spared(run: Run, spare: int, replaced_at: int) -> None:
    # 0 ran in visit 0 of its layer. In visit v, the first of the last n, it is spared while v - 0 < n.
    result = run(with_spare(spare))
    assert result["transfers"]["visit"] == list(range(1, replaced_at + 1))
    assert result["transfers"]["victim"] == [-1] * (replaced_at - 1) + [0]


# --- split


def split_in_two(by: str, **given: Any) -> Plan:
    """Two misses of one token each, 2 before 1; a transfer takes 20."""
    table = np.array(given.pop("table", [0]), np.int64)
    keep, cpu = given.pop("keep", 0), given.pop("cpu", 20)
    ways = split(by=SPLITS.index(by), keep=keep, least=given.pop("least", 0))
    experts = given.pop("experts", [[[2, 1]]])
    return case(experts, 3, [1], [0], ways, run=[20, 40, 60], cpu=cpu, table=table, **given)


@pytest.mark.parametrize(
    ("given", "over_link"),
    [
        ({}, [2]),  # cost 40, 20, 40
        ({"least": 2}, [2, 1]),
        ({"cpu": 10}, []),  # 20, 20, 40: of equal costs the least q
        ({"cpu": 40}, [2]),  # 80, 40, 40: of equal costs the least q: one, and 2 is first
        ({"cpu": 41}, [2, 1]),  # 82, 41, 40
        ({"cpu": 10, "cpu_visit_ns": 1}, [2]),  # 21, 20, 40
    ],
)
def test_a_split_by_share(run: Run, given: dict[str, Any], over_link: list[int]) -> None:
    result = run(split_in_two("share", **given))
    assert [row[1] for row in answers(result) if row[2] == STREAM] == over_link
    assert result["transfers"]["expert"] == over_link


@pytest.mark.parametrize(
    ("experts", "over_link"),
    [
        ([[[2, 1]]], [2]),  # of equal tokens the first to appear
        ([[[2, 1]], [[1, -1]]], [1]),  # the most tokens
        ([[[1, 2]]], [1]),
    ],
)
def test_the_order_of_a_split_at_a_tie(run: Run, experts: list[Any], over_link: list[int]) -> None:
    steps = [list(range(len(experts)))]
    result = run(split_in_two("table", experts=experts, steps=steps, table=[0, 0, 1]))
    assert sorted({row[1] for row in answers(result) if row[2] == STREAM}) == over_link


@pytest.mark.parametrize(
    ("cpu", "over_link"),
    [
        # First the link would end at max(0 + 20, 0) + 5 = 25.
        (24, [2]),  # CPU 24 < 25: 1, the last, to the CPU; then link 25 < 48
        (25, [2]),  # a tie: CPU; then 25 < 50
        (26, [2]),  # 25 < 26: 2 by the link; then link 45, CPU 26
        (12, []),  # CPU 12 < 25, then 24 < 25
        (46, [2, 1]),  # link 25, then link 40 + 5 = 45 < 46
    ],
)
def test_a_split_by_makespan(run: Run, cpu: int, over_link: list[int]) -> None:
    result = run(split_in_two("makespan", cpu=cpu))
    assert [row[1] for row in answers(result) if row[2] == STREAM] == over_link


def test_a_tie_of_a_makespan_goes_to_the_host(run: Run) -> None:
    # One miss: by the link it would end at max(0 + 20, 0) + 5 = 25, by the host at 25.
    result = run(split_in_two("makespan", experts=[[[1, -1]]], cpu=25))
    assert answers(result) == [(0, 1, CPU)]


@pytest.mark.parametrize(("cpu", "count"), [(80, 0), (81, 1)])
def test_makespan_counts_the_hits(run: Run, cpu: int, count: int) -> None:
    # The GPU is busy with three hits for 60; by the link 3 would end at max(0 + 20, 60) + 20 = 80.
    ways = {"run": [20, 40, 60, 80], "costs": {"expert": [0, 20]}}
    plan = case([[[0, 1, 2, 3]]], 4, [3], [0, 1, 2], split(by=1, keep=0), cpu=cpu, **ways)
    assert len(run(plan)["transfers"]["event"]) == count


@pytest.mark.parametrize(
    ("table", "count"), [([0], 0), ([1], 1), ([9], 2), ([0, 0, 1], 1), ([0, 2], 2), ([0, 0, 0, 5], 0)]
)
def test_a_split_by_table(run: Run, table: list[int], count: int) -> None:
    # Of two misses: entry 2, or the last; never more than two.
    assert len(run(split_in_two("table", table=table))["transfers"]["event"]) == count


def test_what_a_split_keeps(run: Run) -> None:
    # 2 is fetched in the place of 0; the CPU takes 1 at the busy figure though nothing was under way.
    costs = {"cpu_expert": [[20, 20], [30, 30]]}
    result = run(split_in_two("table", table=[1], keep=1, costs=costs))
    assert [row[1:] for row in answers(result)] == [(2, FETCH), (1, CPU)]
    assert lines(result, "transfers", "place", "victim") == [(SLOT, 0)]
    assert ran(result) == [(2, SLOT, 30, 35), (1, HOST, 10, 40)]
    # With nobody over the link: the idle figure.
    result = run(split_in_two("table", table=[0], keep=1, costs=costs))
    assert ran(result) == [(2, HOST, 10, 30), (1, HOST, 30, 50)]


# --- work on the host


def not_beside(beside: bool) -> Plan:
    return case([[[0, 1]]], 2, [1], [0], "cpu", beside=beside, cpu=40, cpu_visit_ns=3)


def test_the_host_first(run: Run) -> None:
    # 3 for the visit, 40 for the expert: to 53. Then 0 runs to 58. Beside: it runs at once, and 38 are left to wait.
    result = run(not_beside(False))
    assert ran(result) == [(0, SLOT, 53, 58), (1, HOST, 13, 53)]
    assert waits(result) == [(0, 0, 0, 43)] and result["totals"]["host_ns"] == 43
    result = run(not_beside(True))
    assert ran(result) == [(0, SLOT, 10, 15), (1, HOST, 13, 53)]
    assert waits(result) == [(0, 0, 0, 38)]


def not_beside_and_serial() -> Plan:
    ways = {"table": np.array([1]), "beside": False, "serial": True}
    return case([[[2, 1, 0]]], 3, [1], [0], split(by=2, keep=0), **ways)


def test_the_host_first_then_the_copies(run: Run) -> None:
    # The host is done with 1 at 30, the copy of 2 lands at 110: 20 of cpu_wait, 80 of stall; then 0 runs, then 2.
    result = run(not_beside_and_serial())
    assert waits(result) == [(80, 0, 0, 20)]
    assert ran(result) == [(0, SLOT, 110, 115), (2, STAGE, 115, 120), (1, HOST, 10, 30)]


def deferred_into_the_next_layer(wants_next: list[int]) -> Plan:
    weights = np.array([[[0.7, 0.3], [0.5, 0.5]]], np.float32)
    return case([[[1, 2], wants_next]], 3, [1, 1], [0, 3], "cpu", defer=1, weights=weights)


def test_an_expert_deferred_into_the_next_layer(run: Run) -> None:
    # Layer 0 (routed at 10): 1 on the host to 30, where the layer ends; 2, of less weight, from 30 to 50. Layer 1 is
    # routed at 40; its host work begins at 50: 1 to 70, 2 to 90 (nothing is deferred in the last layer).
    result = run(deferred_into_the_next_layer([1, 2]))
    assert lines(result, "executions", "visit", "expert", "place", "begin_ns", "end_ns") == [
        (0, 1, HOST, 10, 30), (0, 2, DEFERRED, 30, 50), (1, 1, HOST, 50, 70), (1, 2, HOST, 70, 90),
    ]  # fmt: skip
    assert lines(result, "visits", "routed_ns", "end_ns", "cpu_wait_ns") == [(10, 30, 20), (40, 90, 50)]
    # A layer that computes nothing on the host ends no earlier than that either: 0 runs from 40 to 45, then 5.
    result = run(deferred_into_the_next_layer([0, -1]))
    assert lines(result, "visits", "routed_ns", "end_ns", "cpu_wait_ns") == [(10, 30, 20), (40, 50, 5)]
    assert result["totals"]["cpu"] == 2 and result["totals"]["host_ns"] == 40


def two_tokens_defer(second: list[float]) -> Plan:
    weights = np.array([[[0.7, 0.3]] * 2, [second] * 2], np.float32)
    experts = [[[1, 2], [0, -1]]] * 2
    return case(experts, 3, [1, 1], [0, 3], "cpu", defer=1, weights=weights, steps=[[0, 1]], cpu_visit_ns=4)


def test_only_who_is_deferred_by_every_token_is(run: Run) -> None:
    # Token 0 defers 2. If token 1 does, too, 2 waits; if it defers 1, both run at once; of equal weights the later.
    assert [row[1] for row in ran(run(two_tokens_defer([0.6, 0.4])))[:2]] == [HOST, DEFERRED]
    assert [row[1] for row in ran(run(two_tokens_defer([0.4, 0.6])))[:2]] == [HOST, HOST]
    assert ran(run(two_tokens_defer([0.5, 0.5])))[:2] == [(1, HOST, 14, 34), (2, DEFERRED, 34, 54)]


# --- memory is shared


def slowed_in_the_middle(*second: int) -> Plan:
    """A prefetch meets the host's work in layer 1 of step 0, and perhaps in layer 0 of step 1, which wants `second`."""
    ahead = predicted((5, 2), {(1, 0, 1): [1]})
    experts = [[[0], [0]], [[*second], [-1]], *[[[-1], [-1]]] * 3]
    return case(experts, 2, [1, 1], [0], "cpu", link_share=(1, 2), cpu=40, prefetch=ahead)


def test_a_transfer_slowed_in_the_middle(run: Run) -> None:
    # Layer 0 hits, to 15; the prefetch of 1 for layer 1 is under way from 10 to 110. Layer 1 is routed at 25 and
    # computes 0 on the host, to 65: of the 85 that are left 20 pass in these 40, 65 more from 65 on: 130.
    result = run(slowed_in_the_middle(-1))
    assert lines(result, "transfers", "started_ns", "landed_ns") == [(10, 130)]
    assert result["totals"]["busy_ns_by_cause"] == [0, 120, 0, 0, 0]


def test_a_transfer_that_meets_a_second_host_phase(run: Run) -> None:
    # As above until 75, when layer 0 of step 1 is routed and computes 1 on the host, to 115. Of the 55 that are left
    # 20 pass; 35 more from 115 on: 150.
    result = run(slowed_in_the_middle(1))
    assert lines(result, "transfers", "started_ns", "landed_ns") == [(10, 150)]


@pytest.mark.parametrize(
    ("cpu", "transfer", "share", "landed"),
    [
        (40, 100, (1, 2), 130),  # 40 at half: 20 are done; 80 more from 50
        (40, 20, (1, 2), 50),  # 20 / .5 = 40: just done
        (40, 21, (1, 2), 51),  # 42 > 40: 20 done, 1 more from 50
        (40, 10, (1, 3), 40),  # 30
        (40, 11, (2, 3), 27),  # 16.5, rounded up: 17
        (40, 30, (2, 3), 54),  # 45 > 40: floor(26.67) = 26 done, 4 more from 50
        (40, 100, (1, 1), 110),
        (0, 100, (1, 2), 110),
    ],
)
def test_a_transfer_beside_host_work(run: Run, cpu: int, transfer: int, share: tuple[int, int], landed: int) -> None:
    # 1 and 2 miss at 10: 1 is fetched, 2 computed by the host (to 10 + cpu).
    plan = case([[[1, 2]]], 3, [1], [0], split(by=2, keep=1), table=np.array([1]), link_share=share, cpu=cpu,
                run=[transfer, 2 * transfer, 3 * transfer])  # fmt: skip
    result = run(plan)
    assert lines(result, "transfers", "started_ns", "landed_ns") == [(10, landed)]
    assert result["totals"]["link_busy_ns"] == landed - 10


def two_in_a_row() -> Plan:
    costs = {"depth": 2, "gap": 4, "transfer": [20, 10]}
    plan = case(
        [[[1, 2, 3]]], 4, [2], [], split(by=2, keep=1), table=np.array([2]), link_share=(1, 2), cpu=60, costs=costs
    )
    assert plan.on_miss is not None
    run_ns = np.array([[0, 20, 40, 60, 80], [0, 10, 20, 30, 40]])
    return replace(plan, on_miss=replace(plan.on_miss, run_ns=run_ns))


def test_gap_and_follow_on_beside_host_work(run: Run) -> None:
    # The host is at work until 70. 1: 4 + 20 at half the rate, 10 to 58 (started after the gap, at 14). 2 follows at
    # 58: 10 at full rate, 12 are left: 6 done by 70, 4 more: 74.
    result = run(two_in_a_row())
    assert lines(result, "transfers", "committed_ns", "started_ns", "landed_ns") == [(10, 14, 58), (10, 58, 74)]
    assert result["totals"]["link_busy_ns"] == (58 - 14) + (74 - 58)


# --- all of it


@pytest.mark.parametrize("seed", range(60))
def test_two_runs_are_alike(run: Run, seed: int) -> None:
    plan = plan_of(seed)
    assert run(plan) == run(plan)
