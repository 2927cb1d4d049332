"""Who is resident before time 0, in the order in which they land."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.fit.errors import FitError
from traces.format.trace import RoutingTrace, hash64
from traces.statistics.stats import expert_counts

if TYPE_CHECKING:
    from sim.fit.buddies import BuddyLists

Int = npt.NDArray[np.int64]

BY_USES = ("popular", "profile")
BEST_LAST = (*BY_USES, "buddy-coverage")  # chosen first, the most valuable land last: it is the most recent


def first_residents(
    kind: str,
    n_layers: int,
    n_experts: int,
    slots: Int,
    pooled: bool,
    calibration: RoutingTrace | None = None,
    seed: int = 0,
    lists: "BuddyLists | None" = None,
    counts: npt.NDArray[Any] | None = None,
) -> Int:
    """int64 [n]: global ids (layer * E + expert) in the order they land, layer by layer; never more than
    slots.

    kind: a placement by name. first: expert 0, 1, ... of each layer (one pool: expert 0 of every layer, then
    expert 1, ...). empty: nobody. random: experts of lowest hash64(seed, layer, expert), in that order. popular,
    profile: the most used in calibration, or by `counts` [L, E]; among experts equally popular the lower (global)
    id counts as the more popular, so it is chosen first and lands last. buddy-coverage: the greedy set that leaves
    the least calibration weight without a resident buddy of the run's `lists`; choice, guarantee and ties: see
    `coverage`. slots: int64 [L], or [1] when pooled. Raises FitError for an unknown kind,
    slots of another shape or below zero, a fitted kind without a calibration trace of L layers and E experts,
    and `buddy-coverage` without lists; BuddyError for lists of another shape.
    """
    wanted = (1,) if pooled else (n_layers,)
    if np.shape(slots) != wanted or np.min(slots) < 0:
        raise FitError(
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
        raise FitError(f"placement {kind} is unknown")
    if pooled:
        every, key = every.reshape(1, -1), key.reshape(1, -1)
    return np.take_along_axis(every, np.argsort(key, axis=1, kind="stable"), axis=1)


def _coverage(
    n_layers: int, n_experts: int, pooled: bool, calibration: RoutingTrace | None, lists: "BuddyLists | None"
) -> Int:
    """As `_order`. The pool's greedy choice is that of the layers, merged by gain: they share no experts."""
    from sim.fit.coverage import coverage_order

    trace = _calibrated("buddy-coverage", calibration, n_layers, n_experts)
    if lists is None:
        raise FitError("placement buddy-coverage needs buddy lists")
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
        raise FitError(f"placement popular: counts has shape {counts.shape}; {(n_layers, n_experts)} is required")
    return counts


def _calibrated(kind: str, calibration: RoutingTrace | None, n_layers: int, n_experts: int) -> RoutingTrace:
    if calibration is None:
        raise FitError(f"placement {kind} needs a calibration trace")
    if (calibration.n_moe_layers, calibration.n_experts) != (n_layers, n_experts):
        raise FitError(
            f"placement {kind}: the calibration trace has {calibration.n_moe_layers} MoE layers of "
            f"{calibration.n_experts} experts; {n_layers} of {n_experts} are required"
        )
    return calibration
