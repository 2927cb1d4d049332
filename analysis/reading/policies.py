"""Policies side by side as `python -m sim.experiments policies --policies KIND --out DIR` keeps them: DIR/policies.csv.
It may have been written by anybody: what is used is checked, text is shown and never run.
"""

from typing import Any

from analysis.reading.csv_rows import number_in, rows_of, text_in
from sim.experiments.side_by_side import BASES, CAPTURED, LOSS, MADE, TIE, WIN
from traces.command import one_of
from traces.errors import UserError

TEXTS = ("trace", "cache", "batch", "policy")  # never empty
NUMBERS = ("tokens_per_s", "gain_percent", "requests")
COLUMNS = ("kind", *TEXTS, "routing", "marks", *NUMBERS, "verdict")
MARKS = ("oracle", "lossy")
VERDICTS = (WIN, TIE, LOSS, "")
LEAST, MOST = -100.0, 1e12  # of a figure

Row = dict[str, Any]


def policies(path: str) -> list[Row]:
    """The rows of a CSV file with at least COLUMNS; `oracle` and `lossy` are told from the marks.

    Raises UserError, one line that names file, line, column and value.
    """
    rows = rows_of(path)
    missing = [name for name in COLUMNS if rows and name not in rows[0][1]]
    made = "python -m sim.experiments policies --policies KIND --out DIR writes a policies.csv that has it"
    if missing:
        raise UserError(f"{path}: column {missing[0]!r}: missing; {made}")
    if not rows:
        raise UserError(f"{path}: no rows; needs a line of column names and a line per policy and cell")
    out = [_row(f"{path}: line {line}", row) for line, row in rows]
    _refuse_twice(path, out)
    return out


def _row(where: str, row: dict[str, str]) -> Row:
    if None in row or None in row.values():
        raise UserError(f"{where}: has not as many columns as the line of names")
    marks = [one_of(f"{where}: marks", word, MARKS) for word in row["marks"].split(", ") if word]
    found: Row = {"kind": one_of(f"{where}: kind", row["kind"], tuple(BASES)), "marks": row["marks"]}
    found |= {name: text_in(f"{where}: {name}", row[name]) for name in TEXTS}
    found |= {name: number_in(f"{where}: {name}", row[name], LEAST, MOST) for name in NUMBERS}
    found["routing"] = one_of(f"{where}: routing", row["routing"], (CAPTURED, MADE))
    if row["verdict"] not in VERDICTS:
        raise UserError(f"{where}: verdict = {row['verdict']!r}: must be one of {', '.join(VERDICTS[:-1])}, or empty")
    return found | {"verdict": row["verdict"], **{mark: mark in marks for mark in MARKS}}


def _refuse_twice(path: str, rows: list[Row]) -> None:
    seen = set()
    for row in rows:
        key = tuple(row[name] for name in ("kind", *TEXTS))
        if key in seen:
            raise UserError(f"{path}: {row['kind']} {row['policy']}: stands twice in one cell of {row['trace']}")
        seen.add(key)
