"""Which experts the next MoE layers will want: everything that is known, learned or looked up before a run.

Whole trace in, ranked lists out (`Prediction`), in numpy. `sim.prepare` adds the budget and the transfer order.
Use:

    predictor = PREDICTORS["popular"](distance=2)
    predictor.fit(calibration)                      # where predictor.fitted
    prediction = predictor.predict(trace, schedule(trace))

At visit v the machine asks, for d = 1 .. distance, for the lists of the tokens of visit v + d: of this step,
or, behind the last MoE layer, of the next one. Except for oracles a list depends on the calibration trace and
on routing up to v alone.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from sim.fit.activation import ActivationMatrix
from sim.fit.errors import FitError
from sim.fit.lookahead import GateLookahead, Learned
from sim.fit.prediction import (
    CHUNK_ELEMENTS,
    Ids,
    Int,
    Prediction,
    Predictor,
    check,
    check_fitted,
    identity_rows,
    ids,
    leading_requests,
    length,
    measured,
    ranked,
    shape,
    share,
    unfitted,
    whole,
)
from sim.fit.transition import Transition
from sim.steps import Steps, schedule
from traces.format.trace import RoutingTrace, hash64
from traces.statistics.stats import expert_counts

__all__ = ["PREDICTORS", "FitError", "Prediction", "Predictor"]

_ID = np.uint64((1 << 15) - 1)  # low bits of a sort key that hold an expert id
_NONE = np.uint64(2**64 - 1)


class Popular:
    """Each layer's most used experts in calibration, the same list at all times.

    distance   look 1 .. distance MoE layers ahead; at most the MoE layers of the trace.
    width      entries of a list; None = the trace's top-k; never more than its experts.

    Ties go to the lower id; an expert that calibration never uses is not listed. The first row of a step
    holds the list.
    """

    name: ClassVar[str] = "popular"
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = True
    oracle: ClassVar[bool] = False
    source: ClassVar[str] = "expert popularity from calibration data: Fiddler, arXiv 2402.07033"

    def __init__(self, *, distance: int = 1, width: int | None = None) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.width = None if width is None else whole(self.name, "width", width)

    def fit(self, trace: RoutingTrace) -> Self:
        """Learns ranking_ int16 [L, m] and rank_key_ int64 [D, m]."""
        check(self, trace)
        self.shape_ = shape(trace)
        self.ranking_: Ids = ranked(expert_counts(trace), length(self.width, trace))
        part = leading_requests(trace)
        self.rank_key_: Int = measured(self._predict(part, schedule(part, as_decode=True)), part)
        return self

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [1, 1, L, m]. Raises FitError before `fit`, or for another model shape than
        calibration's."""
        check_fitted(self, trace)
        return replace(self._predict(trace, steps), rank_key=self.rank_key_)

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        row = np.full(trace.n_tokens, -1, np.int32)
        row[steps.row[steps.offset[:-1]]] = 0
        return Prediction(self.ranking_[None, None], np.broadcast_to(row, (self.distance, len(row))))


class PreviousToken:
    """What the same request's last token of an earlier step used at the same layer.

    distance   look 1 .. distance MoE layers ahead; at most the MoE layers of the trace.
    width      entries of a list; None = the trace's top-k, which it never exceeds.

    Ranked by slot. A request has one list per step, held by its first row there. Lists are a view of
    `experts`.
    """

    name: ClassVar[str] = "previous-token"
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = False
    oracle: ClassVar[bool] = False
    source: ClassVar[str] = "temporal locality of routing: Mixtral of Experts, arXiv 2401.04088, section 5"

    def __init__(self, *, distance: int = 1, width: int | None = None) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.width = None if width is None else whole(self.name, "width", width)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [1, T, L, m], no copy of int16 experts."""
        check(self, trace)
        row = steps.previous_rows(trace.sequence)
        return unfitted(ids(trace.experts)[None, :, :, : self.width], np.broadcast_to(row, (self.distance, len(row))))


class Oracle:
    """What the target layer will want, known beforehand: the bound of every prefetcher. Reads the future.

    distance   look 1 .. distance MoE layers ahead; at most the MoE layers of the trace.
    width      entries of a list; None = the trace's top-k, which it never exceeds.

    Ranked by slot. Lists are a view of `experts`.
    """

    name: ClassVar[str] = "oracle"
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = False
    oracle: ClassVar[bool] = True
    source: ClassVar[str] = "this project"

    def __init__(self, *, distance: int = 1, width: int | None = None) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.width = None if width is None else whole(self.name, "width", width)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [1, T, L, m], no copy of int16 experts."""
        check(self, trace)
        lists = ids(trace.experts)[None, :, :, : self.width]
        return unfitted(lists, identity_rows(self.distance, trace.n_tokens))


