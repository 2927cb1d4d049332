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
GROUPS = SURE, UNSURE, UNWRITTEN = "sure", "not calibrated", "unwritten"  # of a table's rows, in this order
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
    found = [row for row in rows if _ties(best, row)]
    if not found:
        return None
    return {"between": [row["name"] for row in (best, *found)], "simplest": _simplest([best, *found])["name"]}


def _simplest(rows: Sequence[Told]) -> Told:
    """The one nearest to its engine's default; of those as near an engine that exists, then one of a paper, then a
    policy; of these one that a command runs (Behaviour.typed), and who stands first."""
    return min(rows, key=lambda row: (row["away"], KINDS.index(row["kind"]), not row.get("typed", True)))


def ranked(rows: Iterable[Told]) -> list[dict[str, Any]]:
    """The rows that ran, as a table. group: SURE, engines that exist, of which it is known how sure their speeds are;
    UNSURE, those of which it is not; UNWRITTEN, what somebody would have to write; in each the order in which the rows
    stand. But first of all, of the SURE that cannot be told from the fastest of them (`tie`), the simplest. rank: from
    1."""
    ran = [{**row, "group": _group(row)} for row in rows if row["error"] is None]
    groups = {group: [row for row in ran if row["group"] == group] for group in GROUPS}
    best = next(iter(groups[SURE]), None)
    tied = [row for row in groups[SURE] if row is best or _ties(best, row)]
    first = _simplest(tied) if tied else None
    groups[SURE].sort(key=lambda row: row is not first)
    return [
        {**row, "rank": rank, "tie": len(tied) > 1 and any(row is one for one in tied)}
        for rank, row in enumerate((row for group in groups.values() for row in group), 1)
    ]


def _group(row: Told) -> str:
    if row["kind"] != ENGINE:
        return UNWRITTEN
    return UNSURE if row["catalog_costs"] and row[INTERVAL] is None else SURE


def _ties(best: Told | None, row: Told) -> bool:
    """Whether a row of another engine's costs cannot be told from the fastest."""
    return best is not None and row["costs_of"] != best["costs_of"] and overlap(row[INTERVAL], best[INTERVAL])
