"""Policies of a kind side by side: figures of requests, intervals on common draws, ranks, the files and the SVG."""

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis import policies as command
from analysis.reading.policies import policies
from sim.experiments import side_by_side
from sim.experiments.__main__ import main
from sim.experiments.policies import ARMS, report
from sim.experiments.side_by_side import LOSS, TIE, WIN, Asked, Served, asked_of, over_captures, standings
from sim.outcome.per_request import drawn, interval, per_request, shares
from sim.policies.registry import EVICTION, PREFETCH
from sim.simulation import simulate
from sim.spec import RunSpec
from tests.gen import random_trace
from traces.format import npz

FIXED = "[fixed]\ndense_ns = 10\nexpert_ns = 5\ntransfer_ns = 100\ndecide_ns = 0\ncpu_expert_ns = 7\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`a.npz` and `b.npz` with weights and logits, `bare.npz` with neither, fixed hardware `h.toml`."""
    for seed, name in enumerate(("a", "b", "bare")):
        rng, more = np.random.default_rng(5 + seed), dict.fromkeys(("weights", "logits"), name != "bare")
        npz.write(
            tmp_path / f"{name}.npz",
            random_trace(rng, tokens=90, layers=3, experts=8, k=2, requests=7, prompt=0.0, **more),
        )
    (tmp_path / "h.toml").write_text(FIXED)
    return tmp_path


def call(folder: Path, capsys: pytest.CaptureFixture[str], traces: str, *more: Any) -> tuple[str, list[dict[str, str]]]:
    """(markdown, rows of the CSV)."""
    paths = [folder / f"{name}.npz" for name in traces.split()]
    args = ["policies", "--trace", *paths, "--hardware", folder / "h.toml", *more, "--out", folder / "out"]
    assert main([*map(str, args)]) == 0
    text = capsys.readouterr().out
    assert (folder / "out" / "policies.md").read_text() == text
    lines = (folder / "out" / "policies.csv").read_text().splitlines()
    return text, list(csv.DictReader(io.StringIO("\n".join(lines[1:]))))


def ran(folder: Path, trace: str, **fields: Any) -> tuple[dict[str, Any], Any]:
    common = {"trace": str(folder / f"{trace}.npz"), "hardware": str(folder / "h.toml"), "engine": "fused"}
    return simulate(RunSpec.of({**common, "precision": "q4", "engine_as_costs": True, **fields}), full=True)


# --- what a request has ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("prefetch", ["none", "previous-token"])
def test_requests_add_up_to_the_run(folder: Path, batch: int, prefetch: str) -> None:
    """Of decode steps; where there are no prompts, that is all there is."""
    out, record = ran(folder, "a", cache=4, batch=batch, prefetch=prefetch)
    found = Served.of(record)
    assert len(found.tokens) == 7 and found.tokens.sum() == out["tokens"]
    assert found.time_ns.sum() == pytest.approx(out["decode_ns"])
    assert found.wanted.sum() == pytest.approx(out["wanted"]) and found.hits.sum() == pytest.approx(out["hits"])
    assert found.moved.sum() == pytest.approx(sum(out["h2d_bytes"].values()))
    whole = found.figures(np.arange(7)[None])
    assert whole["tokens_per_s"][0] == pytest.approx(out["tokens_per_s"])
    assert whole["hit_percent"][0] == pytest.approx(100 * out["hits"] / out["wanted"])


def test_shares_by_hand() -> None:
    """Two requests: steps of 2, 2 and 1 rows, amounts 6, 2 and 5: the first is in all three, the second in two."""

    record = SimpleNamespace(
        steps={"prefill": np.zeros(3), "rows": np.array([2, 2, 1])},
        requests={"request": np.array([1, 0]), "first_decode": np.array([0, 0]), "generated": np.array([2, 3])},
        warmup_steps=0,
        windows={},
    )
    amounts: Any = np.array([6, 2, 5])
    assert shares(record, amounts).tolist() == [3 + 1 + 5, 3 + 1]  # type: ignore[arg-type]
    record.warmup_steps = 1
    assert shares(record, amounts).tolist() == [1 + 5, 1]  # type: ignore[arg-type]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_is_a_plain_run_with_the_intervals_of_its_requests(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows = call(folder, capsys, "a", "--policies", "eviction=fifo,belady", "--cache", "0.5", "4", "--batch", 1, 2)
    assert [(row["cache"], row["batch"], row["policy"]) for row in rows] == [
        (cache, batch, policy) for cache in ("0.5", "4") for batch in ("1", "2") for policy in ("lru", "fifo", "belady")
    ]
    base = per_request(ran(folder, "a", cache=0.5, batch=2)[1])
    out, record = ran(folder, "a", cache=0.5, batch=2, eviction="fifo")
    mine, draws = per_request(record), drawn(7, 0)
    row = next(row for row in rows if (row["policy"], row["batch"], row["cache"]) == ("fifo", "2", "0.5"))
    low, high = interval(mine.rates(draws))
    ratio = interval(mine.rates(draws) / base.rates(draws))
    assert float(row["tokens_per_s"]) == pytest.approx(out["tokens_per_s"], rel=1e-5)
    assert float(row["tokens_per_s_low"]) == pytest.approx(low, rel=1e-5)
    assert float(row["tokens_per_s_high"]) == pytest.approx(high, rel=1e-5)
    assert float(row["gain_percent_low"]) == pytest.approx(100 * (ratio[0] - 1), abs=1e-3)
    assert float(row["gain_percent_high"]) == pytest.approx(100 * (ratio[1] - 1), abs=1e-3)
    assert row["verdict"] == (WIN if ratio[0] > 1 else LOSS if ratio[1] < 1 else TIE)
    assert float(row["h2d_gb"]) == pytest.approx(sum(out["h2d_bytes"].values()) / 1e9, rel=1e-5)
    assert float(row["hit_percent_low"]) <= float(row["hit_percent"]) <= float(row["hit_percent_high"])
    assert (row["requests"], row["tokens"]) == ("7", str(out["tokens"]))


