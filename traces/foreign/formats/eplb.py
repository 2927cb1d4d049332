"""DeepSeek EPLB's weight tensor: counts (or a moving average of them) [layers, logical experts], `.pt` or `.npy`."""

from pathlib import Path

import numpy as np

from traces.command import replace
from traces.errors import TraceError
from traces.foreign import torch_file
from traces.foreign.ask import Ask
from traces.foreign.counting import counts_of, of_axis
from traces.foreign.format import COUNTED, Reader, Writer
from traces.foreign.models import Model
from traces.foreign.npy import head_of, numbers
from traces.format.profile import Profile
from traces.format.trace import RoutingTrace


def detect(path: Path) -> bool:
    """Whether it is a `.npy`, or a `.pt` that is a tensor alone, of two dimensions."""
    head = head_of(path)
    if head is not None:
        return len(head[1]) == 2 and head[0].kind in "iuf"
    return getattr(torch_file.look(path), "ndim", 0) == 2


def could_be(path: Path, model: Model) -> str:
    """Ids, where nothing says that the last axis is the model's experts."""
    shape = _shape(path)
    if model.n_experts == shape[-1]:
        return ""
    head = head_of(path)
    if head is not None and head[0].kind != "f":
        return "ids of one layer's tokens (as [tokens, 1, top-k]: --from vllm)"
    return f"numbers {list(shape)} of one layer's tokens, ids or router logits (--from hf)"


def _shape(path: Path) -> tuple[int, ...]:
    head = head_of(path)
    return head[1] if head is not None else tuple(torch_file.look(path).shape)


def read(path: Path, ask: Ask) -> Profile:
    """The profile of the tensor. Raises TraceError where it is no array of numbers [layers, experts]."""
    if head_of(path) is not None or path.suffix == ".npy":
        weights = numbers(path, 2, "numbers [layers, logical experts]")
    else:
        weights = torch_file.array(torch_file.load(path), "the weight tensor", path, 2, "iuf")
    return of_axis(path, weights, ask, "the weight tensor", tool="eplb", layout="weight [layers, logical experts]")


def write(source: RoutingTrace | Profile, out: Path) -> str:
    """The argument `weight` of rebalance_experts, one row per MoE layer. Returns what was written."""
    counts, _ = counts_of(source)
    if out.suffix == ".pt":
        torch_file.save(out, counts)
    elif out.suffix == ".npy":
        replace(out, lambda file: np.save(file, counts, allow_pickle=False))
    else:
        raise TraceError(f"{out}: a weight tensor is a .pt or a .npy")
    return f"weight {list(counts.shape)} [MoE layers, logical experts]"


DOC = "DeepSeek EPLB weight tensor [layers, experts], .pt or .npy"
READER = Reader("eplb", read, detect, DOC, could_be=could_be)
WRITER = Writer("eplb", write, "DeepSeek EPLB's weight tensor: .pt or .npy", COUNTED)
