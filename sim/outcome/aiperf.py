"""A run in the names and units of NVIDIA AIPerf, as its `profile_export_aiperf.json` has them.

Names, units and formulas: docs/metrics-reference.md and docs/reference/json-export-schema.md of ai-dynamo/aiperf,
schema 1.1; percentiles between two values on a line and the population's deviation, as its code has them (numpy's
defaults). Metrics of a request have a distribution, `count` and `sum`; others `avg` alone. What a simulation cannot
have (errors, HTTP, dates, its configuration) is left out; what this is stands under `moe_offload_sim`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.outcome.requests import Requests
from traces.slips import did_you_mean

Float = npt.NDArray[np.float64]
SCHEMA = "1.1"
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
LARGER_IS_BETTER = ("output_token_throughput_per_user", "prefill_throughput_per_user")


def of_requests(r: Requests) -> dict[str, tuple[str, Float]]:
    """name -> (unit, float64 [n], NaN where a request has none) of the metrics that each request has one of."""
    with np.errstate(divide="ignore", invalid="ignore"):  # what takes no time has no rate
        rates = {
            "output_token_throughput_per_user": 1e9 / r.itl_ns,
            "prefill_throughput_per_user": np.where(r.prompt > 0, r.prompt / (r.ttft_ns / 1e9), np.nan),
        }
    second = np.where(r.second_ns >= 0, r.second_ns - r.first_ns, np.nan)
    times = {"time_to_first_token": r.ttft_ns, "time_to_second_token": second, "request_latency": r.latency_ns,
             "inter_token_latency": r.itl_ns, "decode_duration": r.last_ns - r.first_ns}  # fmt: skip
    counts = {"output_sequence_length": r.tokens, "input_sequence_length": r.prompt, "output_token_count": r.tokens}
    return {
        **{name: ("ms", np.asarray(ns, np.float64) / 1e6) for name, ns in times.items()},
        **{name: ("tokens/sec/user", np.where(np.isfinite(rate), rate, np.nan)) for name, rate in rates.items()},
        **{name: ("tokens", n.astype(np.float64)) for name, n in counts.items()},
    }


def export(summary: Mapping[str, Any], r: Requests, slos: Mapping[str, float]) -> dict[str, Any]:
    """The JSON object. slos: see `parse_goodput`; without any there is no goodput."""
    each = of_requests(r)
    out: dict[str, Any] = {"schema_version": SCHEMA}
    out |= {name: block for name, (unit, values) in each.items() if (block := _distribution(unit, values))}
    if (chunks := _distribution("ms", r.gap_ns / 1e6)) is not None:
        out["inter_chunk_latency"] = chunks
    out |= {name: {"unit": unit, "avg": value} for name, (unit, value) in _of_all(r, each, slos).items()}
    about = {name: summary[name] for name in ("version", "machine", "spec", "trace", "marks", "notes")}
    return {**out, "was_cancelled": False, "moe_offload_sim": {**about, "simulated": summary["machine"] != "torch"}}


def _distribution(unit: str, values: Float) -> dict[str, Any] | None:
    """None where no request has one."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    found = np.percentile(known, PERCENTILES).tolist()
    return {
        "unit": unit,
        "avg": float(known.mean()),
        **{f"p{p}": value for p, value in zip(PERCENTILES, found, strict=True)},
        "min": float(known.min()),
        "max": float(known.max()),
        "std": float(known.std()),
        "count": len(known),
        "sum": float(known.sum()),
    }


def _of_all(
    r: Requests, each: Mapping[str, tuple[str, Float]], slos: Mapping[str, float]
) -> dict[str, tuple[str, float]]:
    seconds, n = r.duration_ns / 1e9, len(r)
    prompt, tokens = float(r.prompt.sum()), float(r.tokens.sum())
    out = {"request_count": ("requests", float(n)), "total_isl": ("tokens", prompt), "total_osl": ("tokens", tokens),
           "total_output_tokens": ("tokens", tokens), "benchmark_duration": ("sec", seconds)}  # fmt: skip
    rates = {"request_throughput": ("requests/sec", n), "output_token_throughput": ("tokens/sec", tokens),
             "total_token_throughput": ("tokens/sec", prompt + tokens)}  # fmt: skip
    if slos:
        good = float(good_requests(each, slos).sum())
        out |= {"good_request_count": ("requests", good)}
        rates |= {"goodput": ("requests/sec", good)}
    return out | {name: (unit, amount / seconds) for name, (unit, amount) in rates.items() if seconds}


def good_requests(each: Mapping[str, tuple[str, Float]], slos: Mapping[str, float]) -> npt.NDArray[np.bool_]:
    """bool [n]: which requests meet every objective; one that has no such figure does not."""
    good = np.ones(len(next(iter(each.values()))[1]), np.bool_)
    for name, limit in slos.items():
        values = each[name][1]
        good &= np.where(np.isfinite(values), values >= limit if name in LARGER_IS_BETTER else values <= limit, False)
    return good


def parse_goodput(text: str | None) -> dict[str, float]:
    """`time_to_first_token:2000 inter_token_latency:50`, in the units of the metrics. Raises SpecError."""
    names, out = sorted(of_requests(_NOBODY)), dict[str, float]()
    for pair in (text or "").split():
        name, colon, limit = pair.partition(":")
        if name not in names:
            raise SpecError(f"goodput: {name}: no such metric{did_you_mean(name, names)}; one of {', '.join(names)}")
        try:
            out[name] = float(limit)
        except ValueError:
            out[name] = np.nan
        if not colon or not 0 <= out[name] < np.inf:
            raise SpecError(f"goodput: {pair}: must be METRIC:LIMIT, such as time_to_first_token:2000 (ms)")
    if text is not None and not out:
        raise SpecError("goodput: names no metric; such as 'time_to_first_token:2000 inter_token_latency:50'")
    return out


_NOBODY = Requests(*(np.zeros(0, np.int64),) * 8)
