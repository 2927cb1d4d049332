"""Requests that two traces share, by what was routed: fitting on what is judged would flatter whatever is fitted.

A request is the same as another when all its rows want the same experts in the same slots, or when it is at least
LEAST rows long and the other begins with it (a recording cut short). Names, positions and weights do not matter: a
copy of a recording may have lost them. Requests without a routed expert are nobody's copy.

Method. A row's 64-bit hash is linear in its expert ids; a request's rows are mixed with their places in it and summed,
so that one running sum holds the hash of every beginning of every request. Two different beginnings collide with
probability 2**-64 per pair.
"""

import numpy as np
import numpy.typing as npt

from traces.trace import RoutingTrace, hash64

Hashes = npt.NDArray[np.uint64]
Int = npt.NDArray[np.int64]
LEAST = 16  # rows: shorter requests begin alike by chance, or with the same system prompt
_ROWS = 1 << 14  # at a time: the copy of a memory-mapped trace stays small


def shared_requests(trace: RoutingTrace, other: RoutingTrace) -> Int:
    """int64 [n]: the requests of `other`, by their ordinal in it, that `trace` has too. Both of one shape."""
    mine, theirs = _beginnings(trace), _beginnings(other)
    (_, my_ends), (first, ends) = trace.requests(), other.requests()
    whole, my_whole = theirs[ends - 1], mine[my_ends - 1]
    found = np.isin(whole, my_whole) | (np.isin(whole, mine) & (ends - first >= LEAST))
    long = my_whole[np.diff(my_ends, prepend=0) >= LEAST]
    longer = np.searchsorted(ends, np.flatnonzero(np.isin(theirs, long)), side="right")
    found[longer] = True
    return np.flatnonzero(found & (_routed(other, first, ends)))


def _routed(trace: RoutingTrace, first: Int, ends: Int) -> npt.NDArray[np.bool_]:
    """Whether each request wants any expert."""
    return np.array([bool((trace.experts[a:b] >= 0).any()) for a, b in zip(first, ends, strict=True)], np.bool_)


def _beginnings(trace: RoutingTrace) -> Hashes:
    """uint64 [tokens]: the hash of each row's request from its first row to this one."""
    first, ends = trace.requests()
    place = np.arange(trace.n_tokens) - np.repeat(first, ends - first)
    factor = hash64(0, np.arange(trace.n_moe_layers * trace.top_k), 0) | np.uint64(1)
    out = np.empty(trace.n_tokens, np.uint64)
    for lo in range(0, trace.n_tokens, _ROWS):
        ids = trace.experts[lo : lo + _ROWS].reshape(-1, len(factor)).astype(np.int64).view(np.uint64)
        out[lo : lo + _ROWS] = hash64(1, (ids * factor).sum(axis=1), place[lo : lo + _ROWS])
    np.cumsum(out, out=out)
    before = np.append(np.uint64(0), out[ends[:-1] - 1])
    out -= np.repeat(before, ends - first)
    return out
