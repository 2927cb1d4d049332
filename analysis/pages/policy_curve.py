"""Many policies over cache size as a page: tokens/s above, hit rate below, over slots and over GB."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.curves.policies import FLOOR, ONE_PASS, Line, Policies
from analysis.pages.figures import MANY_TIMES, SMALL, log_said, two_plots
from analysis.pages.page import render
from analysis.pages.panels import Panel, Section
from analysis.showing.palette import GREY, SHADES, symbols
from analysis.showing.words import label

Row = dict[str, Any]
TICKS = 9  # about as many capacities are named at an axis
NESTING = 5  # sizes of open marks: those that tie are seen within each other
DASHES = ("solid", "dash", "dot", "dashdot")


def figure(found: Policies, rows: Sequence[Row]) -> go.Figure:
    """rows: analysis.curves.policies.rows. Marks are the simulator's figures; those without are predicted ones."""
    fig = two_plots(760, 0.05, margin={"t": 56}, legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    marks = symbols([line.policy for line in found.lines])
    for i, line in enumerate(found.lines):
        look = _look(line, i)
        mine = [row for row in rows if row["policy"] == line.policy]
        for place, key, times in ((1, "tokens_per_s", 1), (2, "hit_rate", 100)):
            _line(fig, _smooth(found, line, mine, key), times, _name(mine[0]), look, place)
            shown = [row for row in mine if row["slots"] in found.slots]
            mark = {"symbol": f"{marks[line.policy]}-open", "size": 7 + 2 * (i % NESTING), "color": look["color"]}
            _points(fig, shown, key, times, mark | {"line": {"width": 1.6}}, place)
    fig.update_yaxes(rangemode="tozero")
    speeds = [row["tokens_per_s"] for row in rows]
    if max(speeds) > MANY_TIMES * min(speeds):
        fig.update_yaxes(type="log", dtick="D2", row=1, col=1)
    fig.update_yaxes(title={"text": "generated tokens/s", "font": SMALL}, row=1, col=1)
    fig.update_yaxes(title={"text": "hit rate (%)", "font": SMALL}, row=2, col=1)
    return log_said(_both_axes(fig, found))


def _look(line: Line, i: int) -> Row:
    """The floor is grey; each policy has a colour, and where colours come again another dash."""
    if line.policy == FLOOR:
        return {"color": GREY, "dash": "dash", "width": 2.4}
    return {"color": SHADES[i % len(SHADES)], "dash": DASHES[i // len(SHADES) % len(DASHES)], "width": 2}


def _smooth(found: Policies, line: Line, rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """(slots, values) of its line: of one pass all predicted, so that it has no steps where the simulator ran."""
    if key == "tokens_per_s" and line.how == ONE_PASS:
        return line.slots.tolist(), line.predicted.tolist()
    return [row["slots"] for row in rows], [row[key] for row in rows]


def _line(fig: go.Figure, at: tuple[list[int], list[float]], times: int, name: str, look: Row, place: int) -> None:
    x, y = at
    fig.add_scatter(
        x=x,
        y=[times * value for value in y],
        mode="lines",
        name=name,
        legendgroup=name,
        showlegend=False,
        line=look,
        hoverinfo="skip",
        row=place,
        col=1,
    )


def _points(fig: go.Figure, rows: Sequence[Row], key: str, times: int, mark: Row, place: int) -> None:
    """A policy's chosen capacities."""
    name, values = _name(rows[0]), [times * row[key] for row in rows]
    fig.add_scatter(
        x=[row["slots"] for row in rows],
        y=values,
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=place == 1,
        marker=mark,
        error_y=_whiskers(rows, values) if place == 1 else None,
        customdata=[[label(_said(row))] for row in rows],
        hovertemplate="%{x} slots: %{y:,.2f}%{customdata[0]}<extra>%{fullData.name}</extra>",
        row=place,
        col=1,
    )


def _name(row: Row) -> str:
    """In the legend; the floor says by its name that nobody can be there."""
    return label(row["policy"] + " (oracle)" * (row["oracle"] and row["policy"] != FLOOR))


def _said(row: Row) -> str:
    """What a mark says beside its figure."""
    over = [] if row["over_floor"] is None else [f"{row['over_floor']:.2f} x floor"]
    ties = [f"as {', '.join(row['tied_with'])}"] if row["tied_with"] else []
    return "".join(f"; {each}" for each in (f"{row['gb']:,.2f} GB", *over, row["tokens_by"], *ties))


def _whiskers(rows: Sequence[Row], values: Sequence[float]) -> Row | None:
    """The interval of tokens/s, where one is known."""
    if rows[0]["tokens_per_s_low"] is None:
        return None
    up = [row["tokens_per_s_high"] - value for row, value in zip(rows, values, strict=True)]
    down = [value - row["tokens_per_s_low"] for row, value in zip(rows, values, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3}


def _both_axes(fig: go.Figure, found: Policies) -> go.Figure:
    """Slots below, and what they take in GB above: one scale, so both are right wherever one looks."""
    plan = found.setting.plan
    ticks = _ticks(found)
    sizes = [f"{slots * len(plan.slots) * plan.expert_bytes / 1e9:,.3g}" for slots in ticks]
    fig.add_scatter(x=ticks, y=[None] * len(ticks), xaxis="x3", yaxis="y", showlegend=False, hoverinfo="skip")
    axis = {"tickmode": "array", "tickvals": ticks}
    fig.update_layout(
        xaxis3={"overlaying": "x", "side": "top", "matches": "x", "ticktext": sizes, "showgrid": False, **axis}
        | {"title": {"text": "GB of slots", "font": SMALL}, "zeroline": False}
    )
    fig.update_xaxes(range=[0, max(ticks) * 1.03], **axis, row=1, col=1)
    return fig.update_xaxes(title={"text": "slots", "standoff": 8, "font": SMALL}, **axis, row=2, col=1)


def _ticks(found: Policies) -> list[int]:
    """The chosen capacities and all experts; every second, third, ... where they are many."""
    every = sorted({*found.slots, found.size})
    return every[:: -(-len(every) // TICKS)]


def page(what: str, text: Sequence[str], notes: Sequence[str], found: Policies, rows: Sequence[Row]) -> str:
    """One HTML page that asks no host for anything; equal input, equal page. Arguments: as of analysis.pages.curve."""
    drawn = Panel("curve", "Hits and tokens/s by policy and cache size", " ".join(text), figure(found, rows), wide=True)
    return render([Section("size", "How large a cache, under which policy", [drawn])], list(notes), what)
