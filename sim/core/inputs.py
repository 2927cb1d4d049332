"""What `visit.decide` is handed beside the state: the plan's arrays, frozen, and None for what a run does not use."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core import state as st
from sim.core.hooks import Hooks, hooked, new_hooks
from sim.core.jit import whole
from sim.core.memory import Memory, Struct, packed, record
from sim.core.miss import NONE, Miss, asks
from sim.core.plan import BY_NEXT_USE, BY_WORTH, LOOKS_BACK, ORDERS, TOLD_MORE, Leaving, Plan, Prefetch
from sim.core.rules import asked_by_token
from sim.core.state import NEVER

Int = npt.NDArray[np.int64]


class Route(Memory):
    """What the router says: see plan.Plan and plan.Leaving. weights float32 [T, L, K], empty where nobody asks; logits
    uint16 [T, L, E] (float16 bits) or empty; next_use int32 [R, L, K]: the next visit that wants the same expert, -1
    never (evictions by next use only, else empty). fresh, resets: plan.Plan's, empty: never."""

    experts: npt.NDArray[np.int16]
    weights: npt.NDArray[np.float32]
    logits: npt.NDArray[np.uint16]
    step_offset: Int
    step_row: npt.NDArray[np.int32]
    step_prefill: npt.NDArray[np.bool_]
    next_use: npt.NDArray[np.int32]
    leaving_offset: Int
    leaving_row: npt.NDArray[np.int32]
    fresh: npt.NDArray[np.bool_]
    resets: npt.NDArray[np.bool_]


class OfAhead(Struct):
    each_ns: int  # of a transfer that follows another
    nearest: int  # distance, less one, that any list is for


class Ahead(Memory):
    """What the prefetcher predicts: see plan.Prefetch."""

    run: OfAhead
    lists: npt.NDArray[np.int16]
    row: npt.NDArray[np.int32]
    rank_key: Int
    within_ns: Int  # empty: no such rule


@whole
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


def inputs(plan: Plan, s: st.State) -> tuple[Route, Miss | None, Ahead | None, Hooks | None]:
    """The plan as `decide` takes it. For an eviction by next use, each expert's is looked up (its first, in the state).

    Raises ValueError where the lists of a prefetcher do not fit the plan.

    What a run does not use is None, and is not compiled (`parts`).
    """
    answers, predicts, told = parts(plan)
    miss, ahead = Miss.of(plan) if answers else None, _ahead(plan) if predicts else None
    return _route(plan, s), miss, ahead, new_hooks(plan) if told else None


def parts(plan: Plan) -> tuple[bool, bool, bool]:
    """Whether its version answers misses token by token or re-ranks, predicts, and tells evictions more than who ran,
    whose tests alone would slow the others: with an answer all of it, which compiles long enough as it is.

    Of rules there are two versions: what answers by expert and evicts by the order of touches or landings, by uses or
    at random, and all of it.
    """
    told = hooked(plan) or bool(plan.eviction.marks & TOLD_MORE)
    if plan.on_miss is None:
        answers = asks(plan)
        return answers, answers or plan.prefetch is not None, answers or told
    everything = told or plan.rerank is not None or asked_by_token(plan) or bool(plan.eviction.marks & BY_WORTH)
    return everything, True, everything


def _route(plan: Plan, s: st.State) -> Route:
    next_use = NONE
    if plan.eviction.marks & BY_NEXT_USE:
        next_use = np.full((len(plan.step_row), *plan.experts.shape[1:]), -1, np.int32)
        first = np.full(plan.experts.shape[1] * plan.n_experts, NEVER)
        experts, offset, row = map(np.ascontiguousarray, (plan.experts, plan.step_offset, plan.step_row))
        _next_uses(experts, offset, row, first, plan.n_experts, next_use)
        s.arrays["expert"]["next_use"] = np.resize(first, len(s.expert))  # a low-precision copy's as its original's
    steps, weighed = len(plan.step_prefill), asks(plan) or plan.eviction.marks & LOOKS_BACK
    leaving = plan.leaving or Leaving(np.zeros(steps + 1, np.int64), np.zeros(0, np.int32))
    return Route(
        **packed(
            experts=(np.int16, plan.experts),
            weights=(np.float32, plan.weights if plan.weights is not None and weighed else NONE),
            logits=(np.uint16, NONE if plan.logits is None else plan.logits.view(np.uint16)),
            step_offset=(np.int64, plan.step_offset),
            step_row=(np.int32, plan.step_row),
            step_prefill=(np.bool_, plan.step_prefill),
            next_use=(np.int32, next_use),
            leaving_offset=(np.int64, leaving.offset),
            leaving_row=(np.int32, leaving.row),
            fresh=(np.bool_, plan.fresh if len(plan.fresh) else np.zeros(steps)),
            resets=(np.bool_, np.zeros(0) if plan.resets is None else plan.resets),
        )
    )


def _ahead(plan: Plan) -> Ahead:
    """Of a run that predicts nothing: no list for any row."""
    none = np.zeros((0, 0))
    if plan.prefetch is None:
        given = dict(lists=(np.int16, NONE[None]), row=(np.int32, none), rank_key=(np.int64, none))
        return Ahead(run=record(OfAhead), **packed(**given, within_ns=(np.int64, none)))
    p = plan.prefetch
    _refuse_misfit(plan, p)
    nearest = next((d for d, row in enumerate(p.row) if (row >= 0).any()), 0)
    return Ahead(
        run=record(OfAhead, each_ns=plan.costs.transfer_ns[1], nearest=nearest),
        **packed(
            lists=(np.int16, p.lists),
            row=(np.int32, p.row),
            rank_key=(np.int64, p.rank_key if p.rank_key.size else np.zeros((p.row.shape[0], p.lists.shape[3]))),
            within_ns=(np.int64, none if p.within_ns is None else p.within_ns),
        ),
    )


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