def test_an_oracle_is_shown_and_never_ranked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows = call(folder, capsys, "a b", "--policies", "eviction=belady,fifo", "--cache", "0.5")
    assert all((row["rank"] == "") == (row["policy"] == "belady") == (row["marks"] == "oracle") for row in rows)
    assert max(rows, key=lambda row: float(row["tokens_per_s"]))["policy"] == "belady"
    table = text.split("## Eviction")[1].split("\n\n")[1].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table][-1] == "belady" and "| - | - |" in table[-1]
    assert "2 ranked over 2 captures" in text


def test_lossy_policies_have_no_rank_of_speed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, rows = call(folder, capsys, "a b", "--policies", "miss", "--cache", "0.5")
    assert {row["policy"] for row in rows if row["rank"]} == {"fetch", "cpu"}
    assert {row["policy"] for row in rows} == set(ARMS) and "OPEN LOOP" in text
    drop = next(row for row in rows if row["policy"] == "drop")
    assert drop["marks"] == "lossy" and float(drop["lost_weight_percent"]) > 0
    assert "miss: calibration 0.5: the others are judged" in text and {row["requests"] for row in rows} == {"4"}


def test_what_a_capture_cannot_serve_is_left_out_and_not_ranked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, rows = call(folder, capsys, "a bare", "--policies", "eviction", "--cache", "0.5")
    assert ("bare", "window-score") not in {(row["trace"], row["policy"]) for row in rows}
    assert "`bare`, eviction, not run: window-score: needs `weights`, which bare.npz does not have" in text
    line = next(line for line in text.splitlines() if line.startswith("| window-score"))
    assert line.startswith("| window-score | not in every cell | - | - |")
    assert {row["policy"] for row in rows if row["trace"] == "a"} == set(EVICTION)
    assert f"{sum(not p.oracle and not p.needs for p in EVICTION.values())} ranked over 2 captures" in text


def test_a_kind_that_is_fitted_sets_requests_aside_and_no_other_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, rows = call(folder, capsys, "a", "--policies", "eviction=fifo", "prefetch=popular", "--cache", "0.5")
    assert {(row["kind"], row["policy"], row["requests"]) for row in rows} == {
        ("eviction", "lru", "7"), ("eviction", "fifo", "7"), ("prefetch", "none", "4"), ("prefetch", "popular", "4")
    }  # fmt: skip
    assert "prefetch: too few requests to show a difference by themselves: `a` (4)" in text
    assert "eviction: too few" not in text and "no test: it takes two policies and two captures" in text


def test_asked_names_the_base_first() -> None:
    assert asked_of(["eviction=fifo,lru,fifo"], ARMS) == [Asked("eviction", ["lru", "fifo"])]
    assert asked_of(["miss"], ARMS)[0].names == list(ARMS)
    assert asked_of(["prefetch"], ARMS)[0].names == ["none", *PREFETCH]
    assert set(asked_of(["miss=all"], ARMS)[0].names) > set(ARMS)


# --- standings by hand -----------------------------------------------------------------------------------------------


def row_of(trace: str, cache: str, policy: str, speed: float, **more: Any) -> dict[str, Any]:
    row = {"kind": "eviction", "trace": trace, "cache": cache, "batch": "1", "policy": policy, "tokens_per_s": speed}
    row |= {"gain_percent": speed - 100, "marks": "", "oracle": False, "lossy": False, "requests": 7, "verdict": TIE}
    return row | more


