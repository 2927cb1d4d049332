"""A run as OpenTelemetry metrics: OTLP/JSON with the names of the semantic conventions for generative AI, in seconds.

Names, units, attributes and bucket boundaries: docs/gen-ai/gen-ai-metrics.md of open-telemetry/semantic-conventions
(status: development). OTLP/JSON has whole numbers of 64 bits as text and enumerations as numbers. Times are simulated:
ns since the run began.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.outcome.how_sure import NOT_CALIBRATED, any_interval
from sim.outcome.requests import Requests

Float = npt.NDArray[np.float64]
CUMULATIVE = 2  # AGGREGATION_TEMPORALITY_CUMULATIVE
OPERATION, PROVIDER = "text_completion", "moe-offload-sim"
DURATION, FIRST, PER_TOKEN = (f"gen_ai.server.{n}" for n in
                              ("request.duration", "time_to_first_token", "time_per_output_token"))  # fmt: skip
BOUNDS = {
    DURATION: (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    FIRST: (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    PER_TOKEN: (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
}


def resource(name: str, summary: Mapping[str, Any], r: Requests) -> dict[str, Any]:
    """One run, as an entry of `resourceMetrics`. name: which run it is."""
    about = summary["marks"]
    # an interval says how far off catalog costs are; what has none is not calibrated, here as everywhere
    unsure = about.get("catalog_costs") is True and not any_interval(summary)
    held = {**about, "catalog_costs": None, "fits": None, "does_not_fit": about["fits"] is False}
    marks = [mark for mark, holds in {**held, NOT_CALIBRATED: unsure}.items() if holds is True]
    marks += ["simulated"] * (summary["machine"] != "torch")
    service = {"service.name": PROVIDER, "service.version": summary["version"], "service.instance.id": name}
    attributes = [_attribute(key, value) for key, value in service.items()]
    attributes.append({"key": "moe_offload_sim.marks", "value": {"arrayValue": {"values": [
        {"stringValue": mark} for mark in marks]}}})  # fmt: skip
    seconds = {DURATION: r.latency_ns / 1e9, FIRST: r.ttft_ns / 1e9, PER_TOKEN: r.itl_ns / 1e9}
    end = int(r.last_ns.max()) if len(r) else 0
    model = summary["trace"]["model"]
    metrics = [_histogram(metric, values[np.isfinite(values)], end, model) for metric, values in seconds.items()]
    scope = {"name": PROVIDER, "version": summary["version"]}
    return {"resource": {"attributes": attributes}, "scopeMetrics": [{"scope": scope, "metrics": metrics}]}


def _histogram(name: str, values: Float, end_ns: int, model: str) -> dict[str, Any]:
    """A bucket holds what is above its lower boundary, up to its upper one."""
    bounds = BOUNDS[name]
    counts = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds) + 1)
    attributes = {"gen_ai.operation.name": OPERATION, "gen_ai.provider.name": PROVIDER, "gen_ai.request.model": model}
    point = {
        "attributes": [_attribute(key, value) for key, value in attributes.items()],
        "startTimeUnixNano": "0",
        "timeUnixNano": str(end_ns),
        "count": str(len(values)),
        "sum": float(values.sum()),
        "bucketCounts": [str(n) for n in counts.tolist()],
        "explicitBounds": list(bounds),
        **({"min": float(values.min()), "max": float(values.max())} if len(values) else {}),
    }
    return {"name": name, "unit": "s", "histogram": {"dataPoints": [point], "aggregationTemporality": CUMULATIVE}}


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}
