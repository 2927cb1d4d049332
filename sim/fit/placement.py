"""Who is resident before time 0, in the order in which they land."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.fit.errors import FitError
from traces.stats import expert_counts
from traces.trace import RoutingTrace, hash64

Int = npt.NDArray[np.int64]

PLACEMENTS = {
    "first": "expert 0, 1, ... of each layer (one pool: expert 0 of every layer, then expert 1, ...)",
    "empty": "nobody",
    "popular": "the most used experts in calibration, the most popular last (ties: the lower id)",
    "random": "experts of lowest hash64(seed, layer, expert), in that order",
}


def first_residents(
    kind: str,
    n_layers: int,
    n_experts: int,
    slots: Int,
    pooled: bool,
    calibration: RoutingTrace | None = None,
    seed: int = 0,
) -> Int:
    """int64 [n]: global ids (layer * E + expert) in the order they land, layer by layer; never more than
    slots.

    kind: a key of PLACEMENTS. slots: int64 [L], or [1] when pooled. Among experts equally popular the lower
    (global) id counts as the more popular, so it is chosen first and lands last. Raises FitError for an
    unknown kind, slots of another shape or below zero, and `popular` without a calibration trace of L layers
    and E experts.
    """
    wanted = (1,) if pooled else (n_layers,)
    if np.shape(slots) != wanted or np.min(slots) < 0:
        raise FitError(
            f"placement {kind}: slots is {np.asarray(slots).tolist()}; {wanted[0]} numbers from 0 are needed"
        )
    order = _order(kind, n_layers, n_experts, pooled, calibration, seed)
    if kind == "empty":
        return np.zeros(0, np.int64)
    chosen = [line[: int(n)] for line, n in zip(order, slots, strict=True)]
    return np.concatenate([line[::-1] for line in chosen] if kind == "popular" else chosen)


def _order(kind: str, n_layers: int, n_experts: int, pooled: bool, calibration: RoutingTrace | None, seed: int) -> Int:
    """int64 [scopes, experts of the scope]: global ids in the order in which they are chosen."""
    every = np.arange(n_layers * n_experts).reshape(n_layers, n_experts)
    if kind == "popular":
        key: npt.NDArray[Any] = -_popularity(calibration, n_layers, n_experts)
    elif kind == "random":
        key = hash64(seed, np.arange(n_layers)[:, None], np.arange(n_experts))
    elif kind in ("first", "empty"):
        key = every % n_experts
    else:
        raise FitError(f"placement {kind} is unknown; known: {', '.join(PLACEMENTS)}")
    if pooled:
        every, key = every.reshape(1, -1), key.reshape(1, -1)
    return np.take_along_axis(every, np.argsort(key, axis=1, kind="stable"), axis=1)


def _popularity(calibration: RoutingTrace | None, n_layers: int, n_experts: int) -> Int:
    if calibration is None:
        raise FitError("placement popular needs a calibration trace")
    if (calibration.n_moe_layers, calibration.n_experts) != (n_layers, n_experts):
        raise FitError(
            f"placement popular: the calibration trace has {calibration.n_moe_layers} MoE layers of "
            f"{calibration.n_experts} experts; {n_layers} of {n_experts} are required"
        )
    return expert_counts(calibration)
