"""What the runs of a sweep have in common is made once, and each version of the machine compiled by one worker."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sim.outcome.report
import sim.prepare
from sim import catalog
from sim.core.inputs import inputs
from sim.core.rules import new_rules
from sim.core.state import new_state
from sim.engines import behaving
from sim.flags import read_toml
from sim.memo import Kept
from sim.policies.registry import TABLES
from sim.prepare import prepare
from sim.simulation import simulate
from sim.spec import RunSpec
from sim.sweeps.config import Configuration, expand, identity
from sim.sweeps.dispatch import Queue, Seconds
from sim.sweeps.versions import Versions, to_compile
from sim.sweeps.worker import Setup, Task, Worker
from traces.errors import UserError

SHARED = {"trace": "mixtral.npz", "hardware": "rtx4090", "calibration": 0.25, "max_steps": 4}
GRID = {
    **SHARED,
    "cache": [3, 5],
    "batch": [1, 2],
    "eviction": ["lru", "fifo", "random", "decayed", "belady"],
    "zip": [{
        "prefetch": ["none", "gate-lookahead", "none", "none", "gate-lookahead"],
        "miss": ["fetch", "fetch", "cpu", "buddy", "buddy"],
    }],
}  # fmt: skip


# --- what is shared ---


def counting(monkeypatch: pytest.MonkeyPatch, of: Any, name: str, calls: Counter[str]) -> None:
    """Count the calls of a function, by its name."""
    plain: Callable[..., Any] = getattr(of, name)

    def counted(*args: Any, **named: Any) -> Any:
        calls[name if isinstance(of, type(sim)) else of.__name__] += 1
        return plain(*args, **named)

    monkeypatch.setattr(of, name, counted)


def test_what_does_not_depend_on_the_policies_is_made_once_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds and slots' residents by capacity and batch, router weights once, lists and predictions by what fits
    them; whatever the policies."""
    calls: Counter[str] = Counter()
    counting(monkeypatch, sim.outcome.report, "bounds", calls)
    counting(monkeypatch, sim.outcome.report, "_router_weight", calls)
    for stage in ("Opened", "Judged", "Weighed", "Buddies", "Scheduled", "Costed", "Predicted", "Placed"):
        counting(monkeypatch, getattr(sim.prepare, stage), "make", calls)
    runs = expand(GRID)
    rows = Worker(Setup(".")).run(Task(runs)).rows
    assert len(rows) == 100 and not any(row["error"] for row in rows)
    capacities, batches, prefetchers = 2, 2, 1
    assert calls == {
        "bounds": capacities * batches, "_router_weight": batches,
        "Opened": 1, "Judged": 1, "Weighed": 1, "Buddies": 1, "Scheduled": batches, "Costed": batches,
        "Predicted": batches * prefetchers, "Placed": capacities,
    }  # fmt: skip


RULES: list[dict[str, Any]] = [
    {}, {"eviction": "lfu"}, {"eviction": "static"}, {"eviction": "min"}, {"miss": "stream"}, {"miss": "cpu"},
    {"bulk": "stream", "bulk_rows": "2"}, {"bulk": "stream", "bulk_rows": "2", "ahead": 1},
    {"bulk": "stream", "bulk_rows": "2", "merge": "runs"}, {"transfer_chunk": "1MB"}, {"miss": "cpu", "beside": False},
    {"cache": 3}, {"cache_scope": "global", "cache": 0.5}, {"prefetch": "gate-lookahead"}, {"warmup_steps": 2},
    {"expert_group": "all"}, {"placement": "random"}, {"miss": "buddy"}, {"batch": 2}, {"reset": "request"},
    {"hardware": "a100-pcie4"}, {"max_steps": 6},
]  # fmt: skip


def test_what_a_summary_shares_with_others_is_what_it_is_alone() -> None:
    """On one memo after any other run, in any order of two: bounds hang on more than slots where there are rules."""
    specs = [RunSpec.of({**SHARED, "skip_prompts": False, **more}) for more in RULES]
    alone = [simulate(spec)[0] for spec in specs]
    for order in (range(len(specs)), reversed(range(len(specs)))):
        memo = Kept(10**9)
        assert all(simulate(specs[i], memo=memo)[0] == alone[i] for i in order)


def test_router_weights_and_lists_are_handed_to_the_core_without_a_copy() -> None:
    """What runs share is not made again, in another form, by each of them."""
    memo = Kept(10**9)
    plans = [
        prepare(RunSpec.of({**SHARED, "prefetch": "gate-lookahead", "miss": miss}), memo).plan
        for miss in ("buddy", "drop-by-weight")
    ]
    for plan in plans:
        route, _, ahead, _ = inputs(plan, new_state(plan))
        assert ahead is not None and plan.prefetch is not None and plan.weights is not None
        assert np.shares_memory(route.weights, plans[0].weights) and route.weights.dtype == np.float32
        assert np.shares_memory(ahead.lists, plan.prefetch.lists)


# --- who compiles what ---


def of_versions(*names: str) -> list[Configuration]:
    """A run of each name of a miss policy, numbered by seeds: fetch runs lean, others do not."""
    specs = [RunSpec.of({**SHARED, "miss": miss, "seed": seed}) for seed, miss in enumerate(names)]
    return [Configuration(identity(spec), spec) for spec in specs]


