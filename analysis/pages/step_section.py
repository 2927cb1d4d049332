"""The section of a report that shows one decode step of every run with a full record, on one axis."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.comparing.comparison import conditions
from analysis.pages import step_figures
from analysis.pages.panels import Cells, Panel, Section, remark
from analysis.reading.run import Run, share
from analysis.showing.palette import TIME
from analysis.showing.words import listed, plain, shortened
from analysis.timelines.asked import Asked
from analysis.timelines.fewer_pieces import fewer
from analysis.timelines.one_step import WAITS, Step, one_step
from analysis.timelines.tracks import Tracks, tracks
from sim.machines.record import RunRecord
from sim.outcome.how_sure import TIE
from traces.errors import UserError

MOST_PIECES = 6_000  # of all runs in one figure: some 200 kB
PARTS = list(TIME)
LONG = 34  # characters of a run's name
MOST_NAMED = 3  # parts of a difference
NEEDS = "A step is not drawn for {names}: it needs a full record (python -m sim.run --record full --out)."
LEFT_BEHIND = "A step is drawn for the first full records only: not for {names}."
TOGETHER = "The same step of every run, each from its own begin to the dotted line. "
HOW = (
    "GPU: blue works, what is hatched waits for a copy{pink}; the parts add up to the step. Link: a copy from its "
    "start to its landing, and thin above it what is committed and waits for the link. Steps count from 0, prompts and "
    "warm-up too. Over a piece: what it is, from when to when, to the ns."
)
PINK = ", and pink for the experts on the CPU, which the host's row shows"
MEASURED = " On a device the borders between stall and set-up are an estimate."


def steps(runs: Sequence[Run], baseline: str, number: int | None = None) -> Section:
    """One step of each run that has a full record at hand: a choice of the baseline's decode steps, or step `number`.
    Runs whose steps are not the same work stand in figures of their own."""
    section = Section("step", "One step, piece by piece")
    found: dict[str, tuple[Run, Tracks]] = {}
    for run in runs:
        if run.record is None or not run.record.groups:
            continue
        try:
            found[run.name] = run, tracks(run.record, Asked.of(run.spec, run.measured))
        except UserError as error:
            section.remarks.append(f"A step is not drawn for {run.name}: {error}.")
    for i, names in enumerate(_alike([run for run, _ in found.values()])):
        section.panels.extend(_panels(i, {name: found[name] for name in names}, baseline, number))
        if not _decoded(found[names[0]][0].record).size and number is None:
            section.remarks.append(f"No decode step is counted in {listed(names)}: there is none to be drawn.")
    section.remarks.extend(remark(NEEDS, [run for run in runs if not run.full]))
    section.remarks.extend(remark(LEFT_BEHIND, [run for run in runs if run.full and not _record(run).groups]))
    return section


def _alike(runs: Sequence[Run]) -> list[list[str]]:
    """Names of runs whose steps are the same work: of one trace, the same requests in the same steps."""
    out: dict[object, list[str]] = {}
    for run in runs:
        assert run.record is not None
        shape = tuple(run.record.steps[name].astype(np.int64).tobytes() for name in ("prefill", "rows"))
        out.setdefault((run.judged, shape), []).append(run.name)
    return list(out.values())


def _decoded(record: RunRecord | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Numbers of the counted decode steps."""
    assert record is not None
    return np.flatnonzero(record.steps["prefill"][record.warmup_steps :] == 0) + record.warmup_steps


