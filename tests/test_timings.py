"""Timings: reading them, the mixed model by hand, machines left out, and an engine's constants found again."""

import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import calibrate_engine, catalog
from sim.catalog.files import read_toml
from sim.catalog.intervals import DECODE, PREFILL, stated
from sim.errors import SpecError
from sim.timings import effects
from sim.timings.effects import Observed, fit, observe, spread
from sim.timings.estimate import Estimate, estimate
from sim.timings.judging import judge, with_anchors
from sim.timings.own import calibrate
from sim.timings.rows import HITS, Timing, command, read, usable
from sim.timings.running import Runs
from sim.timings.terms import TERMS, free, with_terms

SHARED = Path(__file__).resolve().parents[2] / "shared" / "evidence" / "published.json"
ROWS = read()


# --- rows ---


def test_the_evidence_is_every_collected_row() -> None:
    if not SHARED.exists():
        pytest.skip("the collected evidence lies outside the checkout")
    collected = json.loads(SHARED.read_text())["cases"]
    same = {row.id: (row.measured_on, row.grade, row.published_engine, row.metric, row.value) for row in ROWS}
    assert same == {r["id"]: (r["machine"], r["grade"], r["engine"], r["metric"], r["value"]) for r in collected}
    assert {row.id: row.source for row in ROWS} == {r["id"]: r["source"] for r in collected}


def test_each_row_is_a_run_or_says_why_not() -> None:
    for row in ROWS:
        assert bool(row.fields.get("hardware")) != bool(row.not_set_up), row.id
    assert len(usable(ROWS)) > 350
    assert all(row.not_set_up for row in ROWS if row.metric == HITS)


def test_the_settings_of_a_row_are_flags() -> None:
    row = next(row for row in ROWS if row.id == "msl-a10/llama_cpp/qwen3-30b-a3b/18")
    assert command(row) == (
        "--model qwen3-30b-a3b --hardware msl-a10 --engine llama.cpp --precision q4-k-m --n-cpu-moe 36"
    )


