"""What the routers of a live model have said so far: the arrays of a routing trace, filled row by row.

They are the plan's own arrays: `sim.core` reads them through views that cannot write, and sees what is filled in later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.closed_loop.live_prefetch import LivePrefetch
from traces.format.trace import RoutingTrace

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ModelShape:
    """What a closed loop must know of a model's routing. moe_layers: indices of its MoE layers among n_layers."""

    name: str
    n_layers: int
    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    norm_topk: bool = True
    score_function: str = "softmax"

    def meta(self, **more: Any) -> dict[str, Any]:
        """As a routing trace describes it."""
        return {
            "format_version": 1,
            "model": self.name,
            "n_experts": self.n_experts,
            "top_k": self.top_k,
            "n_layers": self.n_layers,
            "moe_layers": list(self.moe_layers),
            "norm_topk": self.norm_topk,
            "score_function": self.score_function,
            "real": True,
            **more,
        }

    def blank(self, tokens: int = 1) -> RoutingTrace:
        """A trace of this shape in which nothing is routed yet."""
        rows = (tokens, len(self.moe_layers))
        return RoutingTrace(
            experts=np.full((*rows, self.top_k), -1, np.int16),
            weights=np.zeros((*rows, self.top_k), np.float32),
            logits=np.zeros((*rows, self.n_experts), np.float16),
            sequence=np.zeros(tokens, np.int32),
            position=np.arange(tokens, dtype=np.int32),
            prefill=np.zeros(tokens, np.bool_),
            meta=self.meta(),
        )


def ordered_half(logits: npt.NDArray[np.floating[Any]], ids: Array) -> npt.NDArray[np.float16]:
    """float16 [n, E] of float logits [n, E] that rank as those do, exactly: where rounding made two equal, the lower
    steps down to the next float16. Equal logits rank as the core has it (the lower id first), but the router's own ids
    [n, K] before others."""
    chosen = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(chosen, np.maximum(ids, 0), True, axis=1)
    out: npt.NDArray[np.float16] = np.clip(logits, -60000, 60000).astype(np.float16)
    order = np.lexsort((np.broadcast_to(np.arange(logits.shape[1]), logits.shape), ~chosen, -logits), axis=1)
    ranked = np.take_along_axis(out, order, axis=1)
    exact = np.take_along_axis(logits, order, axis=1)
    falls = (exact[:, 1:] < exact[:, :-1]) | (order[:, 1:] < order[:, :-1])  # must be strictly below the one before
    for row in np.flatnonzero((falls & (ranked[:, 1:] >= ranked[:, :-1])).any(axis=1)):
        for i in range(1, logits.shape[1]):
            before = ranked[row, i - 1]
            if falls[row, i - 1]:
                ranked[row, i] = min(ranked[row, i], np.nextafter(before, np.float16(-np.inf)))
            else:
                ranked[row, i] = min(ranked[row, i], before)
    np.put_along_axis(out, order, ranked, axis=1)
    return out


