"""The accelerator's port, on a CUDA machine that is not there (tests.stand_in) and on a real one where there is one."""

import mmap
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.device import accelerator as room
from runtime.device.accelerator import AcceleratorPort, DeviceEvent, current, own_pages
from runtime.device.choose import choose
from runtime.device.cpu import sleep_until
from runtime.device.port import DeviceError
from runtime.measuring import durations
from runtime.measuring.bench import PortBench
from runtime.measuring.durations import TimedRun
from runtime.measuring.terms import fitted
from runtime.replaying.layers import MOST_GROUPS
from runtime.replaying.lockstep import check
from runtime.replaying.opened import Options
from sim.prepare import Setting, prepare
from sim.spec import RunSpec
from tests.devices import FakeAccelerator, machine_on, some_plan
from tests.groups import as_groups
from tests.laws import check_all
from tests.stand_in import CUDA, StandIn
from tests.test_validate import MODEL
from traces.errors import UserError
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.synthetic import Preset, generate

ARMS: dict[str, dict[str, Any]] = {
    "lru": {"cache": 3},
    "prefetch": {"cache": 6, "prefetch": "gate-lookahead", "prefetch_budget": 2},
    "all there": {"cache": 8},
    "a batch, grouped": {"cache": 3, "batch": 3, "expert_group": "all"},
    "prompts": {"cache": 3, "as_decode": False, "prefill_chunk": 7},
    "the cpu": {"cache": 3, "miss": "cpu"},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setting]:
    folder = tmp_path_factory.mktemp("accelerator")
    (folder / "tiny.toml").write_text(MODEL)
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), noise=(0.24,), requests=4, prompt=(4, 9), generation=(20, 30))
    npz.write(folder / "t.npz", generate(preset, 0))
    named = {"trace": str(folder / "t.npz"), "model": str(folder / "tiny.toml"), "precision": "bf16"}
    common = {**named, "max_steps": 20, "warmup_steps": 2, "as_decode": True}
    return {name: prepare(RunSpec.of({**common, **arm})) for name, arm in ARMS.items()}


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How far each time that the port gives lies from the truth, in ns; only on the stand-in."""
    found: list[int] = []
    plain = DeviceEvent.time_ns

    def noted(self: Any) -> int:
        at = plain(self)
        found.append(at - self.event.at_ns)
        return at

    monkeypatch.setattr(DeviceEvent, "time_ns", noted)
    return found


def on_stand_in(settings: list[Setting], machine: StandIn) -> Iterator[PortBench]:
    with machine, PortBench(choose("cuda"), settings, Options()) as bench:
        yield bench


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link_gbps", "kernel_ns", "yield_ns"), [(0.02, 3_000, 5_000), (0.1, 20_000, 700), (5.0, 40_000, 700)]
)
def test_device_times_are_within_50_us_of_the_truth(
    settings: dict[str, Setting], off: list[int], link_gbps: float, kernel_ns: int, yield_ns: int
) -> None:
    """Whatever is under way meanwhile, and though the host is away now and then for up to 3 ms."""
    machine = StandIn(1, link_gbps, kernel_ns=kernel_ns, hiccups=100, yield_ns=yield_ns)
    for bench in on_stand_in(list(settings.values()), machine):
        for setting in settings.values():
            assert check(setting.plan, bench.replay(setting)).equal
    assert len(off) > 1000 and max(map(abs, off)) < 50_000


@pytest.mark.parametrize("link_gbps", [0.02, 0.1, 0.5])
def test_a_transfer_lasts_what_the_link_takes(settings: dict[str, Setting], link_gbps: float) -> None:
    machine = StandIn(3, link_gbps, hiccups=50)
    for bench in on_stand_in([settings["lru"], settings["prefetch"]], machine):
        runs = [TimedRun(settings[name], bench.replay(settings[name])) for name in ("lru", "prefetch")]
        true_ns = machine.copy_ns + bench.expert_bytes / link_gbps
        assert fitted([runs]).section["transfer_idle_ns"] == pytest.approx(true_ns, rel=0.2)
        lasted = durations.transfers_of(runs[0]).idle_ns
        assert np.median(lasted) == pytest.approx(true_ns, rel=0.2) and lasted.min() > 0


def test_an_event_that_happened_long_ago_is_no_anchor() -> None:
    """Though the host has just looked, in vain, whether the copy that is under way has landed."""
    with StandIn(link_gbps=0.01) as machine, choose("cuda") as port:
        slot, source = port.alloc_device(10_000, "slot"), port.alloc_host(10_000, "expert")
        for away_ns in range(0, 3_000_000, 300_000):
            copy = port.link.copy(slot.tensor, source.tensor, lambda *_: None)  # takes 1 ms
            old = port.compute.record()
            machine.pass_ns(away_ns)
            old.wait()
            for event in (old, port.compute.record(), copy):  # timed from the anchors that there are by now
                event.wait()
                assert abs(event.time_ns() - event.event.at_ns) < 50_000, away_ns  # type: ignore[attr-defined]


def test_times_hold_though_nothing_happens_for_long_and_clocks_drift() -> None:
    """10 s of silence, 50 ppm: 500 us."""
    with StandIn(drift_ppm=50) as machine, choose("cuda") as port:
        slot, source = port.alloc_device(1000, "slot"), port.alloc_host(1000, "expert")
        copied = lambda: port.link.copy(slot.tensor, source.tensor)  # noqa: E731
        for away_ns in (10**6, 10**9, 10**10):
            for recorded, late_ns in product((port.compute.record, copied), (0, 2_000_000)):
                machine.now += away_ns
                event: Any = recorded()
                machine.now += late_ns  # the host is away while it happens, too
                event.wait()
                assert abs(event.time_ns() - event.event.at_ns) < 50_000, (away_ns, late_ns)


def test_the_best_anchor_is_kept_until_clocks_have_drifted() -> None:
    with StandIn(), choose("cuda") as port:
        assert isinstance(port, AcceleratorPort)
        known = port.anchor
        assert 0 < known.width_ns < 10_000
        port.saw("blunt", known.ns, known.ns + known.width_ns + 1_000)
        assert port.anchor is known
        later = known.ns + 1_000 * room.DRIFT  # 1,000 ns of drift
        port.saw("as good", later, later + known.width_ns + 1_001)
        assert port.anchor is known
        port.saw("as good", later, later + known.width_ns + 1_000)
        assert port.anchor.event == "as good" and port.anchor.ns == later + (known.width_ns + 1_000) // 2


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_an_idle_poll_is_short() -> None:
    """1,000 of them, under 20 us each, on a machine where time.sleep(0) takes 65."""
    with StandIn() as machine, choose("cuda") as port:
        looks, began = [0], machine.now
        port.wait_until(lambda: looks.__setitem__(0, looks[0] + 1) or looks[0] > 1000)  # type: ignore[func-returns-value]
        assert looks[0] == 1001 and machine.now - began < 1000 * 20_000


def test_a_paced_copy_ends_when_it_should() -> None:
    """Within 5 us, though a sleep is late by 65."""
    with StandIn() as machine:
        for ns in (50_000, 150_000, 2_000_000):
            end = machine.now + ns
            sleep_until(end)
            assert end <= machine.now < end + 5_000


# --- memory -----------------------------------------------------------------------------------------------------------


def test_no_asynchronous_copy_is_of_memory_with_holes(settings: dict[str, Setting]) -> None:
    """Such a copy blocks the host, in the middle of a replay."""
    machine = StandIn()
    for bench in on_stand_in(list(settings.values()), machine):
        for setting in settings.values():
            bench.replay(setting)
        assert machine.copies and machine.strided == []


def test_a_replay_leaves_and_takes_over_what_is_in_the_slots(settings: dict[str, Setting]) -> None:
    """First residents are copied where a slot does not hold them already; the next replay is right all the same."""
    for bench in on_stand_in(list(settings.values()), machine := StandIn()):
        store = bench.store
        store.slot_bytes.fill_(1)
        for name in ("all there", "all there", "lru", "prefetch", "lru", "all there"):
            plan = settings[name].plan
            store.cut(plan.slots.tolist())
            first = (
                dict(zip(plan.residents.tolist(), range(sum(store.slots)), strict=True)) if name == "all there" else {}
            )
            different = sum(not torch.equal(store.target(s).cpu(), store.source(g)) for g, s in first.items())
            machine.copies.clear()
            store.place(first)
            assert store.wrong_slots(first) == []
            moved = [nbytes for nbytes, _ in machine.copies if nbytes == bench.expert_bytes]
            assert len(moved) == different
            bench.replay(settings[name])


def test_page_locked_memory_has_pages_of_its_own() -> None:
    one, two = (torch.frombuffer(own_pages(5000), dtype=torch.uint8) for _ in range(2))
    assert one.data_ptr() % mmap.PAGESIZE == two.data_ptr() % mmap.PAGESIZE == 0 and one.numel() == 5000
    one.fill_(3)
    assert int(two.max()) == 0


# --- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [MOST_GROUPS, MOST_GROUPS + 1])
def test_more_slots_than_a_grouped_kernel_takes_are_looped_over(
    slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wide.toml").write_text(
        MODEL.replace("n_experts = 8", "n_experts = 1100").replace("n_layers = 4", "n_layers = 1")
    )
    rng = np.random.default_rng(0)
    trace = generate(Preset("tiny", 8, 2, 1, (0,), requests=1, prompt=(4, 5), generation=(4, 5)), 0)
    wide = np.stack([rng.choice(1100, 2, replace=False) for _ in range(trace.n_tokens)])[:, None].astype(np.uint16)
    meta = {**trace.meta, "n_experts": 1100}
    same = {name: getattr(trace, name) for name in ("position", "prefill", "sequence")}
    npz.write(tmp_path / "t.npz", RoutingTrace(meta=meta, experts=wide, **same))
    named = {"trace": str(tmp_path / "t.npz"), "model": str(tmp_path / "wide.toml"), "precision": "bf16"}
    setting = prepare(RunSpec.of({**named, "cache": slots, "expert_group": "all"}))
    counts: list[int] = []
    product = torch.nn.functional.grouped_mm

    def refusing(x: Any, weights: Any, **more: Any) -> Any:
        counts.append(len(weights))
        if len(weights) >= 1024:
            raise RuntimeError("Can't process more than 1024 groups")
        return product(x, weights, **more)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", refusing)
    for bench in on_stand_in([setting], StandIn()):
        assert check(setting.plan, bench.replay(setting)).equal
    assert set(counts) == ({MOST_GROUPS} if slots == MOST_GROUPS else set())


def test_cudnn_attention_is_off_while_the_port_is_open() -> None:
    backends: Any = torch.backends.cuda
    was = backends.cudnn_sdp_enabled()
    try:
        for before in (True, False):
            backends.enable_cudnn_sdp(before)
            with StandIn(), choose("cuda"):
                assert not backends.cudnn_sdp_enabled()
            assert backends.cudnn_sdp_enabled() == before
    finally:
        backends.enable_cudnn_sdp(was)


# --- when something fails ---------------------------------------------------------------------------------------------


def test_what_the_device_said_first_is_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that failed fails again when memory is given back."""

    def gone(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with StandIn():
        for where, name in (
            (torch.cuda, "empty_cache"),
            (torch.accelerator, "synchronize"),
            (torch.accelerator, "set_stream"),
        ):
            with (
                monkeypatch.context() as patched,
                pytest.raises(DeviceError, match="nothing happened"),
                AcceleratorPort(CUDA, timeout_s=0.01) as port,
            ):
                port.alloc_host(1 << 21, "some")
                patched.setattr(where, name, gone)
                port.wait_until(lambda: False)
            assert not port.buffers


@pytest.mark.parametrize("call", ["record", "query", "elapsed_time", "wait_event"])
def test_whatever_call_finds_the_device_gone_it_is_one_line(
    call: str, settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that fails is told of by some later call, whichever comes next."""

    def gone(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")

    for bench in on_stand_in([settings["lru"]], StandIn()):
        bench.replay(settings["lru"])
        monkeypatch.setattr(torch.Stream if call == "wait_event" else torch.Event, call, gone)
        with pytest.raises(DeviceError, match=r"^the device: CUDA error: device-side assert triggered$"):
            bench.replay(settings["lru"])


@pytest.mark.parametrize("ask", ["free_bytes", "free"])
def test_memory_of_a_device_that_is_gone_is_one_line(ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    with StandIn() as machine, choose("cuda") as port:
        buffer, said = port.alloc_host(1 << 20, "some"), r"^the device: CUDA error: an illegal memory access was .*ed$"
        with monkeypatch.context() as patched:
            patched.setattr(torch.accelerator, "get_memory_info", gone)
            patched.setattr(torch.cuda, "cudart", gone)
            with pytest.raises(DeviceError, match=said):
                port.free(buffer) if ask == "free" else port.free_bytes()
        assert machine.locked  # what could not be given back is still known, and given back when it can be
    assert not machine.locked


def test_what_a_device_is_can_be_told_when_it_is_gone(
    settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is told together with it."""

    def gone(*_: Any) -> None:
        raise RuntimeError("CUDA error: unknown error")

    for bench in on_stand_in([settings["lru"]], StandIn()):
        before = bench.facts()
        for name in ("get_device_name", "get_device_properties"):
            monkeypatch.setattr(torch.cuda, name, gone)
        assert bench.facts()["what"] == before["what"] and bench.facts()["mem_gb"] == before["mem_gb"] > 0


def test_a_device_that_is_slow_to_answer_has_an_anchor_all_the_same() -> None:
    """20 looks of 1,000 queries each, and nothing has happened yet."""
    with StandIn() as machine:
        plain, machine.yield_ns = torch.Event.query, 1_000_000
        began = machine.now

        def query(self: Any) -> bool:
            return bool(plain(self) and machine.now - began > 10**9)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.Event, "query", query)
            with choose("cuda") as port:
                event: Any = port.compute.record()
                event.wait()
                assert event.time_ns() > 0


def test_a_port_that_does_not_open_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    backends: Any = torch.backends.cuda
    with StandIn() as machine:
        before, threads, attention = machine.current, threading.active_count(), backends.cudnn_sdp_enabled()
        monkeypatch.setattr(torch.Event, "record", gone)
        with pytest.raises(DeviceError, match=r"^the device: CUDA error: unspecified launch failure$"):
            choose("cuda")
        assert machine.current is before and threading.active_count() == threads
        assert backends.cudnn_sdp_enabled() == attention


@pytest.mark.parametrize("what", ["begin_step", "routed"])
def test_what_fails_outside_a_launch_is_the_devices_failure_too(
    what: str, settings: dict[str, Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA error: out of luck\nmore lines")

    for bench in on_stand_in([settings["lru"]], StandIn()):
        monkeypatch.setattr(bench.work, what, fails)
        with pytest.raises(DeviceError, match=r"^the device: CUDA error: out of luck$"):
            bench.replay(settings["lru"])


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_the_accelerator_port_in_any_order(monkeypatch: Any) -> None:
    """Its host side, with torch's streams and events replaced: landings by looking, times from events, any delays."""
    for seed in range(12):
        FakeAccelerator(seed).install(monkeypatch)
        monkeypatch.setattr(AcceleratorPort, "_page_locked", lambda self, n: torch.empty(n, dtype=torch.uint8))
        plan = some_plan(seed + 40)
        with AcceleratorPort(torch.device("cpu")) as port:
            record = machine_on(plan, port).run()
        assert check(plan, record).equal, seed
        if plan.rerank is None and plan.warmup_steps == 0:
            check_all(plan, as_groups(plan, record))
        assert not port.buffers


def test_on_the_accelerator(accelerator: float) -> None:
    """No host tensor meets a device's, every slot holds its expert, every decision is the core's."""
    for seed in range(40, 70):
        plan = some_plan(seed)
        with choose("auto") as port:
            assert port.device.type != "cpu"
            machine = machine_on(plan, port)
            record = machine.run()
            assert machine.store.wrong_slots(machine.residents()) == []
        assert check(plan, record).equal, seed
        check_all(plan, as_groups(plan, record)) if plan.rerank is None and plan.warmup_steps == 0 else None


def test_the_device_that_is_asked_for_must_be_here() -> None:
    if current() is None:
        with pytest.raises(UserError, match="device: cuda: is not here"):
            choose("cuda")
        with choose("auto") as port:
            assert port.device.type == "cpu"
    with pytest.raises(UserError, match="device: tpu: is not here"):
        choose("tpu")
    with pytest.raises(UserError, match="must be above 0"):
        choose("cpu", link_gbps=0)