WRONG = {
    "no rows": ("value\n", "no rows"),
    "no value": ("engine,n_cpu_moe\nllama.cpp,3\n", "value"),
    "a column that is no field": ("value,layers\n3,4\n", "layers"),
    "no number": ("value\nfast\n", "value = 'fast'"),
    "nothing": ("value\n0\n", "value = '0'"),
    "not finite": ("value\ninf\n", "value = 'inf'"),
    "a metric": ("value,metric\n3,tokens\n", "metric = 'tokens'"),
    "too few columns": ("value,metric\n3\n", "as many columns"),
    "too many columns": ("value\n3,4\n", "as many columns"),
    "a field": ("value,n_cpu_moe\n3,many\n", "n_cpu_moe = 'many'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_one_line(what: str, tmp_path: Path) -> None:
    text, said = WRONG[what]
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=said.replace("'", ".")) as error:
        read(path)
    assert str(path) in str(error.value)


# --- the model by hand ---


def test_one_effect_is_drawn_to_zero_by_its_spread() -> None:
    # one row, residual .3, noise .1, spread .2: value = .3 x .2^2 / (.2^2 + .1^2) = .24, variance 1 / (25 + 100)
    found = estimate([{"a": 1.0}], np.array([0.3]), {"a": 0.2}, np.array([0.1]))
    # 0.3 is within 1.5 sd of what is left (.06 = .6 sd), so Huber's weight is 1
    assert found.of({"a": 1.0}) == pytest.approx((0.24, math.sqrt(1 / 125)))
    assert found.of({"b": 1.0}) == (0.0, 0.0)


def observed(value: float, **more: object) -> Observed:
    """10 ms, .6 of it layers and .3 reading."""
    timing = Timing(value=value, measured_on=str(more.get("on", "m")), published_engine="e", fields={"model": "x"})
    owned = {"layer": ("layer compiled: all", "layer compiled: machine m"), "cpu_read": ("cpu_read compiled: all",)}
    return Observed(timing, 0.010, {}, {"layer": 0.6, "cpu_read": -0.3}, owned)


def test_a_time_is_the_sum_of_its_parts() -> None:
    # layers twice as long, reading twice as fast: 10 x (.1 + 2 x .6 + .3 / 2) = 14.5 ms; shares 1.2 and .15 of 1.45
    log, counts = observed(100).near({"layer compiled: all": math.log(2), "cpu_read compiled: all": math.log(2)})
    assert math.exp(log) == pytest.approx(0.0145)
    assert counts == pytest.approx(
        {
            "whole: machine m": 1.0,
            "layer compiled: all": 1.2 / 1.45,
            "layer compiled: machine m": 1.2 / 1.45,
            "cpu_read compiled: all": -0.15 / 1.45,
        }
    )


def test_a_machine_without_timings_has_the_spread_of_the_others() -> None:
    nothing = Estimate.nothing()
    seconds, sd = observed(100).seconds(nothing)
    assert seconds == pytest.approx(0.010)
    own = [0.6 * spread("layer compiled: all"), 0.6 * spread("layer compiled: machine m"), spread("whole: machine m")]
    own += [0.3 * spread("cpu_read compiled: all")]
    assert sd == pytest.approx(math.hypot(*own))


@pytest.mark.parametrize(
    ("rows", "noise", "told"),
    [
        (1, 0.06, {"grade": "A"}),
        (1, 0.1, {"grade": "B"}),
        (1, math.hypot(0.1, 0.2), {"grade": "B", "assumed": "threads"}),
        (1, math.hypot(0.06, 0.2), {"host_rate": "assumed"}),
        (4, 0.06 / math.sqrt(4), {}),
        (16, 0.06 / math.sqrt(4), {}),  # more rows of one group than four do not count more
    ],
)
def test_a_row_counts_by_what_is_known_of_it(rows: int, noise: float, told: dict[str, str]) -> None:
    # rows 5 % slower than the 10 ms simulated, the machine alone to blame, which is within .2: the mean of two normals
    row = Observed(Timing(value=100 / math.exp(0.05), measured_on="m", **told), 0.010, {}, {}, {})  # type: ignore[arg-type]
    found = fit([row] * rows).of({"whole: machine m": 1.0})
    assert found == pytest.approx((0.05 * 0.2**2 / (0.2**2 + noise**2), 1 / math.sqrt(0.2**-2 + noise**-2)))


# --- machines left out ---

FEW = ("msl-089-9950x", "msl-091-i5")


@pytest.fixture(scope="module")
def some() -> list[Observed]:
    rows = [row for row in usable(ROWS) if row.measured_on in FEW and row.fields["engine"] == "llama.cpp"]
    return observe([row for row in rows if not row.prefill], None, workers=1)


def test_no_row_has_a_part_in_its_own_prediction(some: list[Observed]) -> None:
    """Whatever a machine's own figures are, what is predicted for it stays; two anchors of it do change it."""
    lied = [
        replace(row, timing=replace(row.timing, value=row.timing.value * 3))
        if row.timing.measured_on == FEW[0]
        else row
        for row in some
    ]
    honest, other = judge(some, 1), judge(lied, 1)
    for before, after in zip(honest, other, strict=True):
        own = before.row.timing.measured_on == FEW[0]
        assert (before.left_out == after.left_out) == own


def test_nothing_that_the_catalog_learned_is_known_before_any_timing() -> None:
    """Constants of the catalog came from all rows: a prediction that starts before them sees none."""
    told = read_toml(Path(catalog.__file__).parent / "constants.toml")
    for name in ("llama.cpp", "mixtral-offloading"):
        for hardware in (catalog.hardware("msl-a10"), catalog.hardware("rtx5090")):
            machine, engine = with_terms(hardware, catalog.engine(name), {})
            for field in told["engine"][name]:
                term = next(each for each in TERMS.values() if field in each.fields)
                assert getattr(engine, field) == term.value[engine.dispatch][term.fields.index(field)]
            assert machine.gpu is not None and machine.gpu.hbm_efficiency == 0.7
            assert hardware.gpu is not None and hardware.gpu.hbm_efficiency != 0.7  # what the catalog ships


def test_anchors_are_met(some: list[Observed]) -> None:
    mine = [row for row in some if row.timing.measured_on == FEW[0]]
    found = fit(row for row in some if row not in mine)
    learned = with_anchors([mine[0], mine[-1]], found)
    for row in (mine[0], mine[-1]):
        off = [abs(math.log(row.timing.seconds / row.seconds(each)[0])) for each in (found, learned)]
        assert off[1] < 0.03 and off[1] <= off[0] + 1e-9


def test_routing_that_was_made_for_timings_goes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [row for row in ROWS if row.group == ("msl-091-i5", "llama.cpp", "qwen3-30b-a3b")]
    assert len(observe(rows, None, workers=2)) == len(calibrate(rows).seconds) == 2
    assert not list(tmp_path.iterdir())


# --- an engine's own timings ---


def test_constants_are_found_again(tmp_path: Path) -> None:
    """Timings of an engine whose layers take 1.4 times as long, on a host that it reads at .8: both come back."""
    truth = {"layer": math.log(1.4), "cpu_read": math.log(0.8)}
    base = {"engine": "llama.cpp", "hardware": "rtx4090", "model": "qwen3-30b-a3b", "precision": "q8"}
    runs, rows = Runs(), []
    for n in (0, 12, 24, 36, 48):
        timing = Timing(value=1.0, fields={**base, "n_cpu_moe": n})
        setting = runs.setting(timing)
        made = with_terms(setting.hardware, setting.engine, truth, start="own")
        rows.append(replace(timing, value=1 / runs.seconds(timing, *made)))
    found = calibrate(rows)
    for measured, seconds in zip(rows, found.seconds, strict=True):
        assert seconds == pytest.approx(measured.seconds, rel=0.01)
    told = {term.name: term for term in found.terms}
    assert not told["link"].told  # nothing crosses it
    assert found.without is not None
    assert np.allclose([row.seconds for row in rows], found.without, rtol=0.03)
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["n_cpu_moe", "value"])
        write.writerows([row.fields["n_cpu_moe"], row.value] for row in rows)
    flags = ["--engine", "llama.cpp", "--hardware", "rtx4090", "--model", "qwen3-30b-a3b", "--precision", "q8"]
    out = tmp_path / "mine.toml"
    assert calibrate_engine.main([str(path), *flags, "--out", str(out)]) == 0
    engine, hardware = catalog.engine(str(out)), catalog.hardware(str(tmp_path / "mine.hardware.toml"))
    assert engine.interval is not None and engine.interval[0] < 1 < engine.interval[1]
    assert (engine.interval_on, engine.interval_phases) == ("rtx4090", ("decode",))  # elsewhere the published ones
    found_on = {(phase, name): stated(str(out), catalog.hardware(name), phase) for phase in (DECODE, PREFILL)
                for name in ("rtx4090", "rtx3090")}  # fmt: skip
    assert {where for where, own in found_on.items() if own is not None} == {(DECODE, "rtx4090")}
    mine = {**base, "engine": str(out), "hardware": str(tmp_path / "mine.hardware.toml"), "n_cpu_moe": 30}
    new = Timing(value=1.0, fields={**base, "n_cpu_moe": 30})
    setting = runs.setting(new)
    right = runs.seconds(new, *with_terms(setting.hardware, setting.engine, truth, start="own"))
    assert Runs().seconds(Timing(value=1.0, fields=mine)) == pytest.approx(right, rel=0.01)
    assert hardware.gpu is not None
    assert calibrate_engine.main([str(path), *flags, "--out", str(out)]) == 2  # is there already


