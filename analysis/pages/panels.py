"""What a report is made of: sections of panels, each a sentence that says what is seen, a figure and its figures as a
table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from analysis.reading.run import Run
from analysis.showing.words import listed

Cells = tuple[list[str], list[list[str]]]  # titles, rows
MAX_TABLE_ROWS = 60


@dataclass(frozen=True)
class Panel:
    """key: its id on the page. title: what is seen. caption: how to read it. choices: (label, z [n, m]) of a heatmap
    that shows one of several; the figure holds the one that is `chosen`. facts: (name, value) to be listed. wide: it
    takes the whole width."""

    key: str
    title: str
    caption: str
    figure: go.Figure | None = None
    table: Cells | None = None
    choices: Sequence[tuple[str, npt.NDArray[Any]]] = ()
    chosen: int = 0
    facts: Sequence[tuple[str, str]] = ()
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """remarks: what is left out of it, and why."""

    key: str
    heading: str
    panels: list[Panel] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def cells(table: pd.DataFrame, show: str = "{:,.3f}", first: str = "run") -> Cells | None:
    """A frame as text; None where it is too long to be read."""
    if len(table) > MAX_TABLE_ROWS:
        return None
    rows = [
        [str(name), *(_cell(value, show) for value in row)] for name, row in zip(table.index, table.values, strict=True)
    ]
    return [first, *map(str, table.columns)], rows


def _cell(value: Any, show: str) -> str:
    if isinstance(value, int | float | np.number):
        if not np.isfinite(value):
            return "-"
        return f"{int(value):,}" if float(value).is_integer() else show.format(value)
    return str(value)


def percent_range(values: Iterable[float]) -> str:
    """`57 %`, or `50 to 62 %`, of shares of 1."""
    known = [100 * value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    low, high = f"{min(known):.3g}", f"{max(known):.3g}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def span(values: npt.NDArray[np.float64]) -> str:
    """`10.8`, or `10.8 to 442.6`, of the finite ones."""
    known = values[np.isfinite(values.astype(np.float64))]
    if not len(known):
        return "-"
    low, high = f"{known.min():,.1f}", f"{known.max():,.1f}"
    return low if low == high else f"{low} to {high}"


def without(what: str, runs: Sequence[Run], shown: Sequence[Run], why: str) -> list[str]:
    """One line for the runs that a figure leaves out, or none; `why` holds {names}."""
    left = [run.name for run in runs if run not in shown]
    return [f"{what} {why.format(names=listed(left))}."] if left else []
