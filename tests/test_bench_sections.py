"""The bench: that it compares equal work, in the same rounds, and keeps what it says. Nothing here looks at a time."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.flags import read_toml
from sim.machines import compiled
from sim.policies.registry import EVICTION, MISS, PREFETCH, RERANK
from sim.sweeps.config import expand
from sim.sweeps.dispatch import Totals
from sim.sweeps.session import _account
from tests.bench import curve, peers, policies, sizes, starts, sweeps, throughput
from tests.bench.arms import BOTH, Arms
from tests.bench.figures import Ask, Figure, ratio
from tests.bench.plans import Shape, captures, fed, repeated, requests_of, whole, with_buddies
from tests.gen import random_trace
from traces.format.check import validate
from traces.format.trace import RoutingTrace


def trace_of(**more: Any) -> RoutingTrace:
    return random_trace(np.random.default_rng(3), 30, 3, 8, 2, prompt=0.3, **more)


BARE, RICH = trace_of(weights=False), trace_of(logits=True, lookahead=3)
ASK = Ask({"bare": BARE}, requests=400, each=400, runs=2, most=1e4)


def figures_of(found: Iterator[Figure]) -> dict[str, Figure]:
    listed = list(found)
    out = {figure.name: figure for figure in listed}
    assert len(out) == len(listed), "two figures of one name"
    return out


# --- what is run ---


@pytest.mark.parametrize("trace", [BARE, RICH, trace_of(missing=0.2)])
def test_what_a_trace_lacks_is_made_up_and_the_rest_stays(trace: RoutingTrace) -> None:
    made = fed(trace)
    validate(made)
    for name, array in trace.arrays().items():
        assert getattr(made, name) is not None and np.array_equal(getattr(made, name), array)
    assert made.logits is not None and made.lookahead is not None and made.weights is not None
    if trace.logits is None:  # whoever is routed has the highest logits, in the order of the slots
        order = np.argsort(-made.logits.astype(float), axis=-1, kind="stable")
        for at in np.ndindex(*trace.experts.shape[:2]):
            routed = [e for e in trace.experts[at].tolist() if e >= 0]
            assert order[at][: len(routed)].tolist() == routed


def test_repeated_is_the_decode_rows_in_order_and_whole_is_the_same_run() -> None:
    plan = repeated(BARE, 400, prefetch=True)
    assert abs(requests_of(plan) - 400) <= BARE.n_moe_layers * BARE.top_k
    assert not BARE.prefill[plan.step_row].any()
    rows = np.flatnonzero(~BARE.prefill)
    assert plan.step_row.tolist() == [rows[i % len(rows)] for i in range(len(plan.step_row))]
    ours, long = compiled.run(repeated(BARE, 400)), compiled.run(whole(repeated(BARE, 400)))
    assert ours.counters == long.counters and np.array_equal(ours.steps["end_ns"], long.steps["end_ns"])


@pytest.mark.parametrize("axis", sizes.AXES)
def test_a_drawn_run_has_the_shape_that_was_asked_for(axis: str) -> None:
    value = sizes.AXES[axis][1]
    shape = replace(Shape(), **{axis: value if axis == "slots" else round(value)})
    plan = replace(shape, requests=min(shape.requests, 20_000)).plan(tokens=100)
    assert plan.experts.shape[1:] == (shape.layers, shape.top_k) and plan.n_experts == shape.experts
    assert set(np.diff(plan.step_offset)) == {shape.batch} and len(plan.step_row) == plan.step_offset[-1]
    assert all(len({*row}) == shape.top_k for row in plan.experts.reshape(-1, shape.top_k).tolist())
    assert (plan.slots == max(1, round(shape.slots * shape.experts))).all()


def test_every_policy_of_the_registry_has_an_arm_or_a_reason(tmp_path: Path, capsys: Any) -> None:
    found = figures_of(policies.policies(replace(ASK, runs=1)))
    ran = {name.removeprefix("policies/bare/") for name in found}
    said = {line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines() if "not run" in line}
    tables = {"eviction": EVICTION, "prefetch": PREFETCH, "miss": MISS, "rerank": RERANK}
    every = {f"{kind} {name}" for kind, table in tables.items() for name in table}
    assert ran | said == every | {BOTH} and not ran & said
    assert said == {"prefetch learned", "prefetch draft-window"}
    oracles = {f"{kind} {name}" for kind, table in tables.items() for name, policy in table.items() if policy.oracle}
    assert {name for name in ran if not found[f"policies/bare/{name}"].asked} == oracles - said


def test_an_arm_is_the_plan_of_its_policy_and_lookahead_with_buddies_is_both(tmp_path: Path) -> None:
    arms = Arms(BARE, 400, tmp_path)
    assert arms.plan("eviction decayed").eviction.name == "decayed"
    assert arms.plan("miss hobbit").low is not None and arms.plan("miss stream").on_miss is not None
    assert arms.plan("eviction static").on_miss is not None and arms.plan("eviction lru").on_miss is None
    both, buddies = arms.plan(BOTH), with_buddies(repeated(BARE, 400), BARE)
    assert both.prefetch is not None and both.miss.name == "buddy" and np.array_equal(both.peers, buddies.peers)
    alone = arms.plan("miss buddy")
    for name in ("peers", "peer_q", "tau", "weights"):
        assert np.array_equal(getattr(alone, name), getattr(buddies, name)), name
    assert np.array_equal(alone.miss.params, buddies.miss.params)


def test_what_an_eviction_forgets_has_run_and_is_as_old_as_it_says(tmp_path: Path) -> None:
    arms = Arms(BARE, 400, tmp_path)
    for name, kept in {"window-score": 16, "activation-matrix": None}.items():
        plan = arms.plan(f"eviction {name}")
        leaving, steps = plan.leaving, len(plan.step_prefill)
        assert leaving is not None and len(leaving.offset) == steps + 1
        assert np.array_equal(leaving.row, plan.step_row[: leaving.offset[-1]])  # in the order in which they came
        held = np.arange(steps) - leaving.offset[1:]  # of the steps before, those that still count
        assert (held >= 0).all()
        if kept:
            assert held.max() == kept - 1 or steps <= kept
        else:  # whole requests: nothing of another one counts, and a request's own begin does
            whose = BARE.sequence[plan.step_row]
            begins = np.flatnonzero(np.diff(plan.step_row, prepend=plan.step_row[0] - 1) != 1)
            assert {*begins} <= {*leaving.offset} and len({*leaving.offset}) > 2
            assert all(len({*whose[leaving.offset[s + 1] : s + 1]}) == 1 for s in range(steps))


# --- peers ---


@pytest.mark.parametrize("requests", [60, 150, 400, 1000, 3001])
def test_peers_count_our_hits(requests: int, tmp_path: Path) -> None:
    plan = repeated(BARE, requests)
    touched, ours = peers.touches(plan), peers.our_hits(plan)
    slots = int(plan.slots[0])
    assert sum(map(len, touched)) == requests_of(plan) + len(plan.residents)
    assert peers.in_python(slots)([ids.tolist() for ids in touched]) == ours > 0
    pytest.importorskip("libcachesim", reason="the extra `test` is not installed")
    theirs = peers.LibCacheSim(touched, slots, tmp_path)
    assert [theirs.hits(power) for power in peers.POWERS] == [ours] * len(peers.POWERS)


def test_unequal_work_is_no_comparison() -> None:
    assert peers.agreed({"a": 3, "b": 3}) == 3
    with pytest.raises(AssertionError, match="different hits"):
        peers.agreed({"a": 3, "b": 4})


# --- sections, tiny ---


def test_throughput_divides_what_was_measured_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "DEFAULT", 8)
    monkeypatch.setattr(peers, "POWERS", (6, 8))
    found = figures_of(throughput.throughput(ASK))
    ours = found[f"throughput/bare/{throughput.OURS}"].values
    assert len(ours) == ASK.runs
    for name in [name for name in found if "ours over" in name]:
        peer = found[name.replace("ours over ", "")].values
        assert found[name].values == ratio(ours, peer)


def test_the_full_record_growth_and_curve(capsys: Any) -> None:
    asked = replace(ASK, runs=1)
    assert {name.partition(",")[0] for name in figures_of(throughput.full(asked))} == {
        "full/bare/lru + fetch", "full/bare/gate-lookahead + buddy",
    }  # fmt: skip
    assert {name.split("/")[2] for name in figures_of(curve.curves(replace(asked, traces={"s": sample()}), ""))} == {
        "cache scope layer", "cache scope global", "one run, cache scope layer", "one run, cache scope global",
    }  # fmt: skip


def sample() -> RoutingTrace:
    """Of a model that the catalog knows."""
    trace = next(iter(captures().values()))
    return trace.take(np.arange(1))


def test_growth_varies_one_thing_and_says_why(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sizes, "AXES", {axis: values[:2] for axis, values in sizes.AXES.items()})
    small = staticmethod(lambda axis, value: replace(Shape(requests=500), **{axis: value}))
    monkeypatch.setattr(sizes.Shape, "varied", small)
    found = figures_of(sizes.growth(replace(ASK, runs=1)))
    assert {name.split("/")[1] for name in found} == {*sizes.AXES} == {*sizes.WHY}
    out = capsys.readouterr().out
    assert all(why in out for why in sizes.WHY.values())
    assert all(figure.unit == "ns/request" for figure in found.values())


def test_sizes_measure_the_run_that_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "alone", lambda name, requests, runs: sizes.measured(name, min(requests, 3000), runs))
    asked = replace(ASK, traces=captures(), requests=3000)
    found = {**figures_of(sizes.scaling(asked)), **figures_of(sizes.bounded(asked))}
    for name, trace in asked.traces.items():
        plan = repeated(trace, 3000)
        visits = len(plan.step_prefill) * trace.n_moe_layers
        assert found[f"bounds/{name}/bounds over the run"].note == f"{visits:,} visits"
        held = found[f"bounds/{name}/bounds' arrays, all"].median * 1e6
        assert found[f"bounds/{name}/bounds' arrays"].median == pytest.approx(held / visits) and held > 0
    first = next(iter(asked.traces))
    assert found[f"scaling/{first}/10^4 requests: peak memory"].median > 30  # MB: numpy alone is as much


STUB = """
import os, pathlib, sys
cache, further = pathlib.Path(os.environ["NUMBA_CACHE_DIR"]), len(sys.argv) > 1
assert cache.exists() == further and os.environ["XDG_CACHE_HOME"] != os.environ["NUMBA_CACHE_DIR"]
cache.mkdir(exist_ok=True)
"""


def stubs(root: Path, code: str) -> starts.Starts:
    for name in ("sim", "traces"):
        (root / name).mkdir(exist_ok=True)
    return starts.Starts(root, ("-c", code))


OTHER = "an eviction (decayed)"


def test_a_cold_start_finds_nothing_and_what_follows_finds_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "FURTHER", {name: starts.FURTHER[name] for name in ("--record full", OTHER)})
    found = figures_of(starts.cold(ASK, stubs(tmp_path, STUB)))
    assert len(found["cold/the default run"].values) == len(starts.FURTHER)
    assert {name.removeprefix("cold/") for name in found if not name.endswith(", wall")} == {
        "the default run", *starts.FURTHER,
    }  # fmt: skip
    with pytest.raises(subprocess.CalledProcessError):
        stubs(tmp_path, "raise SystemExit(2)").cold(("--x",))


def test_warm_starts_stand_beside_their_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "FLOORS", dict.fromkeys(starts.FLOORS, ("-c", "pass")))
    found = figures_of(starts.warm(replace(ASK, runs=1), stubs(tmp_path, "pass")))
    assert {f"warm/{name}" for name in ("the default run", *starts.FLOORS)} <= {*found}


# --- the sweep ---


def test_the_grid_is_a_thousand_configurations_of_a_million_requests(tmp_path: Path) -> None:
    runs = expand(sweeps.written(tmp_path, sweeps.GRID, sweeps.REQUESTS))
    assert len(runs) == 1000 and all(run.spec is not None for run in runs)
    assert runs == expand(read_toml(str(tmp_path / "sweep.toml")))
    longer = sweeps.longer(RICH, 5 * (RICH.experts >= 0).sum())
    validate(longer)
    assert longer.n_tokens == 5 * RICH.n_tokens and len(longer.requests()[0]) == 5 * len(RICH.requests()[0])


def test_a_sweep_is_told_warm_and_cold_and_by_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[dict[str, str]] = []

    def swept(tables: Any, out: Path, workers: int, caches: dict[str, str], more: Any = ()) -> dict[str, Any]:
        where.append(caches)
        totals = Totals(loop_s=1, prepare_s=0.1, busy_s=1.5, cpu_s=1.4, requests=28_000_000, runs=4)
        return {**_account(totals, 2.0, workers), "command_s": 3.0}

    monkeypatch.setattr(sweeps, "swept", swept)
    grid = {"calibration": 0.25, "cache": [2, 6], "zip": [{"prefetch": ["none"] * 2, "miss": ["fetch", "drop"]}]}
    found = figures_of(sweeps.sweep(replace(ASK, runs=1), grid, requests=1e4))
    assert [bool(each) for each in where] == [False, False, True]
    assert found["sweep/warm: each worker"].median == 7 and found["sweep/cold: per CPU second"].median == 20
    assert {name.split("/")[-1] for name in found if "one by one" in name} == {
        "cache 2", "cache 6", "miss fetch", "miss drop", "prefetch none",
    }  # fmt: skip
