"""Statistics of a routing trace, in bounded memory: what a cache or a predictor could make of it.

Every figure takes all rows, prompt and generated, in the order of the file, and ignores absent slots (-1)
unless it says otherwise. Sizes: T tokens, L MoE layers, K top-k, E experts per layer.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.format.groups import groups
from traces.format.layout import CHUNK_ELEMENTS, Array, chunks
from traces.format.npz import content_hash
from traces.format.profile import KIND, VERSION, Profile
from traces.format.trace import RoutingTrace
from traces.statistics.counts import expert_counts
from traces.statistics.describe import MARKS
from traces.statistics.doubts import known_doubts
from traces.statistics.reuse import reuse_distance

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

WINDOWS = (1, 16, 64, 256)
PROVENANCE = ("source", "licence", "data", "capture", "created", "tokenizer", "model_as_captured")


def info(trace: RoutingTrace) -> dict[str, Any]:
    """All statistics of a valid trace as a JSON-able dict; lists are by MoE layer, null: does not apply."""
    return {
        "model": trace.model,
        "real": trace.real,
        **{mark: True for mark in MARKS if trace.meta.get(mark) is True},
        "provenance": {key: trace.meta[key] for key in PROVENANCE if key in trace.meta},
        **({"model_facts": trace.meta["model_facts"]} if "model_facts" in trace.meta else {}),
        "content_hash": content_hash(trace),
        "doubts": known_doubts(trace),
        "left_out": trace.meta.get("dropped", {}),
        "shape": shape(trace),
        **({"groups": {key: dict(Counter(of)) for key, of in found.items()}} if (found := groups(trace)) else {}),
        "popularity": popularity(trace),
        "overlap": overlap(trace),
        "reuse_distance": reuse_distance(trace),
        "working_set": working_set(trace),
        "router_entropy": router_entropy(trace),
        "co_activation": co_activation(trace),
    }


def shape(trace: RoutingTrace) -> dict[str, Any]:
    """Sizes of the trace and which arrays it has."""
    missing = sum(int((chunk < 0).sum()) for _, chunk in chunks(trace.experts))
    prompt = int(trace.prefill.sum())
    return {
        "tokens": trace.n_tokens,
        "prompt_tokens": prompt,
        "generated_tokens": trace.n_tokens - prompt,
        "requests": len(trace.requests()[0]),
        "layers": trace.n_layers,
        "moe_layers": trace.n_moe_layers,
        "experts": trace.n_experts,
        "top_k": trace.top_k,
        "missing_slots": missing,
        "arrays": {name: array.dtype.name for name, array in trace.arrays().items()},
    }


def profile_of(trace: RoutingTrace) -> Profile:
    """The frequency profile of a trace: what it used, each token and slot once."""
    keys = ("model", "n_experts", "top_k", "n_layers", "moe_layers", "real", "source", "licence")
    meta = {key: trace.meta[key] for key in keys if key in trace.meta}
    meta |= {"kind": KIND, "format_version": VERSION, "id_space": "logical", "tool": "counted from a trace"}
    return Profile(expert_counts(trace).astype(np.float64), meta)


def info_of_profile(profile: Profile) -> dict[str, Any]:
    """A profile as a JSON object: meta, and figures by MoE layer."""
    share = profile.counts / profile.counts.sum(axis=1, keepdims=True)
    by_layer = {
        "uses": profile.counts.sum(axis=1).tolist(),
        "top_share": share.max(axis=1).tolist(),
        "unused": (profile.counts == 0).sum(axis=1).tolist(),
    }
    return {"meta": profile.meta, "doubts": known_doubts(profile), "by_layer": by_layer}


def routed_tokens(trace: RoutingTrace) -> Int:
    """int64 [L]: tokens that have at least one expert in each layer."""
    counts = np.zeros(trace.n_moe_layers, np.int64)
    for _, chunk in chunks(trace.experts):
        counts += (chunk >= 0).any(axis=2).sum(axis=0)
    return counts


def popularity(trace: RoutingTrace) -> dict[str, Any]:
    """How unevenly each layer's experts are used.

    normalised_entropy: of the shares of use, 1 = all alike; top_share: share of uses of the most used expert;
    gini: Gini coefficient of the uses, 0 = all alike; unused: experts that no token uses.
    """
    counts = expert_counts(trace)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = trace.n_experts
    entropy = _entropy(share) / np.log(n) if n > 1 else np.ones(trace.n_moe_layers)
    # Gini of sorted shares x_1 <= ... <= x_n with sum 1: sum_i (2 i - n - 1) x_i / n.
    gini = (np.sort(share, axis=1) * (2 * np.arange(1, n + 1) - n - 1)).sum(axis=1) / n
    by_layer = {"normalised_entropy": entropy, "top_share": share.max(axis=1), "gini": gini}
    return {
        "mean": {name: float(values.mean()) for name, values in by_layer.items()},
        "by_layer": {name: values.tolist() for name, values in by_layer.items()}
        | {"unused": (counts == 0).sum(axis=1).tolist()},
    }


def overlap(trace: RoutingTrace) -> dict[str, Any]:
    """Share of a token's experts that the token before it, in the same request, also used in that layer.

    mean: over all such pairs of rows and all layers, of the top_k slots, absent ones counting as no overlap;
    recorded: of the slots recorded where both rows are; random: K / E; popularity: what two tokens that draw
    independently by each expert's popularity would share, sum_e p_e^2 / sum_e p_e with p_e the share of routed
    tokens that use e (the sum is K where no slot is absent). null: no pairs.
    """
    layers, k = trace.n_moe_layers, trace.top_k
    common, recorded, pairs = np.zeros(layers, np.int64), np.zeros(layers, np.int64), 0
    for lo, _ in chunks(trace.experts):
        hi = min(trace.n_tokens, lo + max(1, CHUNK_ELEMENTS // (layers * k)))
        ids = trace.experts[max(lo - 1, 0) : hi].view(np.ndarray)
        same = trace.sequence[max(lo - 1, 0) : hi]
        ids_now, ids_before = ids[1:][same[1:] == same[:-1]], ids[:-1][same[1:] == same[:-1]]
        pairs += len(ids_now)
        common += sum(_shared(ids_now, ids_before, slot) for slot in range(k))
        known = (ids_before >= 0).any(axis=2, keepdims=True)
        recorded += ((ids_now >= 0) & known).sum(axis=(0, 2))
    rate = expert_counts(trace) / np.maximum(routed_tokens(trace), 1)[:, None]
    return {
        "mean": float(common.sum() / (pairs * layers * k)) if pairs else None,
        "recorded": float(common.sum() / recorded.sum()) if recorded.any() else None,
        "random": k / trace.n_experts,
        "popularity": float(((rate**2).sum(axis=1) / np.maximum(rate.sum(axis=1), 1e-12)).mean()),
        "pairs": pairs,
        "by_layer": (common / (pairs * k)).tolist() if pairs else None,
    }


def _shared(now: Array, before: Array, slot: int) -> Int:
    """int64 [L]: rows whose expert in `slot` is among the experts of the row before."""
    wanted = now[:, :, slot]
    found = np.zeros(wanted.shape, np.bool_)
    for j in range(before.shape[2]):
        found |= wanted == before[:, :, j]
    shared: Int = (found & (wanted >= 0)).sum(axis=0)
    return shared


def working_set(trace: RoutingTrace) -> dict[str, Any]:
    """Distinct experts used in windows of successive tokens, mean over the windows, by window length.

    Windows stand side by side in the order of the file, requests running on; what is left after the last
    whole one does not count. null where the trace is shorter than the window.
    """
    means = {w: _window_means(trace, w) for w in WINDOWS if w <= trace.n_tokens}
    return {
        "mean": {str(w): float(means[w].mean()) if w in means else None for w in WINDOWS},
        "by_layer": {str(w): means[w].tolist() if w in means else None for w in WINDOWS},
    }


def _window_means(trace: RoutingTrace, window: int) -> Float:
    """float64 [L]: mean number of distinct experts per whole window."""
    layers, n = trace.n_moe_layers, trace.n_tokens // window
    at_once = max(1, CHUNK_ELEMENTS // (layers * max(trace.n_experts, window * trace.top_k)))
    total = np.zeros(layers, np.int64)
    for lo in range(0, n, at_once):
        ids = trace.experts[lo * window : min(n, lo + at_once) * window].astype(np.int64)
        token, layer, slot = np.nonzero(ids >= 0)
        seen = np.zeros((len(ids) // window, layers, trace.n_experts), np.bool_)
        seen[token // window, layer, ids[token, layer, slot]] = True
        total += seen.sum(axis=(0, 2))
    return total / n


def router_entropy(trace: RoutingTrace) -> dict[str, Any]:
    """Mean entropy in bits of the router's choice; null where the trace lacks the array.

    weights: of the weights of the chosen experts, renormalised; logits: of all experts' probabilities
    (softmax, or sigmoid scores renormalised). normalised: divided by log2 of the number of alternatives.
    """
    entropy: dict[str, Any] = {"weights": None, "logits": None}
    if trace.weights is not None:
        entropy["weights"] = _mean_entropy(trace.weights, trace.top_k, lambda weights: weights)
    if trace.logits is not None:
        sigmoid = trace.meta.get("score_function") == "sigmoid"
        entropy["logits"] = _mean_entropy(trace.logits, trace.n_experts, _sigmoid if sigmoid else _softmax)
    return entropy


def _softmax(logits: Float) -> Float:
    top = logits.max(axis=-1, keepdims=True)
    odds: Float = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    return odds


def _sigmoid(logits: Float) -> Float:
    odds: Float = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return odds


def _mean_entropy(array: Array, alternatives: int, odds_of: Callable[[Float], Float]) -> dict[str, Any]:
    """Entropy by layer of odds along the last axis; tokens whose odds sum to zero do not count."""
    bits, rows = np.zeros(array.shape[1]), np.zeros(array.shape[1], np.int64)
    for _, chunk in chunks(array):
        odds = odds_of(chunk.astype(np.float64))
        total = odds.sum(axis=2, keepdims=True)
        bits += _entropy(odds / np.where(total > 0, total, 1.0)).sum(axis=0) / np.log(2)
        rows += (total[:, :, 0] > 0).sum(axis=0)
    mean = bits.sum() / max(int(rows.sum()), 1)
    return {
        "bits": float(mean),
        "normalised": float(mean / np.log2(alternatives)) if alternatives > 1 else None,
        "bits_by_layer": (bits / np.maximum(rows, 1)).tolist(),
    }


def _entropy(share: Float) -> Float:
    """Entropy in nats along the last axis; 0 log 0 = 0."""
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy: Float = -(share * logs).sum(axis=-1)
    return entropy


def co_activation_counts(trace: RoutingTrace, layer: int) -> Int:
    """int64 [E, E]: tokens whose experts in `layer` include both; the diagonal is each expert's own count."""
    n, k = trace.n_experts, trace.top_k
    counts = np.zeros(n * n, np.int64)
    step = max(1, CHUNK_ELEMENTS // (k * k))
    for lo in range(0, trace.n_tokens, step):
        ids = trace.experts[lo : lo + step, layer].astype(np.int64)
        first, second = np.broadcast_arrays(ids[:, :, None], ids[:, None, :])
        both = (first >= 0) & (second >= 0)
        counts += np.bincount(first[both] * n + second[both], minlength=n * n)
    return counts.reshape(n, n)


def co_activation(trace: RoutingTrace) -> dict[str, Any]:
    """How often an expert's most frequent companion is chosen with it.

    top_companion: over all uses, the share in which the expert that most often accompanies the used one is
    there too; random: (K - 1) / (E - 1), what uniform choice would give any one companion. null for one
    expert per layer.
    """
    if trace.n_experts < 2:
        return {"top_companion": None, "random": None, "by_layer": None}
    together, uses = np.zeros(trace.n_moe_layers, np.int64), np.zeros(trace.n_moe_layers, np.int64)
    for layer in range(trace.n_moe_layers):
        counts = co_activation_counts(trace, layer)
        uses[layer] = counts.trace()
        np.fill_diagonal(counts, 0)
        together[layer] = counts.max(axis=1).sum()
    return {
        "top_companion": float(together.sum() / max(int(uses.sum()), 1)),
        "random": (trace.top_k - 1) / (trace.n_experts - 1),
        "by_layer": (together / np.maximum(uses, 1)).tolist(),
    }
