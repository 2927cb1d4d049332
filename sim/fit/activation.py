"""A request's expert activations so far, matched against those of whole requests seen before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sim.fit.prediction import FittedPredictor, Ids, Int, Prediction, Rows, length, ranked
from sim.policies.policy import From
from sim.steps import Steps
from traces.format.trace import RoutingTrace, hash64
from traces.statistics.counts import expert_counts

_SCALE = float(1 << 30)
_CHUNK_ELEMENTS = 1 << 18


class ActivationMatrix(FittedPredictor):
    """The calibration request whose expert activations are most similar so far foretells the coming layers.

    width      entries of a list; None = the trace's top-k; never more than its experts.
    capacity   requests in the collection: the calibration requests of lowest hash64(seed, ordinal, 0).
    seed       of that choice.

    A request's activation matrix [L, E] counts its tokens by expert: at a visit, all its rows of earlier
    steps, and those of this step at the layers routed so far. The match is the matrix of the collection with
    the highest cosine similarity (both flattened; unit vectors in units of 2^-30; ties to the earlier
    calibration request), and it predicts its own most used experts of the target layer, ties to the lower id,
    without those it never used. A request has one list per step, held by its first row there; before anything
    of it is routed, none. Of a speculative window the rows that are accepted count.

    Beside the paper: the collection is a sample, not k-means centres, and is not updated during the run;
    MoE-Infinity's code averages a cosine per layer.
    """

    name = "activation-matrix"
    source = "MoE-Infinity, arXiv 2401.14361"
    ranges: ClassVar[Mapping[str, From]] = {**FittedPredictor.ranges, "capacity": From(1)}

    def __init__(self, *, distance: int = 1, width: int | None = None, capacity: int = 64, seed: int = 0) -> None:
        super().__init__(distance=distance, width=width)
        self.capacity = int(self.in_range("capacity", capacity))
        self.seed = int(self.in_range("seed", seed))

    def _learn(self, trace: RoutingTrace) -> None:
        """The key is measured on requests whose own matrices may be in the collection."""
        order = np.argsort(hash64(self.seed, np.arange(len(trace.requests()[0])), 0), kind="stable")
        self.collection_: Int = request_counts(trace, np.sort(order[: self.capacity]))  # [C, L, E]

    def _predict(self, trace: RoutingTrace, steps: Steps) -> Prediction:
        turns = Turns.of(trace, steps)
        match = _matches(self.collection_, trace, turns)
        best = ranked(self.collection_, length(self.width, trace))
        best = np.concatenate([best, np.full_like(best[:1], -1)])  # the last line, also number -1, is no match
        lists = np.empty((self.distance, *match.shape, best.shape[2]), np.int16)
        for d in range(1, self.distance + 1):
            _look_up(best, match, turns, d, lists[d - 1])
        row = np.full(len(steps.row), -1, np.int32)
        run = np.flatnonzero(turns.step >= 0)
        row[turns.row[run]] = run
        return Prediction(lists, np.broadcast_to(row, (self.distance, len(row))))


def request_counts(trace: RoutingTrace, requests: Int) -> Int:
    """int64 [len(requests), L, E]: tokens of each request, by place in the trace, that use each expert."""
    starts, ends = trace.requests()
    return np.stack([expert_counts(trace.select(np.arange(starts[r], ends[r]))) for r in requests])


@dataclass(frozen=True)
class Turns:
    """A turn is the rows of one request that count in one step; turns in trace order, so a request's follow one
    another.

    start int64 [G + 1]: first trace row, and the end; step int64 [G], and row int64 [G], its first of the steps: -1
    where no step runs it; first int64 [G]: first turn of the same request.
    """

    start: Int
    step: Int
    row: Int
    first: Int

    @staticmethod
    def of(trace: RoutingTrace, steps: Steps) -> "Turns":
        row, request = np.full(trace.n_tokens, -1, np.int64), trace.sequence
        counts = np.flatnonzero(steps.accepted)
        row[steps.row[counts]] = counts
        step = np.append(np.repeat(np.arange(len(steps)), np.diff(steps.offset)), -1)[row]
        start = np.flatnonzero(np.append(True, (step[1:] != step[:-1]) | (request[1:] != request[:-1])))
        new = np.append(True, request[start[1:]] != request[start[:-1]])
        first = np.maximum.accumulate(np.where(new, np.arange(len(start)), 0))
        return Turns(np.append(start, trace.n_tokens), step[start], row[start], first)

    def chunks(self, rows: int) -> Iterator[tuple[int, int]]:
        """(first turn, last + 1), about `rows` rows at a time."""
        lo = 0
        while lo < len(self.step):
            hi = int(np.searchsorted(self.start, self.start[lo] + rows, side="right")) - 1
            yield lo, max(hi, lo + 1)
            lo = max(hi, lo + 1)


def _unit_vectors(collection: Int) -> Int:
    """int64 [L, E + 1, C + 1]: what one use of an expert adds to the similarity with each matrix; the last
    column counts uses. The last line, also number -1, is no expert."""
    many, layers, n = collection.shape
    norm = np.sqrt((collection.astype(np.float64) ** 2).sum(axis=(1, 2), keepdims=True))
    out = np.zeros((layers, n + 1, many + 1), np.int64)
    out[:, :n, :many] = np.round(collection * (_SCALE / np.maximum(norm, 1.0))).transpose(1, 2, 0)
    out[:, :n, many] = 1
    return out


def _matches(collection: Int, trace: RoutingTrace, turns: Turns) -> Rows:
    """int32 [G, L]: the most similar matrix once that layer is routed; -1 while nothing of the request is."""
    table = _unit_vectors(collection)
    layers, _, width = table.shape
    out = np.empty((len(turns.step), layers), np.int32)
    carry = np.zeros(width, np.int64)  # of the request that the last chunk ended with
    for lo, hi in turns.chunks(max(1, _CHUNK_ELEMENTS // (layers * width))):
        gain = _gains(table, trace, turns.start[lo : hi + 1])
        total = np.cumsum(gain.reshape(-1, width), axis=0).reshape(gain.shape)
        before = np.concatenate([np.zeros((1, width), np.int64), total[:-1, -1]])
        inside = turns.first[lo:hi] >= lo
        total -= np.where(inside[:, None], before[np.maximum(turns.first[lo:hi] - lo, 0)], -carry)[:, None]
        out[lo:hi] = np.where(total[..., -1] > 0, total[..., :-1].argmax(axis=2), -1)
        carry = total[-1, -1].copy()
    return out


def _gains(table: Int, trace: RoutingTrace, start: Int) -> Int:
    """int64 [turns, L, C + 1]: what each layer of each turn adds to the similarities."""
    experts = trace.experts[start[0] : start[-1]]
    out = np.empty((len(start) - 1, table.shape[0], table.shape[2]), np.int64)
    alone = len(experts) == len(out)
    for layer in range(len(table)):
        gain = np.take(table[layer], experts[:, layer, 0], axis=0)
        for slot in range(1, experts.shape[2]):
            gain += np.take(table[layer], experts[:, layer, slot], axis=0)
        out[:, layer] = gain if alone else np.add.reduceat(gain, start[:-1] - start[0], axis=0)
    return out


def _look_up(best: Ids, match: Rows, turns: Turns, d: int, out: Ids) -> None:
    """out int16 [G, L, m]: the lists at distance d.

    A target layer from d on is foretold within the step. One below d is foretold in the step before, at layer
    l - d + L, where the request may have had its turn up to that layer; or, if its last turn was earlier, all
    of it.
    """
    layers = match.shape[1]
    out[:, d:] = best[match[:, : layers - d], np.arange(d, layers)]
    known = np.zeros_like(match[:, :d])
    known[1:] = match[:-1, layers - d :]
    apart = np.flatnonzero(turns.step[1:] - turns.step[:-1] != 1) + 1
    known[apart] = match[apart - 1, -1:]
    known[turns.first == np.arange(len(match))] = -1
    out[:, :d] = best[known, np.arange(d)]
