"""Speeds that others published against predictions, by constants that no row of the judged machine had a part in."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from sim.errors import SpecError, unknown
from sim.experiments.tables import Cell, Column, More, Report, Row, parser
from sim.timings.effects import Observed, fitted
from sim.timings.estimate import Estimate
from sim.timings.judging import EIGHTY, JUDGED, Judged, judge
from sim.timings.rows import Timing, command, read, usable
from sim.timings.shipping import constants, constants_toml, effects_of, intervals_toml
from sim.timings.terms import TERMS
from traces.command import out_folder, write_bytes

WAYS: dict[str, Callable[[Judged], float | None]] = {
    "before": lambda each: each.before,
    "one_factor": lambda each: each.one_factor,
    "left_out": lambda each: each.left_out,
    "anchored": lambda each: each.anchored,
}
SAID = {
    "before": "before any timing",
    "one_factor": "one factor",
    "left_out": "machine left out",
    "anchored": "two anchors",
}
COLUMNS = (
    Column("engine", "engine"),
    Column("machine", "machine"),
    Column("model", "model"),
    Column("phase", "phase"),
    Column("settings", "settings"),
    Column("published", "published", 3),
    Column("unit", "unit"),
    Column("predicted", "predicted", 3),
    Column("low", "80 % from", 3),
    Column("high", "to", 3),
    *(Column(f"{way}_percent", f"{said} %", 1, signed=True) for way, said in SAID.items()),
    Column("judged", "judged"),
    Column("id", "id", csv_only=True),
    Column("grade", "grade", csv_only=True),
    Column("command", "command", csv_only=True),
    Column("assumed", "assumed", csv_only=True),
    Column("source", "source", csv_only=True),
)
HEAD = (
    "Every row: a published speed, the run that it is, and what is predicted for it. error = predicted speed / "
    "published speed - 1.",
    "before any timing: each constant at its value from what an operation is known to take (sim/timings/terms.py). "
    "one factor: that, times the median of measured over predicted time on the engine's other machines.",
    "machine left out: the constants fitted to the rows of all other machines; no row, of any engine, of the judged "
    "machine has a part. `predicted` and its 80 % interval are this one.",
    "two anchors: of a group's rows the fastest and the slowest as predicted teach the machine's own constants; shown "
    "are the others.",
    "SYNTHETIC routing throughout, with hit rates as counted where they are published.",
    f"judged: grade A or B, in a group of machine, engine and model with at least {JUDGED} such rows.",
)


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError for an unknown engine or machine, or a row that cannot run."""
    flags = parser("published", __doc__ or "", steps=False)
    flags.add_argument("--engine", metavar="NAME", help="show only this engine, as the evidence names it")
    flags.add_argument("--machine", metavar="NAME", help="show only this machine")
    flags.add_argument("--catalog", metavar="DIR", help="write constants.toml and intervals.toml there")
    flags.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    args = flags.parse_args(argv)
    every = read()
    wanted = {"engine": args.engine, "machine": args.machine}
    for kind, name in wanted.items():
        known = list(dict.fromkeys(_of(kind, row) for row in every))
        if name is not None and name not in known:
            raise unknown(kind, name, known)
    if not any(all(name in (None, _of(kind, row)) for kind, name in wanted.items()) for row in every):
        raise SpecError(f"engine, machine: {args.engine} on {args.machine}: no such row; must be a pair that has one")
    observed, found = fitted(usable(every), args.workers)
    judged = judge(observed, args.workers)
    if args.catalog is not None:
        _ship(out_folder(args.catalog), found, judged)
    shown = [one for one in judged if all(n in (None, _of(kind, one.row.timing)) for kind, n in wanted.items())]
    per_group = _group_sizes(judged)
    rows = [_row(one, per_group) for one in sorted(shown, key=lambda one: one.row.timing.group)]
    left = [row for row in every if row.not_set_up and all(n in (None, _of(k, row)) for k, n in wanted.items())]
    more = [_by_engine_and_machine(shown, per_group), _constants(observed, found), _not_set_up(left)]
    foot = _foot(shown, per_group)
    return Report("Published speeds, predicted", HEAD, COLUMNS, rows, foot, more), args.out


