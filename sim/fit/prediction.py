"""What a predictor hands over, and what all predictors check, count and measure alike.

Sizes: T trace tokens, R rows of the steps, L MoE layers, K top-k, E experts per layer, D distances, m entries of a
list.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.policies.policy import From
from sim.steps import Steps, schedule
from traces.format.trace import RoutingTrace

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int16]
Int = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]

CHUNK_ELEMENTS = 1 << 20
DISTANCES = (1, 2, 3)  # worth trying
MEASURED_ROWS = 1 << 16
CERTAIN = 10**9  # rank keys of fitted predictors: CERTAIN x (1 - share of entries that were right)


@dataclass(frozen=True)
class Prediction:
    """Ranked lists of predicted experts, best first, -1 = no entry: a plan's Prefetch but for its policy.

    lists     int16 [D or 1, rows, L, m]: `lists[min(d, n) - 1, row[d - 1, i], l]` is what is predicted, d MoE
              layers ahead, for row i of the steps at MoE layer l (i is a row of the target step).
    row       int32 [D, R]: which row of the lists of that distance belongs to a row of the steps; -1 = none.
    rank_key  int64 [D, m]: lower = more probable, for list rank r at distance d.
    """

    lists: Ids
    row: Rows
    rank_key: Int = field(default_factory=lambda: np.zeros((0, 0), np.int64))


class Predictor:
    """What every predictor has. `needs`: optional arrays of the trace that it reads; `oracle`: it reads the future;
    `drafts`: its lists are of speculative windows; `search`, `ranges`: see sim.policies.policy.Policy.

    distance   look 1 .. distance MoE layers ahead; at most the MoE layers of the trace.
    width      entries of a list; None = the trace's top-k.

    Causality: the list for layer l of token t, d layers ahead, depends on the calibration trace and on the
    routing of visits up to d before the target visit, that one included; only an `oracle` reads further.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = False
    oracle: ClassVar[bool] = False
    drafts: ClassVar[bool] = False
    search: ClassVar[Mapping[str, tuple[Any, ...]] | None] = {"distance": DISTANCES}
    ranges: ClassVar[Mapping[str, From]] = {"distance": From(1), "width": From(1), "seed": From(0)}

    def __init__(self, *, distance: int = 1, width: int | None = None) -> None:
        self.distance = int(self.in_range("distance", distance))
        self.width = None if width is None else int(self.in_range("width", width))

    def in_range(self, parameter: str, value: Any) -> int | float:
        """`value`, if it lies in the parameter's range (a whole one is an int). Raises SpecError."""
        allowed = self.ranges[parameter]
        kinds: tuple[type, ...] = (int, np.integer) if allowed.whole else (int, float, np.number)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if not number or not allowed.holds(float(value)):
            raise SpecError(f"{self.name}: {parameter} is {value}; {allowed} is required")
        return int(value) if allowed.whole else float(value)

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """The lists for these steps. Raises SpecError where the trace lacks what they are made of."""
        self.check(trace)
        return self._predict(trace, steps)

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        raise NotImplementedError

    def check(self, trace: RoutingTrace) -> None:
        """Raises SpecError where the trace lacks an array the predictor needs, or has too few MoE layers."""
        for array in self.needs:
            if not trace.has(array):
                raise SpecError(f"{self.name}: the trace has no array {array}; this predictor needs it")
        if self.distance > trace.n_moe_layers:
            raise SpecError(f"{self.name}: distance {self.distance}; the trace has {trace.n_moe_layers} MoE layers")


