"""The torch machine does what an engine does on a miss (plan.OnMiss): as the compiled machine in simulated time, right
in any order, in lock-step, and for real on the CPU; and what it cannot do it refuses by name."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime import replay
from runtime.closed_loop.loop import ClosedLoop
from runtime.closed_loop.routed import ModelShape
from runtime.device.cpu import CpuPort
from runtime.device.races import Race
from runtime.device.virtual import Op, shuffled, timed
from runtime.experts.store import ExpertStore, Synthetic
from runtime.replay import main
from runtime.replaying import layers, shapes
from runtime.replaying.lockstep import Ends, LockStep, check
from runtime.replaying.machine import Machine, refuse
from runtime.replaying.stages import Stages, stages_of
from runtime.replaying.work import Job
from sim import catalog
from sim.core import miss
from sim.core.plan import GROUPS, PLACES, Choice, OnMiss, Plan
from sim.errors import SpecError
from sim.machines import compiled
from sim.run import main as simulate
from sim.spec import RunSpec
from tests import laws_on_miss
from tests.devices import SMALL, Checked, Numbered, difference, machine_on, store_for
from tests.eviction_plans import EVERY, plan_of_eviction
from tests.groups import as_groups
from tests.on_miss_plans import plan_of, rule
from tests.on_torch import fixed_hardware
from tests.plans import plan
from tests.test_ports import PORTS
from tests.test_store import work_of

SIMULATED = 1100  # seeds, of which about half can be replayed
SHUFFLED = 400
SLOT, STAGE, _, HOST, DEFERRED = range(len(PLACES))


def replayed(seeds: range, draw: Callable[[int], Plan] = plan_of) -> Iterator[tuple[int, Plan]]:
    """Plans that the torch machine does not refuse, whole ones."""
    for seed in seeds:
        found = draw(seed)
        try:
            refuse(found)
        except SpecError:
            continue
        yield seed, found


def on_stages(wanted: Any, n_experts: int, stages: int, rows: int = 1, **given: Any) -> Plan:
    """One layer without slots; steps of so many rows; experts over the link in 100 ns, then executed in 10."""
    steps = [list(range(at, at + rows)) for at in range(0, len(wanted), rows)]
    run_ns = np.array([[0, *range(100, 100 * n_experts + 1, 100)]] * 2)
    on = OnMiss(run_ns, np.zeros(len(steps), bool), stages=stages, **given)
    made = plan(wanted, n_experts, [0], steps, transfer=100, expert=10, dense=0, residents=[])
    return replace(made, miss=rule("stream"), on_miss=on)


# --- in simulated time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(5))
def test_in_simulated_time_the_torch_machine_equals_the_compiled_one(chunk: int) -> None:
    """To the nanosecond, event by event; at the end every slot holds its expert."""
    held = 0
    for seed, each in replayed(range(chunk * SIMULATED // 5, (chunk + 1) * SIMULATED // 5)):
        machine = machine_on(each, timed())
        assert difference(compiled.run(each, True), machine.run()) is None, seed
        assert machine.store.wrong_slots(machine.residents()) == [], seed
        held += 1
    assert held >= 100


def test_it_does_so_with_every_eviction_and_however_it_counts() -> None:
    """Lists, ghosts, visits one by one, newcomers that are not kept; and in another order the core alone agrees."""
    held = list(replayed(range(150), plan_of_eviction))
    for seed, each in held:
        assert difference(compiled.run(each, True), machine_on(each, timed()).run()) is None, seed
        assert check(each, machine_on(each, shuffled(seed)).run()).equal, seed
    assert len(held) >= 120 and {each.eviction.name for _, each in held} >= {*EVERY}


def test_with_a_warm_up_too() -> None:
    for seed, each in replayed(range(100)):
        if len(each.step_prefill) > 2:
            each = replace(each, warmup_steps=2)
            assert difference(compiled.run(each, True), machine_on(each, timed()).run()) is None, seed


def test_a_run_of_copies_is_one_transfer_and_one_landing() -> None:
    """Experts 0, 1, 2 and 4 of one token: runs of 3 and 1 experts, 300 and 100 ns; each waits for its own to land."""
    each = on_stages([[[0, 1, 2, 4]]], 5, 0, merge_runs=True)
    machine = machine_on(each, timed())
    record = machine.run()
    assert record.groups["transfers"]["run"].tolist() == [0, 0, 0, 1]
    assert record.groups["transfers"]["landed_ns"].tolist() == [300, 300, 300, 400]
    assert record.groups["executions"]["end_ns"].tolist() == [310, 320, 330, 410]
    assert record.steps["end_ns"].tolist() == [410]
    assert machine.store.holds[:4] == [0, 1, 2, 4]


def test_a_link_that_is_not_slowed_in_the_middle_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Op, "declare", lambda self, ns: None)
    shared = [(s, p) for s, p in replayed(range(300)) if p.on_miss is not None and p.on_miss.link_share != (1, 1)]
    wrong = [s for s, each in shared if difference(compiled.run(each, True), machine_on(each, timed()).run())]
    assert len(shared) > 50 and len(wrong) >= 5


# --- in any order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(4))
def test_a_replay_is_right_in_any_order(chunk: int) -> None:
    """Every kernel finds its expert in its slot or stage, nothing races, and the core alone decides the same; the laws
    hold that are not about durations."""
    for seed, each in replayed(range(chunk * SHUFFLED // 4, (chunk + 1) * SHUFFLED // 4)):
        each = replace(each, rerank=None)  # the laws read what is wanted from the trace
        machine = machine_on(each, shuffled(seed), group=seed % 3 == 0)
        record = machine.run()
        done = record.groups["executions"]
        experts = done["visit"] % each.experts.shape[1] * each.n_experts + done["expert"]
        n = each.experts.shape[1] * each.n_experts
        ran = sorted((g % n, tokens) for g, tokens in machine.work.ran)  # type: ignore[attr-defined]
        assert ran == sorted(zip(experts.tolist(), done["tokens"].tolist(), strict=True)), seed
        assert check(each, record).equal, seed
        result = as_groups(each, record)
        result["totals"]["residents"] = list(machine.residents())
        story = laws_on_miss.Story(each, result)
        for law in ("conservation", "residency", "commit_order", "admissions", "whole_layers", "causality"):
            getattr(laws_on_miss, f"check_{law}")(story)


class NoWaitForReaders(ExpertStore):
    """A fault: a stage is free again, for the device, before its reader has ended."""

    def read(self, slots: Any, event: Any) -> None:
        super().read([slot for slot in slots if slot < self.first_stage], event)


class FreedAtLanding(Machine):
    """A fault: a stage is given to the next copy when its own has landed."""

    def landed(self, g: int, started_ns: int, landed_ns: int) -> None:
        super().landed(g, started_ns, landed_ns)
        self.stages.free.appendleft(self.stages.of[g])


def test_a_stage_that_is_free_before_its_reader_has_ended_is_found() -> None:
    """One stage, two experts one after the other: the second copy waits for the kernel that reads the first."""
    each = on_stages([[[0, 1]]], 2, 1)
    for seed in range(20):
        with pytest.raises(Race, match=r"link writes 1 stages of .* which compute may still read"):
            machine_on(each, shuffled(seed), NoWaitForReaders).run()
        machine_on(each, shuffled(seed)).run()
    with pytest.raises(Race):
        machine_on(each, timed(), NoWaitForReaders).run()


def test_a_stage_that_is_given_away_before_its_group_is_found() -> None:
    """Three copies, executed together when all have landed: the second overwrites the first."""
    each = replace(on_stages([[[0, 1, 2]]], 3, 3), group=GROUPS.index("all"))
    for port in (timed(), *map(shuffled, range(20))):
        store = store_for(each, port)
        with pytest.raises(AssertionError, match="slot 0 does not hold expert"):
            FreedAtLanding(each, port, store, Checked(store)).run()


# --- stages -----------------------------------------------------------------------------------------------------------


def test_the_stage_that_was_given_back_first_is_claimed_first() -> None:
    stages = Stages(7, 2)
    assert (stages.claim(100), stages.claim(101)) == (7, 8)
    stages.give_back(101)
    stages.give_back(100)
    assert (stages.claim(102), stages.claim(103), stages.of) == (8, 7, {102: 8, 103: 7})


def test_how_many_stages_a_plan_may_fill_at_once() -> None:
    """Of 6 experts in one layer, steps of two rows and two experts each."""
    wanted = [[[0, 1]], [[2, 3]]]
    assert stages_of(plan(wanted, 6, [2])) == 0
    assert stages_of(on_stages(wanted, 6, 0, rows=2)) == 4  # what a visit may want
    assert stages_of(on_stages(wanted, 6, 3, rows=2)) == 3
    assert stages_of(on_stages(wanted, 6, 0, whole_layer=True, ahead=2)) == 3 * 6
    # whole layers, left-overs of which are on the link one by one; all there are is enough
    assert stages_of(on_stages(wanted, 6, 0, whole_layer=True)) == 6
    two = replace(plan([[[0], [1]]], 6, [0, 0], residents=[]), miss=rule("stream"))
    on = OnMiss(np.zeros((2, 7), np.int64), np.zeros(1, bool), whole_layer=True)
    assert stages_of(replace(two, on_miss=on)) == 6 + 1
    assert stages_of(replace(two, on_miss=replace(on, merge_runs=True))) == 6 + 6
    cpu = replace(two, miss=Choice("cpu", miss.CPU))
    assert stages_of(replace(cpu, on_miss=on)) == 0
    assert stages_of(replace(cpu, on_miss=replace(on, bulk=rule("stream")))) == 6 + 1


def test_a_store_with_too_few_stages_is_refused() -> None:
    each = on_stages([[[0, 1]]], 3, 2)
    with timed() as port:
        store = ExpertStore(port, SMALL, 1, 3, [0], Numbered(), stages=1)
        with pytest.raises(SpecError, match=r"^stages: 1: of the store; the plan may fill 2 at once$"):
            Machine(each, port, store, Checked(store))


# --- in lock-step -----------------------------------------------------------------------------------------------------


def test_a_device_follows_a_simulated_run_in_lock_step() -> None:
    for seed, each in replayed(range(250)):
        recorded = compiled.run(each, True)
        machine = machine_on(each, shuffled(seed), order=LockStep.of(recorded))
        machine.run()
        assert isinstance(machine.order, LockStep)
        machine.order.finish()
        assert machine.order.outcome.equal, seed
        assert machine.order.outcome.compared == check(each, recorded).compared


def test_every_altered_decision_is_found() -> None:
    """Also which transfer brought a copy, and where an expert ran."""
    another = {SLOT: STAGE, STAGE: SLOT, HOST: DEFERRED, DEFERRED: HOST}
    for group, column in (("transfers", "run"), ("transfers", "place"), ("executions", "place")):
        tried = 0
        for seed, each in replayed(range(80)):
            recorded = compiled.run(each, True)
            values = recorded.groups[group][column].copy()
            if not len(values):
                continue
            middle = len(values) // 2
            values[middle] = values[middle] + 1 if column == "run" else another[values[middle]]
            other = replace(recorded, groups={**recorded.groups, group: {**recorded.groups[group], column: values}})
            assert not check(each, other).equal, (group, column, seed)
            tried += 1
        assert tried >= 20, (group, column)


def test_where_a_visit_ends_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that never ends a visit before its time keeps stages that the record gave back."""
    late = [each for _, each in replayed(range(200)) if each.on_miss is not None and each.on_miss.whole_layer]
    records = [compiled.run(each, True) for each in late]
    assert all(check(each, record).equal for each, record in zip(late, records, strict=True))
    monkeypatch.setattr(Ends, "come_before", lambda self, entry, s: False)
    assert not all(check(each, record).equal for each, record in zip(late, records, strict=True))