class Room:
    """The arrays that fill as the run goes: T tokens, S steps there is room for, each row by row."""

    def __init__(self, shape: ModelShape, live_prefetch: LivePrefetch | None) -> None:
        none = shape.blank(1)
        self.live_prefetch = live_prefetch
        self.experts, self.weights, self.logits = (np.empty((0, *a.shape[1:]), a.dtype) for a in _routed(none))
        self.row, self.request, self.position = (np.zeros(0, np.int32) for _ in range(3))
        self.offset, self.prefill = np.zeros(1, np.int64), np.zeros(0, np.bool_)
        self.leaving_offset, self.leaving_row = np.zeros(1, np.int64), np.zeros(0, np.int32)
        self.fresh = np.zeros(0, np.bool_)

    def grow(self, tokens: int, steps: int) -> bool:
        """Room for at least so many; False where there was."""
        if tokens <= len(self.row) and steps <= len(self.prefill):
            return False
        tokens, steps = (max(have, 2 * have * (need > have), need) for need, have in (
            (tokens, len(self.row)), (steps, len(self.prefill)),
        ))  # fmt: skip
        self.experts, self.weights, self.logits = (longer(a, tokens) for a in (self.experts, self.weights, self.logits))
        self.request, self.position = longer(self.request, tokens), longer(self.position, tokens)
        self.row = np.arange(tokens, dtype=np.int32)
        self.leaving_offset, self.leaving_row = (
            longer(self.leaving_offset, steps + 1),
            longer(self.leaving_row, tokens),
        )
        self.offset, self.prefill = longer(self.offset, steps + 1), longer(self.prefill, steps)
        self.fresh = longer(self.fresh, steps)
        if self.live_prefetch is not None:
            self.live_prefetch.grow(tokens)
        return True

    def begin(self, step: int, rows: slice, requests: Sequence[int], positions: Sequence[int], prefill: bool) -> None:
        self.fresh[step] = not np.isin(requests, self.request[: rows.start]).any()  # one sequence after another
        self.request[rows], self.position[rows] = requests, positions
        self.offset[step], self.offset[step + 1], self.prefill[step] = rows.start, rows.stop, prefill

    def leave(self, step: int, rows: Array) -> None:
        """These rows are forgotten at this step by an eviction policy that looks back."""
        first = self.leaving_offset[step]
        self.leaving_row[first : first + len(rows)] = rows
        self.leaving_offset[step + 1] = first + len(rows)

    def foretell(self, step: int, first: int, rows: int) -> None:
        """The step after this one will have so many rows."""
        self.offset[step + 2] = first + rows

    def requests(self, tokens: int, steps: int) -> Int:
        """int64 [n, 5], as sim.steps has them: request, admitted, last_prefill, first_decode, generated."""
        step_of = np.repeat(np.arange(steps), np.diff(self.offset[: steps + 1]))
        prefill = self.prefill[:steps]
        decode_number = np.cumsum(~prefill) - 1
        out = []
        for request in dict.fromkeys(self.request[:tokens].tolist()):
            own = np.unique(step_of[self.request[:tokens] == request])
            prompt, decode = own[prefill[own]], own[~prefill[own]]
            last = int(prompt[-1]) if len(prompt) else -1
            first = int(decode_number[decode[0]]) if len(decode) else int((~prefill[: last + 1]).sum())
            out.append((request, int(own[0]), last, first, len(decode)))
        return np.array(out, np.int64).reshape(-1, 5)

    def trace(self, tokens: int, steps: int, meta: dict[str, Any], with_logits: bool) -> RoutingTrace:
        request = self.request[:tokens]
        place = {r: i for i, r in enumerate(dict.fromkeys(request.tolist()))}
        order = np.argsort([place[r] for r in request.tolist()], kind="stable")
        prefill = np.repeat(self.prefill[:steps], np.diff(self.offset[: steps + 1]))
        return RoutingTrace(
            experts=self.experts[:tokens][order],
            weights=self.weights[:tokens][order],
            logits=self.logits[:tokens][order] if with_logits else None,
            sequence=request[order],
            position=self.position[:tokens][order],
            prefill=prefill[order],
            meta=meta,
        )


def _routed(trace: RoutingTrace) -> tuple[Array, Array, Array]:
    assert trace.weights is not None and trace.logits is not None
    return trace.experts, trace.weights, trace.logits


def longer(array: Array, n: int) -> Array:
    """The array with zeros behind it up to a length of n; the same one where it is as long."""
    if len(array) >= n:
        return array
    out = np.zeros((n, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def slot_order(ids: Array, weights: Array) -> Int | None:
    """The slots [n, K] as a trace has them: by descending weight, ties by id; None where they stand so already."""
    if (weights[:, :-1] > weights[:, 1:]).all():
        return None
    return np.lexsort((ids, -weights), axis=1)


def taken(order: Int | None, values: Array) -> Array:
    """Values [n, K] of the router's slots, in the core's order."""
    return values if order is None else np.take_along_axis(values, order, axis=1)


def scattered(slot: Int | None, values: Array) -> Array:
    """Values [n, K] of slots in the core's order, put where the router has them."""
    if slot is None:
        return values
    out = np.empty_like(values)
    np.put_along_axis(out, slot, values, axis=1)
    return out
