"""The sections of a report about policies: cache and link, prefetching, quality against speed, and the check of the
simulation against measured runs."""

from collections.abc import Sequence

import numpy as np

from analysis.comparing import formats
from analysis.comparing.comparison import Comparison
from analysis.pages import compare_figures, figures, tables
from analysis.pages.miss_section import answers
from analysis.pages.panels import MAX_TABLE_ROWS, Cells, Panel, Section, cells, percent_range, remark, span
from analysis.reading.run import Run
from analysis.showing.words import figure, listed
from analysis.timelines import series
from analysis.timelines.asked import Asked

NEEDS_FULL = "is not shown for {names}: it needs the full record (python -m sim.run --out DIR --record full)"


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
    section.remarks.extend(remark("Hit rate by layer {names} lack.", [run for run in runs if run.name not in names]))
    table = tables.gigabytes(runs)
    total = table.sum(axis=1)
    section.panels.append(
        Panel(
            "bytes",
            f"{span(total.to_numpy())} GB cross the link",
            "Landed transfers by what they were for. A promoted prefetch counts as demand.",
            figures.gigabytes(table),
            cells(table, "{:,.1f}"),
            wide=True,
        )
    )
    full = [run for run in runs if run.record is not None and run.record.groups]
    section.panels.extend(_over_time(run) for run in full)
    held = [run for run in runs if run.full and run not in full]
    section.remarks.extend(
        remark(f"Time courses are shown for the first {most} full records: not for {{names}}.", held)
    )
    over = f"Cache occupancy and link use over time {NEEDS_FULL}."
    section.remarks.extend(remark(over, [run for run in runs if not run.full]))
    return section


def _over_time(run: Run) -> Panel:
    record = run.record
    assert record is not None  # of a full record
    at = series.edges(record)
    total = sum(tables.slots(run))
    slots = series.occupancy(record, run.trace["n_experts"], run.summary["start"]["residents"], at, Asked.of(run.spec))
    link = series.link_use(record, at)
    busy = sum(float(values.mean()) for values in link.values())
    filled = sum(float(values.mean()) for values in slots.values()) / max(total, 1)
    title = (
        f"{run.titled}: {total:,} slots, {100 * filled:.3g} % in use; the link is busy {100 * busy:.3g} % of the time"
    )
    caption = (
        "Means over 400 equal spans of the run. A slot holds an expert from its landing to the commit that takes it. "
        "First residents are what placement put there before time 0."
    )
    return Panel(f"over-time-{run.name}", title, caption, figures.over_time(at, slots, link, total), wide=True)


def prefetching(runs: Sequence[Run]) -> Section:
    table = tables.prefetching(runs)
    section = Section("prefetch", "Prefetching")
    if not len(table):
        section.remarks.append("No run prefetches.")
        return section
    counts = table.drop(columns=["accuracy", "coverage", "timeliness"])
    best = table["coverage"].idxmax() if table["coverage"].notna().any() else table.index[0]
    titled = {run.name: run.titled for run in runs}
    panels = [
        Panel(
            "prefetch-rates",
            f"{titled[best]} takes away {100 * table.loc[best, 'coverage']:.3g} % of the misses; "
            f"{percent_range(table['accuracy'].to_numpy())} of what is prefetched is wanted",
            "Accuracy: wanted while resident or in flight, of all that landed. Coverage: would-be misses that had "
            "landed in time, of these and of late and missed experts. Timeliness: landed in time, of the wanted.",
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


def quality(runs: Sequence[Run], found: Comparison) -> Section:
    """Speed against what it costs, and where the substitutions are."""
    section = Section("quality", "Quality against speed")
    known = [row for row in found.rows if row["tokens_per_s"] is not None and row["lost_weight"] is not None]
    if any(row["lost_weight"] for row in known):
        best = [row["run"] for row in known if row["pareto_best"]]
        section.panels.append(
            Panel(
                "pareto",
                f"Pareto-best: {listed(best)}" if best else "No run is on a front",
                "Up is faster, left is nearer to the model. Router weight that another expert answered for, or nobody, "
                "is all that a replay knows of quality: it is open-loop and no perplexity. Open markers stand apart: "
                "oracles, and runs whose loss is partly unseen.",
                compare_figures.pareto(found),
                _standings(known),
                wide=True,
            )
        )
    unknown = [run for run in runs if run.lost_weight is None]
    section.remarks.extend(remark("Quality is not known for {names}: no weights.", unknown))
    section.panels.extend(_substitutions(runs))
    if not any(run.lossy for run in runs):
        section.remarks.append("No run is lossy: nothing is substituted or dropped.")
    short = [run for run in runs if run.lossy and not (run.record and run.record.groups)]
    section.remarks.extend(remark(f"What the miss policy answered by layer {NEEDS_FULL}.", short))
    return section


def _standings(rows: Sequence[formats.Row]) -> Cells | None:
    if len(rows) > MAX_TABLE_ROWS:
        return None
    speeds = [figure(row["tokens_per_s"], 3) for row in rows]
    lost = [formats.percent(row["lost_weight"], 2) for row in rows]
    best = ["yes" if row["pareto_best"] else "" for row in rows]
    names = [row["run"] for row in rows]
    return ["run", "tokens/s", "lost weight", "best"], [
        list(row) for row in zip(names, speeds, lost, best, strict=True)
    ]


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
        out.append(answers(run))
    return out


def measured(runs: Sequence[Run]) -> Section | None:
    """Simulated against measured, where both exist; None where no run is measured."""
    if not any(run.measured for run in runs):
        return None
    section = Section("measured", "Simulated against measured")
    found = tables.pairs(runs)
    left = [run for run in runs if run.measured and run not in [mine for mine, _ in found]]
    section.remarks.extend(remark("No simulated run of the same spec and trace beside {names}.", left))
    for mine, other in found:
        if mine.summary["memory"].get("slots") != other.summary["memory"].get("slots"):
            section.remarks.append(f"{mine.name} and {other.name} have experts of other sizes: that is no check.")
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
