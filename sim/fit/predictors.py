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
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.fit.activation import ActivationMatrix
from sim.fit.map_store import MapStore
from sim.fit.popular_per_request import PopularPerRequest
from sim.fit.prediction import (
    CHUNK_ELEMENTS,
    FittedPredictor,
    Ids,
    Int,
    Prediction,
    Predictor,
    ids,
    length,
    own_rows,
    ranked,
    unfitted,
)
from sim.fit.transition import Transition
from sim.policies.policy import From
from sim.steps import Steps
from traces.format.trace import RoutingTrace, hash64
from traces.statistics.counts import expert_counts

COMMAND = "python -m runtime.predictor --calibration A.npz --trace B.npz --out B-learned.npz"
LEARNED = "learned"  # how meta.lookahead_source begins when runtime.predictor made the lists
_ID = np.uint64((1 << 15) - 1)  # low bits of a sort key that hold an expert id
_NONE = np.uint64(2**64 - 1)


class Popular(FittedPredictor):
    """Each layer's most used experts in calibration, the same list at all times.

    width      entries of a list; None = the trace's top-k; never more than its experts.

    Ties go to the lower id; an expert that calibration never uses is not listed. The first row of a step
    holds the list.
    """

    name = "popular"
    source = "expert popularity from calibration data: Fiddler, arXiv 2402.07033"
    search: ClassVar[Any] = {"distance": (1, 2)}

    def _learn(self, trace: RoutingTrace) -> None:
        self.ranking_: Ids = ranked(expert_counts(trace), length(self.width, trace))

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        row = np.full(len(steps.row), -1, np.int32)
        row[steps.offset[:-1]] = 0
        return Prediction(self.ranking_[None, None], np.broadcast_to(row, (self.distance, len(row))))


class GateLookahead(Predictor):
    """The trace's `lookahead`: the coming layers' routers asked with the hidden state of this one.

    distance   look 1 .. distance MoE layers ahead; meta.lookahead_distances must hold them all.
    width      entries of a list; None = the trace's top-k; never more than the trace's lists hold.

    Who wrote them, before the run, meta.lookahead_source says. A layer below the distance must have no entries: no
    hidden state of that token could foretell it. Lists are a view of the array, memory-mapped if it is, but where they
    are cut shorter.
    """

    name = "gate-lookahead"
    needs: ClassVar[tuple[str, ...]] = ("lookahead",)
    source = "speculative expert loading: Eliseev and Mazur, arXiv 2312.17238, section 3.2"

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        there, wanted = trace.lookahead_distances, tuple(range(1, self.distance + 1))
        if there[: self.distance] != wanted:  # the format lists them ascending
            need = f"distance {self.distance} needs lookahead distances {list(wanted)}"
            raise SpecError(f"{self.name}: {need}; the trace has {list(there)}")
        assert trace.lookahead is not None  # it has been checked
        lists: Ids = ids(trace.lookahead)[: self.distance, :, :, : length(self.width, trace)]
        for d in wanted:
            if (lists[d - 1, :, :d] >= 0).any():
                raise SpecError(f"{self.name}: lookahead at distance {d} has entries at layers below {d}; -1 is needed")
        return unfitted(lists, own_rows(self.distance, steps))


class Learned(GateLookahead):
    """A small model's lists, made before the run by `python -m runtime.predictor` and kept in `lookahead`.

    The same as gate-lookahead on a trace whose meta.lookahead_source begins with "learned", and on no other.
    It was fitted on a calibration trace of its own (meta.lookahead_model names it), which should share no
    request with this one; the run's --calibration does not matter to it. Lists made for decode steps (`--as-decode`)
    see the previous prompt token: they are refused in a run with prefill steps; all see the previous token, so they
    are in one with speculative windows.
    """

    name = "learned"
    needs = ()  # `predict` refuses a trace without lookahead: it names the command
    source = "this project"

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        made_by = trace.meta.get("lookahead_source")
        if trace.lookahead is None or not str(made_by).startswith(LEARNED):
            raise SpecError(f"{self.name}: the trace's lookahead is not of a learned model; make one: {COMMAND}")
        about = trace.meta.get("lookahead_model")
        if isinstance(about, dict) and about.get("as_decode") and steps.prefill.any():
            made = "the lists were made --as-decode and the run has prefill steps"
            raise SpecError(f"{self.name}: {made}; run it --as-decode, or make them without")
        if steps.windows is not None:
            seen = "its lists see the routing of the token before, which a window of --speculate runs at the same time"
            raise SpecError(f"{self.name}: {seen}")
        return super()._predict(trace, steps)


class PreviousToken(Predictor):
    """What the same request's last token of an earlier step used at the same layer.

    width      entries of a list; None = the trace's top-k, which it never exceeds.

    Ranked by slot. A request has one list per step, held by its first row there. Lists are a view of
    `experts`.
    """

    name = "previous-token"
    source = "temporal locality of routing: Mixtral of Experts, arXiv 2401.04088, section 5"

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        row = steps.previous_rows(trace.sequence)
        return unfitted(ids(trace.experts)[None, :, :, : self.width], np.broadcast_to(row, (self.distance, len(row))))