def _ship(folder: Path, found: Estimate, judged: Sequence[Judged]) -> None:
    """What the catalog has of all this, in its two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("constants.toml", constants_toml(found)), ("intervals.toml", intervals_toml(judged))):
        write_bytes(folder / name, text.encode())


def _of(kind: str, row: Timing) -> str:
    return row.published_engine if kind == "engine" else row.measured_on


def _group_sizes(judged: Sequence[Judged]) -> Counter[tuple[str, str, str]]:
    return Counter(one.row.timing.group for one in judged if one.row.timing.grade != "C")


def _is_judged(one: Judged, per_group: Counter[tuple[str, str, str]]) -> bool:
    return one.row.timing.grade != "C" and per_group[one.row.timing.group] >= JUDGED


def _row(one: Judged, per_group: Counter[tuple[str, str, str]]) -> Row:
    timing = one.row.timing
    low, high = one.interval
    ends = sorted((timing.in_metric(low), timing.in_metric(high)))
    errors = {f"{way}_percent": _percent(one, of(one)) for way, of in WAYS.items()}
    return {
        "engine": timing.published_engine,
        "machine": timing.measured_on,
        "model": timing.fields["model"],
        "phase": "prefill" if timing.prefill else "decode",
        "settings": _settings(timing),
        "published": timing.value,
        "unit": timing.metric,
        "predicted": timing.in_metric(one.left_out),
        "low": ends[0],
        "high": ends[1],
        **errors,
        "judged": "yes"
        if _is_judged(one, per_group)
        else f"no: grade {timing.grade}"
        if timing.grade == "C"
        else "few",
        "id": timing.id,
        "grade": timing.grade,
        "command": f"python -m sim.run --trace ROUTING {command(timing)}",
        "assumed": timing.assumed,
        "source": timing.source,
    }


def _percent(one: Judged, seconds: float | None) -> float | None:
    return None if seconds is None else 100 * one.error(seconds)


def _settings(timing: Timing) -> str:
    shown = ("precision", "n_cpu_moe", "cache", "miss", "eviction", "set", "prefill_chunk", "context_offset")
    given = [f"{name.replace('_', '-')} {timing.fields[name]}" for name in shown if name in timing.fields]
    return ", ".join([*given, *([f"prompt {timing.prompt}"] if timing.prefill and timing.prompt else [])])


# --- tables ---


def _figures(errors: Sequence[float]) -> tuple[float, float, float] | None:
    """(median, nine tenths, bias) of errors, in percent."""
    if not errors:
        return None
    sizes = sorted(abs(error) for error in errors)
    return tuple(100 * x for x in (median(sizes), sizes[math.ceil(0.9 * len(sizes)) - 1], median(errors)))  # type: ignore[return-value]


def _line(judged: Sequence[Judged], way: str) -> tuple[int, tuple[float, float, float] | None]:
    errors = [one.error(seconds) for one in judged if (seconds := WAYS[way](one)) is not None]
    return len(errors), _figures(errors)


def _by_engine_and_machine(shown: Sequence[Judged], per_group: Counter[tuple[str, str, str]]) -> More:
    cells = defaultdict(list)
    for one in shown:
        timing = one.row.timing
        cells[timing.published_engine, timing.measured_on, "prefill" if timing.prefill else "decode"].append(one)
    columns = [
        Column("engine", "engine"),
        Column("machine", "machine"),
        Column("phase", "phase"),
        Column("n", "rows", 0),
    ]
    for way, said in SAID.items():
        columns += [Column(way, f"{said}: median %", 1), Column(f"{way}_bias", "bias %", 1, signed=True)]
    columns.append(Column("judged", "judged rows", 0))
    rows: list[dict[str, Cell]] = []
    for (engine, machine, phase), ones in sorted(cells.items()):
        row: dict[str, Cell] = {"engine": engine, "machine": machine, "phase": phase, "n": len(ones)}
        for way in WAYS:
            figures = _line(ones, way)[1]
            row |= {} if figures is None else {way: figures[0], f"{way}_bias": figures[2]}
        rows.append(row | {"judged": sum(_is_judged(one, per_group) for one in ones)})
    return More("By engine and machine", columns, rows)


def _constants(observed: Sequence[Observed], found: Estimate) -> More:
    """What the catalog ships: each constant as rounded there, and whose rows told it."""
    columns = (
        Column("entry", "engine or GPU"), Column("field", "constant"), Column("before", "before any timing"),
        Column("value", "fitted"), Column("range", "80 % between"),
        Column("told_by", "machines whose rows depend on it"),
    )  # fmt: skip
    rows: list[Row] = [
        {"entry": entry, "field": field, **_constant(kind, entry, field, value, observed, found)}
        for kind, entries in constants(found).items()
        for entry, fields in entries.items()
        for field, value in fields.items()
    ]
    return More("Constants, fitted to all rows", columns, rows)


def _constant(
    kind: str, entry: str, field: str, value: float, observed: Sequence[Observed], found: Estimate
) -> dict[str, Cell]:
    term = "gpu_memory" if kind == "gpu" else next(name for name, each in TERMS.items() if field in each.fields)
    owner = f"{kind} {entry}"
    rows = [one for one in observed if any(name.endswith(f": {owner}") for name in one.owned.get(term, ()))]
    log, sd = found.of(dict.fromkeys(effects_of(kind, entry, field), 1.0))
    return {
        "value": str(value),
        "before": f"{value / math.exp(log):.3g}",
        "range": f"{value * math.exp(-EIGHTY * sd):.3g}-{value * math.exp(EIGHTY * sd):.3g}",
        "told_by": ", ".join(sorted({one.timing.measured_on for one in rows})) or "none of its own",
    }


def _not_set_up(rows: Sequence[Timing]) -> More:
    counts = Counter((row.published_engine, row.not_set_up) for row in rows)
    columns = (Column("engine", "engine"), Column("n", "rows", 0), Column("why", "why there is no such run"))
    listed: list[Row] = [{"engine": engine, "n": n, "why": why} for (engine, why), n in sorted(counts.items())]
    return More("Not set up", columns, listed)


def _foot(shown: Sequence[Judged], per_group: Counter[tuple[str, str, str]]) -> list[str]:
    judged = [one for one in shown if _is_judged(one, per_group)]
    parts = {
        "decode": [one for one in judged if not one.row.timing.prefill],
        "prefill": [one for one in judged if one.row.timing.prefill],
        "prefill where the kind of link is known": [
            one for one in judged if one.row.timing.prefill and one.row.timing.copies_from != "unknown"
        ],
    }
    lines = []
    for phase, rows in parts.items():
        for way, said in SAID.items():
            n, figures = _line(rows, way)
            if figures is not None:
                groups = len({one.row.timing.group for one in rows})
                lines.append(
                    f"**{phase}, {said}: median {figures[0]:.1f} %, nine tenths within {figures[1]:.1f} %, bias "
                    f"{figures[2]:+.1f} %** ({n} judged rows of {groups} groups)"
                )
        if rows:
            held = sum(one.held for one in rows) / len(rows)
            lines.append(f"{phase}: the 80 % intervals hold {100 * held:.0f} % of the judged rows")
    return lines
