"""Cost classes: steps that cost the same share one row of the cost tables.

A step's dense part and its end depend on its rows and on the KV entries they read, nothing else. A trace of a
million steps has a few thousand such combinations, so the tables stay small.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sim.core.plan import Int

K = TypeVar("K")  # a kind of layer


@dataclass(frozen=True)
class StepShapes:
    """What the costs need of the steps. S steps, R rows, L MoE layers.

    step_offset int64 [S + 1]: rows of step s are step_offset[s]:step_offset[s + 1]. positions int64 [R]:
    place of each row's token in its request, any context offset added. prefill bool [S]: such a step holds
    rows of one request. n_layers: all layers; moe_layers [L]: indices of the MoE layers, rising.
    """

    step_offset: Int
    positions: Int
    prefill: npt.NDArray[np.bool_]
    n_layers: int
    moe_layers: Int

    @property
    def max_rows(self) -> int:
        """The most rows that a step has."""
        return int(np.diff(self.step_offset).max(initial=0))


@dataclass(frozen=True)
class CostClasses:
    """Cost classes: of_step int32 [S]; the rest int64 [classes]. `read` entries come from memory, `scored`
    ones are multiplied."""

    of_step: npt.NDArray[np.int32]
    prefill: npt.NDArray[np.bool_]
    rows: Int
    scored: dict[str, Int]
    read: dict[str, Int]


def classify(steps: StepShapes, window: int | None) -> CostClasses:
    """Decode and prefill steps by rows and KV entries.

    A row at position p attends to p + 1 entries (a window or sparse layer: at most `window`). In a decode step every
    row reads its own; the rows of a prefill step read their request's entries once, together (FlashAttention:
    tiles share them).
    """
    rows = np.diff(steps.step_offset)
    scored = {"full": _sums(steps.positions + 1, steps.step_offset, rows)}
    if window is not None:
        scored["window"] = _sums(np.minimum(steps.positions + 1, window), steps.step_offset, rows)
    of_step = np.empty(len(rows), np.int32)
    parts: list[Int] = []
    for prefill in (False, True):
        where = np.flatnonzero(steps.prefill == prefill)
        if len(where):
            everywhere = len(where) == len(rows)
            columns = [c if everywhere else c[where] for c in (rows, *scored.values())]
            inverse, representative = distinct_rows(columns)
            of_step[where] = inverse + sum(map(len, parts))
            parts.append(where[representative])
    one = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    counts = {kind: sums[one] for kind, sums in scored.items()}
    if window is not None:
        counts["sparse"] = counts["window"]
    is_prefill = steps.prefill[one]
    return CostClasses(of_step, is_prefill, rows[one], counts, _read(steps, one, counts, is_prefill, window))


def _read(
    steps: StepShapes, one: Int, scored: dict[str, Int], prefill: npt.NDArray[np.bool_], window: int | None
) -> dict[str, Int]:
    """KV entries read, per class (`one` = a step of each): what is scored, but shared by the rows of a
    prefill step."""
    if not prefill.any():
        return scored
    begin, end = steps.step_offset[one], steps.step_offset[one + 1]
    last = steps.positions[np.maximum(end - 1, begin)] + 1
    near = np.minimum(last, (window or 0) + (end - begin) - 1)
    reach = {"full": last, "window": near, "sparse": near}
    return {kind: np.where(prefill, reach[kind], entries) for kind, entries in scored.items()}


def _sums(values: Int, offset: Int, rows: Int) -> Int:
    """Sum of `values` over each step."""
    if len(values) == len(rows) and (rows == 1).all():
        return values
    total = np.concatenate(([0], np.cumsum(values)))
    return np.asarray(total[offset[1:]] - total[offset[:-1]], np.int64)


def distinct_rows(columns: list[Int]) -> tuple[Int, Int]:
    """Distinct rows of equally long integer columns: (which one each row is, an index where each one stands).

    The columns are packed into one int64 key. Where its range is small a table finds the keys without
    sorting: at 1.5 million batch-1 steps that took 18 ms where np.unique took 280.
    """
    key, span = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        low, high = int(column.min()), int(column.max())
        if low == high:
            continue
        if span * (high - low + 1) >= 2**62:
            key = np.unique(key, return_inverse=True)[1]
            span = int(key.max()) + 1
        key = key * (high - low + 1) + (column - low)
        span *= high - low + 1
    if span > 4 * len(key) + 2**16:
        _, index, inverse = np.unique(key, return_index=True, return_inverse=True)
        return inverse, index
    where = np.full(span, -1, np.int64)
    where[key] = np.arange(len(key))
    present = np.flatnonzero(where >= 0)
    index = where[present]
    where[present] = np.arange(len(present))
    return where[key], index


def dense_table(steps: StepShapes, classes: CostClasses, kind_of: Callable[[int], K], ns_of: Callable[[K], Int]) -> Int:
    """int64 [classes, L + 1]: layers summed into the MoE layer that they lead to. ns_of: of each kind of layer once,
    int64 [classes]."""
    kinds: dict[K, Int] = {}
    table = np.zeros((len(classes.rows), len(steps.moe_layers) + 1), np.int64)
    for layer, column in enumerate(layer_columns(steps)):
        kind = kind_of(layer)
        if kind not in kinds:
            kinds[kind] = ns_of(kind)
        table[:, column] += kinds[kind]
    return table


def layer_columns(steps: StepShapes) -> Int:
    """For each layer the column of the dense table: the next MoE layer's, or L after the last one."""
    return np.searchsorted(steps.moe_layers, np.arange(steps.n_layers)).astype(np.int64)
