"""FineMoE's store of expert maps: the iteration of calibration whose gates looked most alike foretells the next layers.

Everything is compared in whole numbers: a probability is so many units of 2^-20, so sums of products are exact in
float64 whatever order they are taken in, and equal input gives equal lists on any machine and in chunks of any size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sim.fit.activation import Turns
from sim.fit.prediction import CERTAIN, FittedPredictor, Ids, Int, Prediction, Rows
from sim.fit.prompts import Prompts
from sim.policies.policy import From
from sim.steps import Steps, schedule
from traces.format.trace import RoutingTrace, hash64

Float = npt.NDArray[np.float64]

_ONE = float(1 << 20)  # units of a probability of 1
_CHUNK_ELEMENTS = 1 << 20


class MapStore(FittedPredictor):
    """The calibration iteration whose router probabilities were most alike so far foretells the coming layers.

    width      entries of a list at most; None = twice the trace's top-k; never more than its experts.
    maps       so many maps are kept: those of the iterations of lowest hash64(seed, ordinal, 0).
    seed       of that choice.

    An iteration is a request's rows in one step: a token of decode, a chunk of prompt. Its map [L, E] is the mean over
    its rows of the softmax of the router's logits. From layer `distance` on, the target's own step has been seen up to
    `distance` layers before it: the match is the map with the highest cosine over those layers (ties to the earlier).
    Nothing of the step is known for the layers in front of that, which are asked for in the step before: there the
    match is the calibration request whose prompt (the mean over all its rows) is most like the request's, over the
    layers of the prompt that are routed by then, and the mean of its maps foretells; a request has none until its
    prompt is over, nor without prompt rows. With s the cosine, the list is the fewest experts of highest probability
    (ties to the lower id) that have 1 - s of it, at least top-k. A request has one list per step, held by its first
    row there. The key of a rank is CERTAIN x (1 - share of entries that were right / layers ahead).

    Beside the paper: prompts are compared by their routing (a trace has no embeddings); the store is a sample and is
    not updated, where FineMoE's replaces the map that is most like a new one; FineMoE's code keeps the tokens of a
    prompt one by one.
    """

    name = "map-store"
    needs = ("logits",)
    source = "FineMoE, arXiv 2502.05370"
    ranges: ClassVar[Mapping[str, From]] = {**FittedPredictor.ranges, "maps": From(1)}

    def __init__(self, *, distance: int = 1, width: int | None = None, maps: int = 1000, seed: int = 0) -> None:
        super().__init__(distance=distance, width=width)
        self.maps = int(self.in_range("maps", maps))
        self.seed = int(self.in_range("seed", seed))

    def fit(self, trace: RoutingTrace) -> "MapStore":
        """As every fitted predictor, the key divided by the layers ahead."""
        super().fit(trace)
        self.rank_key_ = CERTAIN - (CERTAIN - self.rank_key_) // np.arange(1, self.distance + 1)[:, None]
        return self

    def _learn(self, trace: RoutingTrace) -> None:
        """The key is measured on requests whose own maps may be in the store."""
        turns, prompts = Turns.of(trace, schedule(trace)), Prompts.of(trace)
        order = np.argsort(hash64(self.seed, np.arange(len(turns.step)), 0), kind="stable")
        kept = np.sort(order[: self.maps])
        self.maps_ = _means(trace, turns.start[kept], turns.start[kept + 1])
        whose, place = np.unique(prompts.request_of(turns)[kept], return_inverse=True)
        usual = np.zeros((len(whose), *self.maps_.shape[1:]))
        np.add.at(usual, place, self.maps_)
        usual = np.rint(usual / np.bincount(place)[:, None, None])
        there = prompts.end[whose] > prompts.start[whose]
        self.usual_ = usual[there]  # of each request that has a prompt
        self.prompts_ = _means(trace, prompts.start[whose[there]], prompts.end[whose[there]])

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        turns = Turns.of(trace, steps)
        run = np.flatnonzero(turns.step >= 0)
        m = min(self.width or 2 * trace.top_k, trace.n_experts)
        lists = np.full((self.distance, len(run), trace.n_moe_layers, m), -1, np.int16)
        self._by_trajectory(trace, turns, run, lists)
        self._by_prompt(trace, turns, run, lists)
        row = np.full(len(steps.row), -1, np.int32)
        row[turns.row[run]] = np.arange(len(run))
        return Prediction(lists, np.broadcast_to(row, (self.distance, len(row))))

    def _by_trajectory(self, trace: RoutingTrace, turns: Turns, run: Int, lists: Ids) -> None:
        """The layers from each distance on, from what the same step has been routed to."""
        layers = trace.n_moe_layers
        match, cosine = _nearest(self.maps_, trace, turns.start[run], turns.start[run + 1])
        ranking = _Ranking.of(self.maps_, trace.top_k, lists.shape[3])
        for d in range(1, self.distance + 1):
            ranking.write(match[:, : layers - d], cosine[:, : layers - d], np.arange(d, layers), lists[d - 1, :, d:])

    def _by_prompt(self, trace: RoutingTrace, turns: Turns, run: Int, lists: Ids) -> None:
        """The layers in front, from the request's prompt."""
        prompts, layers = Prompts.of(trace), trace.n_moe_layers
        later = np.flatnonzero(prompts.over(turns)[run])
        if not len(later) or not len(self.prompts_):
            return
        whose, place = np.unique(prompts.request_of(turns)[run[later]], return_inverse=True)
        match, cosine = _nearest(self.prompts_, trace, prompts.start[whose], prompts.end[whose])
        ranking = _Ranking.of(self.usual_, trace.top_k, lists.shape[3])
        for d in range(1, self.distance + 1):
            seen = _layers_seen(turns, prompts, run[later], d, layers)
            found = np.full((len(later), d, lists.shape[3]), -1, np.int16)
            ranking.write(match[place[:, None], seen], cosine[place[:, None], seen], np.arange(d), found)
            lists[d - 1, later, :d] = found


