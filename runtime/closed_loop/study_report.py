"""The study's page of all models, closed_loop.md; and of each model its table (CSV) and its figure (SVG).

Everything is made of the results in a folder (`study_result`): `write` makes them again without a run.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.closed_loop import open_loop
from runtime.closed_loop.clusters import DRAWS, Estimate
from runtime.closed_loop.quality import FIGURES
from runtime.closed_loop.study_answers import CLAIM, answers, facts, interval, precision
from runtime.closed_loop.study_figure import figure
from runtime.closed_loop.study_result import NAME, file_name, read
from runtime.closed_loop.study_statistics import (
    LIMITS,
    Arm,
    Comparison,
    Decision,
    Study,
    at_equal_bytes,
    controls,
    decisions,
    fastest,
)
from sim.experiments.tables import Cell, Column, More, Report, Row
from traces.command import out_folder, write_bytes

TITLE = "Closed loop: what a policy costs in quality"
COLUMNS = (
    Column("cache", "c", 3),
    Column("arm", "arm"),
    Column("group", "group", csv_only=True),
    Column("delta_percent", "bits/byte, % over unmodified", 2, signed=True),
    Column("delta_interval", "95 % interval"),
    Column("between_seeds", "between seeds"),
    Column("accuracy_delta", "next-token accuracy, points", 2, signed=True),
    Column("accuracy_interval", "95 % interval"),
    Column("kl", "KL, nats/token", 4),
    Column("agreement", "same best guess %", 1),
    Column("substituted", "substituted slots %", 1),
    Column("dropped", "dropped slots %", 1),
    Column("reranked", "re-ranked slots %", 1),
    Column("h2d_mb", "H2D MB/token", 2),
    Column("ms", "ms/token", 3),
    Column("gain_percent", "tokens/s vs fetch %", 1, signed=True),
    Column("open_h2d", "replay's H2D, % off", 1, signed=True),
    Column("open_ms", "replay's ms, % off", 1, signed=True),
    *(Column(name, name, csv_only=True) for name in (
        "low", "high", "bootstrap_low", "bootstrap_high", "t_low", "t_high", "seeds", "seeds_least", "seeds_most",
        "seeds_sd", "bits_per_byte", "perplexity_ratio", "substituted_weight", "dropped_weight",
    )),
)  # fmt: skip
MODEL, CACHE, ARM = Column("model", "model"), Column("cache", "c", 3), Column("arm", "arm")
SLOTS, MB = Column("slots", "slots answered otherwise %", 1), Column("h2d_mb", "H2D MB/token", 2)
RISEN = (Column("rise", "bits/byte, %", 3, signed=True), Column("interval", "95 % interval"))
DECIDED = (
    MODEL, CACHE, ARM, SLOTS, *RISEN, Column("p", "p (Holm)"),
    Column("verdict", f"against {CLAIM}"), Column("windows", "windows that would decide it"),
)  # fmt: skip
SPEED = (
    MODEL, CACHE, Column("limit", "loss of at most %", 1), ARM, *RISEN, MB,
    Column("gain", "tokens/s vs fetch %", 1, signed=True), Column("buddy", "the best buddy"),
    Column("buddy_rise", "its bits/byte, %", 3, signed=True),
    Column("buddy_gain", "its tokens/s vs fetch %", 1, signed=True),
)  # fmt: skip
TASK_GROUPS = (
    "buddy",
    "similarity",
    "by weight",
    "re-ranking",
    "ours",
)  # whose tasks the page has; the CSV has everyone's
FOOT = (
    "CLOSED LOOP: the model computed what the policy gave it, so routing, bytes and time are those of the changed "
    "model. A replay is the OPEN-LOOP run of the unmodified model's routing under the same policy: what it would have "
    "said, as a difference to the closed loop.",
    "intervals: the wider, end by end, of two over files, paired with the unmodified model and between arms by one set "
    f"of {DRAWS:,} draws: the percentile interval of the cluster bootstrap, and t with (files - 1) degrees of freedom "
    "on the jackknife's standard error (Cameron, Gelbach & Miller 2008; MacKinnon, Nielsen & Webb 2023). Files are few "
    "and unequal, where a percentile interval alone is too narrow. Both are in the CSV.",
    "p: the larger of both tests', adjusted over the whole family, all models, by Holm's procedure at 5 %. Windows "
    "that would decide: an interval shrinks with the root of the text, if as many files come with it.",
    "at equal bytes: of another policy the setting, or the mixture of two (fetch is one), that loses least while it "
    "moves as much as the arm (`-`: it moves more in any setting); chosen on the judged text, which flatters it.",
    "an arm that draws is the mean of its seeds; its interval is over files at these seeds, and does not hold what a "
    "seed changes in all files alike: that is `between seeds`, least .. most (standard deviation, seeds).",
    "the controls of similarity have its gates and lists; where some resident of a list is nearly always there, as "
    "here, they are nearly those of reading B. rho from top-k - 1 on is no limit: a token all of whose experts are "
    "missing gets no stand-in (beta = 1). Adding a mean output, one vector, is not timed.",
    "a gated arm fetches what its gates or budget keep from substitution; `next-ranked`, `random`, `drop` and first "
    "fit fetch nothing while somebody is there to stand in: their residents stay the first c of each layer. Time and "
    "bytes are simulated: layers and experts as wide as those of the model charged, as many as the live one has.",
)  # fmt: skip


def command_line(argv: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(["python", "-m", "runtime.study", *argv])


def flat(study: Study, arm: Arm) -> dict[str, Any]:
    """One row of a model's table."""
    rise, seeds = study.rise(arm), arm.percents
    low, high = rise.wider()
    spread = (sum((each - rise.value) ** 2 for each in seeds) / max(1, len(seeds) - 1)) ** 0.5
    drawn = {"seeds_least": min(seeds), "seeds_most": max(seeds), "seeds_sd": spread,
             "between_seeds": f"{interval((min(seeds), max(seeds)))} ({spread:.2f}, {len(seeds)})"}  # fmt: skip
    return {
        "cache": arm.cache, "arm": arm.name, "group": arm.group, "seeds": len(seeds),
        "delta_percent": rise.value, "delta_interval": interval((low, high)), "low": low, "high": high,
        **dict(zip(("bootstrap_low", "bootstrap_high"), rise.percentile(), strict=True)),
        **dict(zip(("t_low", "t_high"), rise.t(), strict=True)),
        **(drawn if len(seeds) > 1 else {}),
        **_percent(study.files.estimate(FIGURES["accuracy_delta"], arm.sums), "accuracy_delta", "accuracy_interval"),
        "kl": arm.figure("kl_nats"), "agreement": 100 * arm.figure("agreement"),
        **{name: arm.figure(name) for name in ("bits_per_byte", "perplexity_ratio")},
        "substituted": 100 * arm.shares["substituted_slots"], "dropped": 100 * arm.shares["dropped_slots"],
        "reranked": 100 * arm.shares["reranked_slots"], "substituted_weight": 100 * arm.shares["substituted_weight"],
        "dropped_weight": 100 * arm.shares["dropped_weight"],
        "h2d_mb": arm.n_bytes / 1e6, "ms": arm.ns / 1e6, "gain_percent": study.gain(arm),
        "open_h2d": _off(arm.open_loop["h2d_bytes_per_token"], arm.n_bytes),
        "open_ms": _off(arm.open_loop["time_ns_per_token"], arm.ns),
        **{key: cell for name in arm.tasks for key, cell in _task(study, arm, name).items()},
    }  # fmt: skip