def test_mean_ranks_by_hand() -> None:
    """Capture a at two capacities: x 1 and 2, lru 2 and 1, so both 1.5; capture b: x 1, lru 2. Means 1.25 and 1.75, not
    those of three cells (4/3, 5/3). An oracle takes no place."""
    rows = [
        row_of("a", "1", "lru", 100), row_of("a", "1", "x", 110), row_of("a", "1", "o", 200, oracle=True),
        row_of("a", "2", "lru", 100), row_of("a", "2", "x", 90), row_of("a", "2", "o", 200, oracle=True),
        row_of("b", "1", "lru", 100), row_of("b", "1", "x", 120, verdict=WIN, requests=3),
        row_of("b", "1", "o", 200, oracle=True), row_of("b", "1", "y", 300),
    ]  # fmt: skip
    found = over_captures(rows, 0)
    assert found.names == ["lru", "x"] and found.by_block.tolist() == [[1.5, 1.5], [2.0, 1.0]]
    (table,) = standings(Asked("eviction", ["lru", "x", "o", "y"]), rows, 0)
    assert [(line["policy"], line["mean_rank"]) for line in table.rows] == [
        ("x", 1.25), ("lru", 1.75), ("y", None), ("o", None)
    ]  # fmt: skip
    x = table.rows[0]
    assert (x["record"], x["sure_record"], x["cells"]) == ("1/2/0", "0/2/0", 3)
    assert (x["median_gain"], x["worst_gain"], x["best_gain"]) == (10, -10, 20)


# --- the SVG ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    call(folder, capsys, "a b", "--policies", "eviction=fifo,belady", "prefetch=popular,oracle", "--cache", "0.5")
    return folder / "out" / "policies.csv"


def test_the_svg_says_what_the_table_says(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(kept), "--out", str(kept.with_suffix(".svg"))]) == 0
    drawn = kept.with_suffix(".svg").read_text()
    tree = ElementTree.fromstring(drawn)
    assert tree.tag.endswith("svg") and "<script" not in drawn
    text = kept.with_suffix(".md").read_text()
    for kind in ("Eviction", "Prefetch"):
        heading = next(line[3:] for line in text.splitlines() if line.startswith(f"## {kind}"))
        assert heading.split("; ")[0] in drawn and heading.replace("; ", "; ", 1).split("; ")[1] in drawn
    assert drawn.count('class="mean"') == 4 and "(oracle)" in drawn and "SYNTHETIC TRACES: a and b" in drawn
    assert command.main([str(kept)]) == 0 and capsys.readouterr().out == drawn


def test_a_hostile_name_is_shown_as_letters(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept.write_text(kept.read_text().replace("fifo", "<script>x</script>"))
    assert command.main([str(kept)]) == 0
    drawn = capsys.readouterr().out
    assert "<script" not in drawn and "&lt;script&gt;" in drawn and ElementTree.fromstring(drawn) is not None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tokens_per_s,", "speed,", "column 'tokens_per_s': missing"),
        (",lru,", ",,", "policy = '': must not be empty"),
        ("eviction,", "evicting,", "did you mean eviction"),
        (",win,", ",won,", "verdict = 'won': must be one of win, tie, loss"),
        (",SYNTHETIC,", ",real,", "routing"),
        ("oracle,", "orakel,", "did you mean oracle"),
        ("fifo", "lru", "stands twice in one cell"),
    ],
)
def test_a_wrong_file_is_one_line(
    kept: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    text = kept.read_text()
    assert old in text
    kept.write_text(text.replace(old, new))
    assert command.main([str(kept)]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1, err
    assert str(kept) in err


def test_the_reader_takes_what_was_written(kept: Path) -> None:
    rows = policies(str(kept))
    assert len(rows) == 2 * 3 + 2 * 3 and {row["kind"] for row in rows} == {"eviction", "prefetch"}
    assert {row["policy"] for row in rows if row["oracle"]} == {"belady", "oracle"}
    for number in ("tokens_per_s", "gain_percent", "requests"):
        assert all(isinstance(row[number], float) for row in rows)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz.write(folder / "p.npz", random_trace(np.random.default_rng(5), tokens=20, experts=8, prompt=1.0))
    for trace, flags, wrong in (
        ("a", ["--policies", "evicton"], "did you mean eviction"),
        ("a", ["--policies", "placement"], "kind"),
        ("a", ["--policies", "eviction=lru,fifi"], "did you mean fifo"),
        ("a", ["--policies", "eviction", "--cache", "99"], "cache"),
        ("p", ["--policies", "eviction=fifo"], "has no generated tokens within these steps"),
        ("a", ["--policies", "prefetch=oracle", "--calibration", "x.npz"], "x.npz"),
    ):
        args = ["policies", "--trace", folder / f"{trace}.npz", "--hardware", folder / "h.toml", *flags]
        assert main([*map(str, args), "--out", str(folder / "out")]) == 2
        err = capsys.readouterr().err
        assert wrong in err and err.startswith("error: ") and err.count("\n") == 1, (flags, err)
        assert not (folder / "out").exists()


def test_a_wrong_run_does_not_pass_as_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a spec refuses is left out: what breaks, breaks the experiment."""
    monkeypatch.setattr(side_by_side, "simulate", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        report(["--trace", str(folder / "a.npz"), "--policies", "eviction=fifo"])
