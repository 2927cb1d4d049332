"""The figure of one step: layers, GPU, link and host of each run one below the other, all from the step's begin."""

from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from analysis.pages.figures import canvas
from analysis.showing.palette import CAUSE, GREY, PURPLE, TIME
from analysis.showing.words import label
from analysis.timelines.events import BROUGHT
from analysis.timelines.one_step import ON_HOST, PARTS, Step
from analysis.timelines.tracks import Slices
from sim.core.plan import CAUSES

Bool = npt.NDArray[np.bool_]

UNITS = (("ns", 1, ",.0f"), ("µs", 1_000, ",.3f"), ("ms", 1_000_000, ",.6f"))  # name, ns, how it is shown to the ns
LASTS = 20_000  # of a unit at most; longer steps take the next
ROWS = {"name": 26, "layers": 20, "GPU": 28, "waiting": 6, "link": 22, "host": 20, "gap": 12}  # pixels
BETWEEN, AROUND = 3, 62  # pixels between two rows; of the axis and its title
SHADES = ("#8a949e", "#b9c3cc")  # of layers, by turns
HATCHED = {"shape": "/", "size": 6, "solidity": 0.35, "fgcolor": "rgba(255,255,255,0.75)", "fillmode": "overlay"}
TIMES = ("for_landed", "queued", "committed")  # columns that are instants
CAME = {"resident": "there since the begin"} | {cause: f"brought by a copy ({cause})" for cause in CAUSES}
DONE = {
    "expert": ("experts on the CPU", PURPLE, "{n} on the CPU: expert {expert} of layer {layer}"),
    "visit": ("the host's work once a visit", "#7a5470", "once a visit, layer {layer}"),
    "decide": (*TIME["decide"], "decision, layer {layer}"),
}


class Said(NamedTuple):
    """Pieces of one look: which, the legend's name, the colour, what hovering says ({column}: the piece's own)."""

    which: Bool
    name: str
    colour: str
    text: str


class Scale(NamedTuple):
    """What time is shown in, from the begin of a step."""

    unit: str
    ns: int
    form: str

    @staticmethod
    def of(lasts: int) -> "Scale":
        """For steps of so many ns."""
        return Scale(*next((unit for unit in UNITS if lasts < LASTS * unit[1]), UNITS[-1]))


def step(steps: Mapping[str, Step]) -> go.Figure:
    """One step of each run, by its name, on one axis from the step's begin. Every piece is a bar."""
    longest = max(one.end - one.begin for one in steps.values())
    scale, places = Scale.of(longest), _places(steps)
    bottom = min(min(rows.values()) for rows in places.values()) - ROWS["gap"]
    fig = canvas(AROUND - bottom, f"time since the step's begin ({scale.unit})", barmode="overlay")
    for name, one in steps.items():
        _draw(fig, one, places[name], scale)
        _named(fig, name, one, places[name], scale)
    fig.update_xaxes(range=[0, 1.004 * longest / scale.ns], showgrid=False, zeroline=False, tickformat=",")
    ticks = {at: row for rows in places.values() for row, at in rows.items() if row not in ("name", "waiting")}
    fig.update_yaxes(tickvals=list(ticks), ticktext=list(ticks.values()), range=[bottom, 0], fixedrange=True)
    fig.update_yaxes(showgrid=False, zeroline=False)
    return fig.update_layout(uniformtext={"minsize": 9, "mode": "hide"}, hovermode="closest")


def _places(steps: Mapping[str, Step]) -> dict[str, dict[str, int]]:
    """Where the middle of each row of each run stands, pixels downward from 0; a host that does nothing has no row."""
    out: dict[str, dict[str, int]] = {}
    at = 0
    for name, one in steps.items():
        rows = {row: tall for row, tall in ROWS.items() if row != "host" or len(one.host)}
        out[name] = {}
        for row, tall in rows.items():
            out[name][row] = at - tall // 2
            at -= tall + BETWEEN
        del out[name]["gap"]
    return out


def _draw(fig: go.Figure, one: Step, rows: Mapping[str, int], scale: Scale) -> None:
    _bars(fig, one, one.layers, _layers(one.layers), "layers", rows, scale)
    _bars(fig, one, one.gpu, _gpu(one.gpu), "GPU", rows, scale)
    committed = Slices(one.link.of["committed"], one.link.begin, one.link.of)
    _bars(fig, one, committed, _waiting(committed), "waiting", rows, scale)
    _bars(fig, one, one.link, _link(one.link), "link", rows, scale)
    if len(one.host):
        _bars(fig, one, one.host, _host(one.host), "host", rows, scale)


def _bars(
    fig: go.Figure, one: Step, part: Slices, looks: Iterator[Said], row: str, rows: Mapping[str, int], scale: Scale
) -> None:
    """A trace for each look that is there."""
    for said in looks:
        found = part.where(said.which & (part.end > part.begin))
        if not len(found):
            continue
        text, columns = _hover(said.text, found, one.begin, scale)
        look: dict[str, Any] = {"color": said.colour, "line": {"width": 0}}
        if said.name.startswith("stall"):
            look["pattern"] = HATCHED
        more: dict[str, Any] = {"text": [str(layer) for layer in found.of["layer"]]} if row == "layers" else {}
        fig.add_bar(
            x=(found.end - found.begin) / scale.ns,
            base=(found.begin - one.begin) / scale.ns,
            y=np.full(len(found), rows[row], np.int16),
            width=ROWS[row],
            orientation="h",
            name=said.name,
            showlegend=row not in ("layers", "waiting"),
            marker=look,
            opacity=0.5 if row == "waiting" else 1,
            customdata=columns,
            hovertemplate=f"{text}<br>%{{base:{scale.form}}} to %{{x:{scale.form}}} {scale.unit}<extra></extra>",
            textposition="inside" if more else "none",
            insidetextanchor="middle",
            textangle=0,
            **more,
        )