def _layers_seen(turns: Turns, prompts: Prompts, chosen: Int, d: int, layers: int) -> Int:
    """int64 [n, d]: for turns behind a prompt and target layers 0 .. d - 1 the last layer of the prompt that is routed
    when they are asked for, d layers before: layer - d + L of the step before, where that is the prompt's; else all."""
    previous = chosen - 1  # of the same request: its prompt is over
    prompt_just_ran = turns.start[previous] < prompts.end[prompts.request_of(turns)[chosen]]
    at_once = prompt_just_ran & (turns.step[chosen] - turns.step[previous] == 1)
    return np.where(at_once[:, None], np.arange(d) - d + layers, layers - 1)


def _means(trace: RoutingTrace, start: Int, end: Int) -> Float:
    """float64 [n, L, E], whole numbers: the mean probabilities of the trace rows start[i] .. end[i], in units."""
    assert trace.logits is not None  # it has been checked
    out = np.zeros((len(start), *trace.logits.shape[1:]))
    rows = end - start
    whose = np.repeat(np.arange(len(start)), rows)
    row = np.arange(len(whose)) + np.repeat(start - (np.cumsum(rows) - rows), rows)
    size = max(1, _CHUNK_ELEMENTS // out[:1].size) if len(start) else 1
    for lo in range(0, len(row), size):
        part = whose[lo : lo + size]
        first = np.flatnonzero(np.append(True, part[1:] != part[:-1]))
        out[part[first]] += np.add.reduceat(_units(trace.logits[row[lo : lo + size]]), first, axis=0)
    means: Float = np.rint(out / rows[:, None, None])
    return means


def _units(logits: npt.NDArray[Any]) -> Float:
    """The softmax over the last axis in units, rounded."""
    power: Float = np.exp(logits - logits.max(axis=-1, keepdims=True).astype(np.float64))
    power *= _ONE / power.sum(axis=-1, keepdims=True)
    return np.rint(power)


def _nearest(maps: Float, trace: RoutingTrace, start: Int, end: Int) -> tuple[Rows, Float]:
    """Of maps [C, L, E], by layer, the one that is most like the mean of rows start[i] .. end[i] up to that layer, and
    their cosine: int32 and float64 [n, L]."""
    norm = np.sqrt(np.cumsum((maps**2).sum(axis=2), axis=1))  # [C, L]
    by_layer = np.ascontiguousarray(maps.transpose(1, 2, 0))  # [L, E, C]
    match, cosine = np.empty((len(start), maps.shape[1]), np.int32), np.empty((len(start), maps.shape[1]))
    size = max(1, _CHUNK_ELEMENTS // max(maps[:1].size, len(maps)))
    for lo in range(0, len(start), size):
        seen = _means(trace, start[lo : lo + size], end[lo : lo + size])
        dots, square = np.zeros((len(seen), len(maps))), np.zeros(len(seen))
        for layer, others in enumerate(by_layer):
            dots += seen[:, layer] @ others
            square += (seen[:, layer] ** 2).sum(axis=1)
            score = dots / norm[:, layer]
            best = score.argmax(axis=1)
            match[lo : lo + size, layer] = best
            cosine[lo : lo + size, layer] = score[np.arange(len(seen)), best] / np.sqrt(square)
    return match, cosine


@dataclass(frozen=True)
class _Ranking:
    """order int16 [C, L, m]: the experts of each map, most probable first; mass float64 [C, L, m]: what they have, with
    all before them, in units; least: entries of a list at least."""

    order: Ids
    mass: Float
    least: int

    @staticmethod
    def of(maps: Float, top_k: int, m: int) -> "_Ranking":
        order = np.argsort(-maps, axis=2, kind="stable")[..., :m]
        mass = np.cumsum(np.take_along_axis(maps, order, axis=2), axis=2)
        return _Ranking(order.astype(np.int16), mass, min(top_k, m))

    def write(self, match: Rows, cosine: Float, layer: Int, out: Ids) -> None:
        """out int16 [n, layers, m]: the lists for these layers from maps `match` [n, layers], each as long as it takes
        to have 1 - cosine of the probability."""
        m = self.order.shape[2]
        size = max(1, _CHUNK_ELEMENTS // max(1, out[:1].size))
        for lo in range(0, len(out), size):
            chosen = match[lo : lo + size]
            needed = np.clip(1 - cosine[lo : lo + size], 0, 1)[..., None] * _ONE
            n = (self.mass[chosen, layer] < needed).sum(axis=2) + 1
            kept = np.arange(m) < np.maximum(n, self.least)[..., None]
            out[lo : lo + size] = np.where(kept, self.order[chosen, layer], -1)
