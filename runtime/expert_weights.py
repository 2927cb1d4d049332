"""The experts of a Hugging Face layer as one packed buffer each, and what one expert computes.

transformers >= 5.0 keeps a layer's experts in 3-D parameters whose first axis is the expert: `gate_up_proj` [E, 2I, H]
and `down_proj` [E, H, I]; gpt-oss transposes both, interleaves gate and up, and has a bias for each; a few families
have `up_proj` alone. What a module has is said by its flags (has_gate, has_bias, is_transposed) and its `_apply_gate`, which
are used here as its own implementations use them: so every layout that they serve is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from traces.errors import UserError

ALIGNMENT = 64  # bytes: kernels want aligned matrices


class LiveError(UserError):
    """A model cannot be run with its experts offloaded; the text says why."""


@dataclass(frozen=True)
class Part:
    """One tensor of an expert: its parameter's name, its shape, where it stands in the packed buffer (elements)."""

    name: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Layout:
    """How one expert is packed: parts, elements in all (a multiple of the alignment), dtype."""

    parts: tuple[Part, ...]
    size: int
    dtype: torch.dtype

    @staticmethod
    def of(experts: nn.Module, n_experts: int, name: str) -> Layout:
        """Raises LiveError for parameters that are not one slice for each expert, all of one dtype."""
        parts, end, kinds = [], 0, set()
        for own, p in experts.named_parameters():
            if "." in own or p.shape[0] != n_experts:
                raise LiveError(f"{name}: parameter {own} {tuple(p.shape)} is not one slice for each expert")
            step = ALIGNMENT // p.element_size()
            parts.append(Part(own, tuple(p.shape[1:]), end))
            end += -(-prod(p.shape[1:]) // step) * step
            kinds.add(p.dtype)
        if len(kinds) != 1:
            raise LiveError(f"{name}: experts of dtypes {sorted(map(str, kinds))}; one is required")
        return Layout(tuple(parts), end, kinds.pop())

    @property
    def bytes(self) -> int:
        """Of one packed expert."""
        return self.size * self.dtype.itemsize

    def pack(self, experts: nn.Module, into: Tensor) -> None:
        """All experts of a layer into `into` [E, size]."""
        for part in self.parts:
            weight = getattr(experts, part.name).detach()
            into[:, part.start : part.start + prod(part.shape)].copy_(weight.flatten(1))

    def views(self, packed: Tensor) -> dict[str, Tensor]:
        """The parts of one packed expert [size], or of all [E, size]."""
        lead = packed.shape[:-1]
        return {
            part.name: packed[..., part.start : part.start + prod(part.shape)].unflatten(-1, part.shape)
            if lead
            else packed[part.start : part.start + prod(part.shape)].view(part.shape)
            for part in self.parts
        }


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
