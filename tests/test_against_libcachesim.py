"""Law 10, against others: libCacheSim counts the same misses, layer by layer.

LRU is fed what the GPU executed, in that order (an eviction looks at recency when a transfer is committed,
so the order in which a visit's experts ran is part of the answer). FIFO and Belady are compared with one
wanted expert per visit, where nothing is held and the order is the trace's.
libCacheSim is GPL-3: an extra of the tests, imported nowhere else.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sim.core.plan import Plan
from sim.machines import compiled
from tests.captures import capture, capture_names, synthetic, whole_trace
from tests.plans import plan, random_plan
from tests.variants import lossless, one_expert_a_visit, per_layer, with_eviction
from traces.format.trace import RoutingTrace

lcs = pytest.importorskip("libcachesim", reason="the extra `test` is not installed")

THEIRS = {"lru": "LRU", "fifo": "FIFO", "belady": "Belady"}
NEVER = 2**63 - 1
SHARES = (0.1, 0.5, 0.8)
SYNTHETIC = ["mixtral-8x7b", "olmoe-1b-7b", "uniform", "cyclic"]
plans = settings(max_examples=150)


def next_uses(ids: list[int]) -> list[int]:
    """For each request the place of the next one for the same object."""
    seen: dict[int, int] = {}
    out = [NEVER] * len(ids)
    for place in range(len(ids) - 1, -1, -1):
        out[place] = seen.get(ids[place], NEVER)
        seen[ids[place]] = place
    return out


def their_misses(policy: str, slots: int, residents: list[int], order: list[int]) -> int:
    """libCacheSim's misses on `order`, with objects of size 1 and the first residents requested before."""
    cache = getattr(lcs, THEIRS[policy])(slots, hashpower=10)
    ids, misses = residents + order, -len(residents)
    for place, (expert, following) in enumerate(zip(ids, next_uses(ids), strict=True)):
        request = lcs.Request(
            obj_id=expert, obj_size=1, op=lcs.ReqOp.OP_GET, clock_time=place, next_access_vtime=following
        )
        misses += not cache.get(request)
    return misses


def check(plan: Plan) -> None:
    """Every layer's misses, counted by them on what we executed."""
    record = compiled.run(plan, full=True)
    layers, done = plan.experts.shape[1], record.groups["executions"]
    for layer in range(layers):
        here = plan.residents[plan.residents // plan.n_experts == layer] % plan.n_experts
        order = done["expert"][done["visit"] % layers == layer].tolist()
        theirs = their_misses(plan.eviction.name, int(plan.slots[layer]), here.tolist(), order)
        assert theirs == record.layer["misses"][layer], layer


def first_choice(trace: RoutingTrace, slots: int) -> Plan:
    """Top-1, one token a step: prompt rows too."""
    experts = np.asarray(trace.experts)[:, :, :1]
    return plan(experts, trace.n_experts, [slots] * experts.shape[1])


@plans
@given(some.integers(0, 2**32 - 1).map(random_plan))
def test_lru_on_random_plans_of_any_top_k_and_batch(plan: Plan) -> None:
    check(per_layer(lossless(plan)))


@pytest.mark.parametrize("policy", THEIRS)
@plans
@given(some.integers(0, 2**32 - 1).map(one_expert_a_visit))
def test_one_expert_a_visit(policy: str, plan: Plan) -> None:
    check(with_eviction(per_layer(plan), policy))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", capture_names())
def test_lru_on_captures(name: str, share: float) -> None:
    trace = capture(name)
    check(whole_trace(trace, max(1, int(share * trace.n_experts))))


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("name", capture_names())
def test_the_first_choice_of_captures(name: str, policy: str) -> None:
    trace = capture(name)
    check(with_eviction(first_choice(trace, trace.n_experts // 3), policy))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("preset", SYNTHETIC)
def test_lru_on_synthetic_traces(preset: str, share: float, batch: int) -> None:
    trace = synthetic(preset)
    check(whole_trace(trace, max(1, int(share * trace.n_experts)), batch))


@pytest.mark.parametrize("policy", THEIRS)
@pytest.mark.parametrize("preset", SYNTHETIC)
def test_the_first_choice_of_synthetic_traces(preset: str, policy: str) -> None:
    check(with_eviction(first_choice(synthetic(preset), 2), policy))
