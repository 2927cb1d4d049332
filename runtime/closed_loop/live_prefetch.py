"""Prefetchers in a closed loop: predictions made while the model runs, from what has been routed by then.

A replay makes all lists beforehand (`sim.fit.predictors`); here the same lists are filled in as their sources become
known, into the arrays of the plan's Prefetch. Which of them can be had: previous-token, popular, transition (the last
two fitted on a calibration trace), and gate-lookahead from the live hidden states. What reads the future, or was made
from a whole trace, cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import ORDERS, Prefetch
from sim.errors import SpecError
from sim.fit.prediction import ids, nearest_first
from sim.fit.predictors import Popular
from sim.fit.transition import Transition
from sim.policies.policy import NONE, is_user
from sim.policies.registry import PREFETCH, find
from sim.spec import RunSpec
from traces.format.trace import RoutingTrace

Array = npt.NDArray[Any]
AVAILABLE = ("previous-token", "popular", "transition", "gate-lookahead")
Ask = Callable[[int, Any], Array]  # (MoE layer, hidden states of an earlier one) -> expert ids [n, K], best first


class LivePrefetch:
    """Lists of one run, filled row by row.

    lists int16 [1 or D, T, L, m], row int32 [D, T], rank_key int64 [D, m]: see sim.core.plan.Prefetch. `ask`: for
    gate-lookahead, set by whoever runs the model.
    """

    def __init__(self, name: str, distance: int, width: int, layers: int, rank_key: Array) -> None:
        self.name, self.distance, self.layers, self.rank_key = name, distance, layers, rank_key
        self.ask: Ask | None = None
        shared = name in ("popular", "previous-token")  # one list for every distance
        self.lists = np.full((1 if shared else distance, 0, layers, width), -1, np.int16)
        self.row = np.full((distance, 0), -1, np.int32)
        self._last: dict[int, int] = {}  # the last row of each request
        self._next: Mapping[int, int] = {}
        self._rows = slice(0, 0)
        self._last_here: dict[int, int] = {}

    def grow(self, tokens: int) -> None:
        """Room for so many rows."""
        have = self.row.shape[1]
        more = tokens - have
        fill = np.full((self.lists.shape[0], more, *self.lists.shape[2:]), -1, np.int16)
        self.lists = np.concatenate([self.lists, fill], axis=1)
        own = np.broadcast_to(np.arange(have, tokens, dtype=np.int32), (self.distance, more))
        self.row = np.concatenate([self.row, own], axis=1)

    def prefetch(self, spec: RunSpec) -> Prefetch:
        """As the plan has it, over the arrays as they are now."""
        budget = -1 if spec.prefetch_budget is None else spec.prefetch_budget
        return Prefetch(self.lists, self.row, budget, ORDERS.index(spec.transfer_order), self.rank_key)

    def begin(self, rows: slice, requests: Sequence[int], ahead: Mapping[int, int]) -> None:
        """A step begins: whose its rows are; ahead: the row that each request is to have in the next step."""
        expected, self._next = self._next, ahead
        self._rows, seen = rows, set()
        for at, request in enumerate(requests, rows.start):
            if expected.get(request) != at:  # this row is not the one that was foretold
                self.forget(at)
                if request not in seen:
                    self.catch_up(request, at)
            seen.add(request)
        self._last_here = {r: at for at, r in enumerate(requests, rows.start)}
        self._last |= self._last_here
        for request, at in ahead.items():
            if request not in self._last_here:
                self.forget(at)

    def forget(self, at: int) -> None:
        self.lists[:, at] = -1

    def catch_up(self, request: int, at: int) -> None:
        """Lists of a request's first row that was not foretold, from its last row where that is possible."""

    def visit(self, layer: int, experts: Array, hidden: Any) -> None:
        """The router has spoken for the rows of this step; experts [T, L, K] holds it."""


