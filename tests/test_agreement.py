"""Law 7: the compiled and the simpy machine equal the brute-force reference, to the nanosecond and event by event."""

from typing import Any

import pytest

from sim.core.plan import Plan
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from tests.eviction_plans import plan_of_eviction
from tests.groups import totals_by_rules
from tests.on_miss_plans import plan_in_chunks_of, plan_of, plan_with_low_copies_of
from tests.plans import random_lossy_plan, random_plan, with_resets
from tests.reference import simulate
from tests.window_plans import window_plan

RENAMED = {
    "prefetched_used": "prefetch_used",
    "prefetched_late": "prefetch_late",
    "prefetched_wasted": "prefetch_wasted",
}
SEEDS = 2000  # of each of the two old kinds of plans, and as many plans of the new kind as of both
CHUNKS = 10


def difference(expected: dict[str, Any], record: RunRecord) -> tuple[Any, ...] | None:
    """The first group and column in which the reference and a record differ."""
    for name, group in (record.groups | {"steps": record.steps}).items():
        for column in expected[name]:
            left, right = list(map(int, expected[name][column])), group[column].tolist()
            if left != right:
                return name, column, left, right
    counters = record.counters | (totals_by_rules(record) if "link_transfers" in record.counters else {})
    for name, total in expected["totals"].items():
        name = RENAMED.get(name, name)
        if name == "weight_wanted" and not record.counters[name]:
            continue  # a run that fetches every miss does not look at weights
        if name.startswith("weight_"):
            total = pytest.approx(total, rel=1e-9, abs=1e-9)
        if name in counters and counters[name] != total:
            return "totals", name, total, counters[name]
    return None


def check(plan: Plan) -> tuple[Any, ...] | None:
    """Where a machine differs from the reference: its name, then what `difference` says."""
    expected = simulate(plan)
    for machine in (compiled, discrete):
        found = difference(expected, machine.run(plan, full=True))
        if found is not None:
            return machine.__name__, *found
    return None


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_machines_agree_with_the_reference(chunk: int) -> None:
    for seed in range(chunk * SEEDS // CHUNKS, (chunk + 1) * SEEDS // CHUNKS):
        assert check(random_plan(seed)) is None, seed
        assert check(random_lossy_plan(seed)) is None, seed


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_they_agree_on_every_eviction_and_how_it_counts(chunk: int) -> None:
    for seed in range(chunk * SEEDS // CHUNKS, (chunk + 1) * SEEDS // CHUNKS):
        assert check(plan_of_eviction(seed)) is None, seed


@pytest.mark.parametrize("chunk", range(2 * CHUNKS))
def test_they_agree_on_what_engines_do_on_a_miss(chunk: int) -> None:
    for seed in range(chunk * SEEDS // CHUNKS, (chunk + 1) * SEEDS // CHUNKS):
        assert check(plan_of(seed)) is None, seed


def test_they_agree_where_copies_of_low_precision_stand_beside_those_in_stages() -> None:
    for seed in range(2000):
        assert check(plan_with_low_copies_of(seed)) is None, seed


@pytest.mark.parametrize("chunk", range(2 * CHUNKS))
def test_they_agree_where_requests_begin_as_the_first_one_did(chunk: int) -> None:
    for seed in range(chunk * SEEDS // CHUNKS // 2, (chunk + 1) * SEEDS // CHUNKS // 2):
        for kind in (random_lossy_plan, plan_of_eviction, plan_of, plan_in_chunks_of, window_plan):
            assert check(with_resets(kind(seed), seed)) is None, (kind.__name__, seed)
