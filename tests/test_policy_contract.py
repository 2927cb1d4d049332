"""What every policy of the registry keeps, by being in it: a new member is tested by being registered.

Runs on small generated traces, on the compiled and the simpy machine. What each policy decides in detail, its own tests
say; here stand the laws that hold for all of a kind, and that its marks are true.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core.plan import FORGETS_REQUESTS, FORGETS_ROWS, MARKS
from sim.errors import SpecError
from sim.machines import compiled, discrete
from sim.machines.record import RunRecord
from sim.policies.policy import Policy
from sim.policies.registry import TABLES
from sim.prepare import Setting, prepare
from sim.search.space import POLICIES, Space
from sim.spec import RunSpec
from tests import laws_on_miss
from tests.gen import random_trace
from tests.groups import as_groups
from tests.laws import check_all
from tests.test_memo import difference
from traces.format import npz, profile
from traces.format.trace import RoutingTrace
from traces.statistics.stats import profile_of

HARDWARE = """[fixed]
dense_ns = 10
expert_ns = 5
transfer_ns = 100
decide_ns = 1
cpu_expert_ns = 60
low_transfer_ns = 30
low_expert_ns = 3
expert_bytes = 4
"""
BASE: dict[str, Any] = {"trace": "t.npz", "hardware": "h.toml", "calibration": "c.npz", "cache": 3, "as_decode": True}
FILES = {"matrix": "matrix.npz", "file": "counts.npz"}
SEEDS = range(3)
EVERY = [(kind, name) for kind, table in TABLES.items() for name in table]
every_policy = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind}-{name}" for kind, name in EVERY])


def trace_of(seed: int) -> RoutingTrace:
    """40 tokens of five requests, with everything that a policy may ask for."""
    rng = np.random.default_rng(seed)
    more: dict[str, Any] = {"logits": True, "lookahead": 3, "lookahead_source": "learned by hand"}
    return random_trace(rng, 40, 2, 6, 2, requests=5, prompt=0.2, **more)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with the files that policies need."""
    before, out = Path.cwd(), tmp_path_factory.mktemp("contract")
    os.chdir(out)
    npz.write("c.npz", trace_of(100))
    Path("h.toml").write_text(HARDWARE)
    Path("fast.toml").write_text(HARDWARE.replace("transfer_ns = 100", "transfer_ns = 12"))
    alike = np.random.default_rng(1).random((2, 6, 6))
    np.savez("matrix.npz", similarity=alike)
    profile.write(Path("counts.npz"), profile_of(trace_of(100)))
    yield out
    os.chdir(before)
    run.cache_clear()


def setting(kind: str, name: str, trace: RoutingTrace, **more: Any) -> Setting:
    """A run of plain policies and this one, on a trace in memory."""
    policy = TABLES[kind][name]
    by_layer = policy.spreads or "swap" in policy.parameters
    more |= {"cache_scope": "layer"} if by_layer else {}  # refused in one pool
    more |= {"speculate": 1, "hardware": "fast.toml"} if policy.drafts else {}  # whose lists come in time
    needs = {f"{name}.{key}": FILES[key] for key in FILES if key in policy.parameters and not policy.parameters[key]}
    return prepare(RunSpec.of({**BASE, kind: name, "set": needs, **more}), trace=trace)


@cache
def run(kind: str, name: str, seed: int) -> tuple[Setting, RunRecord]:
    """A full record of the compiled machine."""
    made = setting(kind, name, trace_of(seed))
    return made, compiled.run(made.plan, True)


@every_policy
def test_it_says_what_it_is(kind: str, name: str) -> None:
    policy = TABLES[kind][name]
    assert policy.name == name and policy.doc and policy.source
    assert set(policy.keeps) <= set(MARKS) and set(policy.needs) <= {"weights", "logits", "lookahead"}
    assert (policy.make is not None) == (kind == "prefetch") and not policy.user
    assert policy.values({}) == dict(policy.parameters)


def test_codes_of_the_core_are_one_policys_or_one_familys() -> None:
    for kind in ("eviction", "rerank"):
        codes = [policy.kind for policy in TABLES[kind].values()]
        assert len(set(codes)) == len(codes)


