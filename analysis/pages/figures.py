"""Plotly figures of runs: pure functions of tables and comparisons, for the report and for notebooks alike.

No figure has a title: the page or the notebook says what is seen in its own text, and the axes carry the units. Colours
are palette's, the background is the page's. Text that came from files is escaped for plotly's own markup.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.pages.labels import short_labels, two_lines
from analysis.showing.palette import ANSWER, CAUSE, GREEN, GREY, ORANGE, PREFETCHED, SCALE, SLOT, TIME, colours
from analysis.showing.words import label
from sim.outcome.table import LIMITS

Float = npt.NDArray[np.float64]

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
AXIS: dict[str, Any] = dict.fromkeys(("gridcolor", "zerolinecolor"), "rgba(128,140,152,0.28)") | {"automargin": True}
SMALL = {"size": 13}
ROW = 30  # pixels of a bar
BAR_ROOM = 42  # px of a horizontal colour bar with its ticks
LOWEST = 112  # px of a figure
LANES = 42  # px of a row with marks above dots
LANE = 0.3  # how far from a row's middle the others of its three lanes are
TPOT_MARKS = {
    "mean": ("x-thin", 0.0),
    "p50": ("line-ns", 0.0),
    "p95": ("triangle-down", -LANE),
    "p99": ("triangle-right", -LANE),
}
LINE = 24  # letters of a line of a name beside a figure of half the page
TWO_LINES = 36  # px of a row with a name of two lines
LOW = 26  # the same on a phone, whose letters are smaller
LOG = " (log)"
MANY_TIMES = 15  # a larger ratio of the fastest to the slowest is drawn on a logarithmic axis
LABELLED = 14  # points that carry their names
RATES = {
    "accuracy": ("circle", CAUSE["prefetch"]),
    "coverage": ("diamond", GREEN),
    "timeliness": ("square", ORANGE),
}
BOUND_MARKS = {
    "lossless_ns": ("diamond", CAUSE["prefetch"]),
    "demand_ns": ("circle", GREEN),
    "executed_ns": ("square", CAUSE["demand"]),
}


def canvas(height: int, x: str, y: str = "", **layout: Any) -> go.Figure:
    """An empty figure: axes titled x and y (with their units), a legend above, nothing that knows the theme."""
    fig = go.Figure(layout={"template": "none"})
    fig.update_layout(
        height=height,
        margin={"l": 12, "r": 18, "t": 12, "b": 12, "pad": 4},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        hoverlabel={"align": "left", "namelength": -1},
        bargap=0.3,
        minreducedheight=8,  # else plotly puts axis titles over tick labels where there are few rows
        minreducedwidth=40,
        **layout,
    )
    fig.update_xaxes(title={"text": x, "standoff": 10, "font": SMALL}, **AXIS)
    return fig.update_yaxes(title={"text": y, "standoff": 8, "font": SMALL}, **AXIS)


def two_plots(height: int, gap: float, shares: Sequence[float] | None = None, **layout: Any) -> go.Figure:
    """A canvas of two plots over one x axis. gap, shares (of the two; default: alike): of the height."""
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=gap, row_heights=shares)
    fig.update_layout(canvas(height, "").layout.to_plotly_json() | {"xaxis": {}, "yaxis": {}})
    return fig.update_layout(**layout).update_xaxes(**AXIS).update_yaxes(**AXIS)


def log_said(fig: go.Figure) -> go.Figure:
    """The same; titles of its logarithmic axes say so."""
    for axis in [*fig.select_xaxes(), *fig.select_yaxes()]:
        if axis.type == "log" and axis.title.text and not axis.title.text.endswith(LOG):
            axis.title.text += LOG
    return fig


def rows_canvas(names: Sequence[str], x: str, extra: int = 66, row: int = ROW, line: int = LINE) -> go.Figure:
    """A canvas with one row per name, the first on top. extra, row: px beside the rows, and of each; line: letters of
    a line of a name."""
    labels, lines, narrow = short_labels(names), two_lines(names, line), two_lines(names)
    fig = canvas(_height(lines, extra, row, TWO_LINES), x)
    ticks = {"yaxis": _ticks(labels, narrow), "height": _height(narrow, extra, row, LOW)}
    fig.update_layout(meta={"narrow": ticks})
    fig.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=False, type="category")
    return fig.update_yaxes(_ticks(labels, lines), range=[-0.5, len(names) - 0.5])


def _height(texts: Sequence[str], extra: int, row: int, least: int) -> int:
    """px; least: of a row where names have two lines."""
    return max(LOWEST, extra + (max(row, least) if any("<br>" in text for text in texts) else row) * len(texts))


def _ticks(values: Sequence[Any], texts: Sequence[str]) -> dict[str, Any]:
    return {"tickmode": "array", "tickvals": list(values), "ticktext": list(texts)}


def _mark_rows(fig: go.Figure, x: Float, y: Sequence[str], name: str, hover: str, **marker: Any) -> None:
    """A marker in each row. hover: what follows the row's name."""
    marker = {"size": 13} | marker
    fig.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, hovertemplate=f"%{{y}}{hover}<extra></extra>")


