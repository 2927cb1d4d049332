"""The contract of runtime.device.port, held by every port there is: whoever writes another puts it into PORTS."""

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from runtime import device as room
from runtime.device.accelerator import AcceleratorPort
from runtime.device.cpu import CpuPort, OneStreamPort
from runtime.device.port import Buffer, DeviceError, Port
from runtime.device.virtual import shuffled, timed
from runtime.replaying.lockstep import check
from tests.devices import machine_on, some_plan
from tests.groups import as_groups
from tests.laws import check_all
from tests.stand_in import StandIn


@contextmanager
def on_stand_in() -> Iterator[Port]:
    """The accelerator's port on a CUDA machine in simulated time."""
    with StandIn(), AcceleratorPort(torch.device("cuda", 0), timeout_s=20) as port:
        yield port


PORTS: dict[str, Callable[[], AbstractContextManager[Port]]] = {
    "cpu": lambda: CpuPort(5, 1, timeout_s=20),
    "one stream": lambda: OneStreamPort(torch.device("cpu"), timeout_s=20),
    "accelerator": on_stand_in,
    "timed": timed,
    "shuffled": lambda: shuffled(1),
}
ports = pytest.mark.parametrize("name", PORTS)


def test_every_port_is_held_to_the_contract() -> None:
    """Whatever class of runtime.device can be opened as a port is opened by one of PORTS."""
    there = set()
    for module in pkgutil.iter_modules(room.__path__):
        found = vars(importlib.import_module(f"{room.__name__}.{module.name}")).values()
        there |= {kind for kind in found if isinstance(kind, type) and hasattr(kind, "facts") and kind is not Port}
    held = set()
    for opened in PORTS.values():
        with opened() as port:
            held.add(type(port))
    assert there == held


# --- order ------------------------------------------------------------------------------------------------------------


@ports
def test_streams_keep_their_order_and_events_order_streams(name: str) -> None:
    with PORTS[name]() as port:
        slot, source = port.alloc_device(4, "slot"), port.alloc_host(4, "expert")
        seen: list[Any] = []
        for value in (1, 2, 3):
            source.tensor.fill_(value)
            copy = port.link.copy(slot.tensor, source.tensor, lambda a, b, v=value: seen.append((v, a <= b)))  # type: ignore[misc]
            port.compute.wait(copy)
            port.compute.launch(lambda: seen.append(slot.tensor.tolist()))
            port.compute.record().wait()
            port.wait_until(lambda v=value: (v, True) in seen)  # type: ignore[misc]
            assert copy.done() and copy.time_ns() <= port.now_ns()
            assert [value] * 4 in seen


@ports
def test_copies_land_once_each_in_their_order_and_none_while_the_lock_is_held(name: str) -> None:
    """What a landing asks for follows; its times lie between the asking and the landing; the last bytes are there."""
    with PORTS[name]() as port:
        slot = port.alloc_device(4, "slot")
        sources = [port.alloc_host(4, f"expert {i}") for i in range(6)]
        landed: list[tuple[int, int, int]] = []
        held = [False]

        def copy(i: int) -> None:
            sources[i].tensor.fill_(i + 1)
            port.link.copy(slot.tensor, sources[i].tensor, lambda a, b: arrive(i, a, b))

        def arrive(i: int, started_ns: int, landed_ns: int) -> None:
            with port.lock:
                assert not held[0]
                landed.append((i, started_ns, landed_ns))
                if i == 2:
                    copy(5)
                port.notify()

        before = port.now_ns()
        with port.lock:
            held[0] = True
            for i in range(5):
                copy(i)
            assert landed == []
            held[0] = False
        port.wait_until(lambda: len(landed) == 6)
        assert [i for i, _, _ in landed] == [0, 1, 2, 3, 4, 5]
        for (_, _, earlier), (_, started, ended) in zip([(-1, 0, before), *landed], landed, strict=False):
            assert before <= started <= ended and earlier <= ended <= port.now_ns()
        back = port.alloc_host(4, "back")
        port.link.copy(back.tensor, slot.tensor).wait()
        assert back.tensor.tolist() == [6] * 4


@ports
def test_several_copies_as_one_land_once_when_all_are_there(name: str) -> None:
    with PORTS[name]() as port:
        slots, sources = ([port.alloc_device(4, f"{what} {i}") for i in range(3)] for what in ("slot", "expert"))
        for i, source in enumerate(sources):
            source.tensor.fill_(i + 1)
        parts = [(slot.tensor, source.tensor) for slot, source in zip(slots, sources, strict=True)]
        landed: list[list[list[int]]] = []
        copy = port.link.transfer(parts, lambda *_: landed.append([slot.tensor.tolist() for slot in slots]))
        copy.declare(7)
        port.wait_until(lambda: len(landed) > 0)
        port.sync()
        assert landed == [[[1] * 4, [2] * 4, [3] * 4]] and copy.done()


