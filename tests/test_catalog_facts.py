"""Every figure of the catalog against its second source, and the laws that several figures keep together.

All that an entry says but words is compared, defaults included; an entry without a second source fails.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from sim import catalog
from sim.catalog import intervals
from sim.catalog.files import cpu_gops_per_core, precision_bits, shipped
from sim.errors import CatalogError
from sim.timings.rows import read, usable
from tests.second_sources import (
    BLOCKS,
    CARDS,
    COLUMNS,
    CURVES,
    ENGINES,
    FACTS,
    GPUS,
    GT_PER_S,
    HOSTS,
    KERNELS,
    LINKS,
    ONE_MEMORY_SSD,
    OTHER_BLOCKS,
    OWN,
    OWN_LINKS,
    PHISON_US,
    SERVERS,
    SSD_FACTS,
    SSDS,
    Figures,
    as_written,
    collected_gpu,
    defaults,
    figures,
    fitted,
    model_figures,
    number,
    spec,
)

ROOT = Path(__file__).resolve().parents[1]


def check(kind: str, name: str, expected: Figures) -> None:
    found = figures(kind, name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == value, f"{kind} {name}: {key} = {found[key]}, here {value}"


# ---- models


@pytest.mark.parametrize("name", catalog.names("model"))
def test_a_model_is_its_checkpoint_s_config(name: str) -> None:
    check("model", name, model_figures(name))


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_small_model_s_parameters_are_counted_in_its_record(name: str) -> None:
    record = json.loads((ROOT / "runtime" / name.replace("-", "_") / "record.json").read_text())
    model = catalog.model(name)
    assert model.total_params == record["parameters"] - model.hidden  # the last norm


# ---- GPUs


def clocks(name: str) -> Figures:
    """A GPU's figures by its bus and clocks."""
    row = GPUS[name]
    return {
        "tflops": {"bf16": pytest.approx(int(row["SMs"]) * int(row["flop"]) * float(row["GHz"]) / 1e3, rel=0.01)},
        "hbm_gb_per_s": pytest.approx(int(row["bus"]) * float(row["Gbit"]) / 8, rel=0.002),
        "slot": row["slot"],
        "mem_mib": number(row["mib"]),
        "mem_cuda_mib": number(row["cuda"]),
        "hbm_read_gb_per_s": number(row["read"]),
    }


# of a card's own account before anything is allocated: MiB in all, MiB free; the others of its generation alike
CONTEXTS = {"rtx-30": 24124 - 23845, "rtx-40": 24080 - 23605, "rtx-50": 32111 - 31605}


@pytest.mark.parametrize("name", catalog.names("gpu"))
def test_a_gpu_is_its_clocks_or_its_record(name: str) -> None:
    found = figures("gpu", name)
    if name in GPUS:
        found["slot"] = found["slot"].replace(" ", "").replace("NVLink-", "").split("(")[0]
    assert found == (clocks(name) if name in GPUS else collected_gpu(name)) | {
        "mem_gb": None,
        "context_mib": CONTEXTS.get(name[:6], 500),
        "hbm_efficiency": 0.7,  # the upper end of the collected .38-.7
        "flops_efficiency": 0.6,
        "kernel_launch_ns": 1000 * (4 + 6) // 2 if name == "rtx-5070-ti" else 1000 * (3 + 6) // 2,  # us, the middle
        **fitted(name),
    }


@pytest.mark.parametrize("name", list(GPUS))
def test_a_card_reports_nearly_the_memory_that_it_is_sold_with(name: str) -> None:
    """ECC takes a sixteenth, the driver up to three per cent of the rest."""
    gpu, sold = spec("gpu", name), int(GPUS[name]["GiB"]) * 1024
    assert 0.93 * sold <= gpu.mem_mib <= sold


