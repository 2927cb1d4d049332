"""How much worse a model has become: per token against the unmodified one, with intervals over sequences.

The two models are given the same tokens step by step, so every figure is paired. Intervals are percentile bootstrap
intervals (Efron 1979) over sequences, paired too: one draw of sequences serves both models. FIGURES are the one
definition of each figure, of whatever sums: by sequence here, by file in the study (`study_statistics`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from runtime.closed_loop.clusters import Figure, Files, Float

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 95


@dataclass
class Sums:
    """Sums over the predicted tokens of each sequence, float64 [N] each: tokens, bytes; nats of the unmodified and of
    the modified model; KL divergence (unmodified || modified) in nats; tokens that each predicts right; tokens on
    whose best guess they agree."""

    tokens: Float
    n_bytes: Float
    base_nats: Float
    nats: Float
    kl: Float
    base_right: Float
    right: Float
    agree: Float

    @staticmethod
    def of(rows: list[dict[str, float]]) -> Sums:
        return Sums(**{f.name: np.array([row[f.name] for row in rows], np.float64) for f in fields(Sums)})


def compared(base: Tensor, logits: Tensor, targets: Tensor, n_bytes: int) -> dict[str, float]:
    """One sequence's sums: logits [M, V] of both models, what came next [M]."""
    a, b = base.double().log_softmax(-1), logits.double().log_softmax(-1)
    own = targets[:, None]
    best = a.argmax(-1)
    return {
        "tokens": len(targets),
        "n_bytes": n_bytes,
        "base_nats": -a.gather(-1, own).sum().item(),
        "nats": -b.gather(-1, own).sum().item(),
        "kl": max(0.0, (a.exp() * (a - b)).sum().item()),
        "base_right": (best == targets).sum().item(),
        "right": (b.argmax(-1) == targets).sum().item(),
        "agree": (b.argmax(-1) == best).sum().item(),
    }


FIGURES: dict[str, Figure] = {
    "perplexity": lambda s: np.exp(s["nats"] / s["tokens"]),
    "base_perplexity": lambda s: np.exp(s["base_nats"] / s["tokens"]),
    "perplexity_ratio": lambda s: np.exp((s["nats"] - s["base_nats"]) / s["tokens"]),
    "bits_per_byte": lambda s: s["nats"] / s["n_bytes"] / math.log(2),
    "base_bits_per_byte": lambda s: s["base_nats"] / s["n_bytes"] / math.log(2),
    "bits_per_byte_delta": lambda s: (s["nats"] - s["base_nats"]) / s["n_bytes"] / math.log(2),
    "bits_per_byte_percent": lambda s: 100 * (s["nats"] - s["base_nats"]) / s["base_nats"],
    "accuracy": lambda s: s["right"] / s["tokens"],
    "base_accuracy": lambda s: s["base_right"] / s["tokens"],
    "accuracy_delta": lambda s: (s["right"] - s["base_right"]) / s["tokens"],
    "kl_nats": lambda s: s["kl"] / s["tokens"],
    "agreement": lambda s: s["agree"] / s["tokens"],
}


def figures(sums: Sums, seed: int) -> dict[str, dict[str, float]]:
    """name -> {value, low, high}: the figure over all sequences and its 95 % interval over draws of sequences."""
    found = Files(len(sums.tokens), seed).estimates(FIGURES, asdict(sums))
    out = {}
    for name, each in found.items():
        low, high = each.percentile()
        out[name] = {"value": each.value, "low": low, "high": high}
    return out