def _percent(found: Estimate, value: str, pair: str) -> dict[str, Cell]:
    """A difference of shares in points, and its interval in words."""
    low, high = found.wider()
    return {value: 100 * found.value, pair: interval((100 * low, 100 * high))}


def _off(replayed: float, closed: float) -> float | None:
    """By how many percent a replay is off; None where only the replay has any."""
    return 100 * (replayed / closed - 1) if closed else 0.0 if not replayed else None


def _task(study: Study, arm: Arm, name: str) -> dict[str, Cell]:
    """What an arm does to a task's accuracy; nothing where the text has no item of it."""
    sums = arm.tasks[name]
    if not sums["items"].sum():
        return {}
    found = study.files.estimate(FIGURES["accuracy_delta"], {**sums, "tokens": sums["items"]})
    return _percent(found, f"{name}, points", f"{name}, interval")


def _tasks(studies: Sequence[Study]) -> list[str]:
    return list(dict.fromkeys(name for study in studies for arm in study.arms.values() for name in arm.tasks))


def table(study: Study) -> Report:
    """A model's table, whole, as its CSV has it."""
    parts = [f"{name}, {part}" for name in _tasks([study]) for part in ("points", "interval")]
    columns = [*COLUMNS, *(Column(part, part, csv_only=True) for part in parts)]
    return Report(study.model, (), columns, [flat(study, arm) for arm in study.arms.values()])


# --- the page --------------------------------------------------------------------------------------------------------


def page(studies: Sequence[Study], tables: Sequence[Report]) -> Report:
    """The page of all models; tables: of each."""
    decided, matched, equal = decisions(studies), controls(studies), at_equal_bytes(studies)
    head = [*answers(studies, decided, matched, equal), *filter(None, [precision(decided)])]
    more = [
        _pivot("What the choice of the stand-in is worth: points of bits/byte % that each control costs more "
               "(**decided**; 95 % interval; its slots answered otherwise, its H2D per token)", matched,
               lambda each: each.mixed[0][1].policy.removeprefix("matched-"), told=True),
        _pivot("At equal bytes: points of bits/byte % that every other policy costs more (**decided**; 95 % interval)",
               equal, lambda each: each.other, told=False),
        More("Speed at a loss: the fastest arm that loses no more, all arms of a capacity together (Bonferroni)",
             SPEED, _speed(studies)),
        open_loop.held([study.result for study in studies]),
        More("Tasks: accuracy of the unmodified model, and by how many points it changes (all in the CSV)",
             *_task_table(studies)),
        *(More(f"{made.title}, every arm", made.columns, made.rows) for made in tables),
    ]  # fmt: skip
    told = [line for study in studies for line in facts(study)]
    return Report(
        TITLE, head, DECIDED, [_decision(d) for d in decided], [*told, *FOOT], [each for each in more if each.rows]
    )


