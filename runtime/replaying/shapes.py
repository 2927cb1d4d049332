"""Sizes: of a model at another scale, of its attention, of the steps of a run, and of the memory that both take."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from runtime.experts.layout import Layout
from sim.catalog.model_spec import Kind, ModelSpec
from traces.format.trace import RoutingTrace

Int = npt.NDArray[np.int64]
STEP = 32  # sizes of a scaled model are multiples of it


def scaled(model: ModelSpec, factor: float) -> ModelSpec:
    """The model with its widths times `factor` (layers, experts and top-k stay); factor 1 is the model itself."""
    if factor == 1:
        return model

    def size(n: int | None) -> int:
        return max(STEP, round(n * factor / STEP) * STEP) if n else 0

    shape = Attention.of(model)
    hidden = size(model.hidden)
    kv_heads = max(1, round(shape.kv_heads * factor))
    wider = model.kv_entry_bytes("window") // model.kv_bytes_per_token_per_layer or 1  # KV heads of a window layer
    heads = kv_heads * wider * max(1, round(model.n_heads * factor / (kv_heads * wider)))
    smaller: dict[str, Any] = {
        "hidden": hidden,
        "expert_intermediate": size(model.expert_intermediate),
        "shared_intermediate": size(model.shared_intermediate),
        "dense_intermediate": size(model.dense_intermediate) or None,
        "n_heads": heads,
        "vocab": max(256, size(model.vocab)),
        "attn_params_per_layer": max(2 * hidden, round(model.attn_params_per_layer * factor**2)),
        "attn_params_by_kind": {kind: round(n * factor**2) for kind, n in model.attn_params_by_kind.items()},
        "index_bytes_per_token": round(model.index_bytes_per_token * factor),
        "cross_attn_params_per_layer": round(model.cross_attn_params_per_layer * factor**2),
        "linear_state_bytes": round(model.linear_state_bytes * factor**2),
    }
    if not shape.latent:
        entry = kv_heads * (model.qk_dim + model.v_dim)
        smaller["kv_bytes_per_token_per_layer"] = 2 * entry
        if model.window_kv_bytes_per_token_per_layer is not None:
            smaller["window_kv_bytes_per_token_per_layer"] = 2 * entry * wider
        smaller["attn_params_per_layer"] = hidden * (heads * (model.qk_dim + model.v_dim) + entry)
    if model.expert_biases:
        smaller["expert_biases"] = (model.expert_matrices - 1) * smaller["expert_intermediate"] + hidden
    return model.model_copy(update=smaller)


class Attention(NamedTuple):
    """Sizes of attention of a kind. width_in, width_out: columns of its two projections; latent: one cached entry for
    all heads and for keys and values."""

    heads: int
    kv_heads: int
    qk: int
    v: int
    latent: bool
    width_in: int
    width_out: int

    @staticmethod
    def of(model: ModelSpec, kind: Kind = "full") -> "Attention":
        entry, qk, v = model.kv_entry_bytes(kind) // 2, model.qk_dim, model.v_dim
        latent = entry < qk + v
        kv_heads = 1 if latent else max(1, entry // (qk + v))
        columns = 0 if kind == "none" else max(2, model.attn_params(kind) // model.hidden)
        out = model.n_heads * v if not latent and model.n_heads * v < columns else columns // 2
        return Attention(model.n_heads, kv_heads, qk, v, latent, columns - out, out)

    @property
    def cached(self) -> tuple[int, int]:
        """Elements of one entry: keys (and all of a latent one), values."""
        return (self.kv_heads * self.qk, 0) if self.latent else (self.kv_heads * self.qk, self.kv_heads * self.v)

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries, keys and values from the projection's columns, which are theirs where they are exactly so many."""
        queries, (keys, values) = self.heads * self.qk, self.cached
        if projected.shape[-1] == queries + keys + values and values:
            q, k, v = torch.split(projected, [queries, keys, values], dim=-1)
            return q, k, v
        return fitted(projected, queries), fitted(projected, keys), fitted(projected, values) if values else None


def fitted(x: torch.Tensor, width: int) -> torch.Tensor:
    """The first `width` columns, repeated where there are fewer."""
    have = x.shape[-1]
    return x[..., :width] if have >= width else x.repeat(1, -(-width // have))[..., :width]


@dataclass(frozen=True)
class StepRows:
    """One step's rows: tokens of the trace [R], their positions, and the KV cache's place of each one's request."""

    tokens: Int
    positions: Int
    places: Int
    prefill: bool


class Batches:
    """The rows of every step, and places in the KV cache: a request takes the lowest free one and leaves it after its
    last row."""

    def __init__(self, trace: RoutingTrace, offset: Int, row: npt.NDArray[np.int32], prefill: Any, extra: int) -> None:
        self.rows: list[StepRows] = []
        self.places = 0
        steps = np.repeat(np.arange(len(prefill)), np.diff(offset))
        last = dict(zip(trace.sequence[row].tolist(), steps.tolist(), strict=True))
        free: list[int] = []
        taken: dict[int, int] = {}
        for step in range(len(prefill)):
            tokens = row[offset[step] : offset[step + 1]].astype(np.int64)
            owners = trace.sequence[tokens].tolist()
            for owner in owners:
                if owner not in taken:
                    taken[owner] = heappop(free) if free else self.places
                    self.places = max(self.places, taken[owner] + 1)
            places = np.array([taken[owner] for owner in owners], np.int64)
            positions = trace.position[tokens].astype(np.int64) + extra
            self.rows.append(StepRows(tokens, positions, places, bool(prefill[step])))
            for owner in dict.fromkeys(owners):
                if last[owner] == step:
                    heappush(free, taken.pop(owner))
        self.longest = max((int(r.positions.max()) + 1 for r in self.rows if len(r.positions)), default=1)
        self.most = max((len(r.tokens) for r in self.rows), default=1)


def cross_width(model: ModelSpec) -> int:
    """Columns of the two matrices that stand for the projections of cross-attention."""
    return model.cross_attn_params_per_layer // (2 * model.hidden)


def dense_elements(model: ModelSpec, n_layers: int, moe_layers: Sequence[int]) -> int:
    """Elements of all dense weights that CatalogWork keeps."""
    shift = max(0, model.n_layers - n_layers)
    total = (model.vocab + 1) * model.hidden
    for layer in range(n_layers):
        a = Attention.of(model, model.attention_kind(layer + shift))
        cross = cross_width(model) if layer + shift >= model.encoder_layers else 0
        moe = layer in moe_layers
        ffn = model.shared_intermediate if moe else (model.dense_intermediate or 0)
        columns = 2 + a.width_in + a.width_out + 2 * cross + (model.n_experts if moe else 0)
        total += model.hidden * (columns + model.expert_matrices * ffn)
    return total


def dense_bytes(
    model: ModelSpec, layout: Layout, batches: Batches, n_layers: int, moe_layers: Sequence[int]
) -> dict[str, int]:
    """Device bytes beside the slots: dense weights, KV cache, and the largest activations."""
    item, shift = layout.dtype.itemsize, max(0, model.n_layers - n_layers)
    kv = 0
    for layer in range(n_layers):
        kind = model.attention_kind(layer + shift)
        if kind == "linear":
            kv += batches.places * model.linear_state_bytes
        elif kind != "none":
            kv += batches.places * batches.longest * sum(Attention.of(model, kind).cached) * item
    widest = max(model.vocab, 3 * model.expert_intermediate * model.top_k, model.dense_intermediate or 0)
    return {
        "dense": dense_elements(model, n_layers, moe_layers) * item,
        "kv": kv,
        "activations": 4 * batches.most * widest * item,
    }
