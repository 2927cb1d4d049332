"""Runs from Python: the same figures as the command line; frames, names, refusals."""

import copy
import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sim
import traces
from sim import run as command
from tests.gen import random_trace
from tests.test_run import FIXED
from traces.format import npz

pytestmark = pytest.mark.machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(3)
    trace = random_trace(rng, tokens=160, layers=3, experts=8, k=2, requests=12, prompt=0.2, weights=True, logits=True)
    npz.write(folder / "t.npz", trace)
    (folder / "h.toml").write_text(FIXED)
    return folder


@pytest.fixture(scope="module")
def common(folder: Path) -> dict[str, Any]:
    return {"trace": folder / "t.npz", "hardware": folder / "h.toml", "cache": 3}


@pytest.fixture(scope="module")
def run(common: dict[str, Any]) -> sim.Result:
    return sim.simulate(**common, miss="drop", record="full")


def flags(common: dict[str, Any]) -> list[str]:
    return [word for name, value in common.items() for word in (f"--{name}", str(value))]


# --- a result ---


def test_it_is_what_the_command_prints(common: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = sim.simulate(**common, miss="drop", prefetch="oracle", set={"oracle.distance": 2})
    words = [*flags(common), "--miss", "drop", "--prefetch", "oracle", "--set", "oracle.distance=2"]
    assert command.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(run.summary))
    assert command.main(words) == 0
    assert capsys.readouterr().out == run.table() + "\n"


def test_its_figures_are_attributes(run: sim.Result) -> None:
    assert run.tokens_per_s == run.summary["tokens_per_s"] and run.hits == run.summary["hits"]
    assert run.dropped_weight == run.summary["quality"]["dropped_weight"] and run.interval is None
    assert run.hit_rate == run.hits / run.wanted and "dropped_weight" in dir(run)
    assert run.marks == ["synthetic", "open-loop"] and any("OPEN LOOP" in note for note in run.notes)
    with pytest.raises(AttributeError, match="in summary\\['tpot_ms'\\] and summary\\['ttft_ms'\\]"):
        run.p99  # noqa: B018
    assert run.policy == run.name == "lru + drop" and run.spec["miss"] == "drop"


def test_it_does_not_change_and_can_be_sent(run: sim.Result) -> None:
    for again in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert again == run and hash(again) == hash(run) and again.table() == run.table()
        assert (again.record.steps["end_ns"] == run.record.steps["end_ns"]).all()  # type: ignore[union-attr]
    assert run != sim.Result("another", "", run.summary)
    with pytest.raises(AttributeError):
        run.name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not change"):
        run.spec["miss"] = "fetch"


def test_it_says_what_must_be_said(common: dict[str, Any]) -> None:
    run = sim.simulate(**common, miss="drop", name="<b>\n")
    assert repr(run).count("\n") == 0 and "synthetic; open-loop" in repr(run)
    html = run._repr_html_()
    assert html.startswith("<div><strong>! SYNTHETIC") and html.index("OPEN LOOP") < html.index("tokens/s")
    assert "<b>" not in html and "&lt;b&gt;\\n" in html
    uncalibrated = sim.simulate("mixtral.npz", max_steps=3)
    assert "not calibrated" in repr(uncalibrated) and "NOT CALIBRATED" in uncalibrated._repr_html_()


def test_what_is_kept_comes_back(run: sim.Result, tmp_path: Path) -> None:
    again = sim.open_run(run.save(tmp_path / "kept"))
    assert again.summary == run.summary and again.full and again.name == "kept"
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["record.npz", "summary.json"]
    with pytest.raises(sim.UserError, match="holds results already"):
        run.save(tmp_path / "kept")
    assert sim.Result.open(again.save(tmp_path / "kept", force=True)) == again
    with pytest.raises(sim.UserError, match="no such file or folder"):
        sim.open_run(tmp_path / "none")


def test_the_machines_agree(common: dict[str, Any]) -> None:
    fast, slow = (dict(sim.simulate(**common, miss="drop", machine=name).summary) for name in ("compiled", "simpy"))
    assert (fast.pop("machine"), slow.pop("machine")) == ("compiled", "simpy")
    assert fast == slow


# --- what may be given ---


def test_a_trace_may_be_in_memory(common: dict[str, Any], run: sim.Result) -> None:
    opened = traces.open(common["trace"])
    held = sim.simulate(**{**common, "trace": opened}, miss="drop")
    assert held.summary == run.summary and held.spec["trace"] == str(common["trace"])
    part = sim.simulate(
        **{**common, "trace": opened.take(range(6))}, calibration=opened.take(range(6, 12)), miss="buddy"
    )
    assert part.spec["trace"] == "test-model (in memory)" and part.spec["calibration"] == "test-model (in memory)-2"
    with pytest.raises(sim.UserError, match=r"calibration: .*6 of its 6 requests"):
        sim.simulate(**{**common, "trace": opened}, calibration=opened.take(range(6)), miss="buddy")


