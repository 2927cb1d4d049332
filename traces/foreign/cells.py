"""Records of home-made logs, each some ids of one token in one layer, made into a trace whatever says the token.

A log that numbers its tokens may have its records in any order (long_rows). One that does not is taken in its order:
records of a layer that follow one another are the tokens of a pass (passes).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.long_rows import MOST, NOT_SAID, Long
from traces.foreign.passes import Passes
from traces.format.limits import MOST_IDS
from traces.format.trace import RoutingTrace

IN_ORDER = "no positions in it: records of a layer that follow one another are taken as tokens in their order"


class Cell(NamedTuple):
    """One record. experts: ids, -1 = none; weights: as many, or None. token: None where the log does not number its
    tokens. rank: the slot of the first id; None: slot 0, or, of a log with an id per record, the one after the record
    before. prefill: 1, 0 or NOT_SAID. token_id: -1 = not said."""

    line: int
    where: str
    layer: int
    experts: tuple[int, ...]
    weights: tuple[float, ...] | None
    token: int | None
    rank: int | None
    prefill: int
    sequence: str | None
    token_id: int


class Cells:
    """Collects cells, then builds the trace. at: which fields the log has. single: an id per record, not a list."""

    def __init__(self, path: Path, ask: Ask, at: Mapping[str, str], single: bool) -> None:
        self.path, self.ask, self.single = path, ask, single
        self.weights, self.numbered = "weights" in at, "token" in at
        self.most = ask.model.top_k or MOST["rank"]
        self.long = Long(path, ask, 1, self.weights)
        self.passes = Passes(path, ask, short_last=True)
        self.records = 0
        self._run: list[Cell] = []
        self._held = 0
        self._place: tuple[Any, ...] = ()
        self._slot = 0

    def add(self, cell: Cell) -> None:
        """Raises TraceError for more ids than the model's top-k."""
        self.records += 1
        if len(cell.experts) > self.most:
            flag = f"with --top-k {self.most} there are at most {self.most}"
            right = flag if self.ask.model.top_k is not None else f"at most {self.most} are read"
            raise TraceError(f"{cell.where}: experts has {len(cell.experts)} slots; {right}")
        if self.numbered:
            self._add_numbered(cell)
        else:
            self._add_in_order(cell)

    def _add_numbered(self, cell: Cell) -> None:
        width = len(cell.experts)
        if width > self.long.width:
            self.long = self.long.wider(width)
        none = self.long.width - width
        experts = cell.experts + (-1,) * none
        weights = None if cell.weights is None else cell.weights + (0.0,) * none
        sequence, token = cell.sequence or "0", cell.token or 0
        rank = self._rank(cell)
        self.long.add(cell.line, sequence, token, cell.layer, rank, cell.prefill, experts, weights, cell.token_id)

    def drop_weights(self) -> None:
        """Leave the weights out, which not every record had."""
        self.long.weights = False

    def _rank(self, cell: Cell) -> int:
        if cell.rank is not None or not self.single:
            return cell.rank or 0
        place = (cell.sequence, cell.token, cell.layer)
        self._slot = self._slot + 1 if place == self._place else 0
        self._place = place
        return self._slot

    def _add_in_order(self, cell: Cell) -> None:
        if self._run and _block(cell) != _block(self._run[0]):
            self._flush()
        self._run.append(cell)
        self._held += len(cell.experts)
        if self._held > MOST_IDS // 16:  # records of some hundred bytes each
            many = f"over {MOST_IDS // 16} ids of layer {cell.layer} in a row"
            raise TraceError(f"{cell.where}: {many}; no pass has so many")

    def _flush(self) -> None:
        """Hand on the records of one layer that followed one another."""
        first, width = self._run[0], self._width()
        ids = np.full((len(self._run), width), -1, np.int64)
        weights = np.zeros(ids.shape, np.float32) if self.weights else None
        for row, cell in enumerate(self._run):
            ids[row, : len(cell.experts)] = cell.experts
            if weights is not None and cell.weights:
                weights[row, : len(cell.weights)] = cell.weights
        if self.single:
            ids, weights = self._of_slots(ids, first), None if weights is None else self._of_slots(weights, first)
        prefill = None if first.prefill == NOT_SAID else first.prefill
        more: dict[str, Any] = {"weights": weights, "request": first.sequence, "prefill": prefill}
        self.passes.add(first.layer, ids, first.where, **more)
        self._run, self._held = [], 0

    def _width(self) -> int:
        """Slots of a row: of records with an id each 1; else the model's top-k, or the widest record's."""
        if self.single:
            return 1
        return self.ask.model.top_k or max(len(cell.experts) for cell in self._run)

    def _of_slots(self, column: Any, first: Cell) -> Any:
        k = self.ask.top_k(self.path)
        if len(column) % k:
            wrong = f"{len(column)} records of layer {first.layer}; top-{k} makes a multiple of {k}"
            raise TraceError(f"{first.where}: {wrong}")
        return column.reshape(-1, k)

    def trace(self, what: str, doubts: list[str], dropped: Mapping[str, int], **meta: Any) -> RoutingTrace:
        """what: a record, in words. Raises TraceError for a log without one and for an invalid trace."""
        if not self.records:
            raise TraceError(f"{self.path}: no rows after line 1; a trace needs at least one")
        if self.numbered:
            more: dict[str, Any] = {"dropped": dict(dropped)} if dropped else {}
            more |= {"doubts": doubts} if doubts else {}
            return self.long.build(what, **meta, **more)
        self._flush()
        self.passes.rows.dropped.update(dropped)
        self.passes.rows.doubts += [IN_ORDER, *doubts]
        return self.passes.trace(**meta)


def _block(cell: Cell) -> tuple[Any, ...]:
    """What the records of one layer of one pass have in common."""
    return cell.layer, cell.sequence, cell.prefill
