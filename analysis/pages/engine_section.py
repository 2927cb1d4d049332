"""The section of a report about runs of engines that set what a run does (docs/engines.md)."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from analysis.comparing.by_ratio import PHASES, ByRatio, by_ratio
from analysis.comparing.formats import figure
from analysis.pages import engine_figures
from analysis.pages.panels import MAX_TABLE_ROWS, Cells, Panel, Section
from analysis.reading.run import Run, by_cause, share
from analysis.showing.words import plain

CAPTION = (
    "What an engine's name set, what its user set otherwise, and which experts are where. Shares of the whole run's "
    "time; bytes over the link of the whole run."
)
PARTS = ("dense", "experts", "stall", "cpu_wait")  # of the breakdown, in the table


def engines(runs: Sequence[Run]) -> Section | None:
    """What each engine set, put where, and how fast it was; over link/host ratios where there are several. None where
    no run has an engine that behaves."""
    mine = [run for run in runs if _told(run)]
    if not mine:
        return None
    panels = [Panel("engines", _title(mine), CAPTION, table=_table(mine), wide=True)]
    return Section("engines", "Engines", panels + [_over_ratios(i, each) for i, each in enumerate(by_ratio(mine))])


def _told(run: Run) -> Mapping[str, Any]:
    told = run.summary.get("engine") or {}
    return told if told.get("name") else {}


def _title(runs: Sequence[Run]) -> str:
    """Who is fastest in decode and in prompts."""
    said = []
    for key, word in PHASES.items():
        speeds = {run.name: run.summary.get(key) or 0.0 for run in runs}
        best = max(speeds, key=speeds.__getitem__)
        if speeds[best]:
            said.append(f"{best} is fastest in {word}: {speeds[best]:,.2f} tokens/s")
    return "; ".join(said) or "No run had a token"


def _table(runs: Sequence[Run]) -> Cells | None:
    if len(runs) > MAX_TABLE_ROWS:
        return None
    titles = ["run", "engine", "it set", "you set", "experts", *(f"{word} tokens/s" for word in PHASES.values())]
    titles += [*(f"{part.replace('_', ' ')} (%)" for part in PARTS), "GB over the link"]
    return titles, [_row(run) for run in runs]


def _row(run: Run) -> list[str]:
    told, s = _told(run), run.summary
    fit = " (as fits)" if told.get("chosen_by_fit") else ""
    return [
        run.name,
        plain(f"{told['name']} {told.get('version') or ''}".strip()),
        _fields(told.get("sets")),
        _fields(told.get("you_set")),
        plain(told.get("residents")) + fit,
        *(figure(s.get(key), 2) for key in PHASES),
        *(f"{100 * share(s['breakdown_ns'][part], s['time_ns']):.1f}" for part in PARTS),
        f"{sum(by_cause(s['h2d_bytes']).values()) / 1e9:,.1f}",
    ]


def _fields(given: Mapping[str, Any] | None) -> str:
    return plain(", ".join(f"{name} {value}" for name, value in (given or {}).items()) or "-")


def _over_ratios(i: int, found: ByRatio) -> Panel:
    caption = (
        "Tokens/s over the rate of the link by what the host reads. Who is fastest at some ratio has a colour and "
        "larger marks; the others are grey, and in the table."
    )
    title = f"{PurePath(found.trace).stem}: " + "; ".join(found.told(phase) for phase in PHASES)
    return Panel(f"engines-by-ratio-{i}", title, caption, engine_figures.by_ratio(found), _speeds(found), wide=True)


def _speeds(found: ByRatio) -> Cells:
    rows = [
        [word, plain(name), *(figure(at.get(ratio), 2) for ratio in found.ratios)]
        for phase, word in PHASES.items()
        for name, at in found.speeds[phase].items()
    ]
    return ["phase", "engine", *(f"{ratio:.3g}" for ratio in found.ratios)], rows
