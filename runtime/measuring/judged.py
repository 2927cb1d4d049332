"""Measured replays of one case beside its simulation, and what is claimed of all cases together."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.measuring import agreement, durations
from runtime.measuring.agreement import CASES, COMPONENTS, REGIMES, TOLERANCE, CaseTimes, Verdict
from runtime.measuring.cases import Case
from runtime.measuring.durations import TimedRun
from runtime.replaying.decisions import Outcome
from runtime.replaying.lockstep import check
from sim.machines.record import RunRecord
from sim.prepare import Setting

CAPACITIES = 2  # judged ones of a link that it was not calibrated at


def compared(case: Case, replays: Sequence[TimedRun], simulated: TimedRun) -> dict[str, Any]:
    """One case: medians of its replays beside its simulation, in ns per token, and the signed errors.

    component_error: of each component and of the link's time (copies), relative to itself; component_share: relative to
    the measured total. error_without_link, spread_without_link: of the time that is not stall. hits: free-running
    replays beside the simulation. core_check: whether the core decides the same in the first replay's order of
    completions. capacity: slots of a layer; longest_prompt: tokens run as prefill steps; longest_context: tokens.
    """
    rows = durations.rows_done(simulated)
    parts = [durations.components(run) for run in replays]
    totals = [p["total"] / rows for p in parts]
    measured = {name: statistics.median(p[name] for p in parts) / rows for name in (*COMPONENTS, "copies", "total")}
    found = {name: ns / rows for name, ns in durations.components(simulated).items()}
    share = statistics.median(p["stall"] / p["total"] for p in parts)
    awake = [(p["total"] - p["stall"]) / rows for p in parts]
    return {
        "arm": case.name,
        "link": case.link.name,
        "policy": case.policy,
        "cache": case.fields["cache"],
        "capacity": capacity(simulated.setting),
        "batch": case.fields["batch"],
        "chained": case.chained,
        "longest_prompt": longest_prompt(simulated.setting),
        "longest_context": simulated.setting.context,
        "steps": len(simulated.setting.steps),
        "tokens": rows,
        "stall_share": share,
        "regime": agreement.regime(share),
        "measured_ns": measured,
        "simulated_ns": found,
        "repeats_ns": totals,
        "spread": _known(agreement.spread(totals)),
        "error": agreement.signed_error(found["total"], measured["total"]),
        "error_without_link": agreement.signed_error(found["total"] - found["stall"], statistics.median(awake)),
        "spread_without_link": _known(agreement.spread(awake)),
        "component_error": {n: agreement.signed_error(found[n], measured[n]) for n in (*COMPONENTS, "copies")},
        "component_share": {n: (found[n] - measured[n]) / measured["total"] for n in COMPONENTS},
        "hits": {"simulated": hits(simulated.record), "measured": [hits(run.record) for run in replays]},
        "core_check": check(replays[0].setting.plan, replays[0].record).as_dict(),
    }


def _known(spread: float) -> float | None:
    """None in the place of infinity, which one replay has and JSON does not."""
    return spread if math.isfinite(spread) else None


def capacity(setting: Setting) -> int:
    """Slots of a layer; of the layer with the most, should they differ."""
    return int(setting.plan.slots.max())


def longest_prompt(setting: Setting) -> int:
    """Tokens of the longest prompt that ran as prefill steps; 0 without any."""
    in_prefill = np.repeat(setting.steps.prefill, np.diff(setting.steps.offset))
    requests = setting.trace.sequence[setting.steps.row[in_prefill]]
    return int(np.unique(requests, return_counts=True)[1].max(initial=0))


def hits(record: RunRecord) -> int:
    """Hits of the counted steps."""
    return int(record.layer["hits"].sum())


def locked(bench: Any, case: Case, simulated: TimedRun) -> dict[str, Any]:
    """One replay in the simulator's order of completions, and whether every decision was the same."""
    case.link.pace(bench)
    record, outcome = bench.lock_step(simulated.setting, simulated.record)
    same = {"hits": None if record is None else hits(record), "simulated_hits": hits(simulated.record)}
    return {**outcome.as_dict(), **same}


def no_time() -> dict[str, Any]:
    """The lock-step of a case for which no time was left: nothing is known of it."""
    skipped = Outcome(error="not replayed: no time was left").as_dict()
    return {**skipped, "equal": None, "hits": None, "simulated_hits": None}


