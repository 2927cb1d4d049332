"""What miss and re-ranking policies are handed before a run: buddy lists, thresholds, weights, logits, similarities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim.core.miss import ETA
from sim.core.plan import NOT_ALL_FETCHED
from sim.errors import SpecError
from sim.fit.buddies import BuddyLists, BuddyProfile, from_similarity
from sim.fit.buddies_file import read, read_similarity
from sim.fit.gates import thresholds
from sim.policies.registry import Policy, Value
from traces.format.trace import RoutingTrace

Given = Mapping[str, Value]


def answer_fields(
    eviction: Policy, miss: Policy, given: Given, rerank: Policy | None, given_rerank: Given,
    trace: RoutingTrace, calibration: RoutingTrace | None, expert_bytes: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a Plan that answers depend on. Raises SpecError or BuddyError, one line, for what does not fit."""
    values = miss.values(given)
    chosen = miss.choice(given)
    if miss.user:  # whatever its own parameters are called
        values = {key: values[key] for key in miss.prepared}
    if not float(values.get("temperature", 1)) > 0:
        raise SpecError(f"set: {miss.name}.temperature={values['temperature']}: must be above 0")
    if values.get("budget_mb"):
        index = list(miss.params).index("budget")
        chosen.params[index] = float(values["budget_mb"]) * 1e6 / expert_bytes
    fields: dict[str, Any] = {
        "miss": chosen,
        "lossy_prefill": bool(values.get("prefill", 0)),
        "late_counts_as_missing": bool(values.get("late", 0)),
        "norm_topk": bool(trace.meta.get("norm_topk", True)),
    }
    if chosen.marks & NOT_ALL_FETCHED or rerank is not None or "weights" in eviction.keeps:
        fields["weights"] = trace.weights
        fields["logits"] = _logits(miss, rerank, chosen.params, trace)
    if miss.lists:
        lists = _lists(miss, values, trace, calibration, seed)
        fields |= {"peers": lists.peers, "peer_q": lists.q}
    if "tau" in values:
        fields["tau"] = _tau(miss, values, trace, calibration)
    if rerank is not None:
        fields["rerank"] = rerank.choice(given_rerank)
    matrix = str(values.get("matrix", "")) or _matrix_of(rerank, given_rerank)
    if matrix:
        fields["similarity"] = _similarity(matrix, trace)
    return fields


def _matrix_of(rerank: Policy | None, given: Given) -> str:
    """The similarity matrix that sere needs. Raises SpecError without one."""
    if rerank is None or "matrix" not in rerank.prepared:
        return ""
    if not given.get("matrix"):
        raise SpecError(f"{rerank.name}: needs a similarity matrix: --set {rerank.name}.matrix=FILE.npz")
    return str(given["matrix"])


def _logits(miss: Policy, rerank: Policy | None, params: Any, trace: RoutingTrace) -> Any:
    if miss.lists and params[ETA] != 0.0 and trace.logits is None:
        raise SpecError(f"{miss.name}: eta needs `logits`, which the trace does not have")
    wanted = any("logits" in policy.needs or policy.user for policy in (miss, rerank) if policy is not None)
    return trace.logits if wanted or (miss.lists and params[ETA] != 0.0) else None


def _lists(miss: Policy, values: Given, trace: RoutingTrace, calibration: RoutingTrace | None, seed: int) -> BuddyLists:
    """From a file of `python -m sim.profile`, from a similarity matrix, or fitted on the calibration trace."""
    if miss.lists == "similarity":
        if not values["matrix"]:
            raise SpecError("similarity: needs a matrix: --set similarity.matrix=FILE.npz")
        lists = from_similarity(
            _similarity(str(values["matrix"]), trace),
            k_max=int(values["k_max"]),
            alpha=float(values["alpha"]),
            seed=seed,
        )
    elif values["lists"]:
        lists = read(Path(str(values["lists"])))
    else:
        assert calibration is not None
        profile = BuddyProfile(
            alpha=float(values["alpha"]),
            k_max=int(values["k_max"]),
            count=str(values["count"]),
            mix=float(values["mix"]),
            eps=float(values["eps"]),
            warmup=int(values["warmup"]),
            seed=seed,
        )
        lists = profile.fit(calibration).lists_
    lists.require_fit(trace)
    return lists


def _tau(miss: Policy, values: Given, trace: RoutingTrace, calibration: RoutingTrace | None) -> Any:
    """float64 [L]: one threshold, or each layer's percentile on the calibration trace (never on the judged one)."""
    percentile = float(values["percentile"])
    if percentile < 0:
        return np.full(trace.n_moe_layers, float(values["tau"]))
    if calibration is None or calibration.weights is None:
        raise SpecError(f"{miss.name}: percentile needs --calibration with router weights")
    if percentile > 100:
        raise SpecError(f"set: {miss.name}.percentile={percentile:g}: must lie in 0..100, or be negative for none")
    return thresholds(calibration, percentile, float(values["temperature"]))


def _similarity(path: str, trace: RoutingTrace) -> Any:
    matrix = np.asarray(read_similarity(Path(path))[0], np.float32)
    shape = (trace.n_moe_layers, trace.n_experts, trace.n_experts)
    if matrix.shape != shape:
        raise SpecError(f"{path}: similarity: shape is {matrix.shape}; must be {shape} for this trace")
    return matrix