def test_timings_of_something_else_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Speeds of Qwen3-30B said to be Mixtral's."""
    path, out = tmp_path / "t.csv", tmp_path / "mine.toml"
    path.write_text("n_cpu_moe,value\n0,145.6\n24,90.7\n32,63.8\n")
    flags = ["--engine", "llama.cpp", "--hardware", "a10", "--precision", "q4-k-m", "--out", str(out)]
    assert calibrate_engine.main([str(path), *flags, "--model", "mixtral-8x7b"]) == 2
    error = capsys.readouterr().err
    assert "t.csv: off by" in error and error.count("\n") == 1
    assert not out.exists()


COMMANDS = {
    "no such file": (["nothing.csv"], "nothing.csv: no such file"),
    "no model": (["t.csv", "--precision", "q8"], "row 2: model: missing"),
    "another engine in a row": (["two.csv", "--model", "mixtral-8x7b", "--precision", "q8"], "engine = 'ideal'"),
    "one timing": (["one.csv", "--model", "mixtral-8x7b", "--precision", "q8"], "needs at least two"),
    "no TOML": (["t.csv", "--out", "x.txt"], "must end in .toml"),
    "twice the same": (["same.csv", "--model", "mixtral-8x7b", "--precision", "q8"], "needs at least two"),
    "a hit rate": (["hits.csv", "--model", "mixtral-8x7b", "--precision", "q8"], "needs at least two"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_wrong_command_is_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("value\n1\n2\n")
    Path("two.csv").write_text("value,engine\n1,llama.cpp\n2,ideal\n")
    Path("one.csv").write_text("value\n1\n")
    Path("same.csv").write_text("n_cpu_moe,value\n4,60\n4,61\n")
    Path("hits.csv").write_text("value,metric\n50,hit %\n2,decode tok/s\n")
    words, said = COMMANDS[what]
    assert calibrate_engine.main([*words, "--engine", "llama.cpp", "--hardware", "a10"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_terms_are_those_of_what_an_engine_does() -> None:
    assert "cpu_visit" in free(catalog.engine("llama.cpp"))
    assert "transfer" in free(catalog.engine("mixtral-offloading"))
    assert "cpu_visit" not in free(catalog.engine("mixtral-offloading"))
    assert all(term in TERMS for term in free(catalog.engine("ideal")))


def test_effects_of_a_row(some: list[Observed]) -> None:
    row = next(row for row in some if row.timing.measured_on == FEW[0])
    whose = ("all", "engine llama.cpp", "host measured", f"machine {FEW[0]}")
    assert row.owned["cpu_read"] == tuple(f"cpu_read compiled: {owner}" for owner in whose)
    assert row.owned["gpu_memory"][2] == "gpu_memory compiled: gpu rtx-5090"
    assert effects.spread("whole: machine x") == effects.MACHINES
    assert effects.spread("layer compiled: machine x") == effects.PLATFORMS["layer", "compiled"]
    assert effects.spread("cpu_read compiled: engine x") == math.log(1.05) * effects.ENGINES_OWN


# --- the page ---

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_shows_what_its_commands_print(tmp_path: Path) -> None:
    """docs/timings.md: each command of a console block, in order; `...` stands for lines that it leaves out."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "out").mkdir()
    page = (ROOT / "docs" / "timings.md").read_text()
    for block in re.findall(r"```console\n(.*?)```", page, re.S):
        for part in re.split(r"(?m)^\$ ", block)[1:]:
            line, _, shown = part.partition("\n")
            words = [sys.executable, *shlex.split(line)[1:]]
            done = subprocess.run(
                words,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            printed = [text.rstrip() for text in done.stdout.splitlines()]
            assert [text for text in shown.splitlines() if text not in (*printed, "...")] == []
