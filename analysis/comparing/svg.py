"""A comparison as a small SVG for a page that runs no script: tokens/s as bars, with intervals and lost weight."""

import textwrap
from typing import Any

from analysis.comparing.answer import answer
from analysis.comparing.comparison import Comparison
from analysis.showing.drawing import opened
from analysis.showing.palette import colours
from analysis.showing.words import markup, shortened

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 190, 250, 34, 44
LEGEND = (
    "generated tokens/s; whisker: 95 % interval of the difference, paired over requests; &#9733; Pareto-best; pale: an "
    "oracle"
)
TITLE_ROW, TITLE_LETTERS = 20, 84  # px of a line of the title, and how many letters fit into it
NOTED = ("synthetic", "not calibrated")  # marks that stand below, and hold for all bars or most


def svg(found: Comparison) -> str:
    """Equal comparisons give equal bytes. A run without tokens/s has no bar."""
    colour = colours([row["policy"] for row in found.rows])
    base = next(row for row in found.rows if row["run"] == found.baseline)
    top = max([_high(row, base) for row in found.rows] + [1e-12])
    notes, title = _wrapped(found.notes), textwrap.wrap(answer(found, 40), TITLE_LETTERS)
    first = TOP + TITLE_ROW * len(title)
    height = first + ROW * len(found.rows) + 22 + 16 * len(notes)
    parts = [
        *opened(" ".join(title), _spoken(found), WIDTH, height),
        *(f'<text x="0" y="{TITLE_ROW * (i + 1)}" class="title">{markup(line)}</text>' for i, line in enumerate(title)),
        f'<text x="0" y="{first - 22}" class="soft">{LEGEND}</text>',
    ]
    for i, row in enumerate(found.rows):
        parts += _bar(row, base, first + ROW * i, top, colour[row["policy"]])
    scale = (WIDTH - LEFT - RIGHT) / top
    if base["tokens_per_s"]:
        x = LEFT + base["tokens_per_s"] * scale
        parts.append(f'<path class="base" d="M{x:.1f} {first - 6}V{first + ROW * len(found.rows)}"/>')
    for i, note in enumerate(notes):
        y = first + ROW * len(found.rows) + 22 + 16 * i
        parts.append(f'<text x="0" y="{y}" class="loud">{markup(note)}</text>')
    return "\n".join([*parts, "</svg>"])


def _high(row: dict[str, Any], base: dict[str, Any]) -> float:
    speeds = [row["tokens_per_s"] or 0.0]
    if row["tokens_per_s_change_high"] is not None and base["tokens_per_s"]:
        speeds.append(base["tokens_per_s"] * (1 + row["tokens_per_s_change_high"]))
    return max(speeds)


def _spoken(found: Comparison) -> str:
    """The figures in words, for whoever does not see them."""
    said = []
    for row in found.rows:
        speed = "no tokens" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.2f} tokens/s"
        lost = "unknown" if row["lost_weight"] is None else f"{row['lost_weight']:.2%}"
        said.append(f"{row['run']}: {speed}, lost weight {lost}")
    return "; ".join(said)


def _bar(row: dict[str, Any], base: dict[str, Any], y: int, top: float, colour: str) -> list[str]:
    scale, middle = (WIDTH - LEFT - RIGHT) / top, y + ROW / 2
    speed = row["tokens_per_s"]
    parts = [f'<text x="{LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{markup(shortened(row["run"], 24))}</text>']
    end = float(LEFT)
    if speed is not None:
        end = LEFT + speed * scale
        limit = ' fill-opacity="0.4"' if "oracle" in row["marks"] else ""
        size = f'width="{speed * scale:.1f}" height="{ROW - 14}"'
        parts.append(f'<rect x="{LEFT}" y="{y + 7}" {size} rx="2" fill="{colour}"{limit}/>')
    low, high = row["tokens_per_s_change_low"], row["tokens_per_s_change_high"]
    if low is not None and base["tokens_per_s"]:
        x0, x1 = (LEFT + base["tokens_per_s"] * (1 + x) * scale for x in (low, high))
        ends = f"M{x0:.1f} {middle - 5}v10M{x1:.1f} {middle - 5}v10"
        parts.append(f'<path class="line" d="M{x0:.1f} {middle}H{x1:.1f}{ends}"/>')
        end = max(end, x1)
    lost = "lost weight unknown" if row["lost_weight"] is None else f"lost {row['lost_weight']:.1%}"
    star = " \u2605" if row["pareto_best"] else ""
    marks = [mark for mark in row["marks"] if mark not in NOTED]
    tail = f'<tspan class="soft">  {markup("; ".join([lost, *marks]))}</tspan>'
    shown = "-" if speed is None else f"{speed:,.2f}"
    return [*parts, f'<text x="{end + 8:.1f}" y="{middle + 4:.1f}">{shown}{star}{tail}</text>']


def _wrapped(notes: list[str], columns: int = 100) -> list[str]:
    """Each note in lines that fit the drawing."""
    return [line for note in notes for line in textwrap.wrap(note, columns, subsequent_indent="  ")]