@ports
def test_the_host_stream_runs_beside_and_in_order(name: str) -> None:
    with PORTS[name]() as port:
        seen: list[int] = []
        before = port.host.record()
        for i in range(5):
            port.host.launch(lambda i=i: seen.append(i))  # type: ignore[misc]
        after = port.host.record()
        after.wait()
        assert seen == [0, 1, 2, 3, 4]
        assert before.done() and before.time_ns() <= after.time_ns()


@ports
def test_sync_waits_for_every_stream_and_for_landings(name: str) -> None:
    with PORTS[name]() as port:
        slot, source = port.alloc_device(4, "slot"), port.alloc_host(4, "expert")
        seen: list[str] = []
        port.host.launch(lambda: seen.append("host"))
        port.link.copy(slot.tensor, source.tensor, lambda *_: seen.append("landed"))
        port.compute.launch(lambda: seen.append("compute"))
        port.sync()
        assert sorted(seen) == ["compute", "host", "landed"]
        port.soon(lambda: seen.append("soon"))
        port.sync()
        assert seen[-1] == "soon"


@ports
def test_a_replay_on_every_port_decides_as_the_core(name: str) -> None:
    for seed in range(40, 52):
        plan = some_plan(seed)
        with PORTS[name]() as port:
            machine = machine_on(plan, port)
            record = machine.run()
            assert machine.store.wrong_slots(machine.residents()) == []
        outcome = check(plan, record)
        assert outcome.equal, (seed, outcome)
        assert outcome.compared["visits"] == 7 * plan.experts.shape[1] * len(plan.step_prefill)
        if plan.rerank is None and plan.warmup_steps == 0:
            check_all(plan, as_groups(plan, record))


# --- memory, and the end ----------------------------------------------------------------------------------------------


@ports
@pytest.mark.parametrize("alloc", ["alloc_device", "alloc_host"])
def test_memory_that_is_not_there_is_one_line_and_keeps_nothing(name: str, alloc: str) -> None:
    with PORTS[name]() as port:
        with pytest.raises(DeviceError, match=r"^too much.*1152921504\.61 GB.*") as error:
            getattr(port, alloc)(1 << 60, "too much")
        assert "\n" not in str(error.value)
        assert getattr(port, alloc)(10, "enough").tensor.shape == (10,)


@ports
def test_memory_is_given_back_once(name: str) -> None:
    with PORTS[name]() as port:
        for buffer in (port.alloc_device(4, "slot"), port.alloc_host(4, "slot"), port.alloc_host(4, "slot", False)):
            assert (buffer.tensor.dtype, buffer.tensor.shape) == (torch.uint8, (4,))
            port.free(buffer)
            assert buffer.freed and buffer.tensor.numel() == 0
            with pytest.raises(DeviceError, match="double free of slot"):
                port.free(buffer)
        assert port.free_bytes() > 1 << 20


@ports
@pytest.mark.parametrize("how", ["left", "raised", "closed"])
def test_nothing_is_left_behind(name: str, how: str) -> None:
    """Neither memory nor threads nor torch's settings, however it ends and however often it is closed."""
    threads, number, taken = torch.get_num_threads(), threading.active_count(), []
    error = RuntimeError("odd")
    try:
        with PORTS[name]() as port:
            taken += [port.alloc_device(10, "a"), port.alloc_host(10, "b")]
            port.link.copy(taken[0].tensor, taken[1].tensor, lambda *_: None)
            port.host.launch(lambda: None)
            if how == "raised":
                raise error
            if how == "closed":
                port.close()
    except RuntimeError as found:
        assert found is error
    port.close()
    assert all(isinstance(buffer, Buffer) and buffer.freed and buffer.tensor.numel() == 0 for buffer in taken)
    assert (torch.get_num_threads(), threading.active_count()) == (threads, number)
    assert "name" in port.facts() and "what" in port.facts()


@ports
def test_waiting_for_what_cannot_happen_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with PORTS[name]() as port:
        monkeypatch.setattr(port, "timeout_s", 0.01, raising=False)  # of a virtual port: nothing to wait for
        with pytest.raises(DeviceError, match=r"^nothing happened for 0\.01 s; gave up|and nothing is under way$"):
            port.wait_until(lambda: False)


@pytest.mark.parametrize("name", ["cpu", "one stream", "accelerator"])
def test_a_host_thread_that_fails_ends_the_next_wait_with_one_line(name: str) -> None:
    def fail() -> None:
        raise ValueError("odd\nand more")

    with PORTS[name]() as port:
        port.host.launch(fail)
        with pytest.raises(DeviceError, match=r"^the host thread failed: ValueError: odd$"):
            port.host.record().wait()


# --- time that nobody spends ---


@ports
def test_time_passes_and_what_was_given_before_is_done_first(name: str) -> None:
    """On simulated clocks exactly so much passes; on others no less; in any order, a step of the device."""
    with PORTS[name]() as port:
        before = port.now_ns()
        port.let_pass(40_000)
        spent = port.now_ns() - before
        assert spent == 40_000 if name == "timed" else spent >= (1 if name == "shuffled" else 40_000)
