"""How much worse a model has become: per token against the unmodified one, with intervals over sequences.

The two models are given the same tokens step by step, so every figure is paired. Intervals are percentile bootstrap
intervals (Efron 1979) over sequences, paired too: one draw of sequences serves both models. FIGURES are the one
definition of each figure, of whatever sums: by sequence here, by file in the study (`study_statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runtime.closed_loop.clusters import Figure, Files, Float

if TYPE_CHECKING:
    from torch import Tensor

Ints = npt.NDArray[np.int64]
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
    def of(parts: Sequence[Sums]) -> Sums:
        """One after another."""
        return Sums(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Sums)})

    def by(self, group: Ints, n: int) -> dict[str, list[float]]:
        """name -> sums [n] over the sequences of each group; group int [N]."""
        return {f.name: np.bincount(group, getattr(self, f.name), n).tolist() for f in fields(Sums)}


def compared(base: Tensor, logp: Tensor, targets: Tensor, n_bytes: Ints) -> Sums:
    """The sums of sequences: log-probabilities [N, M, V] of both models, what came next [N, M], bytes of that [N]."""
    own, best, mine = targets[..., None], base.argmax(-1), logp.argmax(-1)
    kl = (base.exp() * (base - logp)).sum(-1).double().sum(-1).clamp_min(0)
    nats = [-lp.gather(-1, own).double().sum((1, 2)) for lp in (base, logp)]
    right, mine_right, agree = ((a == b).sum(1).double() for a, b in ((best, targets), (mine, targets), (mine, best)))
    return Sums(
        tokens=np.full(len(targets), targets.shape[1], np.float64),
        n_bytes=n_bytes.astype(np.float64),
        base_nats=nats[0].numpy(),
        nats=nats[1].numpy(),
        kl=kl.numpy(),
        base_right=right.numpy(),
        right=mine_right.numpy(),
        agree=agree.numpy(),
    )


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
