"""A miss curve as a page: tokens/s above, hit rate below, over slots."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.pages.figures import SMALL, two_plots
from analysis.pages.page import render
from analysis.pages.panels import Panel, Section
from analysis.showing.palette import BLUE, GREEN, GREY, RED

COLOURS = {"cliff": RED, "knee": BLUE, "fits": GREY}
HOVER = "%{x} slots: %{y:,.2f}<extra></extra>"


def figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """rows: analysis.curves.curve.rows. Diamonds are the simulator's own figures."""
    fig = two_plots(560, 0.06, margin={"t": 64}, legend={"y": 1.06})  # the names of marks stand below the legend
    slots = [row["slots"] for row in rows]
    checked = [row for row in rows if row["simulated_tokens_per_s"] is not None]
    speed, hits = [row["tokens_per_s"] for row in rows], [100 * row["hit_rate"] for row in rows]
    _line(fig, slots, speed, "predicted", BLUE, 1)
    fig.add_scatter(
        x=[row["slots"] for row in checked],
        y=[row["simulated_tokens_per_s"] for row in checked],
        mode="markers",
        name="simulated",
        marker={"color": RED, "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
        hovertemplate=HOVER,
        row=1,
        col=1,
    )
    _line(fig, slots, hits, "LRU's hits", GREEN, 2)
    for row in rows:
        if row["marks"]:
            _mark(fig, row["slots"], row["marks"])
    fig.update_yaxes(rangemode="tozero")
    fig.update_xaxes(title={"text": "slots", "standoff": 8, "font": SMALL}, row=2, col=1)
    fig.update_yaxes(title={"text": "generated tokens/s", "font": SMALL}, row=1, col=1)
    return fig.update_yaxes(title={"text": "hit rate (%)", "font": SMALL}, row=2, col=1)


def _line(fig: go.Figure, x: list[int], y: list[float], name: str, colour: str, row: int) -> None:
    mode = "lines+markers" if len(x) <= 16 else "lines"
    line = {"color": colour, "width": 2.2}
    fig.add_scatter(x=x, y=y, mode=mode, name=name, line=line, hovertemplate=HOVER, row=row, col=1)


def _mark(fig: go.Figure, slots: int, names: list[str]) -> None:
    """A dotted line through both plots, its name above."""
    colour = COLOURS[names[0]]
    fig.add_vline(x=slots, line={"color": colour, "dash": "dot", "width": 1.6}, row="all", col=1)
    said = {"text": ", ".join(names), "showarrow": False, "yanchor": "bottom", "font": {"color": colour}}
    fig.add_annotation(x=slots, y=1, xref="x", yref="y domain", **said)


def page(what: str, text: Sequence[str], notes: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """One HTML page that asks no host for anything; equal input, equal page. what: its heading; text: what the curve
    says, in sentences; notes: what must be said before any figure."""
    shown = figure(rows).update_layout(margin={"t": 30})  # the page has the legend, its names need no room
    drawn = Panel("curve", "Hits and tokens/s by cache size", " ".join(text), shown, wide=True)
    return render([Section("size", "How large a cache", [drawn])], list(notes), what)
