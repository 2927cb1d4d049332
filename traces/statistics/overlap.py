"""Requests that two traces share, by what was routed: fitting on what is judged would flatter whatever is fitted.

A request is another's copy when a run of WINDOW rows of it stands in the other too, anywhere: a copy may have lost its
prompt, its end, a row, or been cut in two. One run does not count: a beginning that both have in common, such as a
system prompt, after which they go their own ways; unless that is all there is of one of them. Shorter requests are
copies when they are equal. Names, weights and the order of slots do not matter: a copy may have changed them.

Rows that tell nothing are passed over: those that want nobody, and those equal to one of the RECENT rows before them in
their request (a model that repeats itself). A row tells at most log2 (E over k) bits a layer, and no more than its
rarity among the rows of its trace; where that is little (a toy of one layer) as many rows are asked for as have BITS;
where it is nothing (every expert is always routed) nobody is anybody's copy.

Method. A row's 64-bit hash is the sum of one random number for each (layer, expert) that it wants; a beginning and a
window are sums of their rows' hashes, each mixed with its place. Two that differ collide with probability 2**-64.
"""

import math

import numpy as np
import numpy.typing as npt

from traces.format.trace import RoutingTrace, hash64

Hashes = npt.NDArray[np.uint64]
Int = npt.NDArray[np.int64]
WINDOW = 16  # rows
RECENT = 8  # rows
BITS = 64
_ROWS = 1 << 14  # at a time: the copy of a memory-mapped trace stays small


def shared_requests(trace: RoutingTrace, other: RoutingTrace) -> Int:
    """int64 [n]: the requests of `other`, by their ordinal in it, that `trace` has too. Both of one shape."""
    my_rows, rows = _row_hashes(trace), _row_hashes(other)
    bits = min(bits_of_a_row(each, hashes) for each, hashes in ((trace, my_rows), (other, rows)))
    if bits == 0:
        return np.zeros(0, np.int64)
    enough = math.ceil(BITS / bits)
    window = max(WINDOW, enough)
    (my_first, my_ends), (first, ends) = trace.requests(), other.requests()
    mine, theirs = _beginnings(my_rows, my_first, my_ends), _beginnings(rows, first, ends)
    whole, my_whole, length = theirs[ends - 1], mine[my_ends - 1], ends - first
    found = np.isin(whole, my_whole) & (length >= enough)
    found |= np.isin(whole, mine) & (length >= window)
    longer = np.isin(theirs, my_whole[my_ends - my_first >= window])
    _, my_windows = _windows(my_rows, my_first, my_ends, window)
    last, windows = _windows(rows, first, ends, window)
    last = last[np.isin(windows, my_windows)]
    inside = last[~np.isin(theirs[last], mine)]  # not within a beginning that both have
    found[np.searchsorted(ends, np.concatenate([np.flatnonzero(longer), inside]), side="right")] = True
    return np.flatnonzero(found & (np.add.reduceat(rows != 0, first) > 0))


def bits_of_a_row(trace: RoutingTrace, rows: Hashes) -> float:
    """What a row tells: log2 (E over k) a layer, less where rows are equal more often than that (collision entropy)."""
    most = trace.n_moe_layers * math.log2(math.comb(trace.n_experts, trace.top_k))
    counts = np.unique(rows, return_counts=True)[1].astype(np.float64)
    equal = (counts * (counts - 1)).sum() / max(len(rows) * (len(rows) - 1.0), 1.0)
    return min(most, -math.log2(equal)) if equal > 0 else most


def _row_hashes(trace: RoutingTrace) -> Hashes:
    """uint64 [tokens]: of the experts that each row wants; 0 where it wants none."""
    layers = np.arange(trace.n_moe_layers)
    number = hash64(0, layers[:, None], np.arange(trace.n_experts + 1))
    number[:, -1] = 0  # -1, nobody
    out = np.empty(trace.n_tokens, np.uint64)
    for lo in range(0, trace.n_tokens, _ROWS):
        out[lo : lo + _ROWS] = number[layers[:, None], trace.experts[lo : lo + _ROWS]].sum(axis=(1, 2))
    return out


def _beginnings(rows: Hashes, first: Int, ends: Int) -> Hashes:
    """uint64 [tokens]: of each row's request from its first row to this one."""
    sums = np.cumsum(hash64(1, rows, np.arange(len(rows)) - np.repeat(first, ends - first)))
    before = np.append(np.uint64(0), sums[ends[:-1] - 1])
    return np.asarray(sums - np.repeat(before, ends - first), np.uint64)


def _windows(rows: Hashes, first: Int, ends: Int, n: int) -> tuple[Int, Hashes]:
    """(the row with which it ends, its hash) of each run of n rows of one request, those that tell nothing left out."""
    request, tells = np.repeat(np.arange(len(first)), ends - first), rows != 0
    for back in range(1, min(RECENT + 1, len(rows))):
        tells[back:] &= (rows[back:] != rows[:-back]) | (request[back:] != request[:-back])
    kept = np.flatnonzero(tells)
    at = np.arange(max(0, len(kept) - n + 1))
    at = at[request[kept[at]] == request[kept[at + n - 1]]] if len(at) else at
    out = np.zeros(len(at), np.uint64)
    for i in range(n if len(at) else 0):
        out += hash64(2, rows[kept[at + i]], i)
    return kept[at + n - 1] if len(at) else at, out
