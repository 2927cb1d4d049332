"""The tables of a full record as columns, each made when it is first read.

A log has narrow rows (sim.core.log), because memory costs more than what is written to it. Who reads a record computes
with its columns, for which int32 would be a trap: they are int64, those of times views of the rows.
"""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.log import COLUMNS, Log
from sim.core.plan import PLACES, Plan
from sim.core.state import State

Array = npt.NDArray[Any]
_Made = dict[str, Callable[[Array], Array]]
HOST = PLACES.index("host")


class Columns(UserDict[str, Array]):
    """Columns of one table by name, int64 [rows]; in `data` what has not been read is the function that makes it."""

    def __getitem__(self, name: str) -> Array:
        found = self.data[name] = self.once(name)
        return found

    def once(self, name: str) -> Array:
        """The same for who reads it once: it is not kept."""
        found: Any = self.data[name]
        return np.asarray(found() if callable(found) else found, np.int64)


@dataclass(frozen=True)
class _Ids:
    """What an id says of an expert or its copy, and the number of a chunk of its size."""

    n_experts: int
    layers: int
    n_full: int  # ids from here on are low-precision copies,
    stage_base: int  # and from here on in no slot
    expert_bytes: int
    low_bytes: int
    chunk_bytes: int

    @staticmethod
    def of(plan: Plan, s: State) -> "_Ids":
        low = plan.expert_bytes if plan.low is None else plan.low.bytes
        chunk = 0 if plan.on_miss is None else plan.on_miss.chunk_bytes
        ids = plan.n_experts, plan.experts.shape[1], int(s.run.n_full), int(s.run.stage_base)
        return _Ids(*ids, plan.expert_bytes, low, chunk)

    def expert(self, rows: Array) -> Array:
        return np.asarray(rows["expert"] % self.n_experts)

    def layer(self, rows: Array) -> Array:
        return np.asarray(rows["expert"] // self.n_experts % self.layers)

    def low(self, rows: Array) -> Array:
        return np.asarray((rows["expert"] >= self.n_full) & (rows["expert"] < self.stage_base))

    def bytes(self, rows: Array) -> Array:
        return np.where(self.low(rows), self.low_bytes, self.expert_bytes)

    def place(self, rows: Array) -> Array:
        return np.maximum(1 + (rows["expert"] - self.stage_base) // self.n_full, 0)  # 0 or less: in a slot

    def place_run(self, rows: Array) -> Array:
        """Where an execution ran, which may be the host."""
        return np.where(rows["cpu"] > 0, HOST - 1 + rows["cpu"], self.place(rows))

    def chunk(self, rows: Array) -> Array:
        """Bytes: of the last chunk what remains."""
        return np.minimum(self.chunk_bytes, self.expert_bytes - rows["number"].astype(np.int64) * self.chunk_bytes)


def _on_host(rows: Array) -> Array:
    return np.asarray(rows["cpu"] > 0)


def tables(plan: Plan, s: State, log: Log) -> dict[str, Columns]:
    """What a log has at the end of a run, and what its ids say."""
    rows = {name: log.arrays[name][: getattr(s.rows, name)] for name in COLUMNS}
    found: dict[str, dict[str, Any]] = {
        name: {column: partial(itemgetter(column), of) for column in COLUMNS[name]} for name, of in rows.items()
    }
    for name, columns in _told(plan, _Ids.of(plan, s)).items():
        found[name] |= {column: partial(made, rows[name]) for column, made in columns.items()}
    if plan.on_miss is None:
        del found["transfers"]["run"]
    if plan.chunks == 1:
        del found["chunks"]
    return {name: Columns(columns) for name, columns in found.items()}


def _told(plan: Plan, ids: _Ids) -> dict[str, _Made]:
    """The columns that are not as they are written, by table."""
    executions: _Made = {"expert": ids.expert}
    transfers: _Made = {"expert": ids.expert, "layer": ids.layer, "low": ids.low, "bytes": ids.bytes}
    if plan.on_miss is not None:
        executions |= {"place": ids.place_run, "cpu": _on_host}
        transfers |= {"place": ids.place}
    return {"executions": executions, "transfers": transfers, "chunks": {"bytes": ids.chunk}}
