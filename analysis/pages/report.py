"""The report: which sections it has, and which runs are drawn where there are many."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from analysis.comparing.comparison import Comparison, compare
from analysis.pages.engine_section import engines
from analysis.pages.first_screen import first_screen
from analysis.pages.miss_section import misses
from analysis.pages.page import render
from analysis.pages.panels import Section
from analysis.pages.policy_sections import cache, measured, prefetching, quality
from analysis.pages.run_sections import in_short, speed, time, what_was_run
from analysis.pages.step_section import steps
from analysis.pages.sweep_section import swept
from analysis.pages.trace_sections import find_trace, trace_section
from analysis.pages.window_section import speculation
from analysis.reading.run import Run
from traces.format.trace import RoutingTrace

DETAILED = 6  # full records that are drawn over time
DRAWN = 40  # runs in figures that have a row for each


class Told(NamedTuple):
    """What sections are made of. found: the comparison of all runs; drawn, rows: those that have a row in figures;
    trace: of the first run, or why it is not there; buddies, similarity: files, if they were given."""

    runs: Sequence[Run]
    found: Comparison
    drawn: Sequence[Run]
    rows: Comparison
    trace: tuple[RoutingTrace | None, str]
    buddies: str | None = None
    similarity: str | None = None


# in the order in which they are read; None: there is nothing to be said
SECTIONS: dict[str, Callable[[Told], Section | None]] = {
    "what": lambda told: what_was_run(told.drawn),
    "short": lambda told: in_short(told.drawn, told.rows),
    "sweep": lambda told: swept(told.runs),
    "speed": lambda told: speed(told.drawn, told.rows),
    "time": lambda told: time(told.drawn),
    "step": lambda told: steps(told.runs, told.found.baseline),
    "cache": lambda told: cache(told.drawn, DETAILED),
    "prefetch": lambda told: prefetching(told.drawn),
    "engines": lambda told: engines(told.runs),
    "misses": lambda told: misses(told.drawn),
    "speculation": lambda told: speculation(told.drawn),
    "quality": lambda told: quality(told.drawn, told.found),
    "measured": lambda told: measured(told.runs),
    "trace": lambda told: trace_section(*told.trace, told.buddies, told.similarity),
}


def report(
    runs: Sequence[Run],
    baseline: str | int = 0,
    trace: str | None = None,
    buddies: str | None = None,
    similarity: str | None = None,
    seed: int = 0,
) -> str:
    """The page as HTML. Runs as `load(paths, detail=DETAILED)` returns them. Raises UserError for bad input."""
    found = compare(runs, baseline, seed)
    drawn, rows = _drawn(runs, found)
    told = Told(runs, found, drawn, rows, find_trace(runs[0], trace), buddies, similarity)
    sections = [section for make in SECTIONS.values() if (section := make(told)) is not None]
    notes = list(found.notes)
    if len(drawn) < len(runs):
        notes.append(f"{len(runs)} runs: the baseline, the best and the fastest {DRAWN} have rows; quality shows all")
    return render(sections, notes, _title(runs), first_screen(found, [run.policy for run in drawn]))


def _drawn(runs: Sequence[Run], found: Comparison) -> tuple[list[Run], Comparison]:
    """At most DRAWN runs, in their order: the baseline, then the Pareto-best, then the fastest."""
    if len(runs) <= DRAWN:
        return list(runs), found

    def standing(i: int) -> tuple[bool, bool, float]:
        row = found.rows[i]
        return row["run"] == found.baseline, row["pareto_best"], row["tokens_per_s"] or 0.0

    kept = sorted(sorted(range(len(runs)), key=standing, reverse=True)[:DRAWN])
    return [runs[i] for i in kept], replace(found, rows=[found.rows[i] for i in kept])


def _title(runs: Sequence[Run]) -> str:
    models = list(dict.fromkeys(run.trace["model"] for run in runs))
    return f"Expert offloading: {len(runs)} run{'s' * (len(runs) > 1)} of {', '.join(models)}"