# --- for real, on the CPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PORTS)
def test_a_replay_on_every_port_decides_as_the_core(name: str) -> None:
    for seed, each in replayed(range(40, 60)):
        with PORTS[name]() as port:
            machine = machine_on(each, port)
            record = machine.run()
            assert machine.store.wrong_slots(machine.residents()) == []
        assert check(each, record).equal, seed


FAST = ["--trace", "mixtral.npz", "--max-steps", "3", "--precision", "fp32", "--prefill-chunk", "40"]
DEVICE = ["--device", "cpu", "--scale", "0.0078125", "--link-gbps", "2", "--link-latency-us", "5", "--json"]
ENGINES = {
    "copies in runs": "--miss stream --cache 2 --merge runs --as-decode",
    "serial layers on the CPU": "--n-cpu-moe 20 --bulk stream --bulk-rows 8 --miss cpu --serial",
    "admitted and deferred": "--miss cpu-admit --cache 3 --defer 1 --expert-group ready",
    "split": "--miss split --cache 3 --set split.keep=no --link-share 0.5",
    "a layer ahead": "--miss stream --cache 2 --ahead 1 --expert-group all --expert-kernel loop",
    "static, whole layers": "--eviction static --cache 3 --whole-layer --prefetch previous-token",
}


@pytest.mark.parametrize("name", ENGINES)
def test_a_replay_on_the_cpu_decides_as_the_core(name: str, capsys: Any) -> None:
    assert main([*FAST, *DEVICE, *ENGINES[name].split(), "--check"]) == 0
    device = json.loads(capsys.readouterr().out)["device"]
    assert device["lock_step"]["this run's order, through the core"]["equal"]
    assert device["wrong_slots"] == []


