"""Experts at layer l foretell those at layer l + d: a table of conditional probabilities."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sim.fit.prediction import CHUNK_ELEMENTS, FittedPredictor, Ids, Int, Prediction, length
from sim.policies.policy import From
from sim.steps import Steps
from traces.format.trace import RoutingTrace

_MOST_SETS = 1 << 16  # so many sets of source experts may be ranked beforehand


class Transition(FittedPredictor):
    """Experts that follow, in calibration, those of some MoE layers earlier (inter-layer co-activation).

    width      entries of a list; None = the trace's top-k; never more than its experts.
    smoothing  weight of the prior, in counts.

    The score of expert j is the sum over the source's experts i of (n_ij + smoothing q_j) / (n_i +
    smoothing), with n_ij calibration tokens routed to j whose source named i, n_i their sum over j, q_j the
    share of j in all of them; ties go to the lower id, and an expert of score zero is not listed. The source
    of target layer l is the token's own routing at layer l - d; for l < d, that of the request's last row in
    an earlier step, at layer l - d + L, and then only the request's first row in a step has a list. Scores
    are sums of multiples of 2^-40 or coarser.
    """

    name = "transition"
    source = "inter-layer expert affinity: ExFlow, arXiv 2401.08383"
    ranges: ClassVar[Mapping[str, From]] = {**FittedPredictor.ranges, "smoothing": From(0, whole=False)}

    def __init__(self, *, distance: int = 1, width: int | None = None, smoothing: float = 1.0) -> None:
        super().__init__(distance=distance, width=width)
        self.smoothing = float(self.in_range("smoothing", smoothing))

    def _learn(self, trace: RoutingTrace) -> None:
        counts = (transition_counts(trace, d + 1) for d in range(self.distance))
        self.counts_ = np.stack([each.astype(np.int32) for each in counts])  # [D, L, E, E]

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        tokens, layers, m = steps.row, trace.n_moe_layers, length(self.width, trace)
        lists = np.full((self.distance, len(tokens), layers, m), -1, np.int16)
        previous = steps.previous_rows(trace.sequence)
        rows = np.flatnonzero(previous >= 0)
        for d in range(1, self.distance + 1):
            for layer in range(layers):
                at, earlier = source_layer(layer, d, layers)
                ranker = self.ranker(d, layer, m, len(tokens))
                if earlier:
                    lists[d - 1, rows, layer] = ranker(trace.experts[previous[rows], at])
                else:
                    lists[d - 1, :, layer] = ranker(trace.experts[tokens, at])
        every = np.arange(len(tokens), dtype=np.int32)
        return Prediction(lists, np.broadcast_to(every, (self.distance, len(tokens))))

    def ranker(self, d: int, layer: int, m: int, tokens: int = 0) -> "_Ranker":
        """What ranks the m best experts of MoE layer `layer`, given those d layers earlier, for some tokens."""
        return _Ranker(self._scores(d, layer), self.shape_[2], m, tokens)

    def _scores(self, d: int, layer: int) -> npt.NDArray[np.float64]:
        """float64 [E, E]: smoothed probability of target j, given source i."""
        pairs = self.counts_[d - 1, layer].astype(np.float64)
        prior = pairs.sum(axis=0) / max(pairs.sum(), 1.0)
        given = pairs.sum(axis=1, keepdims=True) + self.smoothing
        scores: npt.NDArray[np.float64] = np.divide(
            pairs + self.smoothing * prior, given, out=np.zeros_like(pairs), where=given > 0
        )
        return scores


def pair_counts(source: npt.NDArray[Any], target: npt.NDArray[Any], n_experts: int) -> Int:
    """int64 [E, E] from integer [N, K] and [N, K'] (-1 none): lines naming i in `source`, j in `target`."""
    counts = np.zeros((n_experts + 1) ** 2, np.int64)
    size = max(1, CHUNK_ELEMENTS // max(1, source.shape[1] * target.shape[1]))
    for lo in range(0, len(source), size):
        i, j = (part[lo : lo + size].astype(np.int64) + 1 for part in (source, target))
        counts += np.bincount((i[:, :, None] * (n_experts + 1) + j[:, None, :]).reshape(-1), minlength=counts.size)
    return counts.reshape(n_experts + 1, n_experts + 1)[1:, 1:]


def source_layer(layer: int, distance: int, n_layers: int) -> tuple[int, bool]:
    """The MoE layer `distance` visits before `layer`, and whether it lies in the step before."""
    return (layer - distance, False) if layer >= distance else (layer - distance + n_layers, True)


def transition_counts(trace: RoutingTrace, distance: int) -> Int:
    """int64 [L, E, E]: by target layer l, tokens routed to j there whose source names i, `distance` MoE
    layers earlier: the same token's routing, or, where that lies before the first MoE layer, the previous
    token's of its request."""
    layers, n = trace.n_moe_layers, trace.n_experts
    out = np.zeros((layers, n, n), np.int64)
    rows = np.flatnonzero(trace.sequence[1:] == trace.sequence[:-1]) + 1
    for layer in range(layers):
        at, earlier = source_layer(layer, distance, layers)
        if earlier:
            out[layer] = pair_counts(trace.experts[rows - 1, at], trace.experts[rows, layer], n)
        else:
            out[layer] = pair_counts(trace.experts[:, at], trace.experts[:, layer], n)
    return out


class _Ranker:
    """The m best targets of a set of source experts. Few possible sets are ranked beforehand and looked up.

    A target's score and its id share one int64, so that sorting values ranks targets, ties to the lower id.
    """

    def __init__(self, scores: npt.NDArray[np.float64], k: int, m: int, tokens: int) -> None:
        self.n, self.k, self.m = len(scores), k, m
        self.id_bits = self.n.bit_length()
        fixed = np.round(scores * 2.0 ** min(40, 62 - self.id_bits - k.bit_length())).astype(np.int64)
        self.table = np.zeros((self.n + 1, self.n), np.int64)  # the last line, also number -1, is no source
        self.table[:-1] = fixed << self.id_bits
        self.sets: Ids | None = None
        if (self.n + 1) ** k <= min(_MOST_SETS, tokens):
            every = np.indices((self.n + 1,) * k).reshape(k, -1).T - 1
            self.sets = self._ranked(every)

    def __call__(self, source: npt.NDArray[Any]) -> Ids:
        """int16 [N, m] from expert ids [N, K]."""
        if self.sets is None:
            return self._ranked(source)
        number = source[:, 0].astype(np.intp) + 1
        for slot in range(1, self.k):
            number = number * (self.n + 1) + source[:, slot] + 1
        return self.sets[number]

    def _ranked(self, source: npt.NDArray[Any]) -> Ids:
        out = np.empty((len(source), self.m), np.int16)
        size = max(1, CHUNK_ELEMENTS // (8 * self.n))
        for lo in range(0, len(source), size):
            out[lo : lo + size] = self._best(source[lo : lo + size])
        return out

    def _best(self, source: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        score = self.table[source[:, 0]]
        for slot in range(1, self.k):
            score += self.table[source[:, slot]]
        score += np.arange(self.n)[::-1]
        if self.m < self.n:
            score = np.partition(score, self.n - self.m, axis=1)[:, self.n - self.m :]
        best = np.sort(score, axis=1)[:, ::-1]
        expert = self.n - 1 - (best & ((1 << self.id_bits) - 1))
        return np.where(best >> self.id_bits > 0, expert, -1)
