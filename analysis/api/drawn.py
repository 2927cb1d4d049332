"""Figures of runs by the name of their kind: those of the report, and speed along an axis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.api.along import along
from analysis.api.frames import runs_of
from analysis.comparing.comparison import Comparison, compare
from analysis.pages import compare_figures, figures, tables
from analysis.reading.run import Run
from analysis.showing.words import label
from analysis.timelines import series
from analysis.timelines.asked import Asked
from sim.errors import unknown
from sim.outcome.per_request import per_request
from traces.errors import UserError

Runs = Sequence[Run]
NEEDS_FULL = "needs a full record: simulate(..., record='full'), or --record full with --out"


@dataclass(frozen=True)
class Kind:
    """A figure of runs. does: what it shows; draw: with the options that it takes; full: needs full records; one: is of
    one run alone."""

    does: str
    draw: Callable[..., go.Figure]
    full: bool = False
    one: bool = False


def _compared(draw: Callable[[Comparison], go.Figure]) -> Callable[..., go.Figure]:
    return lambda runs, baseline=0: draw(compare(runs, baseline))


def _policies(runs: Runs) -> list[str]:
    return [run.policy for run in runs]


def _tpot(runs: Runs) -> go.Figure:
    requests = {run.name: per_request(run.record).tpot_ms for run in runs if run.record is not None}
    return figures.tpot(tables.latencies(runs), requests, _policies(runs))


def _steps(runs: Runs) -> go.Figure:
    kept = [run for run in runs if run.record is not None]
    if not kept:
        raise UserError("figure: steps: needs a record; a summary alone has none")
    return figures.step_times({run.name: series.decode_step_ms(_record(run)) for run in kept}, _policies(kept))


def _hits(runs: Runs) -> go.Figure:
    names, shares = tables.hit_rates(runs)
    return figures.by_layer(names, shares, "hits, of the wanted (%)")


def _lost(runs: Runs) -> go.Figure:
    names, shares = tables.lost_by_layer(runs)
    if not names:
        raise UserError("figure: lost: no run here loses router weight")
    return figures.by_layer(names, shares, "router weight lost (%)")


def _record(run: Run) -> Any:
    assert run.record is not None
    return run.record


def _clock(runs: Runs) -> go.Figure:
    run, record = runs[0], _record(runs[0])
    at, first = series.edges(record), run.summary["start"]["residents"]
    slots = series.occupancy(record, run.trace["n_experts"], first, at, Asked.of(run.spec))
    return figures.over_time(at, slots, series.link_use(record, at), sum(tables.slots(run)))


KINDS: Mapping[str, Kind] = {
    "speed": Kind("tokens/s, a bar per run, with intervals", _compared(compare_figures.speed)),
    "pareto": Kind("lost router weight against tokens/s", _compared(compare_figures.pareto)),
    "along": Kind("tokens/s along a setting, a line per policy; x, y, by", along),
    "time": Kind("where the time went", lambda runs: figures.time_parts(tables.time_parts(runs))),
    "tpot": Kind("time per token, a dot per request", _tpot),
    "steps": Kind("how long decode steps take", _steps),
    "hits": Kind("hit rate by layer", _hits),
    "lost": Kind("lost router weight by layer", _lost),
    "sent": Kind("GB sent to the GPU by cause", lambda runs: figures.gigabytes(tables.gigabytes(runs))),
    "bounds": Kind("how near each run is to its bounds", lambda runs: figures.bounds(tables.bounds(runs))),
    "answers": Kind("what was answered on a miss, by layer", lambda runs: figures.answers_by_layer(
        series.answers_by_layer(_record(runs[0]))), full=True, one=True),
    "clock": Kind("slots and link over the run's time", _clock, full=True, one=True),
}  # fmt: skip


def drawn(results: Any, kind: str, options: Mapping[str, Any]) -> go.Figure:
    """See analysis.api.offered.figure."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown("figure", str(kind), KINDS)
    runs, chosen = runs_of(results), KINDS[kind]
    if chosen.full and not all(run.full for run in runs):
        raise UserError(f"figure: {kind}: {NEEDS_FULL}")
    if chosen.one and len(runs) > 1:
        raise UserError(f"figure: {kind}: is of one run; {len(runs)} are given")
    try:
        fig = chosen.draw(runs, **options)
    except TypeError as error:
        if options and "unexpected keyword" in str(error):
            raise UserError(f"figure: {kind}: {str(error).partition('() ')[2] or error}") from None
        raise
    return _marked(fig, runs)


def _marked(fig: go.Figure, runs: Runs) -> go.Figure:
    """With what must be said of its runs above it: a figure alone has no page that says so."""
    marks = dict.fromkeys(mark for run in runs for mark in run.marks)
    several = {mark: sum(mark in run.marks for run in runs) for mark in marks}
    said = [mark if n == len(runs) else f"{mark} ({n} of {len(runs)})" for mark, n in several.items()]
    if not said:
        return fig
    title = {"text": label("; ".join(said)), "x": 0, "xref": "paper", "font": {"size": 12}, "automargin": True}
    return fig.update_layout(title={**title, "yref": "container", "y": 0.99, "yanchor": "top"})
