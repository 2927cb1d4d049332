"""The sections of a report that summaries and records give, in the order in which they are read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis import figures, formats, series, tables
from analysis.pairing import per_request
from analysis.panels import Panel, Section, cells, listed, percent_range
from analysis.runs import Run
from analysis.time_figures import over_time

if TYPE_CHECKING:
    from analysis.compare import Comparison

NEEDS_RECORD = "is not shown for {names}: it needs record.npz (python -m sim.run --out)"
NEEDS_FULL = "is not shown for {names}: it needs the full record (python -m sim.run --out DIR --record full)"
WHAT = ("model", "hardware", "engine", "precision", "cache", "batch", "eviction", "prefetch", "miss", "rerank")


def what_was_run(runs: Sequence[Run]) -> Section:
    """One row per run: the trace, real or synthetic, the model, the machine, the policies."""
    titles = ["run", "trace", "kind", *WHAT, "machine", "requests", "tokens", "prompt tokens", "marks"]
    rows = []
    for run in runs:
        spec = {**run.spec, "model": run.spec.get("model") or run.trace["model"]}
        spec["cache"] = f"{spec['cache']} per {spec['cache_scope']}"
        kind = "synthetic" if run.synthetic else "real capture"
        counts = [f"{run.summary[name]:,}" for name in ("requests", "tokens", "prompt_tokens")]
        given = run.spec.get("set")
        spec["miss"] = " ".join([str(spec["miss"]), *(f"{k}={v}" for k, v in (given or {}).items())])
        row = [run.name, f"{spec['trace']} ({run.trace['hash'][:8]})", kind, *(str(spec.get(name)) for name in WHAT)]
        rows.append([*row, run.summary["machine"], *counts, ", ".join(run.marks)])
    kinds = {run.trace["hash"]: run for run in runs}
    what = ", ".join(f"{r.trace['model']} ({'synthetic' if r.synthetic else 'real'})" for r in kinds.values())
    title = f"{len(runs)} run{'s' * (len(runs) > 1)} of {len(kinds)} trace{'s' * (len(kinds) > 1)}: {what}"
    return Section("what", "What was run", [Panel("runs", title, "", table=(titles, rows), wide=True)])


def in_short(runs: Sequence[Run], found: "Comparison") -> Section:
    """The comparison as a table, and what holds each run back."""
    title = f"Each run against {found.baseline}"
    caption = " ".join(f"{line[0].upper()}{line[1:]}." for line in formats.remarks(found))
    panels = [Panel("comparison", title, caption, table=formats.cells(found), wide=True)]
    rows = [[run.name, run.summary["verdict"]] for run in runs]
    panels.append(Panel("verdicts", "What holds each run back", "", table=(["run", "verdict"], rows), wide=True))
    return Section("short", "In short", panels)


def speed(runs: Sequence[Run], found: "Comparison") -> Section:
    """Tokens/s, TPOT, and how long decode steps take."""
    section = Section("speed", "Speed")
    if all(run.summary["tokens_per_s"] is None for run in runs):
        section.remarks.append("No run generated a token: there is no tokens/s and no TPOT.")
        return section
    best = max(found.rows, key=lambda row: row["tokens_per_s"] or 0.0)
    gain = best["tokens_per_s_change"]
    ratio = f", {1 + gain:.2f} × {found.baseline}" if gain is not None and best["run"] != found.baseline else ""
    table = tables.latencies(runs)
    section.panels.append(
        Panel(
            "speed",
            f"{best['run']} generates the most: {best['tokens_per_s']:,.2f} tokens/s{ratio}",
            "Generated tokens per second of decode time. Whiskers: 95 % interval of the difference from "
            f"{found.baseline}, paired over requests.",
            figures.speed(found),
            (["run", "tokens/s"], [[row["run"], formats.figure(row["tokens_per_s"], 3)] for row in found.rows]),
        )
    )
    recorded = [run for run in runs if run.record is not None]
    requests = {run.name: per_request(run.record).tpot_ms for run in recorded if run.record is not None}
    widest = table["tpot_p95"].fillna(0) / table["tpot_p50"].replace(0, np.nan)
    spread = f"; p95 is at most {widest.max():.2f} × the median" if widest.notna().any() else ""
    section.panels.append(
        Panel(
            "tpot",
            f"Mean time per token: {_span(table['tpot_mean'].to_numpy())} ms{spread}",
            "TPOT of a request: time from its first to its last token by the tokens between. A dot is a request.",
            figures.tpot(table, requests, [run.policy for run in runs]),
            cells(table),
        )
    )
    section.panels.extend(_steps(recorded))
    section.remarks.extend(_without("The distribution over requests and steps", runs, recorded, NEEDS_RECORD))
    return section


def _steps(recorded: Sequence[Run]) -> list[Panel]:
    steps = {run.name: series.decode_step_ms(run.record) for run in recorded if run.record is not None}
    mine = [run for run in recorded if len(steps[run.name])]
    if not mine:
        return []
    slow = {run.name: float(np.quantile(steps[run.name], 0.99)) for run in mine}
    worst = max(slow, key=lambda name: slow[name])
    return [
        Panel(
            "steps",
            f"One decode step in a hundred takes longer than {slow[worst]:,.1f} ms in {worst}",
            "Share of the decode steps that take at most the time across. Steep is even; a long tail is felt as stutter.",
            figures.step_times({run.name: steps[run.name] for run in mine}, [run.policy for run in mine]),
            wide=True,
        )
    ]


def _span(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> str:
    known = values[np.isfinite(values.astype(np.float64))]
    if not len(known):
        return "-"
    low, high = f"{known.min():,.1f}", f"{known.max():,.1f}"
    return low if low == high else f"{low} to {high}"


def _without(what: str, runs: Sequence[Run], shown: Sequence[Run], why: str) -> list[str]:
    """One line for the runs that a figure leaves out, or none."""
    left = [run.name for run in runs if run not in shown]
    return [f"{what} {why.format(names=listed(left))}."] if left else []


def time(runs: Sequence[Run]) -> Section:
    """Where the time went, and how far from the bounds that is."""
    table, limits = tables.time_parts(runs), tables.bounds(runs)
    waiting = table[["demand", "late", "held", "cpu_wait"]].sum(axis=1) / table.sum(axis=1).replace(0, np.nan)
    panels = [
        Panel(
            "time",
            f"The GPU waits {percent_range(waiting.to_numpy())} of the time",
            "All of a run's time, prompts included; the parts add up to it exactly. Blue works, warm colours wait.",
            figures.time_parts(table),
            cells(table),
        ),
    ]
    if limits.notna().to_numpy().any():
        panels.append(
            Panel(
                "bounds",
                _bound_title(limits),
                "A mark at 60 % says: no policy of that class takes less than 60 % of the run's time on this machine.",
                figures.bounds(limits),
                cells(100 * limits.rename(columns=tables.BOUNDS), "{:.1f} %"),
            )
        )
    return Section("time", "Where the time went", panels)


def _bound_title(limits: "tables.pd.DataFrame") -> str:
    lossless = limits["lossless_ns"].dropna()
    if len(lossless) and lossless.max() > 0:
        nearest = str(lossless.idxmax())
        return f"{nearest} is nearest to the lossless bound: at best {1 / lossless.max():.2f} × as fast"
    return "What no policy could beat"


def cache(runs: Sequence[Run], most: int) -> Section:
    """Hits by layer, and for each full record what filled the slots and the link over time."""
    section = Section("cache", "Cache and link")
    names, rates = tables.hit_rates(runs)
    if len(names):
        section.panels.append(
            Panel(
                "hits",
                f"Hit rate by layer: {percent_range(rates.reshape(-1))}",
                "Share of a visit's wanted experts that were resident when routed; late ones are no hits.",
                figures.by_layer(names, rates, "hits (% of the wanted)"),
                wide=True,
            )
        )
    section.remarks.extend(_without("Hit rate by layer", runs, [r for r in runs if r.name in names], "{names} lack"))
    table = tables.gigabytes(runs)
    total = table.sum(axis=1)
    section.panels.append(
        Panel(
            "bytes",
            f"{_span(total.to_numpy())} GB cross the link",
            "Landed transfers by what they were for. A promoted prefetch counts as demand.",
            figures.gigabytes(table),
            cells(table, "{:,.1f}"),
            wide=True,
        )
    )
    full = [run for run in runs if run.record is not None and run.record.groups]
    section.panels.extend(_over_time(run) for run in full)
    held = [run for run in runs if run.full and run not in full]
    if held:
        section.remarks.append(f"Time courses are shown for the first {most} full records: not for {listed(_names(held))}.")
    short = [run.name for run in runs if not run.full]
    if short:
        section.remarks.append(f"Cache occupancy and link use over time {NEEDS_FULL.format(names=listed(short))}.")
    return section


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.name for run in runs]


def _over_time(run: Run) -> Panel:
    record = run.record
    assert record is not None  # of a full record
    at = series.edges(record)
    total = round((run.summary["memory"].get("slots") or 0) / max(record.expert_bytes, 1))
    slots = series.occupancy(record, run.trace["n_experts"], total, at, run.spec.get("placement") == "empty")
    link = series.link_use(record, at)
    busy = sum(float(values.mean()) for values in link.values())
    filled = sum(float(values.mean()) for values in slots.values()) / max(total, 1)
    title = f"{run.name}: {total:,} slots, {100 * filled:.3g} % in use; the link is busy {100 * busy:.3g} % of the time"
    caption = (
        "Means over 400 equal spans of the run. A slot holds an expert from its landing to the commit that takes it. "
        "First residents are what placement put there before time 0."
    )
    return Panel(f"over-time-{run.name}", title, caption, over_time(at, slots, link, total), wide=True)


def prefetching(runs: Sequence[Run]) -> Section:
    table = tables.prefetching(runs)
    section = Section("prefetch", "Prefetching")
    if not len(table):
        section.remarks.append("No run prefetches.")
        return section
    counts = table.drop(columns=["accuracy", "coverage", "timeliness"])
    best = table["coverage"].idxmax() if table["coverage"].notna().any() else table.index[0]
    panels = [
        Panel(
            "prefetch-rates",
            f"{best} takes away {100 * table.loc[best, 'coverage']:.3g} % of the misses; "
            f"{percent_range(table['accuracy'].to_numpy())} of what is prefetched is wanted",
            "Accuracy: wanted while resident or in flight, of all that landed. Coverage: would-be misses that had landed in "
            "time, of these and of late and missed experts. Timeliness: landed in time, of the wanted.",
            figures.prefetch_rates(table),
            cells(100 * table[["accuracy", "coverage", "timeliness"]], "{:.1f} %"),
        ),
        Panel(
            "prefetch-ends",
            f"{percent_range((table['wasted'] / counts.sum(axis=1).replace(0, np.nan)).to_numpy())} of the prefetches "
            "cross the link for nothing",
            "Used: landed before it was wanted; late: after; wasted: never wanted before it left. Promoted: became a "
            "demand while it queued; withdrawn: not wanted after all; rejected: found no slot.",
            figures.prefetch_ends(counts),
            cells(counts, "{:,.0f}"),
        ),
    ]
    section.panels.extend(panels)
    return section


def quality(runs: Sequence[Run], found: "Comparison") -> Section:
    """Speed against what it costs, and where the substitutions are."""
    section = Section("quality", "Quality against speed")
    known = [row for row in found.rows if row["tokens_per_s"] is not None and row["lost_weight"] is not None]
    if known:
        best = [row["run"] for row in known if row["pareto_best"]]
        section.panels.append(
            Panel(
                "pareto",
                f"Pareto-best: {listed(best)}" if best else "No run is a choice: oracles stand apart",
                "Up is faster, left is nearer to the model. Router weight that another expert answered for, or nobody, is all "
                "that a replay knows of quality: it is open-loop and no perplexity. Open markers are oracles.",
                figures.pareto(found),
                (
                    ["run", "tokens/s", "lost weight", "best"],
                    [
                        [
                            row["run"],
                            formats.figure(row["tokens_per_s"], 3),
                            formats.percent(row["lost_weight"], 2),
                            "yes" if row["pareto_best"] else "",
                        ]
                        for row in known
                    ],
                )
                if len(known) <= 60
                else None,
                wide=True,
            )
        )
    section.remarks.extend(
        _without("Quality", runs, [r for r in runs if r.lost_weight is not None], "is not known for {names}: no weights")
    )
    section.panels.extend(_substitutions(runs))
    if not any(run.lossy for run in runs):
        section.remarks.append("No run is lossy: nothing is substituted or dropped.")
    short = [run.name for run in runs if run.lossy and not (run.record and run.record.groups)]
    if short:
        section.remarks.append(f"What the miss policy answered by layer {NEEDS_FULL.format(names=listed(short))}.")
    return section


def _substitutions(runs: Sequence[Run]) -> list[Panel]:
    names, shares = tables.lost_by_layer(runs)
    out = []
    if names:
        out.append(
            Panel(
                "lost",
                f"Router weight lost by layer: {percent_range(shares.reshape(-1))}",
                "Substituted and dropped router weight, of the layer's wanted weight, in counted steps.",
                figures.by_layer(names, shares, "weight lost (%)"),
                wide=True,
            )
        )
    for run in runs:
        if not (run.lossy and run.record and run.record.groups):
            continue
        counts = series.answers_by_layer(run.record)
        total = sum(int(values.sum()) for values in counts.values())
        told = ", ".join(f"{name} {100 * values.sum() / total:.3g} %" for name, values in counts.items() if values.any())
        caption = "Each (token, slot) whose expert was not on the GPU, by the answer of the miss policy."
        title = f"{run.name} answers {total:,} times: {told}" if total else f"{run.name}: nothing was missing"
        out.append(Panel(f"answers-{run.name}", title, caption, figures.answers_by_layer(counts)))
    return out


def measured(runs: Sequence[Run]) -> Section | None:
    """Simulated against measured, where both exist; None where no run is measured."""
    if not any(run.measured for run in runs):
        return None
    section = Section("measured", "Simulated against measured")
    found = tables.pairs(runs)
    left = [run.name for run in runs if run.measured and run not in [mine for mine, _ in found]]
    if left:
        section.remarks.append(f"No simulated run of the same spec and trace beside {listed(left)}.")
    if not found:
        return section
    table = tables.errors(found)
    both = [run for pair in found for run in pair]
    worst = table["total"].abs().max()
    names = "; ".join(f"{mine.name} measured, {other.name} simulated" for mine, other in found)
    panels = [
        Panel(
            "errors",
            f"The simulation is off by at most {100 * worst:.3g} % of the measured time",
            f"Simulated minus measured; parts of a row of errors may cancel in the total. Pairs: {names}.",
            figures.errors(table),
            cells(100 * table, "{:+.2f} %"),
        ),
        Panel(
            "both",
            "Where the measured and the simulated time went",
            "Each measured run above the simulated run of the same spec.",
            figures.time_parts(tables.time_parts(both)),
            cells(tables.time_parts(both)),
        ),
    ]
    section.panels.extend(panels)
    return section
