"""The figure of `runtime.substitutions`: nine panels in one SVG, drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from runtime.closed_loop.one_at_a_time import WAYS
from runtime.closed_loop.substitution_answers import span

COLOURS = {"keep": "#d62728", "own": "#1f77b4", "drop": "#444444"}
SOURCES = {"router": "#2ca02c", "lists": "#e377c2", "stand-in": "#9467bd"}
LEGEND = (
    ("keep: stand-in, the slot's weight", COLOURS["keep"]),
    ("own: stand-in, its own weight", COLOURS["own"]),
    ("drop: nobody", COLOURS["drop"]),
    ("known from the router", SOURCES["router"]),
    ("from buddy lists", SOURCES["lists"]),
    ("from running the stand-in", SOURCES["stand-in"]),
)
WIDE, HIGH, LEFT, TOP, ACROSS, DOWN = 250, 190, 130, 74, 400, 262
Point = tuple[dict[str, float | None], str]  # a figure and its colour


def figure(result: dict[str, Any]) -> str:
    """All panels: what tells the damage, and where it is small."""
    text = (
        f"{escape(result['model'])}: what one substitution costs (nats of KL, from the token on), one at a time; "
        f"{result['substitutions']:,} of them, bars: 95 % over files"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * ACROSS}" height="{TOP + 3 * DOWN}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="20" y="22" font-size="14">{text}</text>',
    ]
    for i, (words, colour) in enumerate(LEGEND):
        parts.append(f'<circle cx="{25 + i * 195}" cy="40" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{33 + i * 195}" y="44">{words}</text>')
    for number, panel in enumerate(_panels(result)):
        across, down = LEFT + number % 3 * ACROSS, TOP + number // 3 * DOWN
        parts += [f'<g transform="translate({across} {down})">', *panel, "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panels(result: dict[str, Any]) -> list[list[str]]:
    likeness = [(f"layer {row['layer']}", [(row["rho_cosine"], "#1f77b4"), (row["rho_error"], "#ff7f0e")])
                for row in result["pairs"]]  # fmt: skip
    told = [(row["predictor"], [(row["within"], SOURCES[row["from"]]), (row["given_weight"], "#bbb")])
            for row in result["correlations"]]  # fmt: skip
    fits = [(row["fit"], [(row["rho"], "#444444")]) for row in result["fits"]]
    titles = {"layer": "layer", "rank": "rank of the stand-in behind the top k", "weight": "router weight, tenths",
              "tae": "entropy of the top-k weights (TAE), tenths", "margin": "margin of the two largest, tenths",
              "position": "position in the window, tenths"}  # fmt: skip
    return [
        _list("q(j|i) against cosine (blue), -error (orange)", likeness),
        _list("rank correlation with the damage in layers (grey: at equal weight)", told),
        _list("fits, on files left out", fits),
        *(_columns(f"mean damage by {title}", result["bins"][name]) for name, title in titles.items()),
    ]


def _frame(title: str) -> list[str]:
    return [
        f'<rect width="{WIDE}" height="{HIGH}" fill="none" stroke="#999"/>',
        f'<text x="0" y="-6">{escape(title)}</text>',
    ]


def _mark(
    x: Callable[[float], float], y: Callable[[float], float], point: Point, at: float, upright: bool, told: str
) -> list[str]:
    """One figure: its interval as a bar, its value as a dot, both with the words that say them."""
    found, colour = point
    value, low, high = (found[name] for name in ("value", "low", "high"))
    if value is None:
        return []
    low, high = (value if end is None else end for end in (low, high))
    ends = ((at, y(low)), (at, y(high))) if upright else ((x(low), at), (x(high), at))
    dot = (at, y(value)) if upright else (x(value), at)
    (x1, y1), (x2, y2) = ends
    return [
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>',
        f'<circle cx="{dot[0]:.1f}" cy="{dot[1]:.1f}" r="3" fill="{colour}"><title>{escape(told)}: {value:.4g} '
        f"({low:.4g} .. {high:.4g})</title></circle>",
    ]


def _list(title: str, rows: Sequence[tuple[str, Sequence[Point]]]) -> list[str]:
    """Correlations from -1 to 1, a line for each row."""

    def x(value: float) -> float:
        return WIDE * (value + 1) / 2

    parts, step = _frame(title), HIGH / max(1, len(rows))
    for tick in (-1.0, -0.5, 0.0, 0.5, 1.0):
        colour = "#999" if tick == 0 else "#eee"
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{HIGH}" stroke="{colour}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HIGH + 14}" text-anchor="middle">{tick:g}</text>')
    for number, (label, points) in enumerate(rows):
        middle = step * (number + 0.5)
        parts.append(f'<text x="-5" y="{middle + 4:.1f}" text-anchor="end" font-size="9">{escape(label)}</text>')
        for i, point in enumerate(points):
            parts += _mark(x, x, point, middle + 3 * (i - (len(points) - 1) / 2), False, label)
    return parts


def _columns(title: str, bins: Sequence[dict[str, Any]]) -> list[str]:
    """Mean damage of each way, a column for each bin, on a logarithmic scale."""
    figures = [entry["mean"][way] for entry in bins for way in WAYS]
    sizes = [f[end] for f in figures for end in ("value", "low", "high") if (f[end] or 0) > 0]
    bottom, top = (math.floor(math.log10(min(sizes, default=1))), math.ceil(math.log10(max(sizes, default=1))))
    top = max(top, bottom + 1)

    def y(value: float) -> float:
        return HIGH * min(1.0, (top - math.log10(max(value, 10.0**bottom))) / (top - bottom))

    parts, step = _frame(title), WIDE / len(bins)
    for power in range(bottom, top + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="0" x2="{WIDE}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="-5" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for number, entry in enumerate(bins):
        middle, label = step * (number + 0.5), span(entry["low"], entry["high"])
        short = "-".join(f"{end:.{3 if end >= 10 else 2}g}" for end in dict.fromkeys((entry["low"], entry["high"])))
        parts.append(f'<text x="{middle:.1f}" y="{HIGH + 10}" text-anchor="end" font-size="8" '
                     f'transform="rotate(-35 {middle:.1f} {HIGH + 10})">{short}</text>')  # fmt: skip
        for i, way in enumerate(WAYS):
            at = middle + 4 * (i - 1)
            parts += _mark(y, y, (entry["mean"][way], COLOURS[way]), at, True, f"{way}, {label}")
    return parts
