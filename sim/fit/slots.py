"""How many slots each layer gets when layers share one memory budget: as many calibration hits as possible.

What is counted (`hit_curves`): a visit is one decode row at one layer, rows in the order of the trace,
requests running on, batch 1; a request of the cache is one distinct expert of a visit. It hits with c slots
when it lies among the c most recent experts as the visit begins, which is LRU's stack property (Mattson,
Gecsei, Slutz, Traiger 1970, IBM Systems Journal 9, 78-117) with the decision taken once per visit, as the
machine classifies. The experts of a visit become the most recent in slot order, the last slot's the most
recent, whatever c is: the machine runs those that hit before those that must land, so with several experts a
visit its order can differ among them, and its hits by a little; with one expert a visit they are equal. Below
the top-k slots the machine serves a visit in turns, and its hits can be fewer than counted here. The cache is
empty at first. Prefetches and buddies are not counted.

Hits over slots need not be concave (a loop over n experts hits nothing below n slots), so marginal hits one
slot at a time can stop short of the optimum; `spread_slots` takes exact dynamic programming over the layers
instead.
"""

import numpy as np
import numpy.typing as npt

from sim.errors import SpecError
from traces.format.trace import RoutingTrace

Int = npt.NDArray[np.int64]

_CHUNK_ELEMENTS = 1 << 18  # of a table that is gone through top-k times: it should stay in cache


def hit_curves(trace: RoutingTrace, as_decode: bool = False) -> Int:
    """int64 [L, E + 1]: hits of each layer's LRU with 0, 1, ... E slots; never falling.

    as_decode: prompt rows count as decode rows. Raises SpecError where the trace has no row to count.
    """
    rows = np.arange(trace.n_tokens) if as_decode else np.flatnonzero(~np.asarray(trace.prefill))
    if not len(rows):
        raise SpecError("slots: the calibration trace has no decode rows; as_decode counts prompt rows")
    n = trace.n_experts
    depths = np.zeros((trace.n_moe_layers, n + 1), np.int64)
    size = max(1, _CHUNK_ELEMENTS // n)
    recency = np.full((trace.n_moe_layers, n), -1, np.int32)
    for lo in range(0, len(rows), size):
        experts = trace.experts[rows[lo : lo + size]]
        for layer in range(trace.n_moe_layers):
            depth, recency[layer] = _depths(experts[:, layer].astype(np.int64), recency[layer])
            depths[layer] += np.bincount(depth, minlength=n + 1)
    hits = np.zeros_like(depths)
    hits[:, 1:] = np.cumsum(depths[:, :-1], axis=1)
    return hits


def _depths(experts: Int, recency: npt.NDArray[np.int32]) -> tuple[Int, npt.NDArray[np.int32]]:
    """(depths, recency after): how many other experts are more recent as the visit begins, E for a first use,
    of the experts int64 [n, K] of successive visits that are there.

    recency: int32 [E], below E, larger = more recent, -1 = never used.
    """
    (visits, k), n = experts.shape, len(recency)
    # latest[e, v]: when e was last used before visit v; one row more takes the absent slots
    latest = np.full((n + 1, visits + 1), -1, np.int32)
    latest[:n, 0] = recency
    at = np.arange(visits)
    for slot in range(k):
        latest[experts[:, slot], at + 1] = n + at * k + slot
    np.maximum.accumulate(latest, axis=1, out=latest)
    before, depths = latest[:n, :-1], []
    for slot in range(k):
        own = latest[experts[:, slot], at]
        depth = (before > own).view(np.uint8).sum(axis=0, dtype=np.uint16)
        depths.append(np.where(own < 0, n, depth)[experts[:, slot] >= 0])
    order = np.argsort(np.argsort(latest[:n, -1], kind="stable"), kind="stable").astype(np.int32)
    return np.concatenate(depths), np.where(latest[:n, -1] < 0, np.int32(-1), order)


def spread_slots(
    calibration: RoutingTrace,
    total: int,
    n_layers: int,
    n_experts: int,
    *,
    least: int = 1,
    as_decode: bool = False,
) -> Int:
    """int64 [L]: slots of each layer, `least` .. E each, `total` of them in all (all L x E, if total is
    more), with the most hits by `hit_curves` that any such spread has; of those the most even (least sum of
    squares).

    Raises SpecError for a calibration trace of another shape, without decode rows (see `hit_curves`), and a
    total that does not give every layer `least` slots.
    """
    have = (calibration.n_moe_layers, calibration.n_experts)
    if have != (n_layers, n_experts):
        raise SpecError(
            f"slots: the calibration trace has {have[0]} MoE layers of {have[1]} experts; "
            f"{n_layers} of {n_experts} are required"
        )
    if not 1 <= least <= n_experts:
        raise SpecError(f"slots: least is {least}; a number from 1 to {n_experts} is required")
    if total < least * n_layers:
        raise SpecError(f"slots: {total} in all; {n_layers} layers need at least {least} each")
    return best_spread(hit_curves(calibration, as_decode), min(total, n_layers * n_experts), least)


def best_spread(hits: Int, total: int, least: int = 1) -> Int:
    """As `spread_slots`, from hits int64 [L, E + 1]; L x least <= total <= L x E.

    Dynamic programming: best[s] over the layers so far with s slots is the maximum over c of the last layer's
    hits with c and best[s - c] without it. Time L x E x total.
    """
    layers, n = len(hits), hits.shape[1] - 1
    # One number to maximise: a hit outweighs every sum of squares.
    worth = hits * (layers * n * n + 1) - np.arange(n + 1) ** 2
    best = np.full(total + 1, np.iinfo(np.int64).min // 2)
    best[0] = 0
    choice = np.zeros((layers, total + 1), np.int32)
    for layer in range(layers):
        ahead = np.full_like(best, np.iinfo(np.int64).min // 2)
        for c in range(least, min(n, total) + 1):
            value = best[: total + 1 - c] + worth[layer, c]
            better = value > ahead[c:]
            np.copyto(ahead[c:], value, where=better)
            np.copyto(choice[layer, c:], np.int32(c), where=better)
        best = ahead
    slots = np.empty(layers, np.int64)
    for layer in reversed(range(layers)):
        slots[layer] = choice[layer, total]
        total -= int(slots[layer])
    return slots
