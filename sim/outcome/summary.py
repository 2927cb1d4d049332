"""The summary of a run: what its JSON object holds, typed, and the figures that the record alone gives (design,
section 8).

`Summary` is the one place for its keys: the columns of a sweep (`columns`) and what a reader checks before it uses a
figure (`check_summary`) are read off it.
"""

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sim.core.plan import GATES
from sim.machines.record import RunRecord
from sim.outcome.bounds import ANY, DEMAND, HOST, LOSSLESS
from traces.errors import UserError

Int = npt.NDArray[np.int64]
PERCENTILES = (50, 95, 99)
SLOTS = ("slots_wanted", "slots_hit", "slots_late", "fetched", "substituted", "dropped", "cpu", "low")
SLOTS_BY_RULES = ("streamed", "remote", "deferred")  # of runs with plan.on_miss; a deferred one is a cpu one, too

# A time, a count or a size: what int64 holds. Floats are finite.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=0, lt=1e300)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Text = Annotated[str, Field(max_length=10_000)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]  # low, high
Layers = Annotated[list[Count], Field(max_length=100_000)]
Shares = Annotated[list[Share], Field(max_length=100_000)]
BOUNDS = dict.fromkeys((*LOSSLESS, *DEMAND, *ANY, *HOST), "int") | {"best_ns": "int", "best_share": "float"}  # of a row
LOW_HIGH = {"low": "float", "high": "float"}  # of a row, for a Pair
KINDS: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "text"}  # of a column


def _column(shown: Any, *default: Any, **limits: Any) -> Any:
    """A field whose columns do not follow from its type: of which kind the one is, those below it, or none."""
    return Field(*default, json_schema_extra={"column": shown}, **limits)


class _Part(BaseModel):
    """Keys that are not named here may be there and are left alone."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


class _Spread(_Part):
    """Over requests or tokens, ms; n of them."""

    mean: Number | None
    p50: Number | None
    p95: Number | None
    p99: Number | None
    n: Count


class _Breakdown(_Part):
    """ns; the parts add up to time_ns. draft: of runs that speculate."""

    draft: Count | None = None
    dense: Count
    decide: Count
    experts: Count
    stall: Count
    cpu_wait: Count
    head: Count


class _Stall(_Part):
    """ns; the causes add up to breakdown_ns.stall."""

    demand: Count
    late: Count
    held: Count


STALLS = tuple(_Stall.model_fields)


class _Causes(_Part):
    """By the queue that a transfer joined; the last two of runs with plan.on_miss."""

    demand: Count
    prefetch: Count
    background: Count
    admission: Count | None = None
    stream: Count | None = None


class _Transfers(_Causes):
    """Experts that landed by cause, and what became of others."""

    promoted: Count
    withdrawn: Count
    rejected: Count
    unfinished: Count


class _Prefetched(_Part):
    used: Count
    late: Count
    wasted: Count


class _Admission(_Part):
    """Experts that cpu-admit brought: landed, of these (but for unfinished ones) in another's place, and refused."""

    admitted: Count
    replaced: Count
    rejected: Count


class _Stages(_Part):
    """copies: landed in stages, of which `unwanted` nobody executed; most stages in use at once."""

    copies: Count
    unwanted: Count
    most: Count


class _Spent(_Part):
    """Experts that the host computed, or that the GPU read where they lie, and how long that took."""

    experts: Count
    ns: Count


class _ByLayer(_Part):
    """One entry for each MoE layer."""

    hits: Layers
    late: Layers
    misses: Layers
    stall_ns: Layers


class _Quality(_Part):
    """What the answers cost in router weight: shares of the wanted weight that another expert answered for, or nobody.

    per_token_p95: of a token's own wanted weight; expected_error: substituted weight times (1 - similarity) plus
    dropped weight, where a similarity matrix is given; stopped: (token, slot) entries that a gate kept from a stand-in.
    None: not known.
    """

    wanted_before_rerank: Count | None = None
    wanted: Count | None = None
    substituted_weight: Share | None
    dropped_weight: Share | None
    substituted_weight_by_layer: Shares | None = None
    dropped_weight_by_layer: Shares | None = None
    per_token_p95: Share | None = None
    expected_error: Number | None = None
    stopped: dict[Text, Count | None] | None = _column(dict.fromkeys(GATES, "int"), None)


