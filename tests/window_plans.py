"""Plans whose decode steps run speculative windows, made of plans that do not: rows run again, drafts take time, and
of lists some come too late."""

from dataclasses import replace
from typing import Any

import numpy as np

from sim.core.plan import Costs, Plan, Prefetch
from sim.speculation import Speculation
from sim.steps import Steps, schedule
from tests.on_miss_plans import plan_of
from tests.plans import leaving_of, prefetch_of, random_lossy_plan, random_plan
from traces.format.trace import RoutingTrace


def window_plan(seed: int) -> Plan:
    """The plan of one of three kinds, its steps laid anew."""
    base = (random_plan, random_lossy_plan, plan_of)[seed % 3](seed)
    rng = np.random.default_rng([seed, 7])
    steps = laid(rng, base)
    rows = np.diff(steps.offset)
    lists = [steps.row[a:b].tolist() for a, b in zip(steps.offset[:-1], steps.offset[1:], strict=True)]
    low, on, bulk = base.low, base.on_miss, rng.random(len(steps)) < 0.3
    return replace(
        base,
        step_offset=steps.offset,
        step_row=steps.row,
        step_prefill=steps.prefill,
        requests=steps.requests,
        windows=steps.windows,
        costs=costs_of(rng, base.costs, rows, steps.windows is not None),
        leaving=leaving_of(base.eviction.name, lists),
        prefetch=None if base.prefetch is None else prefetch_for(rng, base, len(steps.row)),
        low=None if low is None else replace(low, expert_ns=rising(rng, rows)),
        on_miss=None if on is None else replace(on, stages=0 if on.serial else on.stages, step_bulk=bulk),
    )


def laid(rng: np.random.Generator, base: Plan) -> Steps:
    """The trace rows of a plan as requests, whose windows have two to four rows."""
    tokens = len(base.experts)
    sequence = np.sort(rng.integers(0, 1 + tokens // 3, tokens)).astype(np.int32)
    first = np.searchsorted(sequence, sequence)
    prompt = rng.integers(0, 3, tokens)[first] > np.arange(tokens) - first
    trace: Any = RoutingTrace(base.experts, sequence, (np.arange(tokens) - first).astype(np.int32), prompt, {})
    speculation = Speculation(int(rng.integers(2, 5)), float(rng.choice([0.0, 0.3, 0.7, 1.0])), int(rng.integers(9)))
    return schedule(trace, int(rng.integers(1, 4)), int(rng.integers(1, 4)), bool(rng.random() < 0.3), speculation)


def rising(rng: np.random.Generator, rows: Any) -> Any:
    """Durations by rows, from none to the most that a step has."""
    return np.cumsum(rng.integers(0, 4, int(rows.max()) + 1))


def costs_of(rng: np.random.Generator, base: Costs, rows: Any, drafts: bool) -> Costs:
    """The same but for what goes by rows and steps."""
    return replace(
        base,
        cost_class=np.zeros(len(rows), np.int32),
        expert_ns=rising(rng, rows),
        cpu_expert_ns=np.stack([rising(rng, rows), rising(rng, rows)]),
        draft_ns=rng.integers(0, 4, len(rows) * drafts) * int(rng.choice([0, 1, 10])),
    )


def prefetch_for(rng: np.random.Generator, base: Plan, rows: int) -> Prefetch:
    """Lists for the rows of the steps; at times only those that are known to come in time, or only far ones."""
    _, layers, _ = base.experts.shape
    found = prefetch_of(rng, rows, layers, base.n_experts)
    if rng.random() < 0.3:
        found.row[:-1] = -1
    within = rng.integers(0, 4 * (1 + int(base.costs.transfer_ns.max())), (len(found.row), layers))
    return replace(found, within_ns=within if rng.random() < 0.6 else None)
