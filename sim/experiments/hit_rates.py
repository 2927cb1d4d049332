"""Hit rates that others published against the same counting, on captures and on synthetic traces of the model.

A row of `sim/catalog/hit_rates.csv` is a published figure, the fields of the run that counts as its source does (what a
token's experts are to the policy, which steps are scored, whose rows are run), and what is assumed where the source
does not say; or why there is no such run. Hits depend on nothing else of a run: there is no prefetch.
"""

import csv
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sim import catalog
from sim.errors import SpecError, unknown
from sim.experiments.tables import Column, More, Report, Row, parser
from sim.flags import flag_words
from sim.memo import Kept, Memo
from sim.prepare import prepare
from sim.spec import RunSpec
from sim.timings.rows import run_field
from traces.errors import UserError
from traces.format import npz
from traces.progress import counted
from traces.synthetic import PRESETS, synthesise

EVIDENCE = Path(catalog.__file__).parent / "hit_rates.csv"
CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "traces"
HITS = "hit %"  # the metric that is compared
NUMBERS = ("value", "rounding")
TEXTS = ("table", "model", "capacity", "policy", "text", "metric", "assumed", "not_set_up", "source")
NEAR = 3.0  # points
FEWEST = 3  # policies whose order is compared
KEPT_BYTES = 1 << 30
CAPTURED, SYNTHETIC, FITTED = "captured", "synthetic", "synthetic, fitted to it"

COLUMNS = (
    Column("table", "table"),
    Column("model", "model"),
    Column("capacity", "capacity"),
    Column("text", "text"),
    Column("policy", "policy"),
    Column("published", "published %", 1),
    Column("trace", "trace"),
    Column("simulated", "simulated %", 1),
    Column("difference", "difference", 1, signed=True),
    Column("near", f"within {NEAR:g}"),
    Column("note", "note"),
    Column("rounding", "rounding", csv_only=True),
    Column("command", "command", csv_only=True),
    Column("assumed", "assumed", csv_only=True),
    Column("source", "source", csv_only=True),
)
ORDER = (
    *COLUMNS[:4],
    Column("trace", "trace"),
    Column("policies", "policies"),
    Column("rank", "rank correlation", 2),
    Column("told_apart", "pairs told apart"),
    Column("inverted", "inverted"),
    Column("which", "which (published, simulated points apart)"),
)
LEFT = (Column("table", "table"), Column("model", "model"), Column("n", "figures"), Column("reason", "not compared"))
HEAD = (
    "Every row: a published share of wanted experts that were resident, and what a run counts that follows the rules "
    "of the source (`command` in the CSV); what the source does not say is assumed there.",
    f"trace: a capture of the model, or its synthetic preset; `{FITTED}`: the preset was fitted to figures of that "
    "table, so that it agrees is no test.",
    "Texts differ: no capture is of the text that a source decoded.",
)
FOOT = (
    "Policies are compared as published for one model, capacity and text. A pair is told apart where the published "
    "figures differ by more than both are rounded; it is inverted where the simulated ones differ the other way.",
    "rank correlation: Spearman's, equal figures sharing their rank.",
)


@dataclass(frozen=True)
class Figure:
    """A published figure. fields: of the run that counts so; rounding: half of its last digit, or its spread."""

    table: str
    model: str
    capacity: str
    policy: str
    value: float
    metric: str = HITS
    rounding: float = 0.0
    text: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    assumed: str = ""
    not_set_up: str = ""
    source: str = ""


