"""Many evictions over cache size: one pass equals the simulator at every capacity, rows follow from runs, the page."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import miss_curve
from analysis.curves import policies as curves
from analysis.curves.curve import Visits, curve, setting_of
from analysis.curves.policies import FLOOR, NESTED, ONE_PASS, OPTIMUM, SIMULATED, Line, default_slots, policies, rows
from analysis.curves.policy_formats import findings
from sim.policies.registry import EVICTION
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace
from traces.format import npz

FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 3\nhead_ns = 4\n"
NAMES = "lru,fifo,belady,static"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trace `t.npz` with prompts and without weights, hardware `h.toml` with fixed durations."""
    rng = np.random.default_rng(5)
    npz.write(tmp_path / "t.npz", random_trace(rng, tokens=60, layers=3, experts=9, k=3, prompt=0.4, weights=False))
    (tmp_path / "h.toml").write_text(FIXED)
    return tmp_path


def fields(folder: Path, **more: Any) -> dict[str, Any]:
    return {"trace": str(folder / "t.npz"), "hardware": str(folder / "h.toml"), **more}


def simulated(folder: Path, eviction: str, slots: int, **more: Any) -> tuple[float, int]:
    """(tokens/s, misses of decode steps) of a plain run."""
    spec = RunSpec.of(fields(folder, **more) | {"eviction": eviction, "cache": slots, "engine_as_costs": True})
    out, record = simulate(spec, full=True)
    visits = record.groups["visits"]
    return out["tokens_per_s"], int(visits["misses"][record.steps["prefill"][visits["step"]] == 0].sum())


# --- one pass --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("placement", NESTED)
@pytest.mark.parametrize("batch", [1, 3])
def test_static_in_one_pass_is_the_simulator_at_every_capacity(
    folder: Path, scope: str, placement: str, batch: int
) -> None:
    how = {"cache_scope": scope, "placement": placement, "batch": batch}
    how |= {"calibration": 0.5} if placement == "popular" else {}
    size = 27 if scope == "global" else 9
    found = policies(fields(folder, **how), "static", list(range(1, size + 1)))  # held against it, or RuntimeError
    line = found.lines[0]
    assert (line.how, len(line.misses)) == (ONE_PASS, size)
    for slots in (1, 4, size):
        assert simulated(folder, "static", slots, **how) == (line.simulated[slots], line.misses[slots - 1])
    assert placement == "empty" or line.misses[-1] == 0 < line.misses[0]


def test_static_by_hand(folder: Path) -> None:
    """Placement `first` keeps 0 .. c - 1: each want of expert e misses at all c up to e, distinct in its visit."""
    found = policies(fields(folder), "static", [2])
    trace = npz.read(folder / "t.npz")
    decode = trace.experts[~trace.prefill].reshape(-1)  # batch 1: a token is a visit of each layer, its ids distinct
    assert found.lines[0].misses.tolist() == [int((decode >= c).sum()) for c in range(1, 10)]


def test_a_miss_too_many_is_our_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(runs: Any) -> Any:
        misses, speed = curves._static(runs)
        return misses + 1, speed

    monkeypatch.setitem(curves.ONE_PASSES, "static", wrong)
    with pytest.raises(RuntimeError, match="static, 4 slots: the simulator's misses are not those of one pass"):
        policies(fields(folder), "static", [4])


def test_lru_is_its_own_curve_or_simulated_where_the_order_of_residents_is_not_known(folder: Path) -> None:
    line = policies(fields(folder), "lru", [4]).lines[0]
    alone = curve(setting_of(fields(folder)))
    assert line.how == ONE_PASS and line.misses.tolist() == alone.decode_misses.tolist()
    assert line.predicted.tolist() == alone.tokens_per_s.tolist()
    popular = {"placement": "popular", "calibration": 0.5}
    line = policies(fields(folder, **popular), "lru", [4]).lines[0]
    assert line.how == SIMULATED and line.misses.tolist() == [simulated(folder, "lru", 4, **popular)[1]]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"batch": 2, "cache_scope": "global", "as_decode": True}])