class Oracle(Predictor):
    """What the target layer will want, known beforehand: the bound of every prefetcher. Reads the future.

    width      entries of a list; None = the trace's top-k, which it never exceeds.

    Ranked by slot. Lists are a view of `experts`.
    """

    name = "oracle"
    oracle = True
    search = None
    source = "this project"

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        lists = ids(trace.experts)[None, :, :, : self.width]
        return unfitted(lists, own_rows(self.distance, steps))


class NoisyOracle(Predictor):
    """An oracle of set recall and precision: what would such a predictor be worth? Reads the future.

    recall     chance of each wanted expert to be listed.
    precision  expected share of right entries among all entries of the trace.
    seed       of the noise.
    width      None = lists are whole; a number cuts them, and then they no longer have the quality asked for.

    For token t and MoE layer l, with v = t L + l and n wanted experts: a wanted expert e is listed where
    hash64(seed, v, e) / 2^64 < recall. Of the others, those of lowest hash64(seed, v, e) are listed: x =
    n recall (1 - precision) / precision of them in expectation, floor(x), and one more where
    hash64(seed, v, 2E) / 2^64 < x - floor(x). The list is ranked by hash64(seed, v, E + e), right and wrong
    mixed (all three in the 49 high bits, 53 for chances). Every distance sees the same list.
    """

    name = "noisy-oracle"
    ranges: ClassVar[Mapping[str, From]] = {
        **Predictor.ranges, "recall": From(0, whole=False, most=1),
        "precision": From(0, whole=False, most=1, above=True),
    }  # fmt: skip
    oracle = True
    search = None
    source = "this project"

    def __init__(
        self,
        *,
        distance: int = 1,
        recall: float = 0.9,
        precision: float = 0.9,
        seed: int = 0,
        width: int | None = None,
    ) -> None:
        super().__init__(distance=distance, width=width)
        self.recall = float(self.in_range("recall", recall))
        self.precision = float(self.in_range("precision", precision))
        self.seed = int(self.in_range("seed", seed))

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        tokens, layers, k = trace.experts.shape
        per_right = self.recall * (1 - self.precision) / self.precision
        spare = trace.n_experts - k
        if k * per_right > spare:
            raise SpecError(
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
        return unfitted(lists, own_rows(self.distance, steps))

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


class DraftWindow(Predictor):
    """What a draft model lists of the next window, one window ahead; it stands for one, and so reads the future.

    recall     chance of each expert that a row of the window is routed to (by the trace) to be listed.
    seed       of these chances.
    width      entries of a list; None = the trace's top-k, which it never exceeds.

    Lists of a visit's layer in the next decode step, as many visits ahead as there are MoE layers, and of no nearer
    visit. Token t's expert e at MoE layer l is listed where hash64(seed, t L + l, e) / 2^64 < recall (in the 53 high
    bits). What cannot land before the window's verification reaches its layer does not join (plan.Prefetch.within_ns).
    """

    name = "draft-window"
    ranges: ClassVar[Mapping[str, From]] = {**Predictor.ranges, "recall": From(0, whole=False, most=1)}
    oracle = True
    drafts = True
    search = None
    source = "speculative decoding and offloading: SP-MoE, arXiv 2510.10302; MoE-SpeQ, arXiv 2511.14102"

    def __init__(self, *, recall: float = 1.0, seed: int = 0, width: int | None = None) -> None:
        super().__init__(width=width)
        self.recall = float(self.in_range("recall", recall))
        self.seed = int(self.in_range("seed", seed))

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        layers = trace.n_moe_layers
        row = np.full((layers, len(steps.row)), -1, np.int32)
        row[-1] = np.where(np.repeat(steps.prefill, np.diff(steps.offset)), -1, steps.row)
        lists = ids(trace.experts)[None, :, :, : self.width]
        return unfitted(lists if self.recall == 1 else self._recalled(lists), row)

    def _recalled(self, lists: Ids) -> Ids:
        """What is left of lists [1, T, L, m]; -1 in the place of what is not listed."""
        _, tokens, layers, width = lists.shape
        out, size = np.empty_like(lists), max(1, CHUNK_ELEMENTS // (layers * width))
        for lo in range(0, tokens, size):
            part = lists[0, lo : lo + size]
            visit = np.arange(lo * layers, (lo + len(part)) * layers).reshape(-1, layers, 1)
            listed = _chance(hash64(self.seed, visit, part.astype(np.int64))) < self.recall
            out[0, lo : lo + size] = np.where((part >= 0) & listed, part, -1)
        return out


EVERY = (
    PreviousToken, Popular, PopularPerRequest, Transition, ActivationMatrix, MapStore, GateLookahead, Learned, Oracle,
    NoisyOracle, DraftWindow,
)  # fmt: skip
PREDICTORS: dict[str, type[Any]] = {each.name: each for each in EVERY}
