"""The generator of plans with `on_miss` reaches everything that such a run can do, together and legally."""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sim.core.plan import ANSWERS, CAUSES, OUTCOMES, PLACES, SPLITS, Plan
from tests.groups import rows
from tests.on_miss_plans import BULK_RULES, NEW_RULES, plan_of
from tests.plans import EVICTIONS
from tests.reference import DEMAND, SLOT, STAGE, simulate
from tests.reference_on_miss import on_miss_of, rule_of

SEEDS = 400
TIMES = 20


def occurrences(plan: Plan) -> Counter[str]:
    """How often each thing that a run can do occurs in the reference's record of a plan."""
    result = simulate(plan)
    transfers, visits, layers = rows(result, "transfers"), rows(result, "visits"), plan.experts.shape[1]
    near = plan.prefetch is None or len(plan.prefetch.row) < layers  # no prefetch is for the visit's own layer
    found = Counter(f"answer {ANSWERS[row['answer']]}" for row in rows(result, "answers"))
    found += Counter(f"run from {PLACES[row['place']]}" for row in rows(result, "executions"))
    found += Counter(f"{CAUSES[row['cause']]} {OUTCOMES[row['outcome']]}" for row in transfers)
    found += Counter(f"to {PLACES[row['place']]}" for row in transfers if row["run"] >= 0)
    for name in ("admitted", "admission_replaced", "admission_rejected"):
        found[name] = result["totals"][name]
    merged = Counter(row["run"] for row in transfers if row["run"] >= 0)
    found["merged"] = sum(n > 1 for n in merged.values())
    for row in transfers:
        own = row["visit"] >= 0 and row["layer"] == row["visit"] % layers
        found["promoted copy"] += row["promoted"] and row["place"] == STAGE
        found["promoted admission"] += row["promoted"] and row["place"] == SLOT and own and near and _admits(plan)
        if row["landed_ns"] >= 0:
            landed, full = row["landed_ns"], int(on_miss_of(plan).run_ns[:, merged[row["run"]]].max())
            found["slowed"] += landed - row["started_ns"] > full and row["place"] != PLACES.index("remote")
            left = row["place"] == STAGE and row["cause"] == DEMAND and own
            found["left over"] += left and landed > visits[row["visit"]]["end_ns"]
    return found + waits(plan, result) + splits(plan, result)


def _admits(plan: Plan) -> bool:
    return plan.miss.name == "cpu-admit"


def waits(plan: Plan, result: dict[str, Any]) -> Counter[str]:
    """What held a visit up."""
    found: Counter[str] = Counter()
    streams = {row["visit"] for row in rows(result, "answers") if ANSWERS[row["answer"]] == "stream"}
    for number, row in enumerate(rows(result, "visits")):
        found["blocked stage"] += number in streams and row["stall_held_ns"] > 0
        found["late"] += row["stall_late_ns"] > 0
        found["serial"] += on_miss_of(plan).serial and number in streams and row["stall_demand_ns"] > 0
        found["not beside"] += not on_miss_of(plan).beside and row["cpu_wait_ns"] > 0
    return found


