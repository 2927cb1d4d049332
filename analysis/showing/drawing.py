"""What SVGs share that are written by hand, because plotly draws in a browser only: frame, themes, scales, marks.

They run no script and follow the reader's light or dark theme.
"""

import math
from collections.abc import Callable, Sequence

from analysis.showing.palette import SYMBOLS
from analysis.showing.words import markup

EDGE = 16
INK, PAPER = ("#1c2733", "#e6edf3"), ("#ffffff", "#161e27")  # on light, on dark
STYLE = f"""
  .back {{ fill: {PAPER[0]}; }}
  text {{ font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: {INK[0]}; }}
  .title {{ font-size: 16px; font-weight: 600; }}
  .soft {{ fill: #5b6773; font-size: 12px; }}
  .loud {{ fill: #a33b00; font-size: 12px; font-weight: 600; }}
  .line {{ stroke: {INK[0]}; stroke-width: 1.5; fill: none; }}
  .base {{ stroke: #8a949e; stroke-dasharray: 3 3; }}
  @media (prefers-color-scheme: dark) {{
    .back {{ fill: {PAPER[1]}; }}
    text {{ fill: {INK[1]}; }} .soft {{ fill: #9aa7b4; }} .loud {{ fill: #ffa657; }} .line {{ stroke: {INK[1]}; }}
  }}
"""
# corners of a mark: how far from its middle, px, evenly round from straight above
CORNERS: dict[str, Sequence[float]] = {
    "diamond": [5.5] * 4,
    "square": [0, 5.6, 0, 5.6, 0, 5.6, 0, 5.6],
    "triangle-up": [6] * 3,
    "cross": [6.5, 2.2] * 4,
    "x": [2.2, 6.5] * 4,
    "star": [6.5, 2.8] * 5,
    "pentagon": [5.5] * 5,
    "hexagram": [6, 3.2] * 6,
}


def opened(title: str, spoken: str, width: int, height: int, style: str = "") -> list[str]:
    """The lines that an SVG begins with; `</svg>` ends it. spoken: its figures in words, for whoever does not see them;
    width, height: px of what is drawn from (0, 0), with EDGE around it but below; style: beside STYLE."""
    wide, high = width + 2 * EDGE, height + EDGE
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" role="img" aria-labelledby="t d"'
        f' viewBox="{-EDGE} {-EDGE} {wide} {high}">',
        f'<title id="t">{markup(title)}</title>',
        f'<desc id="d">{markup(spoken)}</desc>',
        f"<style>{STYLE}{style}</style>",
        f'<path class="back" d="M{-EDGE} {-EDGE}H{width + EDGE}V{height}H{-EDGE}z"/>',
    ]


def log_scale(first: float, last: float, begin: float, length: float) -> Callable[[float], float]:
    """Where a value lies on a logarithmic axis: e^first at `begin`, e^last `length` further."""
    return lambda value: begin + length * (math.log(value) - first) / (last - first)


def log_ticks(low: float, high: float, digits: Sequence[int] = (1, 2, 5)) -> list[float]:
    """The digits times powers of ten between the two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for p in powers for m in digits if low <= (tick := m * 10.0**p) <= high]


def mark(symbol: str, x: float, y: float) -> str:
    """The path of a mark of palette.SYMBOLS around (x, y). Raises KeyError for another name."""
    if symbol == SYMBOLS[0]:  # the circle has no corners
        return f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
    corners = CORNERS[symbol]
    turns = [2 * math.pi * i / len(corners) for i in range(len(corners))]
    places = [
        f"{x + r * math.sin(turn):.1f} {y - r * math.cos(turn):.1f}"
        for r, turn in zip(corners, turns, strict=True)
        if r
    ]
    return f"M{'L'.join(places)}z"
