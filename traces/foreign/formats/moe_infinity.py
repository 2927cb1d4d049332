"""MoE-Infinity's expert activation matrices: a `.npy` of counts [capacity, layers, experts], one matrix per sequence.

Matrices of places that no sequence has used are zero. The counts of all sequences are added up.
"""

from pathlib import Path

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.counting import of_axis
from traces.foreign.npy import head_of, read_npy
from traces.format.profile import Profile


def detect(path: Path) -> bool:
    """Whether it is a `.npy` of three dimensions whose numbers are not the small unsigned ids of vLLM."""
    head = head_of(path) if path.is_file() else None
    return head is not None and len(head[1]) == 3 and head[0].kind in "iuf" and head[0] not in (np.uint8, np.uint16)


def read(path: Path, ask: Ask) -> Profile:
    """The profile of all sequences together. Raises TraceError for another shape and for what is no count."""
    matrices = read_npy(path)
    if matrices.ndim != 3 or matrices.dtype.kind not in "iuf":
        found = f"{matrices.dtype.name} {list(matrices.shape)}"
        raise TraceError(f"{path}: {found}; counts [sequences, layers, experts] are required")
    total, used = np.zeros(matrices.shape[1:], np.float64), 0
    for i, matrix in enumerate(matrices):
        if not ((matrix >= 0) & (matrix < np.inf)).all():
            raise TraceError(f"{path}: matrix {i} has a count that is negative or no number")
        used += bool(matrix.any())
        total += matrix
    meta = {"tool": "moe-infinity", "layout": "activation matrices, summed", "sequences": used}
    return of_axis(path, total, ask, "a matrix", **meta)
