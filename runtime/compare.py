"""Measured replays of one arm beside its simulation, and what is claimed of all arms together."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime import agreement, observe
from runtime.agreement import COMPONENTS, REGIMES, Judged, Tolerance, Verdict
from runtime.arms import Arm
from runtime.decisions import Outcome
from runtime.lockstep import check
from runtime.observe import Run
from sim.record import RunRecord


def compared(arm: Arm, replays: Sequence[Run], simulated: Run) -> dict[str, Any]:
    """One arm: medians of its replays beside its simulation, in ns per token, and the signed errors.

    component_error: of each component and of the link's time (copies), relative to itself; component_share: relative to
    the measured total. error_without_link: of the time that is not stall. hits: free-running replays beside the
    simulation. core_check: whether the core decides the same in the first replay's order of completions.
    """
    rows = observe.rows_done(simulated)
    parts = [observe.components(run) for run in replays]
    totals = [p["total"] / rows for p in parts]
    measured = {name: statistics.median(p[name] for p in parts) / rows for name in (*COMPONENTS, "copies", "total")}
    found = {name: ns / rows for name, ns in observe.components(simulated).items()}
    share = statistics.median(p["stall"] / p["total"] for p in parts)
    awake = statistics.median((p["total"] - p["stall"]) / rows for p in parts)
    return {
        "arm": arm.name,
        "link": arm.link.name,
        "policy": arm.policy,
        "cache": arm.fields["cache"],
        "batch": arm.fields["batch"],
        "steps": len(simulated.setting.steps),
        "tokens": rows,
        "stall_share": share,
        "regime": agreement.regime(share),
        "measured_ns": measured,
        "simulated_ns": found,
        "repeats_ns": totals,
        "spread": agreement.spread(totals),
        "error": agreement.signed_error(found["total"], measured["total"]),
        "error_without_link": agreement.signed_error(found["total"] - found["stall"], awake),
        "component_error": {n: agreement.signed_error(found[n], measured[n]) for n in (*COMPONENTS, "copies")},
        "component_share": {n: (found[n] - measured[n]) / measured["total"] for n in COMPONENTS},
        "hits": {"simulated": hits(simulated.record), "measured": [hits(run.record) for run in replays]},
        "core_check": check(replays[0].setting.plan, replays[0].record).as_dict(),
    }


def hits(record: RunRecord) -> int:
    """Hits of the counted steps."""
    return int(record.layer["hits"].sum())


def locked(bench: Any, arm: Arm, simulated: Run) -> dict[str, Any]:
    """One replay in the simulator's order of completions, and whether every decision was the same."""
    if arm.link.gbps is not None:
        bench.pace(arm.link.gbps, arm.link.latency_us)
    record, outcome = bench.lock_step(simulated.setting, simulated.record)
    same = {"hits": None if record is None else hits(record), "simulated_hits": hits(simulated.record)}
    return {**outcome.as_dict(), **same}


def no_time() -> dict[str, Any]:
    """The lock-step of an arm for which no time was left: nothing is known of it."""
    skipped = Outcome(error="not replayed: no time was left").as_dict()
    return {**skipped, "equal": None, "hits": None, "simulated_hits": None}


def judged(row: dict[str, Any]) -> Judged:
    """A row in short; arms are ranked within one link and batch."""
    group = f"{row['link']} {row['batch']}"
    return Judged(row["error"], row["spread"], row["measured_ns"]["total"], row["simulated_ns"]["total"], group)


def statements(rows: Sequence[dict[str, Any]], tolerance: Tolerance, regimes: bool) -> dict[str, dict[str, Any]]:
    """What is claimed of the arms: each with its value, what is asked, and the verdict. regimes: whether two arms or
    more must have been in each of the three."""
    arms = [judged(row) for row in rows]
    same = _all_same(rows)
    found = agreement.verdicts(arms, same, tolerance)
    tau, pairs = agreement.tau(arms)
    errors = [abs(arm.error) for arm in arms]
    values: dict[str, dict[str, Any]] = {
        "median": {"value": statistics.median(errors), "asked": tolerance.median},
        "worst": {"value": max(errors), "asked": tolerance.worst},
        "tau": {"value": tau, "asked": tolerance.tau, "pairs": pairs},
        "equal": {"value": same, "asked": True, "arms": len(rows)},
    }
    if regimes:
        counts = Counter(row["regime"] for row in rows)
        values["regimes"] = {"value": {name: counts[name] for name in REGIMES}, "asked": 2}
        covered = all(counts[name] >= 2 for name in REGIMES)
        found["regimes"] = Verdict.WITHIN if covered else Verdict.INCONCLUSIVE
    return {name: values[name] | {"verdict": verdict.name.lower()} for name, verdict in found.items()}


def _all_same(rows: Sequence[dict[str, Any]]) -> bool | None:
    """Whether every arm's decisions were the same; None where that is not known of some, and the others' were."""
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


def drift(rounds: Sequence[dict[Arm, Run]]) -> list[float]:
    """For each round the median, over all arms, of an arm's time over that arm's median: what the machine did."""
    arms = list(rounds[0])
    times = np.array([[observe.components(found[arm])["total"] for arm in arms] for found in rounds])
    return [float(v) for v in np.median(times / np.median(times, axis=0), axis=1)]