@pytest.mark.parametrize("name", catalog.names("gpu"))
def test_a_gpu_shows_nearly_all_of_its_memory_and_reads_it_nearly_as_fast_as_it_is_sold(name: str) -> None:
    gpu = spec("gpu", name)
    shared = gpu.slot.startswith("none")  # with the host: what the GPU may take of it is settled elsewhere
    assert (0.7 if shared else 0.96) * gpu.mem_mib <= gpu.mem_bytes / 2**20 <= gpu.mem_mib
    assert gpu.hbm_read_gb_per_s is None or 0.73 < gpu.hbm_read_gb_per_s / gpu.hbm_gb_per_s < 1


# ---- links


@pytest.mark.parametrize("name", catalog.names("link"))
def test_a_link_is_its_lone_copy_and_its_rate(name: str) -> None:
    row = LINKS[name]
    t0, copy = (round(1000 * float(row[key])) for key in ("t0_us", "copy_us"))
    expected = defaults("link", memory=row["memory"], gen=number(row["gen"]), lanes=number(row["lanes"]))
    expected |= {"h2d_gb_per_s": number(row["GB/s"]), "setup_ns": t0 - copy, "per_copy_ns": copy}
    expected |= {"curve": tuple(CURVES[name].items()) if name in CURVES else None, "facts": FACTS.get(name, {})}
    check("link", name, expected)


@pytest.mark.parametrize("name", catalog.names("link"))
def test_no_pcie_link_is_faster_than_its_lanes(name: str) -> None:
    link = spec("link", name)
    rates = [link.h2d_gb_per_s] if link.curve is None else [rate for _, rate in link.curve]
    line = 450 if link.gen is None else link.lanes * GT_PER_S[link.gen] * 128 / 130 / 8  # 900 GB/s of C2C, one way
    assert max(rates) < line
    assert link.facts.get("theoretical_gbs", line) == pytest.approx(line, rel=0.001)


def test_pageable_links_that_were_not_measured_are_shares_of_those_that_were() -> None:
    rate = {name: spec("link", name).h2d_gb_per_s for name in catalog.names("link")}
    share = rate["pcie3x16-pageable"] / rate["pcie3x16-pinned"]
    assert rate["pcie4x8-pageable"] == pytest.approx(share * rate["pcie4x8-pinned"], rel=0.01)
    assert rate["pcie5x16-pageable"] == rate["pcie4x16-pageable"]  # the copy into the staging buffer is the limit


# ---- hosts


@pytest.mark.parametrize("name", catalog.names("host"))
def test_a_host_is_its_channels_and_what_was_read(name: str) -> None:
    row = HOSTS[name]
    given = {key: number(row[column]) for key, column in COLUMNS.items()}
    check("host", name, defaults("host", **given))
    if row["channels"] != "-":
        peak = int(row["channels"]) * int(row["MT/s"]) * 8 / 1000
        assert max(given["read_gb_per_s"] or 0, given["total_gb_per_s"] or 0) < peak
        assert given["peak_gb_per_s"] in (None, pytest.approx(peak, rel=0.001))


@pytest.mark.parametrize(
    "name", [name for name in catalog.names("host") if name.startswith("ddr") and "-of-" not in name]
)
def test_a_machine_as_it_is_sold_is_its_name(name: str) -> None:
    generation, *speed, channels = name.split("-")
    host, wide = spec("host", name), 2 if channels == "dual" else int(channels.removesuffix("ch"))
    if speed:  # ddr4-8ch was measured
        assert host.peak_gb_per_s == pytest.approx(wide * int(speed[0]) * 8 / 1000)
        assert host.read_gb_per_s is None and "grade C" in host.note
    assert int(generation[-1]) == (4 if not speed or int(speed[0]) < 4400 else 5)


@pytest.mark.parametrize("name", catalog.names("host"))
def test_a_socket_reads_at_least_its_share(name: str) -> None:
    host = spec("host", name)
    assert (host.one_socket_gb_per_s is None) or host.sockets > 1
    if host.one_socket_gb_per_s is not None:
        assert host.read_gb_per_s / host.sockets <= 1.15 * host.one_socket_gb_per_s < 1.15 * host.read_gb_per_s


# ---- SSDs