@pytest.mark.parametrize("name", ["serial layers on the CPU", "a layer ahead"])
def test_lock_step_on_the_cpu_follows_a_simulated_run(name: str, capsys: Any, tmp_path: Path) -> None:
    flags = ENGINES[name].replace("--expert-kernel loop", "").split()
    assert simulate([*FAST, *flags, "--out", str(tmp_path), "--record", "full"]) == 0
    capsys.readouterr()
    assert main([*FAST, *DEVICE, *flags, "--lock-step", str(tmp_path)]) == 0
    compared = json.loads(capsys.readouterr().out)["device"]["lock_step"]
    assert all(one["equal"] and one["decisions"] > 1000 for one in compared.values()) and len(compared) == 2


def test_plans_run_on_a_paced_link() -> None:
    with CpuPort(0.005, 20) as port:
        for seed, each in replayed(range(60, 90)):
            record = machine_on(each, port).run()
            assert check(each, record).equal, seed


def test_what_is_deferred_is_added_in_the_next_layer() -> None:
    """An expert on the CPU at once, another one deferred: the first is in the sum of this layer, both in the next."""
    model = shapes.scaled(catalog.model("mixtral-8x7b"), 1 / 64)
    with CpuPort(50, 0) as port:
        work = work_of(model, port, to_host=True, defers=True)
        jobs = {g: Job(g, np.array([1, 4]), np.array([0.25, 0.5], np.float32)) for g in (3, 5)}

        def alone(g: int) -> torch.Tensor:
            own = work.normed[torch.from_numpy(jobs[g].rows)]
            out = layers.expert(own, work.store.on_host(g)) * torch.from_numpy(jobs[g].weights)[:, None]
            return torch.zeros_like(work.x).index_add(0, torch.from_numpy(jobs[g].rows), out)

        work.begin_step(0)
        work.dense(0)
        work.read_back()
        before, at_once, deferred = work.x, alone(3), alone(5)
        work.routed({}, jobs, [5])
        work.on_host(jobs[3])
        work.join_host()
        torch.testing.assert_close(work.x, before + at_once)
        work.dense(1)
        work.read_back()
        before, at_once = work.x, alone(3)
        work.routed({}, {3: jobs[3]})
        work.on_host(jobs[5])  # when the next layer's activations are there already
        work.on_host(jobs[3])
        work.join_host()
        torch.testing.assert_close(work.x, before + at_once + deferred)


