"""Summaries as tables: one row per run, what every figure and every notebook draws from.

All are pandas frames indexed by the run's name, in the order of the runs. Seconds, GB = 1e9 bytes, shares of 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.reading.run import Run, by_cause, share
from analysis.showing.palette import TIME
from sim.outcome.table import LIMITS


def _frame(rows: Sequence[Mapping[str, object]], runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame(rows, index=pd.Index([run.name for run in runs], name="run"))


def time_parts(runs: Sequence[Run]) -> pd.DataFrame:
    """Seconds by part, columns as palette.TIME (draft where any run has it): the stall by its cause. Rows add up to
    `time_ns`."""
    rows = []
    for run in runs:
        parts = {**run.summary["breakdown_ns"], **run.summary["stall_ns_by_cause"]}
        rows.append({part: parts[part] / 1e9 for part in TIME if parts.get(part) is not None})
    found = _frame(rows, runs).fillna(0.0)
    return found[[part for part in TIME if part in found.columns]]


def latencies(runs: Sequence[Run]) -> pd.DataFrame:
    """TPOT and ITL in ms: mean, p50, p95, p99 and n of each, columns `tpot_mean` and so on."""
    rows = []
    for run in runs:
        spreads = {name: run.summary[f"{name}_ms"] for name in ("tpot", "itl")}
        rows.append({f"{name}_{key}": spread[key] for name, spread in spreads.items() for key in spread})
    return _frame(rows, runs)


def hit_rates(runs: Sequence[Run]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(names, float64 [runs, L]) of the runs that have figures by layer: hits / wanted, NaN where nothing is wanted.
    Runs of fewer layers than the longest are padded with NaN."""
    mine = [run for run in runs if run.summary.get("by_layer")]
    rows = []
    for run in mine:
        by = {name: np.array(run.summary["by_layer"][name], np.float64) for name in ("hits", "late", "misses")}
        wanted = by["hits"] + by["late"] + by["misses"]
        rows.append(np.divide(by["hits"], wanted, out=np.full(len(wanted), np.nan), where=wanted > 0))
    return [run.name for run in mine], _padded(rows)


