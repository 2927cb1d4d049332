"""Runs side by side, each against a baseline: the figures, who is Pareto-best, and what must be said with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from analysis.comparing.leading import leading
from analysis.comparing.pairing import FEW, RESAMPLES, STATISTIC, Paired, against
from analysis.reading.run import Run, by_cause, differing, settings, share
from analysis.showing.words import listed, plain
from sim.core.plan import CAUSES
from sim.outcome.closed_loop import ranges
from sim.outcome.marks import START, UNSURE, starts_free
from sim.outcome.per_request import LEVEL
from sim.spec import CHANGES
from traces.errors import UserError
from traces.slips import did_you_mean

# What the work and the machine are. Runs that differ here are no alternatives of each other. An engine, and the chunks
# in which it takes prompts, are a choice as a policy is.
VERSION = "spec version"
CONDITIONS = (
    VERSION,
    "model",
    "hardware",
    *CHANGES,
    "precision",
    "batch",
    "context_offset",
    "warmup_steps",
    "warmup_share",
    "requests",
    "skip_prompts",
    "reset",
    "max_steps",
)
BARE = ("model", "hardware", "precision")  # conditions whose values say what they are
# What each mark of a run means, and how the notes begin that a summary has of it already.
MARKS = {
    "synthetic": "SYNTHETIC traces, made by a generator, not captured from a model",
    "open-loop": "OPEN LOOP: lossy, but the routing stays the trace's; a real model would route differently afterwards",
    "oracle": "ORACLE: reads the future; no engine can",
    "loss partly unseen": "UNSEEN: lost weight does not see what re-ranking or low-precision copies cost",
    "does not fit": "DOES NOT FIT into the GPU's memory; times as if it did",
    "does not fit the host": "DOES NOT FIT into the host's memory; times as if it did",
    "measured": "MEASURED on a device",
    "not calibrated": UNSURE,
}
NOTED = ("SYNTHETIC", "OPEN LOOP", "ORACLE", "DOES NOT FIT")
CLOSED_LOOP = "CLOSED LOOP"  # how another begins, which all runs have in one line
PRICED = {"cost": "per_1k_tokens", "energy": "wh_per_1k_tokens"}  # of summaries, where one of the runs has it
ANSWERED = ("streamed", "remote", "deferred", "cpu")
PARETO = (
    "best: no other run of the same work and hardware is better in tokens/s or in lost router weight (substituted + "
    "dropped, of the wanted) and no worse in the other; oracles, and runs whose loss is partly unseen, stand apart"
)


@dataclass(frozen=True)
class Comparison:
    """rows: one dict per run, in order, plain numbers under the keys of `row_of`. baseline: name. differs: fields of
    the spec that are not the same in all runs. notes: what must be said with the table."""

    rows: list[dict[str, Any]]
    baseline: str
    differs: list[str]
    notes: list[str]
    statistic: str


def compare(runs: Sequence[Run], baseline: str | int = 0, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """All runs against one of them (a name, or its place from 0). Raises UserError for a baseline that is none."""
    base = runs[_place(runs, baseline)]
    pairs = against(list(runs), base, seed, resamples)
    fields = differing(runs)
    best, groups = pareto_best(runs), conditions(runs)
    leads, work = leading(runs, groups, seed, resamples), told_conditions(runs, groups)
    ruled, priced = any(run.by_rules for run in runs), any(run.summary.get(part) for run in runs for part in PRICED)
    rows = []
    for i, (run, pair) in enumerate(zip(runs, pairs, strict=True)):
        row = {"index": i, "run": run.name, "settings": {field: settings(run).get(field) for field in fields}}
        row |= row_of(run, base, pair) | (on_a_miss(run) if ruled else {})
        row |= {key: (run.summary.get(part) or {}).get(key) for part, key in PRICED.items()} if priced else {}
        row |= {"conditions": groups[i], "work": work[i], **leads[i], "verdict": run.summary["verdict"]}
        rows.append(row | {"pareto_best": best[i], "marks": run.marks})
    statistic = STATISTIC.format(level=LEVEL, resamples=resamples, seed=seed)
    return Comparison(rows, base.name, fields, _notes(runs, base, pairs), statistic)


def _place(runs: Sequence[Run], baseline: str | int) -> int:
    names = [run.name for run in runs]
    if baseline in names:
        return names.index(str(baseline))
    text = str(baseline)
    if text.isdecimal() and text.isascii() and len(text) < 9 and int(text) < len(runs):
        return int(text)
    hint = did_you_mean(text, names)
    raise UserError(f"baseline: {text!r} is no run{hint}; one of {', '.join(names)}, or 0 to {len(runs) - 1}")


def row_of(run: Run, base: Run, pair: Paired | str | None) -> dict[str, Any]:
    """The figures of a run and its differences from the baseline: shares are of 1, changes relative (0.1 = a tenth
    more), None where a figure is not known or the two do not compare."""
    s, b = run.summary, base.summary
    alike = run.judged == base.judged
    h2d, h2d_base = (sum(by_cause(x["h2d_bytes"]).values()) for x in (s, b))
    found = pair if isinstance(pair, Paired) else None
    ratio = found.ratio_interval if found else None
    tpot = found.tpot_interval if found else None
    sure = s.get("tokens_per_s_interval") or (None, None)
    means = s["tpot_ms"]["mean"], b["tpot_ms"]["mean"]
    return {
        "policy": run.policy,
        "machine": s["machine"],
        "tokens_per_s": s["tokens_per_s"],
        "tokens_per_s_low": sure[0],
        "tokens_per_s_high": sure[1],
        "tokens_per_s_change": _change(s["tokens_per_s"], b["tokens_per_s"]) if alike else None,
        "tokens_per_s_change_low": ratio[0] - 1 if ratio else None,
        "tokens_per_s_change_high": ratio[1] - 1 if ratio else None,
        "tpot_ms": means[0],
        "tpot_ms_p95": s["tpot_ms"]["p95"],
        "tpot_ms_p99": s["tpot_ms"]["p99"],
        "tpot_ms_change": means[0] - means[1] if alike and None not in means else None,
        "tpot_ms_change_low": tpot[0] if tpot else None,
        "tpot_ms_change_high": tpot[1] if tpot else None,
        "paired_requests": found.n if found else None,
        "not_paired": pair if isinstance(pair, str) else None,
        "time_s": s["time_ns"] / 1e9,
        "stall_share": share(s["breakdown_ns"]["stall"] + s["breakdown_ns"]["cpu_wait"], s["time_ns"]),
        "hit_rate": share(s["hits"], s["wanted"]),
        "h2d_gb": h2d / 1e9,
        "h2d_change": _change(h2d, h2d_base) if alike else None,
        "link_busy_share": share(s["link_busy_ns"], s["time_ns"]),
        "substituted_weight": s["quality"]["substituted_weight"],
        "dropped_weight": s["quality"]["dropped_weight"],
        "lost_weight": run.lost_weight,
    }


def on_a_miss(run: Run) -> dict[str, Any]:
    """What a run did on a miss beyond one rule and slots everywhere, None where it did nothing of the kind: shares of
    the wanted (token, slot) entries and of the time, counts of experts; GB and link time of the causes that only such
    runs have. Beside what `row_of` says, where one of the runs compared is one of these."""
    s, has = run.summary, run.by_rules
    said = {part: s.get(part) or {} for part in ("admission", "stages", "host", "remote_reads")}
    busy = by_cause(s.get("link_busy_ns_by_cause") or {})
    out: dict[str, Any] = {f"{name}_share": share(s[name], s["slots_wanted"]) if has else None for name in ANSWERED}
    out |= {name: said["admission"].get(name) for name in ("admitted", "replaced", "rejected")}
    out |= {f"staged_{name}": said["stages"].get(name) for name in ("copies", "unwanted", "most")}
    out["link_transfers"] = s.get("link_transfers")
    out |= {f"{part}_experts": said[part].get("experts") for part in ("host", "remote_reads")}
    spent = {part: said[part].get("ns", 0) for part in ("host", "remote_reads")}
    out |= {f"{part}_share": share(ns, s["time_ns"]) if has else None for part, ns in spent.items()}
    out |= {f"h2d_gb_{cause}": s["h2d_bytes"][cause] / 1e9 if has else None for cause in CAUSES}
    return out | {f"link_busy_share_{cause}": share(busy[cause], s["time_ns"]) if has else None for cause in CAUSES}


def _change(value: float | None, base: float | None) -> float | None:
    return value / base - 1 if value is not None and base else None


def pareto_best(runs: Sequence[Run]) -> list[bool]:
    """Which runs no other run of the same conditions beats: none is at least as good in tokens/s and in lost weight
    and better in one. A run whose tokens/s or lost weight is not known, or only in part, and an oracle, which is a
    limit and no choice, are not best and beat nobody."""
    out = [False] * len(runs)
    groups = conditions(runs)
    for group in set(groups):
        known = [(mine, i) for i, run in enumerate(runs) if groups[i] == group and (mine := _standing(run)) is not None]
        front: tuple[float, float] | None = None
        for mine, i in sorted(known, key=lambda one: one[0], reverse=True):  # the fastest first, of them the best
            if front is None or mine[1] > front[1]:
                front = mine
            out[i] = mine == front
    return out


def condition(run: Run, name: str) -> Any:
    """One of CONDITIONS; a spec that does not say its version is of the first."""
    return run.spec.get("version") or 1 if name == VERSION else run.spec.get(name)


def conditions(runs: Sequence[Run]) -> list[int]:
    """A number for each set of conditions, by first appearance: runs of one number are alternatives of each other, the
    same work on the same hardware, both modelled or both measured."""
    firsts: list[Any] = []
    out = []
    for run in runs:
        mine = [*(condition(run, name) for name in CONDITIONS), run.judged, run.measured]
        firsts += [] if mine in firsts else [mine]
        out.append(firsts.index(mine))
    return out


def told_conditions(runs: Sequence[Run], groups: Sequence[int]) -> list[str]:
    """What tells the conditions of a run from those of the others, `rtx4090, q4-k-m, batch 4`; "" where all are one."""
    every = [_told(run) for run in runs]
    firsts = [every[groups.index(group)] for group in dict.fromkeys(groups)]
    apart = [name for name in every[0] if len({told[name] for told in firsts}) > 1]
    if "trace" in apart:
        apart.remove("hash")  # its name is enough
    return [", ".join(told[name] for name in apart) for told in every]


def _told(run: Run) -> dict[str, str]:
    """Everything that `conditions` looks at, in words that stand alone."""
    spec = run.spec
    aside = run.judged[1]
    own = {"trace": PurePath(str(spec["trace"])).stem, "hash": run.trace["hash"][:8]}
    own |= {"judged": "no calibration" if aside is None else f"calibration {aside[0]:g}, seed {aside[1]}"}
    own |= {"as_decode": "prompts as decode steps" if run.judged[2] else "prompts as prompts"}
    own |= {"measured": "measured" if run.measured else "simulated"}
    values = {name: condition(run, name) for name in CONDITIONS} | {"hardware": PurePath(str(spec["hardware"])).stem}
    return own | {
        name: str(value) if name in BARE and value is not None else f"{name} {plain(value)}"
        for name, value in values.items()
    }


def _standing(run: Run) -> tuple[float, float] | None:
    """(tokens/s, minus lost weight): more is better in both."""
    speed, lost = run.summary["tokens_per_s"], run.lost_weight
    return None if speed is None or lost is None or run.oracle or run.partly_seen else (speed, -lost)


def _notes(runs: Sequence[Run], base: Run, pairs: Sequence[Paired | str | None]) -> list[str]:
    """What a reader must know before the figures are believed."""
    notes = []
    kinds = [
        ("traces", {run.trace["hash"]: f"{run.spec['trace']} ({run.trace['hash'][:8]})" for run in runs}),
        *((name, {str(condition(run, name)): str(condition(run, name)) for run in runs}) for name in CONDITIONS),
    ]
    for name, found in kinds:
        if len(found) > 1:
            tail = "; other work has no differences" if name == "traces" else ""
            notes.append(f"MIXED {name}: {listed(list(found.values()))}: these are no alternatives of each other{tail}")
    if len({run.judged for run in runs}) > len({run.trace["hash"] for run in runs}):
        notes.append("MIXED requests: not the same ones are judged (calibration, seed or as_decode differ)")
    if len({run.measured for run in runs}) > 1:
        notes.append("MIXED machines: some times are measured on a device, others are modelled")
    engines = list(dict.fromkeys(str(run.spec.get("engine")) for run in runs))
    if len(engines) > 1:
        notes.append(f"MIXED engines: {listed(engines)}: each has costs of its own, and errors of its own in them")
    notes += _marked(runs)
    few = [p for p in pairs if isinstance(p, Paired) and p.n < FEW]
    if few:
        notes.append(
            f"FEW requests: intervals over {min(p.n for p in few)} requests say little; {FEW} or more are wanted"
        )
    partly = [
        run.name
        for run, p in zip(runs, pairs, strict=True)
        if isinstance(p, Paired) and p.n < min(run.summary["requests"], base.summary["requests"])
    ]
    if partly:
        notes.append(
            f"intervals of {listed(partly)} are over the requests that gave the same tokens in both, not over all"
        )
    return notes


def _marked(runs: Sequence[Run]) -> list[str]:
    """One line for each mark, and for each further note of a summary, with the runs that carry it."""
    carriers: dict[str, list[str]] = {}
    for run in runs:
        own = [note for note in run.summary.get("notes", ()) if not note.startswith((*NOTED, CLOSED_LOOP))]
        own += [START] if starts_free(run.summary) else []
        for text in [*(MARKS[mark] for mark in run.marks), *own]:
            carriers.setdefault(text, []).append(run.name)
    ranked = sorted(carriers, key=lambda text: list(MARKS.values()).index(text) if text in MARKS.values() else 99)
    every = {text: "all runs" if len(names) == len(runs) else listed(names) for text, names in carriers.items()}
    return [f"{text}: {every[text]}" for text in ranked] + _closed(runs)


def _closed(runs: Sequence[Run]) -> list[str]:
    """One line: how far the figures of lossy runs may be off."""
    said = [f"{run.name} ({ranges(told)})" for run in runs if (told := run.summary.get("closed_loop"))]
    return [f"{CLOSED_LOOP}, of these figures: {listed(said)}"] if said else []