def test_two_traces_of_one_call_are_told_apart(common: dict[str, Any]) -> None:
    opened = traces.open(common["trace"])
    parts = [opened.take(range(4)), opened.take(range(4, 8))]
    frame = sim.simulate_many({"a": {"trace": parts[0]}, "b": {"trace": parts[1]}}, **{**common, "trace": None})
    alone = [sim.simulate(**{**common, "trace": part}).summary for part in parts]
    hashes = [run.trace["hash"] for run in frame["result"]]
    assert hashes == [summary["trace"]["hash"] for summary in alone] and len(set(hashes)) == 2


def test_hardware_and_engines_may_be_tables(common: dict[str, Any], run: sim.Result) -> None:
    import tomllib

    table = tomllib.loads(FIXED)
    held = sim.simulate(**{**common, "hardware": table}, miss="drop")
    assert held.time_ns == run.time_ns and held.spec["hardware"] == "my-hardware"
    faster = {"fixed": table["fixed"] | {"transfer_ns": 1}}
    frame = sim.simulate_many(**{**common, "hardware": [table, faster]})
    assert list(frame["hardware"]) == ["my-hardware", "my-hardware-2"]
    assert frame["tokens_per_s"].iloc[1] > frame["tokens_per_s"].iloc[0]
    for wrong, message in (
        ({"name": "rtx4090", **table}, "the catalog has one of this name"),
        ({"fixd": 1}, "fixd: unknown key"),
        (5, "must be a name, a file, a table"),
    ):
        with pytest.raises(sim.UserError, match=message):
            sim.simulate(**{**common, "hardware": wrong})
    assert sim.simulate("mixtral.npz", engine={"like": "ktransformers"}, cache=2, max_steps=2).spec["miss"] == "cpu"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is none": ({"chache": 2}, "field: 'chache' is unknown; did you mean cache"),
    "no trace": ({"trace": None}, "trace: missing; give trace=FILE"),
    "a trace that is not there": ({"trace": "nosuch"}, "nosuch: no such file or shipped sample"),
    "a list": ({"cache": [2, 3]}, "a list is an axis of sim.simulate_many"),
    "a record": ({"record": "all"}, "record: 'all': must be summary or full"),
    "a value": ({"cache": 0}, "cache: 0: must be at least one slot"),
    "a policy": ({"miss": "buddi"}, "miss: 'buddi' is unknown; did you mean buddy"),
    "a parameter": ({"set": {"lru.x": 1}}, "parameter of lru: 'x' is unknown"),
}


