"""Tokens/s over a swept number: a line for each policy, a plot for each set of conditions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.pages.figures import AXIS, MANY_TIMES, SMALL, canvas, log_said
from analysis.pages.sweep_tables import SLOTS, Facet, Line, Row, axes, by_facet, lines
from analysis.showing.palette import SEQUENCE, SYMBOLS
from analysis.showing.words import label, shortened
from sim.catalog.intervals import LEVEL
from sim.errors import unknown

MOST_LINES = 8  # in a plot
TICKS = 12  # values that each have a tick of their own
DECADES = 12  # a larger ratio of the last to the first value is drawn on a logarithmic axis
UNITS = {"link_gbps": "GB/s over the link", "host_gbps": "GB/s of the host's memory", SLOTS: SLOTS}
HEIGHT = 360


def sweep(table: pd.DataFrame, axis: str | None = None) -> go.Figure:
    """Tokens/s over a number that was swept (default: the first), of `sweep_tables.sweep_table`: runs of unlike
    conditions in plots of their own. Raises SpecError, one line, for what is no such number."""
    swept = axes(table)
    axis = next(iter(swept), "") if axis is None else axis
    if axis not in swept:
        raise unknown("axis", axis, swept) if swept else unknown("axis", axis or "any", ["(no number was swept)"])
    found = by_facet(lines(table, axis, swept[axis]))
    fig = make_subplots(rows=len(found), cols=1, subplot_titles=[label(mine.name) for mine in found])
    fig.update_layout(canvas(HEIGHT * len(found), "").layout.to_plotly_json() | {"xaxis": {}, "yaxis": {}})
    looks = look_of([drawn(mine) for mine in found])
    for row, mine in enumerate(found, start=1):
        for trace in facet(mine, axis, looks).data:
            fig.add_trace(trace, row=row, col=1)
        x, y = _scales(drawn(mine), mine.points)
        fig.update_xaxes(AXIS | x, row=row, col=1).update_yaxes(AXIS | y, row=row, col=1)
    shown = {trace.name for trace in fig.data}
    for name in shown:
        for again in [trace for trace in fig.data if trace.name == name][1:]:
            again.showlegend = False
    fig.update_xaxes(title={"text": title_of(table, axis), "font": SMALL})
    return log_said(fig.update_yaxes(title={"text": "tokens/s"}))


def drawn(mine: Facet) -> list[Line]:
    """At most MOST_LINES of one set of conditions, in their order: who is best at some point, then the highest."""
    best = {id(line) for line, _ in mine.winners}
    ranked = sorted(mine.lines, key=lambda line: (id(line) not in best, -max(line.speeds)))
    kept = {id(line) for line in ranked[:MOST_LINES]}
    return [line for line in mine.lines if id(line) in kept]


def look_of(plots: Sequence[Sequence[Line]]) -> dict[str, tuple[str, str]]:
    """(colour, symbol) of each name: the same in all plots, and no two alike in one while there are colours left."""
    beside: dict[str, set[str]] = {}
    for mine in plots:
        for line in mine:
            beside.setdefault(line.name, set()).update(each.name for each in mine)
    out: dict[str, tuple[str, str]] = {}
    for i, (name, others) in enumerate(beside.items()):
        taken = {out[other][0] for other in others if other in out}
        free = next((colour for colour in SEQUENCE if colour not in taken), SEQUENCE[i % len(SEQUENCE)])
        out[name] = free, SYMBOLS[i % len(SYMBOLS)]
    return out


def title_of(table: pd.DataFrame, axis: str) -> str:
    """The axis in words."""
    if axis != "cache":
        return UNITS.get(axis, label(axis))
    share = any(isinstance(value, float) for value in table[axis])
    return "cache (share of the experts)" if share else "cache (slots per layer, or of the pool)"


def facet(mine: Facet, axis: str, looks: Mapping[str, tuple[str, str]]) -> go.Figure:
    """One plot: lines of one set of conditions. Oracles are dashed; what has no such number is level and dotted; open
    markers do not fit; the band is the interval of the line that is best most often."""
    shown, at = drawn(mine), mine.points
    fig = canvas(HEIGHT, axis, "generated tokens/s")
    wins = [id(line) for line, _ in mine.winners]
    _band(fig, max(shown, key=lambda line: wins.count(id(line))), looks)
    for line in shown:
        fig.add_trace(_trace(line, axis, at, looks[line.name]))
    x, y = _scales(shown, at)
    return log_said(fig.update_xaxes(**x).update_yaxes(**y))


def _scales(shown: Sequence[Line], at: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the x and the y axis of a plot are set to."""
    x: dict[str, Any] = {"type": "log"} if at[0] > 0 and at[-1] >= DECADES * at[0] else {}
    if len(at) <= TICKS:
        x |= {"tickvals": at, "ticktext": [f"{value:g}" for value in at]}
    speeds = [speed for line in shown for speed in line.speeds if speed > 0]
    many = bool(speeds) and max(speeds) > MANY_TIMES * min(speeds)
    return x, {"type": "log", "dtick": "D2"} if many else {"rangemode": "tozero"}


