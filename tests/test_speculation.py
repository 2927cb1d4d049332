"""Speculative windows: by hand, against the reference's own spelling, on every machine, and what must follow."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from runtime.device.virtual import shuffled, timed
from runtime.replaying.lockstep import LockStep
from sim import recommend, run
from sim.core.plan import Costs, Prefetch, Windows
from sim.errors import SpecError
from sim.machines import compiled, discrete
from sim.outcome.bounds import bounds, executed_bounds
from sim.outcome.per_request import per_request
from sim.outcome.summary import summarise
from sim.search.judging import Case, Wish
from sim.search.windows import windows, words
from sim.simulation import simulate
from sim.spec import RunSpec
from sim.speculation import Speculation, draft_ns, within_ns
from sim.steps import Steps, first_steps, schedule
from tests.devices import difference as on_device
from tests.devices import machine_on
from tests.gen import random_trace, traces
from tests.plans import plan
from tests.reference import guessed, reference_steps, reference_windows
from tests.reference_bounds import reference_bounds
from tests.runs_by_hand import FIXED
from tests.test_agreement import check
from tests.window_plans import window_plan
from traces.format import npz
from traces.format.trace import RoutingTrace

PLANS = 1500


def trace_of(lengths: Sequence[tuple[int, int]], layers: int = 1, n_experts: int = 8) -> RoutingTrace:
    """Requests of so many prompt and generated tokens; token t wants expert t % n_experts everywhere."""
    sequence = np.repeat(np.arange(len(lengths)), [sum(each) for each in lengths]).astype(np.int32)
    place = np.arange(len(sequence)) - np.searchsorted(sequence, sequence)
    prompt = np.array([prompt for prompt, _ in lengths])[sequence] > place
    experts = (np.arange(len(sequence)) % n_experts)[:, None, None] * np.ones((1, layers, 1), np.int64)
    meta = {"format_version": 1, "model": "m", "n_experts": n_experts, "top_k": 1, "n_layers": layers, "real": False}
    meta["moe_layers"] = list(range(layers))
    return RoutingTrace(experts.astype(np.int16), sequence, place.astype(np.int32), prompt, meta)


def counted(tmp_path: Path, n: int, text: str) -> Speculation:
    (tmp_path / "accepted.txt").write_text(text)
    return Speculation(n, str(tmp_path / "accepted.txt"), 0)


def rows_of(steps: Steps) -> list[list[int]]:
    return [steps.row[a:b].tolist() for a, b in zip(steps.offset[:-1], steps.offset[1:], strict=True)]


# --- the steps ---


def test_windows_by_hand(tmp_path: Path) -> None:
    """Two requests, a of 1 + 5 and b of 4 generated tokens, windows of three; counts as they are asked, in a step a's
    first: 2 of a, 1 of b | 3 of a, 3 of b, and both are done. So a runs rows 1 2 3, of which 1 2 count, then 3 4 5; b
    runs 6 7 8, then 7 8 9."""
    steps = schedule(trace_of([(1, 5), (0, 4)]), 2, 512, False, counted(tmp_path, 3, "2 1, 3\n3"))
    assert rows_of(steps) == [[0], [1, 2, 3, 6, 7, 8], [3, 4, 5, 7, 8, 9]]
    t, f = True, False
    assert steps.accepted.tolist() == [t, *(t, t, f), *(t, f, f), *(t, t, t), *(t, t, t)]
    assert steps.windows is not None
    assert {name: column.tolist() for name, column in vars(steps.windows).items()} == {
        "step": [1, 1, 2, 2], "request": [0, 1, 0, 1], "rows": [3, 3, 3, 3], "accepted": [2, 1, 3, 3],
    }  # fmt: skip
    assert steps.requests.tolist() == [[0, 0, 0, 0, 2], [1, 0, -1, 0, 2]]
    # the token before a window's first row counts: of rows 1 2 3 it is 0, of 3 4 5 it is 2, of b's first there is none
    previous = steps.previous_rows(np.repeat([0, 1], [6, 4]).astype(np.int32))
    assert previous.tolist() == [-1, *(0, -1, -1), *(-1, -1, -1), *(2, -1, -1), *(6, -1, -1)]
    assert draft_ns(10, steps.windows, 3).tolist() == [0, 40, 40]
    short = first_steps(steps, 2)
    assert short.windows is not None and short.windows.accepted.tolist() == [2, 1]
    assert short.requests.tolist() == [[0, 0, 0, 0, 1], [1, 0, -1, 0, 1]] and short.accepted.sum() == 4


@given(
    traces(), some.integers(1, 4), some.integers(1, 4), some.booleans(), some.integers(1, 5),
    some.sampled_from([0.0, 0.3, 0.7, 1.0]), some.integers(0, 2**63 - 1), some.integers(1, 40),
)  # fmt: skip
def test_the_reference_lays_the_same_windows(
    trace: RoutingTrace, batch: int, chunk: int, as_decode: bool, n: int, chance: float, seed: int, most: int
) -> None:
    mine = first_steps(schedule(trace, batch, chunk, as_decode, Speculation(n, chance, seed)), most)
    accepts = lambda *asked: guessed(seed, Fraction(chance), *asked)  # noqa: E731 - a def would say no more
    steps, windows = reference_windows(
        trace.sequence.tolist(), trace.prefill.tolist(), batch, chunk, as_decode, n, accepts
    )
    assert list(zip(mine.prefill.tolist(), rows_of(mine), strict=True)) == steps[:most]
    found = [] if mine.windows is None else list(zip(*(c.tolist() for c in vars(mine.windows).values()), strict=True))
    assert found == ([window for window in windows if window[0] < most] if n > 1 else [])
    counts = Counter(mine.row[mine.accepted].tolist())
    assert set(counts.values()) <= {1}  # every token counts once, if the run gets to it
    if most >= len(steps):
        assert len(counts) == trace.n_tokens


@given(traces(), some.integers(1, 4), some.booleans(), some.integers(1, 6))
def test_with_all_accepted_a_request_takes_its_tokens_by_the_window(
    trace: RoutingTrace, batch: int, as_decode: bool, n: int
) -> None:
    """ceil(tokens / n) passes; with none accepted beside the first, one pass a token."""
    starts, ends = trace.requests()
    tokens = [
        int(((not as_decode) * trace.prefill[a:b] == 0).sum())
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    best, worst = (schedule(trace, batch, 4, as_decode, Speculation(n, chance, 0)) for chance in (1.0, 0.0))
    assert best.generated.tolist() == [-(-each // n) for each in tokens] and worst.generated.tolist() == tokens


@given(traces(), some.integers(1, 4), some.booleans(), some.sampled_from([0.0, 0.5, 1.0]))
def test_windows_of_one_row_are_plain_steps(trace: RoutingTrace, batch: int, as_decode: bool, chance: float) -> None:
    plain, mine = schedule(trace, batch, 3, as_decode), schedule(trace, batch, 3, as_decode, Speculation(1, chance, 1))
    assert mine.windows is None and all(np.array_equal(vars(plain)[name], vars(mine)[name]) for name in vars(plain))
    assert [(bool(p), rows) for p, rows in zip(mine.prefill, rows_of(mine), strict=True)] == reference_steps(
        trace.sequence.tolist(), trace.prefill.tolist(), batch, 3, as_decode
    )


def test_more_chance_accepts_no_less() -> None:
    trace = trace_of([(0, 400)] * 3)
    passes = [len(schedule(trace, 2, 8, False, Speculation(4, p, 5))) for p in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert passes == sorted(passes, reverse=True) and len(set(passes)) == 5
    # of windows of four a share p of guesses is right: 1 + p + p^2 + p^3 tokens a pass, at p = 1/2 1.875
    half = schedule(trace_of([(0, 40_000)]), 1, 8, False, Speculation(4, 0.5, 5))
    assert 40_000 / len(half) == pytest.approx(1.875, rel=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 2", "has 2 counts; the run has more windows, and needs one for each"),
        ("2 4 1", "count 2 is 4; its window has 3 rows: must be from 1 to 3"),
        ("0", "count 1 is 0; its window has 3 rows: must be from 1 to 3"),
        ("2 two", "must be whole numbers with spaces, commas or lines between, or a JSON list"),
        ("[2, 2.5]", "must be whole numbers with spaces, commas or lines between, or a JSON list"),
        ("[true]", "must be whole numbers with spaces, commas or lines between, or a JSON list"),
        ("[2", "must be whole numbers with spaces, commas or lines between, or a JSON list"),
        ("", "has 0 counts; the run has more windows, and needs one for each"),
    ],
)
def test_counts_that_say_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        schedule(trace_of([(0, 6)]), 1, 8, False, counted(tmp_path, 3, text))
    assert str(raised.value) == f"accept: {tmp_path / 'accepted.txt'}: {message}"


def test_a_file_of_counts_is_read_either_way(tmp_path: Path) -> None:
    for text in ("2\n1\n3\n", "2,1,3", "[2, 1, 3]", " 2, 1\t3 4"):  # what is left over is of no window
        assert len(schedule(trace_of([(0, 6)]), 1, 8, False, counted(tmp_path, 3, text))) == 3


# --- the machines ---


@pytest.mark.parametrize("chunk", range(5))
def test_the_machines_agree_with_the_reference_on_windows(chunk: int) -> None:
    for seed in range(chunk * PLANS // 5, (chunk + 1) * PLANS // 5):
        assert check(window_plan(seed)) is None, seed


def test_a_run_by_hand() -> None:
    """One layer, experts 0 1 2 3 of four tokens, two slots that hold 0 and 1, a window of two: rows 0 1, of which 0
    counts; 1 2; 3. Draft 7 a row behind the first, dense 10, 5 an expert, 100 a transfer.
    7 + 10: routed at 17, 0 and 1 are there: to 27. Again 7 + 10 to 44: 1 runs, 2 takes 0's slot: to 144, then to 149.
    10 to 159, 3 takes 1's slot (2 has run since): to 259, then to 264."""
    steps = Windows(*np.array([[0, 0, 2, 1], [1, 0, 2, 2], [2, 0, 1, 1]], np.int32).T)
    p = plan([[[0]], [[1]], [[2]], [[3]]], 4, [2], [[0, 1], [1, 2], [3]], dense=10, expert=5, transfer=100)
    p = replace(p, windows=steps, costs=replace(p.costs, draft_ns=np.array([7, 7, 0])))
    p = replace(p, requests=np.array([[0, 0, -1, 0, 3]]))
    record = compiled.run(p, True)
    assert record.steps["end_ns"].tolist() == [27, 149, 264] and record.steps["accepted"].tolist() == [1, 2, 1]
    out = summarise(record)
    assert out["breakdown_ns"] == {
        "draft": 14, "dense": 30, "decide": 0, "experts": 25, "stall": 195, "cpu_wait": 0, "head": 0,
    }  # fmt: skip
    # tokens at 27, 149, 149 and 264
    assert (out["tokens"], out["itl_ms"]["n"], out["itl_ms"]["p50"]) == (4, 3, 115e-6)
    assert out["itl_ms"]["mean"] == out["tpot_ms"]["mean"] == pytest.approx((264 - 27) / 3 / 1e6)
    assert out["tokens_per_s"] == pytest.approx(4 / 264e-9)
    each = per_request(record)
    assert each.tokens.tolist() == [4] and each.time_ns.tolist() == [264.0]
    # behind a warm-up of a pass: 149 to 264 for three tokens, two of them at once
    warm = summarise(compiled.run(replace(p, warmup_steps=1)))
    assert (warm["tokens"], warm["itl_ms"]["n"], warm["time_ns"]) == (3, 3, 237)


