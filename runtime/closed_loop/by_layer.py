"""The closed loop of our own decoder layer by layer: whole windows at once, the compiled machine in between.

Teacher-forced, a token's routing in a layer depends on the answers of the layers below alone, its own and those of the
tokens before it; and with a cache per layer, no prefetcher and nothing that looks at other layers, a layer's answers
depend on that layer's routing alone. So one layer after another: attention and router of all windows, the core's
answers to that layer's routing (its rows alone, in the same steps), the experts as answered. A visit costs what the
compiled machine takes instead of what simpy does, a token what it costs in a batch: some hundred times less than
`runs.judge`, for the same run up to the rounding of sums.

Nothing is taken on trust: in the end the whole routing is replayed, and every layer's answers must be those that were
computed with. By induction over tokens and layers they are then those of the closed loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.closed_loop.loop import BY_RANK, means_for
from runtime.closed_loop.mean_outputs import MeanOutputs
from runtime.closed_loop.routed import Array, Int, ModelShape, ordered_half, scattered, slot_order, taken
from runtime.closed_loop.visit_by_visit import DROP, SUBSTITUTE
from runtime.small_model.model import MoeDecoder, rotary_table
from sim.catalog.model_spec import ModelSpec
from sim.core.miss import PRECISION
from sim.core.plan import Plan
from sim.errors import SpecError
from sim.machines.compiled import run
from sim.machines.record import RunRecord
from sim.policies.registry import find
from sim.prepare import Setting, prepare
from sim.spec import RunSpec
from traces.format.trace import RoutingTrace

WINDOWS_AT_ONCE = 8
Routed = tuple[Tensor, Tensor, Tensor]  # of a layer: logits [T, E], weights [T, K], ids [T, K], as Router has them
# ids [T, K] (-1: nobody) and weights [T, K] to compute with; what is added to the experts' sum [T, H], None nothing
Given = tuple[Tensor, Tensor, Tensor | None]
Answer = Callable[[int, Routed], Given]  # (MoE layer, what was routed) -> what to compute


@torch.inference_mode()
def forwarded(model: MoeDecoder, windows: Tensor, answer: Answer | None = None) -> list[Tensor]:
    """Logits of windows int64 [N, M], as tensors [n <= 8, M, V], all windows of a layer routed before any is answered;
    without `answer` those of the unmodified model, from the very same operations."""
    pieces = torch.split(windows, WINDOWS_AT_ONCE)
    rotary = rotary_table(model.config, windows.device)
    hidden = [model.embed_tokens(piece) for piece in pieces]
    for place, layer in enumerate(model.decoder_layers):
        hidden = [h + layer.self_attn(layer.input_layernorm(h), rotary) for h in hidden]
        seen = [layer.post_attention_layernorm(h).flatten(0, 1) for h in hidden]
        routed = [layer.mlp.gate(x) for x in seen]
        given = [_as_routed(each) for each in routed] if answer is None else _answered(answer, place, routed)
        outs = [layer.mlp.experts(x, ids, weights) for x, (ids, weights, _) in zip(seen, given, strict=True)]
        outs = [out if more is None else out + more for out, (*_, more) in zip(outs, given, strict=True)]
        hidden = [h + out.view_as(h) for h, out in zip(hidden, outs, strict=True)]
    return [torch.nn.functional.linear(model.norm(h), model.embed_tokens.weight) for h in hidden]


def _as_routed(routed: Routed) -> Given:
    _, weights, ids = routed
    return ids, weights, None


def _answered(answer: Answer, place: int, routed: list[Routed]) -> list[Given]:
    """A layer's answers, of all windows at once, piece by piece."""
    rows = [len(ids) for *_, ids in routed]
    logits, weights, ids = (torch.cat(parts) for parts in zip(*routed, strict=True))
    ids, weights, more = answer(place, (logits, weights, ids))
    added = [None] * len(rows) if more is None else torch.split(more, rows)
    return list(zip(torch.split(ids, rows), torch.split(weights, rows), added, strict=True))


