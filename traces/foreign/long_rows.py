"""Logs of cells: some ids of one token in one layer per line, lines in any order.

Cells go to disk as they are read; then every cell is put in its place of a mapped array. What stays in memory depends
on the number of requests alone. A slot without a cell becomes -1, weight 0.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.spill import BLOCK_ROWS, Spill
from traces.format.check import check_meta, validate
from traces.format.layout import Array, give_back
from traces.format.limits import MOST_LAYERS, MOST_SLOTS, MOST_SLOTS_PER_CELL
from traces.format.trace import RoutingTrace

INTEGER = re.compile(r"-?[0-9]{1,9}", re.ASCII)
MOST = {"token": 999_999_999, "layer": MOST_LAYERS - 1, "rank": 999}
NOT_SAID, EMPTY = -1, -2
Int = npt.NDArray[np.int64]


class Long:
    """Collects cells, then builds the trace.

    width: ids per cell (from slot `rank` on). weights: whether cells bring router weights; set to False after the last
    of them, they are left out. resident: whether cells say which experts the engine had (RoutingTrace.resident).
    """

    def __init__(self, path: Path, ask: Ask, width: int, weights: bool, resident: bool = False) -> None:
        self.path, self.ask, self.width, self.weights, self.resident = path, ask, width, weights, resident
        fields: list[Any] = [("line", "<i8"), ("request", "<i4"), ("token", "<i4"), ("layer", "<i2"), ("rank", "<i2")]
        fields += [("prefill", "i1"), ("token_id", "<i4"), ("experts", "<i2", (width,))]
        fields += [("weights", "<f4", (width,))] if weights else []
        fields += [("resident", "?", (width,))] if resident else []
        self.cells = Spill(fields, (), ask.scratch)
        self.names: dict[str, int] = {}
        self._buffer: list[tuple[Any, ...]] = []

    def add(
        self, line: int, request: str, token: int, layer: int, rank: int, prefill: int, experts: Any,
        weights: Any = None, token_id: int = -1, resident: Any = None,
    ) -> None:  # fmt: skip
        """One cell, its values checked. prefill: 1, 0, or NOT_SAID. token_id: -1 = not said."""
        number = self.names.setdefault(request, len(self.names))
        cell = (line, number, token, layer, rank, prefill, token_id, experts)
        self._buffer.append((*cell, *(more for more in (weights, resident) if more is not None)))
        if len(self._buffer) >= BLOCK_ROWS:
            self._spill()

    def wider(self, width: int) -> "Long":
        """The same cells with room for more ids each; those that are there have none (-1, weight 0) in the new places.

        Disk for twice the cells is needed for a moment; a log widens but a few times, to its widest cell.
        """
        self._spill()
        wide = Long(self.path, self.ask, width, self.weights, self.resident)
        wide.names = self.names
        for block in self._blocks():
            cells = np.zeros(len(block), wide.cells.dtype)
            cells["experts"] = -1
            for name in cells.dtype.names or ():
                many = cells[name].ndim == 2
                cells[name][(slice(None), slice(self.width)) if many else slice(None)] = block[name]
            wide.cells.append(cells)
        return wide

    def _spill(self) -> None:
        if self._buffer:
            self.cells.append(np.array(self._buffer, self.cells.dtype))
            self._buffer = []

    def _blocks(self) -> Iterator[Array]:
        cells = self.cells.array()
        for lo in range(0, len(cells), BLOCK_ROWS):
            yield np.asarray(cells[lo : lo + BLOCK_ROWS])
            give_back(cells)

    def build(self, what: str = "line", **meta: Any) -> RoutingTrace:
        """The trace. Raises TraceError for cells out of range, two for one place, gaps, phases out of order."""
        self._spill()
        if not self.cells.rows:
            raise TraceError(f"{self.path}: no rows after line 1; a trace needs at least one")
        layers, ranks, low, high = self._extent()
        top_k = self.ask.model.top_k or ranks[1] + 1
        n_layers = self.ask.model.n_layers or int(layers[-1]) + 1
        self._refuse_above("rank", top_k, "--top-k")
        self._refuse_above("layer", n_layers, "--n-layers")
        described = self.ask.described(self.path, layers.tolist(), top_k, **meta)
        described = check_meta(described | {"n_layers": n_layers}, str(self.path))
        if ranks[0] > 0:
            raise TraceError(f"{self.path}: no {what} has rank 0; ranks are counted from 0")
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(high - low + 1)])
        shape = (int(first[-1]), len(layers), top_k)
        if math.prod(shape) > MOST_SLOTS + MOST_SLOTS_PER_CELL * self.cells.rows * self.width:
            have = f"{self.cells.rows} {what}s for {shape} slots"
            raise TraceError(f"{self.path}: {have}; tokens are numbered without gaps")
        return self._fill(layers, described, low, first)

    def _extent(self) -> tuple[Int, tuple[int, int], Int, Int]:
        """(layers that occur, least and greatest rank, first and last token of each request)."""
        layers, least, most = np.zeros(0, np.int64), MOST["rank"], 0
        low = np.full(len(self.names), MOST["token"], np.int64)
        high = np.zeros(len(self.names), np.int64)
        for block in self._blocks():
            layers = np.union1d(layers, block["layer"])
            last = block["rank"].astype(np.int64) + self.width - 1
            least, most = min(least, int(block["rank"].min())), max(most, int(last.max()))
            np.minimum.at(low, block["request"], block["token"])
            np.maximum.at(high, block["request"], block["token"])
        return layers.astype(np.int64), (least, most), low, high

    def _refuse_above(self, name: str, limit: int, flag: str) -> None:
        width = self.width if name == "rank" else 1
        for block in self._blocks():
            bad = np.flatnonzero(block[name].astype(np.int64) + width > limit)
            if len(bad):
                cell = block[bad[0]]
                value = int(cell[name]) + width - 1
                where = f"{self.path}: line {cell['line']}: {name} = {value}"
                raise TraceError(f"{where}; with {flag} {limit} it is at most {limit - 1}")

    def _fill(self, layers: Int, meta: dict[str, Any], low: Int, first: Int) -> RoutingTrace:
        """Every cell in its place. Rows: request by request, in order of appearance, then by token."""
        total, k = int(first[-1]), int(meta["top_k"])
        shape = (len(layers), k)
        experts = self._filled(np.int16, total, shape, EMPTY)
        weights = self._filled(np.float32, total, shape, 0.0) if self.weights else None
        resident = self._filled(np.bool_, total, shape, False) if self.resident else None
        phase = np.full(total, NOT_SAID, np.int8)
        ids = np.full(total, -1, np.int32)
        for block in self._blocks():
            row = first[block["request"]] + block["token"] - low[block["request"]]
            place = (row * len(layers) + np.searchsorted(layers, block["layer"])) * k + block["rank"]
            slots = place[:, None] + np.arange(self.width)
            self._refuse_twice(block, slots, experts)
            experts[slots] = block["experts"]
            if weights is not None:
                weights[slots] = block["weights"]
            if resident is not None:
                resident[slots] = block["resident"]
            phase[row] = np.maximum(phase[row], block["prefill"])
            ids[row] = np.maximum(ids[row], block["token_id"])
            for array in (experts, weights, resident):
                give_back(array)
        for lo in range(0, len(experts), BLOCK_ROWS):
            np.maximum(experts[lo : lo + BLOCK_ROWS], -1, out=experts[lo : lo + BLOCK_ROWS])
            give_back(experts)
        position = (np.arange(total) + np.repeat(low - first[:-1], np.diff(first))).astype(np.int32)
        if weights is not None:
            meta["slots_ordered_by_weight"] = _descending(weights.reshape(-1, k))
        trace = RoutingTrace(
            experts=experts.reshape(total, *shape),
            sequence=np.repeat(_sequence_ids(list(self.names)), np.diff(first)),
            position=position,
            prefill=self._prefill(phase, position, low, first),
            meta=meta,
            weights=None if weights is None else weights.reshape(total, *shape),
            token_ids=ids if (ids >= 0).all() else None,
            resident=None if resident is None else resident.reshape(total, *shape),
        )
        validate(trace, str(self.path))
        return trace

    def _filled(self, dtype: npt.DTypeLike, rows: int, tail: tuple[int, ...], value: Any) -> Array:
        spill = Spill(dtype, tail, self.ask.scratch)
        spill.fill(rows, value)
        return spill.array().reshape(-1)

    def _refuse_twice(self, block: Array, slots: Int, experts: Array) -> None:
        """Refuse a cell of which a slot is filled already, by an earlier block or in this one."""
        taken = (experts[slots] != EMPTY).any(axis=1)
        flat = slots.reshape(-1)
        order = np.argsort(flat, kind="stable")
        again = order[1:][flat[order][1:] == flat[order][:-1]]
        taken[again // slots.shape[1]] = True
        if taken.any():
            cell = block[int(np.argmax(taken))]
            what = f"token {cell['token']}, layer {cell['layer']}, rank {cell['rank']}"
            hint = "requests need a column sequence, tokens one numbering through prefill and decode"
            raise TraceError(f"{self.path}: line {cell['line']}: {what} is there already; {hint}")

    def _prefill(self, phase: npt.NDArray[np.int8], position: Array, low: Int, first: Int) -> npt.NDArray[np.bool_]:
        """bool [T]: rows up to a request's last prompt cell are prompt rows, the rest are not."""
        said = any((block["prefill"] != NOT_SAID).any() for block in self._blocks())
        if not said:
            return self.ask.prefill(self.path, position)
        end = first[:-1].copy()  # row after each request's last prompt row
        for block in self._blocks():
            row = first[block["request"]] + block["token"] - low[block["request"]]
            prompt = block["prefill"] == 1
            np.maximum.at(end, block["request"][prompt], row[prompt] + 1)
        for block in self._blocks():
            row = first[block["request"]] + block["token"] - low[block["request"]]
            bad = np.flatnonzero((block["prefill"] != 1) & (row < end[block["request"]]))
            if len(bad):
                cell = block[bad[0]]
                what = f"token {cell['token']} is in phase {'decode' if cell['prefill'] == 0 else 'none'}"
                right = "a request's prompt tokens come first"
                raise TraceError(f"{self.path}: line {cell['line']}: {what} before or in its prompt; {right}")
        prefill: npt.NDArray[np.bool_] = np.arange(len(phase)) < np.repeat(end, np.diff(first))
        return prefill


def _descending(weights: Array) -> bool:
    """Whether slots of every token stand in descending weight: [n, K]."""
    for lo in range(0, len(weights), BLOCK_ROWS):
        block = weights[lo : lo + BLOCK_ROWS]
        give_back(weights)
        if (block[:, 1:] > block[:, :-1]).any():
            return False
    return True


def _sequence_ids(names: list[str]) -> npt.NDArray[np.int32]:
    """The names where all are different integers, else 0, 1, ... in order of appearance."""
    numbers = [int(name) for name in names if INTEGER.fullmatch(name)]
    if len(set(numbers)) == len(names):
        return np.array(numbers, np.int32)
    return np.arange(len(names), dtype=np.int32)
