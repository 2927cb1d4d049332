"""Comparison: differences, paired bootstrap, Pareto marks and notes, worked by hand; formats; what is refused."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.compare import main
from analysis.comparing import formats
from analysis.comparing.comparison import compare, pareto_best
from analysis.comparing.formats import FORMATS
from analysis.comparing.pairing import paired, why_not
from analysis.reading.load import load
from analysis.reading.run import Run
from sim.outcome.marks import START
from sim.outcome.per_request import PerRequest, per_request
from sim.sweeps.rows import COLUMNS
from tests.runs_by_hand import made, record, simulated, summary, written
from traces.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return simulated(tmp_path_factory.mktemp("runs"))


def call(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


# --- per request ---


def test_a_requests_time_is_its_share_of_its_steps() -> None:
    # prefill 100, decode 100 + 200; prefill 50, decode 100. Tokens are decode steps: 2 in 300 ns, 1 in 100 ns.
    # TPOT counts from the end of the prompt: (400 - 100) / 2 = 150 ns and (550 - 450) / 1 = 100 ns.
    found = per_request(record([[100, 200], [100]], [100, 50]))
    assert found.tokens.tolist() == [2, 1]
    assert found.time_ns.tolist() == [300, 100]
    assert found.tpot_ms.tolist() == [150e-6, 100e-6]


def test_requests_that_share_a_step_share_its_time() -> None:
    one = record([[100, 200]])
    # a second request in both steps: 2 rows each, so each request has 50 + 100 ns
    both = {name: np.repeat(column, 2) for name, column in one.requests.items()} | {"request": np.array([0, 1])}
    shared = replace(one, steps=one.steps | {"rows": np.array([2, 2])}, requests=both)
    assert per_request(shared).time_ns.tolist() == [150, 150]


def test_the_warm_up_counts_for_nothing() -> None:
    # steps 100, 200 | 100 with two warm-up steps: the first request has no counted step, and TPOT of neither is whole
    found = per_request(record([[100, 200], [100]], warmup=2))
    assert found.tokens.tolist() == [0, 1]
    assert found.time_ns.tolist() == [0, 100]
    assert np.isnan(found.tpot_ms).all()


def test_requests_add_up_to_the_summary(runs: dict[str, Path]) -> None:
    for run in load(runs.values()):
        assert run.record is not None
        found = per_request(run.record)
        assert found.tokens.sum() == run.summary["tokens"]
        assert found.time_ns.sum() == pytest.approx(run.summary["decode_ns"], rel=1e-12)
        assert np.nanmean(found.tpot_ms) == pytest.approx(run.summary["tpot_ms"]["mean"], rel=1e-12)


# --- differences and intervals ---


def test_differences_by_hand() -> None:
    # base: 4 tokens in 400 ns; fast: 4 tokens in 200 ns: twice the tokens/s, 50 ns less per token
    base = made("base", record([[100, 100], [100, 100]], [10, 10]))
    fast = made("fast", record([[50, 50], [50, 50]], [10, 10]))
    found = compare([base, fast])
    row = found.rows[1]
    assert found.notes == ["FEW requests: intervals over 2 requests say little; 8 or more are wanted"]
    assert row["tokens_per_s"] == pytest.approx(4 / 200e-9) and row["tpot_ms"] == pytest.approx(50e-6)
    assert row["tokens_per_s_change"] == pytest.approx(1.0)
    assert row["tpot_ms_change"] == pytest.approx(-50e-6)
    assert row["paired_requests"] == 2
    # every request is twice as fast, so every draw is: the interval is a point
    assert (row["tokens_per_s_change_low"], row["tokens_per_s_change_high"]) == pytest.approx((1.0, 1.0))
    assert (row["tpot_ms_change_low"], row["tpot_ms_change_high"]) == pytest.approx((-50e-6, -50e-6))


def test_the_shares_and_changes_of_a_row_by_hand() -> None:
    # of 1000 ns 300 stall and 200 wait for the host; 30 of 40 wanted are hits; 2 + 1 GB cross, 4 in the baseline
    parts = {"dense": 400, "decide": 0, "experts": 100, "stall": 300, "cpu_wait": 200, "head": 0}
    sent = {"demand": 2_000_000_000, "prefetch": 600_000_000, "background": 400_000_000}
    lost = {"substituted_weight": 0.02, "dropped_weight": 0.01}
    known = {"time_ns": 1000, "breakdown_ns": parts, "hits": 30, "wanted": 40, "h2d_bytes": sent, "link_busy_ns": 600}
    base = made("base", h2d_bytes={"demand": 4_000_000_000, "prefetch": 0, "background": 0})
    row = compare([base, made("run", **known, quality=lost)]).rows[1]
    shares = {name: row[name] for name in ("time_s", "stall_share", "hit_rate", "link_busy_share", "h2d_gb")}
    assert shares == {"time_s": 1e-6, "stall_share": 0.5, "hit_rate": 0.75, "link_busy_share": 0.6, "h2d_gb": 3.0}
    assert row["h2d_change"] == -0.25
    assert (row["substituted_weight"], row["dropped_weight"], row["lost_weight"]) == (0.02, 0.01, pytest.approx(0.03))


def test_the_interval_of_two_requests_by_hand() -> None:
    # request 0 is 4 times as fast, request 1 as fast as before. Drawn with replacement: (0, 0) gives 4, (1, 1) gives 1,
    # the two mixed 200 / 125 = 1.6; each extreme comes up in a quarter of the draws, so 95 % reach from 1 to 4.
    base, other = made("base", record([[100], [100]])), made("other", record([[25], [100]]))
    row = compare([base, other]).rows[1]
    assert row["tokens_per_s_change"] == pytest.approx(0.6)
    assert row["tokens_per_s_change_low"] == pytest.approx(0.0)
    assert row["tokens_per_s_change_high"] == pytest.approx(3.0)


def test_the_draws_are_the_seeds_alone() -> None:
    rng = np.random.default_rng(1)
    base = made("base", record([[int(x)] for x in rng.integers(80, 120, 30)], [10] * 30))
    other = made("other", record([[int(x)] for x in rng.integers(60, 120, 30)], [10] * 30))
    first, again, later = (compare([base, other], seed=seed).rows[1] for seed in (0, 0, 1))
    assert first == again
    assert first["tokens_per_s_change_low"] != later["tokens_per_s_change_low"]
    for name in ("tokens_per_s_change", "tpot_ms_change"):
        assert first[f"{name}_low"] < first[name] < first[f"{name}_high"]


def test_a_real_difference_is_outside_its_interval_around_nothing(runs: dict[str, Path]) -> None:
    found = compare(load([runs["lru"], runs["wide"], runs["lru"]]))
    wide, same = found.rows[1:]
    assert 0 < wide["tokens_per_s_change_low"] < wide["tokens_per_s_change"] < wide["tokens_per_s_change_high"]
    assert same["tokens_per_s_change_low"] == same["tokens_per_s_change_high"] == 0.0
    assert same["run"] == "lru (2)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trace": {"hash": "b" * 64}}, "another trace"),
        ({"spec": {"calibration": 0.3}}, "other requests"),
        ({"spec": {"as_decode": True}}, "other requests"),
    ],
)
def test_what_is_not_paired(change: dict[str, Any], reason: str) -> None:
    base, other = made("base", record([[100]])), made("other", record([[50]]), **change)
    assert reason in str(why_not(other, base))
    found = compare([base, other])
    assert found.rows[1]["tokens_per_s_change"] is None and found.rows[1]["h2d_change"] is None
    assert reason in found.rows[1]["not_paired"] and found.rows[0]["not_paired"] is None
    assert any(note.startswith("MIXED") for note in found.notes)


def test_the_same_calibration_file_judges_the_same_requests() -> None:
    base = made("base", record([[100]]))
    assert why_not(made("other", record([[50]]), spec={"calibration": "c.npz"}), base) is None
    assert why_not(made("other", None), base) == why_not(base, made("other", None)) == "no record.npz"


def test_only_requests_with_the_same_tokens_are_paired() -> None:
    found = compare([made("a", record([[10], [10, 10]])), made("b", record([[5], [5]]))])
    assert found.rows[1]["paired_requests"] == 1
    assert any("not over all" in note for note in found.notes)
    nothing = compare([made("a", record([[10]])), made("b", record([[5, 5]]))]).rows[1]
    assert (nothing["paired_requests"], nothing["not_paired"]) == (None, "no request with the same tokens in both")


def requests(ids: list[int], tokens: list[int], time_ns: list[float], tpot_ms: list[float]) -> PerRequest:
    return PerRequest(np.array(ids), np.array(tokens), np.array(time_ns), np.array(tpot_ms))


def test_pairs_by_hand() -> None:
    # 0 and 1 are in both with as many tokens; 2 has none; 3 gave fewer; 4 and 5 are in one run alone
    run = requests([0, 1, 2, 3, 4], [2, 1, 0, 3, 1], [10.0, 5.0, 0.0, 9.0, 1.0], [1.0, np.nan, np.nan, 3.0, 1.0])
    base = requests([5, 3, 2, 1, 0], [1, 4, 0, 1, 2], [1.0, 9.0, 0.0, 12.0, 18.0], [1.0, 3.0, np.nan, 2.0, 2.5])
    found = paired(run, base)
    assert (found.n, found.ratio) == (2, (18 + 12) / (10 + 5))
    # drawn twice, 0 is 18 / 10 times as fast and 1 12 / 5: both come up in a quarter of the draws
    assert found.ratio_interval == pytest.approx((1.8, 2.4))
    assert (found.n_tpot, found.tpot_ms, found.tpot_interval) == (1, -1.5, None)  # 1 has a TPOT in one run alone


def test_one_request_has_no_interval_and_no_time_no_ratio() -> None:
    one = requests([0], [2], [10.0], [1.0])
    assert paired(one, one).ratio == 1 and paired(one, one).ratio_interval is None
    still = requests([0, 1], [2, 2], [0.0, 0.0], [0.0, 0.0])
    found = paired(still, requests([0, 1], [2, 2], [5.0, 5.0], [1.0, 2.0]))
    assert (found.n, found.ratio, found.ratio_interval, found.tpot_ms) == (2, None, None, -1.5)
    assert found.tpot_interval == pytest.approx((-2, -1))


@pytest.mark.parametrize("n", [7, 8])
def test_fewer_than_eight_requests_are_few(n: int) -> None:
    found = compare([made("a", record([[10]] * n)), made("b", record([[5]] * n))])
    few = [note for note in found.notes if note.startswith("FEW")]
    assert few == (["FEW requests: intervals over 7 requests say little; 8 or more are wanted"] if n < 8 else [])


# --- Pareto ---


def standing(name: str, speed: float | None, lost: float | None, **changes: Any) -> Run:
    quality = {"substituted_weight": lost, "dropped_weight": None if lost is None else 0.0}
    return made(name, None, tokens_per_s=speed, quality=quality, **changes)


def test_pareto_by_hand() -> None:
    # a is lossless; b faster but lossier; c is beaten by b in both; d ties with b; e is slower than a at no loss
    runs = [standing(*x) for x in (("a", 1.0, 0.0), ("b", 3.0, 0.2), ("c", 2.0, 0.3), ("d", 3.0, 0.2), ("e", 0.5, 0.0))]
    assert pareto_best(runs) == [True, True, False, True, False]


def test_pareto_is_what_no_other_beats() -> None:
    """Against the definition, pair by pair."""
    rng = np.random.default_rng(2)
    points = rng.integers(0, 6, (60, 2)) / 5
    runs = [standing(f"r{i}", float(x), float(y)) for i, (x, y) in enumerate(points)]
    beaten = [any((q[0] >= p[0] and q[1] <= p[1]) and tuple(q) != tuple(p) for q in points) for p in points]
    assert pareto_best(runs) == [not b for b in beaten]


def test_who_stands_apart_from_the_front() -> None:
    runs = [
        standing("slow", 1.0, 0.0),
        standing("oracle", 9.0, 0.0, spec={"eviction": "belady"}),
        standing("unknown", 9.0, None),
        standing("no tokens", None, 0.0),
        standing("reranked", 9.0, 0.0, spec={"rerank": "cache-prior"}),
        standing("low copies", 9.0, 0.0, low=3),
        standing("elsewhere", 9.0, 0.0, spec={"hardware": "h100"}),
        standing("others judged", 9.0, 0.0, spec={"calibration": 0.3}),
        standing("on a device", 9.0, 0.0, machine="torch"),
    ]
    assert pareto_best(runs) == [True, False, False, False, False, False, True, True, True]


# --- what is said ---


def test_marks_and_notes_are_loud() -> None:
    runs = [
        made("real"),
        made("made up", trace={"real": False}),
        made("lossy", substituted=2),
        made("oracle", spec={"prefetch": "oracle"}),
        made("big", memory={"slots": 1, "fits": False}),
        made("device", machine="torch", notes=["SCALED: the model's widths times 0.1"]),
        made("elsewhere", spec={"hardware": "h100"}),
    ]
    found = compare(runs)
    marks = [row["marks"] for row in found.rows]
    assert marks == [[], ["synthetic"], ["open-loop"], ["oracle"], ["does not fit"], ["measured"], []]
    text = "\n".join(found.notes)
    assert "SCALED: the model's widths times 0.1: device" in found.notes
    for words in (
        "SYNTHETIC",
        "OPEN LOOP",
        "ORACLE",
        "DOES NOT FIT",
        "MIXED machines",
        "MIXED hardware: h.toml and h100",
    ):
        assert words in text, words


def test_settings_that_differ_have_columns() -> None:
    runs = [made("a", spec={"miss": "buddy", "set": {"buddy.rho": 3}}), made("b", spec={"set": {"buddy.rho": 4}})]
    found = compare(runs)
    assert found.differs == ["miss", "buddy.rho"]
    assert [row["settings"]["buddy.rho"] for row in found.rows] == [3, 4]


@pytest.mark.parametrize(("baseline", "name"), [("b", "b"), ("1", "b"), (2, "7"), ("7", "7"), ("0", "a")])
def test_a_baseline_is_a_name_or_a_place(baseline: str | int, name: str) -> None:
    assert compare([made("a"), made("b"), made("7")], baseline).baseline == name


def test_an_unknown_baseline_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'budy' is no run; did you mean buddy"):
        compare([made("buddy"), made("lru")], "budy")
    with pytest.raises(UserError, match="0 to 1"):
        compare([made("buddy"), made("lru")], "2")


# --- formats ---


def test_every_format_tells_the_same(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [runs[name] for name in ("lru", "drop", "wide")]
    told = json.loads(call(capsys, *paths, "--format", "json"))
    rows = list(csv.DictReader(io.StringIO(call(capsys, *paths, "--format", "csv"))))
    for row, flat in zip(told["rows"], rows, strict=True):
        assert flat["run"] == row["run"] and flat["baseline"] == "lru"
        assert float(flat["tokens_per_s"]) == row["tokens_per_s"]
        assert flat["pareto_best"] == str(row["pareto_best"]).lower()
    assert rows[1]["marks"] == "synthetic open-loop" and rows[1]["miss"] == "drop"
    text = call(capsys, *paths)
    assert text.startswith(told["answer"] + "\n")
    header, *lines = [line for line in text.split("\n\n")[1].splitlines() if not line.startswith("!")]
    assert all(
        line[header.index("run") :].startswith(name) for line, name in zip(lines, ("lru", "drop", "wide"), strict=True)
    )
    assert "SYNTHETIC" in text and "OPEN LOOP" in text and "bootstrap" in text and "seed 0" in text
    marked = call(capsys, *paths, "--format", "markdown").splitlines()
    assert marked[0].replace("\\", "") == told["answer"] and marked[1] == ""
    table = [line for line in marked if line.startswith("|")]
    assert len(table) == 5 and len({line.count("|") for line in table}) == 1


def test_runs_of_another_kind_have_no_change_in_the_table() -> None:
    runs = [made("a", None, tokens_per_s=1.0), made("b", None, tokens_per_s=2.0)]
    other = made("c", None, tokens_per_s=4.0, spec={"hardware": "h100"})
    titles, rows = formats.cells(compare([*runs, other]))
    assert [row[titles.index("against a")] for row in rows] == ["+0.0%", "+100.0%", "-"]
    assert any("of its kind alone" in line for line in formats.remarks(compare([*runs, other])))
    assert not any("of its kind alone" in line for line in formats.remarks(compare(runs)))


def test_equal_input_gives_equal_bytes(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS:
        first, again = (call(capsys, runs["lru"], runs["drop"], "--format", name) for _ in range(2))
        assert first == again


def test_names_cannot_break_a_format() -> None:
    hostile = "=1+1|<script>alert(1)</script>\n\x1b[31m`x`"
    found = compare([made("base"), made(hostile)])
    for name, show in FORMATS.items():
        assert "\x1b" not in show(found), name
    assert "\\|" in FORMATS["markdown"](found) and "<script>" not in FORMATS["markdown"](found)
    assert [row["run"][0] for row in csv.DictReader(io.StringIO(FORMATS["csv"](found)))] == ["b", "'"]
    assert "<script" not in FORMATS["svg"](found)
    ElementTree.fromstring(FORMATS["svg"](found))


def test_the_drawing_is_small_and_says_what_it_shows(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, *(runs[name] for name in ("lru", "drop", "wide")), "--format", "svg")
    root = ElementTree.fromstring(text)
    bars = [node for node in root.iter() if node.tag.endswith("rect")]
    widths = [float(bar.attrib["width"]) for bar in bars]
    speeds = [row.summary["tokens_per_s"] for row in load([runs[name] for name in ("lru", "drop", "wide")])]
    assert [w / max(widths) for w in widths] == pytest.approx([s / max(speeds) for s in speeds], abs=0.01)
    assert "SYNTHETIC" in text and len(text) < 20_000


def test_the_readmes_figure_is_there() -> None:
    path = Path(__file__).parent.parent / "docs" / "compare.svg"
    assert path.stat().st_size < 200_000
    text = "".join(ElementTree.parse(path).getroot().itertext())
    assert "tokens/s" in text and "SYNTHETIC" in text


# --- reading ---


def test_names_tell_folders_apart(tmp_path: Path) -> None:
    for place in ("a/x", "b/x", "c"):
        written(tmp_path / place, summary())
    assert [run.name for run in load([tmp_path / "a/x", tmp_path / "b/x", tmp_path / "c"])] == ["a/x", "b/x", "c"]
    assert load([tmp_path / "c" / "summary.json"])[0].name == "c"


def test_rows_of_a_sweep_are_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    every = dict.fromkeys(COLUMNS)  # a sweep has a column for everything that any run may say
    rows = [every | flat(json.loads((runs[name] / "summary.json").read_text())) for name in ("lru", "drop")]
    rows.append({name: None for name in rows[0]} | {"error": "no such trace"})
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "results.parquet")
    assert len(load([tmp_path])) == 2
    found, direct = compare(load([tmp_path / "results.parquet"])), compare(load([runs["lru"], runs["drop"]]))
    assert [row["run"] for row in found.rows] == ["fetch", "drop"]
    for row, right in zip(found.rows, direct.rows, strict=True):
        assert {k: row[k] for k in ("tokens_per_s", "hit_rate", "h2d_gb", "lost_weight", "pareto_best", "marks")} == {
            k: right[k] for k in ("tokens_per_s", "hit_rate", "h2d_gb", "lost_weight", "pareto_best", "marks")
        }


def test_numbers_of_a_sweeps_rows_say_what_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    row = dict.fromkeys(COLUMNS) | flat(json.loads((runs["lru"] / "summary.json").read_text()))
    key = next(name for name in row if name in ("cache", "spec.cache"))
    rows = [row | {key: "2", "set": '{"lru.tau": 0.5}'}, row | {key: "0.5"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "results.parquet")
    assert [run.name.split()[:2] for run in load([tmp_path])] == [["cache", "2"], ["cache", "0.5"]]


BY_RULES: dict[str, Any] = {
    "slots_wanted": 100, "streamed": 40, "remote": 0, "deferred": 5, "cpu": 25, "link_transfers": 7,
    "admission": {"admitted": 6, "replaced": 4, "rejected": 3}, "stages": {"copies": 30, "unwanted": 12, "most": 8},
    "host": {"experts": 9, "ns": 50}, "remote_reads": {"experts": 0, "ns": 0},
    "h2d_bytes": {"demand": 5, "prefetch": 0, "background": 0, "admission": 3, "stream": 2},
    "link_busy_ns": 40, "link_busy_ns_by_cause":
        {"demand": 20, "prefetch": 0, "background": 0, "admission": 12, "stream": 8},
}  # fmt: skip


def test_what_is_done_on_a_miss_stands_beside_runs_that_do_nothing_of_it() -> None:
    """200 ns, of which the host works 50; 100 entries wanted, 40 of them streamed, 25 on the CPU, of these 5 deferred;
    a run that does nothing of the kind has nothing there, and a comparison of such runs has no such columns."""
    plain, more = made("plain"), made("more", **BY_RULES)
    rows = compare([plain, more]).rows
    said = {"streamed_share": 0.4, "remote_share": 0.0, "deferred_share": 0.05, "cpu_share": 0.25, "host_share": 0.25}
    said |= {"admitted": 6, "replaced": 4, "rejected": 3, "staged_copies": 30, "staged_unwanted": 12, "staged_most": 8}
    said |= {"link_transfers": 7, "host_experts": 9, "h2d_gb_stream": 2e-9, "link_busy_share_admission": 0.06}
    assert {key: rows[1][key] for key in said} == said
    assert {rows[0][key] for key in said} == {None}
    assert rows[1]["h2d_gb"] == 10e-9, "all causes"
    titles, (_, last) = formats.cells(compare([plain, more]))
    shown = dict(zip(titles, last, strict=True))
    cells = {"streamed": "40.0%", "admitted": "6", "host busy": "25.0%", "deferred": "5.0%"}
    assert {title: shown[title] for title in cells} == cells
    assert "read remotely" not in shown, "nobody does"
    old = compare([plain, plain])
    assert not {*said} & {*old.rows[0]} and "streamed" not in formats.cells(old)[0]


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A summary as a sweep keeps it: `outer.inner` columns, no lists, parameters as JSON, mixed fields as text."""
    out: dict[str, Any] = {"error": None} if not prefix else {}
    for key, inner in value.items():
        if key in ("set", "policy_files"):
            out[prefix + key] = json.dumps(inner)
        elif key in ("cache", "calibration"):
            out[prefix + key] = None if inner is None else str(inner)
        elif key == "notes":
            out[key] = " | ".join(inner)
        elif key == "machine":
            out["spec.machine"] = inner
        elif isinstance(inner, dict):
            out |= flat(inner, f"{prefix}{key}.")
        elif not isinstance(inner, list):
            out[prefix + key] = inner
    return out