class FittedPredictor(Predictor):
    """One that is fitted on a calibration trace before it predicts."""

    fitted = True
    shape_: tuple[int, ...] = ()  # of the calibration trace

    def fit(self, trace: RoutingTrace) -> Self:
        """Learns from a calibration trace, and rank_key_ int64 [D, m] from its first requests (`leading_requests`)."""
        for array in self.needs:
            if not trace.has(array):
                raise SpecError(f"{self.name}: the calibration trace has no array {array}; it is fitted on that")
        Predictor.check(self, trace)
        self.shape_ = _shape(trace)
        self._learn(trace)
        part = leading_requests(trace)
        steps = schedule(part, as_decode=True)
        self.rank_key_: Int = measured(self._predict(part, steps), part, steps)
        return self

    def _learn(self, trace: RoutingTrace) -> None:
        raise NotImplementedError

    def predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        """As every predictor does, with the key that was learned."""
        return replace(super().predict(trace, steps), rank_key=self.rank_key_)

    def check(self, trace: RoutingTrace) -> None:
        """Also raises SpecError before `fit`, or where calibration had another model shape."""
        if not self.shape_:
            raise SpecError(f"{self.name}: not fitted; it needs a calibration trace")
        if self.shape_ != _shape(trace):
            there, here = (f"{n} MoE layers, {e} experts, top-{k}" for n, e, k in (self.shape_, _shape(trace)))
            raise SpecError(f"{self.name}: the calibration trace has {there}; the trace has {here}")
        super().check(trace)


def _shape(trace: RoutingTrace) -> tuple[int, int, int]:
    """(L, E, K): what a calibration trace and the run's must share."""
    return trace.n_moe_layers, trace.n_experts, trace.top_k


def length(width: int | None, trace: RoutingTrace) -> int:
    """m: `width`, or the trace's top-k; never more than its experts."""
    return min(width or trace.top_k, trace.n_experts)


def ids(array: Array) -> Ids:
    """Expert ids as int16, a view where they are int16 already."""
    return np.asarray(array).astype(np.int16, copy=False)


def own_rows(distance: int, steps: Steps) -> Rows:
    """int32 [D, R]: every row reads its token's own list, at every distance (a read-only view of one row)."""
    return np.broadcast_to(steps.row, (distance, len(steps.row)))


def ranked(counts: Int, m: int) -> Ids:
    """int16 [..., m] from counts [..., E]: the m highest, ties to the lower id; -1 for counts of zero."""
    order = np.argsort(-counts, axis=-1, kind="stable")[..., :m]
    return np.where(np.take_along_axis(counts, order, axis=-1) > 0, order, -1).astype(np.int16)


def nearest_first(distance: int, m: int) -> Int:
    """int64 [D, m]: the key of predictors that measure nothing: by rank, then by distance."""
    return np.arange(m)[None, :] * distance + np.arange(distance)[:, None]


def unfitted(lists: Ids, row: Rows) -> Prediction:
    """A prediction with the key of predictors that measure nothing; lists that are cut out of longer ones copied, once
    for all the runs that share it."""
    return Prediction(np.ascontiguousarray(lists), row, nearest_first(len(row), lists.shape[3]))


def leading_requests(trace: RoutingTrace, rows: int = MEASURED_ROWS) -> RoutingTrace:
    """The first whole requests of a trace, `rows` rows at most but at least one request."""
    _, ends = trace.requests()
    n = max(1, int(np.searchsorted(ends, rows, side="right")))
    return trace.select(np.arange(ends[n - 1]))


def measured(prediction: Prediction, trace: RoutingTrace, steps: Steps) -> Int:
    """int64 [D, m]: by distance and rank, CERTAIN x (1 - right entries / entries).

    An entry is right when its own token is routed to that expert at that layer; CERTAIN: none is listed.
    """
    distance, m = len(prediction.row), prediction.lists.shape[3]
    right, listed = np.zeros((2, distance, m), np.int64)
    size = max(1, CHUNK_ELEMENTS // (trace.n_moe_layers * m * trace.top_k))
    for d in range(distance):
        rows = np.flatnonzero(prediction.row[d] >= 0)
        for lo in range(0, len(rows), size):
            i = rows[lo : lo + size]
            guess = prediction.lists[min(d, len(prediction.lists) - 1), prediction.row[d, i]]
            hit = (guess[..., None] == trace.experts[steps.row[i]][:, :, None, :]).any(axis=3) & (guess >= 0)
            right[d] += hit.sum(axis=(0, 1))
            listed[d] += (guess >= 0).sum(axis=(0, 1))
    return CERTAIN - CERTAIN * right // np.maximum(listed, 1)
