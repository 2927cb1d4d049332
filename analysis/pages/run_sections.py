"""The sections of a report that summaries and records give, in the order in which they are read."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.comparing import formats
from analysis.comparing.answer import name_of
from analysis.comparing.comparison import Comparison
from analysis.pages import compare_figures, figures, tables
from analysis.pages.first_screen import fastest_first
from analysis.pages.panels import Panel, Section, cells, percent_range, remark, span
from analysis.reading.run import Run
from analysis.showing.words import figure
from analysis.timelines import series
from sim.outcome.per_request import per_request
from sim.outcome.summary import STALLS
from sim.outcome.table import LIMITS, cache_words

NEEDS_RECORD = (
    "The distribution over requests and steps is not shown for {names}: it needs record.npz (python -m sim.run --out)."
)


def what_was_run(runs: Sequence[Run]) -> Section:
    """Traces, real or synthetic, models, machines, policies: what all runs share once, and what tells them apart."""
    every = [_told(run) for run in runs]
    fields = dict.fromkeys(name for told in every for name in told)
    shared = [name for name in fields if len({told.get(name) for told in every}) == 1]
    apart = [name for name in fields if name not in shared]
    kinds = {run.trace["hash"]: run for run in runs}
    what = ", ".join(f"{r.trace['model']} ({'synthetic' if r.synthetic else 'real'})" for r in kinds.values())
    title = f"{len(runs)} run{'s' * (len(runs) > 1)} of {len(kinds)} trace{'s' * (len(kinds) > 1)}: {what}"
    panels = []
    if apart:
        rows = [[run.name, *(told.get(name, "-") for name in apart)] for run, told in zip(runs, every, strict=True)]
        panels.append(Panel("runs", title, "", table=(["run", *apart], rows), wide=True))
    same = "The same in all runs" if apart else title
    panels.append(Panel("shared", same, "", facts=[(name, every[0][name]) for name in shared], wide=True))
    return Section("what", "What was run", panels, folded=True)


def _told(run: Run) -> dict[str, str]:
    """Everything that a run depended on, in words."""
    spec, trace = run.spec, run.trace
    size = f"{trace['tokens']:,} tokens, {trace['moe_layers']} MoE layers x {trace['n_experts']} experts"
    out = {
        "trace": f"{spec['trace']} ({trace['hash'][:8]})",
        "kind of trace": "synthetic, made by a generator" if run.synthetic else "a real capture",
        "routing": f"{size}, top-{trace['top_k']}",
        "source": str(trace.get("source") or "-"),
        "model": str(spec.get("model") or trace["model"]),
        "cache": cache_words(run.summary),
    }
    hidden = {"trace", "model", "cache", "cache_scope", "set"}
    out |= {name: str(value) for name, value in spec.items() if name not in hidden and value is not None}
    out |= {name: str(value) for name, value in (spec.get("set") or {}).items()}
    out |= {name: f"{run.summary[name]:,}" for name in ("requests", "tokens", "prompt_tokens")}
    device = run.summary.get("device")
    if isinstance(device, dict) and "what" in device:
        out["device"] = str(device["what"])
    return out | {"machine": str(run.summary["machine"]), "marks": ", ".join(run.marks) or "-"}


def in_short(runs: Sequence[Run], found: Comparison) -> Section:
    """The comparison as a table, and what holds each run back."""
    base = next(row for row in found.rows if row["run"] == found.baseline)
    title = f"Each run against {name_of(base)}"
    caption = " ".join(f"{line[0].upper()}{line[1:]}." for line in formats.remarks(found))
    panels = [Panel("comparison", title, caption, table=formats.cells(found, settings=False), wide=True)]
    rows = [[run.name, run.summary["verdict"]] for run in runs]
    panels.append(Panel("verdicts", "What holds each run back", "", table=(["run", "verdict"], rows), wide=True))
    return Section("short", "In short", panels)


def speed(runs: Sequence[Run], found: Comparison) -> Section:
    """Tokens/s, TPOT, and how long decode steps take."""
    section = Section("speed", "Speed")
    if all(run.summary["tokens_per_s"] is None for run in runs):
        section.remarks.append("No run generated a token: there is no tokens/s and no TPOT.")
        return section
    table = tables.latencies(runs)
    if len(fastest_first(found).rows) < len(found.rows):  # else the first screen has it
        section.panels.append(
            Panel(
                "speed",
                f"{compare_figures.title_of_speed(found)}: {len(found.rows)} runs",
                compare_figures.about_speed(found),
                compare_figures.speed(found),
                (["run", "tokens/s"], [[row["run"], figure(row["tokens_per_s"], 3)] for row in found.rows]),
                wide=True,
            )
        )
    requests = {run.name: per_request(run.record).tpot_ms for run in runs if run.record is not None}
    widest = table["tpot_p95"].fillna(0) / table["tpot_p50"].replace(0, np.nan)
    spread = f"; p95 is at most {widest.max():.2f} x the median" if widest.notna().any() else ""
    section.panels.append(
        Panel(
            "tpot",
            f"Mean time per token: {span(table['tpot_mean'].to_numpy())} ms{spread}",
            "TPOT of a request: time from its first to its last token by the tokens between. The dots below the marks "
            "are requests.",
            figures.tpot(table, requests, [run.policy for run in runs]),
            cells(table),
            wide=True,
        )
    )
    section.panels.extend(_steps(runs))
    section.remarks.extend(remark(NEEDS_RECORD, [run for run in runs if run.record is None]))
    return section


def _steps(runs: Sequence[Run]) -> list[Panel]:
    steps = {run.titled: series.decode_step_ms(run.record) for run in runs if run.record is not None}
    steps = {name: spent for name, spent in steps.items() if len(spent)}
    if not steps:
        return []
    slow = {name: float(np.quantile(spent, 0.99)) for name, spent in steps.items()}
    worst = max(slow, key=slow.__getitem__)
    return [
        Panel(
            "steps",
            f"One decode step in a hundred takes longer than {slow[worst]:,.1f} ms in {worst}",
            "Share of the decode steps that take at most the time across. Steep is even; a long tail is stutter.",
            figures.step_times(steps, [run.policy for run in runs if run.titled in steps]),
            wide=True,
        )
    ]


def time(runs: Sequence[Run]) -> Section:
    """Where the time went, and how far from the bounds that is."""
    table, limits = tables.time_parts(runs), tables.bounds(runs)
    waiting = table[[*STALLS, "cpu_wait"]].sum(axis=1) / table.sum(axis=1).replace(0, np.nan)
    panels = [
        Panel(
            "time",
            f"The GPU waits {percent_range(waiting.to_numpy())} of the time",
            "All of a run's time, prompts included; the parts add up to it exactly. Blue works, warm colours wait.",
            figures.time_parts(table),
            cells(table),
        ),
    ]
    if limits.notna().to_numpy().any():
        panels.append(
            Panel(
                "bounds",
                _bound_title(limits.rename({run.name: run.titled for run in runs})),
                "A lossless mark at 60 % says: no such policy takes less than 60 % of the run's time on this machine "
                "(where a run has no stages: none that keeps what it fetches). "
                "The mark of the run's own transfers and kernels is no limit for other policies.",
                figures.bounds(limits),
                cells(100 * limits.rename(columns=LIMITS), "{:.1f} %"),
            )
        )
    return Section("time", "Where the time went", panels)


def _bound_title(limits: pd.DataFrame) -> str:
    lossless = limits["lossless_ns"].dropna()
    if len(lossless) and lossless.max() > 0:
        nearest = str(lossless.idxmax())
        return f"{nearest} is nearest to the lossless bound: at best {1 / lossless.max():.2f} x as fast"
    return "What the run's own transfers and kernels take"
