"""The experiments' commands: well-formed tables, files with their command, and published speeds beside predictions."""

import csv
import io
import math
import shlex
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import catalog
from sim.experiments import admission, published
from sim.experiments.__main__ import main
from sim.experiments.policies import ARMS
from sim.flags import spec_of
from sim.policies.registry import MISS
from sim.run import parser as run_parser
from sim.simulation import simulate
from sim.spec import RunSpec
from sim.timings import effects
from sim.timings.rows import HITS, MS, Timing, command, read, usable
from sim.timings.running import Runs
from tests.gen import random_trace
from traces.format import npz

FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n"
CONSTANTS = "Constants, fitted to all rows"


def call(folder: Path, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[str, list[dict[str, str]], list[str]]:
    """(markdown, rows of the CSV, lines of the CSV) of one command; the two files are what was printed."""
    assert main([*map(str, args), "--out", str(folder / "results")]) == 0
    text = capsys.readouterr().out
    name = str(args[0])
    assert (folder / "results" / f"{name}.md").read_text() == text
    lines = (folder / "results" / f"{name}.csv").read_text().splitlines()
    assert sorted(path.name for path in (folder / "results").iterdir()) == [f"{name}.csv", f"{name}.md"]
    return text, list(csv.DictReader(io.StringIO("\n".join(lines[1:])))), lines


def table_is_well_formed(text: str, rows: list[dict[str, str]]) -> None:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in lines}
    assert len(widths) == 1 and len(lines) == len(rows) + 2
    assert all(None not in row and None not in row.values() for row in rows)


