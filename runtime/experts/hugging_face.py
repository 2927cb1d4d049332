"""The experts of a Hugging Face layer as one packed buffer each, and what one expert computes.

transformers >= 5.0 keeps a layer's experts in 3-D parameters whose first axis is the expert: `gate_up_proj` [E, 2I, H]
and `down_proj` [E, H, I]; gpt-oss transposes both, interleaves gate and up, and has a bias for each; a few families
have `up_proj` alone. What a module has is said by its flags (has_gate, has_bias, is_transposed) and its `_apply_gate`,
which are used here as its own implementations use them: so every layout that they serve is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.experts.layout import Packed, aligned, shaped
from traces.capturing.routers import MoeLayer
from traces.errors import UserError


@dataclass(frozen=True)
class Part:
    """One tensor of an expert: its parameter's name, its shape, where it stands in the packed buffer (elements)."""

    name: str
    shape: tuple[int, ...]
    start: int


def padded(elements: int, dtype: torch.dtype) -> int:
    """As many elements as fill whole alignments."""
    return aligned(elements * dtype.itemsize) // dtype.itemsize


@dataclass(frozen=True)
class ModuleLayout(Packed[dict[str, Tensor]]):
    """How one expert of a module is packed, each part padded so that the next begins at a whole alignment."""

    parts: tuple[Part, ...]
    dtype: torch.dtype

    @staticmethod
    def of(layer: MoeLayer) -> ModuleLayout:
        """Raises UserError for parameters that are not one slice for each expert, all of one dtype."""
        parts, end, kinds = [], 0, set()
        for name, p in layer.experts.named_parameters():
            if "." in name or p.shape[0] != layer.n_experts:
                raise UserError(f"{layer.name}: parameter {name} {tuple(p.shape)} is not one slice for each expert")
            parts.append(Part(name, tuple(p.shape[1:]), end))
            end += padded(prod(p.shape[1:]), p.dtype)
            kinds.add(p.dtype)
        if len(kinds) != 1:
            raise UserError(f"{layer.name}: experts of dtypes {sorted(map(str, kinds))}; one is required")
        return ModuleLayout(tuple(parts), kinds.pop())

    @property
    def elements(self) -> int:
        last = self.parts[-1]
        return last.start + padded(prod(last.shape), self.dtype)

    def weights(self, packed: Tensor) -> dict[str, Tensor]:
        """By parameter."""
        return {
            part.name: shaped(packed[..., part.start : part.start + prod(part.shape)], part.shape)
            for part in self.parts
        }


class ModelExperts:
    """A model's own experts as the source of an expert store (runtime.experts.store.Source).

    When a layer has been filled in its parameters become views of the store's memory, so that at most one layer is held
    twice; `restore` gives them memory of their own again, where they were.
    """

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        layouts = [ModuleLayout.of(layer) for layer in layers]
        if len(set(layouts)) > 1:
            raise UserError("experts of different layers differ in shape or dtype; slots serve all alike")
        self.layers, self.layout = layers, layouts[0]
        self._devices = [next(layer.experts.parameters()).device for layer in layers]
        self._moved: list[int] = []

    def fill(self, layer: int, expert: int, out: Tensor) -> None:
        """Write one expert into out [elements]."""
        experts = self.layers[layer].experts
        out.zero_()
        for name, view in self.layout.weights(out).items():
            view.copy_(getattr(experts, name).detach()[expert])
        if expert == self.layers[layer].n_experts - 1:
            self._move(layer, out)

    def _move(self, layer: int, last: Tensor) -> None:
        """The layer's parameters are from now on what lies in the store, up to this last row."""
        n, stride = self.layers[layer].n_experts, self.layout.stride // self.layout.dtype.itemsize
        first = last.storage_offset() - (n - 1) * stride
        rows = last.as_strided((n, self.layout.elements), (stride, 1), first)
        for name, view in self.layout.weights(rows).items():
            getattr(self.layers[layer].experts, name).data = view
        self._moved.append(layer)

    def restore(self) -> None:
        """Every parameter has memory of its own again: where it was, or on the host where that device is gone. Raises
        what the device said first, when all are restored."""
        first: RuntimeError | None = None
        for layer in self._moved:
            for part in self.layout.parts:
                p = getattr(self.layers[layer].experts, part.name)
                try:
                    p.data = p.data.to(self._devices[layer], copy=True).contiguous()
                except RuntimeError as error:
                    first, p.data = first or error, p.data.clone()
        self._moved = []
        if first is not None:
            raise first


def expert_output(experts: Any, weights: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """What one expert makes of `hidden` [n, H], with its own weights by name: [n, H]."""
    transposed = bool(getattr(experts, "is_transposed", False))
    if "gate_up_proj" in weights:
        inner = experts._apply_gate(_linear(hidden, "gate_up_proj", weights, transposed))
    else:
        inner = experts.act_fn(_linear(hidden, "up_proj", weights, transposed))
    out = _linear(inner, "down_proj", weights, transposed)
    norm = getattr(experts, "post_expert_norm", None)
    return out if norm is None else norm(out)


def _linear(x: Tensor, name: str, weights: dict[str, Tensor], transposed: bool) -> Tensor:
    weight, bias = weights[name], weights.get(f"{name}_bias")
    out = x @ weight if transposed else F.linear(x, weight)
    return out if bias is None else out + bias


def combined(slots: Tensor, ids: Tensor, dtype: torch.dtype, eager: bool) -> Tensor:
    """[N, H] from the weighted outputs of each slot [N, K, H]: in the order in which the model's own implementation
    adds them up, so that the sum is the same to the last bit. ids [N, K]: which expert answered each slot.

    eager: expert by expert, ascending, each rounded to `dtype`; else: all slots of a token at once.
    """
    if not eager:
        return slots.sum(dim=1).to(dtype)
    order = ids.argsort(dim=1, stable=True)[..., None]
    out = torch.zeros_like(slots[:, 0], dtype=dtype)
    for k in range(slots.shape[1]):
        out = out + slots.take_along_dim(order[:, k : k + 1], dim=1)[:, 0].to(dtype)
    return out