class _Host(_Part):
    """Bytes on the host; None: not known."""

    experts: Count | None = None
    page_locked: Count | None = None
    rest: Count | None = None
    ram: Count | None = None
    fits: bool | None = None


class _Memory(_Part):
    """Bytes on the GPU; None: not known. host: of runs that say how much there is, or do on a miss what earlier ones
    could not."""

    dense: Count | None = None
    kv: Count | None = None
    slots: Count | None = None
    staging: Count | None = None
    reserve: Count | None = None
    gpu: Count | None = None
    fits: bool | None = None
    host: _Host | None = None


class _Slots(_Part):
    """What --cache came to: slots in total, of how many scopes (layers, or the one pool), the fewest and the most that
    one has; and the slots of low-precision copies."""

    total: Count
    scopes: Count
    least: Count
    most: Count
    low: Count


class _Speculation(_Part):
    """Windows of at most n rows: how many there were, their rows, and the rows accepted, which are the tokens; distinct
    experts wanted by a visit and bytes to the GPU, of all counted steps, by such a token (None: there is none)."""

    n: Count
    windows: Count
    rows: Count
    accepted: Count
    accepted_per_window: Number | None
    distinct_experts_per_token: Number | None
    h2d_bytes_per_token: Number | None


class _Start(_Part):
    """What is there at time 0, free of charge: residents, their bytes, and the ns that the idle link would have taken
    to load them, one after another."""

    residents: Count
    bytes: Count
    load_ns: Count


class _Cost(_Part):
    """In the currency of --price-per-hour; None: no tokens."""

    per_1k_tokens: Number | None


class _Energy(_Part):
    """idle_ns: of the time, that the GPU waits or is told what comes next; None: no tokens."""

    wh_per_1k_tokens: Number | None
    idle_ns: Count


class _Spec(_Part):
    """Of RunSpec's fields those that a reader uses."""

    trace: Text
    hardware: Text
    host: Text | None = None
    host_gbps: Number | None = None
    link_gbps: Number | None = None
    engine: Text
    precision: Text
    cache: Count | Number | Text | None
    cache_scope: Text
    eviction: Text
    prefetch: Text
    miss: Text
    rerank: Text = "none"
    batch: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    version: Count | None = None
    set: dict[Text, Any] | None = None


class _Engine(_Part):
    """Of an engine that sets what a run does: which fields it set and which its user set otherwise, by name; residents:
    which experts are where; chosen_by_fit: by how much the card holds; link_gb_per_s, host_gb_per_s: the machine's, for
    page-locked copies of one expert and for what the host reads alone; words: all of it."""

    name: Text
    version: Text
    residents: Text
    chosen_by_fit: bool
    link_gb_per_s: Number | None = None
    host_gb_per_s: Number | None = None
    words: Text
    sets: dict[Text, Any] = _column(None, {})
    you_set: dict[Text, Any] = _column(None, {})


class _Trace(_Part):
    hash: Text
    model: Text
    source: Any = _column("text", None)
    real: bool
    tokens: Count
    moe_layers: Count
    n_experts: Count
    top_k: Count
    calibration_tokens: Count | None = None
    assumptions: Any = _column(None, None)


class _Percents(_Part):
    """Whole percents of a figure."""

    low: Annotated[int, Field(ge=-100, le=0)]
    high: Count


class _ClosedLoop(_Part):
    """Of an open-loop run: between how many percent less and more of its figures those of the closed loop lie, as far
    as the models of fitted_on tell (sim.outcome.closed_loop); share: of the slots that were answered otherwise."""

    share: Share
    bytes_percent: _Percents
    time_percent: _Percents
    hits_percent: _Percents
    fitted_on: Text


class Marks(_Part):
    """What must be known of a run wherever a figure of it stands. synthetic: the trace is a generator's. open_loop: the
    policy is lossy, and the routing stays the trace's. oracle: a policy reads the future. fits: into the GPU's memory
    (None: not known). calibrated: the durations come from a calibration of a device; catalog_costs: they follow from
    rates and an engine's costs, so how sure they are is another question (tokens_per_s_interval)."""

    synthetic: bool
    open_loop: bool
    oracle: bool
    fits: bool | None
    calibrated: bool | None = None
    catalog_costs: bool | None = None


