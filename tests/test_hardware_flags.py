"""--host, --host-gbps, --link-gbps and --ram on every command that takes --hardware; docs/hardware.md; the lists."""

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from analysis import miss_curve
from analysis.comparing.comparison import compare
from sim import catalog, recommend, run
from sim.catalog import listing
from sim.catalog.files import shipped
from sim.errors import CatalogError, SpecError
from sim.experiments.__main__ import main as experiments
from sim.flags import OF_THE_HARDWARE
from sim.outcome.marks import machine_words
from sim.prepare import prepare
from sim.simulation import simulate
from sim.spec import CHANGES, RunSpec
from sim.sweeps.config import expand
from sim.sweeps.rows import COLUMNS
from sim.sweeps.session import inspect
from sim.sweeps.worker import Task, Worker
from tests.forked import Forks
from tests.pages import DocPage
from tests.runs_by_hand import FIXED, made

pytestmark = pytest.mark.machine
ROOT = Path(__file__).parents[1]
PAGE = DocPage("hardware.md")
SAMPLE = {"trace": "mixtral.npz", "hardware": "rtx4090", "max_steps": 20}
EXPERT = 352_321_536  # bytes of one of Mixtral's in bf16: 3 x 4096 x 14336 x 2

# rtx4090 with the host epyc-9355 reading 250 GB/s (its own 500, of which nothing else is stated), links at 12.5 GB/s
# and 16 GB of memory: once by flags, once as a file
FLAGS = ["--host", "epyc-9355", "--host-gbps", "250", "--link-gbps", "12.5", "--ram", "16GB"]
AS_A_FILE = """gpu = "rtx-4090"
link = { like = "pcie4x16-pinned", h2d_gb_per_s = 12.5 }
pageable_link = { like = "pcie4x16-pageable", h2d_gb_per_s = 12.5 }
host = { like = "epyc-9355", read_gb_per_s = 250.0, ram_gb = 16.0 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("same", AS_A_FILE), ("fixed", FIXED)):
        Path(f"{name}.toml").write_text(text)
    return PAGE.write(tmp_path)


# --- the arithmetic, by hand ---


def spent(**fields: Any) -> dict[str, Any]:
    return simulate(RunSpec.of({**SAMPLE, **fields}))[0]


@pytest.mark.parametrize("precision", ["bf16", "q4"])
def test_half_the_rate_of_the_link_is_twice_the_time_of_its_bytes(precision: str) -> None:
    # each transfer: 7,000 ns set-up where the link was idle, 1,000 ns a copy, and its bytes at that rate
    size = catalog.model("mixtral").expert_bytes(precision)
    fast, slow = (spent(precision=precision, link_gbps=rate) for rate in (25.0, 12.5))
    assert (fast["misses"], fast["wanted"]) == (slow["misses"], slow["wanted"])  # lru: no decision knows of time
    moved = sum(fast["h2d_bytes"].values()) // size
    for out, rate in ((fast, Fraction(25)), (slow, Fraction(25, 2))):
        bytes_ns = moved * round(size / rate)
        assert bytes_ns + moved * 1_000 <= out["link_busy_ns"] <= bytes_ns + moved * (8_000 + 1)
    assert slow["link_busy_ns"] - fast["link_busy_ns"] == pytest.approx(moved * size / 25, rel=1e-3)
    assert slow["time_ns"] / fast["time_ns"] > (1.8 if precision == "bf16" else 1.7)


def test_a_link_at_its_own_rate_is_that_link() -> None:
    changed, own = (prepare(RunSpec.of({**SAMPLE, **more})).plan.costs for more in ({"link_gbps": 25.5}, {}))
    each = round(7_000 + 1_000 + EXPERT / 25.5)  # one is queued at a time: each finds the link idle
    assert changed.in_a_row_ns == own.in_a_row_ns == (each, each)


def test_a_curve_becomes_flat_and_pageable_links_go_along(folder: Path) -> None:
    sync = {"gpu": "rtx-5090", "link": "pcie5x16-5090-desktop-sync", "host": "desktop-ddr5"}
    Path("sync.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in sync.items()))
    link = catalog.hardware("sync.toml", link_gbps=40.0).link
    assert link is not None and {link.rate(size) for size in (1, 2**20, 10**9)} == {40.0} and link.setup_ns == 0
    both = catalog.hardware("rtx4090", link_gbps=3.0)
    assert both.link and both.pageable_link and both.link.h2d_gb_per_s == both.pageable_link.h2d_gb_per_s == 3.0
    assert both.pageable_link.memory == "pageable" and both.link.setup_ns == 7_000
    assert both.link.sources["h2d_gb_per_s"] == "as asked for"


def test_half_the_rate_of_the_host_is_twice_the_time_of_its_experts() -> None:
    # a decode visit of one row reads one expert after another: 352,321,536 bytes at 62.3 or 31.15 GB/s
    def cpu_ns(**more: Any) -> int:
        return int(prepare(RunSpec.of({**SAMPLE, "miss": "cpu", **more})).plan.costs.cpu_expert_ns[0, 1])

    assert cpu_ns() == pytest.approx(EXPERT / 62.3, rel=1e-6)
    assert cpu_ns(host_gbps=31.15) == pytest.approx(EXPERT / 31.15, rel=1e-6)
    assert cpu_ns(host="epyc-9355") == pytest.approx(EXPERT / 500, rel=1e-6)


def test_what_else_a_host_reads_goes_along_in_proportion() -> None:
    # desktop-ddr5: 62.3 alone, 75 with a copy; at half of it 31.15 and 37.5: beside a link of 25.5 the CPU reads
    # max(37.5 - 25.5, 37.5 / 2) = 18.75
    host = catalog.hardware("rtx4090", host_gbps=31.15).host
    assert host is not None and (host.read_gb_per_s, host.total_gb_per_s) == (31.15, 37.5)
    assert host.read_rate(25.5) == 18.75
    whole = catalog.host("desktop-ddr5")
    assert catalog.hardware("rtx4090", host="desktop-ddr5").host == whole == catalog.hardware("rtx4090").host


def test_another_host_brings_its_memory_and_ram_wins(folder: Path) -> None:
    Path("small.toml").write_text('like = "desktop-ddr5"\nram_gb = 64.0\n')
    given = {**SAMPLE, "host": "small.toml"}
    assert prepare(RunSpec.of(given)).memory["host"]["ram"] == 64 * 10**9
    assert prepare(RunSpec.of({**given, "ram": "96GB"})).memory["host"]["ram"] == 96 * 10**9


def test_a_file_without_a_host_may_be_given_one(folder: Path) -> None:
    Path("half.toml").write_text('gpu = "rtx-4090"\nlink = "pcie4x16-pinned"\n')
    with pytest.raises(CatalogError, match="host: missing"):
        catalog.hardware("half.toml")
    assert catalog.hardware("half.toml", host="grace").host == catalog.host("grace")


# --- every command: as a file that says the same ---


def sim_run(*words: str) -> int:
    return run.main(["--trace", "mixtral.npz", "--max-steps", "20", "--miss", "fiddler", "--json", *words])


def curve(*words: str) -> int:
    return miss_curve.main(["mixtral.npz", "--max-steps", "20", "--check", "4", *words])


def search(*words: str) -> int:
    few = ["--candidates", "4", "--time-limit", "0", "--workers", "1", "--max-steps", "20", "--json"]
    return recommend.main(["--trace", "mixtral.npz", "--vram", "24GB", "--precision", "q4", *few, *words])


def experiment(name: str, *own: str) -> Callable[..., int]:
    return lambda *words: experiments([name, "--trace", "mixtral.npz", "--max-steps", "10", *own, *words])


COMMANDS: dict[str, Callable[..., int]] = {
    "run": sim_run,
    "miss_curve": curve,
    "recommend": search,
    "policies": experiment("policies", "--cache", "0.5", "--batch", "1"),
    "admission": experiment("admission", "--cache", "0.5"),
    "engines": experiment("engines", "--vram", "16GB", "--engines", "llama.cpp,freetoken"),
    "engines by ratio": experiment("engines", "--vram", "16GB", "--engines", "llama.cpp", "--ratios", "0.5"),
}


def told(text: str) -> str:
    """What a command printed, less how it was asked."""
    text = re.sub(r'"spec": \{.*?"set": \{\}.*?\}|"(again|command)": "[^"]*"', "", text)
    text = re.sub(r" (--host|--host-gbps|--link-gbps|--ram) \S+", "", text)
    text = re.sub(r"the rates that .{0,12} gives|the catalog's rates of rtx4090 \([^)]*\)", "rates", text)
    text = re.sub(r"rtx4090( \(host [^)]*\))?|same\.toml", "", text)
    return "\n".join(line for line in text.splitlines() if "python -m" not in line)


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_say_what_a_file_would(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    printed = []
    for words in (["--hardware", "rtx4090", *FLAGS], ["--hardware", "same.toml"], ["--hardware", "rtx4090"]):
        assert COMMANDS[name](*words) == 0
        printed.append(told(capsys.readouterr().out))
    by_flags, by_file, without = printed
    assert by_flags == by_file != without


def test_every_command_that_takes_hardware_takes_what_changes_it(commands: Forks) -> None:
    lines = (ROOT / "tests" / "command_lines" / "commands.txt").read_text().splitlines()
    calls = [line.partition(": python -m ")[2] for line in lines if line.startswith("help-")]
    shown = {call: commands.call(*call.split()).stdout for call in calls}
    taking = [call for call, text in shown.items() if re.search(r"^  --hardware ", text, re.M)]
    assert len(taking) >= 9
    for call in taking:
        for name in OF_THE_HARDWARE:
            assert re.search(rf"^  --{name.replace('_', '-')} ", shown[call], re.M), f"{call}: --{name}"


# --- what is refused ---

BAD = {
    **{f"link {text}": (["--link-gbps", text], f"link_gbps: '{text}': must be more than 0, in GB/s (1e9 bytes)")
       for text in ("0", "-3", "nan", "fast", "")},
    "host 0": (["--host-gbps", "0"], "host_gbps: '0': must be more than 0, in GB/s (1e9 bytes)"),
    "link inf": (["--link-gbps", "inf"], "link_gbps: 'inf': must be from 1e-06 to 1e+09, in GB/s (1e9 bytes)"),
    "nobody": (["--host", "epyc-9356"], "host 'epyc-9356': not in the catalog; did you mean epyc-9355?"),
    "no file": (["--host", "no.toml"], "no.toml: no such file"),
    "no host": (["--host", "same.toml"], "same.toml: gpu: unknown key"),
    "memory": (["--ram", "64"], "ram: '64': must be bytes with a unit"),
    "a link that is none": (["--hardware", "fixed.toml", "--link-gbps", "9"],
        "link_gbps: 9.0: fixed.toml gives durations outright in [fixed]: there is nothing to change; leave it out"),
    "a host that is none": (["--hardware", "fixed.toml", "--host", "grace"], "host: grace: fixed.toml gives durations"),
    "its rate": (["--hardware", "fixed.toml", "--host-gbps", "9"], "host_gbps: 9.0: fixed.toml gives durations"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_wrong_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], name: str, bad: str) -> None:
    words, wrong = BAD[bad]
    before = sorted(folder.rglob("*"))
    assert COMMANDS[name](*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert wrong in captured.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True, [3], "x"])
def test_a_config_s_rate_is_checked_too(value: Any) -> None:
    with pytest.raises(SpecError, match=r"^link_gbps: .* must be more than 0, in GB/s \(1e9 bytes\)$"):
        RunSpec.of({"trace": "t.npz", "link_gbps": value})
    assert RunSpec.of({"trace": "t.npz", "link_gbps": 3}).link_gbps == 3.0


# --- what is kept, swept, compared ---


def test_an_axis_of_a_sweep(folder: Path) -> None:
    runs = expand({**SAMPLE, "precision": "q4", "link_gbps": [25, 12.5], "host": ["default", "my-host.toml"]})
    setup, digests = inspect(runs)
    assert "my-host.toml" in digests and {part.changes for part in setup.parts} == {
        (("host", "my-host.toml"), ("link_gbps", rate)) for rate in (25.0, 12.5)
    }
    Path("my-host.toml").unlink()  # in the middle of the sweep: nobody looks again
    rows = Worker(setup).run(Task(runs)).rows
    assert [(row["spec.link_gbps"], row["spec.host"], row["error"]) for row in rows] == [
        (rate, host, None) for rate in (25.0, 12.5) for host in (None, "my-host.toml")
    ]
    assert COLUMNS["spec.link_gbps"] == COLUMNS["spec.host_gbps"] == "float" and COLUMNS["spec.host"] == "text"
    assert rows[0]["tokens_per_s"] > 1.5 * rows[2]["tokens_per_s"]


def test_runs_of_two_machines_are_no_alternatives() -> None:
    runs = [made("a"), made("b", spec={"link_gbps": 12.5}), made("c", spec={"host": "grace"})]
    notes = compare(runs).notes
    assert "MIXED link_gbps: None and 12.5: these are no alternatives of each other" in notes
    assert "MIXED host: None and grace: these are no alternatives of each other" in notes


def test_a_machine_in_words() -> None:
    assert machine_words({"hardware": "rtx4090"}) == "rtx4090"
    for more, words in (
        ({"host": "grace"}, "host grace"),
        ({"host_gbps": 31.15}, "host at 31.15 GB/s"),
        ({"host": "grace", "host_gbps": 300.0, "link_gbps": 12.0}, "host grace at 300 GB/s, link at 12 GB/s"),
    ):
        assert machine_words({"hardware": "rtx4090", **dict.fromkeys(CHANGES), **more}) == f"rtx4090 ({words})"


def test_the_study_s_runs_are_on_the_machine_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra: runtime)")
    pytest.importorskip("safetensors", reason="safetensors is not installed (extra: runtime)")
    from runtime import study
    from sim.flags import hardware_fields

    args = study.parser().parse_args(["--hardware", "rtx4090", *FLAGS])
    fields = {"host": "epyc-9355", "host_gbps": 250.0, "link_gbps": 12.5, "ram": "16GB"}
    assert hardware_fields(args) == {"hardware": "rtx4090", **fields}
    assert study.main(["--quick", "--link-gbps", "0"]) == 2
    assert "link_gbps: '0': must be more than 0" in capsys.readouterr().err


# --- the page ---


def test_the_page_s_commands_print_what_stands_there(tmp_path: Path, commands: Forks) -> None:
    assert set(PAGE.files) == {"mine.toml", "my-host.toml", "halo.toml"} and len(PAGE.blocks) == 6
    PAGE.check(PAGE.write(tmp_path), commands)


def test_the_page_has_every_flag() -> None:
    assert all(f"`--{name.replace('_', '-')} " in PAGE.text for name in OF_THE_HARDWARE)


def test_what_is_like_an_entry_keeps_the_sources_of_what_it_keeps(folder: Path) -> None:
    found = listing.told("hardware", "mine.toml")["mine"]["figures"]
    own = "measured at home: mbw, 16 threads"
    assert found["host.read_gb_per_s"] == {"value": 71.0, "source": own} and found["host.ram_gb"]["source"] == own
    pinned = shipped("link")["pcie4x16-pinned"]
    assert found["link.setup_ns"] == {"value": 7_000, "source": pinned["source"]}
    assert found["link.per_copy_ns"]["source"] == pinned["sources"]["per_copy_ns"]
    assert found["link.h2d_gb_per_s"]["source"] == "mine.toml: link"


# --- the lists ---


@pytest.mark.parametrize("kind", listing.KINDS)
def test_a_list_has_every_entry_and_fits_the_screen(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([f"--list-{kind if kind == 'hardware' else kind + 's'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= listing.WIDTH
    entries = [line.split()[0] for line in lines if not line.startswith(" ")][kind != "engine" :]
    assert sorted(entries) == sorted(catalog.names(kind))
    assert kind == "engine" or entries == sorted(entries)
    assert not any("BROKEN" in line for line in lines)


def test_what_a_user_chooses_by(capsys: pytest.CaptureFixture[str]) -> None:
    # Mixtral: 32 x 8 experts of 176,160,768 weights and 1,605,636,096 others, 2 bytes each in bf16: 93.4 GB
    assert run.main(["--list-models"]) == 0
    mixtral = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mixtral-8x7b"))
    assert mixtral.split()[:6] == ["mixtral-8x7b", "32", "32", "8", "2", "93.4"] and "352.3" in mixtral
    assert run.main(["--list-hardware"]) == 0
    card = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rtx4090 "))
    # 24,564 MiB as nvidia-smi says, 24,080 as CUDA shows: 23.99 and 23.52 GiB
    assert card.split()[1:7] == ["24.0", "23.5", "1,008", "25.5", "10.0", "62.3"] and card.endswith("also 4090")


def test_one_entry_with_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list-hardware", "4090", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["rtx4090"]
    figures = found["rtx4090"]["figures"]
    assert all(each["source"] for each in figures.values())
    assert figures["gpu.mem_cuda_mib"]["value"] == 24080 and "llama.cpp" in figures["gpu.mem_cuda_mib"]["source"]
    assert figures["host.read_gb_per_s"]["source"] == shipped("host")["desktop-ddr5"]["source"]
    assert figures["gpu.hbm_efficiency"]["source"] == "the default: sim/catalog/hardware_spec.py, class Gpu"
    assert run.main(["--list-hardware", "4090"]) == 0
    text = capsys.readouterr().out
    number = re.search(r"^  gpu.mem_cuda_mib = 24080 \[(\d+)\]$", text, re.M)
    assert number and f"\n[{number[1]}] {figures['gpu.mem_cuda_mib']['source']}\n" in text
    assert run.main(["--list-models", "nobody"]) == 2


@pytest.mark.parametrize("kind", listing.KINDS)
def test_every_figure_of_the_catalog_as_json(kind: str) -> None:
    found = json.loads(json.dumps(listing.told(kind)))
    assert sorted(found) == sorted(catalog.names(kind))
    assert all(each["source"] for entry in found.values() for each in entry["figures"].values())


def test_a_broken_entry_stops_nobody_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = shipped("host")
    bad = {**good, "mended": {"read_gb_per_s": -3.0}}
    monkeypatch.setattr(listing, "shipped", lambda kind: bad)
    monkeypatch.setattr("sim.catalog.files.entry", lambda kind, name: bad[name])
    monkeypatch.setattr("sim.catalog.files.find", lambda kind, name: name)
    assert run.main(["--list-hosts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(bad)
    (broken,) = [line for line in lines if "BROKEN" in line]
    assert broken.startswith("mended") and "BROKEN: host mended: read_gb_per_s = -3.0" in broken
    assert run.main(["--list-hosts", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "read_gb_per_s = -3.0" in found["mended"]["broken"] and "figures" in found["grace"]
