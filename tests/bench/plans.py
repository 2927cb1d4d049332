"""Plans to be timed: rows of a trace over and over until there are so many expert requests, with fixed durations.

Nothing here asks for more of `sim` than plans and what is fitted, so that workers in older checkouts can use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.core.plan import Choice, Costs, Plan, Prefetch
from sim.fit.buddies import BuddyProfile
from sim.policies.registry import MISS
from traces.format import npz
from traces.format.trace import RoutingTrace

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = ROOT.parent / "shared" / "traces"
BUDGET = 2  # transfers that may be queued ahead, per visit


def captures() -> dict[str, RoutingTrace]:
    """Mixtral (k = 2) and OLMoE (k = 8) if they are there, else the sample."""
    found = [CAPTURES / name for name in ("mixtral-8x7b.npz", "olmoe-1b-7b.npz")]
    paths = [path for path in found if path.exists()] or [npz.find("mixtral.npz")]
    return {path.stem: npz.read(path) for path in paths}


def repeated(trace: RoutingTrace, requests: float, prefetch: bool = False) -> Plan:
    """Decode rows over and over, one token a step; half the experts have a slot; prefetch: gate-lookahead."""
    rows = decode_rows(trace)
    per_row = (trace.experts[rows] >= 0).sum() / len(rows)
    row = np.resize(rows, max(1, round(requests / per_row)))
    plan = plan_of(trace.experts.astype(np.int16), trace.n_experts, row)
    return replace(plan, prefetch=_lookahead(trace, row)) if prefetch else plan


def decode_rows(trace: RoutingTrace) -> npt.NDArray[np.int32]:
    """The trace's rows of generated tokens."""
    return np.flatnonzero(~trace.prefill).astype(np.int32)


def plan_of(experts: Any, n_experts: int, row: Any, batch: int = 1, slots: int | None = None) -> Plan:
    """lru + fetch over these rows of experts [T, L, K], so many in each step; slots: of each layer, else for half the
    experts; the first ones are resident."""
    layers, steps = experts.shape[1], len(row) // batch
    slots = n_experts // 2 if slots is None else slots
    residents = np.arange(layers)[:, None] * n_experts + np.arange(slots)
    return Plan(
        experts=experts,
        n_experts=n_experts,
        step_offset=np.arange(steps + 1) * batch,
        step_row=np.ascontiguousarray(row[: steps * batch], np.int32),
        step_prefill=np.zeros(steps, bool),
        costs=_costs(layers, steps, batch),
        slots=np.full(layers, slots),
        pooled=False,
        residents=residents.reshape(-1),
        expert_bytes=1,
        eviction=Choice("lru", 0),
        miss=Choice("fetch", 0),
    )


def _costs(layers: int, steps: int, batch: int) -> Costs:
    return Costs(
        dense_ns=np.full((1, layers + 1), 10_000),
        head_ns=np.zeros(1, np.int64),
        cost_class=np.zeros(steps, np.int32),
        decide_ns=0,
        group_ns=0,
        expert_ns=np.full(batch + 1, 5_000),
        cpu_expert_ns=np.full((2, batch + 1), 50_000),
        transfer_ns=np.array([100_000, 100_000]),
    )


def _lookahead(trace: RoutingTrace, row: npt.NDArray[np.int32]) -> Prefetch:
    """What gate-lookahead hands over for these rows: the trace's lists at distance 1, else those of `fed`."""
    lists = np.ascontiguousarray(fed(trace).lookahead[:1], np.int16)
    return Prefetch(lists, row[None], budget=BUDGET)


def fed(trace: RoutingTrace) -> RoutingTrace:
    """The trace with all that some policy reads. What it lacks is SYNTHETIC: weights that fall by halves, logits whose
    highest are the routed experts', lookahead lists of the routed experts with every third wrong."""
    made = replace(trace, meta=dict(trace.meta))
    if trace.weights is None:
        falling = 0.5 ** np.arange(trace.top_k)
        weights = np.broadcast_to((falling / falling.sum()).astype(np.float16), trace.experts.shape)
        made = replace(made, weights=weights)
    if trace.logits is None:
        made = replace(made, logits=_logits(trace))
    if trace.lookahead is None:
        wrong = (np.arange(trace.experts.size).reshape(trace.experts.shape) % 3) == 0
        lists = np.where(wrong, (trace.experts + 1) % trace.n_experts, trace.experts)[None].astype(np.int16)
        lists[:, :, 0] = -1  # nothing of the token is known before its first MoE layer
        made = replace(made, lookahead=lists, meta={**made.meta, "lookahead_distances": [1]})
    return made


