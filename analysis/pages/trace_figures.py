"""The paper's figures for our data: heatmaps of pairs of experts, activation skew, q mass over rank."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.pages.figures import Float, canvas
from analysis.pages.trace_tables import Spread
from analysis.showing.palette import BLUE, GREY, RED, SCALE

BAND = "rgba(34,116,181,0.25)"


def pairs(square: Float, what: str, unit: str = "", scale: str = SCALE) -> go.Figure:
    """A heatmap of one layer's experts against each other. square: [E, E], NaN where nothing is drawn."""
    fig = canvas(430, "expert j", "expert i")
    low, high = (float(np.nanmin(square)), float(np.nanmax(square))) if np.isfinite(square).any() else (0.0, 1.0)
    fig.add_heatmap(
        z=square.astype(np.float32),
        colorscale=scale,
        zmin=low,
        zmax=high if high > low else low + 1,
        hoverongaps=False,
        colorbar={"title": {"text": what, "side": "right", "font": {"size": 13}}, "thickness": 10, "ticksuffix": unit},
        hovertemplate="i %{y}, j %{x}: %{z:.3g}" + unit + "<extra></extra>",
    )
    fig.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    return fig.update_xaxes(showgrid=False, zeroline=False)


def skew(found: Spread) -> go.Figure:
    """Share of a layer's uses by popularity rank, beside an even use."""
    n = len(found.middle)
    fig = canvas(340, "expert by popularity rank (1 = most used)", "share of the layer's uses (%)")
    _band(fig, found, "layers, 10th to 90th percentile", "median layer")
    _line(fig, [1, n], [100 / n, 100 / n], "even use")
    return fig.update_yaxes(rangemode="tozero")


def q_mass(found: Spread, alpha: float | None = 0.9) -> go.Figure:
    """Mass of q(j|i) in the best t peers, t across; alpha: the threshold at which a list ends."""
    n = len(found.middle)
    fig = canvas(340, "peers on the list, best first", "co-activation covered (%)")
    _band(fig, found, "experts, 10th to 90th percentile", "median expert")
    _line(fig, list(range(1, n + 1)), [100 * i / n for i in range(1, n + 1)], "if all peers were alike")
    if alpha is not None:
        _line(fig, [1, n], [100 * alpha] * 2, f"alpha = {alpha:g}", RED)
    return fig.update_yaxes(range=[0, 102])


def _band(fig: go.Figure, found: Spread, band: str, middle: str) -> None:
    rank = np.arange(1, len(found.middle) + 1)
    fig.add_scatter(x=rank, y=100 * found.high, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    fig.add_scatter(
        x=rank, y=100 * found.low, mode="lines", line={"width": 0}, fill="tonexty", fillcolor=BAND, name=band,
        hoverinfo="skip",
    )  # fmt: skip
    fig.add_scatter(
        x=rank,
        y=100 * found.middle,
        mode="lines+markers",
        line={"color": BLUE, "width": 2.2},
        marker={"size": 5},
        name=middle,
        hovertemplate="rank %{x}: %{y:.1f} %<extra></extra>",
    )


def _line(fig: go.Figure, x: Sequence[float], y: Sequence[float], name: str, colour: str = GREY) -> None:
    line = {"dash": "dot", "width": 1.6, "color": colour}
    fig.add_scatter(x=list(x), y=list(y), mode="lines", line=line, name=name, hoverinfo="skip")