def test_rows_are_plain_runs_beside_the_floor(folder: Path, more: dict[str, Any]) -> None:
    found = policies(fields(folder, **more), NAMES, [3, 6])
    table = {(row["policy"], row["slots"]): row for row in rows(found)}
    for name in NAMES.split(","):
        for slots in (3, 6):
            row, (speed, misses) = table[name, slots], simulated(folder, name, slots, **more)
            assert (row["misses"], row["tokens_per_s"], row["tokens_by"]) == (misses, speed, "simulated")
            floor = table[FLOOR, slots]
            assert floor["misses"] <= misses and row["over_floor"] == pytest.approx(misses / floor["misses"])
            assert row["oracle"] == EVICTION[name].oracle and row["hit_rate"] == 1 - misses / found.visits.wanted
            tied = [n for n in NAMES.split(",") if n != name and table[n, slots]["misses"] == misses]
            assert row["tied_with"] == tied
    assert table[FLOOR, 3]["misses_by"] == OPTIMUM and table[FLOOR, 3]["tokens_by"] == "predicted"
    assert ("lru", 5) in table and ("fifo", 5) not in table  # one pass: every capacity


def test_with_as_many_slots_as_a_step_wants_who_keeps_all_it_fetches_ties(folder: Path) -> None:
    """After every visit its two experts fill the two slots, whoever went: the first to be fetched goes while the other
    is held, or is held itself when the second is fetched. (Of three a hit may have run and go before the last is
    fetched.)"""
    npz.write(folder / "t.npz", random_trace(np.random.default_rng(5), tokens=60, layers=3, experts=9, k=2))
    found = policies(fields(folder), "lru,fifo,lfu,random,belady", None)
    assert found.cliff == found.slots[0] == 2
    assert rows(found)[1]["tied_with"] == ["fifo", "lfu", "random", "belady"]
    line = "2 slots: lru, fifo, lfu, random and belady miss alike: one step fills them, so nothing is left to choose"
    assert line in findings(found)


def test_the_prediction_of_the_floor_by_hand() -> None:
    """100 fixed, 5 a miss, 3 less in a visit that misses: 2 visits, 3 misses: 100 + 15 - 6 = 109 ns for 2 tokens."""
    visits = Visits(None, np.zeros(2, bool), np.ones(2, np.int64), np.full(2, 3), 100, 5, 2)  # type: ignore[arg-type]
    misses, speed = curves._told(visits, [np.array([2, 1])])
    assert misses.tolist() == [3] and speed.tolist() == [pytest.approx(2 / 109e-9)]


def test_default_capacities_lie_between_a_step_and_all() -> None:
    assert default_slots(2, 8) == [2, 3, 4, 6]  # 1 is below; 2, 3, 4, 6
    assert default_slots(8, 64) == [8, 16, 24, 32, 48]
    assert default_slots(60, 64) == [60]


LACKS = (
    "needs `weights`, which t.npz does not have; python -m traces capture records it, "
    "python -m traces info FILE says what a trace has"
)


def test_all_is_the_registry_and_what_cannot_run_says_why(folder: Path) -> None:
    found = policies(fields(folder), "all", [4])
    assert [line.policy for line in found.lines] == [*(n for n in EVICTION if n not in found.left_out), FLOOR]
    assert found.left_out["window-score"] == f"window-score: {LACKS}"
    assert f"left out: window-score: {LACKS}" in findings(found)


def test_no_oracle_is_the_best(folder: Path) -> None:
    found = policies(fields(folder), "belady,fifo", [5])
    assert [line.policy for line in found.real] == ["fifo"]
    assert any("fewest misses without a look ahead: fifo" in line for line in findings(found))


def test_a_floor_of_zero_is_no_divisor(folder: Path) -> None:
    found = policies(fields(folder), "fifo", [9])
    assert [row["over_floor"] for row in rows(found)] == [None, None] and found.lines[-1].misses.tolist() == [0]


