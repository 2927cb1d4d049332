"""Figures that others published against predictions, no term fitted to the figure that it predicts."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sim import catalog
from sim.errors import SpecError, unknown
from sim.experiments.cases import Figure, Published, published, run_spec
from sim.experiments.fitting import WITHOUT, anchors_for, fit_terms
from sim.experiments.tables import Column, Report, Row, gain, parser
from sim.simulation import simulate

Terms = Mapping[str, float]
COLUMNS = (
    Column("case", "case"),
    Column("figure", "figure"),
    Column("settings", "settings"),
    Column("published", "published", 3),
    Column("predicted", "predicted", 3),
    Column("metric", "unit"),
    Column("error_percent", "error %", 1, signed=True),
    Column("without_percent", "without fitted terms %", 1, signed=True),
    Column("no_write_back_percent", "without write-back %", 1, signed=True),
    Column("terms", "cost terms"),
    Column("judged", "in the median"),
    Column("assumed", "assumed", csv_only=True),
    Column("source", "source", csv_only=True),
)
HEAD = (
    "A term is a property of an engine or a machine, never of one case. A fitted term is judged by leaving out: where "
    "`cost terms` says `fitted`, it was fitted on other figures than the row's own (its whole machine left out where "
    "several share one), and that prediction is shown.",
    "`without fitted terms`: the error when the engine takes no time per layer and the host reads at its peak.",
    "`without write-back`: the error when victims are not copied back, the engine's time per layer "
    "fitted again under that assumption.",
    "SYNTHETIC routing throughout: hit rates are the presets', except where the row's assumptions make "
    "routing not matter.",
    "error = predicted / published - 1, in the unit of the row. A figure that something was fitted to "
    "is shown and not in the median.",
)


class Runner:
    """Runs figures, each setting once, with files in a folder of its own."""

    def __init__(self, folder: Path, max_steps: int | None) -> None:
        self.folder, self.max_steps = folder, max_steps
        self.done: dict[tuple[Any, ...], dict[str, Any]] = {}

    def summary(self, figure: Figure, terms: Terms) -> dict[str, Any]:
        """The summary of a figure's run with these fitted terms."""
        key = (figure.id, figure.name, repr(sorted(figure.engine.items())), tuple(terms.items()))
        if key not in self.done:
            self.done[key], _ = simulate(run_spec(figure, terms, self.folder, self.max_steps))
        return self.done[key]

    def value(self, figure: Figure, terms: Terms) -> float:
        """The figure in its own metric."""
        return value_of(figure, self.summary(figure, terms))

    def seconds(self, figure: Figure, terms: Terms) -> float:
        """The figure as seconds per token."""
        return figure.seconds_per_token(self.value(figure, terms))


def value_of(figure: Figure, out: Mapping[str, Any]) -> float:
    """The published metric from a summary object. Raises SpecError if the run generated nothing."""
    if not out["tokens"]:
        raise SpecError(f"max_steps: {figure.id}: {figure.name} ends before it generates a token; must be more")
    if figure.metric == "hit %":
        return float(100 * out["hits"] / out["wanted"])
    rate = out["tokens"] / (out["time_ns"] / 1e9) if figure.metric == "tokens/s end to end" else out["tokens_per_s"]
    return float(1 / rate if figure.metric == "s/token" else rate)


def report(argv: Sequence[str]) -> tuple[Report, str | None]:
    """(the report, --out). Raises SpecError for an unknown case."""
    flags = parser("published", __doc__ or "")
    flags.add_argument(
        "--case", nargs="+", metavar="ID", help="only these cases (what a fit needs of others still runs)"
    )
    args = flags.parse_args(argv)
    data = published()
    ids = list(dict.fromkeys(figure.id for figure in data.figures))
    for case in args.case or ():
        if case not in ids:
            raise unknown("case", case, ids)
    chosen = [figure for figure in data.figures if not args.case or figure.id in args.case]
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder), args.max_steps)
        rows = [row(runner, data, figure) for figure in chosen]
    return Report("Published figures, predicted", HEAD, COLUMNS, rows, _foot(rows, chosen, data)), args.out


