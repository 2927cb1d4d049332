"""A comparison as text: for a terminal, for markdown, for a spreadsheet, for a program, and as a drawing."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from analysis.comparing.answer import answer, held_back, name_of
from analysis.comparing.comparison import PARETO, Comparison
from analysis.comparing.svg import svg
from analysis.showing.words import NONE, figure, plain
from sim.catalog.intervals import LEVEL as SURE
from sim.outcome.how_sure import between

Row = dict[str, Any]


def percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:.{digits}%}"


def change(row: Row, key: str, show: Callable[[float], str]) -> str:
    """A difference with its interval: `+38.2% [+35.1%, +41.0%]`."""
    value, low, high = (row.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    if value is None:
        return NONE
    return show(value) + (f" [{show(low)}, {show(high)}]" if low is not None and high is not None else "")


def signed_percent(value: float) -> str:
    return f"{value:+.1%}"


def signed(value: float) -> str:
    return f"{value:+,.1f}"


def _columns(found: Comparison) -> list[tuple[str, Callable[[Row], str]]]:
    """(title, text of a cell) of the table for people."""
    first = _baseline(found)
    base, kind = name_of(first), first["conditions"]
    settings = [(field, _setting(field)) for field in found.differs]
    ruled = [(title, show) for key, title, show in BY_RULES if any(row.get(key) for row in found.rows)]
    return [
        ("#", lambda row: str(row["index"])),
        ("run", lambda row: plain(row["run"])),
        *settings,
        ("tokens/s", lambda row: figure(row["tokens_per_s"])),
        *([(f"{100 * SURE:g} % between", _between)] if any(row["tokens_per_s_low"] for row in found.rows) else []),
        (f"against {base}", lambda row: _of_kind(row, kind, "tokens_per_s_change", signed_percent)),
        ("TPOT ms", lambda row: figure(row["tpot_ms"], 1)),
        ("change ms", lambda row: _of_kind(row, kind, "tpot_ms_change", signed)),
        ("p95", lambda row: figure(row["tpot_ms_p95"], 1)),
        ("waiting", lambda row: percent(row["stall_share"])),
        ("hits", lambda row: percent(row["hit_rate"])),
        ("H2D GB", lambda row: figure(row["h2d_gb"], 1)),
        ("change", lambda row: _of_kind(row, kind, "h2d_change", signed_percent)),
        *ruled,
        ("lost weight", lambda row: percent(row["lost_weight"], 2)),
        ("best", lambda row: "*" if row["pareto_best"] else ""),
        ("marks", lambda row: ", ".join(row["marks"])),
    ]


def _baseline(found: Comparison) -> Row:
    return next(row for row in found.rows if row["run"] == found.baseline)


def _of_kind(row: Row, kind: int, key: str, show: Callable[[float], str]) -> str:
    """A difference from a baseline of that kind of runs; none of runs that are no alternatives of it."""
    return change(row, key, show) if row["conditions"] == kind else NONE


def _between(row: Row) -> str:
    pair = (row["tokens_per_s_low"], row["tokens_per_s_high"])
    return NONE if None in pair else between(pair)


def _percent_of(key: str) -> Callable[[Row], str]:
    return lambda row: percent(row.get(key))


def _number_of(key: str) -> Callable[[Row], str]:
    return lambda row: figure(row.get(key), 0)


# Columns of what some runs do on a miss, or say of a price, where one of those compared does: key, title, text of a
# cell.
BY_RULES: tuple[tuple[str, str, Callable[[Row], str]], ...] = (
    ("streamed_share", "streamed", _percent_of("streamed_share")),
    ("remote_share", "read remotely", _percent_of("remote_share")),
    ("admitted", "admitted", _number_of("admitted")),
    ("host_share", "host busy", _percent_of("host_share")),
    ("deferred_share", "deferred", _percent_of("deferred_share")),
    ("per_1k_tokens", "cost of 1,000 tokens", lambda row: figure(row.get("per_1k_tokens"), 4)),
    ("wh_per_1k_tokens", "Wh of 1,000 tokens", lambda row: figure(row.get("wh_per_1k_tokens"))),
)


def _setting(field: str) -> Callable[[Row], str]:
    return lambda row: plain(row["settings"][field])


LEFT = ("run", "marks", "best")


def cells(found: Comparison, settings: bool = True) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of the table for people; without what each run was asked for, what the report shows."""
    columns = [each for each in _columns(found) if settings or each[0] not in ("#", *found.differs)]
    return [title for title, _ in columns], [[text(row) for _, text in columns] for row in found.rows]


