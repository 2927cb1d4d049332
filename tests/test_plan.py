"""From a spec to a plan, worked by hand: slots for a cache of so many bytes, memory, and who may ask the host."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core.plan import GROUPS, ORDERS, Prefetch
from sim.errors import SpecError
from sim.machines import discrete
from sim.machines.compiled import run
from sim.memo import Kept
from sim.policies.policy import WORDS
from sim.policies.registry import MISS
from sim.prepare import prepare
from sim.spec import RunSpec
from tests.gen import random_trace
from tests.plans import plan
from traces.format import npz

# An expert costs nothing on the host and an age over the link: whoever may answer cpu does.
NO_HOST = """
[fixed]
dense_ns = 10
expert_ns = 5
transfer_ns = 1000
decide_ns = 0
expert_bytes = 100
low_transfer_ns = 50
low_expert_ns = 5
low_bytes = 25
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`t.npz`: 3 MoE layers of 8 experts, requests of 10 rows; `similar.npz`; hardware without and with cpu times."""
    trace = random_trace(np.random.default_rng(3), 40, 3, 8, 2, requests=4, logits=True, lookahead=3, prompt=0.2)
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "no-host.toml").write_text(NO_HOST)
    (tmp_path / "host.toml").write_text(NO_HOST + "cpu_expert_ns = 0\n")
    np.savez(tmp_path / "similar.npz", similarity=np.full((3, 8, 8), 0.5, np.float32))
    return tmp_path


def spec(folder: Path, **fields: Any) -> RunSpec:
    return RunSpec.of({"trace": str(folder / "t.npz"), "hardware": str(folder / "host.toml"), **fields})


# ---- slots


@pytest.mark.parametrize(
    ("cache", "scope", "slots"),
    [
        ("1199B", "layer", [4, 4, 3]),  # 11 whole experts of 100 bytes: 3 each, one more to the first 11 - 9 = 2
        ("1.0KB", "layer", [4, 3, 3]),
        ("900B", "layer", [3, 3, 3]),
        ("99KB", "layer", [8, 8, 8]),  # there are no more
        ("1199B", "global", [11]),
        ("99KB", "global", [24]),
        (0.5, "layer", [4, 4, 4]),
        (0.49, "layer", [3, 3, 3]),  # 3.92, rounded down
        (0.01, "layer", [1, 1, 1]),  # at least one
        (0.5, "global", [12]),
        (5, "layer", [5, 5, 5]),
        (5, "global", [5]),
    ],
)
def test_slots_by_hand(folder: Path, cache: Any, scope: str, slots: list[int]) -> None:
    assert prepare(spec(folder, cache=cache, cache_scope=scope)).plan.slots.tolist() == slots


def test_bytes_for_fewer_experts_than_there_are_scopes_are_refused(folder: Path) -> None:
    assert prepare(spec(folder, cache="300B")).plan.slots.tolist() == [1, 1, 1]
    with pytest.raises(SpecError, match=r"^cache: 299B: holds 2 experts of 100 bytes; needs at least 3$"):
        prepare(spec(folder, cache="299B"))
    assert prepare(spec(folder, cache="299B", cache_scope="global")).plan.slots.tolist() == [2]


# ---- memory


def test_memory_is_that_of_the_longest_context_offset_and_all(folder: Path) -> None:
    # the first request's rows are positions 0 to 9: a context of 10; one more KV entry of Mixtral's 32 layers with 8 KV
    # heads of 128, in bf16, is 32 x 2 x 8 x 128 x 2 = 131,072 bytes
    model = {"hardware": "a100-pcie4", "trace": "mixtral.npz", "max_steps": 3, "prefill_chunk": 4}
    short, long, both = (
        prepare(RunSpec.of({**model, "context_offset": offset, "batch": batch})).memory
        for offset, batch in ((0, 1), (1000, 1), (1000, 2))
    )
    steps = prepare(RunSpec.of(model)).steps
    rows = int(steps.offset[-1])  # three chunks of four prompt rows: positions 0 to 11
    assert rows == 12
    assert short["kv"] == 12 * 131_072
    assert long["kv"] == 1012 * 131_072
    assert both["kv"] == 2 * 1012 * 131_072


def test_memory_counts_every_slot_and_the_low_precision_copies(folder: Path) -> None:
    # 11 slots of 100 bytes; hobbit's copies: a quarter of 8 experts in each of 3 layers, of 25 bytes
    plain = prepare(spec(folder, cache="1199B")).memory
    assert plain["slots"] == 1100
    hobbit = prepare(spec(folder, cache="1199B", miss="hobbit", set={"hobbit.slots": "0.25"})).memory
    assert hobbit["slots"] == 1100 + 3 * 2 * 25


# ---- steps and durations


def test_every_position_moves_by_the_context_offset() -> None:
    # as in test_costs: 2 bytes for each of a layer's 41,984,000 weights and 4,096 for each entry, at 1008 x 0.7 GB/s
    given = {"trace": "mixtral.npz", "hardware": "rtx4090", "as_decode": True, "max_steps": 3, "context_offset": 1000}
    costs = prepare(RunSpec.of(given)).plan.costs
    right = [round((2 * 41_984_000 + 4096 * (position + 1)) / (1008 * 0.7)) for position in (1000, 1001, 1002)]
    assert costs.dense_ns[costs.cost_class, 0].tolist() == right


def test_the_warm_up_leaves_a_step(folder: Path) -> None:
    assert prepare(spec(folder, max_steps=5, warmup_steps=4)).plan.warmup_steps == 4
    with pytest.raises(SpecError, match=r"^warmup_steps: 5: the run has 5 steps; must be fewer$"):
        prepare(spec(folder, max_steps=5, warmup_steps=5))


def test_who_says_how_the_gpu_takes_experts(folder: Path) -> None:
    engines = {"ideal": "one", "fused": "all"}
    for engine, group in engines.items():
        assert GROUPS[prepare(spec(folder, engine=engine)).plan.group] == group
        assert GROUPS[prepare(spec(folder, engine=engine, expert_group="ready")).plan.group] == "ready"


@pytest.mark.parametrize(("given", "budget"), [(None, -1), (0, 0), (2, 2)])
def test_a_budget_of_none_is_no_limit_and_of_zero_no_prefetch(folder: Path, given: int | None, budget: int) -> None:
    ahead = prepare(spec(folder, prefetch="gate-lookahead", prefetch_budget=given, transfer_order="probability")).plan
    assert ahead.prefetch is not None
    assert (ahead.prefetch.budget, ORDERS[ahead.prefetch.order]) == (budget, "probability")


# ---- what several runs share


@pytest.mark.parametrize(
    ("fields", "what"), [({"placement": "random"}, "residents"), ({"miss": "buddy", "calibration": "c.npz"}, "peers")]
)
def test_a_run_of_another_seed_does_not_get_what_was_kept(folder: Path, fields: dict[str, Any], what: str) -> None:
    """Where nothing is set aside, and so the seed decides nothing but this."""
    npz.write(folder / "c.npz", random_trace(np.random.default_rng(4), 9, 3, 8, 2, requests=2, prompt=0.0))
    fields |= {"calibration": str(folder / "c.npz")} if "calibration" in fields else {}
    memo = Kept(10**9)
    first, second = (getattr(prepare(spec(folder, seed=seed, **fields), memo).plan, what) for seed in (0, 1))
    afresh = getattr(prepare(spec(folder, seed=1, **fields)).plan, what)
    assert np.array_equal(second, afresh) and not np.array_equal(first, afresh)


# ---- the host


FALLBACKS = [(name, word) for name, policy in MISS.items() if "fallback" in policy.params for word in WORDS["fallback"]]


@pytest.mark.parametrize(("name", "fallback"), [*((name, None) for name in MISS), *FALLBACKS])
def test_who_may_answer_cpu_is_refused_where_nothing_says_what_that_costs(
    folder: Path, name: str, fallback: str | None
) -> None:
    """As it comes, a policy is refused without cpu times if, and only if, it does answer cpu where the host costs
    nothing; with a fallback given, where that is the host (whether or not it comes to it here)."""
    given = {"similarity.matrix": str(folder / "similar.npz")} if name == "similarity" else {}
    given |= {f"{name}.fallback": fallback} if fallback else {}
    fields = {"cache": 2, "miss": name, "calibration": 0.5, "set": given}
    answers_cpu = run(prepare(spec(folder, **fields)).plan).counters["cpu"] > 0
    assert not answers_cpu or fallback in (None, "cpu", "cheaper")
    without = spec(folder, **fields | {"hardware": str(folder / "no-host.toml")})
    if answers_cpu or fallback in ("cpu", "cheaper"):
        with pytest.raises(SpecError, match=f"has no cpu_expert_ns or measured.cpu_expert, which miss {name} needs"):
            prepare(without)
    else:
        assert run(prepare(without).plan).counters["cpu"] == 0


# ---- made by hand


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("row", np.zeros((1, 1), np.int32), "Prefetch.row: has 1 rows, fewer than the run's 2"),
        ("row", np.full((1, 2), 2, np.int32), "Prefetch.row: names a row of lists beyond the last, 1"),
        ("lists", np.zeros((2, 2, 1, 1), np.int16), "Prefetch.lists: are for 2 distances in place of 1 or 1"),
        ("lists", np.zeros((1, 2, 2, 1), np.int16), "Prefetch.lists: are of 2 MoE layers in place of 1"),
        ("lists", np.full((1, 2, 1, 1), 3, np.int16), "Prefetch.lists: name an expert beyond the last, 2"),
        ("rank_key", np.zeros((1, 2), np.int64), "Prefetch.rank_key: is not [1, 1]"),
        ("within_ns", np.zeros((1, 2), np.int64), "Prefetch.within_ns: is not [1, 1]"),
    ],
)
@pytest.mark.parametrize("machine", [run, discrete.run])
def test_lists_that_do_not_fit_the_plan_are_refused(machine: Any, field: str, value: Any, message: str) -> None:
    right = Prefetch(
        np.zeros((1, 2, 1, 1), np.int16),
        np.array([[-1, 1]], np.int32),
        order=ORDERS.index("probability"),
        rank_key=np.zeros((1, 1), np.int64),
        within_ns=np.array([[250]]),
    )
    made = plan([[[0]], [[1]]], 3, [2], prefetch=right)
    machine(made)
    with pytest.raises(ValueError) as wrong:
        machine(replace(made, prefetch=replace(right, **{field: value})))
    assert str(wrong.value) == message
