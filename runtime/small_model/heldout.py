"""Held-out bits per byte of a decoder, and how evenly its experts are used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.small_model.model import MoeDecoder
from runtime.small_model.text import FILE_ID, Ids

WINDOWS_AT_ONCE = 16


@contextmanager
def counted_experts(model: MoeDecoder) -> Iterator[Tensor]:
    """While open, the yielded int64 `[layers, experts]` counts (on the CPU) the slots routed to each."""
    counts = torch.zeros(len(model.layers), model.config.num_experts, dtype=torch.int64)

    def counter(layer: int) -> Any:
        def hook(_module: Any, routed: tuple[Tensor, Tensor, Tensor]) -> None:
            counts[layer] += torch.bincount(routed[1].flatten(), minlength=counts.shape[1]).cpu()

        return hook

    handles = [block.experts.register_forward_pre_hook(counter(i)) for i, block in enumerate(model.moe_blocks)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def evaluate(model: MoeDecoder, stream: Ids, n_bytes: int) -> tuple[float, Tensor]:
    """Bits per byte of a stream of whole files (`text.encode`), and each expert's load in slots.

    Every token but the file tokens is predicted exactly once, in windows that do not overlap (so the first of
    a window has a context of one token): the bits of all of them over the `n_bytes` of the text. The load is
    int64 `[layers, experts]`.
    """
    device = model.embed_tokens.weight.device
    nats, training = 0.0, model.training
    model.eval()
    with counted_experts(model) as counts:
        for piece in _windows(stream, model.config.max_position_embeddings):
            windows = torch.from_numpy(piece).to(device)
            logits, _ = model(windows[:, :-1])
            scores, targets = logits.flatten(0, 1).float(), windows[:, 1:].flatten()
            nats += F.cross_entropy(scores, targets, reduction="sum", ignore_index=FILE_ID).item()
    model.train(training)
    return nats / math.log(2) / n_bytes, counts


def _windows(stream: Ids, context: int) -> Iterator[Ids]:
    """Batches of windows `[<= 16, context + 1]`, each sharing a token with the next; the short rest last."""
    whole = (len(stream) - 1) // context
    starts = np.arange(whole)[:, None] * context
    for i in range(0, whole, WINDOWS_AT_ONCE):
        yield stream[starts[i : i + WINDOWS_AT_ONCE] + np.arange(context + 1)]
    if len(rest := stream[whole * context :]) > 1:
        yield rest[None]


def share_of_fair(counts: Tensor) -> list[list[float]]:
    """Each expert's slots over what it would have if all had as many (1.0 is even), `[layers][experts]`."""
    rows: list[list[float]] = (counts / counts.sum(1, keepdim=True) * counts.shape[1]).tolist()
    return [[round(x, 4) for x in row] for row in rows]