# ---- policies


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`t.npz` with weights and logits, `bare.npz` with neither, fixed hardware `h.toml`."""
    for name, more in (
        ("t", {"weights": True, "logits": True}),
        ("bare", {"weights": False, "logits": False}),
    ):
        rng = np.random.default_rng(5)
        npz.write(
            tmp_path / f"{name}.npz",
            random_trace(rng, tokens=60, layers=3, experts=8, k=2, requests=4, **more),
        )
    (tmp_path / "h.toml").write_text(FIXED)
    return tmp_path


def flags(folder: Path, trace: str) -> list[Any]:
    return ["policies", "--trace", folder / trace, "--hardware", folder / "h.toml", "--cache", "0.5"]


def test_policies_one_row_per_arm_cache_and_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*flags(folder, "t.npz"), "4", "--batch", 1, 2]
    text, rows, lines = call(folder, capsys, *args)
    table_is_well_formed(text, rows)
    assert [(row["cache"], row["batch"], row["arm"]) for row in rows] == [
        (cache, batch, arm) for cache in ("0.5", "4") for batch in ("1", "2") for arm in ARMS
    ]
    command = " ".join(["python -m sim.experiments", *map(str, args), "--out", str(folder / "results")])
    assert lines[0] == f"# {command}" and f"    {command}\n" in text
    for row_ in rows:
        assert row_["replay"] == ("open" if MISS[row_["arm"]].lossy else "exact")
        assert (float(row_["substituted_weight_percent"]) > 0) <= (row_["replay"] == "open")
        assert row_["arm"] != "fetch" or float(row_["gain_percent"]) == 0
    assert len({row["judged_tokens"] for row in rows}) == 1  # the same requests for every arm


def test_policies_figures_are_those_of_a_plain_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows, _ = call(folder, capsys, *flags(folder, "t.npz"), "--batch", 1, "--max-steps", 15)
    for arm in ("fetch", "buddy-first-fit", "drop"):
        fields = {
            "trace": str(folder / "t.npz"),
            "hardware": str(folder / "h.toml"),
            "engine": "fused",
            "engine_as_costs": True,
        }
        fields |= {"precision": "q4", "calibration": 0.5, "miss": arm, "max_steps": 15}
        out, _ = simulate(RunSpec.of(fields))
        got = next(row for row in rows if row["arm"] == arm)
        assert float(got["tokens_per_s"]) == pytest.approx(out["tokens_per_s"], rel=1e-5)
        assert float(got["h2d_gb"]) == pytest.approx(sum(out["h2d_bytes"].values()) / 1e9, rel=1e-5)
        assert int(got["judged_tokens"]) == out["tokens"]


def test_what_a_trace_cannot_serve_is_a_row_that_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows, _ = call(folder, capsys, *flags(folder, "bare.npz"), "--batch", 1)
    table_is_well_formed(text, rows)
    notes = {row["arm"]: row["note"] for row in rows}
    assert notes["buddy"] == "not run: needs `weights`, which the trace does not have"
    assert notes["matched-next-ranked"] == "not run: needs `weights`, `logits`, which the trace does not have"
    ran = {row["arm"] for row in rows if row["tokens_per_s"]}
    assert ran == {"fetch", "random", "drop", "cpu"}
    drop = next(row for row in rows if row["arm"] == "drop")
    assert drop["dropped_weight_percent"] == ""  # not known without weights, which is not zero


# ---- buddymoe


def test_admission_by_hand_and_as_a_plain_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "admission",
        "--trace",
        folder / "t.npz",
        "--hardware",
        folder / "h.toml",
        "--cache",
        "0.5",
        "--max-steps",
        30,
    ]
    text, rows, _ = call(folder, capsys, *args)
    table_is_well_formed(text, rows)
    assert [row["arm"] for row in rows] == list(admission.ARMS)
    speed = {row["arm"]: float(row["tokens_per_s"]) for row in rows}
    for each in rows:
        over = 100 * (speed[each["arm"]] / speed["fetch"] - 1)
        assert float(each["over_fetch_percent"]) == pytest.approx(over, rel=1e-4, abs=1e-3)
        assert (each["admitted"] == "") == (each["arm"] == "fetch")  # beside a shared memory `cpu` counts them, too: 0
    fields = {"trace": str(folder / "t.npz"), "hardware": str(folder / "h.toml"), "engine": "fused", "cache": 0.5}
    fields |= {"precision": "q4", "link_share": 0.7, "max_steps": 30, "miss": "cpu-admit"}
    out, _ = simulate(RunSpec.of(fields | {"set": {"cpu-admit.inserts": 2}}))
    assert speed["cpu-admit, inserts 2"] == pytest.approx(out["tokens_per_s"], rel=1e-5)
    assert (
        f"admission is best in {int(max(speed, key=speed.__getitem__).startswith('cpu-admit'))} of 1 settings" in text
    )


def test_buddymoe_stands_beside_the_published_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows, _ = call(tmp_path, capsys, "buddymoe", "--max-steps", 60, "--link", 20)
    table_is_well_formed(text, rows)
    assert len(rows) == 18 and text.count("SYNTHETIC") >= 2 and "link 20" in text and "OPEN LOOP" in text
    gains = {(row["cache"], row["arm"]): row["published_gain_percent"] for row in rows}
    # 39.67 / 34.23, 36.75 / 34.23, 31.02 / 28.6, 27.46 / 24.78
    assert float(gains["0.75", "Random, no gate"]) == pytest.approx(15.89, abs=0.01)
    assert float(gains["0.75", "Buddy, reading A, rho 3"]) == pytest.approx(7.36, abs=0.01)
    assert float(gains["0.5", "Buddy, reading B, rho 4"]) == pytest.approx(8.46, abs=0.01)
    assert float(gains["0.375", "Buddy, reading A, rho 4"]) == pytest.approx(10.82, abs=0.01)
    assert gains["0.75", "Buddy, reading A, rho 4"] == ""  # not published
    for row_ in rows:
        saved = 1e3 / float(row_["tokens_per_s"]) - float(row_["ms_per_token"])
        assert saved == pytest.approx(0, abs=1e-4)
        assert (row_["arm"] == "Original") == (float(row_["substituted_weight_percent"]) == 0)


def test_buddymoe_of_another_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows, _ = call(tmp_path, capsys, "buddymoe", "--trace", "mixtral.npz", "--max-steps", 40)
    table_is_well_formed(text, rows)
    assert "this trace is mixtral-8x7b's" in text


# ---- published

EVIDENCE = read()
# llama.cpp on two machines, six rows of grade B in one group (one of them two layouts and a prompt each), two of grade
# A, two of grade C; Ollama in ms/token; one that has no run, two that are no speed.
GROUPS = (
    ("u-7950x-4080", "llama.cpp", "qwen3-30b-a3b"),
    ("msl-091-i5", "llama.cpp", "qwen3-30b-a3b"),
    ("u-gh200-f16", "llama.cpp", "gpt-oss-20b"),
    ("mi-a5000", "Ollama", "mixtral-8x7b"),
    ("fiddler-q6000", "llama.cpp", "mixtral-8x7b"),
    ("msl-a10", "MSL cache engine", "gpt-oss-120b"),
)
FEW = [row for row in EVIDENCE if row.group in GROUPS and (row.measured_on != "msl-a10" or row.metric == HITS)]
BY_ID = {row.id: row for row in FEW}
JUDGED_GROUP = GROUPS[0]  # the one with at least four rows of grade A or B
WAYS = ("before", "one_factor", "left_out", "anchored")
_fits: dict[tuple[str, ...], Any] = {}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evidence is FEW; what is fitted to the same rows again is kept."""

    def once(rows: list[Timing], workers: int | None) -> Any:
        ids = tuple(row.id for row in rows)
        if ids not in _fits:
            _fits[ids] = effects.fitted(rows, workers)
        return _fits[ids]

    monkeypatch.setattr(published, "read", lambda: FEW)
    monkeypatch.setattr(published, "fitted", once)