def misses(runs: Any) -> list[str]:
    return [run.spec.miss for run in runs]


def test_who_would_wait_for_a_version_does_something_else() -> None:
    versions = Versions()
    queue = Queue.of(of_versions("drop", "drop", "fetch", "drop", "fetch", "drop", "fetch"), 1, versions)
    seconds = Seconds()
    seconds.learn(list(queue.stretches[0]), 1e-3)  # short ones: a task holds as many as there may be
    first, second = queue.take(0, seconds), queue.take(0, seconds)
    assert (misses(first), misses(second)) == (["drop"], ["fetch"])  # each a version of its own, alone
    assert queue.take(0, seconds) == [] and len(queue) == 5  # the others wait
    versions.end(second[0], done=True)
    assert set(misses(queue.take(0, seconds))) == {"fetch"}
    versions.end(first[0], done=True)
    while taken := queue.take(0, seconds):
        assert len(queue) < 4 and set(misses(taken)) <= {"drop", "fetch"}
    assert len(queue) == 0


def test_who_dies_compiling_has_compiled_nothing() -> None:
    versions = Versions()
    queue, seconds = Queue.of(of_versions("drop", "drop", "drop"), 1, versions), Seconds()
    (first,) = queue.take(0, seconds)
    assert queue.take(0, seconds) == []
    versions.end(first, done=False)
    assert len(queue.take(0, seconds)) == 1 and queue.take(0, seconds) == []


def test_what_cannot_be_run_waits_for_nobody() -> None:
    wrong = [Configuration(str(n), None, {}, "no") for n in range(5)]
    queue, seconds = Queue.of(wrong, 1, Versions()), Seconds()
    seconds.learn(wrong, 1e-3)
    assert len(queue.take(0, seconds)) == 3  # half of what is left, and one


def version(spec: RunSpec) -> tuple[bool, ...] | None:
    """Which compiled version a run takes (sim.machines.compiled.run): without answers, predictions, what some evictions
    are told, rules on a miss. None: it does not run."""
    try:
        plan = prepare(spec, MEMO).plan
    except UserError:
        return None
    state = new_state(plan)
    return *(each is None for each in inputs(plan, state)[1:]), new_rules(plan, state) is None


MEMO = Kept(10**9)


def configurations() -> list[Configuration]:
    """Every policy, and whatever else decides on a version."""
    kinds = ("eviction", "prefetch", "miss", "rerank")
    more: list[Mapping[str, Any]] = [{kind: name} for kind in kinds for name in TABLES[kind]]
    more += [{"cache": "layers:3"}, {"n_cpu_moe": 30}, {"transfer_chunk": "1MB"}, {"transfer_chunk": "1TB"}]
    more += [{"set": {"lru.atomic": "no"}}, {"set": {"lru.ties": "id"}}, {"set": {"lru.touches": "listed"}}]
    more += [{"eviction": "decayed", "set": {"decayed.kappa": 0.1}}, {"miss": "cpu", "link_share": 0.5}]
    more += [{"miss": "cpu", "cpu_visit_us": 4.0}, {"miss": "fetch", "link_share": 0.5}, {"bulk": "none"}]
    names = [name for name in catalog.names("engine") if behaving(name)]
    more += [{"engine": name, "vram": "30GB", "precision": "q4-k-m"} for name in names]
    more += [{"engine": name, "engine_as_costs": True, "miss": "cpu"} for name in names]
    specs = (RunSpec.of({**SHARED, **each}) for each in more)
    return [Configuration(identity(spec), spec) for spec in specs]


def test_runs_that_are_called_of_one_version_are() -> None:
    """And every version is among the samples that are compiled beforehand, whatever the runs."""
    runs, versions = configurations(), Versions()
    needed = {run.id: version(run.spec) for run in runs if run.spec}
    assert set(needed.values()) >= {
        (True, True, True, True),
        (True, False, True, True),
        (True, True, False, True),
        (False,) * 3 + (True,),
        (False,) * 4,
    }
    found: dict[Any, set[Any]] = {}
    for run in runs:
        if needed[run.id] is not None:
            found.setdefault(versions.of(run), set()).add(needed[run.id])
    assert all(len(each) == 1 for each in found.values()), found
    assert (
        len([key for key, each in found.items() if each == {(False, False, False, True)}]) <= 3
    )  # hardly any is told apart in vain
    able = [run for run in runs if needed.get(run.id) is not None]  # beside one that cannot be run nothing is told
    some = able[:: max(1, len(able) // 30)]
    for chosen in (runs, *itertools.combinations(some, 2)):
        compiled = {needed[run.id] for run in to_compile(chosen)}
        assert compiled >= {needed[run.id] for run in chosen} - {None}


# --- the sweep that is measured ---


def test_the_measured_sweep_has_a_thousand_configurations_of_a_few_versions() -> None:
    runs, versions = expand(read_toml(str(Path(__file__).parent / "grid.toml"))), Versions()
    assert len(runs) == 1000 and all(run.spec for run in runs)
    assert len({versions.of(run) for run in runs}) == 5  # lean, with prefetch, told of more, both, and with everything