@pytest.mark.skipif(not layers.has_grouped(), reason="this torch has no grouped_mm")
def test_experts_in_slots_and_stages_in_one_go_equal_experts_one_by_one() -> None:
    model = shapes.scaled(catalog.model("mixtral-8x7b"), 1 / 128)
    with CpuPort(50, 0) as port:
        work = work_of(model, port)
        layout = work.store.layout
        work.store = ExpertStore(port, layout, 32, 8, [3] * 32, Synthetic(layout), stages=4)
        work.store.place({17: 8})
        copy, stage = 256 + 20, work.store.first_stage + 2
        work.store.fetch(copy, stage).wait()
        work.begin_step(0)
        work.dense(0)
        jobs = [Job(g, np.array([i, 3]), np.full(2, 0.3, np.float32)) for i, g in enumerate((copy, 17))]
        work.routed({job.expert: job for job in jobs}, {})
        before = work.x
        work.experts(2, jobs, [stage, 8])
        together, work.x = work.x, before
        for job, slot in zip(jobs, (stage, 8), strict=True):
            work.expert(job.expert, slot)
        torch.testing.assert_close(together, work.x)
        assert not torch.equal(before, work.x)


def test_a_copy_lies_in_its_stage_and_is_given_back() -> None:
    with CpuPort(50, 0) as port:
        store = ExpertStore(port, SMALL, 2, 3, [1, 1], Numbered(), stages=2)
        assert store.first_stage == 2 and len(port.buffers) == 4
        store.fetch_together([6 + 4, 6 + 5], [3, 2]).wait()
        assert store.wrong_slots({4: 3, 5: 2}) == [] and store.wrong_slots({5: 3}) == [5]
        assert torch.equal(store.in_slot(3).up, store.on_host(4).up)
        store.close()
        assert port.buffers == []


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--miss remote", "miss: remote: "),
        ("--miss cpu --bulk remote --bulk-rows 8", "bulk: remote: "),
        ("--miss cpu --beside no", "beside: no: "),
    ],
)
def test_what_only_simulated_machines_can_do_is_one_line(flags: str, said: str, capsys: Any, monkeypatch: Any) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(CpuPort, "alloc_device", never)
    assert main([*FAST, *DEVICE, *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: {said}") and "--machine compiled and --machine simpy" in err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"miss": "cpu", "beside": False}, "beside: False: "),
        ({"bulk": "stream", "bulk_rows": "8"}, "bulk: stream: "),
        ({"miss": "cpu-admit"}, "miss: cpu-admit: "),
        ({"eviction": "static"}, "eviction: static: "),
        ({"cache": "layers:2"}, "cache: layers:2: "),
        ({"n_cpu_moe": 1}, "n_cpu_moe: 1: "),
    ],
)
def test_a_closed_loop_refuses_what_an_engine_does_on_a_miss(fields: Any, said: str, tmp_path: Path) -> None:
    spec = RunSpec.of({"trace": "loop", "hardware": fixed_hardware(tmp_path, 1700), **fields})
    with pytest.raises(SpecError, match=f"^{said}.*closed loop") as error:
        ClosedLoop(spec, ModelShape("unnamed", 4, (0, 1, 2, 3), 12, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", [["--dense-on-host", "layers:2"], ["--miss", "cpu", "--cpu-visit-us", "50"]])
def test_a_device_takes_its_own_time(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["--trace", "tiny-moe.npz", "--device", "cpu", "--max-steps", "2", *flag]) == 2
    name = flag[-2].removeprefix("--").replace("-", "_")
    assert capsys.readouterr().err.startswith(f"error: {name}: ")