Tables = dict[str, list[dict[str, str]]]


def published_of(folder: Path, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[str, list[Any], Tables]:
    """(markdown, rows of the CSV, rows of each further table by its title)."""
    text, rows, _ = call(folder, capsys, "published", "--workers", 1, *args)
    first, *more = text.split("\n## ")
    table_is_well_formed(first, rows)
    return text, rows, {part.split("\n", 1)[0]: cells(part) for part in more}


def cells(part: str) -> list[dict[str, str]]:
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")
    ]
    return [dict(zip(head, line, strict=True)) for line in lines]


def figures(errors: list[float]) -> tuple[float, float, float]:
    """(median, nine tenths, bias)."""
    return (
        float(np.median(np.abs(errors))),
        float(np.quantile(np.abs(errors), 0.9, method="inverted_cdf")),
        float(np.median(errors)),
    )


def errors_of(rows: list[Any], way: str) -> list[float]:
    return [float(row[f"{way}_percent"]) for row in rows if row[f"{way}_percent"]]


@pytest.mark.usefixtures("few")
def test_published_has_a_row_for_every_speed_that_has_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows, _ = published_of(tmp_path, capsys)
    assert {row["id"] for row in rows} == {row.id for row in usable(FEW)}
    assert len(rows) == len(FEW) - 3 == 11  # without the one that has no run and the two shares of hits
    for row_ in rows:
        timing, predicted = BY_ID[row_["id"]], float(row_["predicted"])
        assert float(row_["published"]) == timing.value and row_["unit"] == timing.metric
        assert float(row_["low"]) < predicted < float(row_["high"])
        ratio = timing.value / predicted if timing.metric == MS else predicted / timing.value
        assert float(row_["left_out_percent"]) == pytest.approx(100 * (ratio - 1), abs=0.01)
        assert row_["phase"] == ("prefill" if timing.prefill else "decode") and row_["source"] == timing.source
        assert row_["command"] == f"python -m sim.run --trace ROUTING {command(timing)}"
        said = "yes" if timing.group == JUDGED_GROUP else "no: grade C" if timing.grade == "C" else "few"
        assert row_["judged"] == said
    # of the series of llama.cpp's two layouts only the one of the GPU has three decode rows: its middle one
    assert [row["id"][-3:] for row in rows if row["anchored_percent"]] == ["/03"]