WRONG |= {
    "no calibration": ({"calibration": {}}, "calibration: dict: must be a file"),
    "another object": ({"calibration": object()}, "calibration: object: must be a file"),
    "a list of requests": ({"requests": [0, 1]}, "requests='0,1' runs these"),
    "a folder": ({"out": "x"}, r"out: is no field of a run; run.save\(DIR\)"),
    "a flag of the command": ({"goodput": "x"}, "goodput: is no field of a run; python -m sim.run --format aiperf"),
    "a policy's parameter": ({"tau": 0.6}, r"tau: .*set=\{'buddy.tau': ...\}"),
    "a set that is none": ({"set": 3}, "set: 3: must be a table"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(common: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(sim.UserError, match=message) as error:
        sim.simulate(**{**common, **fields})
    assert "\n" not in str(error.value)


# --- many ---


def test_lists_are_axes_and_the_last_runs_fastest(common: dict[str, Any]) -> None:
    frame = sim.simulate_many(**{**common, "cache": [2, 3], "eviction": ("lru", "lfu", "belady")})
    assert [*zip(frame["cache"], frame["eviction"], strict=True)] == [
        (n, name) for n in (2, 3) for name in ("lru", "lfu", "belady")
    ]
    assert list(frame.index[:2]) == ["cache 2, lru", "cache 2, lfu"] and frame.index.name == "run"
    alone = sim.simulate(**{**common, "cache": 3, "eviction": "lfu"})
    row = frame.loc["cache 3, lfu"]
    assert row["result"].summary == alone.summary and row["tokens_per_s"] == alone.tokens_per_s
    assert (row["hit_rate"], row["h2d_gb"], row["marks"]) == (alone.hit_rate, alone.h2d_gb, "synthetic")
    assert np.isnan(row["tokens_per_s_low"]) and "oracle" in frame.loc["cache 2, belady", "marks"]
    [oracle] = [note for note in frame.attrs["notes"] if note.startswith("ORACLE")]  # once, whatever each run says
    assert "cache 2, belady" in oracle
    assert "! ORACLE: belady reads the future" in frame.loc["cache 2, belady", "result"].table()
    ranged = sim.simulate_many(**{**common, "cache": range(2, 4)})
    assert list(ranged["cache"]) == [2, 3] == list(sim.simulate_many(**{**common, "cache": np.arange(2, 4)})["cache"])


def test_whatever_can_be_gone_through_is_an_axis(common: dict[str, Any]) -> None:
    def named(**axes: Any) -> list[str]:
        return list(sim.simulate_many(**{**common, **axes}).index)

    two = ["cache 2", "cache 3"]
    assert named(cache=pd.Series([2, 3])) == named(cache=(n for n in (2, 3))) == two == named(cache=np.arange(2, 4))
    assert named(cache={"from": 2, "to": 3, "step": 1}) == two and named(cache=np.array(3)) == ["run"]
    given = iter((2, 3))
    assert list(sim.simulate_many({"a": {}, "b": {"miss": "drop"}}, **{**common, "cache": given}).index) == [
        f"{case}, {each}" for case in "ab" for each in two
    ]
    frame = sim.simulate_many(**common, prefetch="oracle", prefetch_budget=[None, 2])
    assert list(frame.index) == ["prefetch_budget None", "prefetch_budget 2"]
    assert frame["result"].iloc[0].summary == sim.simulate(**common, prefetch="oracle").summary
    with pytest.raises(sim.UserError, match=r"name: .*name runs as cases"):
        named(name="x")


def test_what_is_no_run_no_figure_and_no_folder_is_one_line(run: sim.Result, common: dict[str, Any]) -> None:
    opened = traces.open(common["trace"])
    frame = sim.simulate_many(**{**common, "cache": [2, 3]})
    calls: list[Any] = [
        *(functools.partial(run.figure, kind) for kind in (None, 3, {})),
        *(functools.partial(call, thing) for call in (sim.compare, sim.figure, sim.open_run) for thing in (None, 3)),
        *(functools.partial(sim.compare, frame, seed=seed) for seed in ("x", -1, None)),
        *(functools.partial(sim.figure, frame, "along", **{word: "nope"}) for word in ("by", "x", "y")),
        *(functools.partial(run.save, place) for place in (None, 3, "/proc/x", "a\0b")),
        *(functools.partial(opened.take, places) for places in ([], [99], [-1], [0.5], [True], None, 3)),
        *(functools.partial(traces.capture, model) for model in (None, 3, {})),
        functools.partial(traces.capture, "tiny-moe", 3),
        functools.partial(traces.open, None),
    ]
    for call in calls:
        with pytest.raises(sim.UserError) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_parameter_is_of_the_runs_that_use_its_policy(common: dict[str, Any]) -> None:
    shared = {**common, "calibration": 0.3, "set": {"buddy.tau": [0.4, 0.9]}}
    frame = sim.simulate_many(miss=["fetch", "buddy"], **shared)
    assert list(frame.index) == ["fetch", "buddy, buddy.tau 0.4", "buddy, buddy.tau 0.9"]
    named = sim.simulate_many(
        {"f": {}, "b": {"miss": "buddy"}, "own": {"miss": "buddy", "set": {"buddy.tau": 0.1}}}, **shared
    )
    assert list(named.index) == ["f", "b, buddy.tau 0.4", "b, buddy.tau 0.9", "own"]
    assert named.loc["own", "result"].spec["set"] == {"buddy.tau": 0.1}
    with pytest.raises(sim.UserError, match=r"set.buddy.tau: no configuration uses a policy 'buddy'"):
        sim.simulate_many(**shared)


def test_what_cannot_be_stops_or_is_a_row(common: dict[str, Any]) -> None:
    with pytest.raises(sim.UserError, match="cache 99: cache: 99: a layer has 8 experts"):
        sim.simulate_many(**{**common, "cache": [2, 99]})
    frame = sim.simulate_many({"good": {}, "bad": {"cache": 99}, "worse": {"cache": "x"}}, errors="keep", **common)
    assert list(frame.index) == ["good", "bad", "worse"] and list(frame["cache"]) == [3, 99, "x"]
    assert pd.isna(frame.loc["good", "error"]) and "8 experts" in frame.loc["bad", "error"]
    assert "must be slots" in frame.loc["worse", "error"] and frame.loc["bad", "result"] is None
    only = sim.simulate_many(**{**common, "cache": 99}, errors="keep")
    assert only["result"].tolist() == [None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({"a": 1},), "cases: must be"),
        ((["lru"],), "cases: must be"),
    ],
)
def test_cases_that_are_none(common: dict[str, Any], given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(sim.UserError, match=message):
        sim.simulate_many(*given, **common)


def test_runs_of_one_name_are_told_apart(common: dict[str, Any]) -> None:
    one, two = (sim.simulate(**{**common, "cache": n}) for n in (2, 3))
    assert list(sim.compare([one, two]).index) == ["lru + fetch, cache 2", "lru + fetch, cache 3"]
    assert list(sim.compare([one, one]).index) == ["lru + fetch", "lru + fetch (2)"]


# --- compared ---


def test_compare_is_the_command(common: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from analysis import compare

    cases: dict[str, dict[str, Any]] = {"fetch": {}, "drop": {"miss": "drop"}}
    frame = sim.compare(cases, baseline="fetch", **common)
    for name, run in frame["result"].items():
        run.save(tmp_path / str(name))
    assert compare.main([str(tmp_path / name) for name in cases] + ["--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert frame.attrs["notes"] == told["notes"] and frame.attrs["baseline"] == "fetch"
    for row in told["rows"]:
        mine = frame.loc[row["run"]]
        for key in ("tokens_per_s_change", "tokens_per_s_change_low", "tokens_per_s_change_high", "h2d_change"):
            assert row[key] == (None if pd.isna(mine[key]) else mine[key])
    again = sim.compare([tmp_path / name for name in cases])
    pd.testing.assert_series_equal(again["tokens_per_s_change_low"], frame["tokens_per_s_change_low"])
    with pytest.raises(sim.UserError, match="baseline: 'fech' is no run; did you mean fetch"):
        sim.compare(frame, baseline="fech")
    with pytest.raises(sim.UserError, match="cache: is for cases that are to be run"):
        sim.compare(frame, cache=3)
    with pytest.raises(sim.UserError, match="no such file or folder"):
        sim.compare(["nowhere"])
    with pytest.raises(sim.UserError, match="int is no run"):
        sim.compare([5])
    with pytest.raises(sim.UserError, match="no column result"):
        sim.compare(frame[["hit_rate"]])


# --- figures ---


def test_every_kind_draws_and_says_what_must_be_said(run: sim.Result) -> None:
    from analysis.api.drawn import KINDS

    for kind in KINDS:
        if kind != "along":
            assert run.figure(kind).layout.title.text == "synthetic; open-loop", kind
    with pytest.raises(sim.UserError, match="figure: 'sped' is unknown; did you mean speed") as error:
        run.figure("sped")
    assert all(kind in str(error.value) for kind in KINDS)


def test_along_an_axis_a_line_is_a_policy(common: dict[str, Any]) -> None:
    frame = sim.simulate_many(**{**common, "cache": [4, 2, 3], "eviction": ["lru", "belady"]})
    figure = sim.figure(frame, "along")
    assert [line.name for line in figure.data] == ["lru + fetch", "belady + fetch (oracle)"]
    assert list(figure.data[0].x) == [2, 3, 4] and figure.layout.xaxis.title.text == "cache"
    assert list(figure.data[0].y) == [frame.loc[f"cache {n}, lru", "tokens_per_s"] for n in (2, 3, 4)]
    other = sim.figure(frame, "along", y="hit_rate", by="cache", x="seed")
    assert [line.name for line in other.data] == [f"{n} (oracles among them)" for n in (4, 2, 3)]
    for options, message in (
        ({"x": "cach"}, "did you mean cache"),
        ({"x": "eviction"}, "must be a number in all runs"),
        ({"y": "hits"}, "'hits' is unknown"),
        ({"z": 1}, "unexpected keyword argument 'z'"),
    ):
        with pytest.raises(sim.UserError, match=message):
            sim.figure(frame, "along", **options)


def test_a_figure_that_needs_more_says_what(common: dict[str, Any], run: sim.Result) -> None:
    short = sim.simulate(**common)
    with pytest.raises(sim.UserError, match="clock: needs a full record"):
        short.figure("clock")
    with pytest.raises(sim.UserError, match="is of one run; 2 are given"):
        sim.figure([run, run], "clock")
    with pytest.raises(sim.UserError, match="no run here loses"):
        short.figure("lost")


def test_one_row_has_every_setting_that_is_no_default(run: sim.Result) -> None:
    frame = run.to_frame()
    assert len(frame) == 1 and frame.loc[run.name, "miss"] == "drop" and "seed" not in frame
    assert frame.loc[run.name, "tokens_per_s"] == run.tokens_per_s