def lost_by_layer(runs: Sequence[Run]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(names, float64 [runs, L]): router weight substituted or dropped, share of the layer's wanted weight, of the
    lossy runs where it is known."""
    mine: list[str] = []
    rows: list[npt.NDArray[np.float64]] = []
    for run in runs:
        parts = [run.summary["quality"].get(f"{name}_weight_by_layer") for name in ("substituted", "dropped")]
        if run.lossy and None not in parts:
            mine.append(run.name)
            rows.append(np.array(parts, np.float64).sum(axis=0))
    return mine, _padded(rows)


def _padded(rows: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    out = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def gigabytes(runs: Sequence[Run]) -> pd.DataFrame:
    """GB sent to the GPU by cause: demand, prefetch, background, and where there are any admission, stream."""
    sent = [by_cause(run.summary["h2d_bytes"]) for run in runs]
    return _frame([{cause: n / 1e9 for cause, n in each.items()} for each in sent], runs).fillna(0.0)


def windows(runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of a window, and by accepted token the rows, distinct experts of all visits and MB to the GPU; tokens/s.
    Runs that do not speculate have windows of one row."""
    rows = []
    for run in runs:
        s, found = run.summary, run.summary.get("speculation") or {}
        tokens = s["tokens"] or float("nan")
        rows.append(
            {
                "rows of a window": found.get("n") or 1,
                "rows": (found["rows"] if found else s["tokens"]) / tokens,
                "distinct experts": s["wanted"] / tokens,
                "MB to the GPU": sum(by_cause(s["h2d_bytes"]).values()) / tokens / 1e6,
                "tokens/s": float("nan") if s["tokens_per_s"] is None else s["tokens_per_s"],
            }
        )
    return _frame(rows, runs)


def link_times(runs: Sequence[Run]) -> pd.DataFrame:
    """Seconds in which the link moved data, by cause, of the runs whose summaries say it."""
    mine = [run for run in runs if run.by_rules]
    busy = [by_cause(run.summary["link_busy_ns_by_cause"]) for run in mine]
    return _frame([{cause: ns / 1e9 for cause, ns in each.items()} for each in busy], mine)


def on_a_miss(runs: Sequence[Run]) -> pd.DataFrame:
    """What those runs did on a miss that had more to do than fetch into slots; columns of zeros are left out. streamed,
    remote, on the CPU, deferred: % of the wanted (token, slot) entries; the other counts are of experts; host busy: %
    of the time."""
    mine = [run for run in runs if run.by_rules]
    rows = []
    for run in mine:
        s = run.summary
        wanted, stages, admission = s["slots_wanted"], s["stages"], s["admission"]
        answered = {"streamed": "streamed", "read remotely": "remote", "on the CPU": "cpu", "deferred": "deferred"}
        row: dict[str, object] = {f"{name} (%)": 100 * share(s[key], wanted) for name, key in answered.items()}
        row |= {"copied into stages": stages["copies"], "of these unwanted": stages["unwanted"]}
        row |= {"stages at once": stages["most"], "transfers over the link": s["link_transfers"]}
        row |= {name: admission[name] for name in ("admitted", "replaced", "rejected")}
        host = s["host"]
        row |= {"computed on the host": host["experts"], "host busy (%)": 100 * share(host["ns"], s["time_ns"])}
        rows.append(row)
    table = _frame(rows, mine)
    return table.loc[:, (table != 0).any()]


def prefetching(runs: Sequence[Run]) -> pd.DataFrame:
    """What came of each prefetch, and three rates, of the runs that prefetch.

    used (landed before it was wanted), late (after), wasted (never wanted), promoted, withdrawn, rejected: transfers.
    accuracy = (used + late) / (used + late + wasted); coverage = used / (used + late and missed experts), the share of
    would-be misses that it took away; timeliness = used / (used + late). NaN where there is nothing to divide by.
    """
    mine = [run for run in runs if run.spec["prefetch"] != "none"]
    rows: list[dict[str, object]] = []
    for run in mine:
        found, t = run.summary["prefetched"], run.summary["transfers"]
        used, late, wasted = (found[name] for name in ("used", "late", "wasted"))
        left = run.summary["late"] + run.summary["misses"]
        rates = {
            "accuracy": _rate(used + late, used + late + wasted),
            "coverage": _rate(used, used + left),
            "timeliness": _rate(used, used + late),
        }
        rows.append({**found, **{name: t[name] for name in ("promoted", "withdrawn", "rejected")}, **rates})
    columns = ["used", "late", "wasted", "promoted", "withdrawn", "rejected", "accuracy", "coverage", "timeliness"]
    return _frame(rows, mine).reindex(columns=columns)


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def bounds(runs: Sequence[Run]) -> pd.DataFrame:
    """Each bound as a share of the run's time (1 = nothing can be faster), columns as LIMITS, NaN where it does not
    apply."""
    rows: list[dict[str, object]] = []
    for run in runs:
        found, time = run.summary["bounds"], run.summary["time_ns"]
        rows.append({name: found[name] / time if name in found and time else float("nan") for name in LIMITS})
    return _frame(rows, runs).reindex(columns=list(LIMITS))


def slots(run: Run) -> tuple[int, int]:
    """(slots of whole experts, slots of low-precision copies) of all layers together."""
    return run.summary["slots"]["total"], run.summary["slots"]["low"]


def pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """(measured, simulated) runs of the same spec on the same trace; where no simulated run has the same hardware and
    engine, the first whose spec is otherwise equal."""
    out = []
    for mine in (run for run in runs if run.measured):
        others = [run for run in runs if not run.measured and run.judged == mine.judged]
        for ignored in (("trace",), ("trace", "hardware", "engine")):
            same = [run for run in others if _same(mine, run, ignored)]
            if same:
                out.append((mine, same[0]))
                break
    return out


def _same(a: Run, b: Run, ignored: tuple[str, ...]) -> bool:
    """Equal in every setting that both specs hold."""
    return all(a.spec[name] == b.spec[name] for name in a.spec.keys() & b.spec.keys() if name not in ignored)


def errors(found: Sequence[tuple[Run, Run]]) -> pd.DataFrame:
    """Simulated minus measured by part of the time, each as a share of the measured total; `total` is their sum, and
    `tokens/s` the simulated rate's own error."""
    rows: list[dict[str, object]] = []
    for mine, other in found:
        a, b = time_parts([mine]).iloc[0], time_parts([other]).iloc[0]
        row: dict[str, object] = {part: share(b.get(part, 0.0) - a.get(part, 0.0), a.sum()) for part in a.index}
        speeds = mine.summary["tokens_per_s"], other.summary["tokens_per_s"]
        row["total"] = share(b.sum() - a.sum(), a.sum())
        row["tokens/s"] = speeds[1] / speeds[0] - 1 if all(speeds) else float("nan")
        rows.append(row)
    return _frame(rows, [mine for mine, _ in found])
