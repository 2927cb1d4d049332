"""One run as one flat row: the columns, their types, and how a summary becomes values of them.

A row holds nothing that differs when the same run is done again: no times of ours, no host, no date.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sim.outcome.report import OPEN_LOOP, SYNTHETIC
from sim.policies.registry import find
from sim.spec import RunSpec
from sim.sweeps.config import Run

Row = dict[str, Any]

_INTS = ("prefetch_budget", "batch", "prefill_chunk", "context_offset", "warmup_steps", "max_steps", "seed")
_SPEC = {f"spec.{name}": "int" if name in _INTS else "text" for name in RunSpec.model_fields} | {
    "spec.as_decode": "bool"
}


def _each(kind: str, group: str, names: str) -> dict[str, str]:
    return {f"{group}.{name}" if group else name: kind for name in names.split()}


def _spread(group: str) -> dict[str, str]:
    return _each("float", group, "mean p50 p95 p99") | _each("int", group, "n")


GATES = "prefill tae margin distribution rho nobody"
COLUMNS: dict[str, str] = {
    "id": "text",
    "error": "text",
    "synthetic": "bool",
    "open_loop": "bool",
    "oracle": "bool",
    **_SPEC,
    **_each("float", "", "tokens_per_s total_tokens_per_s"),
    **_each("int", "", "time_ns decode_ns prefill_ns steps requests tokens prompt_tokens"),
    **_spread("tpot_ms"),
    **_spread("ttft_ms"),
    **_spread("itl_ms"),
    **_each("int", "breakdown_ns", "dense decide experts stall cpu_wait head"),
    **_each("int", "stall_ns_by_cause", "demand late held"),
    **_each("int", "", "wanted hits late misses evictions"),
    **_each("int", "", "slots_wanted slots_hit slots_late fetched substituted dropped cpu low"),
    **_each("int", "transfers", "demand prefetch background promoted withdrawn rejected unfinished"),
    **_each("int", "prefetched", "used late wasted"),
    **_each("int", "h2d_bytes", "demand prefetch background"),
    "link_busy_ns": "int",
    **_each("int", "quality", "wanted_before_rerank wanted"),
    **_each("float", "quality", "substituted_weight dropped_weight per_token_p95 expected_error"),
    **_each("int", "quality.stopped", GATES),
    **_each("int", "memory", "dense kv slots staging gpu"),
    "memory.fits": "bool",
    **_each("int", "slots", "total scopes least most low"),
    **_each("int", "start", "residents bytes load_ns"),
    **_each("int", "bounds", "loads compute_ns link_ns lossless_ns demand_ns"),
    **_each("int", "bounds", "executed_gpu_ns executed_link_ns executed_ns"),
    "bounds.best_ns": "int",
    "bounds.best_share": "float",
    "verdict": "text",
    "notes": "text",
    **_each("text", "trace", "hash model source"),
    "trace.real": "bool",
    **_each("int", "trace", "tokens moe_layers n_experts top_k calibration_tokens"),
    "policy_files": "text",
    "version": "text",
}


def row_of(run: Run, summary: Mapping[str, Any]) -> Row:
    """The row of a run that is done, from its summary object (`sim.outcome.report.result`)."""
    flat = _flat(summary, "")
    flat |= _bound(summary["bounds"], summary["time_ns"])
    flat["synthetic"] = SYNTHETIC in summary["notes"]
    flat["open_loop"] = OPEN_LOOP in summary["notes"]
    flat["oracle"] = run.spec is not None and _reads_the_future(run.spec)
    flat["notes"] = " | ".join(summary["notes"])
    flat["policy_files"] = json.dumps(summary["policy_files"], sort_keys=True) if summary["policy_files"] else None
    return _row(run, flat)


def _reads_the_future(spec: RunSpec) -> bool:
    chosen = [find(kind, getattr(spec, kind)) for kind in ("eviction", "prefetch")]
    return any(policy.oracle for policy in chosen)


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
