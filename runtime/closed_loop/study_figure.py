"""The study's figure, one for each model, an SVG drawn here: loss against bytes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

COLOURS = {"fetch": "#444444", "buddy": "#d62728", "matched": "#1f77b4", "similarity": "#9467bd", "ungated": "#8c564b",
           "by weight": "#e377c2", "re-ranking": "#2ca02c", "ours": "#ff7f0e"}  # fmt: skip
PANEL, HEIGHT, LEFT, TOP, GAP, LEGEND = 330, 330, 64, 70, 30, 105


def figure(model: str, rows: Sequence[dict[str, Any]]) -> str:
    """One panel for each cache size: H2D MB per token against the rise of bits per byte, with intervals. rows: of the
    table (`study_report.flat`)."""
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    tall, wide = (
        _ticks(max([row[name] for row in rows if row[name] < math.inf], default=0)) for name in ("high", "h2d_mb")
    )
    width = LEFT + max(len(caches) * (PANEL + GAP), len(COLOURS) * LEGEND) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 45}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(model)}, closed loop: what the bytes that are not '
        "moved cost in quality</text>",
    ]
    for i, (group, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * LEGEND
        parts.append(f'<circle cx="{x + 5}" cy="38" r="4" fill="{colour}"/><text x="{x + 13}" y="42">{group}</text>')
    for i, cache in enumerate(caches):
        left = LEFT + i * (PANEL + GAP)
        here = [row for row in rows if row["cache"] == cache]
        parts += _panel(here, cache, left, tall, wide, first=i == 0)
    return "\n".join([*parts, "</svg>\n"])


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least `most` (1 where that is nothing), five to eleven of them."""
    most = most if most > 0 else 1.0
    step = 10.0 ** math.floor(math.log10(most))
    step *= next(part for part in (0.1, 0.2, 0.5, 1.0) if most <= 10 * step * part)
    return [step * k for k in range(math.ceil(most / step - 1e-9) + 1)]


def _panel(
    rows: list[dict[str, Any]], cache: float, left: int, tall: list[float], wide: list[float], first: bool
) -> list[str]:
    def at(mb: float, percent: float) -> tuple[float, float]:
        return left + PANEL * mb / wide[-1], TOP + HEIGHT * (1 - min(1.0, max(0.0, percent) / tall[-1]))

    floor = TOP + HEIGHT
    parts = [
        f'<rect x="{left}" y="{TOP}" width="{PANEL}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{left + 6}" y="{TOP - 6}">cache {cache:g}</text>',
        f'<text x="{left + PANEL / 2}" y="{floor + 34}" text-anchor="middle">H2D MB per token</text>',
    ]
    for tick in wide:
        parts.append(f'<text x="{at(tick, 0)[0]:.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in tall:
        y = at(0, tick)[1]
        parts.append(f'<line x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        if first:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g} %</text>')
    if first:
        middle = TOP + HEIGHT / 2
        parts.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
                     "rise of bits per byte</text>")  # fmt: skip
    for row in rows:
        parts += _point(row, at)
    return parts


def _point(row: dict[str, Any], at: Any) -> list[str]:
    x, y = at(row["h2d_mb"], row["delta_percent"])
    (_, low), (_, high) = at(row["h2d_mb"], row["low"]), at(row["h2d_mb"], row["high"])
    colour = COLOURS[row["group"]]
    told = f"{row['arm']}: {row['delta_percent']:+.2f} % ({row['delta_interval']}), {row['h2d_mb']:.2f} MB"
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-opacity="0.5"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.85">'
        f"<title>{escape(told)}</title></circle>",
    ]
