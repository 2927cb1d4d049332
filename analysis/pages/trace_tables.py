"""What the paper's figures show, from a routing trace: activation skew, co-activation, q mass over rank.

After BuddyMoE, arXiv 2511.10054, which motivates buddies by a co-activation heatmap, a similarity heatmap (its Fig. 4)
and the skew of activations, and cuts its lists where the mass of q(j|i) reaches a threshold.
Sizes: L MoE layers, E experts per layer.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.fit.coactivation import CoActivation, co_activation, conditional
from traces.format.trace import RoutingTrace
from traces.statistics.counts import expert_counts

Float = npt.NDArray[np.float64]

MAX_TOKENS = 50_000  # pairs are counted over at most so many tokens, evenly spread: enough for a picture
MAX_CELLS = 30_000_000  # entries of [L, E, E] that are counted at all


@dataclass(frozen=True)
class Spread:
    """A figure by rank: middle [n] and the 10th and 90th percentiles [n] of what is spread (layers, or experts)."""

    middle: Float
    low: Float
    high: Float

    @staticmethod
    def of(rows: Float) -> "Spread":
        """Over the first axis of [m, n]."""
        low, middle, high = np.quantile(rows, [0.1, 0.5, 0.9], axis=0)
        return Spread(middle, low, high)


def skew(trace: RoutingTrace) -> Spread:
    """Share of a layer's uses by popularity rank [E], spread over the layers in use."""
    counts = expert_counts(trace).astype(np.float64)
    counts = counts[counts.sum(axis=1) > 0]
    ranked = -np.sort(-counts, axis=1)
    return Spread.of(ranked / ranked.sum(axis=1, keepdims=True))


def counted(trace: RoutingTrace) -> CoActivation | None:
    """Pair counts of the trace, over at most MAX_TOKENS tokens; None where no pair can be counted or drawn."""
    n = trace.n_experts
    if n < 2 or trace.top_k < 2 or trace.n_moe_layers * n * n > MAX_CELLS:
        return None
    rows = np.zeros(trace.n_tokens, np.bool_)
    rows[np.linspace(0, trace.n_tokens - 1, min(trace.n_tokens, MAX_TOKENS)).round().astype(np.int64)] = True
    return co_activation(trace, rows=rows)


def together(found: CoActivation) -> Float:
    """P(j wanted | i wanted) in one layer: float64 [L, E, E], NaN on the diagonal and for experts never wanted."""
    share = np.full(found.m.shape, np.nan)
    np.divide(found.m, found.uses[:, :, None], out=share, where=found.uses[:, :, None] > 0)
    np.einsum("lii->li", share)[...] = np.nan
    return share


def q_mass(found: CoActivation) -> Spread:
    """The mass sum of q(j|i) over the t best peers of an expert, t = 1 .. E - 1, spread over the experts of all layers
    that were ever wanted with another."""
    q = conditional(found.m)
    off = found.m.sum(axis=2) - found.uses
    ranked = -np.sort(-q, axis=2)[:, :, :-1]
    mass = np.cumsum(ranked, axis=2)[off > 0]
    return Spread.of(mass if len(mass) else np.cumsum(np.full((1, q.shape[1] - 1), 1 / (q.shape[1] - 1)), axis=1))
