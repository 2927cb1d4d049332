"""Who is resident before time 0, in the order in which they land.

Buddy coverage: the residents that leave the least wanted weight without a resident buddy.

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

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from sim.fit.buddies import BuddyLists
from traces.format.layout import chunks
from traces.format.trace import RoutingTrace, hash64
from traces.statistics.counts import expert_counts

Int = npt.NDArray[np.int64]

_BITS = 40  # of the heaviest expert's weight: sums over all experts of a model stay below 2^63
BY_USES = ("popular", "profile", "global-popular")
BEST_LAST = (*BY_USES, "buddy-coverage")  # chosen first, the most valuable land last: it is the most recent


def first_residents(
    kind: str,
    n_layers: int,
    n_experts: int,
    slots: Int,
    pooled: bool,
    calibration: RoutingTrace | None = None,
    seed: int = 0,
    lists: BuddyLists | None = None,
    counts: npt.NDArray[Any] | None = None,
) -> Int:
    """int64 [n]: global ids (layer * E + expert) in the order they land, layer by layer; never more than
    slots.

    kind: a placement by name. first: expert 0, 1, ... of each layer (one pool: expert 0 of every layer, then
    expert 1, ...). empty: nobody. random: experts of lowest hash64(seed, layer, expert), in that order. popular,
    profile, global-popular: the most used in calibration, or by `counts` [L, E]; among experts equally popular the
    lower (global) id counts as the more popular, so it is chosen first and lands last. buddy-coverage: the greedy
    set that leaves the least calibration weight without a resident buddy of the run's `lists`; choice, guarantee
    and ties: see the head of this file. slots: int64 [L], or [1] when pooled. Raises SpecError for an unknown kind,
    slots of another shape or below zero, a fitted kind without a calibration trace of L layers and E experts,
    and `buddy-coverage` without lists, or with lists of another shape.
    """
    wanted = (1,) if pooled else (n_layers,)
    if np.shape(slots) != wanted or np.min(slots) < 0:
        raise SpecError(
            f"placement {kind}: slots is {np.asarray(slots).tolist()}; {wanted[0]} numbers from 0 are needed"
        )
    if kind == "buddy-coverage":
        order = _coverage(n_layers, n_experts, pooled, calibration, lists)
    else:
        uses = _uses(counts, calibration, n_layers, n_experts) if kind in BY_USES else None
        order = _order(kind, n_layers, n_experts, pooled, uses, seed)
    if kind == "empty":
        return np.zeros(0, np.int64)
    chosen = [line[: int(n)] for line, n in zip(order, slots, strict=True)]
    return np.concatenate([line[::-1] for line in chosen] if kind in BEST_LAST else chosen)


def popular_slots(
    total: int,
    n_layers: int,
    n_experts: int,
    calibration: RoutingTrace | None = None,
    counts: npt.NDArray[Any] | None = None,
) -> Int:
    """int64 [L]: how many of each layer are among the `total` most used pairs of layer and expert, in calibration or by
    `counts` [L, E]; of pairs equally used the lower layer's, then the lower id, come first."""
    uses = _uses(counts, calibration, n_layers, n_experts).reshape(-1)
    chosen = np.argsort(-uses, kind="stable")[:total]
    return np.bincount(chosen // n_experts, minlength=n_layers).astype(np.int64)


def _order(kind: str, n_layers: int, n_experts: int, pooled: bool, uses: npt.NDArray[Any] | None, seed: int) -> Int:
    """int64 [scopes, experts of the scope]: global ids in the order in which they are chosen."""
    every = np.arange(n_layers * n_experts).reshape(n_layers, n_experts)
    if uses is not None:
        key: npt.NDArray[Any] = -uses
    elif kind == "random":
        key = hash64(seed, np.arange(n_layers)[:, None], np.arange(n_experts))
    elif kind in ("first", "empty"):
        key = every % n_experts
    else:
        raise SpecError(f"placement {kind} is unknown")
    if pooled:
        every, key = every.reshape(1, -1), key.reshape(1, -1)
    return np.take_along_axis(every, np.argsort(key, axis=1, kind="stable"), axis=1)


def _coverage(
    n_layers: int, n_experts: int, pooled: bool, calibration: RoutingTrace | None, lists: BuddyLists | None
) -> Int:
    """As `_order`. The pool's greedy choice is that of the layers, merged by gain: they share no experts."""
    trace = _calibrated("buddy-coverage", calibration, n_layers, n_experts)
    if lists is None:
        raise SpecError("placement buddy-coverage needs buddy lists")
    order, gain = coverage_order(trace, lists)
    order += np.arange(n_layers)[:, None] * n_experts
    if not pooled:
        return order
    flat = order.reshape(-1)
    uses = expert_counts(trace).reshape(-1)[flat]
    return flat[np.lexsort((flat, -uses, -gain.reshape(-1)))][None]


def _uses(
    counts: npt.NDArray[Any] | None, calibration: RoutingTrace | None, n_layers: int, n_experts: int
) -> npt.NDArray[Any]:
    if counts is None:
        return expert_counts(_calibrated("popular", calibration, n_layers, n_experts))
    if counts.shape != (n_layers, n_experts):
        raise SpecError(f"placement popular: counts has shape {counts.shape}; {(n_layers, n_experts)} is required")
    return counts


def _calibrated(kind: str, calibration: RoutingTrace | None, n_layers: int, n_experts: int) -> RoutingTrace:
    if calibration is None:
        raise SpecError(f"placement {kind} needs a calibration trace")
    if (calibration.n_moe_layers, calibration.n_experts) != (n_layers, n_experts):
        raise SpecError(
            f"placement {kind}: the calibration trace has {calibration.n_moe_layers} MoE layers of "
            f"{calibration.n_experts} experts; {n_layers} of {n_experts} are required"
        )
    return calibration


# --- buddy coverage ---


def coverage_order(calibration: RoutingTrace, lists: BuddyLists) -> tuple[Int, Int]:
    """(order, gain), int64 [L, E] each: every expert of a layer in the order in which the greedy choice takes
    it, and the units of `wanted_units` that it covers and those before it do not; never rising along a layer.

    Equal gains go to the more popular in calibration (uses), then to the lower id. Raises SpecError where
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
