"""Ranks of policies as an SVG for a page that runs no script: a panel a kind, a row a policy, the best on top.

After Demsar 2006, figure 1: who stands within the critical difference of the best cannot be told from it. Each
capture's own mean rank is a small ring, so that one sees what the mean hangs on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.showing.drawing import EDGE, mark, opened
from analysis.showing.palette import BLUE, SKY
from analysis.showing.words import listed, markup, shortened
from sim.experiments.ranks import Ranked
from sim.experiments.side_by_side import BASES, MADE, Asked, over_captures, standings
from sim.experiments.tables import Row

LEFT, PLOT, RIGHT, ROW, HEAD, TOP, FOOT = 150, 340, 310, 22, 80, 74, 8  # px; HEAD: above the first panel
SURE = "not calibrated: ratios and ranks are surer than speeds"
SEED = 0  # of the permutations
HOW = (
    "diamond: mean rank by tokens/s, 1 is the fastest; rings: each capture's own",
    "band: as the best, by the critical difference at 95 %; right: median vs base, wins/ties/losses against it",
)


def ranks_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """rows: of analysis.reading.policies. Equal rows give equal bytes."""
    kinds = [kind for kind in BASES if any(row["kind"] == kind for row in rows)]
    panels = [_Panel(kind, [dict(row) for row in rows if row["kind"] == kind]) for kind in kinds]
    title = "Policies ranked over captures"
    spoken = "; ".join(panel.spoken for panel in panels)
    height = HEAD + sum(panel.height for panel in panels)
    parts = [
        *opened(title, spoken, LEFT + PLOT + RIGHT, height + EDGE, _style()),
        f'<text x="0" y="14" class="title">{title}</text>',
        *(f'<text x="0" y="{34 + 18 * i}" class="soft">{line}</text>' for i, line in enumerate(HOW)),
    ]
    parts.append(f'<text x="0" y="{34 + 18 * len(HOW)}" class="loud">! {markup(_loud(rows))}</text>')
    top = HEAD
    for panel in panels:
        parts += panel.drawn(top)
        top += panel.height
    return "\n".join([*parts, "</svg>"])


def _loud(rows: Sequence[Mapping[str, Any]]) -> str:
    """What must be said of all of it."""
    made = sorted({str(row["trace"]) for row in rows if row["routing"] == MADE})
    return "; ".join([f"SYNTHETIC TRACES: {listed(made)}"] * bool(made) + [SURE])


def _style() -> str:
    return f"""
  .band {{ fill: {SKY}; fill-opacity: .28; }} .mean {{ fill: {BLUE}; }}
  .ring {{ fill: none; stroke: #8a949e; stroke-width: 1.2; }} .thin {{ stroke: #8a949e; stroke-opacity: .35; }}
"""


class _Panel:
    """One kind's policies. rows: of that kind alone."""

    def __init__(self, kind: str, rows: list[dict[str, Any]]) -> None:
        names = list(dict.fromkeys(str(row["policy"]) for row in rows))
        (told,) = standings(Asked(kind, names), rows, SEED)
        self.title, self.lines, self.found = told.title, list(told.rows), over_captures(rows, SEED)

    @property
    def height(self) -> int:
        return TOP + ROW * len(self.lines) + FOOT

    @property
    def spoken(self) -> str:
        """The figures in words, for whoever does not see them."""
        ranked = [f"{line['policy']} {line['mean_rank']:.2f}" for line in self.lines if line["mean_rank"] is not None]
        return f"{self.title}: {', '.join(ranked)}"

    def drawn(self, top: int) -> list[str]:
        """From `top` down."""
        begin, end = top + TOP, top + TOP + ROW * len(self.lines)
        heading, _, sure = self.title.partition("; ")
        parts = [
            f'<text x="0" y="{top + 26}" class="title">{markup(heading)}</text>',
            f'<text x="0" y="{top + 44}" class="soft">{markup(sure)}</text>',
            *self._axis(begin, end),
        ]
        for i, line in enumerate(self.lines):
            parts += self._row(line, begin + ROW * i + ROW // 2)
        return parts

    def _across(self, rank: float) -> float:
        return LEFT + PLOT * (rank - 1) / max(1, len(self.found.names) - 1)

    def _axis(self, begin: int, end: int) -> list[str]:
        k = len(self.found.names)
        ticks = [r for r in range(1, k + 1) if k <= 12 or r == 1 or r % 5 == 0]
        lines = "".join(f"M{self._across(r):.1f} {begin}V{end}" for r in ticks)
        parts = [*_band(self.found, self._across, begin, end), f'<path class="thin" d="{lines}"/>'] if k else []
        return parts + [
            f'<text x="{self._across(r):.1f}" y="{begin - 6}" text-anchor="middle" class="soft">{r}</text>'
            for r in ticks
        ]

    def _row(self, line: Row, y: int) -> list[str]:
        name, soft = str(line["policy"]), "" if line["mean_rank"] is not None else ' class="soft"'
        marks = f" ({line['marks']})" if line["marks"] else ""
        gain, record = f"{line['median_gain']:+.1f} %", line["record"]
        parts = [
            f'<text x="{LEFT - 14}" y="{y + 4}" text-anchor="end"{soft}>{markup(shortened(name, 20))}</text>',
            f'<text x="{LEFT + PLOT + 84}" y="{y + 4}" text-anchor="end"{soft}>{gain}</text>',
            f'<text x="{LEFT + PLOT + 100}" y="{y + 4}"{soft}>{record}{markup(marks)}</text>',
        ]
        if line["mean_rank"] is None:
            return parts
        own = self.found.by_block[:, list(self.found.names).index(name)]
        rings = "".join(_ring(self._across(rank), y) for rank in own)
        middle = mark("diamond", self._across(float(line["mean_rank"])), y)
        return [*parts, f'<path class="ring" d="{rings}"/>', f'<path class="mean" d="{middle}"/>']


def _band(found: Ranked, across: Any, begin: int, end: int) -> list[str]:
    """From the best to the critical difference behind it."""
    if found.critical is None:
        return []
    first, last = across(found.mean.min()), across(min(found.mean.min() + found.critical, len(found.names)))
    return [f'<path class="band" d="M{first:.1f} {begin}H{last:.1f}V{end}H{first:.1f}z"/>']


def _ring(x: float, y: float) -> str:
    return f"M{x - 3:.1f} {y}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z"