def _stacked(table: pd.DataFrame, x: str, parts: dict[str, tuple[str, str]], hover: str) -> go.Figure:
    """Horizontal stacked bars, a row per run; parts: column -> (name, colour). Columns of zeros are left out."""
    names = list(map(str, table.index))
    fig = rows_canvas(names, x)
    for part, (name, colour) in parts.items():
        values = table[part].to_numpy(np.float64)
        if not np.any(values):
            continue
        fig.add_bar(
            y=short_labels(names),
            x=values,
            name=label(name),
            orientation="h",
            marker={"color": colour},
            customdata=100 * values / np.maximum(table[list(parts)].sum(axis=1).to_numpy(), 1e-300),
            hovertemplate="%{y}<br>" + label(name) + f": {hover} (%{{customdata:.1f}} %)<extra></extra>",
        )
    return fig.update_layout(barmode="stack").update_xaxes(tickformat=",")


def time_parts(table: pd.DataFrame) -> go.Figure:
    """Where the time went: `tables.time_parts`."""
    parts = {part: TIME[part] for part in TIME if part in table.columns}
    return _stacked(table, "time (s)", parts, "%{x:,.3f} s")


def gigabytes(table: pd.DataFrame) -> go.Figure:
    """Bytes to the GPU by cause: `tables.gigabytes`."""
    return _stacked(table, "sent to the GPU (GB)", _causes(table), "%{x:,.1f} GB")


def link_times(table: pd.DataFrame) -> go.Figure:
    """How long the link moved data, by cause: `tables.link_times`."""
    return _stacked(table, "link busy (s)", _causes(table), "%{x:,.3f} s")


def windows(table: pd.DataFrame) -> go.Figure:
    """What windows take and give, by their rows, a plot each: `tables.windows`."""
    shown = list(table.columns[1:])
    fig = make_subplots(rows=1, cols=len(shown), horizontal_spacing=0.08)
    fig.update_layout(canvas(300, "").layout.to_plotly_json() | {"xaxis": {}, "yaxis": {}, "showlegend": False})
    ordered = table.sort_values("rows of a window", kind="stable")
    for i, name in enumerate(shown):
        fig.add_scatter(
            x=ordered["rows of a window"],
            y=ordered[name],
            mode="markers",
            marker={"size": 11, "color": CAUSE["prefetch"]},
            hovertext=[label(str(run)) for run in ordered.index],
            hovertemplate=f"%{{hovertext}}<br>windows of %{{x}}: %{{y:,.2f}} {label(name)}<extra></extra>",
            row=1,
            col=i + 1,
        )
        fig.update_xaxes(title={"text": "rows of a window", "font": SMALL}, dtick=1, row=1, col=i + 1)
        fig.update_yaxes(
            title={"text": name if name == "tokens/s" else f"{name} a token", "font": SMALL}, row=1, col=i + 1
        )
    fig.update_layout(meta={"narrow": _below_each_other(len(shown))})
    return fig.update_xaxes(**AXIS).update_yaxes(**AXIS)


def _below_each_other(n: int) -> dict[str, Any]:
    """Of n plots beside each other, what changes of the layout where there is no room for that."""
    out: dict[str, Any] = {"height": 190 * n}
    for i in range(n):
        name = f"axis{i + 1}" if i else "axis"
        out[f"x{name}"] = {"domain": [0, 1]}
        out[f"y{name}"] = {"domain": [(n - 1 - i + 0.28) / n, (n - i) / n]}
    return out


