"""DeepSeek EPLB's weight tensor, [layers, logical experts]: the argument `weight` of rebalance_experts."""

from pathlib import Path

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign import torch_file
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.writers.counted import counts_of


def write(source: RoutingTrace | Profile, out: Path) -> str:
    """`.pt` (a tensor) or `.npy`, one row per MoE layer. Returns what was written."""
    counts, _ = counts_of(source)
    if out.suffix == ".pt":
        torch_file.save(out, counts)
    elif out.suffix == ".npy":
        replace(out, lambda file: np.save(file, counts, allow_pickle=False))
    else:
        raise TraceError(f"{out}: a weight tensor is a .pt or a .npy")
    return f"weight {list(counts.shape)} [MoE layers, logical experts]"
