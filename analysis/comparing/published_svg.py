"""Predicted against published speeds as an SVG for a page that runs no script: a panel a phase, a mark a speed.

The engines (or machines, or models) with most speeds have a colour and a shape each, the others are grey.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from analysis.reading.published import UNITS, Speed
from analysis.showing.drawing import EDGE, INK, PAPER, log_scale, log_ticks, mark, opened
from analysis.showing.palette import GREY, SHADES, SYMBOLS
from analysis.showing.words import markup, shortened
from sim.catalog.intervals import LEVEL

BY = ("engine", "machine", "model")
LEFT, SIDE, GAP, HEAD, FOOT, ROW = 52, 400, 24, 148, 62, 18  # px; HEAD: above a panel; FOOT: between it and its legend
NAMES, COUNTS = 20, 290  # of the legend: where names begin and counts end, right of LEFT
NAMED = len(SHADES) + 1  # the last in the colour of text
APART = 0.25  # at least, of speeds from the edge: a factor of 1.28
LEAST = 1.0  # that an axis spans: a factor of 2.72, so there is a tick
NEAR = 0.25  # of what is published: how far off the thin lines are
MOST_TICKS = 11  # then powers of ten alone
INTERVAL = f"{100 * LEVEL:g} % interval"
HOW = (
    f"tokens/s, both axes logarithmic; lines: as published, {100 * NEAR:g} % more and less",
    f"whisker: {INTERVAL}; filled: judged, hollow: not",
)
SYNTHETIC = "! SYNTHETIC routing; hit rates as counted where published"


@dataclass(frozen=True)
class Series:
    """A line of the legend: a value of BY, or several together; how its marks look, by class and symbol."""

    name: str
    look: str
    symbol: str
    speeds: Sequence[Speed]

    def of(self, phase: str) -> list[Speed]:
        """Its speeds of a phase."""
        return [each for each in self.speeds if each.phase == phase]


def published_svg(speeds: Sequence[Speed], by: str = "engine", phases: Sequence[str] = tuple(UNITS)) -> str:
    """by: of BY. Equal speeds, in one order, give equal bytes; those of no phase of `phases` are left out."""
    shown = [each for each in speeds if each.phase in phases]
    every = series(shown, by)
    rows = max(sum(bool(one.of(phase)) for one in every) for phase in phases)
    title = f"Predicted against published speeds, by {by}"
    spoken = "; ".join(f"{phase}: {', '.join(_told(shown, phase))}; {_spoken(every, phase)}" for phase in phases)
    width = len(phases) * (LEFT + SIDE) + (len(phases) - 1) * GAP
    parts = [
        *opened(title, spoken, width, HEAD + SIDE + FOOT + ROW * rows + EDGE, _style()),
        f'<text x="0" y="14" class="title">{markup(title)}</text>',
        *(f'<text x="0" y="{34 + ROW * i}" class="soft">{line}</text>' for i, line in enumerate(HOW)),
        f'<text x="0" y="{34 + ROW * len(HOW)}" class="loud">{SYNTHETIC}</text>',
    ]
    for i, phase in enumerate(phases):
        parts += _panel(every, phase, i * (LEFT + SIDE + GAP) + LEFT, HEAD)
    return "\n".join([*parts, "</svg>"])


def series(speeds: Sequence[Speed], by: str) -> list[Series]:
    """The NAMED values with most speeds, by name where they have as many, and the others together, if there are any."""
    counts = Counter(getattr(each, by) for each in speeds)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    out = [
        Series(name, f"k{i}", SYMBOLS[i], [each for each in speeds if getattr(each, by) == name])
        for i, name in enumerate(ranked[:NAMED])
    ]
    left = ranked[NAMED:]
    rest = [each for each in speeds if getattr(each, by) in left]
    name = left[0] if len(left) == 1 else f"{len(left)} others"
    return out + [Series(name, "others", SYMBOLS[NAMED], rest)] * bool(left)


def _style() -> str:
    """Of the marks: colour by series; the last one and what is hollow follow the theme."""
    looks = {f"k{i}": shade for i, shade in enumerate(SHADES)} | {"others": GREY, f"k{NAMED - 1}": INK[0]}
    light = " ".join(f".{look} {{ fill: {shade}; stroke: {shade}; }}" for look, shade in looks.items())
    paper = [f".hollow {{ fill: {each}; }} .solid {{ stroke: {each}; }}" for each in PAPER]
    dark = f".k{NAMED - 1} {{ fill: {INK[1]}; stroke: {INK[1]}; }} {paper[1]}"
    lines = (
        ".tick, .near { stroke: #8a949e; fill: none; } .tick { opacity: 0.35; } .whiskers { opacity: 0.5; } "
        ".hollow { stroke-width: 1.4; } .solid { stroke-width: 0.7; } .name { font-weight: 600; }"
    )
    return f"{lines} {light} {paper[0]} @media (prefers-color-scheme: dark) {{ {dark} }}"


# --- figures ---


def _told(speeds: Sequence[Speed], phase: str) -> list[str]:
    """`3 judged: median error 12.0 %`, `67 % are within 25 %, 100 % in their 80 % interval`."""
    judged = [each for each in speeds if each.phase == phase and each.is_judged]
    if not judged:
        return ["none judged"]
    near = sum(abs(each.error) <= NEAR for each in judged) / len(judged)
    held = sum(each.low <= each.published <= each.high for each in judged) / len(judged)
    return [
        f"{len(judged)} judged: median error {_median(judged)}",
        f"{100 * near:.0f} % are within {100 * NEAR:g} %, {100 * held:.0f} % in their {INTERVAL}",
    ]


def _median(speeds: Sequence[Speed]) -> str:
    """Of the sizes of their errors."""
    return f"{100 * median(abs(each.error) for each in speeds):.1f} %"


def _spoken(every: Sequence[Series], phase: str) -> str:
    told = [(one.name, one.of(phase)) for one in every]
    return ", ".join(f"{name} {len(mine)} with median error {_median(mine)}" for name, mine in told if mine)


# --- a panel ---


def _panel(every: Sequence[Series], phase: str, x: int, y: int) -> list[str]:
    """Its square begins at (x, y)."""
    speeds = [each for one in every for each in one.of(phase)]
    told = _told(speeds, phase)
    parts = [
        f'<text x="{x}" y="{y - 46}" class="name">{phase}: predicted tokens/s</text>',
        *(f'<text x="{x}" y="{y - 28 + 16 * i}" class="soft">{line}</text>' for i, line in enumerate(told)),
    ]
    if not speeds:
        return [*parts, f'<text x="{x}" y="{y + 20}" class="soft">nothing published</text>']
    values = [value for each in speeds for value in (each.published, each.predicted, each.low, each.high)]
    low, high = math.log(min(values)), math.log(max(values))
    apart = max(APART, (LEAST - (high - low)) / 2)
    square = Square(low - apart, high + apart, x, y)
    parts += [*square.axes(), *square.lines()]
    for one in sorted(every, key=lambda one: one.look != "others"):  # who has fewer lies on who has more
        parts += square.marks(one, one.of(phase))
    return parts + _legend(every, phase, x, y + SIDE + FOOT)


@dataclass(frozen=True)
class Square:
    """Where a panel's speeds lie: from e^low to e^high tokens/s on both axes, its upper left corner at (x, y)."""

    low: float
    high: float
    x: int
    y: int

    def across(self, speed: float) -> float:
        """Where a published speed lies."""
        return log_scale(self.low, self.high, self.x, SIDE)(speed)

    def up(self, speed: float) -> float:
        """Where a predicted speed lies."""
        return log_scale(self.high, self.low, self.y, SIDE)(speed)

    def axes(self) -> list[str]:
        """The same ticks on both."""
        low, high = math.exp(self.low), math.exp(self.high)
        ticks = log_ticks(low, high)
        parts = []
        for tick in ticks if len(ticks) <= MOST_TICKS else log_ticks(low, high, (1,)):
            right, down = self.across(tick), self.up(tick)
            parts += [
                f'<path class="tick" d="M{right:.1f} {self.y}v{SIDE}M{self.x} {down:.1f}h{SIDE}"/>',
                f'<text x="{self.x - 6}" y="{down + 4:.1f}" text-anchor="end" class="soft">{tick:g}</text>',
                f'<text x="{right:.1f}" y="{self.y + SIDE + 18}" text-anchor="middle" class="soft">{tick:g}</text>',
            ]
        middle, under = self.x + SIDE // 2, self.y + SIDE + 36
        return [*parts, f'<text x="{middle}" y="{under}" text-anchor="middle" class="soft">published tokens/s</text>']

    def lines(self) -> list[str]:
        """The diagonal, and those NEAR it, as far as they lie in the square."""
        parts, low, high = [], math.exp(self.low), math.exp(self.high)
        for factor, look in ((1 - NEAR, "near"), (1, "line"), (1 + NEAR, "near")):
            first, last = low * max(1, 1 / factor), high * min(1, 1 / factor)
            begin, end = (f"{self.across(speed):.1f} {self.up(speed * factor):.1f}" for speed in (first, last))
            parts.append(f'<path class="{look}" d="M{begin}L{end}"/>')
        return parts

    def marks(self, one: Series, speeds: Sequence[Speed]) -> list[str]:
        """A group: all whiskers as one path, then a mark a speed with what it is."""
        if not speeds:
            return []
        ends = [(self.across(each.published), self.up(each.low), self.up(each.high)) for each in speeds]
        whiskers = "".join(f"M{right:.1f} {low:.1f}V{high:.1f}" for right, low, high in ends)
        parts = [f'<g class="{one.look}">', f'<path class="whiskers" d="{whiskers}"/>']
        for each in speeds:
            look = "solid" if each.is_judged else "hollow"
            path = mark(one.symbol, self.across(each.published), self.up(each.predicted))
            parts.append(f'<path class="{look}" d="{path}"><title>{markup(_what(each))}</title></path>')
        return [*parts, "</g>"]