def row(runner: Runner, data: Published, figure: Figure) -> dict[str, Any]:
    """One figure: predicted with the terms fitted without it."""
    anchors = anchors_for(figure, data.figures)
    terms = fit_terms(data.fits[figure.fit], anchors, runner.seconds) if figure.fit else {}
    predicted = runner.value(figure, terms)
    without = runner.value(figure, {term: WITHOUT[term] for term in terms}) if terms else None
    return {
        "case": figure.id,
        "figure": figure.name,
        "settings": _settings(figure),
        "published": figure.published,
        "predicted": predicted,
        "metric": figure.metric,
        "error_percent": gain(predicted, figure.published),
        "without_percent": gain(without, figure.published),
        "no_write_back_percent": _no_write_back(runner, data, figure, anchors),
        "terms": _terms(figure, runner.summary(figure, terms), terms),
        "judged": f"no: {figure.fitted}" if figure.fitted else "yes",
        "assumed": "; ".join(figure.assumed),
        "source": figure.source,
    }


def _no_write_back(runner: Runner, data: Published, figure: Figure, anchors: Sequence[Figure]) -> float | None:
    """The error with a fit in which no victim is written back; None where no engine of the row or its anchors does
    that."""
    if figure.fit is None or not any(_engine(part).get("write_back") for part in (figure, *anchors)):
        return None
    terms = fit_terms(data.fits[figure.fit], [anchor.without("write_back") for anchor in anchors], runner.seconds)
    return gain(runner.value(figure.without("write_back"), terms), figure.published)


def _engine(figure: Figure) -> Mapping[str, Any]:
    return {**catalog.entries("engine")[catalog.find("engine", figure.spec["engine"])], **figure.engine}


def _settings(figure: Figure) -> str:
    spec = figure.spec
    shown = [spec[key] for key in ("hardware", "engine", "precision") if key in spec]
    shown += [f"{key} {spec[key]}" for key in ("cache", "miss", "prefetch", "eviction") if key in spec]
    return ", ".join(map(str, shown))


def _terms(figure: Figure, out: Mapping[str, Any], terms: Terms) -> str:
    """What the prediction charged beside GPU memory and arithmetic, the fitted terms with their values."""
    if figure.metric == "hit %":
        return "none: routing and eviction alone"
    engine = _engine(figure)
    parts = ["link"] if sum(out["h2d_bytes"].values()) else []
    parts += ["host read rate"] if out["cpu"] and "host_read_share" not in terms else []
    parts += ["write-back"] if engine.get("write_back") and parts else []
    parts += ["pageable memory"] if engine.get("page_locked") is False and "link" in parts else []
    parts += [
        f"{key} {engine[key] / 1e6:g} ms"
        for key in ("layer_ns", "expert_ns", "transfer_ns")
        if engine.get(key) and key not in terms
    ]
    if "layer_ns" in terms:
        least = "" if terms["layer_ns"] else ", at its least"
        parts.append(f"layer_ns {terms['layer_ns'] / 1e6:.2f} ms (fitted{least})")
    if "host_read_share" in terms:
        parts.append(f"host reads {1 / terms['host_read_share']:.2f} of peak (fitted)")
    return ", ".join(parts)


def _foot(rows: Sequence[Row], figures: Sequence[Figure], data: Published) -> list[str]:
    judged = [
        (str(row["case"]), str(row["metric"]), abs(float(row["error_percent"] or 0)))
        for row in rows
        if row["judged"] == "yes"
    ]
    lines = []
    for label, part in (
        ("all judged figures", judged),
        ("speeds", [entry for entry in judged if entry[1] != "hit %"]),
        ("hit rates", [entry for entry in judged if entry[1] == "hit %"]),
    ):
        if part:
            cases = list(dict.fromkeys(case for case, _, _ in part))
            of_cases = [median(error for case, _, error in part if case == name) for name in cases]
            lines.append(
                f"**median absolute error, {label}: {median(error for _, _, error in part):.1f} %** ({len(part)} "
                f"figures); median of the {len(cases)} cases' own medians: {median(of_cases):.1f} %"
            )
    both = [row for row in rows if row["no_write_back_percent"] is not None]
    if both:
        errors = [
            median(abs(float(row[key] or 0)) for row in both) for key in ("error_percent", "no_write_back_percent")
        ]
        lines.append(
            f"the {len(both)} figures that depend on write-back: median {errors[0]:.1f} % with it, "
            f"{errors[1]:.1f} % without"
        )
    for name in dict.fromkeys(figure.id for figure in figures):
        first = next(figure for figure in figures if figure.id == name)
        lines.append(f"{name} ({first.source}), assumed: {'; '.join(first.assumed)}")
    lines += [f"fitted terms of {name} ({', '.join(fit.terms)}): {fit.source}" for name, fit in data.fits.items()]
    return [*lines, *(f"not set up: {name}: {why}" for name, why in data.skipped.items())]
