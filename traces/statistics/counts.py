"""How often each expert is wanted."""

import numpy as np
import numpy.typing as npt

from traces.format.layout import Array, chunks
from traces.format.trace import RoutingTrace

Int = npt.NDArray[np.int64]


def expert_counts(trace: RoutingTrace) -> Int:
    """int64 [L, E]: how many tokens use each expert."""
    return count_experts(trace.experts, trace.n_experts)


def count_experts(experts: Array, n_experts: int) -> Int:
    """int64 [L, E]: how often each is in `experts` [T, L, K]."""
    layers = experts.shape[1]
    counts = np.zeros(layers * n_experts, np.int64)
    base = (np.arange(layers) * n_experts)[None, :, None]
    for _, chunk in chunks(experts):
        counts += np.bincount((chunk + base)[chunk >= 0], minlength=counts.size)
    return counts.reshape(layers, n_experts)
