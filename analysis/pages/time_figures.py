"""One run over time: what filled its slots and what its link carried."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.pages.figures import GRID, canvas
from analysis.showing.palette import CAUSE, SLOT
from analysis.timelines.series import Float


def over_time(at: Float, slots: dict[str, Float], link: dict[str, Float], total: int) -> go.Figure:
    """Occupancy above, link use below, one clock. at: edges of the bins [bins + 1] in ns; slots, link: as
    `series.occupancy` and `series.link_use` return them, [bins] each; total: slots there are."""
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.58, 0.42])
    seconds = ((at[:-1] + at[1:]) / 2e9).astype(np.float32)
    for name, values in slots.items():
        if np.any(values > 1e-6):
            fig.add_trace(_area(seconds, values, name, SLOT[name], "%{y:.1f} slots", "slots"), row=1, col=1)
    for name, values in link.items():
        if np.any(values > 1e-9):
            fig.add_trace(
                _area(seconds, 100 * values, f"link: {name}", CAUSE[name], "%{y:.1f} %", "link"), row=2, col=1
            )
    base = canvas(380, "")
    fig.update_layout(base.layout.to_plotly_json() | {"xaxis": {}, "yaxis": {}, "hovermode": "x unified"})
    fig.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    fig.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    fig.update_xaxes(title={"text": "time (s)", "standoff": 8, "font": {"size": 13}}, row=2, col=1)
    fig.update_yaxes(title={"text": "slots", "font": {"size": 13}}, range=[0, max(total, 1) * 1.02], row=1, col=1)
    return fig.update_yaxes(title={"text": "link busy (%)", "font": {"size": 13}}, range=[0, 102], row=2, col=1)


def _area(x: Any, y: Float, name: str, colour: str, hover: str, group: str) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y.astype(np.float32),
        name=name,
        stackgroup=group,
        mode="lines",
        line={"width": 0.5, "color": colour, "shape": "hvh"},
        fillcolor=colour,
        hovertemplate=f"{name}: {hover}<extra></extra>",
    )
