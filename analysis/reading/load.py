"""Runs as analysis reads them, and the one way to read them: `load`.

A run is a folder with `summary.json` and perhaps `record.npz` (python -m sim.run --out, runtime.replay), a summary
file alone, or a row of a sweep's `results.parquet`, which is given itself or by its folder. Everything in them may have
been written by anybody: figures are checked before they are used, text is shown and never run.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.reading.record_check import read_record
from analysis.reading.run import Run, differing, settings
from sim import __version__
from sim.outcome.marks import marks_without
from sim.outcome.summary import check_summary
from traces.errors import UserError
from traces.extras import needed
from traces.progress import counted

MAX_JSON_BYTES = 64 << 20
SUMMARY, RECORD, SWEEP = "summary.json", "record.npz", "results.parquet"
MAX_ROWS = 1_000_000


def load(paths: Iterable[str | os.PathLike[str]], detail: int = 0) -> list[Run]:
    """The runs at `paths` in order, names made unique.

    detail: how many full records to keep in memory, the first ones; of the others the steps and requests stay.
    Raises UserError for the first path that is no run.
    """
    found: list[tuple[list[str], Run]] = []
    for path in counted([*map(Path, paths)], "reading run", str, at_once=False):
        if (path / SWEEP).is_file() and not (path / SUMMARY).exists():
            path = path / SWEEP
        if path.suffix == ".parquet":
            found += [([run.name], run) for run in read_rows(path)]
            continue
        run = _read(path)
        if run.full and detail > 0:
            detail -= 1
        elif run.record is not None:
            run = replace(run, record=replace(run.record, groups={}))
        found.append((_names(path), run))
    if not found:
        raise UserError("no run; at least one folder with summary.json is required")
    return _named(found)


def _names(path: Path) -> list[str]:
    """What a run may be called: its folder, then with its parents in front."""
    folder = path if path.is_dir() else path.parent if path.name == SUMMARY else path.with_suffix("")
    parts = folder.resolve().parts[1:] or ("run",)
    return ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]


def _named(found: Sequence[tuple[list[str], Run]]) -> list[Run]:
    """The runs with the shortest names that tell them apart; the same folder twice is numbered."""
    places = {tuple(choices): choices[0] for choices, _ in found}
    for depth in range(1, max(map(len, places))):
        taken = list(places.values())
        for place, name in places.items():
            if taken.count(name) > 1:
                places[place] = place[min(depth, len(place) - 1)]
    out, seen = [], set[str]()
    for choices, run in found:
        name = unique = places[tuple(choices)]
        n = 2
        while unique in seen:
            unique, n = f"{name} ({n})", n + 1
        seen.add(unique)
        out.append(replace(run, name=unique))
    return out


def _read(path: Path) -> Run:
    """A folder, or a summary file alone."""
    file = path / SUMMARY if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; a folder with {SUMMARY} is required")
    if not file.is_file():
        raise UserError(f"{path}: has no {SUMMARY}; write one with python -m sim.run --out {path}")
    summary = read_json(file)
    check_summary(summary, str(file), __version__)
    summary["marks"] = summary.get("marks") or marks_without(summary)
    record = None
    if path.is_dir() and (path / RECORD).exists():
        record = read_record(path / RECORD, summary)
    return Run(path.name, str(path), summary, record, bool(record and record.groups))


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of bounded size. Raises UserError."""
    if file.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{file}: has {file.stat().st_size} bytes; a summary has at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(file.read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: is no summary of a run: a JSON object is required, not a {type(value).__name__}")
    return value


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


# --- rows of a sweep: each becomes the summary that it was made from, less what a row does not hold (by_layer, record)


def read_rows(path: Path) -> list[Run]:
    """The runs of a sweep, in its order; rows of runs that failed are left out. Raises UserError, one line."""
    rows = _rows(path)
    runs = [run for i, row in enumerate(rows) if (run := _run(row, f"{path}: row {i}"))]
    failed = tuple(str(row["error"]) for row in rows if row.get("error"))
    if not runs:
        raise UserError(f"{path}: no row of it is a run that was done")
    fields = [field for field in differing(runs) if field != "machine"]
    out = []
    for i, run in enumerate(runs):
        given = settings(run)
        name = " ".join(_said(field, given.get(field), fields) for field in fields)
        out.append(replace(run, name=name or f"row {i}", failed=failed))
    return out


def _said(field: str, value: Any, fields: Sequence[str]) -> str:
    """A setting in a name: a word stands alone, a number behind the last word of its field, where that is one's alone:
    `cache 2`, `tau 0.6`."""
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    last = [re.split(r"[._]", each)[-1] for each in fields]
    word = re.split(r"[._]", field)[-1]
    return f"{word if last.count(word) == 1 else field} {value}"


def _rows(path: Path) -> list[dict[str, Any]]:
    pyarrow = needed("pyarrow", str(path))
    needed("pyarrow.parquet", str(path))
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if file.metadata.num_rows > MAX_ROWS:
            raise UserError(f"{path}: has {file.metadata.num_rows} rows; at most {MAX_ROWS} are read")
        rows: list[dict[str, Any]] = file.read().to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: is no Parquet file of a sweep: {error}") from None
    return rows


def _run(row: dict[str, Any], where: str) -> Run | None:
    """One row; None for a run that failed."""
    if row.get("error"):
        return None
    from sim.sweeps.rows import TOP_MARKS, summary_of  # late: only a sweep has rows

    summary = summary_of(row, where)
    check_summary(summary, where, __version__, by_layer=False)
    told = {name: row[name] is True for name in TOP_MARKS if row.get(name) is not None}
    return Run("", where, summary | {"marks": marks_without(summary) | told})