def judged(row: dict[str, Any]) -> CaseTimes:
    """A row in short; cases are ranked within one link and batch, chained requests by themselves."""
    group, error = f"{row['link']} {row['batch']} {row['chained']}", row["error_without_link"]
    ns = row["measured_ns"]["total"], row["simulated_ns"]["total"]
    whole, beside = (math.inf if row[name] is None else row[name] for name in ("spread", "spread_without_link"))
    return CaseTimes(row["error"], whole, *ns, group, None if error is None else (error, beside))


def statements(rows: Sequence[dict[str, Any]], links: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is claimed of the cases: each with its value, what is asked, and the verdict. links: the record's; where
    their paces were chosen all three regimes must have been met, else two."""
    cases = [judged(row) for row in rows]
    same = _all_same(rows)
    found = agreement.verdicts(cases, same)
    tau, pairs = agreement.tau(cases)
    errors = [abs(case.error) for case in cases]
    values: dict[str, dict[str, Any]] = {
        "median": {"value": statistics.median(errors)},
        "without_link": _without_link(rows),
        "worst": {"value": max(errors)},
        "tau": {"value": tau, "pairs": pairs},
    }
    values = {name: value | {"asked": TOLERANCE[name]} for name, value in values.items()}
    values["equal"] = {"value": same, "asked": True, "arms": len(rows)}
    values["regimes"], found["regimes"] = _regimes(rows, len(REGIMES) if all(link["regime"] for link in links) else 2)
    values["capacities"], found["capacities"] = _capacities(rows, links)
    return {name: values[name] | {"verdict": verdict.name.lower()} for name, verdict in found.items()}


def _without_link(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst |error| of the time that is not stall, and the case that has the worst; None where all cases do
    nothing but wait."""
    errors = [(abs(row["error_without_link"]), row["arm"]) for row in rows if row["error_without_link"] is not None]
    if not errors:
        return {"value": None, "worst": None, "arm": None}
    worst, case = max(errors)
    return {"value": statistics.median(error for error, _ in errors), "worst": worst, "arm": case}


def _regimes(rows: Sequence[dict[str, Any]], asked: int) -> tuple[dict[str, Any], Verdict]:
    """Cases by regime; so many regimes must have ARMS of them or more."""
    counts = Counter(row["regime"] for row in rows)
    covered = sum(counts[name] >= CASES for name in REGIMES) >= asked
    value = {"value": {name: counts[name] for name in REGIMES}, "asked": CASES, "regimes": asked}
    return value, Verdict.WITHIN if covered else Verdict.INCONCLUSIVE


def _capacities(rows: Sequence[dict[str, Any]], links: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], Verdict]:
    """Judged capacities of each link that no calibrating case of it had; on every link CAPACITIES are asked for, or
    all where fewer are judged."""
    value, enough = {}, True
    for link in links:
        judged_at = {row["capacity"] for row in rows if row["link"] == link["name"]}
        value[link["name"]] = sorted(judged_at - set(link["calibrated_at"]))
        enough &= len(value[link["name"]]) >= min(CAPACITIES, len(judged_at))
    return {"value": value, "asked": CAPACITIES}, Verdict.WITHIN if enough else Verdict.INCONCLUSIVE


def _all_same(rows: Sequence[dict[str, Any]]) -> bool | None:
    """Whether every case's decisions were the same; None where that is not known of some, and the others' were."""
    found = [_same(row) for row in rows]
    return False if False in found else None if None in found else True


def _same(row: dict[str, Any]) -> bool | None:
    """Hits and every decision: of the lock-step (None: it was not replayed), and of a free replay through the core."""
    step = row["lock_step"]
    if step["equal"] is None and row["core_check"]["equal"]:
        return None
    return bool(step["equal"] and step["hits"] == step["simulated_hits"] and row["core_check"]["equal"])


def status(stated: dict[str, dict[str, Any]]) -> int:
    """The exit status that the statements come to."""
    return int(agreement.worst_of([Verdict[s["verdict"].upper()] for s in stated.values()]))


def drift(rounds: Sequence[dict[Case, TimedRun]]) -> list[float]:
    """For each round the median, over all cases, of a case's time over that case's median: what the machine did."""
    cases = list(rounds[0])
    times = np.array([[durations.components(found[case])["total"] for case in cases] for found in rounds])
    return [float(v) for v in np.median(times / np.median(times, axis=0), axis=1)]