@pytest.mark.parametrize("name", catalog.names("ssd"))
def test_an_ssd_is_its_rate_and_the_time_of_small_reads(name: str) -> None:
    rate, gen = SSDS[name]
    small, large = PHISON_US
    alone = small - (large - small) * 64 / (256 - 64)  # us of 64 KiB less its bytes at the slope
    given = {"h2d_gb_per_s": pytest.approx(rate), "setup_ns": 1000 * round(alone), "facts": SSD_FACTS.get(name, {})}
    check("ssd", name, defaults("ssd", memory="pageable", gen=gen, lanes=gen and 4, **given))
    if gen is not None:
        assert rate < 4 * GT_PER_S[gen] * 128 / 130 / 8


def test_host_rates_that_were_derived() -> None:
    rate = {name: spec("host", name) for name in catalog.names("host")}
    assert rate["desktop-ddr5"].total_gb_per_s == 37 + 38  # CPU and PCIe together
    assert rate["threadripper-7960x"].read_gb_per_s == pytest.approx(704.6 / 7.34, rel=0.005)  # MB in ms, 2512.16473
    assert rate["xeon-6126"].read_gb_per_s == pytest.approx(352.3 / 7, rel=0.001)  # Fiddler's constant
    assert rate["xeon-6126"].tflops * 1e12 == pytest.approx(2 * 3 * 4096 * 14336 / 7e-3, rel=0.001)
    assert rate["2x-epyc-9355"].read_gb_per_s == pytest.approx(0.77 * 1228, rel=0.005)
    assert rate["xeon-6454s"].read_gb_per_s == pytest.approx(0.58 * 307.2, rel=0.01)
    assert rate["2x-xeon-6454s"].read_gb_per_s == pytest.approx(0.57 * 614.4, rel=0.01)


# ---- engines


@pytest.mark.parametrize("name", catalog.names("engine"))
def test_an_engine_is_what_it_is_and_what_published_speeds_tell(name: str) -> None:
    check("engine", name, defaults("engine", **{**ENGINES[name], **fitted(name)}))
    engine, written = spec("engine", name), as_written(name)
    assert engine.sets == {key: getattr(written, key) for key in engine.sets}
    for key, options in engine.options.items():  # what it has anyway is none
        assert isinstance(options, str) or engine.sets.get(key, getattr(written, key)) not in options


def test_ktransformers_dense_weights_take_13_9_ms() -> None:
    # 9.8 GB at 0.7 x 1008 GB/s: what a token of DeepSeek-V3 reads beside routed experts at 4.85 bits, the head at 16
    model = catalog.model("deepseek-v3")
    size = (model.read_dense_params - model.head_params) * precision_bits("q4-k-m") / 8 + 2 * model.head_params
    rate = spec("gpu", "rtx-4090").memory_rate()
    assert (size / 1e9, size / rate / 1e6) == pytest.approx((9.8, 13.9), rel=0.15)


# ---- precisions


@pytest.mark.parametrize("name", catalog.names("precision"))
def test_a_precision_is_its_block(name: str) -> None:
    size, weights = BLOCKS[name]
    assert precision_bits(name) == pytest.approx(
        8 * size / weights, rel=0 if weights <= 256 and size == int(size) else 2e-4
    )
    # of one core: 3.3 tokens/s of a 7B model in 4 bits, 2 operations a weight; table look-ups cost, whole bytes do not
    assert cpu_gops_per_core(name) == KERNELS.get(name, 30)


@pytest.mark.parametrize("alias", OTHER_BLOCKS)
def test_an_alias_has_the_same_bits(alias: str) -> None:
    assert precision_bits(alias) == 8 * OTHER_BLOCKS[alias][0] / OTHER_BLOCKS[alias][1]


# ---- presets


@pytest.mark.parametrize("name", [name for name in catalog.names("hardware") if name not in ONE_MEMORY_SSD])
def test_a_preset_s_link_is_that_of_the_card_s_slot(name: str) -> None:
    preset = catalog.hardware(name)
    card = CARDS.get(name) or catalog.find("gpu", name)
    slot = "pcie" + (GPUS[card]["slot"] if card in GPUS else spec("gpu", card).slot.replace(" ", "")).replace(".0", "")
    links = OWN_LINKS.get(name, (f"{slot}-pinned", f"{slot}-pageable"))
    assert preset.gpu and preset.link and preset.host and not preset.unified
    pageable = preset.pageable_link and preset.pageable_link.name
    assert (preset.gpu.name, preset.link.name, pageable) == (card, *links)
    assert preset.host.name == SERVERS.get(name, "desktop-ddr5")


