"""One training step: its options, its data, its learning rate, its update; all follow from its number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.small_model.model import MoeDecoder
from runtime.small_model.text import Ids
from traces.errors import UserError


@dataclass(frozen=True)
class TrainOptions:
    """What the trained weights depend on, beside the model's sizes and the text.

    Batches are of `batch` windows; `balance` times the mean balance loss over layers is added to the training
    loss (0.06 over six layers is Switch Transformer's 0.01 for each); `corpus_bytes` trains on a part of the
    text.
    """

    steps: int = 8_000
    batch: int = 8
    seed: int = 0
    learning_rate: float = 4e-3
    warmup: int = 200
    decay_share: float = 0.5
    weight_decay: float = 0.1
    balance: float = 0.06
    clip: float = 1.0
    threads: int = 1
    corpus_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "clip", "threads", "corpus_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be positive")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must not be negative")
        if not 0 < self.decay_share <= 1:
            raise UserError(f"decay_share is {self.decay_share}; it must be in (0, 1]")


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, context: int) -> tuple[int, Ids]:
    generator = np.random.default_rng([seed, epoch])
    return int(generator.integers(context)), generator.permutation(windows)


def batch_at(stream: Ids, step: int, options: TrainOptions, context: int) -> Tensor:
    """The windows of step `step`: int64 `[batch, context + 1]`.

    An epoch visits every window once in an order of its own; windows start at another phase in each epoch.
    """
    windows = (len(stream) - 1) // context - 1
    if windows < 1:
        raise UserError(f"the text has {len(stream)} tokens; it must have at least {2 * context + 1}")
    rows = []
    for i in range(step * options.batch, (step + 1) * options.batch):
        phase, order = _epoch(options.seed, i // windows, windows, context)
        start = phase + int(order[i % windows]) * context
        rows.append(stream[start : start + context + 1])
    return torch.from_numpy(np.stack(rows))


def learning_rate_at(step: int, options: TrainOptions) -> float:
    """Rise over `warmup` steps, stay, fall to zero over the last `decay_share` of the steps; all linearly."""
    rise = (step + 1) / max(1, options.warmup)
    fall = (options.steps - step) / (options.steps * options.decay_share)
    return options.learning_rate * min(1.0, rise, fall)


def make_optimizer(model: MoeDecoder, options: TrainOptions) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)


def train_step(
    model: MoeDecoder, optimizer: torch.optim.AdamW, windows: Tensor, step: int, options: TrainOptions
) -> tuple[Tensor, Tensor]:
    """One update on `windows [B, T + 1]`; returns the mean nats per token and the balance loss, detached."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, options)
    logits, balance = model(windows[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    (nats + options.balance * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
    optimizer.step()
    return nats.detach(), balance.detach()
