"""Engines over link/host ratios as a small SVG for a page that runs no script: a row a trace, decode and prompts.

Who is fastest at some ratio has a colour there, the others are grey; names stand at the ends of their lines.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from analysis.comparing.by_ratio import PHASES, ByRatio
from analysis.showing.drawing import EDGE, log_scale, log_ticks, opened
from analysis.showing.palette import SHADES
from analysis.showing.words import markup, shortened

LEFT, PLOT, NAMES, HIGH, HEAD, ROW_HEAD, LABEL = 52, 250, 168, 280, 44, 66, 13
APART = 30  # of two labels under the line
PANEL, ROW = LEFT + PLOT + NAMES, ROW_HEAD + HIGH + 40
LINES = (
    ".other, .tick { stroke: #8a949e; fill: none; } .other { opacity: 0.7; } .tick { opacity: 0.35; } "
    ".name { font-weight: 600; }"
)
TITLE = "Which engine is fastest, by how fast the link is against the host's memory"
HOW = (
    "over link rate / host read rate, both axes logarithmic; the host stays as it is; coloured: fastest, or within 1 % "
    "of it, at some ratio"
)


def ratio_svg(found: Sequence[ByRatio]) -> str:
    """Equal tables give equal bytes."""
    spoken = "; ".join(f"{_name(each)}, {each.setting}: {each.told(phase)}" for each in found for phase in PHASES)
    parts = [
        *opened(TITLE, spoken, 2 * PANEL, HEAD + ROW * len(found) + EDGE, LINES),
        f'<text x="0" y="14" class="title">{markup(TITLE)}</text>',
        f'<text x="0" y="34" class="soft">{HOW}</text>',
    ]
    winners = dict.fromkeys(name for each in found for phase in PHASES for name in each.winners(phase))
    colour = {name: SHADES[i % len(SHADES)] for i, name in enumerate(winners)}
    for i, each in enumerate(found):
        said = shortened(f"{_name(each)}: {each.setting}", 120)
        parts.append(f'<text x="0" y="{HEAD + ROW * i + 26}" class="name">{markup(said)}</text>')
        mine = {name: colour[name] for phase in PHASES for name in each.winners(phase)}
        for j, phase in enumerate(PHASES):
            parts += _panel(each, phase, j * PANEL, HEAD + ROW * i, mine)
    return "\n".join([*parts, "</svg>"])


def _name(found: ByRatio) -> str:
    return PurePath(found.trace).stem + (" (synthetic)" if found.synthetic else "")


def _panel(found: ByRatio, phase: str, x: int, y: int, colour: Mapping[str, str]) -> list[str]:
    speeds = found.speeds[phase]
    values = [speed for at in speeds.values() for speed in at.values()]
    top = y + ROW_HEAD
    parts = [f'<text x="{x + LEFT}" y="{y + 50}">{PHASES[phase]} tokens/s</text>']
    if not values:
        return [*parts, f'<text x="{x + LEFT}" y="{top + 20}" class="soft">no engine ran</text>']
    low, high = math.log(min(values)) - 0.05, math.log(max(values)) + 0.05
    first, last = math.log(found.ratios[0]), math.log(found.ratios[-1])
    across, up = log_scale(first, last, x + LEFT, PLOT), log_scale(high, low, top, HIGH)
    labelled = -math.inf
    for ratio in found.ratios:
        here = across(ratio)
        parts.append(f'<path class="tick" d="M{here:.1f} {top}V{top + HIGH}"/>')
        if here - labelled >= APART:
            label = f'<text x="{here:.1f}" y="{top + HIGH + 18}" text-anchor="middle" class="soft">{ratio:.2g}</text>'
            parts, labelled = [*parts, label], here
    for tick in log_ticks(math.exp(low), math.exp(high)):
        parts.append(f'<path class="tick" d="M{x + LEFT} {up(tick):.1f}H{x + LEFT + PLOT}"/>')
        parts.append(f'<text x="{x + LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end" class="soft">{tick:g}</text>')
    for name, at in sorted(speeds.items(), key=lambda item: item[0] in colour):  # winners above the others
        line = "M" + "L".join(f"{across(ratio):.1f} {up(at[ratio]):.1f}" for ratio in sorted(at))
        look = f'fill="none" stroke="{colour[name]}" stroke-width="2.5"' if name in colour else 'class="other"'
        parts.append(f'<path {look} d="{line}"/>')
    ends = {name: up(at[max(at)]) for name, at in speeds.items()}
    return parts + _names(ends, colour, x + LEFT + PLOT + 8, top)


def _names(at: Mapping[str, float], colour: Mapping[str, str], x: int, top: int) -> list[str]:
    """At the ends of the lines, moved apart where they would touch."""
    order, places = sorted(at, key=lambda name: at[name]), list[float]()
    for name in order:
        places.append(max(at[name] + 4, places[-1] + LABEL if places else top))
    below = float(top + HIGH + 8)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], below)
        below = places[i] - LABEL
    parts = []
    for name, place in zip(order, places, strict=True):
        dot = f'<tspan fill="{colour[name]}">&#9679; </tspan>' if name in colour else ""
        look = "" if name in colour else ' class="soft"'
        parts.append(f'<text x="{x}" y="{place:.1f}"{look}>{dot}{markup(shortened(name, 22))}</text>')
    return parts