class Summary(_Part):
    """The JSON object of `python -m sim.run --json`. Times in ns unless their name says otherwise; tokens_per_s: tokens
    generated by decode time; prompt_tokens_per_s (prompt tokens by prefill time) and engine: of runs whose engine
    sets what they do; an interval: between which 80 % of what the real engine does lies (sim.outcome.how_sure), null
    where nobody knows; bounds: in ns, loads in transfers, of the classes that the run belongs to; what counts is
    what comes after the warm-up. streamed, remote, deferred, link_busy_ns_by_cause, link_transfers (one that brings
    several experts counts once), chunks (landed; where transfers are cut), admission, stages, host and remote_reads: of
    runs with plan.on_miss; speculation: of runs with speculative windows; cost, energy: of runs that say a price or
    watts. policy_files: sha256 of a user's own policies; policy_from: where those came from whose name is no file: a
    file or a session of Python, a plug-in."""

    tokens_per_s: Number | None
    total_tokens_per_s: Number | None
    prompt_tokens_per_s: Number | None = None
    tokens_per_s_interval: Pair | None = _column(LOW_HIGH, None)
    prompt_tokens_per_s_interval: Pair | None = _column(LOW_HIGH, None)
    time_ns: Count
    decode_ns: Count
    prefill_ns: Count
    steps: Count
    requests: Count
    tokens: Count
    prompt_tokens: Count
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
    slots_hit: Count = 0
    slots_late: Count = 0
    fetched: Count
    substituted: Count
    dropped: Count
    cpu: Count
    low: Count
    streamed: Count | None = None
    remote: Count | None = None
    deferred: Count | None = None
    transfers: _Transfers
    prefetched: _Prefetched
    h2d_bytes: _Causes
    link_busy_ns: Count
    link_busy_ns_by_cause: _Causes | None = None
    link_transfers: Count | None = None
    chunks: Count | None = _column(None, None)
    admission: _Admission | None = None
    stages: _Stages | None = None
    host: _Spent | None = None
    remote_reads: _Spent | None = None
    speculation: _Speculation | None = None
    cost: _Cost | None = None
    energy: _Energy | None = None
    by_layer: _ByLayer | None = _column(None, None)
    quality: _Quality
    closed_loop: _ClosedLoop | None = None
    memory: _Memory
    slots: _Slots
    start: _Start
    bounds: dict[Text, Count] = _column(BOUNDS, max_length=100)
    verdict: Text
    notes: list[Text] = _column("text", [], max_length=100)
    machine: Text = _column(None)
    engine: _Engine | None = None
    spec: _Spec = _column(None)
    trace: _Trace
    policy_files: dict[Text, Text] = _column("text", {})
    policy_from: dict[Text, Text] = _column(None, {})
    version: Text
    marks: Marks | None = _column(None, None)


def columns(model: type[BaseModel] = Summary, front: str = "") -> dict[str, str]:
    """The flat columns of a summary, `outer.inner`, each with its kind (a value of KINDS); none of what is a list."""
    out: dict[str, str] = {}
    for name, field in model.model_fields.items():
        here, extra = f"{front}{name}", field.json_schema_extra
        shown: Any = extra["column"] if isinstance(extra, dict) else _bare(field.annotation)
        if isinstance(shown, dict):
            out |= {f"{here}.{key}": kind for key, kind in shown.items()}
        elif isinstance(shown, str):
            out[here] = shown
        elif isinstance(shown, type) and issubclass(shown, BaseModel):
            out |= columns(shown, f"{here}.")
        elif shown in KINDS:
            out[here] = KINDS[shown]
    return out


