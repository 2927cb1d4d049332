"""A figure of many runs along one of their settings: which policy wins where."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.api.frames import figures_of
from analysis.pages.figures import canvas
from analysis.reading.run import POLICY_FIELDS, Run, differing, settings
from analysis.showing.palette import colours
from analysis.showing.words import label
from sim.errors import unknown
from traces.errors import UserError

AXES = {"tokens_per_s": "generated tokens/s", "tpot_ms": "TPOT (ms per token)", "hit_rate": "hits, of the wanted"}


def along(runs: Sequence[Run], x: str | None = None, y: str = "tokens_per_s", by: str | None = None) -> go.Figure:
    """A line per policy (or per value of `by`), runs in the order of x; whiskers: the interval of their costs where it
    is known; oracles are dashed, and said to be. x: a setting whose values are numbers; y: a column of the frame."""
    x = _axis(runs) if x is None else x
    at = [_number(run, x) for run in runs]
    figures = [figures_of(run) for run in runs]
    if not isinstance(figures[0].get(str(y)), int | float):
        raise unknown(
            "figure: along: y", str(y), [name for name, v in figures[0].items() if isinstance(v, int | float)]
        )
    lines = _lines(runs, x, by)
    fig, colour = canvas(380, label(x), AXES.get(y, label(y))), colours(list(lines))
    for name, places in lines.items():
        order = sorted(places, key=lambda i: at[i])
        oracles = sum(runs[i].oracle for i in order)
        told = " (oracle)" if oracles == len(order) else " (oracles among them)" if oracles else ""
        whiskers = {"error_y": _whiskers([figures[i] for i in order])} if y == "tokens_per_s" else {}
        fig.add_scatter(
            x=[at[i] for i in order],
            y=[figures[i][y] for i in order],
            mode="lines+markers",
            name=label(f"{name}{told}"),
            line={"color": colour[name], "width": 2.2, "dash": "dot" if oracles else "solid"},
            hovertext=[label(runs[i].name) for i in order],
            hovertemplate="%{hovertext}: %{y:,.4g}<extra></extra>",
            **whiskers,
        )
    return fig.update_yaxes(rangemode="tozero")


def _axis(runs: Sequence[Run]) -> str:
    """The first setting that differs and is a number everywhere."""
    for name in differing(runs):
        if all(_is_number(settings(run).get(name)) for run in runs):
            return name
    raise UserError("figure: along: no setting differs that is a number in all runs; name one: x=...")


def _number(run: Run, x: str) -> float:
    value: Any = settings(run).get(str(x))
    if str(x) not in settings(run):
        raise unknown("figure: along: x", str(x), settings(run))
    if not _is_number(value):
        raise UserError(f"figure: along: x: {x} of {run.name} is {value!r}; must be a number in all runs")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(runs: Sequence[Run], x: str, by: str | None) -> dict[str, list[int]]:
    """Which runs make one line: those equal in `by`; else in all policies, and in whatever else differs but x."""
    known = {name: None for run in runs for name in settings(run)}
    if by is not None and by not in known:
        raise unknown("figure: along: by", str(by), known)
    rest = [name for name in differing(runs) if name not in (x, *POLICY_FIELDS)]
    out: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        mine = settings(run)
        said = [run.policy, *(f"{name} {mine[name]}" for name in rest if name in mine)]
        out.setdefault(str(mine.get(by)) if by is not None else ", ".join(said), []).append(i)
    return out


def _whiskers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    speed = np.array([row["tokens_per_s"] for row in rows], np.float64)
    low, high = (np.array([row[f"tokens_per_s_{end}"] for row in rows], np.float64) for end in ("low", "high"))
    return {"type": "data", "symmetric": False, "array": high - speed, "arrayminus": speed - low, "thickness": 1.2}
