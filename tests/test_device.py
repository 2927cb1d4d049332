"""The device layer: the torch machine in simulated time equals the compiled one; races are found; nothing hangs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.device.cpu import CpuPort
from runtime.device.port import Declared, DeviceError
from runtime.device.races import Race
from runtime.device.virtual import VirtualPort, every_order, shuffled, timed
from runtime.experts.store import ExpertStore
from runtime.replaying.lockstep import LockStep, Unequal, check, in_lock_step
from sim.core.plan import Plan
from sim.machines import compiled
from tests.devices import difference, machine_on, some_plan
from tests.groups import as_groups
from tests.laws import check_all
from tests.plans import evicting, with_resets
from tests.plans import plan as plan_of

SIMULATED = 400  # plans in simulated time
SHUFFLED = 1000  # orders of real runs


# --- the torch machine in simulated time ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(5))
def test_in_simulated_time_the_torch_machine_equals_the_compiled_one(chunk: int) -> None:
    """To the nanosecond, event by event: the same policy code in the same order, the durations apart."""
    for seed in range(chunk * SIMULATED // 5, (chunk + 1) * SIMULATED // 5):
        plan = some_plan(seed)
        machine = machine_on(plan, timed())
        assert difference(compiled.run(plan, True), machine.run()) is None, seed
        assert machine.store.wrong_slots(machine.residents()) == [], seed


def test_requests_that_begin_as_the_first_one_did() -> None:
    """In simulated time as on the compiled machine; in any order the core alone decides the same; and a device follows
    a simulated run in lock-step."""
    for seed in range(60):
        plan = with_resets(some_plan(seed), seed)
        simulated, machine = compiled.run(plan, True), machine_on(plan, timed())
        assert difference(simulated, machine.run()) is None, seed
        assert machine.store.wrong_slots(machine.residents()) == [], seed
        assert check(plan, machine_on(plan, shuffled(seed)).run()).equal, seed
        assert in_lock_step(machine_on(plan, shuffled(seed + 1), order=LockStep.of(simulated)))[1].equal, seed


def test_the_worked_check_of_the_specification() -> None:
    wanted = [[[0]], [[2]], [[1]]]
    plan = plan_of(wanted, 3, [2], dense=10, expert=5, transfer=100)
    record = machine_on(plan, timed()).run()
    assert record.steps["end_ns"].tolist() == [15, 130, 245]
    assert record.groups["transfers"]["landed_ns"].tolist() == [125, 240]
    assert record.groups["transfers"]["victim"].tolist() == [1, 0]
    assert (record.counters["dense_ns"], record.counters["experts_ns"], record.counters["stall_ns"]) == (30, 15, 200)


def test_a_machine_that_decides_otherwise_is_noticed() -> None:
    """The comparison can fail: another duration, another eviction."""
    plan = some_plan(3)
    other = replace(plan, costs=replace(plan.costs, decide_ns=plan.costs.decide_ns + 1))
    assert difference(compiled.run(plan, True), machine_on(other, timed()).run()) is not None


# --- any order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", range(4))
def test_a_replay_is_right_in_any_order(chunk: int) -> None:
    """Every kernel finds its expert, nothing races, the laws hold, and the core alone decides the same."""
    for seed in range(chunk * SHUFFLED // 4, (chunk + 1) * SHUFFLED // 4):
        plan = some_plan(seed % 500)
        machine = machine_on(plan, shuffled(seed), group=seed % 3 == 0)
        record = machine.run()
        ran = sorted(machine.work.ran)  # type: ignore[attr-defined]
        done = record.groups["executions"]
        low = done["low"] * plan.experts.shape[1] * plan.n_experts
        experts = done["visit"] % plan.experts.shape[1] * plan.n_experts + done["expert"] + low
        assert ran == sorted(zip(experts.tolist(), done["tokens"].tolist(), strict=True)), seed
        if seed % 4 == 0:
            assert check(plan, record).equal, seed
        if seed % 8 == 0 and plan.rerank is None and plan.warmup_steps == 0:
            check_all(plan, as_groups(plan, record))


class NoWaitForReaders(ExpertStore):
    """A fault: a copy does not wait for the last kernel that read its slot."""

    def read(self, slots: Any, event: Any) -> None:
        """Forgotten."""


class NoWaitForCopies(ExpertStore):
    """A fault: a kernel does not wait for the copy that filled its slot."""

    def reading(self, slots: Any) -> Any:
        return [self.slot_access(slot) for slot in slots]


@pytest.mark.parametrize("fault", [NoWaitForReaders, NoWaitForCopies])
def test_a_forgotten_wait_in_the_store_is_found(fault: type[ExpertStore]) -> None:
    plan = plan_of([[[0]], [[2]], [[1]]], 3, [2])
    for seed in range(20):
        with pytest.raises(Race, match=r"which (compute|link) may still (read|write)"):
            machine_on(plan, shuffled(seed), fault).run()
        machine_on(plan, shuffled(seed)).run()


def test_a_host_that_waits_may_stand_in_for_an_event_if_it_is_trusted() -> None:
    plan = plan_of([[[0]], [[2]], [[1]]], 3, [2])
    machine_on(plan, shuffled(1, trust_host=True), NoWaitForReaders).run()


def reuse(port: VirtualPort, seen: list[int], wait: bool, declare: bool = True) -> None:
    """A kernel reads a slot, then a copy overwrites it, with or without waiting for the kernel."""
    slot, source = port.alloc_device(1, "slot"), port.alloc_host(1, "expert")
    source.tensor.fill_(7)
    access = [(slot, 0)] if declare else []
    port.compute.launch(lambda: seen.append(int(slot.tensor[0])), Declared(reads=access))
    if wait:
        port.link.wait(port.compute.record())
    port.link.copy(slot.tensor, source.tensor, declared=Declared(writes=access))
    port.sync()
    port.free(slot)


def test_every_order_of_a_small_program_is_run() -> None:
    """Without the wait the kernel reads the old byte in some orders and the new one in others; with it, never."""
    seen: list[int] = []
    assert every_order(lambda port: reuse(port, seen, False, declare=False)) > 1
    assert set(seen) == {0, 7}
    seen.clear()
    every_order(lambda port: reuse(port, seen, True))
    assert set(seen) == {0}


def test_a_slot_reuse_race_is_found_in_every_order() -> None:
    for seed in range(20):
        with (
            pytest.raises(Race, match="link writes slot \\(0\\), which compute may still read"),
            shuffled(seed) as port,
        ):
            reuse(port, [], False)
    with pytest.raises(Race):
        every_order(lambda port: reuse(port, [], False))


def test_a_missing_wait_of_the_host_is_found() -> None:
    def read_back(port: VirtualPort, wait: bool) -> None:
        ids = port.alloc_host(1, "ids")
        port.compute.launch(lambda: None, Declared(writes=[(ids, 0)]))
        event = port.compute.record()
        if wait:
            event.wait()
        port.touch(reads=[(ids, 0)])

    every_order(lambda port: read_back(port, True))
    with pytest.raises(Race, match="program reads ids"):
        every_order(lambda port: read_back(port, False))


def test_memory_that_is_gone_is_not_used() -> None:
    with shuffled(0) as port:
        buffer = port.alloc_device(4, "a slot")
        port.compute.launch(lambda: None, Declared(reads=[(buffer, 0)]))
        with pytest.raises(Race, match="free writes a slot \\(0\\), which compute may still read"):
            port.free(buffer)
        port.sync()
        port.free(buffer)
        with pytest.raises(DeviceError, match="double free of a slot"):
            port.free(buffer)
        with pytest.raises(Race, match="uses a slot \\(0\\) after it was freed"):
            port.compute.launch(lambda: None, Declared(reads=[(buffer, 0)]))


# --- the paced link ---------------------------------------------------------------------------------------------------


def test_a_paced_copy_lasts_as_long_as_its_link_would_take() -> None:
    with CpuPort(link_gbps=0.01, link_latency_us=300) as port:
        slot, source = port.alloc_device(10_000, "slot"), port.alloc_host(10_000, "expert")
        times: list[tuple[int, int]] = []
        for _ in range(2):
            port.link.copy(slot.tensor, source.tensor, lambda a, b: times.append((a, b)))
        port.wait_until(lambda: len(times) == 2)
        (first, landed), (second, end) = times
        assert landed - first >= 1_000_000 + 300_000  # 10 kB at 0.01 GB/s, behind the set-up of an idle link
        assert landed <= second and end - second >= 1_000_000


# --- lock-step --------------------------------------------------------------------------------------------------------


def test_a_device_follows_a_simulated_run_in_lock_step() -> None:
    for seed in range(120):
        plan = some_plan(seed)
        recorded = compiled.run(plan, True)
        machine = machine_on(plan, shuffled(seed), order=LockStep.of(recorded))
        machine.run()
        assert isinstance(machine.order, LockStep)
        machine.order.finish()
        assert machine.order.outcome.equal, seed
        assert machine.order.outcome.compared == check(plan, recorded).compared


def test_another_decision_is_found_in_lock_step() -> None:
    """The run of another eviction, another answer, another order of transfers is no run of this plan."""
    lru = plan_of([[[e]] for e in (0, 1, 2, 0, 3, 1, 2, 0)], 4, [3], eviction="lru")
    fifo = replace(lru, eviction=evicting("fifo"))
    recorded = compiled.run(lru, True)
    outcome = check(fifo, recorded)
    assert not outcome.equal
    assert str(outcome.difference) == "transfers[0].victim: 1 in the record, 0 in the replay" or outcome.difference
    machine = machine_on(fifo, shuffled(1), order=LockStep.of(recorded))
    with pytest.raises(Unequal):
        machine.run()
    assert isinstance(machine.order, LockStep) and not machine.order.outcome.equal


def test_every_altered_decision_is_found() -> None:
    """One value of a record changed, wherever it is a decision: the replay says so."""
    plan = next(p for p in map(some_plan, range(100)) if len(compiled.run(p, True).groups["transfers"]["victim"]) > 8)
    recorded = compiled.run(plan, True)
    for group, column in (
        ("visits", "hits"),
        ("visits", "misses"),
        ("transfers", "victim"),
        ("transfers", "cause"),
        ("transfers", "expert"),
        ("executions", "tokens"),
        ("executions", "expert"),
        ("answers", "answer"),
        ("answers", "stand_in"),
    ):
        values = recorded.groups[group][column]
        if not len(values):
            continue
        changed = values.copy()
        changed[len(values) // 2] += 1
        other = replace(recorded, groups={**recorded.groups, group: {**recorded.groups[group], column: changed}})
        assert not check(plan, other).equal, (group, column)


# --- when something fails ---------------------------------------------------------------------------------------------


def a_run(seed: int = 1) -> Plan:
    rng = np.random.default_rng(seed)
    return plan_of(rng.integers(0, 6, (30, 2, 1)), 6, [2, 2])


@pytest.mark.parametrize("error", [RuntimeError("lost"), SystemExit(), MemoryError("no more")])
def test_a_copy_thread_that_dies_ends_the_run_with_one_line(error: BaseException, monkeypatch: Any) -> None:
    with CpuPort(50, 0, timeout_s=20) as port:
        machine = machine_on(a_run(), port)
        runs = [0]

        def fail(*_: Any) -> None:
            runs[0] += 1
            raise error

        monkeypatch.setattr(port.link, "_run", fail)
        with pytest.raises(DeviceError, match=f"the link thread failed: {type(error).__name__}"):
            machine.run()
        assert runs == [1]
    assert not port.link.is_alive() and not port.buffers
