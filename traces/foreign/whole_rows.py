"""Whole tokens (all MoE layers of a row at once), appended in any order of requests, made into a trace."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.foreign.ask import Ask
from traces.foreign.spill import Spill, check_ids
from traces.format.check import check_meta, validate
from traces.format.layout import Array
from traces.format.trace import RoutingTrace

DTYPES = {"weights": np.float32, "logits": np.float16, "token_ids": np.int32}


class Rows:
    """Appends rows; `trace()` puts a request's rows together and checks everything.

    shape: (MoE layers, top_k). optional: which of weights [n, L, K], logits [n, L, E], token_ids [n] every row brings.
    """

    def __init__(self, path: Path, ask: Ask, shape: tuple[int, int], optional: tuple[str, ...] = ()) -> None:
        self.path, self.ask, self.n_experts = path, ask, ask.n_experts(path)
        tails = {"weights": shape, "logits": (shape[0], self.n_experts), "token_ids": ()}
        self.experts = Spill(np.int16, shape, ask.scratch)
        self.facts = Spill([("sequence", "<i4"), ("position", "<i4"), ("prefill", "?")], (), ask.scratch)
        self.optional = {name: Spill(DTYPES[name], tails[name], ask.scratch) for name in optional}

    def __len__(self) -> int:
        return self.experts.rows

    def add(
        self, experts: Array, sequence: npt.ArrayLike, position: npt.ArrayLike, prefill: npt.ArrayLike, **more: Array
    ) -> None:
        """experts [n, L, K]; the others [n] or one for all. Raises TraceError for ids and positions out of range."""
        where = f"{self.path}: row {len(self)} and after"
        check_ids(experts, self.n_experts, where)
        facts = np.empty(len(experts), self.facts.dtype)
        if len(facts) and int(np.max(position)) >= 2**31:
            raise TraceError(f"{where}: position {np.max(position)}; at most {2**31 - 1}")
        facts["sequence"], facts["position"], facts["prefill"] = sequence, position, prefill
        self.experts.append(experts)
        self.facts.append(facts)
        for name, spill in self.optional.items():
            spill.append(_narrowed(more[name], spill.dtype, f"{where}: {name}"))

    def trace(self, moe_layers: list[int], **meta: Any) -> RoutingTrace:
        """The trace, mapped from temporary files. Raises TraceError, one line, where it is not a valid one."""
        if not len(self):
            raise TraceError(f"{self.path}: no rows; a trace needs at least one")
        facts = np.asarray(self.facts.array())
        described = self.ask.described(self.path, moe_layers, self.experts.tail[1], **meta)
        order = _order(facts["sequence"])
        spills = {"experts": self.experts, **self.optional}
        arrays = {name: s.array() if order is None else s.gathered(order) for name, s in spills.items()}
        facts = facts if order is None else facts[order]
        columns = {name: np.ascontiguousarray(facts[name]) for name in ("sequence", "position", "prefill")}
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
    if values.size and dtype.kind == "i" and (int(values.min()) < -(2**31) or int(values.max()) >= 2**31):
        raise TraceError(f"{where}: {values.max()}; 32-bit integers are required")
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.asarray(values, dtype)
    if dtype == np.float16 and np.isposinf(out).any():
        raise TraceError(f"{where}: {np.max(values)}; at most {np.finfo(np.float16).max:.0f} fits float16")
    return out