def _causes(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    return {cause: (cause, colour) for cause, colour in CAUSE.items() if cause in table.columns}


def prefetch_ends(table: pd.DataFrame) -> go.Figure:
    """What came of each prefetch, counts: `tables.prefetching`."""
    parts = {name: (name, colour) for name, colour in PREFETCHED.items()}
    return _stacked(table, "prefetches (transfers)", parts, "%{x:,}")


def prefetch_rates(table: pd.DataFrame) -> go.Figure:
    """Accuracy, coverage and timeliness, a row per run: `tables.prefetching`."""
    names = list(map(str, table.index))
    fig = rows_canvas(names, "share (%)")
    for name, (symbol, colour) in RATES.items():
        values = 100 * table[name].to_numpy(np.float64)
        _mark_rows(fig, values, short_labels(names), name, f"<br>{name}: %{{x:.1f}} %", symbol=symbol, color=colour)
    return fig.update_xaxes(range=[-2, 102])


def tpot(table: pd.DataFrame, requests: dict[str, Float], policies: Sequence[str]) -> go.Figure:
    """TPOT: mean and percentiles of `tables.latencies`, and below them a dot per request where a record has them.

    requests: run -> float64 [requests] in ms. policies: of each row, for its colour.
    """
    names = list(map(str, table.index))
    fig, short, colour = canvas(66 + LANES * len(names), "TPOT (ms per token)"), short_labels(names), colours(policies)
    rows = np.arange(len(names))
    for i, (name, text, policy) in enumerate(zip(names, short, policies, strict=True)):
        values = _thinned(requests.get(name, np.zeros(0)))
        if len(values):
            fig.add_scatter(
                x=values,
                y=np.full(len(values), i + LANE),
                mode="markers",
                showlegend=False,
                marker={"size": 9, "opacity": 0.45, "color": colour[policy]},
                hovertemplate=f"{text}: a request of %{{x:.2f}} ms per token<extra></extra>",
            )
    for key, (symbol, lane) in TPOT_MARKS.items():
        fig.add_scatter(
            x=table[f"tpot_{key}"].to_numpy(np.float64),
            y=rows + lane,
            mode="markers",
            name=key,
            marker={"symbol": f"{symbol}-open", "size": 11, "color": GREY, "line": {"width": 2.2, "color": GREY}},
            customdata=short,
            hovertemplate=f"%{{customdata}}: {key} %{{x:.2f}} ms<extra></extra>",
        )
    fig.update_layout(meta={"narrow": {"yaxis": {"ticktext": two_lines(names)}}})
    fig.update_yaxes(_ticks(rows.tolist(), short), range=[len(names) - 0.5, -0.5])
    return fig.update_yaxes(showgrid=False, zeroline=False)


def _thinned(values: Float, most: int = 400) -> Float:
    """At most `most` of them, evenly by rank, first and last kept."""
    ranked = np.sort(values[np.isfinite(values)])
    if len(ranked) <= most:
        return ranked
    return ranked[np.linspace(0, len(ranked) - 1, most).round().astype(np.int64)]


def step_times(steps: dict[str, Float], policies: Sequence[str]) -> go.Figure:
    """How long decode steps take: share of steps at most so long. steps: run -> float64 [steps] in ms."""
    fig = canvas(380, "duration of a decode step (ms)", "share of decode steps (%)")
    colour, short = colours(policies), short_labels(list(steps))
    for (_, values), policy, text in zip(steps.items(), policies, short, strict=True):
        ranked = _thinned(values)
        fig.add_scatter(
            x=ranked,
            y=np.linspace(100 / max(len(ranked), 1), 100, len(ranked)),
            mode="lines",
            name=text,
            line={"shape": "hv", "width": 2.2, "color": colour[policy]},
            hovertemplate="%{y:.1f} % of the steps take at most %{x:.2f} ms<extra>%{fullData.name}</extra>",
        )
    known = np.concatenate([*steps.values(), np.zeros(0)])
    known = known[known > 0]
    if len(known) and known.max() > MANY_TIMES * known.min():
        fig.update_xaxes(type="log", dtick="D2")
    return log_said(fig)


def by_layer(names: Sequence[str], shares: Float, what: str) -> go.Figure:
    """A heatmap of shares (of 1) [runs, L], layers along x. what: of what they are shares, beside the colour bar."""
    height = BAR_ROOM + 60 + ROW * max(2, len(names))  # of less plotly makes no plot beside the bar
    fig = canvas(height, f"MoE layer; colour: {what}")
    labels = short_labels(names)
    fig.add_heatmap(
        z=(100 * shares).astype(np.float32),
        x=np.arange(shares.shape[1]),
        y=labels,
        colorscale=SCALE,
        xgap=1,
        ygap=2,
        colorbar=_colorbar(),
        hovertemplate="%{y}, layer %{x}: %{z:.1f} %<extra></extra>",
        hoverongaps=False,
    )
    narrow = {"yaxis": _ticks(labels, two_lines(names))}
    fig.update_layout(margin={"t": BAR_ROOM}, meta={"narrow": narrow})
    fig.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    return fig.update_xaxes(showgrid=False, zeroline=False)


def _colorbar() -> dict[str, Any]:
    """At the figure's upper edge. Placed by the plot it would push the plot down by more than it takes; a title of its
    own would lie on it."""
    place = {"orientation": "h", "thickness": 10, "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "top"}
    place |= {"xref": "container", "yref": "container", "xpad": 24, "ypad": 2}
    return {"ticksuffix": " %", "lenmode": "pixels", "len": 240, **place}


def answers_by_layer(counts: dict[str, npt.NDArray[np.int64]]) -> go.Figure:
    """What the miss policy answered, a bar per layer: `series.answers_by_layer`."""
    fig = canvas(320, "MoE layer", "answers (token, slot)")
    for name, values in counts.items():
        if values.any():
            fig.add_bar(
                x=np.arange(len(values)),
                y=values,
                name=name,
                marker={"color": ANSWER[name]},
                hovertemplate="layer %{x}: " + name + " %{y:,}<extra></extra>",
            )
    return fig.update_layout(barmode="stack", bargap=0.15)


def bounds(table: pd.DataFrame) -> go.Figure:
    """How near each run is to its bounds: `tables.bounds`."""
    names = list(map(str, table.index))
    fig = rows_canvas(names, "bound (% of the run's time)")
    fig.add_bar(
        x=[100.0] * len(names),
        y=short_labels(names),
        orientation="h",
        marker={"color": "rgba(138,148,158,0.30)"},
        name="the run",
        hoverinfo="skip",
    )
    for column, (symbol, colour) in BOUND_MARKS.items():
        values = 100 * table[column].to_numpy(np.float64)
        if np.isfinite(values).any():
            hover = f": %{{x:.1f}} % of its time is the least for {LIMITS[column]}"
            _mark_rows(fig, values, short_labels(names), LIMITS[column], hover, symbol=symbol, color=colour)
    return fig.update_xaxes(range=[0, 104])


def errors(table: pd.DataFrame) -> go.Figure:
    """Simulated minus measured, by part of the time: `tables.errors`. A row per part, a bar per pair."""
    parts = [part for part in TIME if part in table.columns and np.any(table[part].to_numpy(np.float64))]
    fig = canvas(120 + ROW * (len(parts) + 1) * max(1, len(table)), "simulated - measured (%)")
    texts = [TIME[part][0] for part in parts] + ["total"]
    colour = colours(map(str, table.index))
    for (name, row), text in zip(table.iterrows(), short_labels(list(map(str, table.index))), strict=True):
        fig.add_bar(
            x=[100 * row[part] for part in [*parts, "total"]],
            y=texts,
            orientation="h",
            name=text,
            marker={"color": colour[str(name)]},
            hovertemplate="%{y}: %{x:+.2f} %<extra>%{fullData.name}</extra>",
        )
    fig.update_yaxes(categoryorder="array", categoryarray=texts[::-1], showgrid=False)
    return fig.update_layout(barmode="group")


def over_time(at: Float, slots: dict[str, Float], link: dict[str, Float], total: int) -> go.Figure:
    """Occupancy above, link use below, one clock. at: edges of the bins [bins + 1] in ns; slots, link: as
    `series.occupancy` and `series.link_use` return them, [bins] each; total: slots there are."""
    fig = two_plots(380, 0.07, [0.58, 0.42], hovermode="x unified")
    seconds = ((at[:-1] + at[1:]) / 2e9).astype(np.float32)
    for name, values in slots.items():
        if np.any(values > 1e-6):
            fig.add_trace(_area(seconds, values, name, SLOT[name], "%{y:.1f} slots", "slots"), row=1, col=1)
    copied = {name: values for name, values in link.items() if np.any(values > 1e-9)}
    if not copied:  # plotly draws no axes of an empty plot
        fig.add_scatter(x=seconds, y=0 * seconds, mode="lines", line={"color": GREY}, showlegend=False, row=2, col=1)
        fig.add_annotation(text="nothing was copied", x=0.5, y=0.5, xref="x2 domain", yref="y2 domain", showarrow=False)
    for name, values in copied.items():
        fig.add_trace(_area(seconds, 100 * values, f"link: {name}", CAUSE[name], "%{y:.1f} %", "link"), row=2, col=1)
    fig.update_xaxes(title={"text": "time (s)", "standoff": 8, "font": SMALL}, row=2, col=1)
    fig.update_yaxes(title={"text": "slots", "font": SMALL}, range=[0, max(total, 1) * 1.02], row=1, col=1)
    return fig.update_yaxes(title={"text": "link busy (%)", "font": SMALL}, range=[0, 102], row=2, col=1)


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