class NoisyOracle:
    """An oracle of set recall and precision: what would such a predictor be worth? Reads the future.

    distance   look 1 .. distance MoE layers ahead; at most the MoE layers of the trace.
    recall     chance of each wanted expert to be listed, in [0, 1].
    precision  expected share of right entries among all entries of the trace, in (0, 1].
    seed       of the noise.
    width      None = lists are whole; a number cuts them, and then they no longer have the quality asked for.

    For token t and MoE layer l, with v = t L + l and n wanted experts: a wanted expert e is listed where
    hash64(seed, v, e) / 2^64 < recall. Of the others, those of lowest hash64(seed, v, e) are listed: x =
    n recall (1 - precision) / precision of them in expectation, floor(x), and one more where
    hash64(seed, v, 2E) / 2^64 < x - floor(x). The list is ranked by hash64(seed, v, E + e), right and wrong
    mixed (all three in the 49 high bits, 53 for chances). Every distance sees the same list.
    """

    name: ClassVar[str] = "noisy-oracle"
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = False
    oracle: ClassVar[bool] = True
    source: ClassVar[str] = "this project"

    def __init__(
        self,
        *,
        distance: int = 1,
        recall: float = 0.9,
        precision: float = 0.9,
        seed: int = 0,
        width: int | None = None,
    ) -> None:
        self.distance = whole(self.name, "distance", distance)
        self.recall = share(self.name, "recall", recall)
        self.precision = share(self.name, "precision", precision, zero=False)
        self.seed = whole(self.name, "seed", seed, least=0)
        self.width = None if width is None else whole(self.name, "width", width)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """Lists int16 [1, T, L, m]. Raises FitError where the trace has too few experts to be wrong as often
        as asked."""
        check(self, trace)
        tokens, layers, k = trace.experts.shape
        per_right = self.recall * (1 - self.precision) / self.precision
        spare = trace.n_experts - k
        if k * per_right > spare:
            raise FitError(
                f"{self.name}: precision {self.precision} asks for {k * per_right:.3g} wrong experts a list; "
                f"there are {spare} beside the {k} right ones"
            )
        most = math.ceil(k * per_right)
        lists = np.empty((1, tokens, layers, min(self.width or k + most, k + most)), np.int16)
        size = max(1, CHUNK_ELEMENTS // (8 * layers * trace.n_experts))
        for lo in range(0, tokens, size):
            experts = ids(trace.experts[lo : lo + size])
            visit = np.arange(lo * layers, (lo + len(experts)) * layers).reshape(-1, layers)
            found = self._noisy(experts, visit, trace.n_experts, per_right, most)
            lists[0, lo : lo + size] = found[:, :, : lists.shape[3]]
        return unfitted(lists, identity_rows(self.distance, tokens))

    def _noisy(self, experts: Ids, visit: Int, n: int, per_right: float, most: int) -> Ids:
        """int16 [N, L, K + most] for experts [N, L, K] and their hash numbers [N, L]."""
        own = hash64(self.seed, visit[:, :, None], experts.astype(np.int64))
        listed = [np.where((experts >= 0) & (_chance(own) < self.recall), experts, -1)]
        if most:
            expected = (experts >= 0).sum(axis=2) * per_right
            extra = _chance(hash64(self.seed, visit, 2 * n)) < expected - np.floor(expected)
            wanted = np.floor(expected).astype(np.int64) + extra
            wrong = self._others(experts, visit, n, most)
            listed.append(np.where(np.arange(most) < wanted[:, :, None], wrong, -1))
        expert = np.concatenate(listed, axis=2).astype(np.int64)
        key = _keyed(hash64(self.seed, visit[:, :, None], n + expert), expert)
        key = np.sort(np.where(expert >= 0, key, _NONE), axis=2)
        return np.where(key == _NONE, -1, (key & _ID).astype(np.int64)).astype(np.int16)

    def _others(self, experts: Ids, visit: Int, n: int, most: int) -> Int:
        """int64 [N, L, most]: of the experts that are not wanted, those of lowest hash."""
        every = np.arange(n)
        key = np.empty((*visit.shape, n + 1), np.uint64)  # the last column, also number -1, is no expert
        key[:, :, :n] = _keyed(hash64(self.seed, visit[:, :, None], every), every)
        np.put_along_axis(key, experts.astype(np.int64), _NONE, axis=2)
        lowest = np.sort(np.partition(key[:, :, :n], most - 1, axis=2)[:, :, :most], axis=2)
        return (lowest & _ID).astype(np.int64)


def _chance(hashed: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """float64 in [0, 1) from a hash."""
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _keyed(hashed: npt.NDArray[np.uint64], expert: Int) -> npt.NDArray[np.uint64]:
    """A hash whose low bits are the expert's id, so that sorting keys sorts experts."""
    return (hashed & ~_ID) | (expert.astype(np.uint64) & _ID)


PREDICTORS: dict[str, type[Any]] = {
    each.name: each
    for each in (
        Popular,
        PreviousToken,
        Transition,
        GateLookahead,
        Learned,
        ActivationMatrix,
        Oracle,
        NoisyOracle,
    )
}
