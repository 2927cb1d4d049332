"""A machine's record in the form of the reference's: groups of plain columns, and totals."""

from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from sim.core.plan import CAUSES, GATES, PLACES, Plan
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from tests.reference import TOTALS

RENAMED = {f"prefetched_{fate}": f"prefetch_{fate}" for fate in ("used", "late", "wasted")}
MACHINES: dict[str, ModuleType] = {"compiled": compiled, "simpy": discrete}

BY_RULES = (
    "streamed", "remote", "staged", "host_ns", "link_transfers", "admission_replaced", "admission_rejected",
    *(f"landed_{cause}" for cause in CAUSES),
)  # fmt: skip
SLOT = PLACES.index("slot")
WEIGHTS = ("weight_wanted", "weight_substituted", "weight_dropped")


def as_groups(plan: Plan, record: RunRecord) -> dict[str, Any]:
    """Group -> column -> list of Python ints, and `totals`, from a full record of this plan."""
    groups = record.groups | {"steps": record.steps}
    result: dict[str, Any] = {
        name: {column: np.asarray(values).tolist() for column, values in group.items()}
        for name, group in groups.items()
    }
    totals = {name: record.counters[RENAMED.get(name, name)] for name in TOTALS.split() if name != "time_ns"}
    steps = result["steps"]["end_ns"]
    totals |= {name: record.counters[name] for name in ("wanted_before", *WEIGHTS)}
    if plan.on_miss is not None:
        totals |= totals_by_rules(record)
    totals["by_layer"] = {name: record.layer[name].tolist() for name in WEIGHTS}
    totals["gates"] = np.bincount(record.groups["answers"]["gate"], minlength=len(GATES) + 1).tolist()
    return result | {
        "totals": totals | {"time_ns": steps[-1] if steps else 0, "residents": _last_residents(plan, result)}
    }


def totals_by_rules(record: RunRecord) -> dict[str, Any]:
    """What the reference counts only of plans with on_miss."""
    busy = [record.counters[f"busy_{cause}_ns"] for cause in CAUSES]
    counted = {name: record.counters[name] for name in (*BY_RULES, "chunks") if name in record.counters}
    return counted | {"admitted": record.counters["landed_admission"], "busy_ns_by_cause": busy}


def _last_residents(plan: Plan, result: dict[str, Any]) -> list[int]:
    """Who is resident at the end (global ids), the least recently touched or landed first."""
    first = [(place - len(plan.residents), int(expert), True) for place, expert in enumerate(plan.residents)]
    changes = first + [(event, expert, there) for event, expert, there in _changes(plan, result)]
    recency: dict[int, int] = {}
    for event, expert, there in sorted(changes):
        recency.pop(expert, None)
        if there:
            recency[expert] = event
    return list(recency)


def _changes(plan: Plan, result: dict[str, Any]) -> list[tuple[int, int, bool]]:
    """(event, global id, stays) of every landing, touch and eviction."""
    layers = plan.experts.shape[1]
    changes = []
    for row in rows(result, "executions"):
        if not row["cpu"] and row.get("place", SLOT) == SLOT and _touches(plan, row["visit"] // layers):
            changes.append((row["event"], global_id(plan, row["visit"] % layers, row), True))
    for row in rows(result, "transfers"):
        if row["landed_ns"] >= 0 and row.get("place", SLOT) == SLOT:
            changes.append((row["event"], global_id(plan, row["layer"], row), True))
        if row["victim"] >= 0:
            changes.append((row["event_committed"], row["victim"], False))
    return changes


def _touches(plan: Plan, step: int) -> bool:
    """Whether executions of a step touch residents."""
    on = plan.on_miss
    return on is None or on.bulk_touch or on.bulk is None or not on.step_bulk[step]


def global_id(plan: Plan, layer: int, row: dict[str, int]) -> int:
    """Of the expert of a line of executions or transfers; low-precision copies come behind all experts."""
    return (row["low"] * plan.experts.shape[1] + layer) * plan.n_experts + row["expert"]


def scope_of(plan: Plan, expert: int) -> int:
    """Whose slots an expert (global id) lives in: its layer's or the pool's; copies have scopes of their own."""
    copies = plan.experts.shape[1] * plan.n_experts
    among = 0 if plan.pooled else expert % copies // plan.n_experts
    return among + len(plan.slots) * (expert // copies)


def rows(result: dict[str, Any], group: str) -> list[dict[str, int]]:
    """The lines of one group, each as column -> value."""
    columns = result[group]
    return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]


def lines(result: dict[str, Any], group: str, *names: str) -> list[tuple[int, ...]]:
    """The lines of a group, as tuples of the named columns."""
    return list(zip(*(result[group][name] for name in names), strict=True))


def run_groups(machine: str, plan: Plan) -> dict[str, Any]:
    """Run a plan on a machine of MACHINES, with the full record."""
    return as_groups(plan, MACHINES[machine].run(plan, full=True))


def fingerprint(record: RunRecord) -> bytes:
    """Every byte of a record, in one string."""
    groups = record.groups | {"steps": record.steps, "layer": record.layer}
    parts = [
        f"{name}.{column} {np.asarray(values).dtype} ".encode() + np.asarray(values).tobytes()
        for name, group in sorted(groups.items())
        for column, values in sorted(group.items())
    ]
    return b"\n".join([*parts, repr(sorted(record.counters.items())).encode()])


def rising(values: list[int]) -> bool:
    return all(a <= b for a, b in pairwise(values))
