"""What a live model is, by the keys of a model file (docs/models.md): what a simulated run needs beside a trace.

Counts are sums over the parameters that are there, by shape, so that all facts together come to the model's own number
of parameters; the configuration says what no shape does (heads, windows, which layer attends how). What neither says is
left out, and whoever simulates is told that it is missing. Two shapes tell what a layer's parameters are: experts are
3-D, and a feed-forward network (dense, or shared experts) is a module of two or three matrices between `hidden` and one
width. `attn_params_per_layer` are all the rest: attention, biases, and norms beyond two.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from traces.capturing.routers import MoeLayer, is_experts

# How a layer attends, by transformers' word and by the letter of `attention_pattern`.
LETTERS = {
    "full_attention": "f", "attention": "f", "sliding_attention": "w", "chunked_attention": "w",
    "indexed_attention": "s", "linear_attention": "l", "mamba": "l", "conv": "l", "moe": "-", "mlp": "-",
}  # fmt: skip
KINDS = {"f": "full", "w": "window", "s": "sparse", "l": "linear", "-": "none"}
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float8_e4m3fn: "fp8"}
PACKED = (torch.uint8, torch.int8, torch.int16, torch.int32)  # of quantised matrices, whose shapes are not the model's
SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
# What a linear layer's module calls the sizes of its recurrent state; a head's is square where it has one size.
STATES = (
    ("num_v_heads", "head_k_dim", "head_v_dim"),
    ("num_heads", "head_dim", "ssm_state_size"),
    ("intermediate_size", "ssm_state_size"),
    ("num_heads", "head_dim", "head_dim"),
    ("num_attention_heads", "head_dim", "head_dim"),
)
KV_BYTES = 2  # of one value: entries are counted in bf16

Facts = dict[str, Any]


def model_facts(model: nn.Module, layers: Sequence[MoeLayer], n_layers: int, top_k: int) -> Facts:
    """Facts by the keys of a model file; an encoder-decoder's, and those of packed weights, are not known.

    layers: its MoE layers, of `n_layers` in all.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = _number(config, "hidden_size")
    if hidden is None or getattr(config, "is_encoder_decoder", False) or _packed(model):
        return {}
    facts = {"n_layers": n_layers, **_placed([layer.index for layer in layers], n_layers)}
    facts |= {"n_experts": layers[0].n_experts, "top_k": top_k, "hidden": hidden, **_experts(layers[0].experts, hidden)}
    stack = _stack(model, layers[0])
    facts |= _ends(model, stack, config, hidden)
    letters = _letters(config, n_layers)
    if len(stack) == n_layers and "expert_matrices" in facts:
        facts |= _of_layers(stack, letters or "f" * n_layers, facts, config)
        facts |= _attention(stack, letters, config) if letters else {}
    return facts