def splits(plan: Plan, result: dict[str, Any]) -> Counter[str]:
    """Visits whose misses were split in two, by the kind of split."""
    answers: dict[int, set[int]] = {}
    for row in rows(result, "answers"):
        answers.setdefault(row["visit"], set()).add(row["answer"])
    rules = {visit: rule_of(plan, visit // plan.experts.shape[1]) for visit in answers}
    both = [rules[visit] for visit, kinds in answers.items() if len(kinds) > 1 and rules[visit].name == "split"]
    return Counter(f"split by {SPLITS[int(rule.params[0])]}" for rule in both)


EXPECTED = {
    *(f"answer {name}" for name in ANSWERS if name != "low"),
    *(f"run from {name}" for name in PLACES),
    *(f"to {name}" for name in ("slot", "stage", "remote")),
    *(f"{cause} landed" for cause in CAUSES),
    *(f"{cause} rejected" for cause in ("prefetch", "background", "admission")),
    *(f"split by {name}" for name in SPLITS),
    "prefetch withdrawn", "admitted", "admission_replaced", "admission_rejected", "promoted copy", "promoted admission",
    "merged", "slowed", "left over", "blocked stage", "late", "serial", "not beside",
}  # fmt: skip


RARER = {f"{cause} unfinished" for cause in CAUSES}  # the run ends but once


def test_everything_occurs() -> None:
    found: Counter[str] = Counter()
    for seed in range(SEEDS):
        found += occurrences(plan_of(seed))
    assert {name: found[name] for name in EXPECTED if found[name] < TIMES} == {}
    assert {name: found[name] for name in RARER if found[name] < TIMES // 4} == {}
    assert set(found) == EXPECTED | RARER


def features(plan: Plan) -> set[str]:
    on = plan.on_miss
    assert on is not None
    no_slots = not plan.pooled and bool((plan.slots == 0).any())
    named = {
        "stages": on.stages > 0, "serial": on.serial, "merge_runs": on.merge_runs, "whole_layer": on.whole_layer,
        "ahead": on.ahead > 0, "cpu_visit_ns": on.cpu_visit_ns > 0, "not beside": not on.beside, "defer": on.defer > 0,
        "link_share": on.link_share[0] < on.link_share[1], "bulk_touch": on.bulk_touch, "no slots": no_slots,
        "pooled": plan.pooled, "static": plan.eviction.name == "static", "prefetch": plan.prefetch is not None,
        "deep": plan.costs.commit_depth > 1, "gap": plan.costs.commit_gap_ns > 0,
        "late counts": plan.late_counts_as_missing,
    }  # fmt: skip
    of_group = f"group {plan.group}"
    bulk = f"bulk {on.bulk.name}" if on.bulk is not None and on.step_bulk.any() else "no bulk"
    return {name for name, there in named.items() if there} | {of_group, bulk, f"miss {plan.miss.name}"}


def exclusive(pair: tuple[str, str]) -> bool:
    """Of two features of which a plan has one."""
    one, two = pair
    lossy_or_not = "late counts" in pair and any(f"miss {name}" in pair for name in (*NEW_RULES, "fetch", "cpu"))
    kinds = ("group", "miss", "bulk")
    alike = any(one.startswith(kind + " ") and two.startswith(kind + " ") for kind in kinds)
    return alike or lossy_or_not or set(pair) == {"no slots", "pooled"} or ("no bulk" in pair and "bulk" in one + two)


def test_features_occur_in_pairs() -> None:
    pairs: Counter[tuple[str, str]] = Counter()
    plans = [plan_of(seed) for seed in range(2000)]
    for plan in plans:
        pairs.update(combinations(sorted(features(plan)), 2))
    names = sorted({name for pair in pairs for name in pair if not name.startswith("miss ")})
    names += [f"miss {name}" for name in (*NEW_RULES, "fetch", "cpu", "buddy")]
    missing = [pair for pair in combinations(sorted(names), 2) if not pairs[pair] and not exclusive(pair)]
    assert missing == []
    assert {f"bulk {name}" for name in BULK_RULES} <= set(names)
    assert {plan.eviction.name for plan in plans} == {*EVICTIONS, "static"}


@pytest.mark.parametrize("seed", range(0, 400, 4))
def test_plans_are_legal(seed: int) -> None:
    plan = plan_of(seed)
    on, n = plan.on_miss, plan.n_experts
    assert on is not None
    assert (on.run_ns[:, 1] == plan.costs.transfer_ns).all() and (np.diff(on.run_ns, axis=1) >= 0).all()
    assert on.run_ns.shape == (2, n + 1) and on.step_bulk.shape == plan.step_prefill.shape
    assert on.whole_layer or not on.ahead
    wanted = n if on.whole_layer else min(n, int(np.diff(plan.step_offset).max()) * plan.experts.shape[2])
    needed = (on.ahead + 1) * n if on.whole_layer else wanted if on.serial else 0
    assert on.stages == 0 or on.stages >= needed
    assert plan.weights is not None or not on.defer
    assert plan.low is None and (plan.slots[0] > 0 or not plan.pooled)


def test_old_plans_are_those_of_a_machine_without_on_miss() -> None:
    for seed in range(200):
        plan = plan_of(seed, old=True)
        assert plan.on_miss is None and plan.slots.min() > 0
        assert plan.eviction.name != "static" and plan.miss.name not in NEW_RULES
        assert simulate(plan)["totals"]["time_ns"] >= 0
