"""The laws of what engines do on a miss, over random plans and every machine in RUNS; and that each can be broken."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from sim.core.plan import Plan
from tests import laws_on_miss, reference, reference_on_miss
from tests.groups import MACHINES, run_groups
from tests.on_miss_plans import plan_of
from tests.reference import ADMISSION, SLOT, Machine, Transfer, simulate
from tests.reference_on_miss import Admissions, Stages
from tests.test_reference import Run

RUNS: dict[str, Run] = {"reference": simulate, **{name: partial(run_groups, name) for name in MACHINES}}
SEEDS = 300
WITHIN = 300  # plans in which a fault must break a law

Patch = pytest.MonkeyPatch


@pytest.fixture(params=sorted(RUNS))
def run(request: pytest.FixtureRequest) -> Run:
    return RUNS[request.param]


def lawful(seed: int) -> Plan:
    """The laws read what is wanted from the trace."""
    return replace(plan_of(seed), rerank=None)


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS // 5))
def test_laws_1_to_4(run: Run, first: int) -> None:
    for seed in range(first, first + SEEDS // 5):
        plan = lawful(seed)
        laws_on_miss.check_all(plan, run(plan))


def test_law_5(run: Run) -> None:
    for seed in range(60):
        laws_on_miss.check_determinism(run, plan_of(seed), plan_of(seed + 1))


def test_law_6(run: Run) -> None:
    for seed in range(100):
        laws_on_miss.check_limits(run, lawful(seed))


# A machine with a fault is the reference with one method replaced.


def waits_for_admissions(patch: Patch) -> None:
    found = Machine.classify_one

    def classify_one(self: Machine, expert: int) -> str:
        coming = [t for t in self.on_link() if t.expert == expert and t.row["cause"] == ADMISSION]
        self.visit.place |= {expert: SLOT} if coming else {}
        return "late" if coming else found(self, expert)

    patch.setattr(Machine, "classify_one", classify_one)


def frees_stages_early(patch: Patch) -> None:
    free = Stages.free
    patch.setattr(Stages, "free", lambda self: free(self) + 1)


def streams_evict(patch: Patch) -> None:
    claim = Machine.claim_for

    def claim_for(self: Machine, shipment: reference.Shipment) -> None:
        for transfer in shipment.transfers:
            if transfer.goes_to_stage() and self.cache.landed_at:
                self.evict_for(transfer, sorted(self.cache.landed_at)[:1])
        claim(self, shipment)

    patch.setattr(Machine, "claim_for", claim_for)


def never_slows_the_link(patch: Patch) -> None:
    patch.setattr(Machine, "slowed", lambda self, full_ns, start_ns: full_ns)


def slows_only_what_starts(patch: Patch) -> None:
    def slow_link(self: Machine, until_ns: int) -> None:
        self.host_until_ns = max(self.host_until_ns, until_ns)

    patch.setattr(Machine, "slow_link", slow_link)


class NeverReset(Counter[int]):
    def __setitem__(self, expert: int, count: int) -> None:
        super().__setitem__(expert, max(count, self[expert]))


def keeps_counts_at_landing(patch: Patch) -> None:
    init = Admissions.__init__

    def begin(self: Admissions, plan: Plan) -> None:
        init(self, plan)
        self.misses = NeverReset()

    patch.setattr(Admissions, "__init__", begin)


def splits_by_first_appearance(patch: Patch) -> None:
    split = reference_on_miss.over_the_link

    def over_the_link(plan: Plan, rule: Any, misses: list[int], tokens: Any, gpu_ns: int) -> list[int]:
        return misses[: len(split(plan, rule, misses, tokens, gpu_ns))]

    patch.setattr(reference_on_miss, "over_the_link", over_the_link)


def forgets_deferred_work(patch: Patch) -> None:
    start_cpu = Machine.start_cpu

    def start(self: Machine, on_cpu: list[list[tuple[int, int, float]]], busy: bool) -> None:
        self.deferred_until_ns = 0
        start_cpu(self, on_cpu, busy)

    patch.setattr(Machine, "start_cpu", start)


def holds_nothing_back(patch: Patch) -> None:
    patch.setattr(Machine, "is_held_back", lambda self: False)


def leaves_out_the_unwanted(patch: Patch) -> None:
    queue = Machine.queue_demands

    def queue_demands(self: Machine, answered: dict[int, set[str]], by_link: list[int]) -> None:
        if answered:
            queue(self, answered, by_link)

    patch.setattr(Machine, "queue_demands", queue_demands)


def reads_beside_transfers(patch: Patch) -> None:
    patch.setattr(Machine, "take_remote", _without_link(Machine.take_remote))


def _without_link(take: Callable[[Machine], bool]) -> Callable[[Machine], bool]:
    def take_remote(self: Machine) -> bool:
        link, self.link = self.link, []
        taken = take(self)
        self.link = self.link + link
        return taken

    return take_remote


def admits_without_limit(patch: Patch) -> None:
    patch.setattr(Admissions, "limit", lambda self, name: float("inf"))


def admits_at_any_count(patch: Patch) -> None:
    patch.setattr(Admissions, "is_candidate", lambda self, expert, free: True)


def replaces_at_any_count(patch: Patch) -> None:
    patch.setattr(Admissions, "may_replace", lambda self, expert: True)


def spares_nobody(patch: Patch) -> None:
    patch.setattr(Admissions, "spares", lambda self, expert, decided: False)


def bulk_visits_by_the_other_rule(patch: Patch) -> None:
    patch.setattr(reference, "rule_of", lambda plan, step: plan.miss)


def merges_whatever_is_queued(patch: Patch) -> None:
    def run_from(self: Machine, queue: list[Transfer]) -> list[Transfer]:
        copies = [transfer for transfer in queue if transfer.goes_to_stage()]
        return copies[: max(1, int(min(self.stages.free(), self.plan.n_experts)))]

    patch.setattr(Machine, "run_from", run_from)


def newcomers_under_static(patch: Patch) -> None:
    patch.setattr(reference.Cache, "victim", lambda self, newcomer, candidates, demanded: candidates[0])
    for module in (reference, reference_on_miss):
        patch.setattr(module, "takes_no_slot", lambda plan, layer: not plan.pooled and plan.slots[layer] == 0)


FAULTS = (
    waits_for_admissions, frees_stages_early, streams_evict, never_slows_the_link, slows_only_what_starts,
    keeps_counts_at_landing, splits_by_first_appearance, forgets_deferred_work, holds_nothing_back,
    leaves_out_the_unwanted, reads_beside_transfers, admits_without_limit, admits_at_any_count,
    replaces_at_any_count, spares_nobody, bulk_visits_by_the_other_rule, merges_whatever_is_queued,
    newcomers_under_static,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_breaks_a_law(fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    fault(monkeypatch)
    assert any(breaks_a_law(lawful(seed)) for seed in range(WITHIN))


def breaks_a_law(plan: Plan) -> bool:
    try:
        result = simulate(plan)
    except (RuntimeError, KeyError):  # a machine that contradicts itself has no record
        return False
    try:
        laws_on_miss.check_all(plan, result)
    except AssertionError:
        return True
    return False