# --- what is refused ---


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrites summary.json with something wrong in it."""

    def spoil(folder: Path) -> None:
        value = json.loads((folder / "summary.json").read_text())
        change(value)
        (folder / "summary.json").write_text(json.dumps(value))

    return spoil


def replaced(name: str, text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(text) and None


def of_version(folder: Path) -> None:
    """The record says that it has another version."""
    with np.load(folder / "record.npz") as archive:
        members = dict(archive)
    meta = json.loads(str(members["meta"])) | {"record_version": 99}
    np.savez(folder / "record.npz", **(members | {"meta": np.array(json.dumps(meta))}))


def shifted(column: str, value: int) -> Callable[[Path], None]:
    """One value of the record points nowhere."""

    def spoil(folder: Path) -> None:
        with np.load(folder / "record.npz") as archive:
            members = dict(archive)
        members[column] = members[column].copy()
        members[column][0] = value
        np.savez(folder / "record.npz", **members)

    return spoil


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no summary": (lambda folder: (folder / "summary.json").unlink(), "has no summary.json"),
    "no JSON": (replaced("summary.json", b"{"), "is no JSON"),
    "NaN": (spoilt(lambda s: s.update(tokens_per_s=float("nan"))), "NaN is not a JSON number"),
    "a list": (replaced("summary.json", b"[1]"), "a JSON object is required"),
    "deep": (replaced("summary.json", b"[" * 100_000), "is no JSON"),
    "huge number": (replaced("summary.json", b'{"a": ' + b"1" * 9999 + b"}"), "is no JSON"),
    "other JSON": (replaced("summary.json", b"{}"), "is no summary of a run"),
    "a key less": (spoilt(lambda s: s.pop("time_ns")), "time_ns"),
    "parameters": (spoilt(lambda s: s["spec"].update(set=3)), "spec.set"),
    "text for a number": (spoilt(lambda s: s.update(hits="many")), "hits"),
    "negative": (spoilt(lambda s: s["breakdown_ns"].update(dense=-1)), "breakdown_ns.dense"),
    "wrong sum": (spoilt(lambda s: s["breakdown_ns"].update(dense=1)), "breakdown_ns adds up to"),
    "hits too many": (spoilt(lambda s: s.update(wanted=1)), "hits + late + misses"),
    "layers": (spoilt(lambda s: s["by_layer"]["hits"].append(1)), "by_layer"),
    "other version": (spoilt(lambda s: s.update(version="9.9.9")), "version: made by '9.9.9'"),
    "record: none": (replaced("record.npz", b"PK?"), "record.npz"),
    "record: empty": (replaced("record.npz", b""), "record.npz"),
    "record: version": (of_version, "record_version is 99"),
    "record: other run": (spoilt(lambda s: s["spec"].update(seed=1)), "another run"),
    "record: other time": (
        spoilt(
            lambda s: (s.update(time_ns=s["time_ns"] + 1), s["breakdown_ns"].update(head=s["breakdown_ns"]["head"] + 1))
        ),
        "its steps last",
    ),
    "record: layer": (shifted("visits.layer", 77), "visits.layer[0] is 77"),
    "record: victim": (shifted("transfers.victim", -2), "transfers.victim[0] is -2"),
    "record: visit": (shifted("executions.visit", 10**9), "executions.visit[0]"),
    "record: request": (shifted("requests.first_decode", 10**6), "requests.first_decode[0]"),
}


def without(*columns: str) -> Callable[[Path], None]:
    """The record lacks columns."""

    def spoil(folder: Path) -> None:
        with np.load(folder / "record.npz") as archive:
            members = {name: archive[name] for name in archive.files if name not in columns}
        np.savez(folder / "record.npz", **members)

    return spoil


def torn(column: str) -> Callable[[Path], None]:
    """One expert of a transfer that brought several says something else than the others."""

    def spoil(folder: Path) -> None:
        with np.load(folder / "record.npz") as archive:
            members = dict(archive)
        run, values = members["transfers.run"], members[f"transfers.{column}"].copy()
        first = np.flatnonzero((run[1:] == run[:-1]) & (run[1:] >= 0))[0]
        values[first + 1] += 1
        np.savez(folder / "record.npz", **(members | {f"transfers.{column}": values}))

    return spoil


def naming(name: str, words: list[str]) -> Callable[[Path], None]:
    """The record's meta names other words."""

    def spoil(folder: Path) -> None:
        with np.load(folder / "record.npz") as archive:
            members = dict(archive)
        meta = json.loads(str(members["meta"])) | {name: words}
        np.savez(folder / "record.npz", **(members | {"meta": np.array(json.dumps(meta))}))

    return spoil


