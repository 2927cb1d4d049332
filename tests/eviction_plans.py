"""Random plans of the evictions that keep lists, scores or ghosts, of their parameters, and of how they count.

The rest of a plan is that of tests.plans, or (evictions that keep newcomers out) of tests.on_miss_plans.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from sim.core.plan import ADMIT_PARAMS, FIXED, FORGETS_ROWS, KEEPS_OUT, ONE_BY_ONE, OnMiss, Plan
from sim.core.worth import LFRU
from sim.policies.policy import Policy
from sim.policies.registry import EVICTION, MISS
from tests.on_miss_plans import plan_of
from tests.plans import leaving_within, random_lossy_plan, random_plan

# what is drawn of a parameter; of one that is not here, its default
DRAWN: dict[str, tuple[Any, ...]] = {
    "small": (0.1, 0.3, 0.5, 0.9),
    "window": (1, 2, 3),
    "swap": (1, 2, 5),
    "protected": (0.8, 0.5, 0.0),
    "alpha": (0.5, 0.3, 1.0),
    "low": (0.25, 1.0),
    "k": (1, 2, 2, 3),
    "since": ("ever", "landing"),
    "w": (0, 1, 2, 5),
    "half_life": (1, 4, 16),
    "decay": (0.9, 0.5),
    "kappa": ("none", 0, 0.3, 1),
    "ties": ("older", "id"),
    "touches": ("run", "run", "listed"),
    "atomic": ("yes", "yes", "yes", "no"),
}
EVERY = [name for name, policy in EVICTION.items() if policy.kind >= LFRU or (policy.adds and name != "static")]
WINDOWS = {"w-tinylfu": (0.01, 0.3, 0.6)}


def settings(rng: np.random.Generator, policy: Policy) -> dict[str, Any]:
    """Values of its parameters."""
    out: dict[str, Any] = {}
    for name in policy.parameters:
        values = WINDOWS.get(policy.name, DRAWN["window"]) if name == "window" else DRAWN[name]
        out[name] = values[int(rng.integers(len(values)))]
    if out.get("kappa", "none") != "none":
        out["atomic"] = "yes"  # who is kept is decided for a visit as a whole
    return out


def plan_of_eviction(seed: int, name: str | None = None) -> Plan:
    """One plan; name: of the eviction, else drawn."""
    rng = np.random.default_rng([seed, 18])
    policy = EVICTION[name or EVERY[int(rng.integers(len(EVERY)))]]
    choice = policy.choice(settings(rng, policy))
    base = _base(rng, seed, bool(choice.marks & KEEPS_OUT), bool(choice.marks & ONE_BY_ONE))
    if choice.marks & FIXED and base.pooled:
        return plan_of_eviction(seed + 100_000, policy.name)
    if base.miss.name == "cpu-admit" and not policy.weighs:
        base.miss.params[ADMIT_PARAMS.index("margin")] = 0
    made = replace(base, eviction=choice, leaving=None, fresh=rng.random(len(base.step_prefill)) < 0.2)
    if choice.marks & FORGETS_ROWS:
        made = replace(made, leaving=leaving_within(made, int(choice.params[0])))
    if "logits" in policy.needs or "weights" in policy.needs:
        made = _with_arrays(rng, made)
    if name == "activation-matrix" or policy.name == "activation-matrix":
        made = replace(made, leaving=leaving_within(made, len(made.step_prefill) + 1))
    return _plain(made) if choice.marks & ONE_BY_ONE else made


def _base(rng: np.random.Generator, seed: int, keeps_out: bool, one_by_one: bool) -> Plan:
    if keeps_out or (rng.random() < 0.3 and not one_by_one):
        made = plan_of(seed)
        return replace(made, on_miss=replace(made.on_miss or _nothing(made), stages=0), low=None)
    return random_lossy_plan(seed) if rng.random() < 0.4 else random_plan(seed)


def _nothing(made: Plan) -> OnMiss:
    ns = np.outer(made.costs.transfer_ns, np.arange(made.n_experts + 1))
    return OnMiss(ns, np.zeros(len(made.step_prefill), np.bool_))


def _with_arrays(rng: np.random.Generator, made: Plan) -> Plan:
    """Router weights and logits, with ties."""
    shape = (*made.experts.shape[:2], made.n_experts)
    logits = made.logits if made.logits is not None else rng.integers(-4, 5, shape).astype(np.float16)
    weights = made.weights if made.weights is not None else rng.random(made.experts.shape).astype(np.float16)
    return replace(made, logits=logits, weights=weights)


def _plain(made: Plan) -> Plan:
    """Every miss is fetched, nobody re-ranks."""
    return replace(
        made, miss=MISS["fetch"].choice({}), rerank=None, low=None, on_miss=None, late_counts_as_missing=False
    )