class LayerByLayer:
    """One run over windows of so many tokens, each a request of decode steps, one after another.

    setting: the plan over a blank trace. answers: of each layer what its record said (`_said`).
    slots_reranked, weight_reranked: of which re-ranking made others, as ClosedLoop counts them.

    Raises SpecError or CatalogError, one line, for what does not fit or cannot be had layer by layer.
    """

    def __init__(
        self,
        spec: RunSpec,
        shape: ModelShape,
        windows: int,
        length: int,
        calibration: RoutingTrace | None = None,
        priced_as: ModelSpec | None = None,
        means: MeanOutputs | None = None,
    ) -> None:
        _refuse(spec)
        self.means = means_for(spec, means)
        self.spec = spec.model_copy(update={"calibration": None if calibration is None else "captured"})
        self.shape, self.calibration, self.priced_as = shape, calibration, priced_as
        blank = shape.blank(windows * length)
        self.sequence = np.repeat(np.arange(windows, dtype=np.int32), length)
        self.position = np.tile(np.arange(length, dtype=np.int32), windows)
        self.experts, self.weights, self.logits = (np.array(a) for a in (blank.experts, blank.weights, blank.logits))
        self.setting: Setting = self._prepared()
        self.answers: list[Array] = []
        self.slots_reranked, self.weight_reranked = 0, 0.0

    def _prepared(self) -> Setting:
        """What the run is, over what is routed by now."""
        return prepare(self.spec, trace=self.trace(), calibration=self.calibration, model=self.priced_as)

    def trace(self) -> RoutingTrace:
        """What the routers said, before re-ranking."""
        arrays = (self.experts, self.sequence, self.position, np.zeros(len(self.sequence), np.bool_))
        return RoutingTrace(*arrays, self.shape.meta(), weights=self.weights, logits=self.logits)

    def kept(self, layer: int, routed: Routed) -> Given:
        """Keep what a layer's router says, which is computed as it is."""
        self._keep(layer, routed)
        return _as_routed(routed)

    def _keep(self, layer: int, routed: Routed) -> Int | None:
        """Returns the order in which the core has the slots (slot_order)."""
        logits, weights, ids = routed
        order = slot_order(ids.numpy(), weights.numpy())
        self.experts[:, layer], self.weights[:, layer] = taken(order, ids.numpy()), taken(order, weights.numpy())
        if self.setting.plan.logits is not None:
            self.logits[:, layer] = ordered_half(logits.numpy().astype(np.float64), ids.numpy())
        return order

    def answer(self, layer: int, routed: Routed) -> Given:
        """The core's answers to what a layer's router says; the very tensors where nothing is changed."""
        order = self._keep(layer, routed)
        _, weights, ids = routed
        record = run(self._alone(layer), full=True)
        self.answers.append(self._said(record, layer))
        if self.setting.plan.rerank is not None:
            return self._reranked(layer, ids, weights)
        got = self.experts[:, layer].astype(np.int64)
        row, slot, said, other = self.answers[-1].T
        got[row, slot] = np.where(said == SUBSTITUTE, other, np.where(said == DROP, -1, got[row, slot]))
        given = torch.from_numpy(scattered(order, got))
        if given.equal(ids):
            return _as_routed(routed)
        return given, weights, None if self.means is None else self.means.weighed(layer, ids, weights * (given < 0))

    def _alone(self, layer: int) -> Plan:
        """The plan in which this layer alone is asked for anything, in the same steps and visits."""
        plan = self.setting.plan
        alone: dict[str, Any] = {"experts": np.full_like(self.experts, -1)}
        alone["experts"][:, layer] = self.experts[:, layer]
        alone |= {name: getattr(self, name) for name in ("weights", "logits") if getattr(plan, name) is not None}
        return replace(plan, **alone)

    def _reranked(self, layer: int, ids: Tensor, weights: Tensor) -> Given:
        """Re-ranked and then fetched, a token runs exactly the experts of its new set. A set that changed has its own
        p over all experts, renormalised where the model does; another is left alone, to the last bit."""
        ran = self.answers[layer]
        changed = (np.sort(ids.numpy(), axis=1) != ran).any(axis=1)
        p = torch.from_numpy(self.logits[:, layer].astype(np.float64)).softmax(-1)
        own = p.gather(1, torch.from_numpy(ran))
        if self.shape.norm_topk:
            own /= own.sum(-1, keepdim=True)
        kept = (ids[:, :, None] == torch.from_numpy(ran)[:, None]).any(-1)
        self.slots_reranked += int((~kept).sum())
        self.weight_reranked += float(weights[~kept].double().sum())
        rows = torch.from_numpy(changed)[:, None]
        return torch.where(rows, torch.from_numpy(ran), ids), torch.where(rows, own.to(weights), weights), None

    def record(self) -> RunRecord:
        """The record of the whole routing's replay, every layer in it. Raises SpecError where its answers are not those
        that were computed with: something in the run looks at more than its own layer."""
        plan, layers = self._prepared().plan, len(self.shape.moe_layers)
        record = run(plan, full=True)
        for layer, before in enumerate(self.answers):
            if not np.array_equal(before, self._said(record, layer)):
                who = f"eviction {self.spec.eviction}, miss {self.spec.miss}, rerank {self.spec.rerank}"
                raise SpecError(
                    f"{who}: layer {layer} of {layers} is answered otherwise once the others are routed; "
                    "only `runtime.evaluate` can do this"
                )
        return record

    def _said(self, record: RunRecord, layer: int) -> Array:
        """What a record says of a layer's answers: each of them, or, where re-ranked, who ran for each row."""
        layers = len(self.shape.moe_layers)
        if self.setting.plan.rerank is None:
            return _answers(record, layer, layers)
        return _ran(record, layer, layers, *self.experts[:, 0].shape)


def _refuse(spec: RunSpec) -> None:
    """Raises SpecError for what is never answered layer by layer."""
    policy = find("miss", spec.miss)
    if spec.prefetch != "none":
        raise SpecError(f"prefetch: {spec.prefetch}: foretells other layers; layer by layer there is none")
    if spec.rerank != "none" and (spec.rerank not in BY_RANK or spec.miss != "fetch"):
        raise SpecError(f"rerank: {spec.rerank}, miss: {spec.miss}: layer by layer {', '.join(BY_RANK)}, with fetch")
    if spec.batch != 1 or find("eviction", spec.eviction).oracle or policy.kind == PRECISION:
        raise SpecError(f"batch {spec.batch}, eviction {spec.eviction}, miss {spec.miss}: cannot be had layer by layer")


def _answers(record: RunRecord, layer: int, layers: int) -> Array:
    """Of a layer int64 [n, 4]: row, slot, answer, stand-in; in the order they were given."""
    given = record.groups["answers"]
    here = given["visit"] % layers == layer
    return np.stack([given[name][here] for name in ("row", "slot", "answer", "stand_in")], axis=1)


def _ran(record: RunRecord, layer: int, layers: int, rows: int, top_k: int) -> Array:
    """int64 [rows, K]: the experts that ran for each row in a layer, ascending; steps are rows here."""
    ran = record.groups["executions"]
    here = ran["visit"] % layers == layer
    row, expert = ran["visit"][here] // layers, ran["expert"][here]
    ordered: Array = expert[np.lexsort((expert, row))].reshape(rows, top_k)
    return ordered
