"""What `visit.decide` is handed beside the state: the plan's arrays, frozen, and None for what a run does not use."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.core import state as st
from sim.core.jit import choice, frozen
from sim.core.miss import Miss
from sim.core.plan import BY_NEXT_USE, LISTED, LOOKS_BACK, ONE_BY_ONE, ORDERS, Leaving, Plan, Prefetch
from sim.core.state import NEVER

Int = npt.NDArray[np.int64]


class Route(NamedTuple):
    """What the router wants: see plan.Plan and plan.Leaving. next_use int32 [R, L, K]: the next visit that wants the
    same expert, -1 never (evictions by next use only, else empty). fresh, resets: plan.Plan's, empty: never."""

    experts: npt.NDArray[np.int16]
    step_offset: Int
    step_row: npt.NDArray[np.int32]
    step_prefill: npt.NDArray[np.bool_]
    next_use: npt.NDArray[np.int32]
    leaving_offset: Int
    leaving_row: npt.NDArray[np.int32]
    fresh: npt.NDArray[np.bool_]
    resets: npt.NDArray[np.bool_]


class Ahead(NamedTuple):
    """What the prefetcher predicts: see plan.Prefetch."""

    lists: npt.NDArray[np.int16]
    row: npt.NDArray[np.int32]
    rank_key: Int
    within_ns: Int  # empty: no such rule
    each_ns: int  # of a transfer that follows another
    nearest: int  # distance, less one, that any list is for


@choice
def _next_uses(experts: Any, step_offset: Any, step_row: Any, last: Any, n_experts: int, out: Any) -> None:
    """Walk the visits backwards; `last` [G] ends as the first visit that wants each expert."""
    layers, top_k = experts.shape[1], experts.shape[2]
    for step in range(len(step_offset) - 2, -1, -1):
        for layer in range(layers - 1, -1, -1):
            for i in range(step_offset[step], step_offset[step + 1]):
                for k in range(top_k):
                    e = experts[step_row[i], layer, k]
                    if e >= 0 and last[layer * n_experts + e] != NEVER:
                        out[i, layer, k] = last[layer * n_experts + e]
            for i in range(step_offset[step], step_offset[step + 1]):
                for k in range(top_k):
                    e = experts[step_row[i], layer, k]
                    if e >= 0:
                        last[layer * n_experts + e] = step * layers + layer


def inputs(plan: Plan, s: st.State) -> tuple[Route, Miss | None, Ahead | None]:
    """The plan as `decide` takes it. For an eviction by next use, each expert's is looked up (its first, in the state).

    Raises ValueError where the lists of a prefetcher do not fit the plan.

    A run that fetches every miss and predicts nothing has None for the other two, and is compiled without any of it.
    Every other run takes the one version that has everything: a few versions, not one per feature.
    """
    next_use = np.zeros((0, 0, 0), np.int32)
    if plan.eviction.marks & BY_NEXT_USE:
        next_use = np.full((len(plan.step_row), *plan.experts.shape[1:]), -1, np.int32)
        first = np.full(plan.experts.shape[1] * plan.n_experts, NEVER)
        _next_uses(plan.experts, plan.step_offset, plan.step_row, first, plan.n_experts, next_use)
        s.arrays["expert"]["next_use"] = np.resize(first, len(s.expert))  # a low-precision copy's as its original's
    leaving = plan.leaving or Leaving(np.zeros(len(plan.step_prefill) + 1, np.int64), np.zeros(0, np.int32))
    wanted = (plan.experts, plan.step_offset, plan.step_row, plan.step_prefill)
    resets = np.zeros(0, np.bool_) if plan.resets is None else plan.resets
    fresh = plan.fresh if len(plan.fresh) else np.zeros(len(plan.step_prefill), np.bool_)
    route = Route(*map(frozen, (*wanted, next_use, leaving.offset, leaving.row, fresh, resets)))
    miss = Miss.of(plan)
    plain = plan.eviction.function is None and not plan.eviction.marks & (LOOKS_BACK | ONE_BY_ONE | LISTED)
    if plain and not miss.asks and plan.prefetch is None and plan.on_miss is None:
        return route, None, None
    return route, miss, _ahead(plan)


def _ahead(plan: Plan) -> Ahead:
    if plan.prefetch is None:
        none = frozen(np.zeros((0, 0), np.int64))
        return Ahead(frozen(np.zeros((1, 0, 0, 0), np.int16)), frozen(none.astype(np.int32)), none, none, 0, 0)
    p = plan.prefetch
    _refuse_misfit(plan, p)
    key = p.rank_key if p.rank_key.size else np.zeros((p.row.shape[0], p.lists.shape[3]), np.int64)
    within_ns = np.zeros((0, 0), np.int64) if p.within_ns is None else p.within_ns
    nearest = next((d for d, row in enumerate(p.row) if (row >= 0).any()), 0)
    each_ns = int(plan.costs.transfer_ns[1])
    return Ahead(frozen(p.lists), frozen(p.row), frozen(key), frozen(within_ns), each_ns, nearest)


def _refuse_misfit(plan: Plan, p: Prefetch) -> None:
    """Compiled code asks no array how long it is: what somebody made by hand must be what plan.Prefetch says."""
    layers, (distances, rows), listed = plan.experts.shape[1], p.row.shape, p.lists.shape
    fits = {
        f"row: has {rows} rows, fewer than the run's {len(plan.step_row)}": rows >= len(plan.step_row),
        f"row: names a row of lists beyond the last, {listed[1] - 1}": p.row.max(initial=-1) < listed[1],
        f"lists: are for {listed[0]} distances in place of 1 or {distances}": listed[0] in (1, distances),
        f"lists: are of {listed[2]} MoE layers in place of {layers}": listed[2] == layers,
        f"lists: name an expert beyond the last, {plan.n_experts - 1}": p.lists.max(initial=-1) < plan.n_experts,
        f"rank_key: is not [{distances}, {listed[3]}]": (
            ORDERS[p.order] != "probability" or p.rank_key.shape == (distances, listed[3])
        ),
        f"within_ns: is not [{distances}, {layers}]": p.within_ns is None or p.within_ns.shape == (distances, layers),
    }
    for wrong, right in fits.items():
        if not right:
            raise ValueError(f"Prefetch.{wrong}")
