"""Between a live torch model and the closed loop: what its routers say goes in, what its experts are to do comes out.

Hooks on the routers keep their logits and inputs; whoever runs the experts asks `visit`. Our own decoder is served by
replacing what its experts modules are called with (`served`): other ids, -1 for nobody, other weights. A Hugging Face
model computes from real slots instead: `runtime.live`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.routed import ModelShape
from runtime.closed_loop.visit_by_visit import LOW, Served
from runtime.experts.quantised import LowLayout
from traces.capturing.routers import MoeLayer, find_moe_layers, foretold, raw_logits

ALWAYS_NORMALISED = ("mixtral", "gpt_oss")  # their configurations do not say


def shape_of(model: nn.Module, name: str | None = None) -> ModelShape:
    """What the closed loop must know of a model. Raises UserError for one without MoE layers of one size."""
    layers, config = find_moe_layers(model), _config(model)
    kind = str(getattr(config, "model_type", ""))
    top_k: Any = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k", None)
    norm = kind in ALWAYS_NORMALISED or bool(getattr(config, "norm_topk_prob", True))
    return ModelShape(
        name=name or kind or type(model).__name__,
        n_layers=int(config.num_hidden_layers),
        moe_layers=tuple(layer.index for layer in layers),
        n_experts=layers[0].n_experts,
        top_k=int(top_k),
        norm_topk=norm,
        score_function="softmax-topk" if kind == "gpt_oss" else "sigmoid" if kind == "deepseek_v3" else "softmax",
    )


def _config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


class Driver:
    """A model and its closed loop, while it is open (`with`). Only forward passes within `step` are in the loop;
    any other is that of the unmodified model."""

    def __init__(self, model: nn.Module, loop: ClosedLoop) -> None:
        self.loop, self.layers = loop, self.layers_of(model)
        self._logits: Tensor | None = None
        self._hidden: Tensor | None = None
        self._hooks: list[Any] = []
        self.active = False
        if loop.live_prefetch is not None:
            loop.live_prefetch.ask = self._ask

    @staticmethod
    def layers_of(model: nn.Module) -> list[MoeLayer]:
        """Its MoE layers in order."""
        return find_moe_layers(model)

    def __enter__(self) -> Driver:
        wanted = self.loop.needs_logits or self.loop.live_prefetch is not None
        for layer in self.layers:
            if wanted and layer.router is not None:
                self._hooks.append(layer.router.register_forward_hook(self._heard(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def step(
        self, requests: Sequence[int], positions: Sequence[int], prefill: bool, then: Sequence[int] | None = ()
    ) -> Iterator[None]:
        """One forward pass: see ClosedLoop.begin."""
        self.begin(requests, positions, prefill, then)
        try:
            yield
        except BaseException:
            self.active = False
            raise
        self.end()

    def begin(
        self, requests: Sequence[int], positions: Sequence[int], prefill: bool, then: Sequence[int] | None = ()
    ) -> None:
        """A forward pass begins: see ClosedLoop.begin."""
        self.loop.begin(requests, positions, prefill, then)
        self.active = True

    def end(self) -> None:
        """It is over."""
        self.active = False
        self.loop.end()

    def visit(self, layer: int, ids: Tensor, weights: Tensor) -> Served:
        """What the slots of MoE layer `layer` get: ids, weights [N, K] as the router has them."""
        logits = None if self._logits is None else self._logits.float().cpu().numpy()
        hidden, self._logits, self._hidden = self._hidden, None, None
        return self.loop.visit(layer, ids.cpu().numpy(), weights.detach().float().cpu().numpy(), logits, hidden)

    def _heard(self, layer: MoeLayer) -> Callable[..., None]:
        @torch.no_grad()
        def hook(_module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if not self.active:
                return
            self._hidden = args[0].detach().reshape(-1, args[0].shape[-1])
            if self.loop.needs_logits:
                self._logits = raw_logits(layer, self._hidden, out)

        return hook

    @torch.no_grad()
    def _ask(self, layer: int, hidden: Any) -> Any:
        found = foretold(self.layers[layer], hidden)
        return np.full((len(hidden), 1), -1) if found is None else found.cpu().numpy()


def answered(served: Served, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(ids, weights) to compute with: the very tensors where nothing was changed."""
    if served.untouched:
        return ids, weights
    if served.weights is not None:
        changed = torch.from_numpy(served.reweighted).to(weights.device)[:, None]
        weights = torch.where(changed, torch.from_numpy(served.weights).to(weights), weights)
    return torch.from_numpy(served.ids).to(ids), weights


def rounded(weights: Tensor, precision: str) -> Tensor:
    """Weights of any shape as a low-precision copy has them (runtime.experts.quantised). Raises UserError for odd
    sizes."""
    layout = LowLayout.of(weights.numel(), precision)
    packed = torch.empty(layout.nbytes, dtype=torch.uint8, device=weights.device)
    layout.pack(weights.flatten(), packed)
    return layout.expand(packed, weights.dtype).view_as(weights)


class _LowCopies:
    """Rounded experts of our own decoder's layers, made when they are first asked for."""

    def __init__(self, layers: list[MoeLayer], precision: str) -> None:
        self.layers, self.precision = layers, precision
        self._made: dict[int, nn.Module] = {}

    def output(self, place: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """What the rounded experts of a layer add for these slots (-1: none)."""
        if place not in self._made:
            copy = deepcopy(self.layers[place].experts)
            for p in copy.parameters():
                p.data = rounded(p.data, self.precision)
            self._made[place] = copy
        out: Tensor = self._made[place].forward(hidden, ids, weights)
        return out


@contextmanager
def served(model: nn.Module, loop: ClosedLoop) -> Iterator[Driver]:
    """While open, `runtime.small_model.model.MoeDecoder` computes what the loop's visits say (within `Driver.step`)."""
    driver, hooks = Driver(model, loop), []
    low = _LowCopies(driver.layers, loop.low_precision) if loop.setting.plan.low is not None else None
    beside: dict[int, Tensor] = {}  # of the layer that runs: what low-precision copies, or mean outputs, add

    def serve(place: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, routed: tuple[Tensor, Tensor, Tensor]) -> Any:
            hidden, ids, weights = routed
            if not driver.active:
                return None
            result = driver.visit(place, ids, weights)
            means = None if loop.means is None else loop.means.term(place, ids, weights, result.answers)
            if means is not None:
                beside[place] = means
            ids, weights = answered(result, ids, weights)
            rounded_slots = torch.from_numpy(result.answers == LOW).to(ids.device)
            if low is not None and rounded_slots.any():
                beside[place] = low.output(place, hidden, ids.masked_fill(~rounded_slots, -1), weights)
                ids = ids.masked_fill(rounded_slots, -1)
            return hidden, ids, weights

        return hook

    def add(place: int) -> Callable[..., Any]:
        return lambda _module, _routed, out: out + beside.pop(place) if place in beside else None

    with driver:
        for layer in driver.layers:
            hooks.append(layer.experts.register_forward_pre_hook(serve(layer.place)))
            if low is not None or loop.means is not None:
                hooks.append(layer.experts.register_forward_hook(add(layer.place)))
        try:
            yield driver
        finally:
            for hook in hooks:
                hook.remove()
