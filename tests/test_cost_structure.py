"""Costs that belong to what they belong to: one small case worked by hand for each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import catalog
from sim.catalog.engine_spec import Engine
from sim.catalog.hardware_spec import CORES_IN_STEP, NOMINAL_SHARE, Gpu, Hardware, Host
from sim.catalog.link_spec import Link
from sim.costs.roofline import cpu_expert_ns, cpu_visit_ns, expert_ns, transfer_ns
from sim.errors import CatalogError
from sim.simulation import simulate
from sim.spec import RunSpec

MIXTRAL = catalog.model("mixtral-8x7b")  # an expert: 176,160,768 weights
GPU = Gpu(mem_gb=24.0, hbm_gb_per_s=1000.0, tflops={"bf16": 100.0})
LINK = Link(h2d_gb_per_s=25.0, setup_ns=10_000)
VISIT = "cpu_visit_ns = 100000"


def on(host: Host, **more: Any) -> Hardware:
    return Hardware(gpu=GPU, link=LINK, host=host, **more)


def run(folder: Path, engine: str, host: str = "read_gb_per_s = 100", **fields: Any) -> dict[str, Any]:
    """Two decode steps of Mixtral's sample with nothing resident, on a machine of round figures."""
    (folder / "h.toml").write_text(
        f'gpu = "rtx-4090"\nlink = {{ h2d_gb_per_s = 25, setup_ns = 10000 }}\nhost = {{ {host} }}\n'
    )
    (folder / "e.toml").write_text(f'like = "ideal"\n{engine}\n')
    named = {"hardware": str(folder / "h.toml"), "engine": str(folder / "e.toml")}
    base = {"trace": "mixtral.npz", "precision": "q4", "cache": "layers:0", "as_decode": True, "max_steps": 2}
    return simulate(RunSpec.of({**base, **named, **fields}))[0]


def test_a_cpu_visit_is_paid_once_per_layer_whatever_its_experts(tmp_path: Path) -> None:
    # two steps of 32 layers, two experts each: 64 visits of 100 us; per expert it is twice as many
    plain, visit, expert = (
        run(tmp_path, engine, miss="cpu")["time_ns"] for engine in ("", VISIT, VISIT.replace("visit", "expert"))
    )
    assert visit - plain == 64 * 100_000
    assert expert - plain == 128 * 100_000


def test_a_layer_and_a_transfer_have_times_of_their_own(tmp_path: Path) -> None:
    # mixtral-offloading: 64 layers and, with nothing resident, 128 transfers; 3 ms and 2 ms
    plain, layer, transfer = (
        run(tmp_path, engine)["time_ns"] for engine in ("", "layer_ns = 3000000", "transfer_ns = 2000000")
    )
    assert layer - plain == 64 * 3_000_000
    assert transfer - plain == 128 * 2_000_000


def test_work_of_one_host_thread_is_scaled_by_its_speed() -> None:
    python = Engine(layer_ns=3, transfer_ns=2_000_000, cpu_visit_ns=100_000, host_work=("transfer_ns",))
    slow, fast = (on(Host(read_gb_per_s=50.0, single_thread=speed)) for speed in (0.5, 2.0))
    # 10 us set-up and 10 MB at 25 GB/s, then 2 ms / .5 and 2 ms / 2; what is not one thread's work stays
    assert transfer_ns(slow, python, 10_000_000).tolist() == [10_000 + 400_000 + 4_000_000, 400_000 + 4_000_000]
    assert transfer_ns(fast, python, 10_000_000)[0] == 10_000 + 400_000 + 1_000_000
    assert cpu_visit_ns(slow, python) == cpu_visit_ns(fast, python) == 100_000


def test_an_expert_on_the_host_is_bound_by_reading_or_by_arithmetic() -> None:
    # q4: 176,160,768 x 4.5 / 8 = 99,090,432 bytes, 352,321,536 operations; a core does 45 of them a ns
    read = 99_090_432
    for cores, right in ((2, 352_321_536 / (2 * 45)), (16, read / 50)):
        host = Host(read_gb_per_s=50.0, cores=cores)
        assert cpu_expert_ns(MIXTRAL, on(host), Engine(), "q4", 1)[0, 1] == round(right)
    # mxfp4's kernels are slower: 30 a ns and core; 4 cores: 352,321,536 / 120 = 2.94 ms against 1.87 ms of reading
    four = on(Host(read_gb_per_s=50.0, cores=4))
    assert cpu_expert_ns(MIXTRAL, four, Engine(), "mxfp4", 1)[0, 1] == round(352_321_536 / 120)
    # 128 cores are as fast as sqrt(128 x 32) = 64; a stated arithmetic wins over cores
    assert CORES_IN_STEP == 32
    assert Host(read_gb_per_s=50.0, cores=128).compute_rate(30.0) == 64 * 30
    assert Host(read_gb_per_s=50.0, cores=64, tflops=2.0).compute_rate(30.0) == 2000
    # an engine's share of either
    half = Engine(cpu_read_share=0.5, cpu_compute_share=0.5)
    assert cpu_expert_ns(MIXTRAL, on(Host(read_gb_per_s=50.0, cores=16)), half, "q4", 1)[0, 1] == round(read / 25)
    assert cpu_expert_ns(MIXTRAL, on(Host(read_gb_per_s=50.0, cores=2)), half, "q4", 1)[0, 1] == round(352_321_536 / 45)


def test_further_tokens_of_an_expert_cost_less_arithmetic() -> None:
    # 5 tokens at a gain of 4: 1 + 4 / 4 = 2 times the first one's 352,321,536 / 90
    host = on(Host(read_gb_per_s=1000.0, cores=2))
    found = cpu_expert_ns(MIXTRAL, host, Engine(cpu_batch_gain=4.0), "q4", 5)[0]
    assert found[[1, 5]].tolist() == [round(352_321_536 / 90), round(2 * 352_321_536 / 90)]