def _hover(text: str, found: Slices, since: int, scale: Scale) -> tuple[str, Any]:
    """A hover template, and the columns that it names, [n, columns], in as few bytes as hold them."""
    names = list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(text) if name))
    columns: list[Any] = [(found.of[n] - since) / scale.ns if n in TIMES else found.of[n] for n in names]
    places = {name: f"%{{customdata[{i}]}}" for i, name in enumerate(names)}
    places |= {name: f"%{{customdata[{names.index(name)}]:{scale.form}}}" for name in names if name in TIMES}
    if not columns:
        return text, None
    whole = all(column.dtype.kind == "i" and abs(column).max(initial=0) < 2**31 for column in columns)
    return text.format(**places), np.stack(columns, axis=1).astype(np.int32 if whole else np.float64)


def _layers(layers: Slices) -> Iterator[Said]:
    text = "layer {layer}: hits {hits}, late {late}, misses {misses}"
    for turn, colour in enumerate(SHADES):
        yield Said(layers.of["layer"] % 2 == turn, "layers", colour, text)


def _gpu(gpu: Slices) -> Iterator[Said]:
    """What the GPU did, by part: experts by what brought them, stalls by what they wait for."""
    of = gpu.of
    for code, part in enumerate(PARTS):
        mine, (name, colour) = of["part"] == code, TIME[part]
        if part == "experts":
            yield from _experts(gpu, mine, name, colour)
            continue
        known = mine & (of["for_expert"] >= 0) & (of["n"] == 1)
        text = f"{name}, layer {{layer}}<br>waits for the copy of expert {{for_expert}}, which lands at {{for_landed}}"
        yield Said(known, name, colour, text)
        yield Said(mine & ~known & (of["layer"] >= 0), name, colour, f"{name}, layer {{layer}}")
        yield Said(mine & ~known & (of["layer"] < 0), name, colour, name)


def _experts(gpu: Slices, mine: Bool, name: str, colour: str) -> Iterator[Said]:
    of = gpu.of
    alone = mine & (of["expert"] >= 0)
    yield Said(mine & (of["n"] == 0), name, colour, "set-up of a group of experts, layer {layer}")
    yield Said(mine & ~alone & (of["n"] > 0), name, colour, "{n} experts of layer {layer}")
    for cause, word in enumerate(BROUGHT):
        text = f"expert {{expert}} of layer {{layer}}, tokens: {{tokens}}<br>{CAME[word]}"
        yield Said(alone & (of["cause"] == cause), name, colour, text)


def _link(link: Slices) -> Iterator[Said]:
    """Copies by what they are for; several experts in one, chunks, and those that stand for more are told apart."""
    of = link.of
    more, chunk, several = of["pieces"] > 1, of["chunk"] >= 0, of["n"] > 1
    kinds = (
        (more, "{pieces} copies, layer {layer}"),
        (~more & chunk, "chunk {chunk} of expert {expert} of layer {layer}"),
        (~more & ~chunk & several, "{n} experts of layer {layer}, from expert {expert} on"),
        (~more & ~chunk & ~several, "expert {expert} of layer {layer}"),
    )
    for code, cause in enumerate(CAUSES):
        for mine, text in kinds:
            what = "read where it lies" if cause == "remote" else f"copy ({cause})"
            said = f"{what}: {text}<br>queued {{queued}}, committed {{committed}}"
            yield Said(mine & (of["cause"] == code), f"copy: {cause}", CAUSE[cause], said)


def _waiting(link: Slices) -> Iterator[Said]:
    """From the commit to the start."""
    text = "committed, the link is not free: expert {expert} of layer {layer}"
    for code, cause in enumerate(CAUSES):
        yield Said(link.of["cause"] == code, cause, CAUSE[cause], text)


def _host(host: Slices) -> Iterator[Said]:
    for code, (name, colour, text) in enumerate(DONE[what] for what in ON_HOST):
        yield Said(host.of["what"] == code, name, colour, text)


def _named(fig: go.Figure, name: str, one: Step, rows: Mapping[str, int], scale: Scale) -> None:
    """The run's name above its rows, and beside these, not through it, a line where its step ends."""
    lasts = (one.end - one.begin) / scale.ns
    text = f"{label(name)}: {lasts:,.2f} {scale.unit}"
    fig.add_annotation(
        x=0,
        xref="paper",
        xanchor="left",
        y=rows["name"] - 2,
        text=text,
        showarrow=False,
        font={"size": 13, "weight": 600},
    )
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    fig.add_shape(
        type="line", x0=lasts, x1=lasts, y0=rows["layers"] + ROWS["layers"] // 2, y1=min(rows.values()) - 8, line=line
    )
