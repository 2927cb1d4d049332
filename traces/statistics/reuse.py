"""Reuse distances: how far apart, in other experts, the uses of an expert lie."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.format.layout import CHUNK_ELEMENTS
from traces.format.trace import RoutingTrace

Int = npt.NDArray[np.int64]

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def reuse_histogram(trace: RoutingTrace) -> Int:
    """int64 [L, E + 1]: uses by reuse distance; the last column counts first uses.

    The reuse distance (LRU stack distance; Mattson et al. 1970) of a use is the number of other distinct
    experts of the layer used since that expert's last use, uses taken token by token and slot by slot,
    requests running on. An LRU of c slots per layer that takes them one by one hits exactly the uses of
    distance < c.
    """
    histogram = np.zeros((trace.n_moe_layers, trace.n_experts + 1), np.int64)
    for layer in range(trace.n_moe_layers):
        last = np.full(trace.n_experts, -1, np.int32)
        for ids in _uses(trace, layer):
            distances, last = _stack_distances(ids, last)
            histogram[layer] += np.bincount(distances, minlength=trace.n_experts + 1)
    return histogram


def _uses(trace: RoutingTrace, layer: int) -> Iterator[Int]:
    """Expert ids of one layer in order of use, absent slots left out, a cache-sized piece at a time."""
    step = max(1, CHUNK_ELEMENTS // 8 // (trace.n_experts * trace.top_k))
    for lo in range(0, trace.n_tokens, step):
        ids = trace.experts[lo : lo + step, layer].reshape(-1).astype(np.int64)
        yield ids[ids >= 0]


def _stack_distances(ids: Int, last: npt.NDArray[np.int32]) -> tuple[Int, npt.NDArray[np.int32]]:
    """Distances of successive uses (E for a first use), and the experts' order of last use after them.

    ids: int64 [n]; last: int32 [E], below E, larger = used later, -1 = never, as is the order returned.
    """
    n, experts = len(ids), len(last)
    # latest[i, e] = e's last use before use i: a running maximum over the uses put down in rows 1 .. n.
    latest = np.full((n + 1, experts), -1, np.int32)
    latest[0] = last
    latest[np.arange(1, n + 1), ids] = np.arange(experts, experts + n, dtype=np.int32)
    np.maximum.accumulate(latest, axis=0, out=latest)
    own = latest[np.arange(n), ids]
    distances = np.where(own < 0, experts, (latest[:n] > own[:, None]).sum(axis=1))
    order = np.argsort(np.argsort(latest[n], kind="stable"), kind="stable").astype(np.int32)
    return distances, np.where(latest[n] < 0, np.int32(-1), order)


def reuse_distance(trace: RoutingTrace) -> dict[str, Any]:
    """Quantiles (inverted_cdf) of the reuse distance over the uses that have one; see reuse_histogram."""
    histogram = reuse_histogram(trace)
    return {
        "quantiles": _quantiles(histogram[:, :-1].sum(axis=0)),
        "first_uses": int(histogram[:, -1].sum()),
        "reuses": int(histogram[:, :-1].sum()),
        "median_by_layer": [_quantiles(row[:-1])["p50"] for row in histogram],
    }


def _quantiles(histogram: Int) -> dict[str, int | None]:
    total = np.cumsum(histogram)
    names = [f"p{round(q * 100)}" for q in QUANTILES]
    if total[-1] == 0:
        return dict.fromkeys(names)
    at = [int(np.searchsorted(total, q * total[-1])) for q in QUANTILES]
    return dict(zip(names, at, strict=True))