def test_no_host_is_capped_silently() -> None:
    """Where neither arithmetic nor cores is stated, as many cores as a desktop has beside each GB/s: reading decides,
    so that hosts differ as their bandwidths do."""
    one, two = (on(Host(read_gb_per_s=rate)) for rate in (500.0, 947.0))
    ns = [cpu_expert_ns(MIXTRAL, machine, Engine(), "bf16", 1)[0, 1] for machine in (one, two)]
    assert ns == [round(352_321_536 / 500), round(352_321_536 / 947)]


def test_the_two_epyc_hosts_differ_as_their_bandwidths_do(tmp_path: Path) -> None:
    # 128 experts of 352,321,536 bytes: at 500 and 947 GB/s 90.19 and 47.62 ms, and nothing else differs
    times = []
    for name in ("epyc-9355", "2x-epyc-9355"):
        times.append(run(tmp_path, "", f'like = "{name}"', miss="cpu", precision="bf16")["time_ns"])
    reads = [128 * round(352_321_536 / rate) for rate in (500, 947)]
    assert times[0] - times[1] == reads[0] - reads[1]


def test_an_engine_reads_one_socket_or_all() -> None:
    host = Host(read_gb_per_s=360.0, one_socket_gb_per_s=200.0, sockets=2)
    for numa, rate in (("all", 360), ("one", 200)):
        assert cpu_expert_ns(MIXTRAL, on(host), Engine(numa=numa), "bf16", 1)[0, 1] == round(352_321_536 / rate)
    # not stated: half of both
    assert cpu_expert_ns(MIXTRAL, on(Host(read_gb_per_s=360.0, sockets=2)), Engine(numa="one"), "bf16", 1)[0, 1] == (
        round(352_321_536 / 180)
    )


def test_a_rate_that_nobody_measured_is_a_share_of_the_nominal_peak() -> None:
    # two channels of DDR5-6000: 96 GB/s, of which .7
    assert NOMINAL_SHARE == 0.7 and Host(peak_gb_per_s=96.0).read_rate() == pytest.approx(67.2)
    assert Host(peak_gb_per_s=96.0, read_gb_per_s=62.3).read_rate() == 62.3
    with pytest.raises(ValueError, match="read_gb_per_s or peak_gb_per_s: missing"):
        Host()


def test_small_kernels_reach_a_share_of_each_gpu_s_bandwidth() -> None:
    size = 352_321_536 + 73_728
    for share in (0.5, 0.7):
        gpu = Gpu(mem_gb=24.0, hbm_gb_per_s=1000.0, hbm_efficiency=share, tflops={"bf16": 1e6})
        found = expert_ns(MIXTRAL, Hardware(gpu=gpu, link=LINK, host=Host(read_gb_per_s=9.0)), Engine(), "bf16", 1)
        assert found[1] == round(size / (1000 * share))


def test_kv_entries_are_read_at_a_share_of_their_own(tmp_path: Path) -> None:
    # 10,000 entries of 4,096 bytes in each of 32 layers, at .7 x 1,008 GB/s: half the share takes as long again
    whole, half = (
        run(tmp_path, engine, context_offset=10_000, max_steps=1)["time_ns"] for engine in ("", "kv_read_share = 0.5")
    )
    assert half - whole == pytest.approx(32 * 10_001 * 4096 / (0.7 * 1008), rel=1e-5)


def test_a_machine_without_its_gpu_computes_everything_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text(
        'compute = "host"\nlink = "pcie4x16-pinned"\nhost = { read_gb_per_s = 100, cores = 16, ram_gb = 200 }\n'
    )
    base = {"trace": "mixtral.npz", "hardware": str(tmp_path / "h.toml"), "cache": "1.0", "as_decode": True}
    out = simulate(RunSpec.of({**base, "max_steps": 1}))[0]
    # one token: attention, router and norms of 32 layers and the head, their KV entry; 64 experts: all at 100 GB/s
    dense = 32 * round((2 * 41_984_000 + 4096) / 100)
    head = round((2 * 32000 * 4096 + 2 * 4096 + 4 * 32000) / 100)
    experts = 64 * round((352_321_536 + 2 * 2 * (4096 + 14336)) / 100)
    assert out["time_ns"] == dense + head + experts
    named = catalog.hardware("rtx4090/cpu")
    assert named.on_host and named.decide_ns == 0 and named.mem_bytes == named.host.ram_bytes  # type: ignore[union-attr]


def test_own_times_of_layers_on_the_host() -> None:
    from sim.costs.roofline import _layer_own_ns

    engine = Engine(layer_ns=1, mla_layer_ns=2, host_layer_ns=3, mla_host_layer_ns=4)
    machine = on(Host(read_gb_per_s=50.0))
    mla = catalog.model("deepseek-v2-lite")
    found = [_layer_own_ns(model, machine, engine, host) for model in (MIXTRAL, mla) for host in (False, True)]
    assert found == [1, 3, 2, 4]
    assert _layer_own_ns(mla, machine, Engine(layer_ns=1, host_layer_ns=3), True) == 3


def test_no_rate_may_be_nothing() -> None:
    with pytest.raises(CatalogError, match="link_gbps: h2d_gb_per_s = 0"):
        catalog.hardware("rtx4090", link_gbps=0)


def test_times_rise_with_tokens() -> None:
    host = on(Host(read_gb_per_s=50.0, cores=8))
    for gain in (1.0, 3.0):
        assert (np.diff(cpu_expert_ns(MIXTRAL, host, Engine(cpu_batch_gain=gain), "q4", 64), axis=1) >= 0).all()
