"""What a summary must hold before a figure of it is used: names, types and ranges, nothing of what they mean."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from traces.errors import UserError

# A time, a count or a size: what int64 holds. Floats are finite.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=0, lt=1e300)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Text = Annotated[str, Field(max_length=10_000)]
Layers = Annotated[list[Count], Field(max_length=100_000)]


class _Part(BaseModel):
    """Keys that are not named here may be there and are left alone."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Spread(_Part):
    mean: Number | None
    p50: Number | None
    p95: Number | None
    p99: Number | None
    n: Count


class _Breakdown(_Part):
    dense: Count
    decide: Count
    experts: Count
    stall: Count
    cpu_wait: Count
    head: Count


class _Stall(_Part):
    demand: Count
    late: Count
    held: Count


class _Causes(_Part):
    demand: Count
    prefetch: Count
    background: Count


class _Prefetched(_Part):
    used: Count
    late: Count
    wasted: Count


class _Transfers(_Causes):
    promoted: Count
    withdrawn: Count
    rejected: Count
    unfinished: Count


class _ByLayer(_Part):
    hits: Layers
    late: Layers
    misses: Layers
    stall_ns: Layers


class _Quality(_Part):
    substituted_weight: Share | None
    dropped_weight: Share | None
    substituted_weight_by_layer: Annotated[list[Share], Field(max_length=100_000)] | None = None
    dropped_weight_by_layer: Annotated[list[Share], Field(max_length=100_000)] | None = None
    per_token_p95: Share | None = None


class _Memory(_Part):
    dense: Number | None = None
    kv: Number | None = None
    slots: Number | None = None
    staging: Number | None = None
    gpu: Number | None = None
    fits: bool | None = None


class _Slots(_Part):
    total: Count
    scopes: Count
    least: Count
    most: Count
    low: Count


class _Start(_Part):
    residents: Count
    bytes: Count
    load_ns: Count


class _Trace(_Part):
    hash: Text
    model: Text
    real: bool
    tokens: Count
    moe_layers: Count
    n_experts: Count
    top_k: Count
    source: Any = None


class _Spec(_Part):
    trace: Text
    hardware: Text
    engine: Text
    precision: Text
    cache: Count | Number | Text
    cache_scope: Text
    eviction: Text
    prefetch: Text
    miss: Text
    rerank: Text = "none"
    batch: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class _Summary(_Part):
    time_ns: Count
    decode_ns: Count
    prefill_ns: Count
    steps: Count
    requests: Count
    tokens: Count
    prompt_tokens: Count
    tokens_per_s: Number | None
    total_tokens_per_s: Number | None
    tpot_ms: _Spread
    ttft_ms: _Spread
    itl_ms: _Spread
    breakdown_ns: _Breakdown
    stall_ns_by_cause: _Stall
    wanted: Count
    hits: Count
    late: Count
    misses: Count
    evictions: Count
    slots_wanted: Count
    fetched: Count
    substituted: Count
    dropped: Count
    cpu: Count
    low: Count
    transfers: _Transfers
    prefetched: _Prefetched
    h2d_bytes: _Causes
    link_busy_ns: Count
    by_layer: _ByLayer | None = None
    quality: _Quality
    memory: _Memory
    slots: _Slots
    start: _Start
    bounds: Annotated[dict[Text, Count], Field(max_length=100)]
    verdict: Text
    notes: Annotated[list[Text], Field(max_length=100)] = []
    machine: Text
    spec: _Spec
    trace: _Trace
    version: Text


def check_summary(summary: dict[str, Any], where: str, version: str, by_layer: bool = True) -> None:
    """Raises UserError, one line that begins with `where`, unless it is a summary that `version` wrote and whose parts
    add up. by_layer: whether it must hold figures by layer, which rows of a sweep do not."""
    found = summary.get("version")
    if isinstance(found, str) and found != version:
        raise UserError(f"{where}: version: made by {found[:40]!r}; this is {version}: run it again to compare")
    try:
        _Summary.model_validate(summary)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "summary"
        value = "" if first["type"] == "missing" else f"{ascii(first['input'])[:60]}: "
        raise UserError(f"{where}: is no summary of a run: {place}: {value}{first['msg']}") from None
    _check_sums(summary, where)
    if by_layer:
        _check_layers(summary, where)


def _check_sums(s: dict[str, Any], where: str) -> None:
    """The laws that stacked figures rest on."""
    sums = (
        ("breakdown_ns", sum(s["breakdown_ns"][part] for part in _Breakdown.model_fields), s["time_ns"], "time_ns"),
        (
            "stall_ns_by_cause",
            sum(s["stall_ns_by_cause"][part] for part in _Stall.model_fields),
            s["breakdown_ns"]["stall"],
            "breakdown_ns.stall",
        ),
        ("hits + late + misses", s["hits"] + s["late"] + s["misses"], s["wanted"], "wanted"),
    )
    for name, found, total, right in sums:
        if found != total:
            raise UserError(f"{where}: {name} adds up to {found}; {right} is {total}")


def _check_layers(s: dict[str, Any], where: str) -> None:
    """As many entries as there are MoE layers, everywhere."""
    if s.get("by_layer") is None:
        raise UserError(f"{where}: is no summary of a run: by_layer is missing")
    layers = {len(s["by_layer"][part]) for part in _ByLayer.model_fields}
    quality = [s["quality"].get(f"{name}_weight_by_layer") for name in ("substituted", "dropped")]
    layers |= {len(part) for part in quality if part is not None}
    if layers != {s["trace"]["moe_layers"]}:
        raise UserError(
            f"{where}: by_layer has {sorted(layers)} entries; trace.moe_layers is {s['trace']['moe_layers']}"
        )
