"""From rounds of replays to a [measured] section: every term fitted, with its uncertainty, and the section as TOML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.device.port import DeviceError
from runtime.measuring import durations
from runtime.measuring.durations import TimedRun
from runtime.measuring.fits import Observations, Term, constant, fit, hats, knots_of
from sim.errors import SpecError

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Rounds = Sequence[Sequence[TimedRun]]
Kind = tuple[str, str, str]
TRANSFERS = ("transfer_idle_ns", "transfer_following_ns")
BARE = 0.9  # of a bare copy: less than that no transfer takes


@dataclass(frozen=True)
class Fitted:
    """section: the [measured] table as `sim.catalog.measured_spec.Measured` takes it, without provenance; terms: how
    each was found."""

    section: dict[str, Any]
    terms: dict[str, Term]


def fitted(rounds: Rounds) -> Fitted:
    """Every term from at least one round of full runs. Raises ValueError when a round has no counted visit."""
    terms: dict[str, Term] = {
        "decide_ns": constant([np.concatenate([durations.decide_of(r) for r in g]) for g in rounds])
    }
    tables, terms["dense"] = _dense(rounds)
    section: dict[str, Any] = {"decide_ns": _whole(terms["decide_ns"])}
    section |= _link(rounds, terms)
    section |= {"commit_depth": rounds[0][0].setting.plan.costs.commit_depth}
    section |= _experts(rounds, terms)
    section["head"] = _head(rounds, tables, terms)
    section |= _host(rounds, terms)
    section["dense"] = tables
    section["uncertainty"] = {name: _uncertainty(term) for name, term in terms.items()}
    return Fitted(section, terms)


def refuse_impossible(section: dict[str, Any], bare_ns: tuple[int, int]) -> None:
    """What no device can take: a transfer faster than the bare copy of an expert (bare_ns: on an idle link, behind
    another), an expert, a dense part or a decision of 0 ns. Raises DeviceError, which names the term, and SpecError
    where nothing was transferred."""
    seen = [name for name in TRANSFERS if name in section["uncertainty"]]
    if not seen:
        raise SpecError("caches: no expert crossed the link while it was measured; fewer slots have some cross it")
    for name, least in zip(TRANSFERS, bare_ns, strict=True):
        own = name in seen or name == TRANSFERS[1]  # one on an idle link that never was has the other's time
        if own and section[name] < max(1, BARE * least):
            wrong = f"{section[name]:,} ns was fitted, but a bare copy of an expert takes {least:,} ns"
            raise DeviceError(f"{name}: {wrong}; the times that this device tells of its copies cannot be right")
    alone = {"decide_ns": section["decide_ns"], "expert": section["group_ns"] + section["expert"]["ns"][0]}
    for table in section["dense"]:
        alone[f"dense {table['layer']} {table['attention']} {table['phase']}"] = table["ns"][-1] + table["entry_ns"]
    for name, ns in alone.items():
        if not ns > 0:
            raise DeviceError(f"{name}: 0 ns was fitted; the times that this device tells of its work cannot be right")


def _uncertainty(term: Term) -> dict[str, Any]:
    return {
        "spread": round(term.spread, 6),
        "residual": round(term.residual, 6),
        "repeats": term.rounds,
        "samples": term.samples,
    }


def _whole(term: Term) -> int:
    return round(float(term.coefficients[0]))


def _knots(knots: Sequence[int], ns: Float) -> dict[str, Any]:
    return {"tokens": list(knots), "ns": [round(float(v)) for v in np.maximum.accumulate(ns)]}


# --- dense part and head ----------------------------------------------------------------------------------------------


def _dense(rounds: Rounds) -> tuple[list[dict[str, Any]], Term]:
    """One table per kind of layer and phase, fitted together: a column is the sum of its layers, and what follows the
    last MoE layer is a sum with the head."""
    seen = [[durations.dense_of(run) for run in group] for group in rounds]
    columns = durations.columns_of(rounds[0][0])
    knots = {
        phase: knots_of(np.concatenate([d.rows[d.prefill == prefill] for group in seen for d in group]))
        for phase, prefill in (("decode", False), ("prefill", True))
    }
    phases = [p for p, prefill in (("decode", False), ("prefill", True)) if _any(seen, prefill)]
    layers = list(dict.fromkeys(kind for column in columns for kind in column))
    kinds: list[Kind] = [(layer, attention, phase) for phase in phases for layer, attention in layers]
    ends = knots_of(np.concatenate([d.logits for group in seen for d in group]))
    used = [[_dense_design(d, columns, kinds, knots, ends) for d in group] for group in seen]
    observations = [
        Observations(np.concatenate(group), np.concatenate([d.ns for d in of]).astype(np.float64))
        for group, of in zip(used, seen, strict=True)
    ]
    sizes = [*(len(knots[phase]) for _, _, phase in kinds), len(ends)]
    first = np.concatenate([[0], np.cumsum(np.array(sizes) + 1)])  # behind each curve, the time per entry
    term = fit(observations, [(int(a), int(a) + n) for a, n in zip(first, sizes, strict=False)])
    return _dense_tables(kinds, knots, term), term


def _any(seen: list[list[durations.Dense]], prefill: bool) -> bool:
    return any((d.prefill == prefill).any() for group in seen for d in group)


def _dense_design(
    seen: durations.Dense,
    columns: list[list[tuple[str, str]]],
    kinds: list[Kind],
    knots: dict[str, list[int]],
    ends: list[int],
) -> Float:
    """float64 [n, sum over kinds of (knots + 1) + ends]: times at the knots, then the time per KV entry; the head's."""
    blocks = []
    for layer, attention, phase in kinds:
        times = np.array([column.count((layer, attention)) for column in columns])[seen.column]
        here = times * (seen.prefill == (phase == "prefill"))
        entries = seen.entries.get(attention, np.zeros(len(here)))
        blocks.append(here[:, None] * np.column_stack([hats(seen.rows, knots[phase]), entries]))
    return np.concatenate([*blocks, hats(seen.logits, ends)], axis=1)


