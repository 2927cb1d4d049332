"""What the TAE gate learns before a run: its threshold per layer, from a percentile of the calibration's entropies."""

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.format.trace import RoutingTrace

Float = npt.NDArray[np.float64]


def entropies(weights: npt.NDArray[Any], experts: npt.NDArray[Any], temperature: float = 1.0) -> Float:
    """TAE (BuddyMoE, arXiv 2511.10054, Eq. 1) of router weights [..., K], experts >= 0 only. In [0, 1]; 0 for K = 1."""
    k = weights.shape[-1]
    mass = np.where(experts >= 0, weights.astype(np.float64), 0.0) ** (1.0 / temperature)
    total = mass.sum(axis=-1, keepdims=True)
    p = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
    terms = np.zeros_like(p)
    np.log(p, out=terms, where=p > 0)
    return -(p * terms).sum(axis=-1) / np.log(k) if k > 1 else np.zeros(weights.shape[:-1])


def thresholds(trace: RoutingTrace, percentile: float, temperature: float = 1.0) -> Float:
    """float64 [L]: the percentile of each layer's TAE over the trace's tokens."""
    assert trace.weights is not None
    return np.percentile(entropies(trace.weights, trace.experts, temperature), percentile, axis=0)