def _bare(annotation: Any) -> Any:
    """A type without its limits and without None."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation


def check_summary(summary: dict[str, Any], where: str, version: str, by_layer: bool = True) -> None:
    """Raises UserError, one line that begins with `where`, unless it is a summary that `version` wrote and whose parts
    add up. by_layer: whether it must hold figures by layer, which rows of a sweep do not."""
    found = summary.get("version")
    if isinstance(found, str) and found != version:
        raise UserError(f"{where}: version: made by {found[:40]!r}; this is {version}: run it again to compare")
    try:
        Summary.model_validate(summary)
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
    sums = [
        (
            "breakdown_ns",
            sum(s["breakdown_ns"].get(part) or 0 for part in _Breakdown.model_fields),
            s["time_ns"],
            "time_ns",
        ),
        (
            "stall_ns_by_cause",
            sum(s["stall_ns_by_cause"][part] for part in STALLS),
            s["breakdown_ns"]["stall"],
            "breakdown_ns.stall",
        ),
        ("hits + late + misses", s["hits"] + s["late"] + s["misses"], s["wanted"], "wanted"),
    ]
    if s.get("link_busy_ns_by_cause"):
        parts = sum(s["link_busy_ns_by_cause"][cause] or 0 for cause in _Causes.model_fields)
        sums.append(("link_busy_ns_by_cause", parts, s["link_busy_ns"], "link_busy_ns"))
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


# --- from the record ---


def spread_ms(ns: Int) -> dict[str, Any]:
    """mean and percentiles (numpy's inverted_cdf) in ms; None where there is no value. Leaves ns in another order."""
    names = [f"p{p}" for p in PERCENTILES]
    if not len(ns):
        return {"mean": None, **dict.fromkeys(names), "n": 0}
    mean = float(np.mean(ns)) / 1e6
    found = np.percentile(ns, PERCENTILES, method="inverted_cdf", overwrite_input=True).tolist()
    return {"mean": mean, **{name: value / 1e6 for name, value in zip(names, found, strict=True)}, "n": len(ns)}


def _per_second(n: int, ns: int) -> float | None:
    return n / (ns / 1e9) if n and ns else None


def summarise(record: RunRecord) -> dict[str, Any]:
    """Every figure that the record alone gives; steps before `warmup_steps` count for nothing."""
    warm = record.warmup_steps
    steps = {name: column[warm:] for name, column in record.steps.items()}
    prefill = steps["prefill"].astype(bool)
    decode_ns, prefill_ns = _by_kind(steps["end_ns"] - steps["begin_ns"], prefill)
    tokens, prompt = _by_kind(steps.get("accepted", steps["rows"]), prefill)
    time_ns = int(steps["end_ns"][-1] - steps["begin_ns"][0])
    return {
        "time_ns": time_ns,
        "decode_ns": decode_ns,
        "prefill_ns": prefill_ns,
        "steps": len(prefill),
        "requests": _running(record),
        "tokens": tokens,
        "prompt_tokens": prompt,
        "tokens_per_s": _per_second(tokens, decode_ns),
        "total_tokens_per_s": _per_second(tokens + prompt, time_ns),
        **_latencies(record),
        **_counts(record),
    }


def _by_kind(values: Int, prefill: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Sums over the decode steps and over the prefill steps."""
    return int(values.sum(where=~prefill)), int(values.sum(where=prefill))


def _running(record: RunRecord) -> int:
    """Requests that had a token in a counted step."""
    decode_steps = np.flatnonzero(record.steps["prefill"] == 0)
    r, last = record.requests, np.full(len(record.requests["request"]), -1)
    decoding = r["generated"] > 0
    last[decoding] = decode_steps[(r["first_decode"] + r["generated"] - 1)[decoding]]
    prompt_end, final = r["last_prefill_step"], len(record.steps["prefill"]) - 1
    last = np.maximum(last, prompt_end)
    if record.steps["prefill"][final] and final not in prompt_end:  # the run ends within a prompt
        last[np.flatnonzero(prompt_end == -2)[0]] = final  # prompts run one after another: no other has begun
    return int((last >= record.warmup_steps).sum())


def begun(record: RunRecord) -> npt.NDArray[np.bool_]:
    """bool [n]: the requests whose first token ends the warm-up or came after it: none of their times lies in it."""
    r, last_warm = record.requests, record.warmup_steps - 1
    prompt_end, decode_only = r["last_prefill_step"], (r["last_prefill_step"] == -1) & (r["generated"] > 0)
    first = prompt_end >= max(last_warm, 0)
    return np.asarray(first | (decode_only & (r["first_decode"] >= _decoded(record, last_warm))), np.bool_)


def _decoded(record: RunRecord, step: int) -> int:
    """Decode steps before a step: whose number among decode steps is at least this is not before it."""
    return int((record.steps["prefill"][: max(step, 0)] == 0).sum())


def _latencies(record: RunRecord) -> dict[str, Any]:
    """TPOT and TTFT over requests, ITL over tokens; what began before the end of the warm-up is left out."""
    r, warm = record.requests, record.warmup_steps
    whole = begun(record) & (r["tokens"] > 1)
    waited = (r["admitted_step"] >= warm) & (r["first_ns"] >= 0)
    tpot = (r["last_ns"] - r["first_ns"])[whole] / (r["tokens"] - 1)[whole]
    return {
        "tpot_ms": spread_ms(tpot),
        "ttft_ms": spread_ms((r["first_ns"] - r["admitted_ns"])[waited]),
        "itl_ms": spread_ms(np.concatenate([gaps(record), np.zeros(_at_once(record), np.int64)])),
    }


def gaps(record: RunRecord) -> Int:
    """int64 [n], ns: from each token of a request to its next, where the former ends the warm-up or comes after it; of
    windows, from each one's tokens to the next one's."""
    r, prefill, ends = record.requests, record.steps["prefill"], record.steps["end_ns"]
    ends = ends[prefill == 0] if prefill.any() else ends
    earliest, last_warm = _decoded(record, record.warmup_steps - 1), record.warmup_steps - 1
    out, n = np.empty(int(r["generated"].sum()), np.int64), 0
    for i in np.flatnonzero(r["generated"] > 0):
        first, end = int(r["first_decode"][i]), int(r["first_decode"][i] + r["generated"][i])
        prompt_end = r["last_prefill_step"][i]
        if prompt_end >= max(last_warm, 0):
            out[n] = ends[first] - r["first_ns"][i]
            n += 1
        first = max(first, earliest)
        if end - first > 1:
            np.subtract(ends[first + 1 : end], ends[first : end - 1], out=out[n : n + end - first - 1])
            n += end - first - 1
    return out[:n]


def _at_once(record: RunRecord) -> int:
    """Tokens that their request got at the same instant as the one before, in counted steps."""
    if not record.windows:
        return 0
    return int((record.windows["accepted"] - 1)[record.windows["step"] >= record.warmup_steps].sum())


def _bytes(record: RunRecord, landed: dict[str, int]) -> dict[str, int]:
    """By cause; a low-precision copy is always a demand."""
    out = {cause: n * record.expert_bytes for cause, n in landed.items()}
    out["demand"] -= record.counters["landed_low"] * (record.expert_bytes - record.low_bytes)
    return out


def _counts(record: RunRecord) -> dict[str, Any]:
    c, layer = record.counters, record.layer
    stall = {cause: layer[f"stall_{cause}_ns"] for cause in STALLS}
    landed = {cause: c[f"landed_{cause}"] for cause in _Causes.model_fields if f"landed_{cause}" in c}
    ends = {name: c[name] for name in ("promoted", "withdrawn", "rejected", "unfinished")}
    found = {name: layer[name] for name in ("hits", "late", "misses")}
    totals = {name: int(each.sum()) for name, each in found.items()}
    by_layer = found | {"stall_ns": np.sum(list(stall.values()), axis=0)}
    return {
        "breakdown_ns": {part: c[f"{part}_ns"] for part in _Breakdown.model_fields if f"{part}_ns" in c},
        "stall_ns_by_cause": {cause: int(each.sum()) for cause, each in stall.items()},
        "wanted": sum(totals.values()),
        **totals,
        "evictions": c["evictions"],
        **{name: c[name] for name in SLOTS},
        "transfers": landed | ends,
        "prefetched": {name: c[f"prefetch_{name}"] for name in _Prefetched.model_fields},
        "h2d_bytes": _bytes(record, landed),
        "link_busy_ns": c["link_busy_ns"],
        "by_layer": {name: each.tolist() for name, each in by_layer.items()},
        **(_by_rules(c) if "link_transfers" in c else {}),
    }


def _by_rules(c: dict[str, Any]) -> dict[str, Any]:
    """What only runs with plan.on_miss have."""
    ends = {"admitted": "landed_admission", "replaced": "admission_replaced", "rejected": "admission_rejected"}
    stages = {"copies": "staged", "unwanted": "unwanted", "most": "stage_peak"}
    return {
        **{name: c[name] for name in SLOTS_BY_RULES},
        "link_busy_ns_by_cause": {cause: c[f"busy_{cause}_ns"] for cause in _Causes.model_fields},
        "link_transfers": c["link_transfers"],
        **({"chunks": c["chunks"]} if "chunks" in c else {}),
        "admission": {name: c[counter] for name, counter in ends.items()},
        "stages": {name: c[counter] for name, counter in stages.items()},
        "host": {"experts": c["host_experts"], "ns": c["host_ns"]},
        "remote_reads": {"experts": c["remotes"], "ns": c["remote_ns"]},
    }
