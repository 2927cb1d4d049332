"""Which speeds the published measurements cannot tell apart, and who is preferred among them.

Two policies on one engine and one machine share the error of its costs, so their ratio is far surer than either speed:
only runs of different engines tie.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.catalog.files import lineage
from sim.engines import FREE, behaving
from sim.spec import RunSpec

ENGINE, UNRELEASED, POLICY = "engine", "unreleased", "policy"
KINDS = (ENGINE, UNRELEASED, POLICY)  # of two as simple: what exists before what somebody would have to write
Told = Mapping[str, Any]


def away(spec: RunSpec) -> int:
    """How far a run is from an engine's default: settings that are not its engine's own, or without one not the plain
    default (who is resident is none of them, that follows from the memory), and engines with a behaviour that its own
    is a variant of."""
    asked = spec.asked()
    variants = [name for name in lineage("engine", spec.engine)[1:] if behaving(name)] if spec.behaves else []
    return len(asked.keys() - {*FREE, "cache"}) + len(asked.get("set", {})) + len(variants)


def tie(best: Told | None, rows: Iterable[Told]) -> dict[str, Any] | None:
    """The names of `best`, one of the rows, and of those of other engines whose intervals overlap its own, and which of
    them is the simplest; None where nobody does, or it has no interval."""
    if best is None or best["tokens_per_s_interval"] is None:
        return None
    found = [row for row in rows if row["costs_of"] != best["costs_of"] and _overlap(row, best)]
    if not found:
        return None
    return {"between": [row["name"] for row in (best, *found)], "simplest": _simplest([best, *found])["name"]}


def _overlap(one: Told, other: Told) -> bool:
    a, b = (each["tokens_per_s_interval"] for each in (one, other))
    return a is not None and b is not None and bool(a[0] <= b[1] and b[0] <= a[1])


def _simplest(rows: Sequence[Told]) -> Told:
    """The one nearest to its engine's default; of those as near an engine that exists, then one of a paper, then a
    policy; of these who stands first."""
    return min(rows, key=lambda row: (row["away"], KINDS.index(row["kind"])))
