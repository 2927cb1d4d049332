"""Figures of a comparison: how fast each run is against the baseline, and quality against speed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.comparing.comparison import Comparison
from analysis.pages.figures import LABELLED, MANY_TIMES, Float, canvas, rows_canvas, short_labels
from analysis.showing.palette import GREY, colours, symbols
from analysis.showing.words import label, shortened

APART = {"oracle", "loss partly unseen"}  # drawn with open markers: no points of the front


def speed(found: Comparison) -> go.Figure:
    """Tokens/s, a bar per run; whiskers: the interval of the difference from the baseline, at the baseline's rate."""
    rows = found.rows
    names, colour = [row["run"] for row in rows], colours([row["policy"] for row in rows])
    fig = rows_canvas(names, "generated tokens/s")
    speeds = np.array([row["tokens_per_s"] or 0.0 for row in rows])
    low, high = whiskers(found)
    fig.add_bar(
        y=short_labels(names),
        x=speeds,
        orientation="h",
        marker={"color": [colour[row["policy"]] for row in rows]},
        text=[f"{value:,.2f}" for value in speeds],
        textposition="auto",
        insidetextanchor="start",
        error_x={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1.5, "color": GREY},
        hovertext=[label(row["policy"]) for row in rows],
        hovertemplate="%{y}: %{x:,.3f} tokens/s<br>%{hovertext}<extra></extra>",
    )
    return fig.update_layout(showlegend=False)


def whiskers(found: Comparison) -> tuple[Float, Float]:
    """(below, above) tokens/s of each row: how far the interval of its difference reaches; 0 where there is none."""
    base = next(row["tokens_per_s"] for row in found.rows if row["run"] == found.baseline)
    reach = []
    for row in found.rows:
        low, high = row["tokens_per_s_change_low"], row["tokens_per_s_change_high"]
        if low is None or high is None or not base or row["tokens_per_s"] is None:
            reach.append((0.0, 0.0))
            continue
        now = row["tokens_per_s"] / base - 1
        reach.append((max(0.0, now - low) * base, max(0.0, high - now) * base))
    below, above = np.array(reach, np.float64).reshape(-1, 2).T
    return below, above


def pareto(found: Comparison) -> go.Figure:
    """Quality against speed: lost router weight across, tokens/s upward, the front of realisable runs as a line."""
    rows = [row for row in found.rows if row["tokens_per_s"] is not None and row["lost_weight"] is not None]
    fig = canvas(460, "router weight substituted or dropped (%)", "generated tokens/s")
    _fronts(fig, rows)
    colour, symbol = colours([row["policy"] for row in found.rows]), symbols([row["policy"] for row in found.rows])
    low, high = whiskers(found)
    reach = {row["run"]: (low[i], high[i]) for i, row in enumerate(found.rows)}
    ranked = sorted(rows, key=lambda row: (row["tokens_per_s"], row["lost_weight"]))
    side = {row["run"]: f"middle {'left' if i % 2 else 'right'}" for i, row in enumerate(ranked)}
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        above, below = [reach[row["run"]][1] for row in mine], [reach[row["run"]][0] for row in mine]
        shape = symbol[policy] + ("-open" if any(set(row["marks"]) & APART for row in mine) else "")
        fig.add_scatter(
            x=[100 * row["lost_weight"] for row in mine],
            y=[row["tokens_per_s"] for row in mine],
            mode="markers+text" if len(rows) <= LABELLED else "markers",
            text=short_labels([row["run"] for row in mine]),
            textposition=[side[row["run"]] for row in mine],
            cliponaxis=False,
            name=label(shortened(policy, 40)),
            marker={"symbol": shape, "size": 12, "color": colour[policy], "line": {"width": 1.5}},
            error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1},
            customdata=[label(", ".join(row["marks"])) for row in mine],
            hovertemplate="%{text}<br>%{y:,.3f} tokens/s, %{x:.2f} % lost<br>%{customdata}<extra></extra>",
        )
    speeds = [row["tokens_per_s"] for row in rows if row["tokens_per_s"] > 0]
    if speeds and max(speeds) > MANY_TIMES * min(speeds):
        fig.update_yaxes(type="log", dtick="D2")
    return fig


def _fronts(fig: go.Figure, rows: Sequence[dict[str, Any]]) -> None:
    """The Pareto-best rows of each set of conditions, joined from the least loss on."""
    for conditions in dict.fromkeys(row["conditions"] for row in rows):
        best = [row for row in rows if row["pareto_best"] and row["conditions"] == conditions]
        best.sort(key=lambda row: (row["lost_weight"], row["tokens_per_s"]))
        if len(best) > 1:
            fig.add_scatter(
                x=[100 * row["lost_weight"] for row in best],
                y=[row["tokens_per_s"] for row in best],
                mode="lines",
                name="Pareto front",
                line={"shape": "hv", "width": 1.6, "dash": "dot", "color": GREY},
                hoverinfo="skip",
            )
