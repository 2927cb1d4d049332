"""The laws of the machine on random plans, for every policy that is registered and on both virtual machines.

Law 7 (agreement) is in test_agreement.py, law 10 in test_against_libcachesim.py, law 11 in
test_planted_faults.py; that zero bandwidth is refused (law 6) in test_catalog.py.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.core.jit import CACHE_DIR
from sim.core.plan import Plan
from sim.core.residency import move
from sim.core.state import LEGAL, STATES, IllegalTransition, new_state
from sim.machines.discrete import Machine
from sim.machines.record import RunRecord
from tests.captures import capture, capture_names, whole_trace
from tests.groups import MACHINES, as_groups, fingerprint, rising, run_groups
from tests.laws import check_all, moments
from tests.plans import EVICTIONS, MISSES, any_plan, plan, random_plan, with_resets
from tests.recount import check_counters
from tests.variants import (
    compute_ns,
    everything_resident,
    lossless,
    one_expert_a_visit,
    rerouted_after,
    with_eviction,
    with_slots,
    without_transfer_time,
)

ORACLES = {"belady"}
PLANS = some.integers(0, 2**32 - 1).map(any_plan)
ROOT = Path(__file__).resolve().parents[1]

machines = pytest.mark.parametrize("machine", sorted(MACHINES))
evictions = pytest.mark.parametrize("eviction", list(EVICTIONS))
some_plans = settings(max_examples=120)
few_plans = settings(max_examples=40)


def misses_of(plan: Plan) -> int:
    return int(MACHINES["compiled"].run(plan).layer["misses"].sum())


def test_the_random_plans_cover_every_policy_both_scopes_and_batches() -> None:
    drawn = [any_plan(seed) for seed in range(600)]
    assert {plan.eviction.name for plan in drawn} == set(EVICTIONS)
    assert {plan.miss.name for plan in drawn} == set(MISSES)
    assert {plan.pooled for plan in drawn} == {False, True}
    assert {plan.prefetch is None for plan in drawn} == {False, True}
    assert {plan.group for plan in drawn} == {0, 1, 2}
    assert max(np.diff(plan.step_offset).max() for plan in drawn) >= 4


# --- laws 1 to 4


@machines
@some_plans
@given(PLANS)
def test_conservation_capacity_causality_and_sums(machine: str, plan: Plan) -> None:
    check_all(plan, run_groups(machine, plan))


@evictions
@few_plans
@given(PLANS)
def test_the_same_under_each_eviction(eviction: str, plan: Plan) -> None:
    plan = with_eviction(plan, eviction)
    check_all(plan, run_groups("compiled", plan))


@machines
@some_plans
@given(PLANS, some.floats(0, 1, exclude_max=True))
def test_counters_are_what_the_record_says(machine: str, plan: Plan, warm: float) -> None:
    plan = replace(plan, warmup_steps=int(warm * len(plan.step_prefill)))
    check_counters(plan, MACHINES[machine].run(plan, full=True))


@machines
@few_plans
@given(PLANS, some.integers(0, 1000))
def test_both_hold_where_requests_begin_as_the_first_one_did(machine: str, plan: Plan, seed: int) -> None:
    plan = with_resets(plan, seed)
    check_all(plan, run_groups(machine, plan))
    check_counters(plan, MACHINES[machine].run(plan, full=True))


@machines
@some_plans
@given(PLANS)
def test_a_summary_is_the_full_record_without_its_detail(machine: str, plan: Plan) -> None:
    full, summary = MACHINES[machine].run(plan, full=True), MACHINES[machine].run(plan)
    assert summary.groups == {} and "event" not in summary.steps
    assert fingerprint(summary) == fingerprint(
        replace(full, groups={}, steps={name: full.steps[name] for name in summary.steps})
    )


@pytest.mark.parametrize("to", STATES)
@pytest.mark.parametrize("was", STATES)
def test_every_transition_is_legal_or_raises(was: str, to: str) -> None:
    legal = {
        ("absent", "queued"), ("absent", "demanded"), ("queued", "absent"), ("queued", "demanded"),
        ("queued", "committed"), ("demanded", "committed"), ("committed", "resident"), ("resident", "absent"),
    }  # fmt: skip
    before, after = STATES.index(was), STATES.index(to)
    assert bool(LEGAL[before, after]) == ((was, to) in legal)
    s = new_state(plan([[[0]]], 2, [1]))
    s.expert[1].state = before
    if (was, to) in legal:
        move(s, 1, after)
        assert s.expert[1].state == after
    else:
        with pytest.raises(IllegalTransition):
            move(s, 1, after)
        assert s.expert[1].state == before


def test_an_illegal_transition_names_itself() -> None:
    s = new_state(plan([[[0]]], 2, [1]))
    with pytest.raises(IllegalTransition) as raised:
        move(s, 1, STATES.index("resident"))
    assert str(raised.value) == "absent -> resident is not a legal transition"


# --- law 5: determinism


def arrays_of(value: Any) -> Iterator[np.ndarray]:
    """Every array in a plan."""
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from arrays_of(getattr(value, field.name))


@machines
@some_plans
@given(PLANS, PLANS)
def test_the_same_plan_gives_the_same_bytes_whatever_ran_before(machine: str, plan: Plan, other: Plan) -> None:
    run = MACHINES[machine].run
    given = [array.tobytes() for array in arrays_of(plan)]
    first = fingerprint(run(plan, full=True))
    run(other, full=True)
    assert fingerprint(run(plan, full=True)) == first
    assert [array.tobytes() for array in arrays_of(plan)] == given


@few_plans
@given(PLANS, PLANS)
def test_two_runs_side_by_side_do_not_know_of_each_other(one: Plan, two: Plan) -> None:
    alone = [fingerprint(MACHINES["simpy"].run(plan, full=True)) for plan in (one, two)]
    running = [Machine(plan, full=True) for plan in (one, two)]
    processes = [machine.env.process(machine.run()) for machine in running]
    while any(process.is_alive for process in processes):
        for machine, process in zip(running, processes, strict=True):
            if process.is_alive:
                machine.env.step()
    together = [RunRecord.of(machine.plan, machine.s, machine.log, machine.clock) for machine in running]
    assert [fingerprint(record) for record in together] == alone


def digest(seeds: range) -> str:
    """One hash over the records of some random plans on both machines."""
    out = hashlib.sha256()
    for seed in seeds:
        for name in sorted(MACHINES):
            out.update(fingerprint(MACHINES[name].run(random_plan(seed), full=True)))
    return out.hexdigest()


def test_another_process_gives_the_same_bytes() -> None:
    code = "from tests.test_laws import digest; print(digest(range(20)))"
    env = os.environ | {"PYTHONHASHSEED": "12345", "NUMBA_CACHE_DIR": str(CACHE_DIR.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(range(20))


# --- law 6: limits


@machines
@some_plans
@given(PLANS)
def test_with_everything_resident_time_is_compute(machine: str, plan: Plan) -> None:
    plan = everything_resident(plan)
    record = MACHINES[machine].run(plan, full=True)
    assert record.layer["misses"].sum() == record.layer["late"].sum() == 0
    assert record.counters["stall_ns"] == record.counters["cpu_wait_ns"] == record.counters["evictions"] == 0
    assert len(record.groups["transfers"]["event"]) == len(record.groups["answers"]["event"]) == 0
    assert record.steps["end_ns"][-1] == compute_ns(plan)


@machines
@some_plans
@given(PLANS)
def test_without_transfer_time_nothing_stalls(machine: str, plan: Plan) -> None:
    record = MACHINES[machine].run(without_transfer_time(plan))
    assert record.counters["stall_ns"] == record.counters["link_busy_ns"] == 0
    assert all(record.layer[f"stall_{cause}_ns"].sum() == 0 for cause in ("demand", "late", "held"))


# --- law 8: order


@some_plans
@given(some.integers(0, 2**32 - 1).map(one_expert_a_visit))
def test_no_policy_misses_less_than_belady(plan: Plan) -> None:
    least = misses_of(with_eviction(plan, "belady"))
    assert all(least <= misses_of(with_eviction(plan, name)) for name in EVICTIONS)


@some_plans
@given(PLANS.map(lossless))
def test_misses_of_lru_do_not_rise_with_slots(plan: Plan) -> None:
    most = plan.n_experts * (plan.experts.shape[1] if plan.pooled else 1)
    assert rising([-misses_of(with_slots(plan, slots)) for slots in range(1, most + 1)])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", capture_names())
def test_misses_of_lru_do_not_rise_with_slots_on_captures(name: str, batch: int) -> None:
    plan = whole_trace(capture(name), 1, batch)
    sizes = np.unique(np.linspace(1, plan.n_experts, 9).astype(int))
    assert rising([-misses_of(with_slots(plan, int(slots))) for slots in sizes])


# --- law 9: the oracle boundary


def decisions_until(plan: Plan, record: RunRecord, step: int) -> list[tuple[Any, ...]]:
    """What happened up to the end of a step, each with what was known of it then."""
    known = {
        "step": ("begin_ns", "end_ns"),
        "visit": (
            "routed_ns",
            "end_ns",
            "wanted",
            "hits",
            "late",
            "misses",
            "stall_demand_ns",
            "stall_late_ns",
        ),
        "answer": ("row", "slot", "answer", "stand_in", "gate"),
        "queued": ("visit", "queued_ns"),
        "committed": ("committed_ns", "cause", "promoted", "victim"),
        "landed": ("landed_ns", "started_ns"),
        "executed": ("tokens", "stand_in_tokens", "begin_ns", "end_ns", "group"),
        "computed": ("tokens", "begin_ns", "end_ns"),
    }
    result = as_groups(plan, record)
    until = moments(plan, result)[: result["steps"]["event"][step] + 1]
    return [(now.event, now.what, now.expert, *(now.row[name] for name in known.get(now.what, ()))) for now in until]


def decisions_changed(plan: Plan, step: int, seed: int) -> bool:
    other = rerouted_after(plan, step, seed)
    run = MACHINES["compiled"].run
    before, after = (decisions_until(p, run(p, full=True), step) for p in (plan, other))
    return before != after


@pytest.mark.parametrize("eviction", [name for name in EVICTIONS if name not in ORACLES])
@few_plans
@given(PLANS, some.floats(0, 1, exclude_max=True), some.integers(0, 100))
def test_what_comes_later_changes_no_earlier_decision(eviction: str, plan: Plan, at: float, seed: int) -> None:
    step = int(at * len(plan.step_prefill))
    assert not decisions_changed(with_eviction(plan, eviction), step, seed)


@pytest.mark.parametrize("oracle", sorted(ORACLES))
def test_an_oracle_does_see_what_comes_later(oracle: str) -> None:
    changed = 0
    for seed in range(100):
        plan = with_eviction(random_plan(seed), oracle)
        changed += decisions_changed(plan, (len(plan.step_prefill) - 1) // 2, seed)
    assert changed > 0
    # By hand: slots for 0 and 1; token 1 wants 2. If token 2 wants 0, 1 goes; if it wants 1, 0 goes.
    for later, victim in ((0, 1), (1, 0)):
        small = plan_of_top1(oracle, 0, 2, later)
        assert run_groups("compiled", small)["transfers"]["victim"][0] == victim


def plan_of_top1(eviction: str, *wanted: int) -> Plan:
    return plan([[[expert]] for expert in wanted], 3, [2], eviction=eviction)
