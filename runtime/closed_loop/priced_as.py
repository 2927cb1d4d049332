"""What a live model is charged for in simulated time: its own sizes, or those of a model of the catalog.

A small model's experts cross a link in its latency alone, which says nothing about the models that people offload. So
`--charge NAME` takes the width of every layer and expert from another model, in as many layers and experts as the
live one has: the routing is the small model's, the bytes and the time are the large one's.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from runtime.closed_loop.routed import ModelShape
from sim import catalog
from sim.catalog.model_spec import ModelSpec
from traces.capturing.routers import find_moe_layers

_LIKE = ("n_layers", "moe_first", "moe_step", "n_experts", "top_k")


def priced_as(model: nn.Module, shape: ModelShape, like: str | None = None) -> ModelSpec:
    """The sizes to charge for `model`: its own, or those of `like` (a name or file of the catalog) in its counts.

    Raises CatalogError for a name that is unknown.
    """
    spacing = _spacing(shape.moe_layers)
    counts: dict[str, Any] = dict(
        zip(_LIKE, (shape.n_layers, shape.moe_layers[0], spacing, shape.n_experts, shape.top_k), strict=True)
    )
    if like is None:
        return _own(model, shape, counts)
    other = catalog.model(like)
    more = {} if other.dense_intermediate or len(shape.moe_layers) == shape.n_layers else {
        "dense_intermediate": other.expert_intermediate * shape.top_k
    }  # fmt: skip
    name = f"{other.name} layers in the counts of {shape.name}"
    return other.model_copy(update={**counts, **more, "name": name, "encoder_layers": 0, "moe_layer_list": None})


def _spacing(moe_layers: tuple[int, ...]) -> int:
    return moe_layers[1] - moe_layers[0] if len(moe_layers) > 1 else 1


def _own(model: nn.Module, shape: ModelShape, counts: dict[str, Any]) -> ModelSpec:
    """From the model's modules and configuration: parameters as they are, KV entries by the kind of attention."""
    config: Any = model.config
    layer = find_moe_layers(model)[0]
    block = {name: sum(p.numel() for p in child.parameters()) for name, child in layer.block.named_children()}
    experts = sum(p.numel() for p in layer.experts.parameters()) // shape.n_experts
    hidden = int(config.hidden_size)
    shared = sum(n for name, n in block.items() if "shared" in name and "gate" not in name)
    parent = model.get_submodule(layer.name.rsplit(".", 2)[0])
    attention = sum(p.numel() for name, p in parent.named_parameters() if "attn" in name.split(".")[0])
    heads = int(config.num_attention_heads)
    latent = getattr(config, "kv_lora_rank", None)
    if latent:
        kv, wide = int(latent) + int(config.qk_rope_head_dim), (int(latent) + int(config.qk_rope_head_dim), int(latent))
    else:
        head = int(getattr(config, "head_dim", None) or hidden // heads)
        kv, wide = 2 * head * int(getattr(config, "num_key_value_heads", None) or heads), (head, head)
    matrices = 3 if "gate_up_proj" in dict(layer.experts.named_parameters()) else 2
    width = max(1, experts // (matrices * hidden))
    return ModelSpec(
        name=shape.name,
        source="the model itself",
        expert_intermediate=width,
        expert_biases=experts - matrices * hidden * width,
        shared_intermediate=shared // (matrices * hidden),
        n_shared_experts=int(shared > 0),
        dense_intermediate=int(getattr(config, "intermediate_size", None) or width * shape.top_k),
        hidden=hidden,
        attn_params_per_layer=attention,
        kv_bytes_per_token_per_layer=2 * kv,
        attention="mla" if latent else "gqa",
        n_heads=heads,
        qk_dim=wide[0],
        v_dim=wide[1],
        vocab=int(config.vocab_size),
        norm_topk=shape.norm_topk,
        **counts,
    )
