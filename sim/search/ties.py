"""Which engines' speeds published measurements cannot tell apart, and which engine is the simplest of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sim.catalog.files import lineage
from sim.engines import FREE, behaving
from sim.outcome.how_sure import key_of, overlap
from sim.spec import RunSpec

ENGINE, UNRELEASED, POLICY = "engine", "unreleased", "policy"
KINDS = (ENGINE, UNRELEASED, POLICY)  # of two as simple: what exists before what somebody would have to write
INTERVAL = key_of("tokens_per_s")
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
    if best is None:
        return None
    others = [row for row in rows if row["costs_of"] != best["costs_of"]]
    found = [row for row in others if overlap(row[INTERVAL], best[INTERVAL])]
    if not found:
        return None
    return {"between": [row["name"] for row in (best, *found)], "simplest": _simplest([best, *found])["name"]}


def _simplest(rows: Sequence[Told]) -> Told:
    """The one nearest to its engine's default; of those as near an engine that exists, then one of a paper, then a
    policy; of these who stands first."""
    return min(rows, key=lambda row: (row["away"], KINDS.index(row["kind"])))
