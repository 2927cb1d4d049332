"""RoutingTrace: which experts the router chose, for every token and MoE layer (routing trace format 1).

Sizes used below: T tokens (rows), L MoE layers, K top-k, E experts per layer, D lookahead distances,
m entries of a lookahead list.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.format.layout import ARRAYS, Array


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Arrays of one trace, read-only, perhaps memory-mapped. Building one checks nothing: see `check.validate`.

    experts    integer [T, L, K]: routed experts, slots in descending router weight; -1 = none.
    sequence   int32 [T]: which request a token belongs to; a request's rows stand together, prompt first.
    position   int32 [T]: its place in that request, from any start >= 0, rising by one.
    prefill    bool [T]: prompt token (true) or generated token.
    meta       what the format asks for (format_version, model, n_experts, top_k, n_layers, moe_layers, real)
               and more: unknown keys are kept. groups: {"domain": ["code", ...]} what each request is, in order
               of appearance; optional.
    weights    float16 or float32 [T, L, K]: router weights as the model applies them; optional.
    logits     float16 [T, L, E]: raw router logits of all experts; optional.
    lookahead  integer [D, T, L, m]: experts predicted for this token and layer from its hidden state
               `distance` MoE layers earlier, best first; -1 = none; optional.
    token_ids  int32 [T]; optional.
    resident   bool [T, L, K]: what the engine that recorded it found in its own cache (a hit); optional.
    name       what `traces.open` was asked for, no part of the content; empty of a part, or of what no file is.
    """

    experts: Array
    sequence: Array
    position: Array
    prefill: Array
    meta: dict[str, Any]
    weights: Array | None = None
    logits: Array | None = None
    lookahead: Array | None = None
    token_ids: Array | None = None
    resident: Array | None = None
    name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            view = np.asanyarray(array).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        if isinstance(self.meta, Mapping):
            object.__setattr__(self, "meta", dict(self.meta))

    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by name, in the order of the format."""
        return {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}

    def has(self, name: str) -> bool:
        """Whether the array `name` is there."""
        return name in ARRAYS and getattr(self, name) is not None

    @property
    def n_tokens(self) -> int:
        return int(self.experts.shape[0])

    @property
    def n_moe_layers(self) -> int:
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[2])

    @property
    def n_experts(self) -> int:
        return int(self.meta["n_experts"])

    @property
    def n_layers(self) -> int:
        return int(self.meta["n_layers"])

    @property
    def model(self) -> str:
        return str(self.meta["model"])

    @property
    def real(self) -> bool:
        """True for a capture, false for a synthetic trace."""
        return bool(self.meta["real"])

    @property
    def lookahead_distances(self) -> tuple[int, ...]:
        """Distances of `lookahead`'s first axis: meta's, else 1, 2, ...; () without lookahead."""
        if self.lookahead is None:
            return ()
        return tuple(self.meta.get("lookahead_distances") or range(1, self.lookahead.shape[0] + 1))

    def requests(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First row and last row + 1 of each request, in order of appearance: two int64 arrays [requests]."""
        first = np.flatnonzero(self.sequence[1:] != self.sequence[:-1]).astype(np.int64) + 1
        first = np.concatenate([np.zeros(1, np.int64), first])
        return first, np.append(first[1:], np.int64(self.n_tokens))

    def select(self, rows: npt.ArrayLike) -> "RoutingTrace":
        """The trace of some whole requests.

        rows: bool mask [T], or row numbers; requests may change places, rows inside a request may not. One
        run of rows stays a view of this trace. Raises TraceError where a request would be cut, repeated or
        reordered, or none is left.
        """
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.int64)
        _refuse_cut_requests(index, *self.requests())
        lo, hi = int(index[0]), int(index[-1]) + 1
        take: Any = slice(lo, hi) if np.array_equal(index, np.arange(lo, hi)) else index
        parts = {n: a[:, take] if n == "lookahead" else a[take] for n, a in self.arrays().items()}
        return RoutingTrace(meta=self._meta_of(index), **parts)

    def _meta_of(self, index: npt.NDArray[np.int64]) -> dict[str, Any]:
        """meta of whole requests, whose rows are given: groups have an entry per request."""
        if "groups" not in self.meta:
            return self.meta
        first = self.requests()[0]
        kept = np.searchsorted(first, index[np.isin(index, first)])
        return self.meta | {"groups": {key: [of[i] for i in kept] for key, of in self.meta["groups"].items()}}

    def take(self, ordinals: npt.ArrayLike) -> "RoutingTrace":
        """The trace of some requests, by their places in it from 0, in the order given. Raises TraceError."""
        first, last = self.requests()
        places = np.asarray(ordinals)
        if places.ndim != 1 or not places.size or places.dtype.kind not in "iu":
            raise TraceError(f"take: {ordinals!r}: must be places of requests, whole numbers, at least one")
        if places.min() < 0 or places.max() >= len(first):
            raise TraceError(f"take: {places.min()} .. {places.max()}: the trace has requests 0 .. {len(first) - 1}")
        return self.select(np.concatenate([np.arange(first[i], last[i]) for i in places]))


def _refuse_cut_requests(index: npt.NDArray[np.int64], first: Array, last: Array) -> None:
    n_tokens = int(last[-1])
    if index.size == 0:
        raise TraceError("select: no rows; a trace needs at least one request")
    if index.min() < 0 or index.max() >= n_tokens:
        raise TraceError(f"select: row {int(index.min())} .. {int(index.max())} is outside 0 .. {n_tokens - 1}")
    begins = np.isin(index, first)
    ends = np.isin(index, last - 1)
    joined = (index[1:] == index[:-1] + 1) | (ends[:-1] & begins[1:])
    # Rows that run on, or go from a request's end to another's begin, are whole requests (unless repeated).
    if not (begins[0] and ends[-1] and joined.all() and np.unique(index[begins]).size == int(begins.sum())):
        raise TraceError("select: rows must be whole requests, each once, its rows in order")


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's output function (Steele, Lea, Flood 2014), element by element, modulo 2^64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash64(seed: int, visit: npt.ArrayLike, ordinal: npt.ArrayLike, *more: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Counter-based hash mix(mix(mix(seed) ^ visit) ^ ordinal), and so on with further numbers, uint64 [broadcast
    shape, at least 1-d]."""
    out = _mix(np.array([seed % 2**64], np.uint64))
    for number in (visit, ordinal, *more):
        out = _mix(out ^ np.atleast_1d(number).astype(np.uint64))
    return out


def split(trace: RoutingTrace, fraction: float, seed: int) -> tuple[RoutingTrace, RoutingTrace]:
    """Two traces of whole requests, in the order of `trace`; which depends on their number and `seed` alone.

    The n requests are sorted by hash64(seed, ordinal of the request, 0); the first floor(fraction * n), at
    least 1 and at most n - 1, form the first trace. Raises TraceError for a fraction outside (0, 1) or fewer
    than two requests.
    """
    if not 0 < fraction < 1:
        raise TraceError(f"split: fraction {fraction} is outside (0, 1)")
    first, last = trace.requests()
    n = len(first)
    if n < 2:
        raise TraceError("split: the trace has one request; two are needed")
    chosen = np.zeros(n, np.bool_)
    order = np.argsort(hash64(seed, np.arange(n), 0), kind="stable")
    chosen[order[: min(max(math.floor(fraction * n), 1), n - 1)]] = True
    rows = np.repeat(chosen, last - first)
    return trace.select(rows), trace.select(~rows)