def _at(study: Study, arm: Arm) -> dict[str, Cell]:
    rise = study.rise(arm)
    return {"model": study.model, "cache": arm.cache, "arm": arm.name, "rise": rise.value,
            "interval": interval(rise.wider(), 3), "slots": 100 * arm.answered_otherwise,
            "h2d_mb": arm.n_bytes / 1e6}  # fmt: skip


def _decision(d: Decision) -> Row:
    """A row; what the text holds is said where more would be needed than that."""
    text = d.study.result["text"]
    held = int(text.get("available", text["windows"]))
    need = "none would" if d.verdict == "open" else None
    if d.windows is not None:
        need = f"{d.windows:,}" + (f" (the held-out text has {held:,})" if d.windows > held else "")
    verdict = "nothing substituted" if d.verdict == "idle" else d.verdict
    p = None if d.p is None else f"{d.p:.2g}"
    return {**_at(d.study, d.arm), "p": p, "verdict": verdict, "windows": need}


def _pivot(title: str, found: Sequence[Comparison], column: Callable[[Comparison], str], told: bool) -> More:
    """One row per arm; per other way what that costs more, points of the rise, bold where it is decided; told: and
    what it does."""
    rows: dict[tuple[str, float, str], dict[str, Cell]] = {}
    for each in found:
        row = rows.setdefault((each.study.model, each.arm.cache, each.arm.name), _at(each.study, each.arm))
        bold = "" if each.verdict == "open" else "**"
        row[column(each)] = f"{bold}{each.difference.value:+.2f}{bold} ({interval(each.difference.wider())})" + (
            f"; {100 * each.of_other(lambda arm: arm.answered_otherwise):.1f} %, "
            f"{each.of_other(lambda arm: arm.n_bytes) / 1e6:.2f} MB" if told else ""
        )  # fmt: skip
    others = list(dict.fromkeys(column(each) for each in found))
    columns = [MODEL, CACHE, ARM, RISEN[0], SLOTS, MB, *(Column(name, name) for name in others)]
    return More(title, columns, list(rows.values()))


def _speed(studies: Sequence[Study]) -> list[Row]:
    out: list[Row] = []
    for study, cache, limit in ((s, cache, limit) for s in studies for cache in s.caches for limit in LIMITS):
        best, buddy = fastest(study, cache, limit), fastest(study, cache, limit, "buddy")
        assert best is not None  # fetch loses nothing
        row: dict[str, Cell] = {**_at(study, best), "limit": limit, "gain": study.gain(best), "buddy": "none"}
        if buddy is not None:
            row |= {"buddy": buddy.name, "buddy_rise": study.rise(buddy).value, "buddy_gain": study.gain(buddy)}
        out.append(row)
    return out


def _task_table(studies: Sequence[Study]) -> tuple[list[Column], list[Row]]:
    """At the middle capacity: the unmodified model's accuracy, and what the main arms lose of it."""
    names = _tasks(studies)
    rows: list[Row] = []
    for study in studies if names else ():
        cache = study.caches[len(study.caches) // 2]
        base = study.arms[cache, "fetch"].tasks
        known = [name for name in names if name in base and base[name]["items"].sum()]
        share = {name: base[name]["base_right"].sum() / base[name]["items"].sum() for name in known}
        counted = {name: f"{100 * share[name]:.1f} % of {base[name]['items'].sum():,.0f}" for name in known}
        rows.append({"model": study.model, "cache": cache, "arm": "unmodified", **counted})
        rows += [_lost(study, arm, known) for arm in study.at(cache, *TASK_GROUPS)]
    return [MODEL, CACHE, ARM, *(Column(name, name) for name in names)], rows


def _lost(study: Study, arm: Arm, names: Sequence[str]) -> dict[str, Cell]:
    row = _at(study, arm)
    for name in names:
        cells = _task(study, arm, name)
        row[name] = f"{cells[f'{name}, points']:+.2f} ({cells[f'{name}, interval']})"
    return row


def made(studies: Sequence[Study]) -> dict[str, str]:
    """The files that are made of results, by name: the page, and of each model the table and the figure."""
    out, tables = {}, [table(study) for study in studies]
    for study, each in zip(studies, tables, strict=True):
        name = file_name(study.model)
        out[f"{name}.csv"] = each.csv(study.result["command"])
        out[f"{name}.svg"] = figure(study.model, [dict(row) for row in each.rows])
    commands = "\n    ".join(str(study.result["command"]) for study in studies)
    return {f"{NAME}.md": page(studies, tables).markdown(commands), **out}


def write(folder: Path) -> str:
    """Make page, tables and figures of the results in a folder, each file whole or not at all; returns the page.
    Raises UserError, one line, where there is no result or a bad one."""
    files = made(read(out_folder(folder)))
    for name, text in files.items():
        write_bytes(folder / name, text.encode())
    return files[f"{NAME}.md"]
