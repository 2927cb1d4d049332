"""A small Mixture-of-Experts decoder whose routing is real because it was trained (`runtime.train`).

The architecture and the names of its tensors are those of Qwen3-MoE in Hugging Face transformers (pre-norm,
rotary positions, q/k norm, softmax router over all experts, top-k weights renormalised, SwiGLU experts kept
as two 3-D tensors), so that what is written for such models applies to this one.

The place to look at, or to change, routing is the call of `MoeBlock.experts(hidden, ids, weights)`:

* to record: `model.moe_blocks[i].experts.register_forward_pre_hook(f)`; `f(module, (hidden, ids, weights))`
  sees what is routed, and a forward hook on `moe_blocks[i].gate` sees the raw logits of all experts;
* to let a cache policy change which experts run: return other `(hidden, ids, weights)` from that pre-hook, or
  put another module with the same call in its place (one that holds only the resident experts' slices,
  say). An id of -1 is a dropped slot: it adds nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from traces.command import write_bytes
from traces.errors import UserError

# the shipped checkpoints, each with its vocabulary and how it was made
FOLDERS = {name: Path(__file__).parents[1] / name.replace("-", "_") for name in ("tiny-moe", "tiny-moe-8")}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the decoder; the field names are Qwen3-MoE's. UserError where they cannot be built."""

    vocab_size: int = 2048
    hidden_size: int = 160
    num_hidden_layers: int = 6
    num_attention_heads: int = 5
    num_experts: int = 32
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 48
    max_position_embeddings: int = 256
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"model config: {name} is {value!r}; it must be a positive number")
            if isinstance(value, float) and name not in ("rope_theta", "rms_norm_eps"):
                raise UserError(f"model config: {name} is {value!r}; it must be whole")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"model config: hidden_size is {self.hidden_size}; "
                f"it must be a multiple of 2 x num_attention_heads = {2 * self.num_attention_heads}"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise UserError(
                f"model config: num_experts_per_tok is {self.num_experts_per_tok}; "
                f"it must be at most num_experts = {self.num_experts}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Router(nn.Module):
    """Softmax over all experts, the top-k kept and renormalised to sum to one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden [N, H]` -> raw logits `[N, E]`; router weights and expert ids `[N, k]`, best first."""
        logits = F.linear(hidden, self.weight)
        top, ids = logits.float().softmax(-1).topk(self.top_k, dim=-1)
        return logits, (top / top.sum(-1, keepdim=True)).to(hidden.dtype), ids


class Experts(nn.Module):
    """A layer's experts: `gate_up_proj [E, 2I, H]` and `down_proj [E, H, I]`; expert e is slice e of both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        e, i, h = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(e, 2 * i, h))
        self.down_proj = nn.Parameter(torch.empty(e, h, i))

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the routed experts' outputs.

        `hidden [N, H]`, `ids` int `[N, k]` (-1: dropped), `weights [N, k]` -> `[N, H]`. Slots are sorted by
        expert, each expert runs once on its rows. `unbind` and `split` rather than indexing where gradients are
        wanted: the backward of `w[e]` would fill a zero tensor of all experts' size for every expert.
        """
        flat = ids.reshape(-1)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat + 1, minlength=len(self.down_proj) + 1).tolist()
        order, counts = order[counts[0] :], counts[1:]
        rows = order // ids.shape[1]
        gate_up, down = (p.unbind() if torch.is_grad_enabled() else p for p in (self.gate_up_proj, self.down_proj))
        active = [e for e, n in enumerate(counts) if n]
        parts = [
            F.linear(_swiglu(F.linear(x, gate_up[e])), down[e])
            for e, x in zip(active, torch.split(hidden[rows], [counts[e] for e in active]), strict=True)
        ]
        if not parts:
            return torch.zeros_like(hidden)
        out = torch.cat(parts) * weights.reshape(-1)[order].unsqueeze(-1)
        return torch.zeros_like(hidden).index_add(0, rows, out)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class MoeBlock(nn.Module):
    """Router, then `experts(hidden, ids, weights)`: see the module's text for the hook point."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(self, hidden: Tensor, balanced: bool = True) -> tuple[Tensor, Tensor]:
        """`hidden [..., H]` -> output of the same shape and this layer's load-balancing loss (a scalar; 0 where
        nobody asks for it: it costs a decode step a tenth of its time)."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits, weights, ids = self.gate(flat)
        out: Tensor = self.experts(flat, ids, weights)
        return out.view_as(hidden), load_balancing_loss(logits, ids) if balanced else logits.new_zeros(())


def load_balancing_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """`E * sum_e f_e P_e`, f the share of slots, P the mean router probability: 1 when even, E at worst.

    Switch Transformer, arXiv 2101.03961, equation 4, over one layer's tokens (top-k slots counted alike).
    """
    n_experts = logits.shape[-1]
    share = torch.bincount(ids.reshape(-1), minlength=n_experts).to(torch.float32) / ids.numel()
    return n_experts * (share * logits.float().softmax(-1).mean(0)).sum()


