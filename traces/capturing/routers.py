"""Where a torch model's MoE layers are, and what their routers say; by structure, so that it holds for every family."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from traces.errors import UserError


@dataclass
class MoeLayer:
    """One MoE layer: its place among them, its index in the model, its modules (block holds router and experts).

    raw: whether the router's first output are raw logits; None: not looked at yet. asks_more: whether the router wants
    more than hidden states (one that routes by token id, say).
    """

    name: str
    place: int
    index: int
    experts: nn.Module
    block: nn.Module
    router: nn.Module | None
    raw: bool | None = None
    asks_more: bool = field(init=False)

    def __post_init__(self) -> None:
        self.asks_more = self.router is None or _needed(self.router) > 1

    @property
    def n_experts(self) -> int:
        return len(self.experts.down_proj)  # type: ignore[arg-type]


def _needed(module: nn.Module) -> int:
    """How many arguments its forward cannot do without."""
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds all experts of a layer: `down_proj` is a 3-D parameter [E, ...]."""
    weight = getattr(module, "down_proj", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 3


def find_moe_layers(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers in order. Raises UserError where there are none, or they are not alike."""
    found: list[tuple[int, str, nn.Module, nn.Module]] = []
    for name, module in model.named_modules():
        if is_experts(module):
            block = model.get_submodule(name.rpartition(".")[0])
            indices = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
            found.append((int(indices[-1]) if indices else len(found), name, module, block))
    what = type(model).__name__
    if not found:
        raise UserError(f"{what} has no MoE layer; a module with a 3-D parameter `down_proj` is required")
    found.sort(key=lambda entry: entry[0])
    layers = [MoeLayer(n, i, at, m, block, _router(block, m)) for i, (at, n, m, block) in enumerate(found)]
    sizes = sorted({layer.n_experts for layer in layers})
    if len(sizes) > 1 or len({layer.index for layer in layers}) < len(layers):
        raise UserError(f"{what} has MoE layers of {sizes} experts; one in a layer, all of one size, are required")
    return layers


def _router(block: nn.Module, experts: nn.Module) -> nn.Module | None:
    """The module beside the experts whose `weight` has one row per expert; `gate` and `router` are asked first."""
    n_experts = len(experts.down_proj)  # type: ignore[arg-type]
    for _, child in sorted(block.named_children(), key=lambda child: child[0] not in ("gate", "router")):
        weight = getattr(child, "weight", None)
        if child is not experts and isinstance(weight, Tensor) and weight.dim() == 2 and len(weight) == n_experts:
            return child
    return None


def routed(layer: MoeLayer, given: list[Any]) -> tuple[Tensor, Tensor]:
    """Ids and weights [N, K] from what the experts were called with, whatever the names of its arguments.

    Weights may be dense, [N, E] (PhiMoE in transformers 5.0). Raises UserError for another kind of call.
    """
    tensors = [t.detach() for t in given if isinstance(t, Tensor) and t.dim() == 2]
    ids = next((t for t in tensors if not t.is_floating_point()), None)
    if ids is not None:
        shapes = (ids.shape, (len(ids), layer.n_experts))
        weights = [t for t in tensors if t.is_floating_point() and t.shape in shapes]
        if weights:
            return ids, weights[-1] if weights[-1].shape == ids.shape else weights[-1].gather(1, ids)
    raise UserError(f"{layer.name}: is not called as experts(hidden, ids [N, K], weights [N, K])")


def canonical(ids: Tensor, weights: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Both [N, K], slots by descending weight, equal ones by ascending id; ids that are no expert's become -1, last."""
    weights = weights.float()
    none = (ids < 0) | (ids >= n_experts)
    order = ids.argsort(dim=-1, stable=True)
    ids, weights = ids.masked_fill(none, -1).gather(-1, order), weights.masked_fill(none, -1.0).gather(-1, order)
    order = weights.argsort(dim=-1, descending=True, stable=True)
    ids, weights = ids.gather(-1, order), weights.gather(-1, order)
    return ids, weights.masked_fill(ids < 0, 0.0)


def raw_logits(layer: MoeLayer, hidden: Tensor, out: Any) -> Tensor:
    """Raw logits [N, E] of a router that gave `out` for `hidden` [N, H].

    Its own first output where that is what its weights give; some versions return probabilities, or none at all: then
    they are computed from its weights, in float32.
    """
    router: Any = layer.router
    first: Any = out[0] if isinstance(out, tuple) else out
    shaped = isinstance(first, Tensor) and first.is_floating_point() and first.shape == (len(hidden), layer.n_experts)
    if layer.raw and shaped:
        own: Tensor = first.detach()
        return own
    with _loaded(layer):
        bias = getattr(router, "bias", None)
        logits = F.linear(hidden.float(), router.weight.float(), None if bias is None else bias.float())
    if layer.raw is None:
        largest = float(logits.abs().nan_to_num(0.0, 0.0).max())  # padding may be no number
        near = shaped and torch.allclose(first.float(), logits, rtol=0.05, atol=0.05 * largest, equal_nan=True)
        layer.raw = bool(near)
        return first.detach() if near else logits
    return logits


@contextmanager
def _loaded(layer: MoeLayer) -> Iterator[None]:
    """With the weights of a router there, which accelerate's offloading drops before hooks are called."""
    router: Any = layer.router
    if not router.weight.is_meta:
        yield
        return
    hook = getattr(router, "_hf_hook", None)
    if hook is None:
        raise UserError(f"{layer.name}: the weights of its router are nowhere; a device_map that keeps it on a device")
    hook.pre_forward(router)
    try:
        yield
    finally:
        hook.post_forward(router, None)


def foretold(layer: MoeLayer, hidden: Tensor) -> Tensor:
    """The experts [N, K], best first, that a layer's router chooses for hidden states [N, H] of another layer.

    The router's own hooks are not called.
    """
    router: Any = layer.router
    with _loaded(layer):
        out = router.forward(hidden.to(router.weight.device))
        ids, weights = _chosen(layer, out)
    return canonical(ids, weights, layer.n_experts)[0]


def _chosen(layer: MoeLayer, out: Any) -> tuple[Tensor, Tensor]:
    """Ids and weights [N, K] from what a router returned; where it returns logits alone the block chooses."""
    if isinstance(out, Tensor) and hasattr(layer.block, "route_tokens_to_experts"):
        out = layer.block.route_tokens_to_experts(out)  # type: ignore[operator]
    parts = out if isinstance(out, tuple) else (out,)
    ids = next((part for part in parts if not part.is_floating_point()), None)
    if ids is None:
        raise UserError(
            f"{layer.name}: its router does not say which experts it chooses; --lookahead 0 leaves that out"
        )
    weights = next((p for p in parts if p.is_floating_point() and p.shape == ids.shape), None)
    if weights is None:  # a dense matrix of weights, or logits: either ranks the chosen
        weights = next(p for p in parts if p.is_floating_point()).gather(-1, ids)
    return ids, weights