def _band(fig: go.Figure, line: Line, looks: Mapping[str, tuple[str, str]]) -> None:
    """Between which 80 % of what a real engine does lies, where that is known along the whole line."""
    if line.x is None or len(line.x) < 2 or not all(map(has_interval, line.rows)):
        return
    colour, edge = looks[line.name][0], {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    faint = f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.18)"
    low, high = ([row[f"tokens_per_s_{end}"] for row in line.rows] for end in ("low", "high"))
    name = f"{100 * LEVEL:g} % of {label(shortened(line.name, 40))}"
    fig.add_scatter(x=line.x, y=low, showlegend=False, **edge)
    fig.add_scatter(x=line.x, y=high, fill="tonexty", fillcolor=faint, name=name, **edge)


def has_interval(row: Row) -> bool:
    """Whether it is known how far the real engine may be off."""
    return bool(np.isfinite(row["tokens_per_s_low"]))


def _trace(line: Line, axis: str, at: Sequence[float], look: tuple[str, str]) -> go.Scatter:
    level = line.x is None
    rows = [line.rows[0]] * 2 if level else line.rows
    colour, symbol = look
    speeds = np.array([row["tokens_per_s"] for row in rows])
    return go.Scatter(
        x=[at[0], at[-1]] if line.x is None else line.x,
        y=speeds,
        mode="lines" if level else "lines+markers",
        name=label(shortened(line.label, 60)) + f" (no {label(axis)})" * level,
        line={"color": colour, "width": 2.2, "dash": "dot" if level else "dash" if line.oracle else None},
        marker={"size": 9, "color": colour, "symbol": [symbol + "-open" * (not row["fits"]) for row in rows]},
        error_y=_spread(rows, speeds),
        text=[_more(row) for row in rows],
        hovertemplate=f"%{{fullData.name}}<br>{label(axis)} %{{x}}: %{{y:,.3f}} tokens/s%{{text}}<extra></extra>",
    )


def _spread(rows: Sequence[Row], speeds: Any) -> dict[str, Any] | None:
    """How far the repeats reach, where there are any."""
    if all(row["repeats"] == 1 for row in rows):
        return None
    least, most = (np.array([row[name] for row in rows]) for name in ("least", "most"))
    return {"type": "data", "symmetric": False, "array": most - speeds, "arrayminus": speeds - least, "thickness": 1}


def _more(row: Row) -> str:
    """What else is known of a point."""
    parts = []
    if has_interval(row):
        parts.append(f"{100 * LEVEL:g} %: {row['tokens_per_s_low']:,.2f} to {row['tokens_per_s_high']:,.2f}")
    if row["lost_weight"] > 0:
        parts.append(f"{100 * row['lost_weight']:.2f} % of the router weight lost")
    if row["repeats"] > 1:
        parts.append(f"mean of {row['repeats']} seeds: {row['least']:,.2f} to {row['most']:,.2f}")
    parts += [] if row["fits"] else ["does not fit into the memory"]
    return "".join(f"<br>{part}" for part in parts)
