"""The replay's command line on the CPU: the simulator's summary and record, lock-step, and what goes wrong."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.device.cpu import CpuPort, PacedLink
from runtime.device.worker import Worker
from runtime.experts import store
from runtime.replay import main
from runtime.replaying import layers, shapes
from runtime.replaying.opened import Options
from runtime.replaying.replays import replay
from sim.machines.record import load
from sim.outcome.summary import summarise
from sim.prepare import prepare
from sim.run import main as simulate
from sim.spec import RunSpec
from tests.groups import as_groups
from tests.laws import check_all

FAST = ["--trace", "mixtral.npz", "--max-steps", "4", "--cache", "3", "--precision", "fp32", "--prefill-chunk", "40"]
DEVICE = ["--device", "cpu", "--scale", "0.0078125", "--link-gbps", "2", "--link-latency-us", "5"]
POLICIES = {
    "fetch": [],
    "prefetch": ["--prefetch", "previous-token", "--transfer-order", "nearest-layer", "--eviction", "lfu"],
    "one pool": [
        "--cache-scope",
        "global",
        "--cache",
        "0.4",
        "--placement",
        "popular",
        "--calibration",
        "0.3",
        "--expert-group",
        "all",
    ],
    "drop": ["--miss", "drop", "--as-decode", "--batch", "2"],
    "next-ranked": ["--miss", "next-ranked", "--as-decode"],
    "cpu": ["--miss", "cpu", "--expert-group", "ready"],
    "low": ["--miss", "hobbit", "--set", "hobbit.slots=1", "--set", "hobbit.precision=q8", "--as-decode"],
    "warm": ["--warmup-steps", "2", "--prefetch", "popular", "--calibration", "0.3", "--max-steps", "5"],
}


def run(capsys: Any, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """(status, the JSON object if there is one, stderr) of a replay."""
    status = main([*FAST, *DEVICE, "--json", *arguments])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else {}, err


def keys(value: Any) -> Any:
    """The shape of an object: its keys, and theirs."""
    return {name: keys(v) for name, v in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("name", POLICIES)
def test_a_replay_gives_the_simulators_summary_and_record(name: str, capsys: Any, tmp_path: Path) -> None:
    flags = POLICIES[name]
    status, found, _ = run(capsys, *flags, "--check", "--out", str(tmp_path), "--record", "full")
    assert status == 0
    assert simulate([*FAST, "--json", *flags]) == 0
    expected = json.loads(capsys.readouterr().out)
    device = found.pop("device")
    assert found["machine"] == "torch" and found["bounds"] == {}
    ours, theirs = keys(found), keys({**expected, "bounds": {}})
    ours["spec"].pop("set"), theirs["spec"].pop("set")
    assert ours == theirs
    assert sum(found["breakdown_ns"].values()) == found["time_ns"] > 0
    assert sum(found["stall_ns_by_cause"].values()) == found["breakdown_ns"]["stall"]
    assert found["wanted"] == expected["wanted"] and found["slots_wanted"] == expected["slots_wanted"]
    assert device["lock_step"]["this run's order, through the core"]["equal"]
    assert device["lock_step"]["this run's order, through the core"]["decisions"] > 1000
    assert device["wrong_slots"] == [] and len(device["repeat_time_ns"]) == 1
    record, meta = load(tmp_path / "record.npz")
    assert meta["machine"] == "torch"
    again = summarise(record)
    assert again == {name: found[name] for name in again}
    assert json.loads((tmp_path / "summary.json").read_text())["device"] == device


@pytest.mark.parametrize("name", POLICIES)
def test_a_record_of_the_replay_keeps_the_laws(name: str) -> None:
    """Conservation, capacity, causality, sums, one order of events: as of a simulated run."""
    from runtime.replay import arguments
    from sim.flags import spec_of

    spec = spec_of(arguments().parse_args([*FAST, *POLICIES[name]]))
    if spec.warmup_steps:
        pytest.skip("the laws are of whole runs")
    setting = prepare(spec)
    (record,) = replay(setting, CpuPort(5, 5), Options(scale=1 / 128))
    layout = shapes.scaled(setting.model, 1 / 128)  # type: ignore[arg-type]
    assert record.expert_bytes == layout.expert_bytes("fp32")
    from dataclasses import replace

    low = setting.plan.low
    low = None if low is None else replace(low, bytes=layout.expert_bytes("q8"))
    check_all(replace(setting.plan, expert_bytes=record.expert_bytes, low=low), as_groups(setting.plan, record))


def test_lock_step_follows_a_simulated_run_and_a_replayed_one(capsys: Any, tmp_path: Path) -> None:
    flags = [*POLICIES["prefetch"], "--batch", "2"]
    assert simulate([*FAST, *flags, "--out", str(tmp_path / "sim"), "--record", "full"]) == 0
    capsys.readouterr()
    status, found, _ = run(
        capsys, *flags, "--lock-step", str(tmp_path / "sim"), "--out", str(tmp_path / "torch"), "--record", "full"
    )
    assert status == 0
    compared = found["device"]["lock_step"]
    on_device, alone = compared["the recorded order, on the device"], compared["the recorded order, through the core"]
    assert on_device["equal"] and alone["equal"] and on_device["compared"] == alone["compared"]
    simulated, replayed = load(tmp_path / "sim/record.npz")[0], load(tmp_path / "torch/record.npz")[0]
    for group, columns in simulated.groups.items():
        for name, values in columns.items():
            if not name.endswith("_ns") and name != "bytes":
                assert np.array_equal(values, replayed.groups[group][name]), (group, name)
    assert replayed.counters["evictions"] == simulated.counters["evictions"]
    status, found, _ = run(capsys, *flags, "--lock-step", str(tmp_path / "torch"))
    assert status == 0 and all(one["equal"] for one in found["device"]["lock_step"].values())


def test_a_record_that_was_decided_otherwise_is_told(capsys: Any, tmp_path: Path) -> None:
    assert simulate([*FAST, "--out", str(tmp_path), "--record", "full"]) == 0
    members = dict(np.load(tmp_path / "record.npz"))
    victims = members["transfers.victim"]
    at = int(np.flatnonzero(victims >= 0)[5])
    victims[at] ^= 1
    np.savez(tmp_path / "record.npz", **members)
    capsys.readouterr()
    status, _, err = run(capsys, "--lock-step", str(tmp_path))
    assert status == 1 and err.count("\n") == 1
    assert f"transfers[{at}].victim: {victims[at]} in the record, {victims[at] ^ 1} in the replay" in err


def test_lock_step_wants_a_full_record_of_this_run(capsys: Any, tmp_path: Path) -> None:
    assert simulate([*FAST, "--out", str(tmp_path / "short")]) == 0
    assert simulate([*FAST, "--eviction", "lfu", "--out", str(tmp_path / "lfu"), "--record", "full"]) == 0
    capsys.readouterr()
    assert "holds no full record" in run(capsys, "--lock-step", str(tmp_path / "short"))[2]
    status, _, err = run(capsys, "--lock-step", str(tmp_path / "lfu"))
    assert status == 2 and "has eviction 'lfu'; this run has 'lru'" in err
    assert run(capsys, "--lock-step", str(tmp_path / "none"))[0] == 2


def test_repeats_give_the_median_and_the_spread(capsys: Any) -> None:
    status, found, _ = run(capsys, "--repeat", "3")
    times = found["device"]["repeat_time_ns"]
    assert status == 0 and len(times) == 3 and found["time_ns"] == sorted(times)[1]
    assert found["device"]["spread"] == pytest.approx((max(times) - min(times)) / sorted(times)[1])


def test_what_is_not_the_model_is_said_loudly(capsys: Any) -> None:
    _, found, _ = run(capsys, "--alias-host", "2")
    said = " ".join(found["notes"])
    assert "ALIASED HOST: only 2 experts" in said and "SCALED" in said and "SYNTHETIC TRACE" in said
    assert main([*FAST, *DEVICE]) == 0
    text = capsys.readouterr().out
    assert "SYNTHETIC TRACE" in text and "the link is a paced thread" in text and "spread 0.0%" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scale", "0"], "scale: 0.0: must be above 0"),
        (["--repeat", "0"], "repeat: 0: must be above 0"),
        (["--alias-host", "-1"], "alias-host: -1: must be above 0"),
        (["--link-gbps", "-3"], "must be above 0"),
        (["--host-memory", "lots"], "--host-memory: lots: must be bytes with a unit, such as 24GB"),
        (["--machine", "simpy"], "the replay is the torch machine"),
        (["--precision", "q4"], "precision: q4: has no kernel here; one of bf16, fp32"),
        (["--device", "tpu"], "device: tpu: is not here"),
        (["--lock-step", "x", "--repeat", "2"], "repeat: 2: a lock-step runs once"),
        (["--lokstep", "x"], "did you mean --lock-step?"),
        (["--weights", "/nowhere"], "has no .safetensors files"),
        (["--cache", "0"], "must be at least one slot"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], said: str, capsys: Any) -> None:
    status, found, err = run(capsys, *flags)
    assert (status, found) == (2, {}) and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_what_does_not_fit_is_refused_before_anything_is_allocated(capsys: Any, monkeypatch: Any) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(CpuPort, "alloc_device", never)
    monkeypatch.setattr(CpuPort, "alloc_host", never)
    monkeypatch.setattr("runtime.device.cpu.host_bytes", lambda: 1_000_000)
    status, _, err = run(capsys)
    assert status == 2 and "memory: needs 0.0" in err and "has 0.00 GB" in err


# --- when something fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def left(monkeypatch: Any, two_threads: None) -> Any:
    """Ports that were opened: none may keep a thread or memory, nor the number of torch's threads."""
    ports: list[CpuPort] = []
    begin = CpuPort.__init__

    def note(self: CpuPort, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        ports.append(self)

    monkeypatch.setattr(CpuPort, "__init__", note)
    yield ports
    assert ports and torch.get_num_threads() == 2
    for port in ports:
        assert not port.buffers and not port.link.is_alive() and not port.host.is_alive()


def fails(capsys: Any, status: int, said: str) -> None:
    found, out, err = run(capsys)
    assert (found, out) == (status, {}) and err.startswith("error: ") and err.count("\n") == 1 and said in err


def after(calls: int, act: Any, call: Any) -> Any:
    """`call`, but from the n-th time on `act` first."""
    count = [0]

    def counting(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] > calls:
            act()
        return call(*arguments, **named)

    return counting


def raising(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


def test_a_killed_copy_thread(capsys: Any, monkeypatch: Any, left: Any) -> None:
    monkeypatch.setattr(PacedLink, "_run", after(20, raising(SystemExit("killed")), PacedLink._run))
    fails(capsys, 1, "the link thread failed: SystemExit: killed")


def test_a_device_out_of_memory(capsys: Any, monkeypatch: Any, left: Any) -> None:
    out = torch.OutOfMemoryError("tried to allocate 20 MiB\nand more lines")
    monkeypatch.setattr(store.Synthetic, "fill", after(20, raising(out), store.Synthetic.fill))
    fails(capsys, 1, "out of device memory: tried to allocate 20 MiB")


def test_out_of_memory_while_it_runs(capsys: Any, monkeypatch: Any, left: Any) -> None:
    out = torch.OutOfMemoryError("tried to allocate 20 MiB")
    monkeypatch.setattr(layers.CatalogWork, "dense", after(50, raising(out), layers.CatalogWork.dense))
    fails(capsys, 1, "out of device memory: tried to allocate 20 MiB")


def test_interrupted(capsys: Any, monkeypatch: Any, left: Any) -> None:
    interrupt = after(60, lambda: signal.raise_signal(signal.SIGINT), layers.CatalogWork.dense)
    monkeypatch.setattr(layers.CatalogWork, "dense", interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    fails(capsys, 130, "interrupted")


def test_no_number(capsys: Any, monkeypatch: Any, left: Any) -> None:
    fill = store.Synthetic.fill

    def spoil(self: Any, layer: int, expert: int, out: torch.Tensor) -> None:
        fill(self, layer, expert, out)
        out[:1] = float("nan")

    monkeypatch.setattr(store.Synthetic, "fill", spoil)
    fails(capsys, 1, "step 0: the logits are not finite")


def test_the_hosts_thread_fails(capsys: Any, monkeypatch: Any, left: Any) -> None:
    monkeypatch.setattr(layers.CatalogWork, "on_host", after(3, raising(ValueError("odd")), layers.CatalogWork.on_host))
    status, _, err = run(capsys, "--miss", "cpu")
    assert status == 1 and err == "error: the host thread failed: ValueError: odd\n"


def test_a_users_policy_that_fails_in_the_link_thread_is_named(capsys: Any, left: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def last(view, state, params):\n    return 99\n")
    status, _, err = run(capsys, "--eviction", f"{path}:last")
    assert status == 2 and "answered 99: is no index into the candidates" in err


def test_a_wrong_byte_in_a_slot_is_told(capsys: Any, monkeypatch: Any, left: Any) -> None:
    monkeypatch.setattr(store.ExpertStore, "wrong_slots", lambda self, residents: [3])
    status, _, err = run(capsys)
    assert status == 1 and "slots hold other bytes than their experts: [3]" in err


def test_threads_do_not_outlive_a_replay(capsys: Any, monkeypatch: Any, left: Any) -> None:
    began: list[Worker] = []
    start = Worker.start
    monkeypatch.setattr(Worker, "start", lambda self: (began.append(self), start(self)))
    assert run(capsys)[0] == 0
    assert len(began) == 2 and not any(worker.is_alive() for worker in began)


@pytest.mark.parametrize("name", POLICIES)
def test_on_the_accelerator(name: str, accelerator: float, capsys: Any) -> None:
    small = ["--max-steps", "3", "--scale", str(accelerator), "--precision", "bf16"]
    flags = [*FAST, *small, *POLICIES[name], "--json", "--check"]
    assert main(flags) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["lock_step"]["this run's order, through the core"]["equal"]
    assert sum(found["breakdown_ns"].values()) == found["time_ns"]


def test_a_setting_is_replayed_from_python() -> None:
    setting = prepare(RunSpec(trace="mixtral.npz", max_steps=3, cache=4, precision="fp32", machine="compiled"))
    one, two = replay(setting, CpuPort(5, 5), Options(scale=1 / 128, repeat=2))
    assert one.counters["slots_wanted"] == two.counters["slots_wanted"] > 0
    assert one.groups["visits"]["wanted"].tolist() == two.groups["visits"]["wanted"].tolist()
