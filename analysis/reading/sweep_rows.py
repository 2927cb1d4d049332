"""Rows of a sweep as runs: each flat row of `results.parquet` becomes the summary that it was made from, less what a
row does not hold (figures by layer, records)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import UserError

if TYPE_CHECKING:
    from analysis.reading.runs import Run

MAX_ROWS = 1_000_000
OF_A_ROW = ("id", "error", "synthetic", "open_loop", "policy_files")  # of the sweep, not of the summary


def read_rows(path: Path) -> list["Run"]:
    """The runs of a sweep, in its order; rows of runs that failed are left out. Raises UserError, one line."""
    from analysis.reading.runs import RunError, differing, settings

    runs = [run for i, row in enumerate(_rows(path)) if (run := _run(row, f"{path}: row {i}")) is not None]
    if not runs:
        raise RunError(f"{path}: no row of it is a run that was done")
    fields = [field for field in differing(runs) if field != "machine"]
    out = []
    for i, run in enumerate(runs):
        given = settings(run)
        name = " ".join("-" if given.get(field) is None else str(given[field]) for field in fields)
        out.append(replace(run, name=name or f"row {i}"))
    return out


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: needs pyarrow: pip install moe-offload-sim[parquet]") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if file.metadata.num_rows > MAX_ROWS:
            raise UserError(f"{path}: has {file.metadata.num_rows} rows; at most {MAX_ROWS} are read")
        rows: list[dict[str, Any]] = file.read().to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: is no Parquet file of a sweep: {error}") from None
    return rows


def _run(row: dict[str, Any], where: str) -> "Run | None":
    """One row; None for a run that failed."""
    from analysis.reading.runs import Run
    from analysis.reading.summary_schema import check_summary
    from sim import __version__

    if row.get("error"):
        return None
    summary = _nested({key: value for key, value in row.items() if key not in OF_A_ROW})
    spec = summary.get("spec")
    if not isinstance(spec, dict):
        raise UserError(f"{where}: has no column spec.trace; a sweep's results.parquet is required")
    summary["machine"] = spec.pop("machine", None)
    spec["set"] = _json(spec.get("set"), where)
    spec["calibration"], spec["cache"] = (_number(spec.get(name)) for name in ("calibration", "cache"))
    summary["notes"] = [note for note in str(summary.get("notes") or "").split(" | ") if note]
    bounds = summary.get("bounds") or {}
    summary["bounds"] = {
        name: ns for name, ns in bounds.items() if ns is not None and name not in ("best_ns", "best_share")
    }
    check_summary(summary, where, __version__, by_layer=False)
    return Run("", where, summary)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`outer.inner` keys as objects."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = out
        for name in parents:
            inner = place.setdefault(name, {})
            place = inner if isinstance(inner, dict) else {}
        place[last] = value
    return out


def _json(text: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where}: spec.set is {ascii(text)[:60]}; a JSON object is required")
    return value


def _number(text: Any) -> Any:
    """`0.5` and `24` as the numbers that the spec took them for, anything else as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text