def _logits(trace: RoutingTrace) -> npt.NDArray[np.float16]:
    """float16 [T, L, E]: bell-shaped, the highest for the routed experts in their order."""
    tokens, layers, top_k = trace.experts.shape
    rng = np.random.default_rng(0)
    place = np.tile(1.0 + rng.permutation(trace.n_experts), (tokens, layers, 1))
    for k in reversed(range(top_k)):
        ids = trace.experts[..., k].astype(np.int64)
        there = np.nonzero(ids >= 0)
        place[(*there, ids[there])] = k / top_k - 1
    falling = -np.sort(-rng.normal(0, 1.5, trace.n_experts))
    return falling[place.argsort(axis=-1).argsort(axis=-1)].astype(np.float16)


def with_buddies(plan: Plan, trace: RoutingTrace) -> Plan:
    """The full buddy policy (all gates of preset `buddy`), fitted on the trace itself."""
    source = fed(trace) if trace.weights is None else trace
    lists = BuddyProfile().fit(source).lists_
    tau = np.full(trace.n_moe_layers, 0.95)
    return replace(
        plan,
        miss=MISS["buddy"].choice({}),
        weights=source.weights,
        tau=tau,
        peers=lists.peers,
        peer_q=lists.q,
        lossy_prefill=False,
    )


def whole(plan: Plan) -> Plan:
    """The same run of a trace that holds every row in its place, instead of some rows over and over."""
    row = np.arange(len(plan.step_row), dtype=np.int32)
    return replace(plan, experts=plan.experts[plan.step_row], step_row=row)


def first_steps(plan: Plan, steps: int) -> Plan:
    """The run of its first steps."""
    costs = replace(plan.costs, cost_class=plan.costs.cost_class[:steps])
    offset, rows = plan.step_offset[: steps + 1], plan.step_row[: plan.step_offset[min(steps, len(plan.step_prefill))]]
    return replace(plan, step_offset=offset, step_row=rows, step_prefill=plan.step_prefill[:steps], costs=costs)


def requests_of(plan: Plan) -> int:
    """Expert requests: entries of all rows, over all layers."""
    return int((plan.experts[plan.step_row] >= 0).sum())


@dataclass(frozen=True)
class Shape:
    """A run whose routing is drawn: so many requests, experts, layers, rows of a step, entries of a row; slots: share
    of the experts that has one."""

    requests: int = 1_000_000
    experts: int = 64
    layers: int = 16
    batch: int = 1
    top_k: int = 4
    slots: float = 0.5

    @staticmethod
    def varied(axis: str, value: float) -> "Shape":
        return replace(Shape(), **{axis: value})

    def plan(self, tokens: int = 2048) -> Plan:
        """Each token's experts from popularities that fall as 1 / sqrt(rank), drawn anew for each layer and token."""
        rng = np.random.default_rng(0)
        popular = -0.5 * np.log(1 + np.argsort(rng.random((self.layers, self.experts)), axis=-1))
        chosen = np.empty((tokens, self.layers, self.top_k), np.int16)
        for layer in range(self.layers):
            scores = popular[layer] + rng.gumbel(size=(tokens, self.experts))
            chosen[:, layer] = np.argpartition(-scores, self.top_k - 1, axis=-1)[:, : self.top_k]
        rows = max(self.batch, round(self.requests / (self.layers * self.top_k)))
        row = np.resize(np.arange(tokens, dtype=np.int32), rows - rows % self.batch)
        return plan_of(chosen, self.experts, row, self.batch, max(1, round(self.slots * self.experts)))


Traces = Mapping[str, RoutingTrace]