def _number(config: Any, *names: str) -> int | None:
    """The first of these that the configuration has, a whole number above 0."""
    found = (_said(config, name) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def _said(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers of what differs by layer
        return None


def _packed(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return any(tensor.dim() > 1 and tensor.dtype in PACKED for tensor in tensors)


def _placed(moe_layers: list[int], n_layers: int) -> Facts:
    step = moe_layers[1] - moe_layers[0] if len(moe_layers) > 1 else n_layers
    if moe_layers == list(range(moe_layers[0], n_layers, step)):
        return {"moe_first": moe_layers[0], "moe_step": step}
    return {"moe_layer_list": moe_layers}


def _experts(experts: Any, hidden: int) -> Facts:
    """Of one expert. Of experts that work in another width than `hidden`, what is over is said as biases."""
    down, every = experts.down_proj, list(experts.parameters())
    matrices = sum(p.numel() for p in every if p.dim() == 3) // down.numel()
    width = down.numel() // (len(down) * hidden)
    over = sum(p.numel() for p in every if p.dtype in PRECISIONS) // len(down) - matrices * hidden * width
    facts = {"expert_intermediate": width, "expert_matrices": matrices, "expert_biases": over}
    facts = facts if matrices in (2, 3) else {}
    return facts | ({"native_precision": PRECISIONS[down.dtype]} if down.dtype in PRECISIONS else {})


def _stack(model: nn.Module, layer: MoeLayer) -> list[nn.Module]:
    """All layers, dense ones too; none where the MoE layers are not numbered in a list."""
    name, number, _ = layer.name.rpartition(f".{layer.index}.")
    return list(model.get_submodule(name).children()) if number else []


def _ends(model: Any, stack: list[nn.Module], config: Any, hidden: int) -> Facts:
    """Embedding and LM head: two tensors of a row per word, or one."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    vocab = len(embedding.weight) if isinstance(embedding, nn.Embedding) else _number(config, "vocab_size")
    inside = {id(p) for layer in stack for p in layer.parameters()}
    ends = [p for p in model.parameters() if tuple(p.shape) == (vocab, hidden) and id(p) not in inside]
    return {"vocab": vocab, "tied_embeddings": len(ends) == 1} if ends else {}


def _letters(config: Any, n_layers: int) -> str:
    """How each layer attends; none where the configuration has a word for it that is not known here."""
    types = _said(config, "layer_types")
    if types is None:
        return n_layers * ("w" if _number(config, "sliding_window") else "f")
    known = isinstance(types, list | tuple) and len(types) == n_layers and all(word in LETTERS for word in types)
    return "".join(LETTERS[word] for word in types) if known else ""


# --- what a layer holds


def _of_layers(stack: list[nn.Module], letters: str, facts: Facts, config: Any) -> Facts:
    """Feed-forward networks, and all else, by the mean over the layers that have it. Networks that only some of the
    layers without experts have are of the rest."""
    hidden, matrix = facts["hidden"], facts["expert_matrices"] * facts["hidden"]
    moe = [any(is_experts(m) for m in layer.modules()) for layer in stack]
    sizes = [sum(_networks(layer, hidden)) for layer in stack]
    shared = _mean([size for size, routed in zip(sizes, moe, strict=True) if routed]) // matrix
    alone = [size for size, routed in zip(sizes, moe, strict=True) if not routed]
    dense = _mean(alone) // matrix if all(alone) else 0
    gate = facts["n_experts"] > 1 and any(_gated(layer, hidden) for layer in stack)
    routed_too = hidden * facts["n_experts"] + matrix * shared + (hidden if gate else 0)
    rest = [
        sum(p.numel() for p in layer.parameters()) - _routed(layer) - 2 * hidden - (routed_too if m else matrix * dense)
        for layer, m in zip(stack, moe, strict=True)
    ]
    found: Facts = {"shared_intermediate": shared, "shared_gate": gate} if shared else {}
    found |= {"n_shared_experts": _number(config, *SHARED) or 1} if shared else {}
    found |= {} if all(moe) else {"dense_intermediate": dense}
    return found | _by_kind(rest, letters)


def _by_kind(rest: list[int], letters: str) -> Facts:
    """attn_params_per_layer are those of full attention, or of the first kind that there is."""
    sizes = {
        letter: max(0, _mean([n for n, of in zip(rest, letters, strict=True) if of == letter])) for letter in letters
    }
    usual = next((letter for letter in "fswl" if letter in sizes), None)
    if usual is None:
        return {}
    other = {KINDS[a]: n for a, n in sizes.items() if n != (0 if a == "-" else sizes[usual])}
    return {"attn_params_per_layer": sizes[usual], **({"attn_params_by_kind": other} if other else {})}


def _mean(sizes: list[int]) -> int:
    return round(sum(sizes) / len(sizes)) if sizes else 0


def _routed(layer: nn.Module) -> int:
    """Parameters of all its routed experts."""
    experts = [m for m in layer.modules() if is_experts(m)]
    return sum(p.numel() for m in experts for p in m.parameters() if p.dtype in PRECISIONS)


def _networks(module: nn.Module, hidden: int) -> Iterator[int]:
    """Sizes of the feed-forward networks inside: the outermost modules of 2 or 3 matrices to one width and back."""
    matrices = [tuple(p.shape) for p in module.parameters() if p.dim() > 1]
    if _is_network(matrices, hidden):
        yield sum(map(math.prod, matrices))
        return
    for name, child in module.named_children():
        if not is_experts(child) and not any(word in name for word in ("attn", "attention", "norm")):
            yield from _networks(child, hidden)


def _is_network(matrices: list[tuple[int, ...]], hidden: int) -> bool:
    if len(matrices) not in (2, 3) or any(len(shape) != 2 or hidden not in shape for shape in matrices):
        return False
    widths = [math.prod(shape) // hidden for shape in matrices]
    return sum(widths) in (2 * min(widths), 3 * min(widths)) and min(widths) > 1


def _gated(layer: nn.Module, hidden: int) -> bool:
    """Whether one vector scales what shared experts put out."""
    return any(tuple(p.shape) == (1, hidden) for p in layer.parameters())


# --- what attention keeps


def _attention(stack: list[nn.Module], letters: str, config: Any) -> Facts:
    """Heads and what a token's entry takes; without its size where no shape and no configuration says it."""
    first = {letter: stack[letters.index(letter)] for letter in letters}
    entries = {letter: _entry(layer, config) for letter, layer in first.items() if letter in "fsw"}
    usual = next((letter for letter in "fsw" if entries.get(letter)), None)
    heads = _number(config, "num_attention_heads")
    facts: Facts = {"attention_pattern": _period(letters), **_windows(letters, config)}
    facts |= {"linear_state_bytes": size} if "l" in first and (size := _state(first["l"])) else {}
    if usual is None or heads is None or not all(entries.values()):
        return facts
    values, latent, qk, v = entries[usual] or (0, False, 0, 0)
    facts |= {"attention": "mla" if latent else "gqa", "n_heads": heads, "qk_dim": qk, "v_dim": v}
    facts |= {"kv_bytes_per_token_per_layer": KV_BYTES * values}
    near = entries.get("w")
    other = near is not None and near[0] != values
    return facts | ({"window_kv_bytes_per_token_per_layer": KV_BYTES * near[0]} if near and other else {})


def _entry(layer: nn.Module, config: Any) -> tuple[int, bool, int, int] | None:
    """(values of a token's entry, whether it is latent, values that a head multiplies for its score, and for its sum).

    Of latent attention in its absorbed form: the latent and the rotary part, and the latent alone.
    """
    weights = {name.rpartition(".weight")[0].rpartition(".")[2]: p for name, p in layer.named_parameters()}
    latent, rank = weights.get("kv_a_proj_with_mqa"), _number(config, "kv_lora_rank")
    if latent is not None and rank is not None:
        return len(latent), True, len(latent), rank
    heads = _number(config, "num_key_value_heads", "num_attention_heads")
    told = next((n for m in layer.modules() if (n := _number(m, "head_dim"))), None) or _number(config, "head_dim")
    if (key := weights.get("k_proj")) is not None and heads is not None:
        value, head = weights.get("v_proj", key), told or len(key) // heads
        return len(key) + len(value), False, head, head * len(value) // len(key)
    return None if heads is None or told is None else (2 * heads * told, False, told, told)


def _windows(letters: str, config: Any) -> Facts:
    """How many entries windows and sparse layers read, and the keys that sparse ones choose by."""
    window = _number(config, "sliding_window", "attention_chunk_size") if "w" in letters else None
    window = _number(config, "index_topk") if "s" in letters and window is None else window
    index = _number(config, "index_head_dim") if "s" in letters else None
    facts = {} if window is None else {"window": window}
    return facts | ({} if index is None else {"index_bytes_per_token": KV_BYTES * index})


def _state(layer: nn.Module) -> int | None:
    """Bytes that a linear layer keeps of a sequence: a recurrent state in float32, and what its convolution looks back
    at; None where its module does not say."""
    convolutions = [m for m in layer.modules() if isinstance(m, nn.Conv1d)]
    back = sum(KV_BYTES * m.weight.shape[0] * (m.kernel_size[0] - 1) for m in convolutions)
    told = ([_number(module, name) for name in names] for names in STATES for module in layer.modules())
    return next((4 * math.prod(n for n in sizes if n) + back for sizes in told if all(sizes)), None)


def _period(letters: str) -> str:
    """The shortest part that repeats to all of it."""
    size = next(n for n in range(1, len(letters) + 1) if (letters[:n] * len(letters))[: len(letters)] == letters)
    return letters[:size]
