"""What a report is made of: sections of panels, each a sentence that says what is seen, a figure and its figures as a
table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from analysis.reading.run import Run
from analysis.showing.words import listed, plain

Cells = tuple[list[str], list[list[str]]]  # titles, rows
MAX_TABLE_ROWS = 60


@dataclass(frozen=True)
class Panel:
    """key: its id on the page. title: what is seen. caption: how to read it. choices: (label, z [n, m]) of a heatmap
    that shows one of several; the figure holds the one that is `chosen`. facts: (name, value) to be listed. wide: it
    takes the whole width. prose: HTML of `analysis.pages.prose`, shown as it is instead of title and rest. among: (id,
    what is chosen, an option) of panels that follow each other of which those of one option are shown, of the first at
    first; without a script all are."""

    key: str
    title: str
    caption: str
    figure: go.Figure | None = None
    table: Cells | None = None
    choices: Sequence[tuple[str, npt.NDArray[Any]]] = ()
    chosen: int = 0
    facts: Sequence[tuple[str, str]] = ()
    wide: bool = False
    prose: str = ""
    among: tuple[str, str, str] | None = None

    def one_of(self, group: str, what: str, name: str) -> "Panel":
        """The same as one of a group that a reader chooses from."""
        return replace(self, among=(group, what, name))


@dataclass(frozen=True)
class Section:
    """remarks: what is left out of it, and why. folded: its heading alone is seen until it is opened; no figures."""

    key: str
    heading: str
    panels: list[Panel] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    folded: bool = False


@dataclass(frozen=True)
class First:
    """The first screen: the answer in a sentence, one figure, and what holds the winner back ("": nobody won)."""

    sentence: str
    panel: Panel
    held_back: str


def cells(table: pd.DataFrame, show: str = "{:,.3f}") -> Cells | None:
    """A frame as text; None where it is too long to be read."""
    if len(table) > MAX_TABLE_ROWS:
        return None
    rows = zip(table.index, table.to_numpy(), strict=True)
    return ["run", *table.columns], [[name, *(_cell(value, show) for value in row)] for name, row in rows]


def _cell(value: Any, show: str) -> str:
    if not isinstance(value, int | float | np.number):
        return plain(value)
    if not np.isfinite(value):
        return "-"
    return f"{int(value):,}" if float(value).is_integer() else show.format(value)


def percent_range(values: npt.NDArray[np.float64]) -> str:
    """`57 %`, or `50 to 62 %`, of shares of 1."""
    return span(100 * values, ".3g", " %")


def span(values: npt.NDArray[np.float64], form: str = ",.1f", unit: str = "") -> str:
    """`10.8`, or `10.8 to 442.6`, of the finite ones."""
    known = values[np.isfinite(values.astype(np.float64))]
    if not len(known):
        return "-"
    low, high = format(known.min(), form), format(known.max(), form)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def remark(text: str, runs: Sequence[Run]) -> list[str]:
    """One line about `runs`, whose names take the place of {names}; none where there are no such runs."""
    return [text.format(names=listed([run.name for run in runs]))] if runs else []
