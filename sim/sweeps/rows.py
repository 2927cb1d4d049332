"""One run as one flat row: the columns, their types, how a summary becomes values of them, and back.

A row holds nothing that differs when the same run is done again: no times of ours, no host, no date.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sim.flags import TYPES, metavar
from sim.outcome.how_sure import PHASES, key_of
from sim.outcome.summary import LOW_HIGH, Summary, columns
from sim.spec import RATE, YES_NO, RunSpec
from sim.sweeps.config import Configuration
from traces.errors import UserError

Row = dict[str, Any]


def _kind(name: str) -> str:
    """Of the column of a field."""
    word = metavar(name)
    kinds = {None: "bool", YES_NO: "bool", RATE: "float"} | {each: kind.__name__ for each, kind in TYPES.items()}
    return kinds.get(word, "text")


TOP_MARKS = ("synthetic", "open_loop", "oracle", "catalog_costs")  # of a summary's marks, columns of the row itself
OF_A_ROW = ("id", "error", "policy_files", *TOP_MARKS)  # what summary_of leaves out
PARTS_OF_SOME = {name for name, field in Summary.model_fields.items() if not field.is_required()}
PAIRS = tuple(key_of(speed) for speed in PHASES)
COLUMNS: dict[str, str] = {
    **dict.fromkeys(("id", "error"), "text"),
    **dict.fromkeys(TOP_MARKS, "bool"),
    **{f"spec.{name}": _kind(name) for name in RunSpec.model_fields},
    "spec.version": "int",
    **columns(),
}


def row_of(run: Configuration, summary: Mapping[str, Any]) -> Row:
    """The row of a run that is done, from its summary object (`sim.outcome.report.result`)."""
    flat = _flat(summary, "")
    flat |= _bound(summary["bounds"], summary["time_ns"])
    flat |= summary["marks"]
    for name in PAIRS:
        flat[f"{name}.low"], flat[f"{name}.high"] = summary.get(name) or (None, None)
    flat["notes"] = " | ".join(summary["notes"])
    flat["policy_files"] = json.dumps(summary["policy_files"], sort_keys=True) if summary["policy_files"] else None
    return _row(run, flat)


def summary_of(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The summary that a row was made from, less what a row does not hold (by_layer, marks, policy_files); nothing of
    it is checked but that it is nested as one. Raises UserError, one line that begins with `where`."""
    summary = _nested({key: value for key, value in row.items() if key not in OF_A_ROW})
    spec = summary.get("spec")
    if not isinstance(spec, dict):
        raise UserError(f"{where}: has no column spec.trace; a sweep's results.parquet is required")
    summary["machine"] = spec.pop("machine", None)
    spec["set"] = _json(spec.get("set"), where)
    spec["calibration"], spec["cache"] = (_number(spec.get(name)) for name in ("calibration", "cache"))
    summary["notes"] = [note for note in str(summary.get("notes") or "").split(" | ") if note]
    for name in PAIRS:
        summary[name] = pair_of(row, name)
    bounds = summary.get("bounds") or {}
    summary["bounds"] = {name: ns for name, ns in bounds.items() if ns is not None and not name.startswith("best_")}
    return {name: part for name, part in summary.items() if name not in PARTS_OF_SOME or _says(part)}


def pair_of(row: Mapping[str, Any], name: str) -> list[float] | None:
    """One of PAIRS of a row; None where it has none."""
    low, high = (row.get(f"{name}.{end}") for end in LOW_HIGH)
    return None if low is None or high is None else [low, high]


def _says(part: Any) -> bool:
    """Whether a row holds any figure of a part that only some runs have."""
    return not isinstance(part, dict) or any(value is not None and _says(value) for value in part.values())


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


def error_row(run: Configuration, error: str) -> Row:
    """The row of a run that failed: its spec, as far as there is one, and why."""
    return _row(run, {"error": " ".join(error.split())})


def _row(run: Configuration, flat: Mapping[str, Any]) -> Row:
    flat = {**flat, "id": run.id, **_spec(run)}
    return {name: _value(kind, flat.get(name)) for name, kind in COLUMNS.items()}


def _bound(bounds: Mapping[str, int], time_ns: int) -> dict[str, Any]:
    """The highest bound on the time of this run, whatever its class, and its share of the time."""
    best = max((value for name, value in bounds.items() if name.endswith("_ns")), default=None)
    known = best is not None and time_ns > 0
    return {"bounds.best_ns": best, "bounds.best_share": best / time_ns if known and best is not None else None}


def _flat(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested objects as `outer.inner`; lists (by layer) are left out."""
    out: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            out |= _flat(inner, f"{prefix}{key}.")
        elif not isinstance(inner, list):
            out[prefix + key] = inner
    return out


def _spec(run: Configuration) -> dict[str, Any]:
    """spec.FIELD as on the command line: what may be a number or text is text, parameters are JSON."""
    fields = dict(run.fields) if run.spec is None else run.spec.saved()
    if "set" in fields:
        fields["set"] = json.dumps(fields["set"], sort_keys=True)
    return {f"spec.{name}": value for name, value in fields.items()}


def _value(kind: str, value: Any) -> Any:
    """As its column's type, None where it has no value or (of a spec that is wrong) one of another type."""
    if value is None:
        return None
    if kind == "text":
        return str(value)
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if kind == "float":
        return float(value)
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def table(rows: Iterable[Row]) -> Any:
    """The rows as a pyarrow table of exactly COLUMNS."""
    import pyarrow

    types = {"text": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    return pyarrow.Table.from_pylist(list(rows), schema=schema)
