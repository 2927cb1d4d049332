"""Experts at layer l foretell those at layer l + d: a table of conditional probabilities."""

import math
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from sim.fit.counts import source_layer, transition_counts
from sim.fit.errors import FitError
from sim.fit.prediction import (
    CHUNK_ELEMENTS,
    Ids,
    Int,
    Prediction,
    check,
    check_fitted,
    identity_rows,
    leading_requests,
    length,
    measured,
    shape,
    whole,
)
from sim.steps import Steps, schedule
from traces.format.trace import RoutingTrace

_MOST_SETS = 1 << 16  # so many sets of source experts may be ranked beforehand


class Transition:
    """Experts that follow, in calibration, those of some MoE layers earlier (inter-layer co-activation).

    distance   look 1 .. distance MoE layers ahead; at most the MoE layers of the trace.
    width      entries of a list; None = the trace's top-k; never more than its experts.
    smoothing  weight of the prior, in counts.

    The score of expert j is the sum over the source's experts i of (n_ij + smoothing q_j) / (n_i +
    smoothing), with n_ij calibration tokens routed to j whose source named i, n_i their sum over j, q_j the
    share of j in all of them; ties go to the lower id, and an expert of score zero is not listed. The source
    of target layer l is the token's own routing at layer l - d; for l < d, that of the request's last row in
    an earlier step, at layer l - d + L, and then only the request's first row in a step has a list. Scores
    are sums of multiples of 2^-40 or coarser.
    """

    name: ClassVar[str] = "transition"
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = True
    oracle: ClassVar[bool] = False
    source: ClassVar[str] = "inter-layer expert affinity: ExFlow, arXiv 2401.08383"

    def __init__(self, *, distance: int = 1, width: int | None = None, smoothing: float = 1.0) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.width = None if width is None else whole(self.name, "width", width)
        if not isinstance(smoothing, int | float) or not 0 <= smoothing < math.inf:
            raise FitError(f"{self.name}: smoothing is {smoothing}; a finite number from 0 is required")
        self.smoothing = float(smoothing)

    def fit(self, trace: RoutingTrace) -> Self:
        """Learns counts_ int32 [D, L, E, E] and rank_key_ int64 [D, m], the latter on the first 65,536 rows
        or so."""
        check(self, trace)
        self.shape_ = shape(trace)
        counts = (transition_counts(trace, d + 1) for d in range(self.distance))
        self.counts_ = np.stack([each.astype(np.int32) for each in counts])
        part = leading_requests(trace)
        self.rank_key_: Int = measured(self._predict(part, schedule(part, as_decode=True)), part)
        return self

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [D, T, L, m]. Raises FitError before `fit`, or for another model shape than
        calibration's."""
        check_fitted(self, trace)
        return replace(self._predict(trace, steps), rank_key=self.rank_key_)

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        tokens, layers, m = trace.n_tokens, trace.n_moe_layers, length(self.width, trace)
        lists = np.full((self.distance, tokens, layers, m), -1, np.int16)
        previous = steps.previous_rows(trace.sequence)
        rows = np.flatnonzero(previous >= 0)
        for d in range(1, self.distance + 1):
            for layer in range(layers):
                at, earlier = source_layer(layer, d, layers)
                ranker = self.ranker(d, layer, m, tokens)
                if earlier:
                    lists[d - 1, rows, layer] = ranker(trace.experts[previous[rows], at])
                else:
                    lists[d - 1, :, layer] = ranker(trace.experts[:, at])
        return Prediction(lists, identity_rows(self.distance, tokens))

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
