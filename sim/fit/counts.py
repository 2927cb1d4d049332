"""Counts of expert pairs, the raw material of what is fitted."""

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.format.trace import RoutingTrace
from traces.statistics.stats import expert_counts

Int = npt.NDArray[np.int64]
CHUNK_ELEMENTS = 1 << 20


def pair_counts(source: npt.NDArray[Any], target: npt.NDArray[Any], n_experts: int) -> Int:
    """int64 [E, E] from integer [N, K] and [N, K'] (-1 none): lines naming i in `source`, j in `target`."""
    counts = np.zeros((n_experts + 1) ** 2, np.int64)
    size = max(1, CHUNK_ELEMENTS // max(1, source.shape[1] * target.shape[1]))
    for lo in range(0, len(source), size):
        i, j = (part[lo : lo + size].astype(np.int64) + 1 for part in (source, target))
        counts += np.bincount((i[:, :, None] * (n_experts + 1) + j[:, None, :]).reshape(-1), minlength=counts.size)
    return counts.reshape(n_experts + 1, n_experts + 1)[1:, 1:]


def source_layer(layer: int, distance: int, n_layers: int) -> tuple[int, bool]:
    """The MoE layer `distance` visits before `layer`, and whether it lies in the step before."""
    return (layer - distance, False) if layer >= distance else (layer - distance + n_layers, True)


def transition_counts(trace: RoutingTrace, distance: int) -> Int:
    """int64 [L, E, E]: by target layer l, tokens routed to j there whose source names i, `distance` MoE
    layers earlier: the same token's routing, or, where that lies before the first MoE layer, the previous
    token's of its request."""
    layers, n = trace.n_moe_layers, trace.n_experts
    out = np.zeros((layers, n, n), np.int64)
    rows = np.flatnonzero(trace.sequence[1:] == trace.sequence[:-1]) + 1
    for layer in range(layers):
        at, earlier = source_layer(layer, distance, layers)
        if earlier:
            out[layer] = pair_counts(trace.experts[rows - 1, at], trace.experts[rows, layer], n)
        else:
            out[layer] = pair_counts(trace.experts[:, at], trace.experts[:, layer], n)
    return out


def request_counts(trace: RoutingTrace, requests: Int) -> Int:
    """int64 [len(requests), L, E]: tokens of each request, by place in the trace, that use each expert."""
    starts, ends = trace.requests()
    return np.stack([expert_counts(trace.select(np.arange(starts[r], ends[r]))) for r in requests])