@every_policy
@pytest.mark.parametrize("seed", SEEDS)
def test_machines_agree_and_a_record_changes_nothing(kind: str, name: str, seed: int) -> None:
    """Also of policies that look back, which see more of the run when it is written down; and each run again."""
    made, full = run(kind, name, seed)
    plain = compiled.run(made.plan)
    assert difference(full, discrete.run(made.plan, True)) == ""
    assert difference(plain, discrete.run(made.plan)) == "" and difference(plain, compiled.run(made.plan)) == ""
    unwritten = {column: values for column, values in full.steps.items() if column != "event"}
    assert difference(replace(full, groups={}, steps=unwritten), plain) == ""
    assert difference(made.plan, setting(kind, name, trace_of(seed)).plan) == ""


@pytest.mark.parametrize(("kind", "name"), [each for each in EVERY if each[0] != "rerank"])
@pytest.mark.parametrize("more", [{}, {"cache_scope": "global", "cache": 5, "batch": 2}], ids=["layers", "pool"])
def test_the_laws_hold(kind: str, name: str, more: dict[str, Any]) -> None:
    """Conservation, residency (nothing held is evicted, no scope has more than its slots), causality, sums. (They read
    what is wanted from the trace, which re-ranking changes.)"""
    for seed in SEEDS:
        plan = setting(kind, name, trace_of(seed), **more).plan
        check = check_all if plan.on_miss is None else laws_on_miss.check_all
        check(plan, as_groups(plan, compiled.run(plan, True)))


def rerouted(trace: RoutingTrace, token: int) -> RoutingTrace:
    """Another future: from that token on another trace's routing and whatever was said of it beforehand."""
    other = trace_of(77)
    new = {}
    for name in ("experts", "weights", "logits"):
        new[name] = np.concatenate([getattr(trace, name)[:token], getattr(other, name)[token:]])
    assert trace.lookahead is not None and other.lookahead is not None
    new["lookahead"] = np.concatenate([trace.lookahead[:, :token], other.lookahead[:, token:]], axis=1)
    return replace(trace, **new)


def decided(record: RunRecord, steps: int, layers: int) -> list[Any]:
    """What was decided at the visits of the first steps: who ran, what was answered, what was sent by then."""
    out: list[Any] = []
    last = record.steps["event"][steps - 1]
    for name, group in record.groups.items():
        began = group["event_committed"] if name == "transfers" else group["event"]
        there = (began >= 0) & (began <= last)
        columns = ("expert", "layer", "victim") if name == "transfers" else [c for c in group if c != "event"]
        out += [group[column][there] for column in columns if column in group]
    return out


@every_policy
def test_only_an_oracle_knows_the_future(kind: str, name: str) -> None:
    told = False
    for seed in SEEDS:
        made, full = run(kind, name, seed)
        token = len(made.steps) // 2
        changed = compiled.run(setting(kind, name, rerouted(made.trace, token)).plan, True)
        told |= difference(decided(full, token, 2), decided(changed, token, 2)) != ""
    assert told == TABLES[kind][name].oracle


def executed(made: Setting, record: RunRecord) -> tuple[list[Any], list[Any]]:
    """(visit, expert, tokens) of all that ran, and of all that the trace wants, in ascending order."""
    x, layers, n = record.groups["executions"], made.trace.n_moe_layers, made.trace.n_experts
    ran = sorted(zip(x["visit"].tolist(), x["expert"].tolist(), x["tokens"].tolist(), strict=True))
    wanted = []
    for step, rows in enumerate(np.split(made.plan.step_row, made.plan.step_offset[1:-1])):
        for layer in range(layers):
            counts = np.bincount(made.plan.experts[rows, layer].reshape(-1), minlength=n)
            wanted += [(step * layers + layer, e, int(counts[e])) for e in np.flatnonzero(counts).tolist()]
    return ran, wanted


@every_policy
def test_only_a_lossy_policy_runs_others_than_the_router_chose(kind: str, name: str) -> None:
    """And only one that may answer cpu computes on the host. Of one that is marked some trace shows it."""
    policy: Policy = TABLES[kind][name]
    lossy = cpu = False
    for seed in SEEDS:
        for more in ({}, {"cache": 1}, {"cache": 5, "batch": 3}):
            made = setting(kind, name, trace_of(seed), **more)
            record = compiled.run(made.plan, True)
            ran, wanted = executed(made, record)
            lossy |= ran != wanted or record.counters["low"] > 0
            cpu |= record.counters["cpu"] > 0
    assert lossy == policy.may_be_lossy({}) and cpu == policy.may_answer_cpu({})


