"""How alike the outputs of a layer's experts are, on real hidden states: for the similarity policy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.passages import Passages
from runtime.subject import Subject
from traces.capturing.routers import find_moe_layers

TOKENS = 512  # per layer


@torch.inference_mode()
def output_similarity(subject: Subject, text: Passages) -> npt.NDArray[np.float32]:
    """float32 [L, E, E]: mean cosine, over hidden states that reach the layer, of what two experts make of them."""
    seen: dict[int, list[Tensor]] = {}
    layers = find_moe_layers(subject.model)
    hooks = [
        layer.experts.register_forward_pre_hook(lambda _m, args, at=layer.place: seen.setdefault(at, []).append(args[0]))
        for layer in layers
    ]
    try:
        for tokens in map(torch.from_numpy, text.tokens):
            subject.forward(tokens, subject.fresh())
    finally:
        for hook in hooks:
            hook.remove()
    out = []
    for layer in layers:
        hidden = torch.cat(seen[layer.place])[:TOKENS]
        one = torch.ones(len(hidden), 1, dtype=hidden.dtype, device=hidden.device)
        each = [layer.experts(hidden, torch.full((len(hidden), 1), e, device=hidden.device), one) for e in range(layer.n_experts)]
        unit = torch.nn.functional.normalize(torch.stack(each, dim=1).float(), dim=-1)
        out.append(torch.einsum("teh,tfh->ef", unit, unit).div(len(hidden)).cpu().numpy())
    return np.stack(out).astype(np.float32)