class _PreviousToken(LivePrefetch):
    _experts: Array

    def catch_up(self, request: int, at: int) -> None:
        if request in self._last:
            self.lists[0, at] = self._experts[self._last[request], :, : self.lists.shape[3]]

    def visit(self, layer: int, experts: Array, hidden: Any) -> None:
        self._experts = experts
        for request, at in self._next.items():
            if request in self._last_here:
                self.lists[0, at, layer] = experts[self._last_here[request], layer, : self.lists.shape[3]]


class _Popular(LivePrefetch):
    """The same list at all times; the first row of a step holds it."""

    def __init__(self, ranking: Array, *rest: Any) -> None:
        super().__init__(*rest)
        self.lists = np.ascontiguousarray(ranking[None, None])

    def grow(self, tokens: int) -> None:
        more = np.full((self.distance, tokens - self.row.shape[1]), -1, np.int32)
        self.row = np.concatenate([self.row, more], axis=1)

    def begin(self, rows: slice, requests: Sequence[int], ahead: Mapping[int, int]) -> None:
        self.row[:, rows.start : rows.stop + len(ahead)] = -1
        self.row[:, rows.start] = 0
        if ahead:
            self.row[:, rows.stop] = 0


class _Transition(LivePrefetch):
    def __init__(self, fitted: Transition, *rest: Any) -> None:
        super().__init__(*rest)
        pairs = [(d, layer) for d in range(1, self.distance + 1) for layer in range(self.layers)]
        self._rankers = {pair: fitted.ranker(*pair, self.lists.shape[3]) for pair in pairs}

    def visit(self, layer: int, experts: Array, hidden: Any) -> None:
        for d in range(1, self.distance + 1):
            target = (layer + d) % self.layers
            ranker = self._rankers[d, target]
            if layer + d < self.layers:
                self.lists[d - 1, self._rows, target] = ranker(experts[self._rows, layer])
                continue
            for request, at in self._next.items():
                if request in self._last_here:
                    self.lists[d - 1, at, target] = ranker(experts[self._last_here[request], layer][None])[0]


class _GateLookahead(LivePrefetch):
    def visit(self, layer: int, experts: Array, hidden: Any) -> None:
        if self.ask is None or hidden is None:
            raise SpecError(f"prefetch: {self.name}: this model's routers cannot be asked with another layer's state")
        for d in range(1, min(self.distance, self.layers - 1 - layer) + 1):
            self.lists[d - 1, self._rows, layer + d] = self.ask(layer + d, hidden)[:, : self.lists.shape[3]]


def live_prefetch_of(spec: RunSpec, blank: RoutingTrace, calibration: RoutingTrace | None) -> LivePrefetch | None:
    """The prefetcher of a closed loop, None without one. Raises SpecError by name for one that cannot be had."""
    name = spec.prefetch
    if is_user(name) or (name in PREFETCH and name not in AVAILABLE):
        why = "reads the future" if not is_user(name) and PREFETCH[name].oracle else "is made from a whole trace"
        raise SpecError(f"prefetch: {name}: {why}; a closed loop has {', '.join(AVAILABLE)}")
    policy = find("prefetch", name)
    if policy is NONE:
        return None
    method = policy.predictor(spec.params("prefetch"))
    if method.distance > blank.n_moe_layers:
        raise SpecError(f"{name}: distance {method.distance}; the model has {blank.n_moe_layers} MoE layers")
    if method.fitted:
        if calibration is None:
            raise SpecError(f"{name}: is fitted and needs --calibration")
        method.fit(calibration)
    width = min(method.width or blank.top_k, blank.n_experts)
    if name in ("previous-token", "gate-lookahead"):
        width = min(width, blank.top_k)
    key = getattr(method, "rank_key_", None)
    key = nearest_first(method.distance, width) if key is None else key
    rest = (name, method.distance, width, blank.n_moe_layers, key)
    if isinstance(method, Popular):
        return _Popular(ids(method.ranking_), *rest)
    if isinstance(method, Transition):
        return _Transition(method, *rest)
    return _PreviousToken(*rest) if name == "previous-token" else _GateLookahead(*rest)