@dataclass(frozen=True)
class Case:
    """A figure on one trace, and what a run counts there: percent, or why it cannot."""

    figure: Figure
    trace: str
    kind: str
    simulated: float | None
    note: str = ""

    @property
    def group(self) -> tuple[str, ...]:
        """Whose policies are alternatives of each other."""
        of = self.figure
        return of.table, of.model, of.capacity, of.text, self.kind


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError or TraceError for bad input."""
    flags = parser("hit-rates", __doc__ or "")
    flags.add_argument("--evidence", metavar="FILE", default=EVIDENCE, type=Path, help="CSV of figures (default: ours)")
    flags.add_argument(
        "--captures", metavar="DIR", default=CAPTURES, type=Path, help="traces of models (default: ../shared/traces)"
    )
    flags.add_argument("--table", metavar="NAME", help="this table alone")
    args = flags.parse_args(argv)
    figures = read(args.evidence)
    tables = list(dict.fromkeys(figure.table for figure in figures))
    if args.table is not None and args.table not in tables:
        raise unknown("table", args.table, tables)
    if not args.captures.is_dir() and args.captures != CAPTURES:
        raise SpecError(f"captures: {args.captures}: no such folder")
    figures = [figure for figure in figures if args.table in (None, figure.table)]
    captures = _captures(args.captures)
    more = {} if args.max_steps is None else {"max_steps": args.max_steps}
    cases = list(_cases(figures, captures, more))
    first = [_row(case) for case in cases if case.kind == CAPTURED]
    others = [_row(case) for case in cases if case.kind != CAPTURED]
    head = [*HEAD, *_which(figures, captures)]
    tables_more = [
        More("Order of policies", ORDER, _orders(cases)),
        More("Not compared", LEFT, _left(figures, captures)),
    ]
    return Report("Hit rates, counted as published", head, COLUMNS, first, FOOT, tables_more, others), args.out


# --- what was published


def read(path: Path) -> list[Figure]:
    """The rows of a CSV file. Raises SpecError, one line naming file, row and column."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SpecError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: cannot be read as CSV: {error}") from None
    for name in rows[0] if rows else ():
        if name not in (*NUMBERS, *TEXTS, *RunSpec.model_fields):
            raise SpecError(
                f"{path}: column {name!r}: is no field of a run (python -m sim.run --help), nor of a figure"
            )
    missing = [name for name in ("table", "model", "policy", "value") if not rows or name not in rows[0]]
    if missing:
        raise SpecError(f"{path}: column {missing[0]!r}: missing; needed of each figure")
    return [_figure(f"{path}: row {line}", row) for line, row in enumerate(rows, 2)]


def _figure(where: str, row: dict[str, Any]) -> Figure:
    if None in row or None in row.values():
        raise SpecError(f"{where}: has not as many columns as the first line")
    texts = {name: row[name].strip() for name in TEXTS if row.get(name)}
    numbers = {name: _number(where, name, row[name]) for name in NUMBERS if row.get(name)}
    names = [name for name in RunSpec.model_fields if name not in TEXTS and row.get(name)]
    fields = {name: run_field(where, name, row[name].strip()) for name in names}
    try:
        return Figure(fields=fields, **{"capacity": "", **texts}, **numbers)  # type: ignore[arg-type]
    except TypeError:
        raise SpecError(f"{where}: table, model, policy and value must be given") from None


