"""Figures of runs by the name of their kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.api.frames import runs_of
from analysis.comparing.comparison import compare
from analysis.pages import compare_figures, figures, tables
from analysis.reading.run import Run
from sim.errors import unknown

KINDS: Mapping[str, Callable[[Sequence[Run]], go.Figure]] = {
    "speed": lambda runs: compare_figures.speed(compare(runs)),
    "time": lambda runs: figures.time_parts(tables.time_parts(runs)),
}


def figure(results: Any, kind: str = "speed") -> go.Figure:
    """A figure of runs side by side."""
    if kind not in KINDS:
        raise unknown("figure", kind, KINDS)
    return KINDS[kind](runs_of(results))