def remarks(found: Comparison) -> list[str]:
    """What is said under the table."""
    unpaired = {row["not_paired"] for row in found.rows if row["not_paired"]}
    lines = [f"* {PARETO}"]
    if any(row["tokens_per_s_change_low"] is not None for row in found.rows):
        lines.append(found.statistic)
    if any(row["conditions"] != _baseline(found)["conditions"] for row in found.rows):
        lines.append(
            f"changes are against {name_of(_baseline(found))} and of its kind alone: others are no alternatives"
        )
    if unpaired:
        lines.append(f"no intervals for some runs: {'; '.join(sorted(unpaired))}")
    return lines


def _first(found: Comparison) -> list[str]:
    """What is said first: the answer, and what holds the winner back."""
    return [line for line in (answer(found), held_back(found)) if line]


def table(found: Comparison) -> str:
    """Aligned columns, the answer and the notes above them."""
    titles, rows = cells(found)
    widths = [max(len(line[i]) for line in [titles, *rows]) for i in range(len(titles))]
    left = [title in LEFT or title in found.differs for title in titles]
    lines = [*_first(found), "", *(f"! {plain(note)}" for note in found.notes)]
    for line in [titles, *rows]:
        aligned = [t.ljust(w) if to_left else t.rjust(w) for t, w, to_left in zip(line, widths, left, strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join([*lines, "", *remarks(found)])


def markdown(found: Comparison) -> str:
    titles, rows = cells(found)
    left = [title in LEFT or title in found.differs for title in titles]
    rule = [":---" if to_left else "---:" for to_left in left]
    lines = ["| " + " | ".join(map(_in_cell, line)) + " |" for line in (titles, rule, *rows)]
    lines[1] = "|" + "|".join(rule) + "|"
    notes = [f"- **{_in_cell(plain(note))}**" for note in found.notes]
    first = [part for line in _first(found) for part in (_in_cell(line), "")]
    return "\n".join([*first, *lines, "", *notes, *(f"- {_in_cell(line)}" for line in remarks(found))])


def _in_cell(text: str) -> str:
    """Text that markdown shows as it is: no cell ends early, no tag and no link begins."""
    for mark in "\\|<>[]`*_":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text


def comma_separated(found: Comparison) -> str:
    """All figures, unrounded, one row a run."""
    out = io.StringIO()
    keys = [key for key in found.rows[0] if key not in ("settings", "marks")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["baseline", *keys, *found.differs, "marks"])
    for row in found.rows:
        settings = [row["settings"][field] for field in found.differs]
        values = [row[key] for key in keys] + settings + [" ".join(mark.replace(" ", "-") for mark in row["marks"])]
        writer.writerow([_csv(value) for value in [found.baseline, *values]])
    return out.getvalue().rstrip("\n")


def _csv(value: Any) -> Any:
    """Numbers as they are; text on one line and never a spreadsheet's formula."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = str(value).lower() if isinstance(value, bool) else plain(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def as_json(found: Comparison) -> str:
    keys = ("baseline", "differs", "notes", "statistic", "rows")
    told = {"answer": answer(found)} | {key: getattr(found, key) for key in keys}
    return json.dumps(told, indent=1, allow_nan=False)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "table": table,
    "csv": comma_separated,
    "markdown": markdown,
    "json": as_json,
    "svg": svg,
}