def _number(where: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError(f"{where}: {name} = {text!r}: must be a number") from None


# --- runs


def _captures(folder: Path) -> dict[str, Path]:
    """Files by the model that they are of, the first by name of each."""
    out: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npz")) if folder.is_dir() else ():
        out.setdefault(npz.read(path, check=False).model, path)
    return out


def _cases(figures: Sequence[Figure], captures: dict[str, Path], more: dict[str, Any]) -> Iterator[Case]:
    """Every figure on every trace of its model."""
    with tempfile.TemporaryDirectory() as folder:
        for model in dict.fromkeys(figure.model for figure in figures):
            mine = [figure for figure in figures if figure.model == model and _is_compared(figure)]
            if not mine:
                continue
            if model in captures:
                yield from _on(captures[model], CAPTURED, mine, more)
            if model in PRESETS:
                path = Path(folder) / f"{model}.npz"
                npz.write(path, synthesise(model, 0))
                yield from _on(path, SYNTHETIC, mine, more)


def _is_compared(figure: Figure) -> bool:
    return figure.metric == HITS and not figure.not_set_up


def _on(path: Path, kind: str, figures: Iterable[Figure], more: dict[str, Any]) -> Iterator[Case]:
    """Figures on one trace; runs that are alike once."""
    memo, had = Kept(KEPT_BYTES), dict[str, tuple[float | None, str]]()
    for figure in counted([*figures], f"{path.stem}, figure"):
        fields = {**figure.fields, **more}
        key = repr(sorted(fields.items()))
        if key not in had:
            had[key] = _counted(path, fields, memo)
        yield Case(figure, path.stem, _kind(kind, figure), *had[key])


def _kind(kind: str, figure: Figure) -> str:
    fitted = (
        any(figure.source.partition(",")[0] in fact for fact in PRESETS[figure.model].facts)
        if (kind == SYNTHETIC)
        else False
    )
    return FITTED if fitted else kind


def _counted(path: Path, fields: dict[str, Any], memo: Memo) -> tuple[float | None, str]:
    """(percent of hits, "") of a run; (None, why there is none)."""
    from sim.machines import compiled  # late: with it comes numba

    try:
        setting = prepare(RunSpec.of({"trace": str(path), "engine_as_costs": True, **fields}), memo)
    except UserError as error:
        return None, f"not run: {error}"
    layer = compiled.run(setting.plan).layer
    hits, wanted = (sum(int(layer[name].sum()) for name in names) for names in (("hits",), ("hits", "late", "misses")))
    return (100.0 * hits / wanted, "") if wanted else (None, "not run: nothing is scored")


# --- what came of it


def _row(case: Case) -> Row:
    of, found = case.figure, case.simulated
    apart = None if found is None else found - of.value
    return {
        **{
            name: getattr(of, name)
            for name in ("table", "model", "capacity", "policy", "rounding", "assumed", "source")
        },
        "text": of.text or "not stated",
        "published": of.value,
        "trace": case.trace if case.kind == CAPTURED else case.kind,
        "simulated": found,
        "difference": apart,
        "near": None if apart is None else "yes" if abs(apart) <= NEAR else "no",
        "note": case.note,
        "command": " ".join(flag_words(of.fields)),
    }


def _orders(cases: Sequence[Case]) -> list[Row]:
    """How policies rank, of each group of enough of them."""
    groups: defaultdict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        if case.simulated is not None:
            groups[case.group].append(case)
    return [_order(group, found) for group, found in groups.items() if len(found) >= FEWEST]


def _order(group: tuple[str, ...], found: Sequence[Case]) -> Row:
    table, model, capacity, text, kind = group
    apart, inverted = pairs(found)
    said = [
        f"{a.figure.policy} > {b.figure.policy} ({published_apart(a, b):.1f}, {simulated_apart(a, b):.1f})"
        for a, b in inverted
    ]
    return {
        "table": table,
        "model": model,
        "capacity": capacity,
        "text": text or "not stated",
        "trace": found[0].trace if kind == CAPTURED else kind,
        "policies": len(found),
        "rank": rank_correlation([case.figure.value for case in found], [case.simulated or 0.0 for case in found]),
        "told_apart": apart,
        "inverted": len(inverted),
        "which": "; ".join(said),
    }


def published_apart(a: Case, b: Case) -> float:
    """By how many points the first is better as published."""
    return a.figure.value - b.figure.value


def simulated_apart(a: Case, b: Case) -> float:
    """And by how many as simulated."""
    return (a.simulated or 0.0) - (b.simulated or 0.0)


def pairs(found: Sequence[Case]) -> tuple[int, list[tuple[Case, Case]]]:
    """(pairs whose published figures differ by more than both are rounded, those of them that are the other way round,
    the better as published first)."""
    ordered = [(a, b) if published_apart(a, b) >= 0 else (b, a) for a, b in combinations(found, 2)]
    apart = [(a, b) for a, b in ordered if published_apart(a, b) > a.figure.rounding + b.figure.rounding]
    return len(apart), [(a, b) for a, b in apart if simulated_apart(a, b) < 0]


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's; None where one side has no order."""
    ranks = np.array([_ranks(left), _ranks(right)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = np.sqrt((ranks**2).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / size) if size else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Places in ascending order, equal values sharing the mean of theirs."""
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def _which(figures: Sequence[Figure], captures: dict[str, Path]) -> list[str]:
    """What there is of the models."""
    wanted = list(dict.fromkeys(figure.model for figure in figures if _is_compared(figure)))
    there = [f"{model} ({captures[model].stem})" for model in wanted if model in captures]
    lacking = [model for model in wanted if model not in captures]
    lines = [f"Captures: {', '.join(there) or 'none here'}."]
    if lacking:
        lines.append(f"No capture of {', '.join(lacking)}; one of another size of a family is not compared.")
    return lines


def _left(figures: Sequence[Figure], captures: dict[str, Path]) -> list[Row]:
    """Figures that are not compared, by reason."""
    why: Counter[tuple[str, str, str]] = Counter()
    for figure in figures:
        reason = figure.not_set_up or (f"{figure.metric}, no share of hits" if figure.metric != HITS else "")
        if not reason and figure.model not in (*captures, *PRESETS):
            reason = "no trace of the model"
        if reason:
            why[figure.table, figure.model, reason] += 1
    return [{"table": table, "model": model, "n": n, "reason": reason} for (table, model, reason), n in why.items()]