def _dense_tables(kinds: list[Kind], knots: dict[str, list[int]], term: Term) -> list[dict[str, Any]]:
    tables, at = [], 0
    for layer, attention, phase in kinds:
        n = len(knots[phase])
        ns, entry = term.coefficients[at : at + n], float(term.coefficients[at + n])
        named = {"layer": layer, "attention": attention, "phase": phase}
        tables.append(named | _knots(knots[phase], ns) | {"entry_ns": round(entry, 6)})
        at += n + 1
    return tables


def _head(rounds: Rounds, tables: list[dict[str, Any]], terms: dict[str, Term]) -> dict[str, Any]:
    """What follows the last visit of a step, without the dense layers in it."""
    pairs = [[_head_of(run, tables) for run in group] for group in rounds]
    knots = knots_of(np.concatenate([rows for group in pairs for rows, _ in group]))
    terms["head"] = fit([_stacked(group, knots) for group in pairs], [(0, len(knots))])
    return _knots(knots, terms["head"].coefficients)


def _head_of(run: TimedRun, tables: list[dict[str, Any]]) -> tuple[Float, Float]:
    """(rows whose logits are needed, ns) of each counted step."""
    warm, steps = run.record.warmup_steps, run.record.steps
    prefill, rows = run.setting.steps.prefill, steps["rows"]
    ns = durations.heads(run).astype(np.float64)
    for layer, attention in durations.columns_of(run)[-1]:
        entries = durations.entries_of(run).get(attention, np.zeros(len(rows)))
        for table in tables:
            if (table["layer"], table["attention"]) == (layer, attention):
                here = prefill == (table["phase"] == "prefill")
                ns -= here * (hats(rows, table["tokens"]) @ table["ns"] + table["entry_ns"] * entries)
    return durations.logits_of(run)[warm:].astype(np.float64), np.maximum(ns, 0)[warm:]


