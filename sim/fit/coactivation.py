"""Which experts one token wants together: counts over a trace, and the conditional shares made from them.

S is the set of experts that a token is routed to at a layer. BuddyMoE (arXiv 2511.10054) counts, per layer,
A(i) = tokens with i in S and M(i, j) = tokens with both in S, and ranks the peers of i by
q(j|i) = M(i, j) / sum over j' != i of M(i, j'). Marks in this package: (P) is the paper's own wording,
(N) what its readers agree on, (I) ours.

Sizes: T tokens, L MoE layers, K top-k, E experts per layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from traces.format.trace import RoutingTrace

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

COUNTS = ("binary", "weighted", "mixed")
MAX_CELLS = 1 << 27  # entries of one [L, E, E] array: 1 GiB in float64; the largest models have 25 M
BLOCK_TOKENS = 1 << 13  # the pair ids of a block stay in the processor's cache
BLOCK_SLOTS = 1 << 20


@dataclass(frozen=True, eq=False)
class CoActivation:
    """What was counted.

    m           float64 [L, E, E], symmetric: M(i, j); the diagonal holds A(i).
    uses        float64 [L, E]: A(i).
    n_tokens    tokens counted, each with its weight: below the number of rows where warm-up counts less.
    mean_pairs  mean over layers and pairs i != j of the *binary* M(i, j), whatever `count` is: with every
                slot filled, n_tokens K (K - 1) / (E (E - 1)).
    """

    m: Float
    uses: Float
    n_tokens: float
    mean_pairs: float


def co_activation(
    trace: RoutingTrace,
    count: str = "binary",
    mix: float = 0.5,
    warmup: int = 0,
    warmup_weight: float = 0.5,
    decode_only: bool = False,
    rows: npt.ArrayLike | None = None,
) -> CoActivation:
    """Count pairs of experts over the tokens of a trace, in bounded memory beside the result.

    count          "binary": a token adds 1 to each pair it is routed to; "weighted": min(p_i, p_j), p = its
                   router weights renormalised over the slots present, nothing where they sum to 0 (both P);
                   "mixed": (1 - mix) binary + mix weighted, a layer's weighted counts first scaled to the
                   same total over i != j (P names both, how they mix is I: unscaled, min(p_i, p_j) is about
                   1 / K, and hardly anything of it would be left in the mixture).
    warmup         the first `warmup` tokens of each request count `warmup_weight` (0 .. 1) each
                   (P: a warm-up is weighted down; where it lies and by how much is I).
    decode_only    leave prompt tokens out. rows: bool [T], the tokens to count; None: all.

    Raises SpecError for a parameter out of range, weights that the trace lacks, no token left, or too many
    experts for an [L, E, E] array.
    """
    _check(trace, count, mix, warmup, warmup_weight)
    keep = _token_weights(trace, warmup, warmup_weight, decode_only, rows)
    binary, weighted = _count(trace, keep, count != "binary")
    total = _pair_total(binary)
    m = binary
    if weighted is not None:
        m = weighted if count == "weighted" else _mixed(binary, weighted, mix)
    n = trace.n_experts
    pairs = float(total.mean()) / max(1, n * (n - 1))
    uses = np.ascontiguousarray(np.diagonal(m, axis1=1, axis2=2))
    return CoActivation(m, uses, float(keep.sum()), pairs)


def _check(trace: RoutingTrace, count: str, mix: float, warmup: int, warmup_weight: float) -> None:
    if count not in COUNTS:
        raise SpecError(f"count is {count!r}; one of {', '.join(COUNTS)} is required")
    if not 0 <= mix <= 1:
        raise SpecError(f"mix is {mix}; the share of the weighted counts lies in [0, 1]")
    if warmup < 0:
        raise SpecError(f"warmup is {warmup}; a number of tokens >= 0 is required")
    if not 0 <= warmup_weight <= 1:
        raise SpecError(f"warmup_weight is {warmup_weight}; it lies in [0, 1]")
    if count != "binary" and trace.weights is None:
        raise SpecError(f"count {count!r} needs router weights, which this trace of {trace.model} lacks")
    check_cells(trace.n_moe_layers, trace.n_experts)


def check_cells(layers: int, experts: int) -> None:
    """Raise SpecError where an [L, E, E] array would be absurdly large, or has no pair of experts."""
    if experts < 2:
        raise SpecError(f"n_experts is {experts}; buddies need at least 2 experts in a layer")
    if layers * experts * experts > MAX_CELLS:
        raise SpecError(f"{layers} layers of {experts} experts: more than {MAX_CELLS:,} pairs are not counted")


def _token_weights(
    trace: RoutingTrace, warmup: int, warmup_weight: float, decode_only: bool, rows: npt.ArrayLike | None
) -> Float:
    """float64 [T]: how much each token counts."""
    first, last = trace.requests()
    place = np.arange(trace.n_tokens) - np.repeat(first, last - first)
    keep = np.where(place < warmup, float(warmup_weight), 1.0)
    if decode_only:
        keep[np.asarray(trace.prefill)] = 0
    if rows is not None:
        chosen = np.asarray(rows)
        if chosen.dtype != np.bool_ or chosen.shape != keep.shape:
            raise SpecError(f"rows has dtype {chosen.dtype}, shape {chosen.shape}; bool {keep.shape} is required")
        keep[~chosen] = 0
    if not keep.any():
        raise SpecError("no token is left to count: all are prompt tokens, warm-up of weight 0, or not chosen")
    return keep


def _count(trace: RoutingTrace, keep: Float, weighted: bool) -> tuple[Float, Float | None]:
    """Binary and, if asked for, weighted M: one pass over the trace, a block of tokens at a time."""
    n, k, layers = trace.n_experts, trace.top_k, trace.n_moe_layers
    sums = np.zeros((1 + weighted, layers, (n + 1) ** 2))
    # A histogram costs its length too, so blocks grow with it, as far as memory allows.
    step = max(1, min(max(BLOCK_TOKENS, n * n // 4), BLOCK_SLOTS // k))
    for lo in range(0, trace.n_tokens, step):
        counted = np.flatnonzero(keep[lo : lo + step])
        hold = keep[lo : lo + step][counted]
        share = None if (hold == 1).all() else hold
        routed = np.asarray(trace.experts[lo : lo + step])[counted]
        gates = np.asarray(trace.weights[lo : lo + step])[counted] if weighted and trace.weights is not None else None
        for layer in range(layers):
            ids = np.ascontiguousarray(routed[:, layer].T, np.int64)
            ids[ids < 0] = n  # absent slots count in a row and a column that are cut off at the end
            _add_pairs(sums[0, layer], ids, None, share)
            if gates is not None:
                _add_pairs(sums[1, layer], ids, _renormalised(gates[:, layer].T, ids < n), share)
    full = [_symmetric(s.reshape(layers, n + 1, n + 1)[:, :n, :n]) for s in sums]
    return full[0], full[1] if weighted else None


def _add_pairs(total: Float, ids: Int, odds: Float | None, share: Float | None) -> None:
    """Add each token's pairs of slots (a, b >= a) to `total` [(E + 1)^2].

    ids, odds [K, tokens]: experts and router weights (None: a pair counts 1); share [tokens]: of each token.
    """
    stride = round(len(total) ** 0.5)
    for a in range(len(ids)):
        key = (ids[a] * stride + ids[a:]).ravel()
        value = None if odds is None else np.minimum(odds[a], odds[a:])
        if share is not None:
            value = np.broadcast_to(share, ids[a:].shape) if value is None else value * share
        total += np.bincount(key, None if value is None else value.ravel(), len(total))


def _renormalised(gates: Array, present: npt.NDArray[np.bool_]) -> Float:
    """Router weights [K, tokens] as shares of the slots present; 0 where these sum to 0."""
    kept = np.where(present, gates, 0).astype(np.float64)
    total = kept.sum(axis=0)
    odds: Float = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
    return odds


def _symmetric(upper: Float) -> Float:
    """[L, E, E] whose entries (i, j) and (j, i) were counted apart, the diagonal once."""
    full = upper + upper.transpose(0, 2, 1)
    diagonal = np.einsum("lii->li", full)
    diagonal /= 2
    return full


def _pair_total(m: Float) -> Float:
    """float64 [L]: the sum over i != j."""
    total: Float = m.sum(axis=(1, 2)) - np.trace(m, axis1=1, axis2=2)
    return total


def _mixed(binary: Float, weighted: Float, mix: float) -> Float:
    have, want = _pair_total(weighted), _pair_total(binary)
    scale = np.divide(want, have, out=np.zeros_like(have), where=have > 0)
    return (1 - mix) * binary + mix * scale[:, None, None] * weighted


def conditional(m: Float, eps: float = 0.0) -> Float:
    """q(j|i), float64 [L, E, E]: each row sums to 1, the diagonal is 0 (BuddyMoE, P).

    The diagonal of `m` is dropped before normalising, and eps >= 0 added to every other entry (P: M + eps).
    A row without any mass is uniform over the peers, 1 / (E - 1): what eps tends to as it goes to 0 (I).
    Raises SpecError for eps that is negative or not finite, and for fewer than 2 experts.
    """
    if not 0 <= eps < np.inf:
        raise SpecError(f"eps is {eps}; a finite number >= 0 is required")
    n = m.shape[1]
    check_cells(m.shape[0], n)
    q = m + eps
    _clear_diagonal(q)
    q[q.sum(axis=2) == 0] = 1.0
    _clear_diagonal(q)
    q /= q.sum(axis=2, keepdims=True)
    return q


def _clear_diagonal(square: Float) -> None:
    np.einsum("lii->li", square)[...] = 0
