"""One device, many settings: capacities, batches and policies one after another, and lock-steps that differ."""

from collections.abc import Iterator
from typing import Any

import pytest

from runtime.device.choose import choose
from runtime.experts.layout import StoreError
from runtime.measuring import durations
from runtime.measuring.bench import PortBench
from runtime.measuring.durations import TimedRun
from runtime.replaying.lockstep import check
from runtime.replaying.opened import Options
from sim.prepare import Setting, prepare
from sim.spec import RunSpec
from tests.test_validate import MODEL
from traces.format import npz
from traces.synthetic import Preset, generate

CASES: list[dict[str, Any]] = [
    {"cache": 3},
    {"cache": 6, "batch": 3, "prefetch": "gate-lookahead"},
    {"cache": 10, "cache_scope": "global", "eviction": "lfu"},
    {"cache": 4, "miss": "cpu", "as_decode": True},
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[Setting]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.toml").write_text(MODEL)
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), noise=(0.24,), requests=4, prompt=(4, 9), generation=(10, 20))
    npz.write(folder / "t.npz", generate(preset, 0))
    named = {"trace": str(folder / "t.npz"), "model": str(folder / "tiny.toml"), "precision": "fp32"}
    return [prepare(RunSpec.of({**named, "max_steps": 12, "warmup_steps": 2, **case})) for case in CASES]


@pytest.fixture(scope="module")
def bench(settings: list[Setting]) -> Iterator[PortBench]:
    with PortBench(choose("cpu", 2.0, 5.0), settings, Options()) as found:
        yield found


def test_every_setting_on_one_bench_decides_as_the_core_does_and_adds_up(
    bench: PortBench, settings: list[Setting]
) -> None:
    for setting in (*settings, settings[0]):
        run = TimedRun(setting, bench.replay(setting))
        assert check(setting.plan, run.record).equal
        found = durations.components(run)
        parts = ("dense", "decide", "experts", "stall", "cpu_wait", "head")
        assert sum(found[name] for name in parts) == found["total"] and min(found[name] for name in parts) >= 0
        assert (found["cpu_wait"] > 0) <= (setting.spec.miss == "cpu")
        visits = run.record.groups["visits"]
        assert (visits["dense_end_ns"] <= visits["routed_ns"]).all()
        assert (durations.begins(run) <= visits["dense_end_ns"]).all()


def test_the_pace_holds_from_the_next_replay_on(bench: PortBench, settings: list[Setting]) -> None:
    for gbps in (1.0, 0.05):
        bench.pace(gbps, 7.0)
        lasted = durations.transfers_of(TimedRun(settings[0], bench.replay(settings[0]))).idle_ns
        assert len(lasted) and lasted.min() >= bench.expert_bytes / gbps + 7000 - 1  # never faster than asked
    bench.pace(2.0, 5.0)
    assert bench.facts()["link_gb_per_s"] == 2.0 and bench.facts()["torch"]


def test_what_does_not_fit_is_refused_and_the_port_is_closed(settings: list[Setting]) -> None:
    huge = prepare(settings[0].spec.model_copy(update={"context_offset": 10**9}))
    with pytest.raises(StoreError, match=r"kv [0-9.]+ GB"), PortBench(choose("cpu"), [huge], Options()):
        raise AssertionError("opened")


def test_the_pace_of_a_paced_link_is_what_its_bare_copies_take(bench: PortBench) -> None:
    bench.pace(0.5, 7.0)
    assert bench.bare_copy_ns() == (bench.expert_bytes * 2 + 7_000, bench.expert_bytes * 2)  # whoever else is at work
    bench.pace(2.0, 5.0)


def test_host_memory_as_stated_counts_and_is_in_the_facts(settings: list[Setting]) -> None:
    with pytest.raises(StoreError, match=r"^memory: needs"), PortBench(choose("cpu"), settings, Options(host_bytes=1)):
        raise AssertionError("opened")
    with PortBench(choose("cpu", 2.0, 5.0), settings[:1], Options(host_bytes=10**9)) as bench:
        assert bench.facts()["host_bytes"] == 10**9


def test_a_lock_step_that_differs_says_where_and_ends_the_lock_steps(settings: list[Setting]) -> None:
    simulated = durations.simulated(settings[0])
    other = prepare(settings[0].spec.model_copy(update={"eviction": "fifo"}))
    with PortBench(choose("cpu", 2.0, 5.0), settings[:1], Options()) as bench:
        replayed, same = bench.lock_step(settings[0], simulated.record)
        assert same.equal and replayed is not None and sum(same.compared.values()) > 100
        assert (replayed.layer["hits"] == simulated.record.layer["hits"]).all()
        replayed, wrong = bench.lock_step(other, simulated.record)
        assert replayed is None and wrong.difference is not None
        after = bench.lock_step(settings[0], simulated.record)[1]
        assert not after.equal and str(wrong.difference) in str(after.error)
