"""Whole tokens (all MoE layers of a row at once), appended in any order of requests, made into a trace."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.spill import Spill, check_ids
from traces.format.check import check_meta, validate
from traces.format.layout import Array, give_back
from traces.format.trace import RoutingTrace

NO_ROWS = "no rows; a trace needs at least one"
DTYPES = {"experts": np.int16, "weights": np.float32, "logits": np.float16, "token_ids": np.int32}


class Rows:
    """Appends rows; `trace()` puts a request's rows together and checks everything.

    The first rows say the shape [MoE layers, top_k], and which of weights [n, L, K], logits [n, L, E] and token_ids [n]
    every row brings. dropped: rows that were left out, by why. doubts: what a reader says is unlikely, a line each.
    """

    def __init__(self, path: Path, ask: Ask) -> None:
        self.path, self.ask = path, ask
        self.facts = Spill([("sequence", "<i4"), ("position", "<i4"), ("prefill", "?")], (), ask.scratch)
        self.spills: dict[str, Spill] = {}
        self.dropped: Counter[str] = Counter()
        self.doubts: list[str] = []

    def __len__(self) -> int:
        return self.facts.rows

    def add(
        self, experts: Array, sequence: npt.ArrayLike, position: npt.ArrayLike, prefill: npt.ArrayLike, **more: Array
    ) -> None:
        """experts [n, L, K]; the others [n] or one for all. Raises TraceError for ids and positions out of range."""
        if not len(experts):
            return
        where = f"{self.path}: row {len(self)} and after"
        check_ids(experts, self.ask.n_experts(self.path), where)
        facts = np.empty(len(experts), self.facts.dtype)
        if int(np.max(position)) >= 2**31:
            raise TraceError(f"{where}: position {np.max(position)}; at most {2**31 - 1}")
        facts["sequence"], facts["position"], facts["prefill"] = sequence, position, prefill
        arrays = {"experts": experts, **more}
        if not self.spills:
            self.spills = {name: Spill(DTYPES[name], a.shape[1:], self.ask.scratch) for name, a in arrays.items()}
        for name, spill in self.spills.items():
            if arrays[name].shape[1:] != spill.tail:
                found = f"{name} {list(arrays[name].shape[1:])} a row"
                raise TraceError(f"{where}: {found}; {list(spill.tail)}, as in the first, is required")
            spill.append(_narrowed(arrays[name], spill.dtype, f"{where}: {name}"))
        self.facts.append(facts)

    def trace(self, moe_layers: list[int], nothing: str = NO_ROWS, **meta: Any) -> RoutingTrace:
        """The trace, mapped from temporary files. Raises TraceError, one line, where it is not a valid one; nothing:
        what is said where no row was ever added."""
        if not len(self):
            raise TraceError(f"{self.path}: {nothing}")
        facts = np.asarray(self.facts.array())
        if self.dropped:
            meta["dropped"] = dict(self.dropped)
        if self.doubts:
            meta["doubts"] = list(self.doubts)
        described = self.ask.described(self.path, moe_layers, self.spills["experts"].tail[1], **meta)
        order = _order(facts["sequence"])
        arrays = {name: s.array() if order is None else s.gathered(order) for name, s in self.spills.items()}
        names = ("sequence", "position", "prefill")
        columns = {name: np.ascontiguousarray(facts[name] if order is None else facts[name][order]) for name in names}
        give_back(facts)
        trace = RoutingTrace(meta=check_meta(described, str(self.path)), **arrays, **columns)
        validate(trace, str(self.path))
        return trace


def _order(sequence: Array) -> Array | None:
    """Row order that puts each request's rows together, requests by first appearance; None: they are."""
    if (sequence[1:] >= sequence[:-1]).all():
        return None
    return np.argsort(sequence, kind="stable")


def _narrowed(values: Array, dtype: np.dtype[Any], where: str) -> Array:
    """As the dtype that is kept. Raises TraceError for a number that it cannot hold (NaN is refused later)."""
    if values.size and dtype == np.int32 and (int(values.min()) < -(2**31) or int(values.max()) >= 2**31):
        raise TraceError(f"{where}: {values.max()}; 32-bit integers are required")
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.asarray(values, dtype)
    if dtype == np.float16 and np.isposinf(out).any():
        raise TraceError(f"{where}: {np.max(values)}; at most {np.finfo(np.float16).max:.0f} fits float16")
    return out
