"""MoE-Infinity's expert activation matrices: a `.npy` of counts [sequences, layers, experts], one matrix per sequence.

Matrices of places that no sequence has used are zero. The counts of all sequences are added up.
"""

from pathlib import Path
from typing import IO

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.counting import of_axis
from traces.foreign.format import COUNTED, Reader, Writer
from traces.foreign.models import Model
from traces.foreign.npy import head_of, no_counts, numbers
from traces.format.members import npy_head
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace
from traces.statistics.counts import count_experts


def detect(path: Path) -> bool:
    """Whether it is a `.npy` of three dimensions, but for the small unsigned ids of vLLM, and for router logits."""
    head = head_of(path)
    if head is None or len(head[1]) != 3 or head[0].kind not in "iuf" or head[0] in (np.uint8, np.uint16):
        return False
    return head[0].kind != "f" or not no_counts(path)


def fits(path: Path, model: Model) -> bool:
    """Whether the last axis can be the model's experts."""
    head = head_of(path)
    return head is None or model.n_experts in (None, head[1][-1])


def read(path: Path, ask: Ask) -> Profile:
    """The profile of all sequences together. Raises TraceError for another shape and for what is no count."""
    matrices = numbers(path, 3, "counts [sequences, layers, experts]")
    total, used = np.zeros(matrices.shape[1:], np.float64), 0
    for i, matrix in enumerate(matrices):
        if not ((matrix >= 0) & (matrix < np.inf)).all():
            raise TraceError(f"{path}: matrix {i} has a count that is negative or no number")
        used += bool(matrix.any())
        total += matrix
    meta = {"tool": "moe-infinity", "layout": "activation matrices, summed", "sequences": used}
    return of_axis(path, total, ask, "a matrix", **meta)


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
        file.write(npy_head(np.dtype("<i8"), shape))
        for lo, hi in zip(starts.tolist(), ends.tolist(), strict=True):
            file.write(count_experts(source.experts[lo:hi], source.n_experts).tobytes())

    replace(out, fill)
    return f"{list(shape)} [sequences, MoE layers, experts]"


DOC = "MoE-Infinity activation matrices: counts [sequences, layers, experts]"
READER = Reader("moe-infinity", read, detect, DOC, fits=fits)
WRITER = Writer("moe-infinity", write, "MoE-Infinity's activation matrices: .npy", COUNTED)