def chosen(record: RunRecord) -> dict[int, str]:
    """Decode steps to be looked at, by number, and what they are: the median first; percentiles by nearest rank."""
    mine = _decoded(record)
    if not len(mine):
        return {}
    ranked = mine[np.argsort((record.steps["end_ns"] - record.steps["begin_ns"])[mine], kind="stable")]
    n = len(mine)
    wanted = {
        "median": ranked[(n - 1) // 2],
        "fastest": ranked[0],
        "p95": ranked[-(-95 * n // 100) - 1],
        "slowest": ranked[-1],
        "first": mine[0],
    }
    out: dict[int, str] = {}
    for word, step in wanted.items():
        out[int(step)] = f"{out[int(step)]}, {word}" if int(step) in out else word
    return out


def _panels(i: int, found: Mapping[str, tuple[Run, Tracks]], baseline: str, number: int | None) -> list[Panel]:
    """A panel for each choice, of runs whose steps are alike."""
    base = found[baseline][0] if baseline in found else next(iter(found.values()))[0]
    assert base.record is not None
    choices = chosen(base.record) if number is None else {number: ""}
    out = []
    for step, word in choices.items():
        shown = {name: one_step(every, _record(run), step) for name, (run, every) in found.items()}
        panel = _panel(f"steps-{i}-{step}", [run for run, _ in found.values()], base, shown)
        of = f" of {base.name}" if len(found) > 1 else ""
        out.append(panel.one_of(f"steps-{i}", "Decode step", f"{word}{of}: step {step}") if word else panel)
    return out


def _record(run: Run) -> RunRecord:
    assert run.record is not None
    return run.record


def _panel(key: str, runs: Sequence[Run], base: Run, shown: Mapping[str, Step]) -> Panel:
    drawn = {name: fewer(step, MOST_PIECES // len(shown)) for name, step in shown.items()}
    labels = {run.name: _label(run) for run in runs}
    pink = PINK * any(step.parts()["cpu_wait"] or len(step.host) for step in drawn.values())
    caption = TOGETHER * (len(drawn) > 1) + HOW.format(pink=pink) + MEASURED * any(run.measured for run in runs)
    for words in dict.fromkeys(step.merged for step in drawn.values() if step.merged):
        caption += f" {listed([name for name, step in drawn.items() if step.merged == words])}: {words}"
    figure = step_figures.step({labels[name]: step for name, step in drawn.items()})
    return Panel(key, _title(runs, base, shown), caption, figure, _table(labels, shown), wide=True)


def _label(run: Run) -> str:
    """The name, and what must be said with it."""
    marks = ["oracle"] * run.oracle + ["lossy"] * run.lossy
    return shortened(run.name, LONG) + f" ({', '.join(marks)})" * bool(marks)


def _title(runs: Sequence[Run], base: Run, shown: Mapping[str, Step]) -> str:
    """How long the step takes, and where the difference from the baseline is: against the fastest alternative of the
    baseline, which is no oracle."""
    groups = dict(zip((run.name for run in runs), conditions(runs), strict=True))
    lasts = {name: step.end - step.begin for name, step in shown.items()}
    own = f"Step {shown[base.name].number}: {_label(base)} takes {_ms(lasts[base.name])}"
    rivals = [run for run in runs if run is not base and groups[run.name] == groups[base.name] and not run.oracle]
    if not rivals:
        waits = sum(shown[base.name].parts()[part] for part in WAITS)
        return f"{own}, {100 * share(waits, lasts[base.name]):.3g} % of it waiting"
    best = min(rivals, key=lambda run: lasts[run.name])
    if abs(lasts[best.name] - lasts[base.name]) <= TIE * lasts[base.name]:
        return f"{own}, {_label(best)} the same within {100 * TIE:g} %"
    return f"{own}, {_label(best)} {_ms(lasts[best.name])}: {_differences(shown[base.name], shown[best.name])}"


def _differences(base: Step, other: Step) -> str:
    """The parts that make up the difference, the largest first; what is no tenth of it is left out."""
    mine, theirs = base.parts(), other.parts()
    by = {part: theirs[part] - mine[part] for part in PARTS}
    least = abs(sum(by.values())) / 10
    told = sorted((part for part in PARTS if abs(by[part]) >= least), key=lambda part: -abs(by[part]))[:MOST_NAMED]
    words = [f"{_ms(abs(by[part]))} {'less' if by[part] < 0 else 'more'} {TIME[part][0]}" for part in told]
    return listed(words)


def _ms(ns: int) -> str:
    scale = step_figures.Scale.of(ns)
    return f"{ns / scale.ns:,.4g} {scale.unit}" if ns < 1000 * scale.ns else f"{ns / scale.ns:,.0f} {scale.unit}"


def _table(labels: Mapping[str, str], shown: Mapping[str, Step]) -> Cells:
    """ms by part, and what crossed the link."""
    every = {name: step.parts() for name, step in shown.items()}
    parts = [part for part in PARTS if any(found[part] for found in every.values())]
    titles = ["run", "step", "ms", *(f"{TIME[part][0]} ms" for part in parts), "copies in it", "their MB"]
    rows = []
    for name, step in shown.items():
        ns = [step.end - step.begin, *(every[name][part] for part in parts)]
        sent = [f"{len(step.link):,}", f"{step.link.of['bytes'].sum() / 1e6:,.1f}"]
        rows.append([plain(labels[name]), str(step.number), *(f"{each / 1e6:,.6f}" for each in ns), *sent])
    return titles, rows
