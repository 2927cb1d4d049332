"""The summary of a run: the figures of design section 8, from the record alone, and what the run was."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.machines.record import RunRecord

Int = npt.NDArray[np.int64]
PERCENTILES = (50, 95, 99)
STALLS = ("demand", "late", "held")
SLOTS = ("slots_wanted", "slots_hit", "slots_late", "fetched", "substituted", "dropped", "cpu", "low")


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
    tokens, prompt = _by_kind(steps["rows"], prefill)
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
        "itl_ms": spread_ms(_gaps(record)),
    }


def _gaps(record: RunRecord) -> Int:
    """int64 [n], ns: from each token of a request to its next, where the former ends the warm-up or comes after it."""
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


def _bytes(record: RunRecord, landed: dict[str, int]) -> dict[str, int]:
    """By cause; a low-precision copy is always a demand."""
    out = {cause: n * record.expert_bytes for cause, n in landed.items()}
    out["demand"] -= record.counters["landed_low"] * (record.expert_bytes - record.low_bytes)
    return out


def _counts(record: RunRecord) -> dict[str, Any]:
    c, layer = record.counters, record.layer
    stall = {cause: int(layer[f"stall_{cause}_ns"].sum()) for cause in STALLS}
    landed = {cause: c[f"landed_{cause}"] for cause in ("demand", "prefetch", "background")}
    hits, late, misses = (int(layer[name].sum()) for name in ("hits", "late", "misses"))
    return {
        "breakdown_ns": {part: c[f"{part}_ns"] for part in ("dense", "decide", "experts", "stall", "cpu_wait", "head")},
        "stall_ns_by_cause": stall,
        "wanted": hits + late + misses,
        "hits": hits,
        "late": late,
        "misses": misses,
        "evictions": c["evictions"],
        **{n: c[n] for n in SLOTS},
        "transfers": landed | {name: c[name] for name in ("promoted", "withdrawn", "rejected", "unfinished")},
        "prefetched": {name: c[f"prefetch_{name}"] for name in ("used", "late", "wasted")},
        "h2d_bytes": _bytes(record, landed),
        "link_busy_ns": c["link_busy_ns"],
        "by_layer": {
            "hits": layer["hits"].tolist(),
            "late": layer["late"].tolist(),
            "misses": layer["misses"].tolist(),
            "stall_ns": np.sum([layer[f"stall_{cause}_ns"] for cause in STALLS], axis=0).tolist(),
        },
    }