def test_a_token_loses_what_it_lost_when_it_last_ran() -> None:
    """Token 1 runs twice, and both times its expert is dropped: weight 0.5 of it is lost, not 1."""
    windows = Windows(*np.array([[0, 0, 2, 1], [1, 0, 1, 1]], np.int32).T)
    weights = np.full((2, 1, 1), 0.5, np.float32)
    p = plan([[[0]], [[1]]], 2, [1], [[0, 1], [1]], miss="drop", weights=weights)
    record = compiled.run(replace(p, windows=windows, requests=np.array([[0, 0, -1, 0, 2]])))
    assert record.tokens["lost_weight"].tolist() == [0.0, 0.5] and record.counters["weight_dropped"] == 1.0


@pytest.mark.parametrize("seed", range(0, 300, 3))
def test_parts_add_up_and_no_bound_is_broken(seed: int) -> None:
    p = window_plan(seed)
    record = compiled.run(p)
    out = summarise(record)
    assert sum(out["breakdown_ns"].values()) == out["time_ns"]
    each = per_request(record)
    assert each.tokens.sum() == out["tokens"] and each.time_ns.sum() == pytest.approx(out["decode_ns"])
    assert executed_bounds(p, record)["executed_ns"] <= out["time_ns"]
    if p.miss.name == "fetch":
        found = bounds(p)
        assert found == reference_bounds(p) and found["lossless_ns"] <= out["time_ns"]