# --- the command -----------------------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], folder: Path, *flags: Any) -> str:
    assert miss_curve.main([str(folder / "t.npz"), "--hardware", str(folder / "h.toml"), *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_the_formats_say_the_same(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    flags = ["--eviction", NAMES, "--slots", "6,4"]
    whole = json.loads(call(capsys, folder, *flags, "--format", "json"))
    lines = list(csv.DictReader(io.StringIO(call(capsys, folder, *flags, "--format", "csv"))))
    assert len(lines) == len(whole["rows"]) == 2 * 9 + 2 * 2 + 2 and whole["slots"] == [4, 6]
    for line, row in zip(lines, whole["rows"], strict=True):
        assert (line["policy"], int(line["slots"]), int(line["misses"])) == tuple(
            row[key] for key in ("policy", "slots", "misses")
        )
        assert line["tied_with"].split() == row["tied_with"]
    text = call(capsys, folder, *flags)
    assert "SYNTHETIC" in text and "ORACLE: belady" in text and "! floor:" in text
    assert [line.split()[:2] for line in text.splitlines()[-11:]].count([]) == 1  # one block for each capacity
    assert whole["policies"]["lru"] == {"how": ONE_PASS, "oracle": False} and "eviction" not in whole["spec"]


def test_a_stated_interval_stands_beside_the_speed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "e.toml").write_text('like = "fused"\ninterval = [0.5, 2.0]\n')
    flags: list[Any] = ["--engine", folder / "e.toml"]
    flags += ["--max-steps", 20, "--eviction", "fifo", "--slots", 4, "--format", "json"]
    assert miss_curve.main(["mixtral.npz", *map(str, flags)]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["tokens_per_s_low"], row["tokens_per_s_high"]) == (row["tokens_per_s"] / 2, row["tokens_per_s"] * 2)


def test_the_page_asks_nobody(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for name in ("a.html", "b.html"):
        call(capsys, folder, "--eviction", NAMES, "--slots", "3,6", "--out", folder / name)
    text = (folder / "a.html").read_text()
    assert text == (folder / "b.html").read_text()
    assert all(word in text for word in ("SYNTHETIC", "GB of slots", "fifo", "default-src 'none'"))
    assert "<script src" not in text and "<link" not in text and len(text) < 8_000_000


def test_the_drawn_lines_are_the_rows(folder: Path) -> None:
    from analysis.pages.policy_curve import figure

    found = policies(fields(folder), NAMES, [3, 6])
    table = rows(found)
    drawn = figure(found, table)
    hits = {t.name: t for t in drawn.data if t.mode == "lines" and t.yaxis == "y2"}
    assert list(hits) == [*NAMES.replace("belady", "belady (oracle)").split(","), FLOOR]
    for name, line in hits.items():
        name = name.removesuffix(" (oracle)")
        assert [*line.y] == [100 * row["hit_rate"] for row in table if row["policy"] == name]
    assert [*drawn.layout.xaxis3.tickvals] == [3, 6, 9] and drawn.layout.xaxis3.matches == "x"
    marks = [t for t in drawn.data if t.mode == "markers" and t.yaxis == "y" and t.xaxis == "x"]
    assert [t.name for t in drawn.data if t.showlegend] == list(hits)
    assert [[*t.x] for t in marks] == 5 * [[3, 6]]


def test_the_default_is_lru_alone(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert call(capsys, folder, "--eviction", "lru") == call(capsys, folder)
    assert "floor" in call(capsys, folder, "--slots", "4") and "floor" not in call(capsys, folder)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    for flags, wrong in (
        (["--eviction", "lru,fifi"], "did you mean fifo"),
        (["--eviction", ""], "eviction: "),
        (["--eviction", "fifo", "--slots", "4,x"], "slots: 4,x: must be slots such as 4,8"),
        (["--eviction", "fifo", "--slots", "10"], "slots: 10: must lie in 1 .. 9"),
        (["--eviction", "fifo", "--check", "4"], "check: 4: is for lru alone"),
        (["--eviction", "fifo,window-score"], "window-score: needs `weights`"),
        (["--calibration", "0.5"], "calibration: 0.5: lru alone has no use"),
        (["--eviction", "static", "--placement", "popular"], "needs --calibration"),
        (["--eviction", "static", "--placement", "profile"], "must be one of first, random, empty, popular"),
    ):
        assert miss_curve.main([str(folder / "t.npz"), "--hardware", str(folder / "h.toml"), *flags]) == 2
        err = capsys.readouterr().err
        assert wrong in err and err.startswith("error: ") and err.count("\n") == 1, (flags, err)


def test_a_line_knows_its_own_capacities_alone() -> None:
    line = Line("fifo", SIMULATED, False, np.array([2, 5]), np.array([9, 4]), np.ones(2), {})
    assert (line.at(2), line.at(5), line.at(3)) == (9, 4, None)