BAD_BY_RULES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a column of three": (without("executions.place"), "executions.place is missing"),
    "another of three": (without("transfers.run"), "transfers.run is missing"),
    "no such place": (shifted("transfers.place", 3), "transfers.place[0] is 3; it lies in [0, 3)"),
    "the host's place on the GPU": (shifted("executions.place", 3), "executions.place on the GPU[0] is 3"),
    "no such run": (shifted("transfers.run", 10**6), "transfers.run[0] is 1000000"),
    "committed without a run": (shifted("transfers.run", -1), "transfers.run[0] is -1; a committed transfer has one"),
    "a run that lands twice": (torn("landed_ns"), "says otherwise"),
    "a run that starts twice": (torn("started_ns"), "says otherwise"),
    "a run into a slot": (shifted("transfers.place", 0), "only copies into stages share a run"),
    "a cause that the file does not name": (naming("causes", ["demand", "prefetch", "background"]), "transfers.cause["),
    "causes of somebody else": (naming("causes", ["demand", "luck"]), "meta: causes is"),
    "answers of somebody else": (naming("answers", []), "meta: answers is"),
}


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that streams whole layers ahead, several experts at once."""
    flags = ["--cache", "2", "--miss", "stream", "--ahead", "1", "--merge", "runs", "--record", "full"]
    return simulated(tmp_path_factory.mktemp("ahead"), "lru", ahead=flags)["ahead"]


@pytest.mark.parametrize("case", BAD_BY_RULES)
def test_a_bad_record_of_what_came_on_a_miss_is_refused_in_one_line(
    ahead: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(ahead, folder)
    assert load([folder], detail=1)[0].full
    spoil, words = BAD_BY_RULES[case]
    spoil(folder)
    capsys.readouterr()
    assert main([str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and words in told.err, told.err


@pytest.mark.parametrize("case", BAD)
def test_bad_runs_are_refused_in_one_line(
    runs: dict[str, Path], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(runs["lru"], folder)
    spoil, words = BAD[case]
    spoil(folder)
    capsys.readouterr()
    assert main([str(runs["lru"]), str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: ")
    assert words in told.err and "bad" in told.err


@pytest.mark.parametrize("record_kind", ["truncated", "huge"])
def test_damaged_records_are_refused(
    runs: dict[str, Path], record_kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(runs["lru"], folder)
    data = (folder / "record.npz").read_bytes()
    if record_kind == "truncated":
        data = data[: len(data) // 2]
    else:  # a header that declares 10^15 rows
        shape = re.search(rb"'shape': \((\d+),\)", data)
        assert shape is not None
        wanted = b"'shape': (" + b"9" * (len(shape[1]) + 12) + b",)"
        header = data[shape.start() : shape.start() + len(wanted) + 20]
        data = data.replace(header, (wanted + header[len(shape[0]) :])[: len(header)], 1)
    (folder / "record.npz").write_bytes(data)
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["nowhere"], [], ["{lru}", "--resamples", "1"], ["{lru}", "--seed", "-1"], ["{lru}", "--fromat", "csv"]],
)
def test_bad_arguments(arguments: list[str], runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([text.format(lru=runs["lru"]) for text in arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_free_start_is_said_of_the_runs_that_it_flatters() -> None:
    """20 hits, 4 of them of residents that nobody paid for; loading them took 400 ns. An empty start says nothing."""
    full = made("full", record([[100, 100]], [10]), hits=20, start={"residents": 4, "bytes": 12, "load_ns": 400})
    empty = made("empty", record([[100, 100]], [10]), hits=20)
    assert f"{START}: full" in compare([full, empty]).notes
    assert not any(note.startswith(START) for note in compare([empty, empty]).notes)
