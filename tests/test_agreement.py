"""Law 7: the compiled and the simpy machine equal the brute-force reference, to the nanosecond and event by event."""

from typing import Any

import pytest

from sim.core.plan import Plan
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from tests.plans import random_lossy_plan, random_plan
from tests.reference import simulate

RENAMED = {
    "prefetched_used": "prefetch_used",
    "prefetched_late": "prefetch_late",
    "prefetched_wasted": "prefetch_wasted",
}
SEEDS = 1000
CHUNKS = 5


def difference(expected: dict[str, Any], record: RunRecord) -> tuple[Any, ...] | None:
    """The first group and column in which the reference and a record differ."""
    for name, group in (record.groups | {"steps": record.steps}).items():
        for column in expected[name]:
            left, right = list(map(int, expected[name][column])), group[column].tolist()
            if left != right:
                return name, column, left, right
    for name, total in expected["totals"].items():
        name = RENAMED.get(name, name)
        if name == "weight_wanted" and not record.counters[name]:
            continue  # a run that fetches every miss does not look at weights
        if name.startswith("weight_"):
            total = pytest.approx(total, rel=1e-9, abs=1e-9)
        if name in record.counters and record.counters[name] != total:
            return "totals", name, total, record.counters[name]
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
