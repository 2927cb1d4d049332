"""Figures of a comparison: how fast each run is against the baseline, and quality against speed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis.comparing.answer import name_of
from analysis.comparing.comparison import Comparison
from analysis.pages.figures import LABELLED, MANY_TIMES, ROW, Float, canvas, log_said, rows_canvas
from analysis.pages.labels import short_labels
from analysis.showing.palette import GREY, colours, symbols
from analysis.showing.words import label, plain, rate, shortened
from sim.catalog.intervals import LEVEL

Row = dict[str, Any]
Box = tuple[float, float, float, float]
APART = {"oracle", "loss partly unseen"}  # drawn with open markers: no points of the front
# what kind of a run a bar is: a word, its pattern. The first that holds is a bar's own.
KINDS = {
    "oracle": ("reads the future: no choice", "/"),
    "does not fit": ("does not fit: no choice", "x"),
    "does not fit the host": ("does not fit: no choice", "x"),
    "open-loop": ("lossy, open loop", "."),
    "loss partly unseen": ("lossy, open loop", "."),
}
SIDES = ("top right", "bottom right", "bottom left", "top left")  # of a point, for its name
SIDES_LAST = ("top left", "bottom left")
PLOT = (420.0, 330.0)  # px across and up between the outermost points of a narrow plot; a wide one has more room
LETTER, LINE, MARKER = 6.6, 15.0, 12.0  # px: a letter's width, a name's height, a marker with its edge
COMPACT = 22  # px of a bar's row where it must be low
WHOLE = 40  # letters of a run's name in one line
HEAD = 34  # letters of the line that names a kind of runs
PLAIN = ("can be had, nothing lost", "")


def speed(found: Comparison, compact: bool = False, policies: Sequence[str] = ()) -> go.Figure:
    """Tokens/s, a bar per run, whiskers as `whiskers` finds them. Runs that are no alternatives of each other are not
    on one scale: their bars are shares of the fastest of their kind. compact: lower rows; policies: those of
    other figures, in their order, so that each has one colour (default: of these rows). Runs of a kind stand
    together."""
    found = replace(found, rows=sorted(found.rows, key=lambda row: row["conditions"]))
    colour = colours([*policies, *(row["policy"] for row in found.rows)])
    names, drawn, heads = _lines(found)
    across = "share of the fastest of its kind (%)" if heads else "generated tokens/s"
    fig = rows_canvas(names, across, row=COMPACT if compact else ROW, line=WHOLE)
    labels = short_labels(names)
    lines, unit, (low, high) = [labels[place] for place in drawn], _units(found), whiskers(found)
    for kind in dict.fromkeys(map(_kind, found.rows)):
        mine = [i for i, row in enumerate(found.rows) if _kind(row) == kind]
        error = _error(high[mine] / unit[mine], low[mine] / unit[mine])
        look = _look([colour[found.rows[i]["policy"]] for i in mine], kind)
        fig.add_bar(**_bars(found, mine, unit), y=[lines[i] for i in mine], error_x=error, **look)
    ends = (np.array([row["tokens_per_s"] or 0.0 for row in found.rows]) + high) / unit
    fig.add_scatter(
        x=ends,
        y=lines,
        mode="text",
        text=[f" {_beside(row)}" for row in found.rows],
        textposition="middle right",
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )
    for place in heads:
        at = {"x": 0, "xref": "paper", "xanchor": "left", "y": labels[place], "showarrow": False}
        fig.add_annotation(text=label(shortened(names[place], HEAD)), font={"weight": 700}, **at)
    if heads:
        _nameless(fig, heads)
    return _with_room(fig, float(ends.max(initial=0.0)) or 1.0, max(len(_beside(row)) for row in found.rows))


def _bars(found: Comparison, mine: Sequence[int], unit: Float) -> dict[str, Any]:
    rows = [found.rows[i] for i in mine]
    return {
        "x": [(row["tokens_per_s"] or 0.0) / unit[i] for i, row in zip(mine, rows, strict=True)],
        "customdata": [[row["tokens_per_s"] or 0.0, label(row["policy"])] for row in rows],
        "hovertemplate": "%{y}: %{customdata[0]:,.3f} tokens/s<br>%{customdata[1]}<extra></extra>",
        "orientation": "h",
    }


def _look(shades: Sequence[str], kind: tuple[str, str]) -> dict[str, Any]:
    """Pattern and name by kind."""
    name, shape = kind
    pattern = {"shape": shape, "fillmode": "replace", "size": 7, "solidity": 0.55} if shape else {}
    return {"name": name, "marker": {"color": [*shades], "pattern": pattern}}


def title_of_speed(found: Comparison) -> str:
    """What the bars of `speed` are."""
    return "Generated tokens per second" + ", as shares of the fastest of their kind" * _several(found)


def about_speed(found: Comparison) -> str:
    """What the whiskers of `speed` are."""
    if not any(map(np.any, whiskers(found))):
        return "No intervals are known."
    if _of_costs(found):
        return f"Whiskers: {100 * LEVEL:g} % interval of the engine's costs."
    base = next(row for row in found.rows if row["run"] == found.baseline)
    other = "the fastest of its kind" if _several(found) else name_of(base)
    return f"Whiskers: 95 % interval of the difference from {other}, paired over requests."


def _lines(found: Comparison) -> tuple[list[str], list[int], list[int]]:
    """(names of the lines, the line of each row, the lines that name a kind of runs)."""
    names, drawn, heads = list[str](), list[int](), list[int]()
    several = _several(found)
    for i, row in enumerate(found.rows):
        if several and (i == 0 or found.rows[i - 1]["conditions"] != row["conditions"]):
            heads.append(len(names))
            names.append(plain(row["work"]))
        drawn.append(len(names))
        names.append(row["run"])
    return names, drawn, heads


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    return next((look for mark, look in KINDS.items() if mark in row["marks"]), PLAIN)


def _nameless(fig: go.Figure, places: Sequence[int]) -> None:
    """No labels at the axis for these lines, neither on a phone."""
    axis = fig.layout.meta["narrow"]["yaxis"]
    values = axis["tickvals"]
    for place in places:
        axis["ticktext"][place] = ""
    shown = ["" if i in places else text for i, text in enumerate(fig.layout.yaxis.ticktext)]
    fig.update_yaxes(ticktext=shown, tickvals=values)


def _error(above: Float, below: Float) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.5, "color": GREY}


def _beside(row: dict[str, Any]) -> str:
    """What stands behind a bar: its figure, and what it is paid with."""
    said = rate(row["tokens_per_s"])
    if "oracle" in row["marks"]:
        return f"{said} (oracle)"
    return f"{said} (-{row['lost_weight']:.1%})" if row["lost_weight"] else said


def _units(found: Comparison) -> Float:
    """What each row's tokens/s are divided by: 1, or of unlike runs a hundredth of the fastest of their kind."""
    kinds = [row["conditions"] for row in found.rows]
    speeds = [row["tokens_per_s"] or 0.0 for row in found.rows]
    if not _several(found):
        return np.ones(len(kinds))
    tops = {kind: max(speed for speed, of in zip(speeds, kinds, strict=True) if of == kind) for kind in kinds}
    return np.array([(tops[kind] or 1.0) / 100 for kind in kinds])


