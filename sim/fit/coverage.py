"""Buddy coverage: the residents that leave the least wanted weight without a resident buddy.

Expert i of a layer is covered by a resident set R when i is in R or some entry of its buddy list B(i) is. Let
w_i be what calibration routed to i: the sum of its router weights, or, where the trace has none, its number
of uses. The residents sought are

    argmax F(R) = sum_l sum_{i covered by R_l} w_i     with |R_l| <= slots[l], or |R| <= slots[0] in one pool.

F counts the weight of a union, of the sets C_j = {i : i = j or j in B(i)} of those chosen: weighted maximum
coverage, which is monotone, submodular and F({}) = 0. Taking the highest marginal gain each time is therefore
worth at least 1 - (1 - 1/s)^s > 1 - 1/e of the optimum at s slots (Nemhauser, Wolsey, Fisher 1978,
Mathematical Programming 14, 265-294). It holds for each layer, since F is a sum over layers that
do not share slots, and for the pool, which is one such problem over all experts. It is a bound on the weight
that is covered, and says nothing of the share that is left uncovered; nor of a run, where residents change
from the first eviction on.
"""

import numpy as np
import numpy.typing as npt

from sim.fit.buddies import BuddyLists
from traces.format.layout import chunks
from traces.format.trace import RoutingTrace
from traces.statistics.stats import expert_counts

Int = npt.NDArray[np.int64]

_BITS = 40  # of the heaviest expert's weight: sums over all experts of a model stay below 2^63


def coverage_order(calibration: RoutingTrace, lists: BuddyLists) -> tuple[Int, Int]:
    """(order, gain), int64 [L, E] each: every expert of a layer in the order in which the greedy choice takes
    it, and the units of `wanted_units` that it covers and those before it do not; never rising along a layer.

    Equal gains go to the more popular in calibration (uses), then to the lower id. Raises BuddyError where
    the lists are of another shape than the trace.
    """
    lists.require_fit(calibration)
    units, uses = wanted_units(calibration), expert_counts(calibration)
    order, gain = np.empty_like(units), np.empty_like(units)
    for layer, peers in enumerate(lists.peers):
        order[layer], gain[layer] = _greedy(covers(peers), units[layer], uses[layer])
    return order, gain


def covers(peers: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """bool [E, E] from lists [E, W]: whether row j covers column i, that is j = i or j in B(i)."""
    n = len(peers)
    reach = np.eye(n, dtype=np.bool_)
    i, slot = np.nonzero(peers >= 0)
    reach[peers[i, slot], i] = True
    return reach


def wanted_units(trace: RoutingTrace) -> Int:
    """int64 [L, E]: the router weight routed to each expert, or its uses where the trace has no weights.

    Whole units of a power of two, so that equal gains are equal: 2^-40 of the heaviest expert's weight, or up
    to twice that; rounded half-even.
    """
    if trace.weights is None:
        return expert_counts(trace)
    layers, n = trace.n_moe_layers, trace.n_experts
    total = np.zeros(layers * n)
    base = (np.arange(layers) * n)[None, :, None]
    for lo, ids in chunks(trace.experts):
        weight = trace.weights[lo : lo + len(ids)].astype(np.float64)
        total += np.bincount((ids + base)[ids >= 0], weight[ids >= 0], layers * n)
    _, exponent = np.frexp(total.max())
    return np.rint(np.ldexp(total, _BITS - int(exponent))).astype(np.int64).reshape(layers, n)


def _greedy(reach: npt.NDArray[np.bool_], units: Int, uses: Int) -> tuple[Int, Int]:
    """(order, gain), int64 [E] each, of one layer."""
    n = len(units)
    by_use = np.lexsort((np.arange(n), -uses))
    left, gain = reach @ units, np.empty(n, np.int64)
    open_, order = np.ones(n, np.bool_), np.empty(n, np.int64)
    for rank in range(n):
        chosen = by_use[np.argmax(left[by_use])]
        order[rank], gain[rank] = chosen, left[chosen]
        new = reach[chosen] & open_
        open_ &= ~new
        left -= reach[:, new] @ units[new]
        left[order[: rank + 1]] = -1  # taken
    return order, gain