def done(record: RunRecord) -> list[Any]:
    """Who ran, and what was sent in whose place."""
    x, t = record.groups["executions"], record.groups["transfers"]
    return [*(x[name] for name in ("visit", "expert", "tokens")), *(t[name] for name in ("expert", "victim"))]


PLAIN = {"eviction": "lru", "prefetch": "none", "miss": "fetch", "rerank": "none", "placement": "first"}


@every_policy
def test_it_does_something_of_its_own(kind: str, name: str) -> None:
    """Some run is not the plain policy's; one whose code the core does not ask for, for want of a mark, is."""
    variants: tuple[dict[str, Any], ...] = ({}, {"cache_scope": "global", "cache": 5}, {"cache": 2, "batch": 3})
    if kind == "eviction":  # least-stale is lru without prefetches
        variants = (*variants, {"cache_scope": "global", "cache": 5, "prefetch": "noisy-oracle"})
    differs = any(own(kind, name, seed, more) for seed in SEEDS for more in variants)
    assert differs == (name != PLAIN[kind])


def own(kind: str, name: str, seed: int, more: dict[str, Any]) -> bool:
    """Whether the record of a run is not that of the plain policy."""
    made = setting(kind, name, trace_of(seed), **more)
    plain = prepare(made.spec.model_copy(update={kind: PLAIN[kind], "set": {}}), trace=made.trace).plan
    return difference(compiled.run(made.plan, True), compiled.run(plain, True)) != ""


@every_policy
@pytest.mark.parametrize("array", ["weights", "logits", "lookahead"])
def test_it_reads_what_it_says_it_needs_and_no_other_array(kind: str, name: str, array: str) -> None:
    """Without what it needs it is refused by name; what it does not name it may refuse to do without, but not read."""
    made, record = run(kind, name, 0)
    less = {array: None} | ({"logits": None} if array == "weights" else {})  # a file has no logits without weights
    needed = not {each for each in TABLES[kind][name].needs}.isdisjoint(less)
    try:
        without = setting(kind, name, replace(made.trace, **less))
    except SpecError as error:
        assert name in str(error)
        return
    assert not needed and difference(done(record), done(compiled.run(without.plan, True))) == ""


def test_what_looks_back_says_so_and_forgets() -> None:
    """Marks of an eviction in the core follow from its words alone."""
    for name, policy in TABLES["eviction"].items():
        plan = run("eviction", name, 0)[0].plan
        assert (plan.leaving is not None) == bool(plan.eviction.marks & (FORGETS_ROWS | FORGETS_REQUESTS))
        assert {mark for i, mark in enumerate(MARKS) if plan.eviction.marks >> i & 1} == set(policy.keeps)


@pytest.mark.parametrize("name", [name for name, policy in TABLES["prefetch"].items() if policy.fitted])
def test_what_is_fitted_is_fitted_on_the_calibration_trace(name: str) -> None:
    """Another calibration, other predictions; without one it is refused by name."""
    made, _ = run("prefetch", name, 0)
    assert made.plan.prefetch is not None
    npz.write("d.npz", trace_of(200))
    other = setting("prefetch", name, trace_of(0), calibration="d.npz").plan.prefetch
    assert difference(made.plan.prefetch, other) != ""


# --- what may be recommended ---


@every_policy
def test_what_is_tried_of_a_policy_is_its_own_and_can_be_built(kind: str, name: str) -> None:
    policy = TABLES[kind][name]
    assert policy.search is None or not policy.oracle
    for parameter, values in (policy.search or {}).items():
        assert parameter in policy.parameters and len(set(values)) == len(values) > 0


def test_a_search_tries_every_policy_that_says_so_and_no_other() -> None:
    everything = {"calibrated": True, "host": True, "lossy": True, "fixed": {}}
    gates = replace(trace_of(0), meta={**trace_of(0).meta, "lookahead_source": "gates"})
    spaces = [Space.of(trace, **everything) for trace in (trace_of(0), gates)]
    for kind in POLICIES:
        said = {name for name, policy in TABLES[kind].items() if policy.search is not None}
        tried = {name for space in spaces for name in space.knobs[kind]} - {"none"}
        assert tried == said and all(set(space.parameters[kind]) <= said for space in spaces)
