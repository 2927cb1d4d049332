"""How alike the experts of a layer are: every expert run on every token's router input (`runtime.similarity`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.small_model.model import MoeDecoder
from sim.fit.coactivation import co_activation, conditional
from traces.capturing.recorder import Recorder
from traces.capturing.routers import MoeLayer, routed
from traces.format.npz import write_arrays
from traces.progress import counted

Float = npt.NDArray[np.float64]
BLOCK_BYTES = 128 << 20  # of the outputs of all experts that are held at once
STATES = ("routed", "all")


@dataclass
class PairSums:
    """Of one layer, over tokens: cosine and error [E, E] of those routed to row i and of all, and how many."""

    n_experts: int

    def __post_init__(self) -> None:
        shape = (2, self.n_experts, self.n_experts)  # 0: routed to the row's expert; 1: all
        self.cosine, self.error = np.zeros(shape), np.zeros(shape)
        self.tokens = np.zeros((2, self.n_experts))

    def add(self, outputs: Tensor, ids: Tensor) -> None:
        """outputs [E, n, H] of all experts on n tokens, ids [n, K] of those that were routed."""
        flat = outputs.float().transpose(0, 1)
        dot = flat @ flat.transpose(1, 2)
        length = dot.diagonal(dim1=1, dim2=2).clamp_min(1e-30).sqrt()
        cosine = dot / (length[:, :, None] * length[:, None, :])
        apart = (length[:, :, None] ** 2 + length[:, None, :] ** 2 - 2 * dot).clamp_min(0).sqrt()
        error = apart / length[:, :, None]
        wanted = torch.zeros(len(ids), self.n_experts, device=ids.device).scatter_(1, ids.clamp_min(0), 1.0)
        for place, weight in enumerate((wanted, torch.ones_like(wanted))):
            self.cosine[place] += torch.einsum("ni,nij->ij", weight, cosine).double().cpu().numpy()
            self.error[place] += torch.einsum("ni,nij->ij", weight, error).double().cpu().numpy()
            self.tokens[place] += weight.sum(0).double().cpu().numpy()

    def means(self, states: str) -> tuple[Float, Float]:
        """(cosine, error), each [E, E]; an expert that no token was routed to is judged on all of them."""
        place = np.where(self.tokens[0] > 0, STATES.index(states), 1)
        row = np.arange(self.n_experts)
        tokens = self.tokens[place, row][:, None]
        return self.cosine[place, row] / tokens, self.error[place, row] / tokens


@dataclass(frozen=True, eq=False)
class Similarity:
    """cosine, error, q float64 [L, E, E]; tokens int [L, E] routed to each expert; meta of the file."""

    cosine: Float
    error: Float
    q: Float
    tokens: npt.NDArray[np.int64]
    meta: dict[str, Any]

    def write(self, path: Path) -> None:
        """A file that `sim.profile --similarity` and `--set similarity.matrix=` take."""
        arrays = {"similarity": self.cosine, "relative_error": self.error, "co_activation": self.q}
        write_arrays(path, self.meta, {name: array.astype(np.float32) for name, array in arrays.items()})


class Runs(Protocol):
    """What `measure` needs of a `traces.capturing.command.Source`."""

    model: Any
    meta: dict[str, Any]

    def run(self, recorder: Any, prompts: Any, generate: int, temperature: float, seed: int, first: int) -> None: ...


@dataclass
class DecoderRuns:
    """A decoder of ours, from whatever folder, as `measure` runs it: a prompt is one forward pass."""

    model: MoeDecoder
    meta: dict[str, Any]

    @torch.inference_mode()
    def run(self, recorder: Any, prompts: Any, generate: int, temperature: float, seed: int, first: int) -> None:
        recorder.begin(prompt_lengths=[prompts.shape[1]] * len(prompts))
        with recorder:
            self.model(torch.from_numpy(prompts))


def measure(
    source: Runs, prompts: Sequence[npt.NDArray[np.int64]], batch: int = 8, states: str = "routed"
) -> Similarity:
    """Run prompts of equal length through a model and compare its experts on every token. See `runtime.similarity`."""
    recorder = Recorder(source.model, logits=False, lookahead=0)
    sums = [PairSums(layer.n_experts) for layer in recorder.layers]
    hooks = [
        layer.experts.register_forward_pre_hook(_comparing(layer, total), with_kwargs=True)
        for layer, total in zip(recorder.layers, sums, strict=True)
    ]
    try:
        for first in counted(range(0, len(prompts), batch), "batch", at_once=False):
            source.run(recorder, np.stack(prompts[first : first + batch]), 0, 0.0, 0, first)
    finally:
        for hook in hooks:
            hook.remove()
    trace = recorder.trace(**source.meta)
    means = [total.means(states) for total in sums]
    about = {name: trace.meta[name] for name in ("model", "source", "data", "moe_layers") if name in trace.meta}
    of = "all tokens" if states == "all" else "the tokens routed to the row's expert"
    meta = about | {
        "metric": f"cosine of expert outputs on the same hidden states, mean over {of}",
        "states": states,
        "tokens": trace.n_tokens,
        "capture": source.meta.get("capture", {}),
    }
    q = conditional(co_activation(trace).m)
    tokens = np.stack([total.tokens[0] for total in sums]).astype(np.int64)
    return Similarity(np.stack([m[0] for m in means]), np.stack([m[1] for m in means]), q, tokens, meta)


def _comparing(layer: MoeLayer, total: PairSums) -> Callable[..., None]:
    """A hook on the experts' input that runs every expert on every token, a block of tokens at a time."""

    @torch.no_grad()
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        hidden, (ids, _) = given[0], routed(layer, given)
        step = max(1, BLOCK_BYTES // (4 * layer.n_experts * hidden.shape[1]))
        for lo in range(0, len(hidden), step):
            part = hidden[lo : lo + step]
            one = torch.ones(len(part), 1, dtype=part.dtype, device=part.device)
            each = [module.forward(part, one.long() * e, one) for e in range(layer.n_experts)]
            total.add(torch.stack(each), ids[lo : lo + step].long())

    return hook
