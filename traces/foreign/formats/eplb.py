"""DeepSeek EPLB's weight tensor: counts (or a moving average of them) [layers, logical experts], `.pt` or `.npy`."""

from pathlib import Path

from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask
from traces.foreign.counting import of_axis
from traces.foreign.npy import head_of, read_npy
from traces.format.profile import Profile


def detect(path: Path) -> bool:
    """Whether it is a `.npy` of two dimensions, or a `.pt` that is a tensor alone (its pickle has no dict's words)."""
    head = head_of(path) if path.is_file() else None
    if head is not None:
        return len(head[1]) == 2 and head[0].kind in "iuf"
    words = torch_file.words(path) if path.is_file() else b""
    return b"_rebuild_tensor" in words and not any(w in words for w in (b"logical_count", b"records", b"logical_map"))


def read(path: Path, ask: Ask) -> Profile:
    """The profile of the tensor. Raises TraceError where it is no array of numbers [layers, experts]."""
    if head_of(path) is not None or path.suffix == ".npy":
        weights = read_npy(path)
        if weights.ndim != 2 or weights.dtype.kind not in "iuf":
            found = f"{weights.dtype.name} {list(weights.shape)}"
            raise TraceError(f"{path}: {found}; numbers [layers, logical experts] are required")
    else:
        weights = torch_file.array(torch_file.load(path), "the weight tensor", path, 2, "iuf")
    return of_axis(path, weights, ask, "the weight tensor", tool="eplb", layout="weight [layers, logical experts]")