def test_the_torch_machine_runs_windows_in_simulated_time_and_in_lock_step() -> None:
    ran = 0
    for seed in range(240):
        p = window_plan(seed)
        if p.windows is None or p.on_miss is not None:
            continue
        record = compiled.run(p, True)
        machine = machine_on(p, timed())
        assert on_device(record, machine.run()) is None, seed
        machine = machine_on(p, shuffled(seed))
        assert sum(summarise(machine.run())["breakdown_ns"].values()) >= 0
        again = machine_on(p, shuffled(seed), order=lambda m, r=record: LockStep(m, r))
        again.run()
        ran += 1
    assert ran > 100


# --- runs ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a trace of eight requests and durations."""
    monkeypatch.chdir(tmp_path)
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(5), 240, 4, 8, 2, requests=8, prompt=0.3))
    (tmp_path / "h.toml").write_text(FIXED)
    return tmp_path


def spec(**fields: Any) -> RunSpec:
    return RunSpec.of({"trace": "t.npz", "hardware": "h.toml", "cache": 4, **fields})


def without_the_spec(out: dict[str, Any]) -> str:
    return json.dumps({name: part for name, part in out.items() if name != "spec"})


@pytest.mark.parametrize("more", [{}, {"batch": 3}, {"as_decode": True}, {"prefetch": "previous-token"}])
def test_windows_of_one_row_change_nothing(folder: Path, more: dict[str, Any]) -> None:
    (plain, one), (mine, other) = (simulate(spec(**more, **given), full=True) for given in ({}, {"speculate": 1}))
    assert without_the_spec(plain) == without_the_spec(mine) and one.counters == other.counters
    for name, group in one.groups.items():
        assert all(np.array_equal(column, other.groups[name][key]) for key, column in group.items())
    assert "speculation" not in mine and "draft" not in mine["breakdown_ns"]


