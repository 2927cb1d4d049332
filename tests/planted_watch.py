"""The core against the reference and against the laws, over random plans: what catches a fault planted in sim/core.

Not collected with the other tests, which look further (test_agreement, test_laws): here the first plan that shows a
fault is enough, and the core runs as plain Python.
"""

from dataclasses import replace

import pytest

from sim.machines import compiled
from tests import laws_on_miss
from tests.eviction_plans import EVERY, plan_of_eviction
from tests.groups import as_groups
from tests.laws import check_all
from tests.on_miss_plans import plan_in_chunks_of, plan_of
from tests.plans import any_plan, random_lossy_plan
from tests.reference import simulate
from tests.test_agreement import difference

PLANS = 150  # a fault must show within so many; all of tests/planted.py do within 130
IN_CHUNKS = range(200, 200 + PLANS)  # one of these has a serial visit that waits for a copy nobody wants


def test_equals_the_reference() -> None:
    for seed in range(PLANS):
        plan = random_lossy_plan(seed // 2) if seed % 2 == 0 else any_plan(seed)
        assert difference(simulate(plan), compiled.run(plan, full=True)) is None, seed


def test_equals_the_reference_with_low_precision_copies() -> None:
    for seed in range(800):
        plan = random_lossy_plan(seed)
        if plan.low is not None:
            assert difference(simulate(plan), compiled.run(plan, full=True)) is None, seed


@pytest.mark.parametrize("name", EVERY)
def test_equals_the_reference_by_eviction(name: str) -> None:
    for seed in range(60):
        plan = plan_of_eviction(seed, name)
        assert difference(simulate(plan), compiled.run(plan, full=True)) is None, seed


def test_keeps_the_laws() -> None:
    for seed in range(PLANS):
        plan = any_plan(seed)
        check_all(plan, as_groups(plan, compiled.run(plan, full=True)))


def test_equals_the_brute_force_by_rules() -> None:
    for seed in range(PLANS):
        plan = plan_of(seed)
        assert difference(simulate(plan), compiled.run(plan, full=True)) is None, seed


def test_keeps_the_laws_by_rules() -> None:
    for seed in range(PLANS):
        plan = replace(plan_of(seed), rerank=None)  # the laws read what is wanted from the trace
        laws_on_miss.check_all(plan, as_groups(plan, compiled.run(plan, full=True)))


def test_equals_the_brute_force_in_chunks() -> None:
    for seed in IN_CHUNKS:
        plan = plan_in_chunks_of(seed)
        assert difference(simulate(plan), compiled.run(plan, full=True)) is None, seed


def test_keeps_the_laws_in_chunks() -> None:
    for seed in IN_CHUNKS:
        plan = replace(plan_in_chunks_of(seed), rerank=None)
        laws_on_miss.check_all(plan, as_groups(plan, compiled.run(plan, full=True)))