def _stacked(pairs: list[tuple[Float, Float]], knots: list[int]) -> Observations:
    return Observations(hats(np.concatenate([t for t, _ in pairs]), knots), np.concatenate([ns for _, ns in pairs]))


# --- experts ----------------------------------------------------------------------------------------------------------


def _experts(rounds: Rounds, terms: dict[str, Term]) -> dict[str, Any]:
    """Times by tokens, and a time per group where groups of different sizes tell the two apart."""
    seen = [[_counted(run) for run in group] for group in rounds]
    knots = knots_of(np.concatenate([tokens for group in seen for tokens, _, _ in group]))
    sizes = np.concatenate([np.bincount(member) for group in seen for _, member, _ in group])
    apart = len(np.unique(sizes)) > 1
    observations = []
    for group in seen:
        parts = [_group_design(tokens, member, len(ns), knots, apart) for tokens, member, ns in group]
        observations.append(Observations(np.concatenate(parts), np.concatenate([ns for _, _, ns in group])))
    term = terms["expert"] = fit(observations, [(0, len(knots))])
    out = {"group_ns": round(float(term.coefficients[-1])) if apart else 0}
    return out | {"expert": _knots(knots, term.coefficients[: len(knots)])}


def _counted(run: TimedRun) -> tuple[Int, Int, Float]:
    """(tokens [m], group [m], ns [groups]) of the groups in counted steps."""
    taken = durations.groups_of(run)
    counted = run.record.groups["visits"]["step"][taken.visit] >= run.record.warmup_steps
    number = np.cumsum(counted) - 1
    of = counted[taken.member]
    return taken.tokens[of], number[taken.member[of]], taken.spent_ns[counted].astype(np.float64)


def _group_design(tokens: Int, member: Int, groups: int, knots: list[int], apart: bool) -> Float:
    out = np.zeros((groups, len(knots)))
    np.add.at(out, member, hats(tokens, knots))
    return np.column_stack([out, np.ones(groups)]) if apart else out


def _host(rounds: Rounds, terms: dict[str, Term]) -> dict[str, Any]:
    """One expert on the host, link idle and busy; nothing where the host computed none."""
    seen = [[durations.host_of(run) for run in group] for group in rounds]
    tokens, _, busy = (np.concatenate([part[i] for group in seen for part in group]) for i in range(3))
    if not len(tokens):
        return {}
    knots, found = knots_of(tokens), {}
    for state in (False, True):
        if (busy == state).any():
            pairs = [[(t[b == state], ns[b == state].astype(np.float64)) for t, ns, b in group] for group in seen]
            found[state] = fit([_stacked(group, knots) for group in pairs], [(0, len(knots))])
    idle, loaded = found.get(False, found.get(True)), found.get(True, found.get(False))
    assert idle is not None and loaded is not None
    terms["cpu_expert"] = loaded if len(found) > 1 and loaded.spread > idle.spread else idle
    return {"cpu_expert": _knots(knots, idle.coefficients) | {"busy_ns": _knots(knots, loaded.coefficients)["ns"]}}


# --- the link ---------------------------------------------------------------------------------------------------------


def _link(rounds: Rounds, terms: dict[str, Term]) -> dict[str, Any]:
    """Transfer times and the commit gap. A kind that never happened costs what the other one does."""
    seen = [[durations.transfers_of(run) for run in group] for group in rounds]
    found = {}
    for name, field in (
        ("commit_gap_ns", "gap_ns"),
        ("transfer_idle_ns", "idle_ns"),
        ("transfer_following_ns", "following_ns"),
    ):
        parts = [np.concatenate([getattr(t, field) for t in group]) for group in seen]
        if any(len(ns) for ns in parts):
            terms[name] = constant([np.maximum(ns, 0) for ns in parts])
            found[name] = _whole(terms[name])
    idle = found.get("transfer_idle_ns", found.get("transfer_following_ns", 0))
    return {
        "transfer_idle_ns": idle,
        "transfer_following_ns": found.get("transfer_following_ns", idle),
        "commit_gap_ns": found.get("commit_gap_ns", 0),
    }