def _with_room(fig: go.Figure, end: float, letters: int) -> go.Figure:
    """Room behind the longest bar for so many letters in a plot of at least 400 px, or 200 on a phone."""
    wide, narrow = (end / (1 - min(0.6, (letters + 1) * letter / px)) for letter, px in ((7.2, 400), (6.2, 200)))
    changes = {"xaxis": {"range": [0, narrow], "nticks": 4}}
    fig.update_layout(barmode="overlay", meta={"narrow": fig.layout.meta["narrow"] | changes})
    return fig.update_xaxes(range=[0, wide])


def whiskers(found: Comparison) -> tuple[Float, Float]:
    """(below, above) tokens/s of each row; 0 where no interval is known: how far the interval of its difference from
    the baseline reaches, at the baseline's rate; of runs that are no alternatives of each other, from the fastest of
    its kind. Of several engines, and where requests are not paired, the interval of the engine's costs."""
    if _of_costs(found):
        pairs = [(row["tokens_per_s_low"], row["tokens_per_s_high"], row["tokens_per_s"]) for row in found.rows]
        return _columns([(0.0, 0.0) if None in pair else (pair[2] - pair[0], pair[1] - pair[2]) for pair in pairs])
    key = "against_best" if _several(found) else "tokens_per_s_change"
    reach = []
    for row in found.rows:
        low, now, high = (row[name] for name in (f"{key}_low", key, f"{key}_high"))
        if None in (low, now, high) or not row["tokens_per_s"]:
            reach.append((0.0, 0.0))
            continue
        rate = row["tokens_per_s"] / (1 + now)
        reach.append((max(0.0, now - low) * rate, max(0.0, high - now) * rate))
    return _columns(reach)