@pytest.mark.usefixtures("few")
def test_published_tables_and_lines_follow_from_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows, tables = published_of(tmp_path, capsys)
    of_machines = tables["By engine and machine"]
    assert sum(int(line["rows"]) for line in of_machines) == len(rows)
    for line in of_machines:
        mine = [row for row in rows if all(row[key] == line[key] for key in ("engine", "machine", "phase"))]
        assert len(mine) == int(line["rows"])
        median, _, bias = figures(errors_of(mine, "left_out"))
        assert line["machine left out: median %"] == f"{median:.1f}"
        assert line["judged rows"] == str(sum(row["judged"] == "yes" for row in mine))
        assert f"| {line['machine left out: median %']} | {bias:+.1f} |" in text
    for phase in ("decode", "prefill"):
        judged = [row for row in rows if row["phase"] == phase and row["judged"] == "yes"]
        for way, said in zip(WAYS, ("before any timing", "one factor", "machine left out", "two anchors"), strict=True):
            errors = errors_of(judged, way)
            if errors:
                median, most, bias = figures(errors)
                of = f"median {median:.1f} %, nine tenths within {most:.1f} %, bias {bias:+.1f} %"
                assert f"- **{phase}, {said}: {of}** ({len(errors)} judged rows of 1 groups)" in text
            else:
                assert f"**{phase}, {said}:" not in text
        held = np.mean([float(row["low"]) <= float(row["published"]) <= float(row["high"]) for row in judged])
        assert f"- {phase}: the 80 % intervals hold {100 * held:.0f} % of the judged rows" in text
    assert "prefill where the kind of link is known" not in text  # nobody says it of these
    absent = {line["why there is no such run"]: int(line["rows"]) for line in tables["Not set up"]}
    assert absent == Counter(row.not_set_up for row in FEW if row.not_set_up) and sorted(absent.values()) == [1, 2]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("flag", "name", "n", "absent"),
    [("--engine", "Ollama", 1, 0), ("--machine", "u-7950x-4080", 6, 0), ("--machine", "fiddler-q6000", 0, 1)],
)
def test_published_shows_a_part_and_fits_all(
    flag: str, name: str, n: int, absent: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown is what stands there without the flag: other rows still teach."""
    _, every, whole = published_of(tmp_path / "all", capsys)
    _, rows, tables = published_of(tmp_path / "part", capsys, flag, name)
    assert rows == [row for row in every if row[flag[2:]] == name] and len(rows) == n
    assert tables[CONSTANTS] == whole[CONSTANTS]
    assert len(tables["Not set up"]) == absent


@pytest.mark.usefixtures("few")
def test_published_writes_what_the_catalog_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows, tables = published_of(tmp_path, capsys, "--catalog", tmp_path / "catalog")
    assert sorted(path.name for path in (tmp_path / "catalog").iterdir()) == ["constants.toml", "intervals.toml"]
    written = tomllib.loads((tmp_path / "catalog/constants.toml").read_text())
    said = {(line["engine or GPU"], line["constant"]): float(line["fitted"]) for line in tables[CONSTANTS]}
    assert said == {
        (entry, field): value
        for entries in written.values()
        for entry, fields in entries.items()
        for field, value in fields.items()
    }
    assert written["engine"].keys() == {name for name in catalog.names("engine") if catalog.engine(name).dispatch}
    # an engine and a phase have an interval from four rows of grade A or B on, of all hosts and of those known alike
    intervals = tomllib.loads((tmp_path / "catalog/intervals.toml").read_text())["interval"]
    told = ("engine", "phase", "host", "rows", "machines")
    assert [[each.get(key) for key in told] for each in intervals] == [
        ["llama.cpp", "decode", None, 6, 2],
        ["llama.cpp", "decode", "nominal", 4, 1],
    ]
    factors = [
        math.log(float(row["high"]) / float(row["predicted"]))
        for row in rows
        if (row["engine"], row["phase"]) == ("llama.cpp", "decode") and row["grade"] != "C"
    ]
    assert intervals[0]["high"] == pytest.approx(math.exp(np.median(factors)), abs=0.002)
    assert intervals[0]["low"] == pytest.approx(math.exp(-np.median(factors)), abs=0.002)


def test_a_row_that_cannot_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = next(row for row in FEW if row.fields.get("hardware"))
    wrong = replace(one, fields={**one.fields, "hardware": "u-7950x-4090"})
    monkeypatch.setattr(published, "read", lambda: [wrong])
    assert main(["published", "--workers", "1", "--out", str(tmp_path / "o"), "--catalog", str(tmp_path / "c")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {wrong.id}: ") and "u-7950x-4090" in captured.err
    assert not list(tmp_path.iterdir())


# ---- what the runs of published rows are


@pytest.mark.parametrize("row", usable(EVIDENCE)[::8], ids=lambda row: row.id)
def test_the_command_of_a_row_is_its_run(row: Timing) -> None:
    words = ["--trace", "mixtral.npz", *shlex.split(command(row))]
    asked = spec_of(run_parser().parse_args(words))
    assert asked.model_dump() == RunSpec.of({"trace": "mixtral.npz", **row.fields}).model_dump()


def timing(id_: str) -> Timing:
    return next(row for row in EVIDENCE if row.id == id_)


def test_naive_offloading_is_bytes_over_rate() -> None:
    # 32 layers x 8 experts of 68.5 MB at 25.5 GB/s: 0.688 s a token; set-ups and compute take the rest
    row, runs = timing("em-a100sxm/mixtral-offloading/mixtral-8x7b/04"), Runs()
    hardware = runs.setting(row).hardware
    assert hardware.link.h2d_gb_per_s == 25.5
    least = 32 * 8 * 68.5e6 / 25.5e9
    free = catalog.engine("ideal").model_copy(update={"page_locked": True})
    assert least < runs.seconds(row, hardware, free) < least * 1.03


def test_experts_on_the_cpu_are_read_at_the_share_that_is_asked_for() -> None:
    # 58 layers x 8 experts of 26.7 MB, read at half of the host's rate instead of all
    row, runs = timing("kt-6454s-4090d/ktransformers/deepseek-v3/09"), Runs()
    setting = runs.setting(row)
    engine = setting.engine.model_copy(update={"cpu_compute_share": 1e6})
    times = [
        runs.seconds(row, setting.hardware, engine.model_copy(update={"cpu_read_share": share})) for share in (1.0, 0.5)
    ]
    assert setting.hardware.host is not None
    rate = setting.hardware.host.read_rate() * 1e9
    assert times[1] - times[0] == pytest.approx(58 * 8 * 26.7e6 / rate, rel=1e-3)


# ---- bad input


BAD = {
    "unknown experiment": (["polices"], "did you mean policies"),
    "unknown engine": (["published", "--engine", "llama.cp"], "llama.cpp"),
    "unknown machine": (["published", "--machine", "msl-a100"], "msl-a10"),
    "unknown flag": (["published", "--case", "x"], "--case"),
    "no trace": (["policies"], "--trace"),
    "missing trace": (["policies", "--trace", "mixtrall.npz"], "mixtral"),
    "unknown link": (["buddymoe", "--trace", "mixtral.npz", "--link", "pcie9"], "pcie9"),
    "unknown hardware": (["policies", "--trace", "mixtral.npz", "--hardware", "rtx409"], "rtx4090"),
    "out is a file": (["buddymoe", "--trace", "mixtral.npz", "--max-steps", "4", "--out", __file__], "out"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, hint = BAD[name]
    out = [] if "--out" in args else ["--out", str(tmp_path / "out")]
    assert main([*args, *out]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and hint in captured.err
    assert not (tmp_path / "out").exists()


def test_help_names_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ("policies",))
    assert main([]) == 2
    assert "buddymoe" in capsys.readouterr().err
