"""The section of a report about runs that do more on a miss than fetch into a slot (docs/on-a-miss.md)."""

from collections.abc import Sequence

import numpy as np

from analysis.pages import figures, tables
from analysis.pages.panels import Panel, Section, cells, percent_range
from analysis.reading.run import Run, share
from analysis.timelines import series
from sim.outcome.marks import HOST_PARTS
from sim.outcome.table import FITS

ANSWERS = {
    "fetched": "fetched",
    "streamed": "streamed",
    "remote": "read where it lies",
    "cpu": "computed on the CPU",
    "substituted": "substituted",
    "dropped": "dropped",
    "low": "run from a low-precision copy",
}


def misses(runs: Sequence[Run]) -> Section | None:
    """What was streamed, admitted, read remotely and computed on the host; None where no run did any of it."""
    mine = [run for run in runs if run.by_rules]
    if not mine:
        return None
    section = Section("misses", "On a miss", [_counts(mine), _link(mine)])
    section.panels.extend(answers(run) for run in mine if not run.lossy and run.record and run.record.groups)
    facts = [(run.name, _host_memory(run)) for run in mine if run.summary["memory"].get("host")]
    if facts:
        section.panels.append(Panel("host-memory", "What lies in the host's memory", "", facts=facts, wide=True))
    return section


def _counts(runs: Sequence[Run]) -> Panel:
    caption = (
        "Shares of the wanted (token, slot) entries; what is deferred is computed on the CPU, too. Experts are copied "
        "into stages, run from there and forgotten; admitted ones stay. Unwanted: copied with their layer, or come too "
        "late, and never run. Several experts may be one transfer."
    )
    table = cells(tables.on_a_miss(runs), "{:,.1f}")
    return Panel("on-a-miss", _most_common(runs[0]), caption, table=table, wide=True)


def _link(runs: Sequence[Run]) -> Panel:
    times = tables.link_times(runs)
    busy = np.array([share(run.summary["link_busy_ns"], run.summary["time_ns"]) for run in runs])
    caption = (
        "By what the transfers were for. A copy into a stage that the visit itself asked for is a demand, one that was "
        "streamed layers ahead is a stream. Reads where the expert lies are demands, too."
    )
    title = f"The link is busy {percent_range(busy)} of the time"
    return Panel("link-times", title, caption, figures.link_times(times), cells(times))


def _most_common(run: Run) -> str:
    """The answer that most of a run's missing entries got."""
    counts = {word: run.summary[key] for key, word in ANSWERS.items()}
    word, whole = max(counts, key=counts.__getitem__), sum(counts.values())
    if not whole:
        return f"{run.titled} misses nothing"
    return f"{run.titled}: {100 * counts[word] / whole:.3g} % of what is missing is {word}"


def _host_memory(run: Run) -> str:
    host = run.summary["memory"]["host"]
    parts = {name.replace("_", "-"): host.get(name) for name in (*HOST_PARTS, "ram")}
    sizes = ", ".join(f"{name} {'-' if size is None else f'{size / 1e9:,.2f} GB'}" for name, size in parts.items())
    return f"{sizes}: {FITS[host.get('fits')]}"


def answers(run: Run) -> Panel:
    """What was answered by layer, of a full record."""
    assert run.record is not None
    counts = series.answers_by_layer(run.record)
    total = sum(int(values.sum()) for values in counts.values())
    told = ", ".join(f"{name} {100 * values.sum() / total:.3g} %" for name, values in counts.items() if values.any())
    caption = "Each (token, slot) whose expert was not on the GPU, by the answer of the miss policy."
    title = f"{run.titled} answers {total:,} times: {told}" if total else f"{run.titled}: nothing was missing"
    return Panel(f"answers-{run.name}", title, caption, figures.answers_by_layer(counts))
