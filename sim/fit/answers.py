"""What miss and re-ranking policies are handed before a run: buddy lists, thresholds, weights, logits, similarities."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import NOT_ALL_FETCHED
from sim.core.substitution import ETA
from sim.errors import SpecError
from sim.fit.buddies import BuddyLists, BuddyProfile, from_similarity
from sim.fit.buddies_file import read, read_similarity
from sim.policies.kinds import Value
from sim.policies.policy import NONE, Policy
from traces.format.trace import RoutingTrace

Given = Mapping[str, Value]
Fit = Callable[[BuddyProfile], BuddyLists]


def answer_fields(
    miss: Policy,
    given: Given,
    rerank: Policy,
    given_rerank: Given,
    *,
    trace: RoutingTrace,
    calibration: RoutingTrace | None,
    expert_bytes: int,
    seed: int,
    weighs: bool,
    by_logits: bool,
    weights: Callable[[], npt.NDArray[np.float32] | None],
    fit: Fit,
) -> dict[str, Any]:
    """The fields of a Plan that answers depend on. weighs: something else reads router weights, by_logits: logits;
    weights: those of the trace; fit: buddy lists of the calibration trace. Raises SpecError or TraceError, one line,
    for what does not fit."""
    values = miss.values(given)
    chosen = miss.choice(given)
    if miss.user:  # whatever its own parameters are called
        values = {key: values[key] for key in miss.prepared}
    if values.get("budget_mb"):
        index = list(miss.params).index("budget")
        chosen.params[index] = float(values["budget_mb"]) * 1e6 / expert_bytes
    fields: dict[str, Any] = {
        "miss": chosen,
        "lossy_prefill": bool(miss.number("prefill", values.get("prefill", 0))),
        "late_counts_as_missing": bool(miss.number("late", values.get("late", 0))),
        "norm_topk": bool(trace.meta.get("norm_topk", True)),
    }
    if chosen.marks & NOT_ALL_FETCHED or rerank is not NONE or weighs:
        fields["weights"] = weights()
        fields["logits"] = _logits(miss, rerank, chosen.params, trace)
    if by_logits:
        fields["logits"] = trace.logits
    if miss.lists:
        lists = _lists(miss, values, trace, seed, fit)
        fields |= {"peers": lists.peers, "peer_q": lists.q}
    if "tau" in values:
        fields["tau"] = _tau(miss, values, trace, calibration)
    if "lookahead" in miss.needs and not miss.user:
        fields["predicted"] = _predicted(miss.name, int(values["distance"]), trace)
    if rerank is not NONE:
        fields["rerank"] = rerank.choice(given_rerank)
    matrix = str(values.get("matrix", "")) or _matrix_of(rerank, given_rerank)
    if matrix:
        fields["similarity"] = _similarity(matrix, trace)
    return fields


def _predicted(name: str, distance: int, trace: RoutingTrace) -> npt.NDArray[np.int16]:
    """int16 [T, L, K]: the first entries of the trace's lookahead at a distance. Raises SpecError where it has none, or
    some for layers that no earlier layer of the token could foretell."""
    there = trace.lookahead_distances
    if distance not in there:
        raise SpecError(f"set: {name}.distance={distance}: must be a distance of the trace's lookahead, {list(there)}")
    assert trace.lookahead is not None  # it has such a distance
    found = np.ascontiguousarray(trace.lookahead[there.index(distance), :, :, : trace.top_k], np.int16)
    if (found[:, :distance] >= 0).any():
        raise SpecError(f"{name}: lookahead at distance {distance} has entries at layers below it; -1 is needed")
    return found


def _matrix_of(rerank: Policy, given: Given) -> str:
    """The similarity matrix that sere needs. Raises SpecError without one."""
    if "matrix" not in rerank.prepared:
        return ""
    if not given.get("matrix"):
        raise SpecError(f"{rerank.name}: needs a similarity matrix: --set {rerank.name}.matrix=FILE.npz")
    return str(given["matrix"])


def _logits(miss: Policy, rerank: Policy, params: Any, trace: RoutingTrace) -> Any:
    if miss.lists and params[ETA] != 0.0 and trace.logits is None:
        raise SpecError(f"{miss.name}: eta needs `logits`, which the trace does not have")
    wanted = any("logits" in policy.needs or policy.user for policy in (miss, rerank))
    return trace.logits if wanted or (miss.lists and params[ETA] != 0.0) else None


def _lists(miss: Policy, values: dict[str, Any], trace: RoutingTrace, seed: int, fit: Fit) -> BuddyLists:
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
        profile = BuddyProfile(
            alpha=float(values["alpha"]),
            k_max=int(values["k_max"]),
            count=str(values["count"]),
            mix=float(values["mix"]),
            eps=float(values["eps"]),
            warmup=int(values["warmup"]),
            seed=seed,
        )
        lists = fit(profile)
    lists.require_fit(trace)
    return lists


def _tau(miss: Policy, values: Given, trace: RoutingTrace, calibration: RoutingTrace | None) -> Any:
    """float64 [L]: one threshold, or each layer's percentile on the calibration trace (never on the judged one)."""
    percentile = miss.number("percentile", values["percentile"])
    if percentile < 0:
        return np.full(trace.n_moe_layers, miss.number("tau", values["tau"]))
    if calibration is None or calibration.weights is None:
        raise SpecError(f"{miss.name}: percentile needs --calibration with router weights")
    return thresholds(calibration, percentile, float(values["temperature"]))


def entropies(
    weights: npt.NDArray[Any], experts: npt.NDArray[Any], temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """TAE (BuddyMoE, arXiv 2511.10054, Eq. 1) of router weights [..., K], experts >= 0 only. In [0, 1]; 0 for K = 1."""
    k = weights.shape[-1]
    mass = np.where(experts >= 0, weights.astype(np.float64), 0.0) ** (1.0 / temperature)
    total = mass.sum(axis=-1, keepdims=True)
    p = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
    terms = np.zeros_like(p)
    np.log(p, out=terms, where=p > 0)
    return -(p * terms).sum(axis=-1) / np.log(k) if k > 1 else np.zeros(weights.shape[:-1])


def thresholds(trace: RoutingTrace, percentile: float, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """float64 [L]: the percentile of each layer's TAE over the trace's tokens."""
    assert trace.weights is not None
    return np.percentile(entropies(trace.weights, trace.experts, temperature), percentile, axis=0)


def _similarity(path: str, trace: RoutingTrace) -> Any:
    matrix = np.asarray(read_similarity(Path(path))[0], np.float32)
    shape = (trace.n_moe_layers, trace.n_experts, trace.n_experts)
    if matrix.shape != shape:
        raise SpecError(f"{path}: similarity: shape is {matrix.shape}; must be {shape} for this trace")
    return matrix