def _columns(reach: Sequence[tuple[float, float]]) -> tuple[Float, Float]:
    below, above = np.array(reach, np.float64).reshape(-1, 2).T
    return below, above


def _several(found: Comparison) -> bool:
    return len({row["conditions"] for row in found.rows}) > 1


def _of_costs(found: Comparison) -> bool:
    return "engine" in found.differs or all(row["tokens_per_s_change_low"] is None for row in found.rows)


def pareto(found: Comparison) -> go.Figure:
    """Quality against speed: lost router weight across, tokens/s upward, the front of realisable runs as a line."""
    rows = [row for row in found.rows if row["tokens_per_s"] is not None and row["lost_weight"] is not None]
    fig = canvas(460, "router weight substituted or dropped (%)", "generated tokens/s")
    _fronts(fig, rows)
    colour, symbol = colours([row["policy"] for row in found.rows]), symbols([row["policy"] for row in found.rows])
    low, high = whiskers(found)
    reach = {row["run"]: (low[i], high[i]) for i, row in enumerate(found.rows)}
    names = dict(zip([row["run"] for row in rows], short_labels([row["run"] for row in rows]), strict=True))
    side = _sides(rows, names)
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        above, below = [reach[row["run"]][1] for row in mine], [reach[row["run"]][0] for row in mine]
        shape = symbol[policy] + ("-open" if any(set(row["marks"]) & APART for row in mine) else "")
        fig.add_scatter(
            x=[100 * row["lost_weight"] for row in mine],
            y=[row["tokens_per_s"] for row in mine],
            mode="markers+text" if len(rows) <= LABELLED else "markers",
            text=[names[row["run"]] if row["run"] in side else "" for row in mine],
            textposition=[side.get(row["run"], SIDES[0]) for row in mine],
            cliponaxis=False,
            name=label(shortened(policy, 40)),
            marker={"symbol": shape, "size": 12, "color": colour[policy], "line": {"width": 1.5}},
            error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1},
            customdata=[[names[row["run"]], label(", ".join(row["marks"]))] for row in mine],
            hovertemplate="%{customdata[0]}<br>%{y:,.3f} tokens/s, %{x:.2f} % lost<br>%{customdata[1]}<extra></extra>",
        )
    speeds = [row["tokens_per_s"] for row in rows if row["tokens_per_s"] > 0]
    if speeds and max(speeds) > MANY_TIMES * min(speeds):
        fig.update_yaxes(type="log", dtick="D2")
    return log_said(fig)


def _sides(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, str]:
    """Where each point's name stands: above the front, which comes from below and leaves to the right, the last ones to
    the left, where their room is; on no other marker and no other name. What has no such side has no name there."""
    at, far = _places(rows), max((row["lost_weight"] for row in rows), default=0.0)
    markers = [(x - MARKER, y - LINE, x + MARKER, y + LINE) for x, y in at]  # with the room that keeps a name off
    taken: list[Box] = []
    out: dict[str, str] = {}
    for i, row in enumerate(rows):
        apart = [max(abs(x - at[i][0]), abs(y - at[i][1])) >= MARKER / 2 for x, y in at]
        others = [*taken, *(box for box, far_off in zip(markers, apart, strict=True) if far_off)]
        for side in SIDES if row["lost_weight"] <= 0.75 * (far or 1.0) else SIDES_LAST:
            box = _box(*at[i], side, names[row["run"]])
            if not any(_overlap(box, other) for other in others):
                out[row["run"]] = side
                taken.append(box)
                break
    return out


def _places(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """px of each point, from the left and from below, the speeds on the axis that `pareto` has."""
    across = np.array([row["lost_weight"] for row in rows], np.float64)
    up = np.array([row["tokens_per_s"] for row in rows], np.float64)
    known = up[up > 0]
    if len(known) and known.max() > MANY_TIMES * known.min():
        up = np.log(np.maximum(up, known.min()))
    ends = [np.ptp(values) if len(values) else 0.0 for values in (across, up)]
    x, y = (
        (v - v.min(initial=np.inf)) / (end or 1.0) * px for v, end, px in zip((across, up), ends, PLOT, strict=True)
    )
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]


def _box(x: float, y: float, side: str, name: str) -> Box:
    """(left, bottom, right, top), px, of the name of a point, past the corner of its marker."""
    long, gap = LETTER * len(name), MARKER / 2
    left = x + gap if side.endswith("right") else x - gap - long
    low = y + gap if side.startswith("top") else y - gap - LINE
    return left, low, left + long, low + LINE


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fronts(fig: go.Figure, rows: Sequence[Row]) -> None:
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
