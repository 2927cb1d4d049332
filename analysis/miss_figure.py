"""The curve of analysis.miss_curve as a page of one figure: tokens/s above, hit rate below, over slots."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

BLUE, GREEN, RED, GREY = "#2274b5", "#0e9b74", "#d55e00", "#8a949e"
GRID = "rgba(128,140,152,0.28)"
MARKS = {"cliff": RED, "knee": BLUE, "fits": GREEN}
STYLE = """
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  p { margin: 0.2rem 0; } .loud { color: #a33b00; font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    body { background: #11161c; color: #e6edf3; } .loud { color: #ffa657; }
    .js-plotly-plot text { fill: #e6edf3 !important; }
  }
"""


def figure(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """rows: analysis.miss_curve.rows. Dots are the simulator's own figures."""
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    slots = [row["slots"] for row in rows]
    hover = "%{x} slots: %{y:.2f}<extra></extra>"
    speed, hits = [row["tokens_per_s"] for row in rows], [100 * row["hit_rate"] for row in rows]
    fig.add_scatter(
        x=slots, y=speed, mode="lines", name="predicted", line={"color": BLUE}, hovertemplate=hover, row=1, col=1
    )
    checked = [row for row in rows if row["simulated_tokens_per_s"] is not None]
    fig.add_scatter(
        x=[row["slots"] for row in checked],
        y=[row["simulated_tokens_per_s"] for row in checked],
        mode="markers",
        name="simulated",
        marker={"color": RED, "size": 8, "symbol": "diamond"},
        hovertemplate=hover,
        row=1,
        col=1,
    )
    fig.add_scatter(
        x=slots, y=hits, mode="lines", name="LRU hits", line={"color": GREEN}, hovertemplate=hover, row=2, col=1
    )
    for row in rows:
        if row["marks"]:
            colour = MARKS[row["marks"][0]]
            fig.add_vline(x=row["slots"], line={"color": colour, "dash": "dot"}, row="all", col=1)
            name = {"text": ", ".join(row["marks"]), "showarrow": False, "yanchor": "bottom", "font": {"color": colour}}
            fig.add_annotation(x=row["slots"], y=1, yref="y domain", xref="x", **name)
    fig.update_layout(
        template="none",
        height=560,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.12},
    )
    fig.update_xaxes(gridcolor=GRID, zerolinecolor=GRID)
    fig.update_xaxes(title="slots", row=2, col=1)
    fig.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, rangemode="tozero")
    fig.update_yaxes(title="generated tokens/s", row=1, col=1)
    return fig.update_yaxes(title="hit rate (%)", row=2, col=1)


def page(text: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """One HTML page that asks no host for anything; text: analysis.miss_curve.describe. Equal input, equal page."""
    loud = "".join(
        f'<p class="loud">{escape(line[2:])}</p>' if line.startswith("! ") else f"<p>{escape(line)}</p>"
        for line in text
        if line
    )
    drawn = figure(rows).to_html(full_html=False, include_plotlyjs=False, div_id="curve", config={"displaylogo": False})
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cache size</title><style>{STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><main>{loud}{drawn}</main></body></html>\n"
    )
