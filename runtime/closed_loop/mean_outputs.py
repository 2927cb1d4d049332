"""The mean output of each expert: what a missing expert is answered by under `--miss mean-output`.

Of all that can stand in for a missing expert without its weights, the constant that is least wrong in the squared error
is the mean of what it says to the tokens that are routed to it, E[f_i(x) | i routed]. It is one vector of the hidden
size for each expert, some ten thousandths of its weights, and stays on the GPU. Ours; measured on text that is not
judged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.closed_loop.visit_by_visit import DROP
from traces.capturing.routers import MoeLayer, find_moe_layers, routed

Run = Callable[[Tensor], object]  # a forward pass of the unmodified model over a window's ids int64 [M]


@dataclass(frozen=True)
class MeanOutputs:
    """layers: of each MoE layer [E, H]; an expert that no token was routed to has zeros, as if it were left out."""

    layers: list[Tensor]

    def term(self, layer: int, ids: Tensor, weights: Tensor, answers: Any) -> Tensor | None:
        """What the slots add [N, H] that nobody answers: ids [N, K] as the router has them, weights [N, K], answers
        int8 [N, K] of `Served`. None where there are no such slots."""
        left_out = torch.from_numpy(answers == DROP).to(ids.device)
        return self.weighed(layer, ids, weights * left_out) if left_out.any() else None

    def weighed(self, layer: int, ids: Tensor, weights: Tensor) -> Tensor:
        """[N, H]: the weighted sums of mean outputs; ids [N, K] (-1: nobody, whose weight must be 0)."""
        means = self.layers[layer].to(weights)
        return torch.einsum("nk,nkh->nh", weights, means[ids.clamp_min(0).long()])


def measured(model: nn.Module, run: Run, windows: npt.NDArray[np.int64]) -> MeanOutputs:
    """Of a model that is `run` over windows int64 [N, M], one after another."""
    layers = find_moe_layers(model)
    sums = [_Sums() for _ in layers]
    with ExitStack() as hooks:
        for layer, total in zip(layers, sums, strict=True):
            hooks.callback(layer.experts.register_forward_pre_hook(_adding(layer, total), with_kwargs=True).remove)
        for tokens in map(torch.from_numpy, windows):
            run(tokens)
    return MeanOutputs([total.mean for total in sums])


class _Sums:
    """Of one layer: outputs of each expert over the tokens that are routed to it, and how many."""

    def __init__(self) -> None:
        self.outputs: Tensor | None = None  # float64 [E, H]
        self.tokens: Tensor | None = None

    def add(self, n_experts: int, ids: Tensor, outputs: Tensor) -> None:
        """ids [n], outputs [n, H]."""
        if self.outputs is None or self.tokens is None:
            self.outputs = outputs.new_zeros((n_experts, outputs.shape[1]), dtype=torch.float64)
            self.tokens = outputs.new_zeros(n_experts, dtype=torch.float64)
        self.outputs.index_add_(0, ids, outputs.double())
        self.tokens += torch.bincount(ids, minlength=n_experts)

    @property
    def mean(self) -> Tensor:
        assert self.outputs is not None and self.tokens is not None, "nothing was run"
        return (self.outputs / self.tokens.clamp_min(1)[:, None]).float().cpu()


def _adding(layer: MoeLayer, total: _Sums) -> Callable[..., None]:
    """A hook on the experts' input that runs every slot by itself, with a weight of 1."""

    @torch.inference_mode()
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        hidden, (ids, _) = given[0], routed(layer, given)
        each = hidden.repeat_interleave(ids.shape[1], 0)
        one = torch.ones(len(each), 1, dtype=hidden.dtype, device=hidden.device)
        total.add(layer.n_experts, ids.reshape(-1).long(), module.forward(each, ids.reshape(-1, 1), one))

    return hook
