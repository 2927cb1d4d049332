"""MoE-Infinity's expert activation matrices: `.npy` of counts [sequences, MoE layers, experts]."""

from pathlib import Path
from typing import IO

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign.spill import BLOCK_ROWS, Array
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace


def write(source: RoutingTrace | Profile, out: Path) -> str:
    """One matrix per request of a trace, written as it is counted; one of a profile. Returns what was written."""
    if out.suffix != ".npy":
        raise TraceError(f"{out}: activation matrices are a .npy")
    if isinstance(source, Profile):
        replace(out, lambda file: np.save(file, source.counts[None], allow_pickle=False))
        return f"{[1, *source.counts.shape]} [sequences, MoE layers, experts]: a profile has no sequences"
    starts, ends = source.requests()
    shape = (len(starts), source.n_moe_layers, source.n_experts)

    def fill(file: IO[bytes]) -> None:
        head = {"descr": "<i8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for lo, hi in zip(starts.tolist(), ends.tolist(), strict=True):
            file.write(_counts(source, lo, hi).tobytes())

    replace(out, fill)
    return f"{list(shape)} [sequences, MoE layers, experts]"


def _counts(trace: RoutingTrace, lo: int, hi: int) -> Array:
    """int64 [L, E]: uses in the rows lo .. hi - 1."""
    layers, n = trace.n_moe_layers, trace.n_experts
    counts = np.zeros(layers * n, np.int64)
    base = (np.arange(layers) * n)[None, :, None]
    for at in range(lo, hi, BLOCK_ROWS):
        ids = trace.experts[at : min(hi, at + BLOCK_ROWS)].astype(np.int64)
        counts += np.bincount((ids + base)[ids >= 0], minlength=counts.size)
    return counts
