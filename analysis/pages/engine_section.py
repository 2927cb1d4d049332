"""The section of a report about runs of engines that set what a run does (docs/engines.md)."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from analysis.comparing.by_ratio import PHASES, ByRatio, by_ratio, ratio_of, scaled, setting_of, tied, told_setting
from analysis.pages import engine_figures
from analysis.pages.panels import Cells, Panel, Section
from analysis.reading.run import Run, by_cause, share
from analysis.showing.words import figure, plain
from sim.experiments.fastest import fastest
from sim.outcome.how_sure import how_sure, key_of
from sim.outcome.marks import machine_words

CAPTION = (
    "The fastest first, and which experts are where. Shares of the whole run's time; bytes over the link of all of it."
)
PARTS = ("dense", "experts", "stall", "cpu_wait")  # of the breakdown, in the table


def engines(runs: Sequence[Run]) -> Section | None:
    """What each engine set, put where, and how fast it was, a panel for each trace and machine; over link/host ratios
    where there are several. None where no run has an engine that behaves."""
    mine = [run for run in runs if _told(run)]
    if not mine:
        return None
    panels = [_panel(i, found) for i, found in enumerate(_comparable(mine))]
    panels += [_over_ratios(i, each) for i, each in enumerate(by_ratio(mine))]
    return Section("engines", "Engines", [*panels, _sets(mine)])


def _told(run: Run) -> Mapping[str, Any]:
    told = run.summary.get("engine") or {}
    return told if told.get("name") else {}


def _comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by trace, setting and machine; of a trace and setting those on a machine with its link scaled only where
    there are no others: by ratio they have a panel of their own."""
    groups: dict[tuple[str, ...], dict[str, list[Run]]] = {}
    for run in runs:
        machines = groups.setdefault((run.trace["hash"], *setting_of(run)), {})
        machines.setdefault(machine_words(run.spec), []).append(run)
    out = []
    for machines in groups.values():
        real = [found for found in machines.values() if not scaled(found[0])]
        out += real or [*machines.values()]
    return out


def _panel(i: int, runs: Sequence[Run]) -> Panel:
    """Of runs that may be compared."""
    trace = PurePath(str(runs[0].spec["trace"])).stem + (" (synthetic)" if runs[0].synthetic else "")
    said = "; ".join(word for key in PHASES if (word := _fastest(runs, key))) or "no run had a token"
    return Panel(f"engines-{i}", f"{trace}, {_where(runs)}: {said}", CAPTION, table=_table(runs), wide=True)


def _where(runs: Sequence[Run]) -> str:
    """Memory, GPU and precision."""
    ratio = ratio_of(runs[0])
    return told_setting(runs) + (f", link/host {ratio:.3g}" if scaled(runs[0]) and ratio else "")


def _fastest(runs: Sequence[Run], key: str) -> str:
    """Of a phase; nothing where no run has one."""
    speeds = {_label(run, runs): run.summary[key] for run in runs if run.summary.get(key) and _fits(run)}
    if not speeds:
        return ""
    if len(speeds) == 1:
        return f"{PHASES[key]}: {next(iter(speeds.values())):,.2f} tokens/s"
    names = fastest(speeds)
    said = f"{names[0]} fastest in {PHASES[key]}" if len(names) == 1 else f"no winner in {PHASES[key]}: {tied(names)}"
    return f"{said}{':' if len(names) == 1 else ','} {speeds[names[0]]:,.2f} tokens/s"


def _fits(run: Run) -> bool:
    return run.summary["marks"]["fits"] is not False


def _label(run: Run, runs: Sequence[Run]) -> str:
    """The engine, or the run where several have that engine."""
    name = str(_told(run)["name"])
    return name if [_told(each)["name"] for each in runs].count(name) == 1 else run.name


def _table(runs: Sequence[Run]) -> Cells:
    """The fastest first; speeds beside the names, what is long last."""
    titles = ["engine", *(f"{word} tokens/s" for word in PHASES.values())]
    titles += [*(f"{part.replace('_', ' ')} (%)" for part in PARTS), "GB over the link", "experts"]
    order = sorted(runs, key=lambda run: [-(run.summary.get(key) or 0.0) for key in PHASES])
    return titles, [_row(run, _label(run, runs)) for run in order]


def _row(run: Run, name: str) -> list[str]:
    told, s = _told(run), run.summary
    fit = " (as fits)" if told.get("chosen_by_fit") else ""
    return [
        plain(name) + ("" if _fits(run) else " (does not fit)"),
        *(figure(s.get(key), 2) + how_sure(s.get(key_of(key)), None) for key in PHASES),
        *(f"{100 * share(s['breakdown_ns'][part], s['time_ns']):.1f}" for part in PARTS),
        f"{sum(by_cause(s['h2d_bytes']).values()) / 1e9:,.1f}",
        plain(told.get("residents")) + fit,
    ]


def _sets(runs: Sequence[Run]) -> Panel:
    """What is set, once for all runs of an engine that have it alike."""
    rows = dict.fromkeys(
        (
            plain(told["name"]),
            plain(told.get("version") or "-"),
            _fields(told.get("sets")),
            _fields(told.get("you_set")),
        )
        for told in map(_told, runs)
    )
    titles = ["engine", "version", "it set", "you set"]
    caption = "What an engine's name set of a run, and what its user set otherwise."
    return Panel("engine-sets", "What each engine set", caption, table=(titles, [list(row) for row in rows]), wide=True)


def _fields(given: Mapping[str, Any] | None) -> str:
    return plain(", ".join(f"{name} {value}" for name, value in (given or {}).items()) or "-")


def _over_ratios(i: int, found: ByRatio) -> Panel:
    caption = (
        "Tokens/s over the rate of the link by what the host reads. Who is fastest at some ratio, or within 1 % of "
        "it, has a colour and larger marks; the others are grey, and in the table."
    )
    synthetic = " (synthetic)" if found.synthetic else ""
    title = f"{PurePath(found.trace).stem}{synthetic}, {found.setting}: " + "; ".join(
        found.told(phase) for phase in PHASES
    )
    return Panel(f"engines-by-ratio-{i}", title, caption, engine_figures.by_ratio(found), _speeds(found), wide=True)


def _speeds(found: ByRatio) -> Cells:
    rows = [
        [word, plain(name), *(figure(at.get(ratio), 2) for ratio in found.ratios)]
        for phase, word in PHASES.items()
        for name, at in found.speeds[phase].items()
    ]
    return ["phase", "engine", *(f"{ratio:.3g}" for ratio in found.ratios)], rows