def test_bytes_per_token_rise_where_acceptance_falls(folder: Path) -> None:
    told = [simulate(spec(as_decode=True, speculate=4, accept=p))[0]["speculation"] for p in (1.0, 0.7, 0.3, 0.0)]
    for name in ("h2d_bytes_per_token", "distinct_experts_per_token"):
        assert [each[name] for each in told] == sorted({each[name] for each in told})
    assert [each["accepted"] for each in told] == [240] * 4
    assert told[0]["rows"] == 240 and told[0]["accepted_per_window"] == 240 / told[0]["windows"]


def test_what_a_command_says_of_windows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--trace t.npz --hardware h.toml --cache 4 --speculate 3 --accept 0.5 --draft-ns 9 --out out --record full"
    assert run.main(words.split()) == 0
    text = capsys.readouterr().out
    assert "speculation" in text and "the trace's own next rows stand for it" in text
    out = json.loads((folder / "out" / "summary.json").read_text())
    assert out["breakdown_ns"]["draft"] == 9 * (out["speculation"]["rows"] - out["speculation"]["windows"])
    assert out["spec"]["speculate"] == 3 and out["speculation"]["n"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--accept 0.5", "accept: 0.5: is of speculative windows; needs --speculate N"),
        ("--draft-ns 5", "draft_ns: 5: is of speculative windows; needs --speculate N"),
        ("--prefetch draft-window", "prefetch: draft-window: lists what speculative windows want; needs --speculate N"),
        ("--speculate 0", "speculate: 0: must be at least 1"),
        ("--speculate 257", "speculate: 257: must be at most 256"),
        ("--speculate 2 --accept 1.5", "accept: '1.5': must be a share from 0 to 1, all, or a file of counts"),
        ("--speculate 2 --accept nan", "accept: 'nan': must be a share from 0 to 1, all, or a file of counts"),
        (
            "--speculate 2 --accept none.txt",
            "accept: none.txt: no such file or directory; must be a share from 0 to 1, all, or a file of counts",
        ),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert run.main(["--trace", "t.npz", "--hardware", "h.toml", "--out", "out", *words.split()]) == 2
    assert capsys.readouterr().err.strip().endswith(message) and not (folder / "out").exists()


def test_a_trace_of_prompts_alone_has_no_windows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz.write(folder / "p.npz", trace_of([(4, 0)]))
    assert run.main(["--trace", "p.npz", "--hardware", "h.toml", "--speculate", "2"]) == 2
    message = "speculate: 2: p.npz has no generated tokens; --as-decode runs its prompts as decode steps"
    assert capsys.readouterr().err.strip().endswith(message)


# --- the prefetcher of drafts ---


def test_the_least_time_between_two_visits() -> None:
    """Two layers; classes of dense 10 20 | 3 and 30 8 | 1, heads 7 and 2, decide 4, drafts 5 and 9 of decode steps.
    Layer 0 to 1: 8 + 4. Layer 1 to 0 of the next step: 1 + 2 + 5 + 10 + 4. Two ahead: both."""
    costs = Costs(
        np.array([[10, 20, 3], [30, 8, 1]]), np.array([7, 2]), np.zeros(3, np.int32), 4, 0,
        *(np.zeros(0, np.int64),) * 3, draft_ns=np.array([0, 5, 9]),
    )  # fmt: skip
    found = within_ns(costs, np.array([True, False, False]), 2)
    assert found.tolist() == [[12, 22], [34, 34]]


def test_what_cannot_land_in_time_does_not_join() -> None:
    """Three experts are listed for the next step, each takes 100 on the link: two land within 250, the third would at
    300. In the second run the visit's own miss stands before them."""
    wanted = [[[0, -1, -1]], [[1, 2, 3]]]
    lists = np.array([[[[0, 0, 0]], [[1, 2, 3]]]], np.int16)
    ahead = Prefetch(lists, np.array([[-1, 1]], np.int32), within_ns=np.array([[250]]))
    for residents, joined in (([0], [1, 2]), ([4], [1])):
        p = plan(wanted, 5, [5], residents=residents, dense=10, expert=5, transfer=100, prefetch=ahead)
        for machine in (compiled, discrete):
            transfers = machine.run(p, True).groups["transfers"]
            assert transfers["expert"][(transfers["visit"] == 0) & (transfers["expert"] > 0)].tolist() == joined
        assert check(p) is None


def test_drafts_are_known_a_whole_step_ahead_and_no_nearer(folder: Path) -> None:
    (folder / "fast.toml").write_text(FIXED.replace("100", "10"))
    fields = {"as_decode": True, "hardware": "fast.toml", "speculate": 2, "accept": 0.5}
    out, record = simulate(spec(prefetch="draft-window", **fields), full=True)
    assert out["marks"]["oracle"] and out["transfers"]["prefetch"] > 0
    transfers, layers = record.groups["transfers"], 4
    mine = transfers["cause"] == 1
    assert (transfers["visit"][mine] % layers == transfers["layer"][mine]).all()
    assert out["time_ns"] < simulate(spec(**fields))[0]["time_ns"]


def test_recall_is_the_share_of_what_is_listed() -> None:
    from sim.fit.predictors import PREDICTORS

    trace = random_trace(np.random.default_rng(3), 400, 3, 16, 4, requests=4, prompt=0.1)
    steps = schedule(trace, 1, 64, False, Speculation(2, 0.5, 1))
    whole, part, none = (PREDICTORS["draft-window"](recall=r).predict(trace, steps) for r in (1.0, 0.7, 0.0))
    assert (none.lists == -1).all() and (np.array(whole.lists[0]) == trace.experts).all()
    kept = part.lists >= 0
    assert (part.lists[kept] == whole.lists[kept]).all() and kept.mean() == pytest.approx(0.7, abs=0.03)
    of_prefill = np.repeat(steps.prefill, np.diff(steps.offset))
    assert (whole.row[:-1] == -1).all() and (whole.row[-1][~of_prefill] == steps.row[~of_prefill]).all()
    assert (whole.row[-1][of_prefill] == -1).all()


# --- recommend ---


def test_whether_a_window_pays_in_a_line() -> None:
    """Of 10 tokens/s without, 9 with two rows, 12.5 with three; four do not run."""
    each = {"accepted_per_window": 1.8, "h2d_bytes_per_token": 25e6, "error": None}
    rows = [{"n": 2, "tokens_per_s": 9.0} | each, {"n": 3, "tokens_per_s": 12.5} | each, {"n": 4, "error": "no"}]
    found = {"accept": 0.7, "draft_ns": 1000, "without": 10.0, "rows": rows, "pays": 3}
    assert words(found) == (
        "a window of 3 pays (accept 0.7, draft 1,000 ns a row): 12.50 tokens/s; 2 rows 0.900 x, 3 rows 1.250 x as fast "
        "as without; 1.80 accepted, 25.0 MB to the GPU a token"
    )
    slow = found | {"rows": rows[:1], "pays": None}
    assert words(slow) == "no window pays (accept 0.7, draft 1,000 ns a row): 2 rows 0.900 x as fast as without"
    assert words(found | {"rows": rows[2:], "pays": None}) == "no window could be judged: no"


def test_each_size_is_run_at_the_chosen_settings(folder: Path) -> None:
    fields = {"trace": "mixtral.npz", "hardware": "rtx4090", "precision": "q4", "as_decode": True, "max_steps": 20}
    wish = Wish(fields, 8192, windows={"accept": 1.0, "draft_ns": 7})
    case = Case(wish, fields)
    best = case.rate(RunSpec.of({**fields, "cache": 6}), "the best")
    found = windows(case, best, {"accept": 1.0, "draft_ns": 7})
    for row in found["rows"]:
        same = simulate(RunSpec.of({**fields, "cache": 6, "speculate": row["n"], "accept": 1.0, "draft_ns": 7}))[0]
        assert row["tokens_per_s"] == same["tokens_per_s"] and row["accepted_per_window"] == row["n"]
    speeds = {row["n"]: row["tokens_per_s"] for row in found["rows"]}
    assert found["pays"] == max(speeds, key=speeds.__getitem__) and speeds[found["pays"]] > found["without"]
    assert f"--speculate {found['pays']}" in found["command"] and "--draft-ns 7" in found["command"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--accept 0.5", "accept: 0.5: is of speculative windows; needs --speculate"),
        ("--draft-ns 5", "draft_ns: 5: is of speculative windows; needs --speculate"),
        (
            "--speculate --accept n.txt",
            "accept: n.txt: counts are of windows of one size; must be a share from 0 to 1, or all",
        ),
    ],
)
def test_what_recommend_cannot_be_asked(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert recommend.main(["--trace", "mixtral.npz", *flags.split()]) == 2
    assert capsys.readouterr().err.strip().endswith(message)