@pytest.mark.parametrize("name", ONE_MEMORY_SSD)
def test_a_machine_of_one_memory_reads_experts_from_an_ssd(name: str) -> None:
    preset, ssd = catalog.hardware(name), ONE_MEMORY_SSD[name]
    assert preset.gpu and preset.link and preset.host and preset.unified and preset.pageable_link is None
    assert (preset.gpu.name, preset.link.name, preset.link.h2d_gb_per_s) == (name, ssd, SSDS[ssd][0])
    assert preset.host.peak_gb_per_s == preset.gpu.hbm_gb_per_s  # it is the same memory


@pytest.mark.parametrize("name", catalog.names("hardware"))
def test_a_decision_takes_a_small_copy_a_call_and_a_compiled_policy(name: str) -> None:
    preset = catalog.hardware(name)
    assert preset.readback_ns == pytest.approx(6600 + 2300, rel=0.02)
    assert (preset.policy_ns, preset.predictor_ns, preset.commit_depth, preset.commit_gap_ns) == (1000, 0, 1, 0)


# ---- what others published of speeds: rows and results are of one time


def test_published_figures_are_those_that_were_judged() -> None:
    with open(ROOT / "analysis" / "results" / "published.csv", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        judged = {row["id"]: float(row["published"]) for row in rows}
    assert judged == {row.id: pytest.approx(row.value, rel=1e-5) for row in usable(read())}


def test_intervals_are_the_widths_of_the_results() -> None:
    """Half of an engine's rows have a wider interval than the table says, half a narrower one."""
    with open(ROOT / "analysis" / "results" / "published.csv", newline="") as file:
        rows = [row for row in csv.DictReader(line for line in file if not line.startswith("#")) if row["grade"] != "C"]
    host = {row.id: "measured" if row.host_rate == "measured" else "nominal" for row in usable(read())}
    for entry in intervals.table():
        widths = [
            math.log(float(row["high"]) / float(row["low"]))
            for row in rows
            if f"--engine {entry.engine} " in f"{row['command']} " and row["phase"] == entry.phase
            and entry.host in (None, host[row["id"]])
        ]  # fmt: skip
        assert len(widths) == entry.rows and median(widths) == pytest.approx(math.log(entry.high / entry.low), rel=0.02)
        assert entry.low * entry.high == pytest.approx(1, rel=2e-3)


# ---- these tests can fail

CHECKS: dict[str, Callable[[str], None]] = {
    "model": test_a_model_is_its_checkpoint_s_config,
    "gpu": test_a_gpu_is_its_clocks_or_its_record,
    "link": test_a_link_is_its_lone_copy_and_its_rate,
    "host": test_a_host_is_its_channels_and_what_was_read,
    "ssd": test_an_ssd_is_its_rate_and_the_time_of_small_reads,
    "engine": test_an_engine_is_what_it_is_and_what_published_speeds_tell,
    "precision": test_a_precision_is_its_block,
}


def numbers(table: Any) -> Iterator[tuple[Any, Any]]:
    """(table or list, key) of every number and every yes or no in it."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        if isinstance(value, dict | list):
            yield from numbers(value)
        elif not isinstance(value, str):
            yield table, key


@pytest.mark.parametrize("kind", CHECKS)
def test_every_changed_figure_is_found(kind: str) -> None:
    """A whole number one more, any other a tenth more, a yes a no: one at a time."""
    for name, entry in shipped(kind).items():
        for table, key in numbers(entry):
            right = table[key]
            table[key] = right * 1.1 if isinstance(right, float) else not right if right is True else right + 1
            try:
                with pytest.raises((AssertionError, CatalogError)):
                    CHECKS[kind](name)
            finally:
                table[key] = right