class LayerCache:
    """Keys and values of one layer, `[B, heads, context, head_dim]` each, filled from the front."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (batch, config.num_attention_heads, config.max_position_embeddings, config.head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Everything so far, these at the end."""
        self.length, start = self.length + keys.shape[2], self.length
        self.keys[:, :, start : self.length], self.values[:, :, start : self.length] = keys, values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KvCache:
    """What decoding keeps of `batch` sequences, to give to `MoeDecoder.forward` again and again."""

    def __init__(self, model: MoeDecoder, batch: int = 1) -> None:
        like = model.embed_tokens.weight.detach()
        self.layers = [LayerCache(model.config, batch, like) for _ in model.layers]

    @property
    def length(self) -> int:
        """Positions that it holds."""
        return self.layers[0].length


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions and normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(h, h, bias=False)
        self.k_proj = nn.Linear(h, h, bias=False)
        self.v_proj = nn.Linear(h, h, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], past: LayerCache | None = None) -> Tensor:
        batch, length, size = hidden.shape
        shape = (batch, length, self.heads, size // self.heads)
        q = rotate(self.q_norm(self.q_proj(hidden).view(shape)), rotary).transpose(1, 2)
        k = rotate(self.k_norm(self.k_proj(hidden).view(shape)), rotary).transpose(1, 2)
        v = self.v_proj(hidden).view(shape).transpose(1, 2)
        if past is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = past.extended(k, v)
            mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=k.device).tril(k.shape[2] - length)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if length == 1 else mask)
        result: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, size))
        return result


def rotary_table(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 `[context, 1, head_dim / 2]`."""
    half = config.head_dim // 2
    inverse = config.rope_theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    positions = torch.arange(config.max_position_embeddings, device=device, dtype=torch.float32)
    angle = positions[:, None] * inverse
    return angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (arXiv 2104.09864) in the halves layout, `x [B, T, heads, head_dim]`."""
    cos, sin = (t[: x.shape[1]].to(x.dtype) for t in rotary)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MoeBlock(config)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], past: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary, past)
        routed, balance = self.mlp(self.post_attention_layernorm(hidden), past is None)
        return hidden + routed, balance


class MoeDecoder(nn.Module):
    """Token ids in, logits of the next token out; embedding and head share one matrix."""

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        """Weights drawn from `seed`; None leaves them unset, for a checkpoint to fill."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rotary: tuple[Tensor, Tensor] | None = None
        if seed is not None:
            self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Normal weights, scaled down by depth where they write into the residual stream (GPT-2's rule).

        The router starts near indifference: one that prefers at random starves experts before balance can
        act.
        """
        generator = torch.Generator().manual_seed(seed)
        deep = (2 * self.config.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() < 2:
                p.fill_(1.0)
                continue
            scale = 0.02 if "embed" in name or "gate.weight" in name else p.shape[-1] ** -0.5
            into_residual = "o_proj" in name or "down_proj" in name
            p.normal_(0.0, scale * (deep if into_residual else 1.0), generator=generator)

    @property
    def decoder_layers(self) -> list[Layer]:
        """Its layers in order."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def moe_blocks(self) -> list[MoeBlock]:
        """The MoE layers in order: where to hook."""
        return [layer.mlp for layer in self.decoder_layers]

    def forward(self, tokens: Tensor, past: KvCache | None = None) -> tuple[Tensor, Tensor]:
        """`tokens` int `[B, T]` -> logits `[B, T, V]`, mean load-balancing loss over layers (a scalar).

        With `past` the tokens follow those that it holds, and are added to it; the loss is 0 then.
        """
        start = 0 if past is None else past.length
        end = start + tokens.shape[1]
        if end > self.config.max_position_embeddings:
            raise UserError(
                f"tokens has {end} positions; "
                f"it must have at most max_position_embeddings = {self.config.max_position_embeddings}"
            )
        if self._rotary is None or self._rotary[0].device != tokens.device:
            self._rotary = rotary_table(self.config, tokens.device)
        rotary = (self._rotary[0][start:end], self._rotary[1][start:end])
        hidden = self.embed_tokens(tokens)
        losses = []
        for i, layer in enumerate(self.layers):
            hidden, balance = layer(hidden, rotary, None if past is None else past.layers[i])
            losses.append(balance)
        return F.linear(self.norm(hidden), self.embed_tokens.weight), torch.stack(losses).mean()


def save_checkpoint(folder: Path, model: MoeDecoder) -> None:
    """`config.json` and `model.safetensors` (float16) in `folder`, each replaced in one move."""
    weights = {name: p.detach().to("cpu", torch.float16).contiguous() for name, p in model.named_parameters()}
    text = json.dumps(_config_json(model.config), indent=1) + "\n"
    write_bytes(folder / "config.json", text.encode())
    write_bytes(folder / "model.safetensors", save(weights, {"format": "pt"}))


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> MoeDecoder:
    """The decoder that `save_checkpoint` wrote, in evaluation mode on the CPU.

    Raises UserError, naming the file and what is wrong, where a file is missing, is not what it should be,
    or its tensors are not those the configuration asks for. Nothing is allocated by what the configuration
    says: the model is laid out without memory and takes the file's own tensors.
    """
    path = folder / "model.safetensors"
    config, weights = read_config(folder / "config.json"), read_tensors(path)
    if config.num_hidden_layers > len(weights):
        raise UserError(f"{path}: {len(weights)} tensors; config.json asks for {config.num_hidden_layers} layers")
    with torch.device("meta"):
        model = MoeDecoder(config, seed=None)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name in sorted(wanted.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if found != wanted.get(name):
            raise UserError(f"{path}: {name} has shape {found}; it must be {wanted.get(name)}")
    model.load_state_dict(weights, assign=True)
    return model.to(dtype).eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; UserError where it is none."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: {error}; it must be a safetensors file") from error


def read_config(path: Path) -> ModelConfig:
    try:
        found = json.loads(path.read_text())
        return ModelConfig(**{f.name: found[f.name] for f in fields(ModelConfig)})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {error!r}; it must be a config.json written by runtime.train") from error


def _config_json(config: ModelConfig) -> dict[str, Any]:
    fixed = {"model_type": "moe_decoder", "norm_topk_prob": True, "tie_word_embeddings": True}
    return {**fixed, **asdict(config)}
