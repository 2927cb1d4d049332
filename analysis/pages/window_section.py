"""The section of a report about runs with speculative windows (docs/speculation.md)."""

from collections.abc import Sequence

import pandas as pd

from analysis.comparing.comparison import conditions
from analysis.pages import figures, tables
from analysis.pages.panels import Panel, Section, cells
from analysis.reading.run import Run

SEVERAL = "What windows take and give, of runs that are no alternatives of each other"
UNKNOWN = (
    "What rejected rows would have been routed to nobody recorded: the trace's own next rows stand for it. A window's "
    "distinct experts are therefore those of tokens that are accepted later."
)


def speculation(runs: Sequence[Run]) -> Section | None:
    """What windows of each size take and give; None where no run speculates."""
    if not any(run.summary.get("speculation") for run in runs):
        return None
    table = tables.windows(runs)
    caption = (
        "By the rows of a window; 1 is a run that does not speculate. Rows, distinct experts of all visits and bytes "
        "to the GPU, prompts included, are by accepted token."
    )
    panel = Panel(
        "windows",
        _best(table.loc[[run.name for run in runs if not run.oracle]]) if len(set(conditions(runs))) == 1 else SEVERAL,
        caption,
        figures.windows(table),
        cells(table),
        wide=True,
    )
    return Section("speculation", "Speculative windows", [panel], [UNKNOWN])


def _best(table: pd.DataFrame) -> str:
    """The fastest run, and what it takes beside the slowest."""
    known = table["tokens/s"].dropna()
    if not len(known) or known.min() <= 0:
        return "No token was accepted"
    name, ratio = str(known.idxmax()), known.max() / known.min()
    return f"{name}, windows of {int(table['rows of a window'][name])}, is the fastest: {ratio:.2f} x the slowest here"
