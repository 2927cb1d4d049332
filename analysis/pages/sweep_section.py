"""The section of a report about sweeps: tokens/s over each number that was swept, and the best of each group."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pandas as pd

from analysis.comparing.formats import percent
from analysis.pages import sweep_figures
from analysis.pages.figures import log_said
from analysis.pages.panels import Cells, Panel, Section
from analysis.pages.sweep_figures import drawn, has_interval, look_of
from analysis.pages.sweep_tables import (
    Best,
    Facet,
    Line,
    Row,
    axes,
    best_by,
    by_facet,
    labelled,
    lines,
    name_of,
    own_settings,
    sweep_table,
)
from analysis.reading.run import Run
from analysis.showing.words import figure, listed, plain, shortened
from sim.outcome.how_sure import TIE, between

MOST_FACETS = 8  # plots of one axis
MOST_ROWS = 200  # of the table of the best
SEGMENTS = 3  # of an axis, in a title
LONG = 60  # characters of a policy's name in a title
CAPTION = "A line joins runs that differ in nothing else."


def swept(runs: Sequence[Run]) -> Section | None:
    """None where no number was swept and nothing is a row of a sweep."""
    table = sweep_table(runs)
    over = axes(table) if len(table) else {}
    if not over and all(run.failed is None for run in runs):
        return None
    section = Section("sweep", "What was swept")
    for axis, beside in over.items():
        section.panels.extend(_axis(table, axis, beside, section.remarks))
    if len(table):
        section.panels.append(_best(table))
    section.remarks.extend(_missing(runs, table))
    return section


def _missing(runs: Sequence[Run], table: pd.DataFrame) -> list[str]:
    """What has no point: rows that failed, by why, and runs without a token."""
    out = []
    for failed in dict.fromkeys(run.failed for run in runs if run.failed):
        why = Counter(failed).most_common(2)
        said = "; ".join(f"{n} x {shortened(plain(text), 160)}" for text, n in why)
        more = f"; and {len(set(failed)) - 2} other reasons" if len(set(failed)) > 2 else ""
        n = sum(run.failed == failed for run in runs)
        out.append(f"{len(failed):,} of {len(failed) + n:,} configurations failed: {said}{more}.")
    silent = sum(run.summary["tokens_per_s"] is None for run in runs)
    out += [f"{silent:,} runs generated no token and have no point."] if silent else []
    joined = int(table["repeats"].sum()) - len(table) if len(table) else 0
    return out + ([f"{joined:,} repeats with another seed are joined to the mean of them."] if joined else [])


def _axis(table: pd.DataFrame, axis: str, beside: Sequence[str], remarks: list[str]) -> list[Panel]:
    """A panel for each set of conditions."""
    found = by_facet(lines(table, axis, beside))
    title = sweep_figures.title_of(table, axis)
    option = axis + (f" (in step with it: {', '.join(beside)})" if beside else "")
    looks, several = look_of([drawn(mine) for mine in found]), len(found) > 1
    keys = [f"sweep-{axis}-{i}" for i in range(min(len(found), MOST_FACETS))]
    panels = [_panel(key, mine, axis, title, looks, several) for key, mine in zip(keys, found, strict=False)]
    if len(found) > MOST_FACETS:
        remarks.append(f"Over {axis} {MOST_FACETS} of {len(found)} settings are drawn; the table has all of them.")
    return [panel.one_of("sweep", "Tokens/s over", option) for panel in panels]


def _panel(key: str, mine: Facet, axis: str, title: str, looks: Mapping[str, tuple[str, str]], several: bool) -> Panel:
    shown = drawn(mine)
    fig = log_said(sweep_figures.facet(mine, axis, looks).update_xaxes(title={"text": title}))
    where = f"{mine.name}: " if mine.name else ""
    left = [line for line in mine.lines if not any(line is one for one in shown)]
    caption = CAPTION + _signs(shown, axis)
    if left:
        high = max(left, key=lambda line: max(line.speeds))
        best = f"{shortened(high.label, LONG)}, at most {max(high.speeds):,.2f} tokens/s"
        caption += f" {len(left)} more lines are not drawn, the highest of them {best}."
    return Panel(key, where + who_wins(mine, axis), caption, fig, _table(mine, axis), wide=not several)


def _signs(shown: Sequence[Line], axis: str) -> str:
    """How to read what is drawn otherwise than usual."""
    rows = [row for line in shown for row in line.rows]
    fits = [row["fits"] for row in rows]
    said = {
        " Dashed: an oracle, which no engine can be.": any(line.oracle for line in shown),
        f" Level and dotted: has no {axis}.": any(line.x is None for line in shown),
        " Open markers: does not fit into the memory.": not all(fits) and any(fits),
        " None of these fits into the memory.": not any(fits),
        " The band: what the real engine does, for the line that is best most often.": any(map(has_interval, rows)),
    }
    return "".join(text for text, holds in said.items() if holds)


def who_wins(mine: Facet, axis: str) -> str:
    """Who is the fastest at which values, oracles aside, in a sentence; where others are within a hundredth, it says
    so."""
    each = [(x, *won) for x, won in zip(mine.points, mine.winners, strict=True)]
    parts = []
    for name, part in groupby(each, key=lambda one: one[1].label):
        at, ties = zip(*((x, ties) for x, _, ties in part), strict=True)
        tied = [f"{x:g}" for x, n in zip(at, ties, strict=True) if n]
        where = "" if len(tied) == len(at) else f" at {listed(tied)}"
        said = shortened(name, LONG) + (f" (tied{where})" if tied else "")
        parts.append((said, f"{at[0]:g}" + f" to {at[-1]:g}" * (len(at) > 1)))
    if len(parts) == 1:
        return f"{parts[0][0]} is the fastest at every {axis}"
    if len(parts) <= SEGMENTS:
        return f"the fastest by {axis}: {', '.join(f'{name} at {at}' for name, at in parts)}"
    names = len({one[1].label for one in each})
    return f"the fastest changes {len(parts) - 1} times with {axis}, among {names}; at {parts[-1][1]} {parts[-1][0]}"


def _table(mine: Facet, axis: str) -> Cells:
    """Tokens/s of every line, the highest first, by the swept number."""
    rows = []
    for line in sorted(mine.lines, key=lambda line: -max(line.speeds))[:MOST_ROWS]:
        places = [line.at(x) for x in mine.points]
        rows.append([plain(line.label), *(figure(None if i is None else line.speeds[i]) for i in places)])
    return ["run", *(f"{axis} {x:g}" for x in mine.points)], rows


# --- the best of each group ---


def _best(table: pd.DataFrame) -> Panel:
    """Of each set of conditions, and of each value of every setting in it."""
    every = best_by(table)
    own = own_settings(table)
    every += [one for setting in own for one in best_by(table, setting)]
    every = [one for one in every if one.setting is None or one.value is not None]
    order = {facet: i for i, facet in enumerate(dict.fromkeys(one.facet for one in every))}
    every.sort(key=lambda one: order[one.facet])
    rows = [_row(one, own) for one in every[:MOST_ROWS]]
    cut = f" The first {MOST_ROWS} of {len(every)} rows." if len(every) > MOST_ROWS else ""
    caption = (
        "Of each set of conditions, then of each value in it: the fastest that an engine could have and that fits, if "
        f"any does. A tie is within {100 * TIE:g} %: there is no winner.{cut}"
    )
    kept = [i for i in range(len(TITLES)) if any(row[i] != "-" for row in rows)]
    cells = [TITLES[i] for i in kept], [[row[i] for i in kept] for row in rows]
    return Panel("sweep-best", _best_title(every, own), caption, table=cells, wide=True)


TITLES = [
    "conditions", "of", "fastest", "tokens/s", "80 % between", "lost weight", "fits", "next best", "fastest lossless",
    "a faster oracle",
]  # fmt: skip


def _best_title(every: Sequence[Best], own: Sequence[str]) -> str:
    facets = [one for one in every if one.setting is None]
    if len(facets) > 1:
        return f"The best of each group: {len(facets)} sets of conditions, which are no alternatives of each other"
    name = shortened(_name(facets[0].best, own), LONG)
    ties = f", tied with {facets[0].ties} more" if facets[0].ties else ""
    return f"The best of all is {name}: {facets[0].best['tokens_per_s']:,.2f} tokens/s{ties}; below, of each group"


def _name(row: Row, own: Sequence[str]) -> str:
    return labelled(name_of(row, own), bool(row["oracle"]), bool(row["lossy"]))


def _row(one: Best, own: Sequence[str]) -> list[str]:
    best, others = one.best, [name for name in own if name != one.setting]
    pair = best["tokens_per_s_low"], best["tokens_per_s_high"]
    lossless = one.lossless if best["lossy"] else None
    lost = None if np.isnan(best["lost_weight"]) else float(best["lost_weight"])
    cells = [plain(one.facet or "-"), "all" if one.setting is None else f"{one.setting} {one.value}"]
    cells += [_name(best, others), figure(best["tokens_per_s"]), "-" if np.isnan(pair).any() else between(pair)]
    cells += [percent(lost, 2) if lost else "-", "-" if best["fits"] else "no"]
    for i, row in enumerate((one.following, lossless, one.oracle)):
        tie = f" (tie of {one.ties + 1})" if i == 0 and one.ties else ""
        cells.append("-" if row is None else f"{_name(row, others)}: {figure(row['tokens_per_s'])}{tie}")
    return [plain(cell) for cell in cells]
