"""Calibration: what a record says, terms found again from simulated records, the file, the command."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.calibrate import main
from runtime.device.port import DeviceError
from runtime.measuring import durations, terms
from runtime.measuring.hardware_file import toml, write_hardware
from runtime.measuring.microbenchmarks import _copies, curve
from sim import catalog
from sim.catalog.link_spec import Link
from sim.errors import SpecError
from sim.outcome.summary import summarise
from sim.prepare import prepare
from sim.spec import RunSpec
from tests.clocks import Clock
from tests.test_validate import MODEL, MadeUp, Timed, on
from traces.format import npz
from traces.synthetic import Preset, generate

HARDWARE = """
[measured]
device = "made up"
torch = "none"
model = "tiny"
precision = "fp32"
expert_bytes = 1000
decide_ns = 7000
group_ns = 3000
transfer_idle_ns = 110000
transfer_following_ns = 100000
commit_gap_ns = 2000
commit_depth = 2
[measured.expert]
tokens = [1, 4]
ns = [10000, 16000]
[measured.head]
tokens = [1, 4]
ns = [20000, 26000]
[measured.cpu_expert]
tokens = [1, 4]
ns = [50000, 80000]
busy_ns = [70000, 100000]
[[measured.dense]]
tokens = [1, 4]
ns = [100000, 130000]
entry_ns = 50.5
[[measured.dense]]
layer = "ffn"
tokens = [1, 4]
ns = [30000, 60000]
entry_ns = 50.5
[[measured.dense]]
phase = "prefill"
tokens = [1, 64]
ns = [200000, 830000]
entry_ns = 2.5
[[measured.dense]]
layer = "ffn"
phase = "prefill"
tokens = [1, 64]
ns = [50000, 680000]
entry_ns = 2.5
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.toml`: six layers, the first and the last without experts' (moe 1 and 3 of 0..4), `t.npz`, `h.toml`."""
    folder = tmp_path_factory.mktemp("files")
    text = MODEL.replace("n_layers = 4", "n_layers = 5\nmoe_first = 1\nmoe_step = 2\ndense_intermediate = 64")
    (folder / "tiny.toml").write_text(text)
    (folder / "h.toml").write_text(HARDWARE)
    preset = Preset("tiny", 8, 2, 5, (1, 3), memory=((0, 0.3, 0.0),), requests=12, prompt=(5, 60), generation=(20, 60))
    npz.write(folder / "t.npz", generate(preset, 0))
    return folder


def simulated(files: Path, **fields: Any) -> durations.TimedRun:
    named = {"trace": str(files / "t.npz"), "model": str(files / "tiny.toml"), "hardware": str(files / "h.toml")}
    return durations.simulated(prepare(RunSpec.of({**named, "precision": "fp32", **fields})))


CASES: list[dict[str, Any]] = [
    {"cache": 3},
    {"cache": 5, "batch": 4, "warmup_steps": 3},
    {"cache": 4, "prefetch": "noisy-oracle", "expert_group": "ready", "batch": 3},
    {"cache": 4, "prefetch": "previous-token", "miss": "cpu", "batch": 2},
    {"cache": 12, "cache_scope": "global", "expert_group": "all", "batch": 2},
]


@pytest.mark.parametrize("fields", CASES)
def test_components_are_the_simulator_s_and_add_up(files: Path, fields: dict[str, Any]) -> None:
    run = simulated(files, **fields)
    found, summary = durations.components(run), summarise(run.record)
    # the dense layer behind the last MoE layer stands with the head
    whole = dict(summary["breakdown_ns"])
    behind = whole["dense"] - found["dense"]
    assert behind > 0 and found["head"] == whole.pop("head") + behind
    whole["dense"] -= behind
    assert {name: found[name] for name in whole} == whole
    assert found["total"] == summary["time_ns"] == sum(found[n] for n in (*whole, "head"))
    assert found["copies"] == summary["link_busy_ns"]


def test_transfers_show_the_link_s_terms_and_nothing_else(files: Path) -> None:
    for fields in CASES:
        seen = durations.transfers_of(simulated(files, **fields))
        assert set(seen.gap_ns) <= {2000.0} and set(seen.idle_ns) <= {110000.0} and set(seen.following_ns) <= {100000.0}
    assert len(seen.gap_ns) and len(seen.idle_ns) and len(seen.following_ns)


def test_terms_are_found_again_from_records_that_they_made(files: Path) -> None:
    runs = [simulated(files, **fields) for fields in CASES]
    section = terms.fitted([runs, runs]).section
    exact = ("decide_ns", "transfer_idle_ns", "transfer_following_ns", "commit_gap_ns", "commit_depth")
    assert [section[name] for name in exact] == [7000, 110000, 100000, 2000, 2]
    assert section["group_ns"] == pytest.approx(3000, rel=0.05)
    table = {"source": "", "measured": {"device": "", "torch": "", "model": "tiny", "precision": "fp32"}}
    table["measured"] |= {"expert_bytes": 1000, **section}  # type: ignore[operator]
    path = files / "found.toml"
    write_hardware(path, table)
    for fields in CASES:  # what counts: every run costs what it cost
        before = durations.components(simulated(files, **fields))
        after = durations.components(simulated(files, **{**fields, "hardware": str(path)}))
        for name in before:
            assert after[name] == pytest.approx(before[name], rel=0.02, abs=0.002 * before["total"]), (fields, name)
    assert {u["spread"] for u in section["uncertainty"].values()} == {0.0}


def test_a_disturbed_round_moves_no_term_and_is_told(files: Path) -> None:
    runs = [simulated(files, **fields) for fields in CASES[:2]]
    slow = []
    for run in runs:
        group = {name: {k: v * 3 if k.endswith("_ns") else v for k, v in columns.items()}
                 for name, columns in run.record.groups.items()}  # fmt: skip
        steps = {k: v * 3 if k.endswith("_ns") else v for k, v in run.record.steps.items()}
        slow.append(replace(run, record=replace(run.record, groups=group, steps=steps)))
    section = terms.fitted([runs, slow, runs]).section
    assert section["decide_ns"] == pytest.approx(7000, rel=0.01)
    assert section["transfer_idle_ns"] == pytest.approx(110000, rel=0.01)
    assert section["uncertainty"]["decide_ns"]["spread"] == pytest.approx(2, rel=0.02)


def test_a_kind_of_transfer_that_never_was_costs_what_the_other_does(files: Path) -> None:
    (files / "one.toml").write_text(HARDWARE.replace("commit_depth = 2", "commit_depth = 1"))
    section = terms.fitted([[simulated(files, cache=3, hardware=str(files / "one.toml"))]]).section
    assert section["transfer_following_ns"] == section["transfer_idle_ns"] == 110000
    assert "transfer_following_ns" not in section["uncertainty"]


SECTION: dict[str, Any] = {
    "decide_ns": 7000, "transfer_idle_ns": 900, "transfer_following_ns": 810, "group_ns": 0, "expert": {"ns": [1, 5]},
    "uncertainty": {"transfer_idle_ns": {}, "transfer_following_ns": {}},
    "dense": [
        {"layer": "ffn", "attention": "full", "phase": "decode", "ns": [0, 0], "entry_ns": 0.5},
        {"layer": "moe", "attention": "window", "phase": "prefill", "ns": [0, 1], "entry_ns": 0.0},
    ],
}  # fmt: skip
NOTHING = {"layer": "moe", "attention": "full", "phase": "decode", "ns": [0, 0], "entry_ns": 0.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"transfer_idle_ns": 899}, "transfer_idle_ns: 899 ns was fitted, but a bare copy of an expert takes 1,000 ns"),
        ({"transfer_idle_ns": 0}, "transfer_idle_ns: 0 ns was fitted, but a bare copy of an expert takes 1,000 ns"),
        (
            {"transfer_following_ns": 809},
            "transfer_following_ns: 809 ns was fitted, but a bare copy of an expert takes",
        ),
        ({"decide_ns": 0}, "decide_ns: 0 ns was fitted"),
        ({"expert": {"ns": [0, 5]}}, "expert: 0 ns was fitted"),
        ({"dense": [SECTION["dense"][0], NOTHING]}, "dense moe full decode: 0 ns was fitted"),
    ],
)
def test_what_no_device_can_take_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    terms.refuse_impossible(SECTION, (1000, 900))  # 0.9 of a bare copy is enough: of two clocks one may be a bit fast
    terms.refuse_impossible({**SECTION, "group_ns": 3, "expert": {"ns": [0]}}, (1000, 900))  # a group is never free
    with pytest.raises(DeviceError, match=f"^{said}.* cannot be right$"):
        terms.refuse_impossible({**SECTION, **wrong}, (1000, 900))


def test_a_transfer_of_nothing_is_refused_though_the_bare_copy_took_nothing_either() -> None:
    with pytest.raises(DeviceError, match="transfer_idle_ns: 0 ns"):
        terms.refuse_impossible({**SECTION, "transfer_idle_ns": 0}, (0, 0))


def test_only_transfers_that_there_were_are_held_against_bare_copies() -> None:
    """In a saturated link all follow one another; without any, the device is not to blame."""
    following = {"uncertainty": {"transfer_following_ns": {}}, "transfer_idle_ns": 810}
    terms.refuse_impossible({**SECTION, **following}, (1000, 900))
    with pytest.raises(SpecError, match="caches: no expert crossed the link"):
        terms.refuse_impossible({**SECTION, "uncertainty": {}, "transfer_idle_ns": 0}, (1000, 900))


def test_toml_reads_back() -> None:
    table = {
        "source": 'a "b" \\ c', "measured": {"n": 3, "x": 0.25, "e": 1e-07, "on": True, "list": [1, 2],
        "expert": {"ns": [1]}, "dense": [{"ns": [1], "phase": "decode"}, {"ns": [2], "phase": "prefill"}],
        "uncertainty": {"expert": {"spread": 0.0}}},
    }  # fmt: skip
    assert tomllib.loads(toml(table)) == table


# ---- the command


def flags(files: Path, out: Path, *more: str) -> list[str]:
    return ["--device", "cpu", "--model", str(files / "tiny.toml"), "--out", str(out), "--quick", *more]


def test_the_command_writes_a_file_that_sim_run_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    on(MadeUp(noise=0.01), monkeypatch)
    assert main(flags(tmp_path, tmp_path / "my.toml", "--host-experts")) == 0
    said = capsys.readouterr().out
    assert "decide_ns" in said and "spread" in said and "made up" in said
    measured = catalog.hardware(str(tmp_path / "my.toml")).measured
    assert measured is not None and measured.model == "tiny"
    assert measured.cpu_expert is not None and measured.cpu_expert.ns[0] == pytest.approx(700_000, rel=0.03)
    assert measured.decide_ns == pytest.approx(40_000, rel=0.03)
    assert measured.expert.ns[0] == pytest.approx(300_000, rel=0.03)
    assert measured.transfer_idle_ns == pytest.approx(2_000_000, rel=0.03)
    assert 0 < measured.uncertainty["expert"].spread < 0.03


def test_on_this_cpu_the_file_holds_the_terms_and_the_bare_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    few = ("--repeats", "1", "--steps", "6", "--scale", "1", "--link-gbps", "2", "--batches", "2", "--json")
    assert main(flags(tmp_path, tmp_path / "my.toml", *few)) == 0
    out = json.loads(capsys.readouterr().out)
    assert {"one expert, 1 token", "one launch", "the core alone"} < set(out["cross_check"])
    measured = catalog.hardware(str(tmp_path / "my.toml")).measured
    assert measured is not None and measured.link is not None and measured.link.curve is not None
    assert measured.transfer_idle_ns >= measured.expert_bytes / 2.0  # paced: never faster than asked
    assert measured.expert_bytes == 3 * 64 * 96 * 4 and measured.torch


def test_a_fit_that_cannot_be_is_one_line_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    monkeypatch.setattr(MadeUp, "bare_copy_ns", lambda self: (5_000_000, 5_000_000))
    on(MadeUp(), monkeypatch)
    assert main(flags(tmp_path, tmp_path / "my.toml")) == 1  # the link takes 2 ms
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: transfer_idle_ns: 2,000,000 ns was fitted, but a bare")
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.toml"}


def test_a_calibration_ends_by_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    bench = Timed(Clock().install(monkeypatch), 4.5)
    on(bench, monkeypatch)
    # one replay of about 5 s, then rounds of four: after two of them 45 of 60 s are gone, and a third takes 20
    many = ("--seconds", "60", "--repeats", "100", "--json")
    assert main(flags(tmp_path, tmp_path / "my.toml", *many)) == 0
    said = capsys.readouterr()
    out = json.loads(said.out)
    assert (out["rounds"], out["rounds_asked"], out["deadline_s"]) == (2, 100, 60) and 40 < bench.clock.now <= 60
    assert out["seconds"] == pytest.approx(bench.clock.now, abs=0.1)
    assert "# made by python -m runtime.calibrate, 2 of 100 rounds, " in (tmp_path / "my.toml").read_text()
    lines = said.err.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["round 1 of 100", "round 2 of 100"]
    assert all(" s left of 60 s" in line for line in lines)


@pytest.mark.parametrize("seconds", ["4", "25"])  # gone after the warm-up's 5 s; not enough for a round of 21 s
def test_a_calibration_without_a_complete_round_is_one_line_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    on(Timed(Clock().install(monkeypatch), 5.0), monkeypatch)
    assert main(flags(tmp_path, tmp_path / "my.toml", "--seconds", seconds)) == 1
    said = capsys.readouterr().err.splitlines()[1:]  # behind "round 1 of 3, which takes about 21 s"
    assert len(said) == 1 and "would take about 21 s; fewer --caches, --batches or --steps take less" in said[0]
    assert said[0].startswith(f"error: seconds: {seconds}: over after 0 of the 4 replays of the first round, ")
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.toml"}


def test_a_trace_of_one_s_own_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    preset = Preset("tiny", 8, 2, 4, tuple(range(4)), requests=2)
    npz.write(tmp_path / "t.npz", generate(preset, 0))
    on(MadeUp(), monkeypatch)
    named = ("--trace", str(tmp_path / "t.npz"), "--json", "--batches", "2")
    assert main(flags(tmp_path, tmp_path / "my.toml", *named)) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["hardware"]["measured"]["decide_ns"] == 40_000 and out["cross_check"] == {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--out", "x.json"), "x.json: must end in .toml"),
        (("--out", "/no/such/folder/x.toml"), "its folder does not exist"),
        (("--model", "mixtrall"), "did you mean mixtral"),
        (("--trace", "no.npz"), "no.npz"),
        (("--repeats", "-1"), "repeats: -1"),
        (("--seconds", "0"), "--seconds: 0: must be a number above 0"),
        (("--seconds", "inf"), "--seconds: inf: must be a number above 0"),
        (("--seconds", "soon"), "--seconds: soon: must be a number above 0"),
        (("--host-memory", "20"), "--host-memory: 20: must be bytes with a unit"),
        (("--caches", "x"), "caches"),
        (("--caches", "1.0"), "caches: all 8 experts of a layer are there, and none would cross the link; give fewer"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    (tmp_path / "tiny.toml").write_text(MODEL)
    assert main(flags(tmp_path, tmp_path / "my.toml", *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.toml"}
    assert main(["--device", "cpu", "--out", str(tmp_path / "my.toml")]) == 2
    assert "give --trace FILE, or --model NAME" in capsys.readouterr().err


def test_the_cross_check_on_this_cpu_says_what_was_asked() -> None:
    from runtime.device.choose import choose
    from runtime.measuring.microbenchmarks import copy_ns, launch_ns

    with choose("cpu", 2.0, 5.0) as port:
        lasted = copy_ns(port, 1 << 20, True, True)
        assert lasted >= (1 << 20) / 2.0  # paced: never faster than asked
        assert launch_ns(port, lambda: None) > 0


def test_bare_copies_become_a_link_of_the_catalog() -> None:
    # the third copy took less than the second, which noise does: time never falls
    points = curve([1000, 2000, 4000], [500.0, 800.0, 700.0])
    assert points == [[1000, 2], [2000, 2.5], [4000, 5]]
    link = Link(curve=tuple((size, rate) for size, rate in points), setup_ns=0)
    assert link.rate(2000) == 2.5
    assert "us and then 2.00 GB/s: 1 KiB" in _copies([1024, 2048, 4096], [612.0, 1124.0, 2148.0])  # 100 ns + n / 2
