"""One run as one flat row: the columns, their types, and how a summary becomes values of them.

A row holds nothing that differs when the same run is done again: no times of ours, no host, no date.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sim.flags import metavar
from sim.outcome.summary import columns
from sim.spec import WHOLE, RunSpec
from sim.sweeps.config import Run

Row = dict[str, Any]

_KINDS = {"as_decode": "bool"} | {name: "int" for name in RunSpec.model_fields if metavar(name) == WHOLE}
COLUMNS: dict[str, str] = {
    **dict.fromkeys(("id", "error"), "text"),
    **dict.fromkeys(("synthetic", "open_loop", "oracle"), "bool"),
    **{f"spec.{name}": _KINDS.get(name, "text") for name in RunSpec.model_fields},
    **columns(),
}


def row_of(run: Run, summary: Mapping[str, Any]) -> Row:
    """The row of a run that is done, from its summary object (`sim.outcome.report.result`)."""
    flat = _flat(summary, "")
    flat |= _bound(summary["bounds"], summary["time_ns"])
    flat |= summary["marks"]
    flat["notes"] = " | ".join(summary["notes"])
    flat["policy_files"] = json.dumps(summary["policy_files"], sort_keys=True) if summary["policy_files"] else None
    return _row(run, flat)


def error_row(run: Run, error: str) -> Row:
    """The row of a run that failed: its spec, as far as there is one, and why."""
    return _row(run, {"error": " ".join(error.split())})


def _row(run: Run, flat: Mapping[str, Any]) -> Row:
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


def _spec(run: Run) -> dict[str, Any]:
    """spec.FIELD as on the command line: what may be a number or text is text, parameters are JSON."""
    fields = dict(run.fields) if run.spec is None else run.spec.model_dump()
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
