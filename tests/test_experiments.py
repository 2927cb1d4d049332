"""The experiments' commands: well-formed tables, files with their command, and terms that never saw what
they predict.
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import SpecError
from sim.experiments import admission
from sim.experiments.__main__ import main
from sim.experiments.cases import Figure, Fit, TraceShape, published, run_spec
from sim.experiments.fitting import anchors_for, fit_terms, least_squares
from sim.experiments.policies import ARMS
from sim.experiments.published import Runner, row
from sim.policies.registry import MISS
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace
from traces.format import npz

SHARED = Path(__file__).resolve().parents[2] / "shared" / "published.json"
FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n"
DATA = published()


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


def toy(name: str, figure: float, **more: Any) -> Figure:
    fields: dict[str, Any] = {
        "id": "toy",
        "source": "-",
        "metric": "s/token",
        "trace": TraceShape(),
        "spec": {},
    }
    return Figure(name=name, published=figure, fit="toy", **{"group": name, "anchor": True, **fields, **more})


def straight(figure: Figure, terms: Mapping[str, float]) -> float:
    """One second, and one more per ms of layer time."""
    return 1 + terms["layer_ns"] / 1e6


FIT = Fit(terms=("layer_ns",), source="-")


def test_leaving_one_out_by_hand() -> None:
    # time 1 + x, with x in ms. a was measured at 2 s, b at 4 s, c at 3 s.
    a, b, c = toy("a", 2), toy("b", 4), toy("c", 3)
    others = anchors_for(c, [a, b, c])
    assert others == [a, b]
    # without c: least ((1 + x) / 2 - 1)^2 + ((1 + x) / 4 - 1)^2: with u = 1 + x, (u / 2 - 1) / 2 + (u / 4 -
    # 1) / 4 = 0,
    # 5 u / 16 = 3 / 4, u = 2.4. So x = 1.4, and c is predicted at 2.4 s, 20 % too fast.
    terms = fit_terms(FIT, others, straight)
    assert terms["layer_ns"] == pytest.approx(1.4e6)
    assert straight(c, terms) / c.published - 1 == pytest.approx(-0.2)
    # without b: 2 and 3 s: (u / 2 - 1) / 2 + (u / 3 - 1) / 3 = 0, 13 u / 36 = 5 / 6, u = 30 / 13
    assert fit_terms(FIT, anchors_for(b, [a, b, c]), straight)["layer_ns"] == pytest.approx((30 / 13 - 1) * 1e6)


def test_a_whole_group_is_left_out_and_figures_that_are_no_anchors_never_count() -> None:
    a, b = toy("a", 2, group="machine"), toy("b", 4, group="machine")
    c, d = toy("c", 3), toy("d", 9, anchor=False)
    assert anchors_for(a, [a, b, c, d]) == [c]
    assert anchors_for(d, [a, b, c, d]) == [a, b, c]
    with pytest.raises(SpecError, match="no figure is left"):
        fit_terms(FIT, [], straight)


def test_a_term_stops_at_its_least_value() -> None:
    assert fit_terms(FIT, [toy("a", 0.5)], straight) == {"layer_ns": 0.0}


def test_least_squares_meets_two_terms_and_a_curve() -> None:
    # 3 x + y = 5 and x - y = -1: x = 1, y = 2; x^2 = 2
    two = np.array([[3.0, 1.0], [1.0, -1.0]])
    zero, ones = np.zeros(2), np.ones(2)
    found = least_squares(lambda v: two @ v - np.array([5.0, -1.0]), zero, ones, zero)
    assert found == pytest.approx([1, 2])
    root = least_squares(lambda v: v * v - 2, np.array([1.0]), np.array([1e-3]), np.zeros(1))
    assert root == pytest.approx([2**0.5], rel=1e-3)


def test_a_prediction_does_not_depend_on_what_it_predicts(tmp_path: Path) -> None:
    name = "eliseev-mazur-table2, no LRU, no preload"
    figure = next(f for f in DATA.figures if f.id == name and f.name == "T4 2-bit")
    lied = figure.model_copy(update={"published": figure.published / 3})
    other = DATA.model_copy(update={"figures": tuple(lied if f is figure else f for f in DATA.figures)})
    honest, false = (row(Runner(tmp_path, 4), data, f) for data, f in ((DATA, figure), (other, lied)))
    assert honest["predicted"] == false["predicted"]
    elsewhere = next(f for f in DATA.figures if f.id == name and f.name == "RTX 3060 2-bit")
    seen, misled = (row(Runner(tmp_path, 4), data, elsewhere)["predicted"] for data in (DATA, other))
    assert seen > misled  # a slower anchor makes the term larger where it may be looked at


def test_naive_offloading_is_bytes_over_rate(tmp_path: Path) -> None:
    # 32 layers x 8 experts of 68.5 MB at 25.5 GB/s: 0.688 s a token, 1.454 tokens/s; set-ups and compute
    # take the rest
    figure = next(f for f in DATA.figures if f.id.endswith("naive") and f.name == "A100-SXM 2-bit")
    rate = Runner(tmp_path, 3).value(figure, {})
    assert 0.98 * 25.5e9 / (256 * 68.5e6) < rate < 25.5e9 / (256 * 68.5e6)


def test_experts_on_the_cpu_are_read_at_the_share_that_is_asked_for(tmp_path: Path) -> None:
    # 58 layers x 8 experts of 26.7 MB, read at half of 307.2 GB/s instead of all: 58 x 8 x 26.7e6 / 307.2
    # ns more
    figure = next(f for f in DATA.figures if f.name == "1 socket, 8 experts")
    runner = Runner(tmp_path, 4)
    times = [runner.seconds(figure, {"layer_ns": 0.0, "host_read_share": inverse}) for inverse in (1.0, 2.0)]
    assert times[1] - times[0] == pytest.approx(58 * 8 * 26.7e6 / 307.2e9, rel=1e-3)


def test_published_rows_and_medians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows, _ = call(
        tmp_path, capsys, "published", "--case", "hybrimoe-hits", "ktransformers-dsv3", "--max-steps", 200
    )
    table_is_well_formed(text, rows)
    assert len(rows) == 7
    for row_ in rows:
        error = 100 * (float(row_["predicted"]) / float(row_["published"]) - 1)
        assert float(row_["error_percent"]) == pytest.approx(error, abs=1e-3)
        assert row_["assumed"] and row_["source"] and row_["settings"]
    judged = [abs(float(row["error_percent"])) for row in rows if row["judged"] == "yes"]
    assert len(judged) == 6  # the figure that the preset was fitted to is shown and not judged
    assert f"all judged figures: {np.median(judged):.1f} %** (6 figures)" in text
    assert all(f"not set up: {name}: {why}" in text for name, why in DATA.skipped.items())


def test_every_figure_can_be_set_up_and_every_fit_has_anchors(tmp_path: Path) -> None:
    assert len(DATA.figures) == len({(f.id, f.name) for f in DATA.figures})
    for figure in DATA.figures:
        run_spec(figure.model_copy(update={"trace": figure.trace.model_copy(update={"requests": 1})}), {}, tmp_path)
        assert figure.assumed and figure.source
        assert figure.fit is None or (anchors_for(figure, DATA.figures) and figure.metric != "hit %")
        assert figure.fit is None or figure.fit in DATA.fits


@pytest.mark.skipif(not SHARED.exists(), reason="the collected figures are not beside this checkout")
def test_figures_are_those_that_were_collected() -> None:
    numbers: dict[str, set[float]] = {}

    def collect(value: Any, into: set[float]) -> None:
        if isinstance(value, (int, float)):
            into.add(float(value))
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(part, into)

    for case in json.loads(SHARED.read_text())["cases"]:
        collect(case, numbers.setdefault(case["id"], set()))
    for figure in DATA.figures:
        assert figure.published in numbers[figure.id.split(",")[0]], f"{figure.id}: {figure.name}"


# ---- bad input


BAD = {
    "unknown experiment": (["polices"], "did you mean policies"),
    "unknown case": (["published", "--case", "hybrimo-hits"], "hybrimoe-hits"),
    "unknown flag": (["published", "--cases", "x"], "--cases"),
    "no trace": (["policies"], "--trace"),
    "missing trace": (["policies", "--trace", "mixtrall.npz"], "mixtral"),
    "unknown link": (["buddymoe", "--trace", "mixtral.npz", "--link", "pcie9"], "pcie9"),
    "unknown hardware": (["policies", "--trace", "mixtral.npz", "--hardware", "rtx409"], "rtx4090"),
    "no token generated": (["published", "--case", "fiddler-v3, Fiddler", "--max-steps", "1"], "max_steps"),
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
