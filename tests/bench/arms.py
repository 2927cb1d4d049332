"""A plan for every policy of the registry that such a plan can feed; of the others, why not.

What they are fitted on is the trace itself: this is about time, not about hits.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from sim.core.plan import BY_LOGITS, FORGETS_REQUESTS, FORGETS_ROWS, FROM_FRESH, Leaving, Low, OnMiss, Plan, Prefetch
from sim.errors import SpecError
from sim.fit.answers import answer_fields
from sim.on_miss import OWN, layers_lacking
from sim.policies.policy import NONE, Policy
from sim.policies.registry import EVICTION, MISS, PREFETCH, RERANK
from sim.steps import schedule
from tests.bench.plans import BUDGET, decode_rows, fed, repeated, with_buddies
from traces.format.trace import RoutingTrace

LOOKAHEAD, BUDDY, BOTH = "prefetch gate-lookahead", "miss buddy", "gate-lookahead + buddy"
ASKED = {"eviction decayed": 1.5, "eviction random": 1.5, "eviction least-stale": 1.5, LOOKAHEAD: 1.5, BUDDY: 1.6,
         BOTH: 2.2}  # fmt: skip
OTHERS = 2.5  # times the bare lru loop, of every other policy


def asked(name: str) -> str:
    """What an arm's time over the bare loop's is meant to be; nothing of what cannot exist."""
    kind, _, policy = name.partition(" ")
    oracle = kind in TABLES and policy in TABLES[kind] and TABLES[kind][policy].oracle
    return "" if oracle else f"<= {ASKED.get(name, OTHERS):g}"


class Arms:
    """Plans by name, `KIND POLICY`, over the same rows of one trace. folder: for files that policies ask for."""

    def __init__(self, trace: RoutingTrace, requests: float, folder: Path) -> None:
        self.trace, self.fed, self.folder = trace, fed(trace), folder
        self.base = repeated(trace, requests)
        self.runs = _runs(trace)

    def every(self) -> Iterator[str]:
        """The names of all: what the registry has, and lookahead with buddies."""
        for kind, table in TABLES.items():
            yield from (f"{kind} {policy}" for policy in table)
        yield BOTH

    def plan(self, name: str) -> Plan:
        """Raises SpecError that says why there is none."""
        if name == BOTH:
            return with_buddies(self.plan(LOOKAHEAD), self.trace)
        kind, _, policy = name.partition(" ")
        if policy not in TABLES.get(kind, ()):
            raise SpecError(f"{name}: is not there")
        made: Plan = MAKE[kind](self, TABLES[kind][policy])
        return _with_rules(made)

    def evicting(self, policy: Policy) -> Plan:
        choice = policy.choice({})
        by_logits = self.fed.logits if choice.marks & BY_LOGITS else None
        return replace(
            self.base,
            eviction=choice,
            weights=self.fed.weights if "weights" in policy.keeps else None,
            logits=by_logits,
            leaving=self._leaving(choice.marks, choice.params),
            fresh=self._fresh() if choice.marks & FROM_FRESH else np.zeros(0, np.bool_),
        )

    def _begins(self) -> Any:
        """int64 [S]: the step in which the request of each step began; one request after another, over and over."""
        steps = np.arange(len(self.base.step_prefill))
        begins = np.resize(np.diff(self.runs, prepend=-1) != 0, len(steps))
        begins[0] = True
        return np.maximum.accumulate(np.where(begins, steps, 0))

    def _fresh(self) -> Any:
        begins = self._begins()
        return begins == np.arange(len(begins))

    def _leaving(self, marks: int, params: Any) -> Leaving | None:
        """What an eviction that looks back forgets: the step of a window ago, or a request when the next one begins."""
        steps, rows = np.arange(len(self.base.step_prefill) + 1), self.base.step_row
        if marks & FORGETS_ROWS:
            offset = np.maximum(steps - int(params[0]), 0)
        elif marks & FORGETS_REQUESTS:
            offset = np.concatenate([[0], self._begins()])
        else:
            return None
        return Leaving(offset, rows[: offset[-1]])

    def prefetching(self, policy: Policy) -> Plan:
        if policy.drafts:
            raise SpecError("lists are of speculative windows, which these runs have not")
        predictor = policy.predictor({})
        if predictor.fitted:
            predictor.fit(self.fed)
        steps = schedule(self.fed)
        found = predictor.predict(self.fed, steps)
        row = np.asarray(found.row)[:, np.repeat(~steps.prefill, np.diff(steps.offset))]
        over_and_over = row[:, np.arange(len(self.base.step_row)) % row.shape[1]]
        return replace(self.base, prefetch=Prefetch(found.lists, over_and_over, BUDGET, 0, found.rank_key))

    def missing(self, policy: Policy) -> Plan:
        made = replace(self.base, **self._answers(policy, NONE))
        return replace(made, low=_low(made)) if "slots" in policy.prepared else made

    def reranking(self, policy: Policy) -> Plan:
        return replace(self.base, **self._answers(MISS["fetch"], policy))

    def _answers(self, miss: Policy, rerank: Policy) -> dict[str, Any]:
        matrix = {"matrix": str(self._matrix())}
        given = [matrix if "matrix" in policy.prepared else {} for policy in (miss, rerank)]
        fit = lambda profile: profile.fit(self.fed).lists_  # noqa: E731 - a def would say no more
        # an older checkout, which this one is compared with, reads the weights from the trace
        weights = {"weights": lambda: self.fed.weights} if "weights" in signature(answer_fields).parameters else {}
        return answer_fields(
            miss, given[0], rerank, given[1], trace=self.fed, calibration=self.fed, expert_bytes=1, seed=0,
            weighs=False, by_logits=False, fit=fit, **weights,
        )  # fmt: skip

    def _matrix(self) -> Path:
        """A file of similarities between a layer's experts, drawn."""
        path, n = self.folder / "similarity.npz", self.trace.n_experts
        if not path.exists():
            drawn = np.random.default_rng(0).random((self.trace.n_moe_layers, n, n))
            alike = (drawn + drawn.transpose(0, 2, 1)) / 2
            np.savez(path, similarity=np.where(np.eye(n, dtype=bool), 1.0, alike))
        return path


def _runs(trace: RoutingTrace) -> Any:
    """Whose each decode row is."""
    return trace.sequence[decode_rows(trace)].astype(np.int64)


def _low(plan: Plan) -> Low:
    """Copies of half the size, a slot for a quarter of them."""
    costs, slots = plan.costs, np.full(len(plan.slots), max(1, plan.n_experts // 4))
    return Low(slots, 1, costs.transfer_ns // 2, costs.expert_ns // 2)


def _with_rules(plan: Plan) -> Plan:
    """With what an engine does on a miss, plainly, where some choice of the plan needs that."""
    if plan.miss.kind not in OWN and not layers_lacking(plan).any():
        return plan
    run_ns = np.outer(plan.costs.transfer_ns, np.arange(plan.n_experts + 1))
    return replace(plan, on_miss=OnMiss(run_ns, np.zeros(len(plan.step_prefill), np.bool_), table=np.array([0, 0, 1])))


TABLES = {"eviction": EVICTION, "prefetch": PREFETCH, "miss": MISS, "rerank": RERANK}
MAKE: dict[str, Callable[[Arms, Policy], Plan]] = {
    "eviction": Arms.evicting, "prefetch": Arms.prefetching, "miss": Arms.missing, "rerank": Arms.reranking,
}  # fmt: skip
BASE = "eviction lru"