def _what(speed: Speed) -> str:
    whose = ", ".join(part for part in (speed.engine, speed.machine, speed.model, speed.settings) if part)
    figures = f"published {speed.published:.4g}, predicted {speed.predicted:.4g} ({speed.low:.4g} to {speed.high:.4g})"
    judged = "judged" if speed.is_judged else f"not judged: {speed.judged.removeprefix('no: ')}"
    return f"{whose}; {speed.phase} tokens/s {figures}, {speed.error:+.1%}; {judged}"


def _legend(every: Sequence[Series], phase: str, x: int, y: int) -> list[str]:
    """Who has marks in the panel, how many, and their median error; judged or not."""
    parts = [
        f'<text x="{x + COUNTS}" y="{y}" text-anchor="end" class="soft">rows</text>',
        f'<text x="{x + SIDE}" y="{y}" text-anchor="end" class="soft">median |error|</text>',
    ]
    shown = [(one, one.of(phase)) for one in every if one.of(phase)]
    for i, (one, mine) in enumerate(shown, 1):
        at = y + ROW * i
        parts += [
            f'<path class="{one.look}" d="{mark(one.symbol, x + 6, at - 4)}"/>',
            f'<text x="{x + NAMES}" y="{at}">{markup(shortened(one.name, 33))}</text>',
            f'<text x="{x + COUNTS}" y="{at}" text-anchor="end">{len(mine)}</text>',
            f'<text x="{x + SIDE}" y="{at}" text-anchor="end">{_median(mine)}</text>',
        ]
    return parts
