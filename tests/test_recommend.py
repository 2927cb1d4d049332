"""Recommendations: the memory split, the search, how sure it is, and that the command it prints gives its number."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim import catalog, recommend, run
from sim.costs.memory_split import Card, split
from sim.costs.roofline import memory
from sim.errors import SpecError
from sim.machines.compiled import run as simulate
from sim.outcome.per_request import PerRequest, drawn, interval, per_request
from sim.outcome.summary import summarise
from sim.outcome.table import BOUNDS
from sim.prepare import prepare
from sim.search.halving import LENGTHS, Search, begin_with, lengths_of
from sim.search.judging import Wish, command
from sim.search.recommendation import Recommendation
from sim.search.space import BASELINE, Candidate, Space, fields_of
from sim.spec import RunSpec
from sim.sweeps.answer import lost_weight
from sim.sweeps.config import Configuration, identity
from sim.sweeps.rows import Row
from sim.sweeps.session import inspect
from sim.sweeps.worker import Task, Worker
from tests.gen import random_trace
from tests.runs_by_hand import FIXED
from traces.format import npz
from traces.format.trace import RoutingTrace
from traces.synthetic import PRESETS, generate


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of Mixtral's shape, synthetic, five requests of 20 to 30 generated tokens."""
    path = tmp_path_factory.mktemp("traces") / "small.npz"
    npz.write(path, generate(replace(PRESETS["mixtral-8x7b"], requests=5, prompt=(6, 12), generation=(20, 30)), 1))
    return str(path)


def here(runs: Sequence[Configuration]) -> Sequence[Row]:
    """Rows by one worker in this process."""
    return Worker(inspect(runs)[0]).run(Task(runs)).rows


def run_of(spec: RunSpec) -> Configuration:
    return Configuration(identity(spec), spec)


# --- memory ---

MIXTRAL = (catalog.model("mixtral-8x7b"), catalog.hardware("rtx4090"), catalog.engine("mixtral-offloading"))
IDEAL = (*MIXTRAL[:2], catalog.engine("ideal"))


def test_the_split_by_hand() -> None:
    """Mixtral, bf16: an expert has 3 x 4096 x 14336 weights of 2 bytes; KV is 32 layers x 4096 bytes a token."""
    vram = 24_080 * 1024**2  # what CUDA shows of an RTX 4090
    s = split(Card(*MIXTRAL, "bf16", vram, context=8192, batch=2))
    assert s.expert_bytes == 3 * 4096 * 14336 * 2 == 352_321_536
    assert s.kv == 2 * 8192 * 32 * 4096
    assert s.staging == 4 * s.expert_bytes  # the engine's four buffers
    assert s.reserve == 475 << 20  # the CUDA context; no step is known, and so no buffer
    left = vram - s.dense - s.kv - s.staging - s.reserve
    assert s.slots == left // s.expert_bytes and 0 <= left - s.slots * s.expert_bytes < s.expert_bytes
    sizes = {"working": s.reserve}
    line = memory(MIXTRAL[0], "bf16", s.slots, 8192, 2, *MIXTRAL[1:], **sizes)
    assert (line["dense"], line["kv"], line["staging"]) == (s.dense, s.kv, s.staging) and line["fits"]
    assert not memory(MIXTRAL[0], "bf16", s.slots + 1, 8192, 2, *MIXTRAL[1:], **sizes)["fits"]
    assert split(Card(*MIXTRAL, "bf16", 10**12, 8192, 1)).slots == 256  # never more than there are


def test_what_would_fit_does_and_a_little_less_does_not(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trace", small, "--hardware", "rtx4090", "--engine", "ideal"]
    assert recommend.main([*flags, "--vram", "8GB"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: vram: 8.00 GB") and err.count("\n") == 1
    words = err.replace(",", "").split()
    needed, precision = words[words.index("--vram") + 1], words[words.index("--precision") + 1]
    gigabytes = float(needed.removesuffix("GB"))
    largest = 12  # tokens of the longest prompt, a step
    assert split(Card(*IDEAL, "bf16", math.ceil(gigabytes * 1e9), 8192, 1, largest=largest)).slots == 32
    with pytest.raises(SpecError, match="needs --vram"):
        split(Card(*IDEAL, "bf16", int((gigabytes - 0.01) * 1e9), 8192, 1, largest=largest))
    assert split(Card(*IDEAL, precision, 8 * 10**9, 8192, 1, largest=largest)).slots >= 32
    assert recommend.main([*flags, "--vram", "1GB"]) == 2
    assert "no lower precision would fit either" in capsys.readouterr().err


BAD: dict[str, tuple[list[Any], str]] = {
    "no unit": (["--vram", "24"], "vram: 24: must be bytes with a unit"),
    "short context": (["--context", "10"], "context: 10: the trace has requests of"),
    "a share above one": (["--max-lossy-weight", "5"], "max-lossy-weight: 5.0: must be a share"),
    "no workers": (["--workers", "0"], "workers: 0"),
    "no candidates": (["--candidates", "0"], "candidates: 0: must be at least 1"),
    "no batch": (["--batch", "0"], "batch: 0: must be at least 1"),
    "time backwards": (["--time-limit", "-1"], "time-limit: -1.0: must be seconds, or 0"),
    "no time at all": (["--time-limit", "nan"], "time-limit: nan: must be seconds, or 0"),
    "an oracle": (["--eviction", "belady"], "eviction: belady is an oracle"),
    "an oracle ahead": (["--prefetch", "oracle"], "prefetch: oracle is an oracle"),
    "lossy without leave": (["--miss", "buddy"], "miss: buddy is lossy; --max-lossy-weight"),
    "of unknown cost": (["--miss", "hobbit", "--max-lossy-weight", "0.1"], "does not know what low-precision copies"),
    "unknown": (["--miss", "fetsch"], "did you mean fetch"),
    "a flag": (["--contxt", "3"], "did you mean --context"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, small: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags, hint = BAD[name]
    assert recommend.main(["--trace", small, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert hint in captured.err


def test_lossy_candidates_need_router_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = generate(replace(PRESETS["mixtral-8x7b"], requests=2, prompt=(2, 2), generation=(4, 4)), 1)
    npz.write(tmp_path / "t.npz", replace(whole, weights=None))
    assert recommend.main(["--trace", str(tmp_path / "t.npz"), "--max-lossy-weight", "0.1"]) == 2
    assert "needs `weights`, which" in capsys.readouterr().err


# --- the space ---


def test_candidates_are_what_the_trace_and_the_limits_allow() -> None:
    rng = np.random.default_rng(0)
    trace = random_trace(rng, lookahead=3, distances=(1, 2))
    space = Space.of(trace, calibrated=True, host=True, lossy=True, fixed={})
    every = space.sample(400, 0)
    assert len(every) == 400 == len({json.dumps(c, sort_keys=True) for c in every})
    assert every == space.sample(400, 0) != space.sample(400, 1)
    assert {c["miss"] for c in every} > {"drop-by-weight", "buddy", "mixed"}
    assert {c["gate-lookahead.distance"] for c in every if c["prefetch"] == "gate-lookahead"} == {1, 2}
    assert all(("transfer_order" in c) == (c["prefetch"] != "none") for c in every)
    assert space.whole(BASELINE) in every
    bare = Space.of(
        replace(trace, lookahead=None), calibrated=False, host=False, lossy=False, fixed={"eviction": "lfu"}
    )
    few = bare.sample(1000, 0)
    assert {c["miss"] for c in few} == {"fetch", "stream"} and {c["eviction"] for c in few} == {"lfu"}
    assert {c["prefetch"] for c in few} == {"none", "previous-token", "popular-per-request"}
    assert {c["placement"] for c in few} == {"first"}
    # miss x scope x (none, or distance x budget x order, of popular-per-request x tokens): all
    assert len(few) == 2 * 2 * (1 + 3 * 4 * 3 * (1 + 2))


def test_what_is_fitted_is_left_out_where_the_calibration_lacks_what_it_learns_from() -> None:
    trace = random_trace(np.random.default_rng(0), logits=True)
    given: dict[str, Any] = {"calibrated": True, "host": True, "lossy": False, "fixed": {}}
    whole, part = Space.of(trace, **given), Space.of(trace, **given, lacking=["logits", "lookahead"])
    assert set(whole.knobs["prefetch"]) - set(part.knobs["prefetch"]) == {"map-store"}


def test_neighbours_differ_in_one_knob_and_in_what_hangs_on_it() -> None:
    space = Space.of(random_trace(np.random.default_rng(0)), calibrated=True, host=True, lossy=False, fixed={})
    for candidate in space.sample(60, 3):
        for near in space.neighbours(candidate):
            assert near == space.whole(near) != candidate
            shared = set(near) & set(candidate)
            assert len([knob for knob in shared if near[knob] != candidate[knob]]) == 1


# --- the search ---


def invented(
    space: Space, speeds: dict[str, float], lost: dict[str, float]
) -> tuple[Any, list[tuple[str, int | None]]]:
    """An evaluate whose speed depends on the policies' names alone; and what it was asked, as (miss, steps). lost: by
    miss policy, of those that drop the dropped router weight, of the others what stand-ins answered for."""
    asked: list[tuple[str, int | None]] = []

    def evaluate(runs: Sequence[Configuration]) -> Sequence[Row]:
        rows = []
        for each in runs:
            spec = each.spec
            assert spec is not None
            asked.append((spec.miss, spec.max_steps))
            speed = sum(speeds.get(policy, 0) for policy in (spec.miss, spec.eviction))
            rows.append({
                "id": each.id, "error": "no" if spec.prefetch == "transition" else None, "total_tokens_per_s": None,
                "tokens_per_s": speed + (spec.cache_scope == "global"),
                "quality.substituted_weight": 0.0 if "drop" in spec.miss else lost.get(spec.miss, 0.0),
                "quality.dropped_weight": lost.get(spec.miss, 0.0) if "drop" in spec.miss else 0.0,
                "spec.rerank": "none", "low": 0,
            })  # fmt: skip
        return rows

    return evaluate, asked


def test_the_fastest_admitted_one_is_found_and_the_worse_half_stops_early() -> None:
    space = Space.of(random_trace(np.random.default_rng(0)), calibrated=True, host=True, lossy=True, fixed={})
    speeds = {"fetch": 1, "cpu": 2, "fiddler": 3, "drop-by-weight": 9, "buddy": 8, "mixed": 7, "lfu": 0.5}
    evaluate, asked = invented(space, speeds, {"drop-by-weight": 0.2, "buddy": 0.04, "mixed": 0.06})
    search = Search(space, {"trace": "t"}, evaluate, lengths_of(1600, 1600), most=400, max_lossy_weight=0.05)
    ranked = search.run(space.sample(64, 0))
    best = ranked[0][0]
    assert (best["miss"], best["eviction"], best["cache_scope"]) == ("buddy", "lfu", "global")
    assert (best["prefetch"], best["placement"]) == ("none", "first")  # of equals, the plainest
    assert all(lost_weight(row) <= 0.05 for _, row in ranked)
    by_length = [len([1 for _, steps in asked if steps == n]) for n in (100, 200, 400, 800)]
    assert len(LENGTHS) == 5 and by_length == [64, 32, 16, 8]
    assert search.counts["runs"] == len(asked) and search.counts["failed"] > 0
    evaluate, _ = invented(space, speeds, {})
    exact = Space.of(random_trace(np.random.default_rng(0)), True, True, False, {})
    lossless = Search(exact, {"trace": "t"}, evaluate, [40], 400)
    assert lossless.run(exact.sample(64, 0))[0][0]["miss"] == "fiddler"


def test_lengths_of_the_trace_by_hand() -> None:
    """Parts of the steps, no fewer than 64 of them; of prompts in large steps, no fewer than 4, and than 1,024 rows."""
    assert lengths_of(1600, 1600) == [100, 200, 400, 800, 1600]
    assert lengths_of(300, 300) == [64, 75, 150, 300]  # 300 / 16 and 300 / 8 are fewer than 64
    assert lengths_of(30, 30) == [30]
    assert lengths_of(32, 32 * 512) == [4, 8, 16, 32]  # 1,024 rows are two steps: at least four
    assert lengths_of(160, 160 * 64) == [16, 20, 40, 80, 160]  # 1,024 rows are 16 steps; 160 / 16 are fewer
    assert lengths_of(1700, 1700, warmup=100) == [200, 300, 500, 900, 1700]  # parts of what counts


@pytest.mark.parametrize("most", [1, 2, 6, 16, 40, 3000])
def test_the_number_of_candidates_bounds_what_is_ever_run(most: int) -> None:
    space = Space.of(random_trace(np.random.default_rng(0)), calibrated=True, host=True, lossy=False, fixed={})
    evaluate, _ = invented(space, {"fetch": 1, "cpu": 2, "fiddler": 3, "lfu": 0.5}, {})
    ever: set[str] = set()

    def counted(runs: Sequence[Configuration]) -> Sequence[Row]:
        for each in runs:
            assert each.spec is not None
            ever.add(repr(each.spec.model_copy(update={"max_steps": None})))
        return evaluate(runs)

    search = Search(space, {"trace": "t"}, counted, lengths_of(1600, 1600), most)
    begun = begin_with(space, most, 0)
    assert begun[0] == space.whole(BASELINE) and len(begun) == max(min(most, len(space.plain())), int(0.4 * most))
    assert search.run(begun)
    assert search.counts["candidates"] == len(ever) <= most
    assert (search.ended == "candidates") == (most < 60)
    if most == 6:  # as plain as can be: the baseline, and one other value of each of five choices
        assert [sum(c[knob] != BASELINE[knob] for knob in BASELINE) for c in begun] == [0, 1, 1, 1, 1, 1]
        assert len({knob for c in begun for knob in BASELINE if c[knob] != BASELINE[knob]}) == 5


@pytest.mark.parametrize(
    ("patience", "reached", "compared"), [(0, 100, 0), (10, 100, 10), (64, 100, 64), (70, 200, 6), (124, 1600, 4)]
)
def test_when_time_is_over_the_best_over_the_longest_length_is_the_answer(
    patience: int, reached: int, compared: int
) -> None:
    """An evaluate that gives up after so many runs: of the 64 over 100 steps, the 32 over 200, ... the 4 over 1,600."""
    space = Space.of(random_trace(np.random.default_rng(0)), calibrated=True, host=True, lossy=False, fixed={})
    evaluate, asked = invented(space, {"fetch": 1, "cpu": 2, "fiddler": 3, "lfu": 0.5}, {})
    search = Search(
        space, {"trace": "t"}, lambda runs: evaluate(runs[: patience - len(asked)]), lengths_of(1600, 1600), 400
    )
    ranked = search.run(space.sample(64, 0))
    assert (search.ended, search.reached, search.counts["compared"]) == ("time-limit", reached, compared)
    assert search.runs == patience and (len(ranked) > 0) == (patience > 0)
    if patience > 64:  # those that led over the length before were run first
        assert ranked[0][0]["miss"] == "fiddler"


# --- what is lost ---


def test_lost_weight_is_what_stand_ins_and_nobody_answered_for() -> None:
    row = {"error": None, "spec.rerank": "none", "low": 0}
    row |= {"quality.substituted_weight": 0.25, "quality.dropped_weight": 0.125}
    assert lost_weight(row) == 0.375
    for unknown in (
        {"error": "no"}, {"spec.rerank": "sere"}, {"low": 1},
        {"quality.substituted_weight": None}, {"quality.dropped_weight": None},
    ):  # fmt: skip
        assert math.isinf(lost_weight(row | unknown))


def test_dropped_weight_is_lost_weight(tmp_path: Path) -> None:
    """Experts 0 and 1 of 4 are resident. The first token wants 0 and 2, with weights 3/4 and 1/4: 2 is not there and
    1/4 is below the threshold, so it is left out. The second wants 1 and 0. Lost: 1/4 of 2."""
    trace = RoutingTrace(
        experts=np.array([[[0, 2]], [[1, 0]]], np.int16), sequence=np.zeros(2, np.int32),
        position=np.arange(2, dtype=np.int32), prefill=np.zeros(2, bool),
        weights=np.array([[[0.75, 0.25]], [[0.5, 0.5]]], np.float16),
        meta=random_trace(np.random.default_rng(0), layers=1, experts=4).meta,
    )  # fmt: skip
    npz.write(tmp_path / "t.npz", trace)
    (tmp_path / "h.toml").write_text(FIXED)
    dropping: Candidate = {
        **BASELINE,
        "miss": "drop-by-weight",
        "cache_spread": "even",
        "drop-by-weight.threshold": 0.3,
    }
    fields = {"trace": str(tmp_path / "t.npz"), "hardware": str(tmp_path / "h.toml"), "cache": 2}
    (row,) = here([run_of(RunSpec.of({**fields, **fields_of(dropping)}))])
    assert row["dropped"] == 1 and lost_weight(row) == 0.125
    for limit, admitted in [(0.125, True), (0.124, False)]:
        only = Space.of(trace, False, False, True, {**BASELINE, "miss": "drop-by-weight"})
        search = Search(only, fields, here, [2], 2, limit)
        assert bool(search.run([dropping])) == admitted


# --- how sure ---


@pytest.mark.parametrize("batch", [1, 3])
def test_requests_add_up_to_the_run(small: str, batch: int) -> None:
    setting = prepare(RunSpec.of({"trace": small, "batch": batch}))
    record = simulate(setting.plan)
    summary, each = summarise(record), per_request(record).with_tokens()
    assert each.request.tolist() == [0, 1, 2, 3, 4]
    assert each.tokens.sum() == summary["tokens"]
    assert each.time_ns.sum() == pytest.approx(summary["decode_ns"], rel=1e-12)
    once = np.arange(5)[None]
    assert each.rates(once)[0] == pytest.approx(summary["tokens_per_s"], rel=1e-12)


def test_the_interval_is_the_middle_95_percent() -> None:
    """Of 0, 1, ... 1000 a fortieth, 25, lies below and a fortieth above."""
    assert interval(np.random.default_rng(0).permutation(np.arange(1001.0))) == (pytest.approx(25), pytest.approx(975))


def test_intervals_of_known_cases() -> None:
    none = np.full(4, np.nan)  # no TPOT
    same = PerRequest(np.arange(4), np.full(4, 10), np.full(4, 2e9), none)  # every request 5 tokens/s
    draws = drawn(4, 0)
    assert interval(same.rates(draws)) == (5.0, 5.0)
    uneven = PerRequest(np.arange(4), np.full(4, 10), np.array([1e9, 2e9, 4e9, 8e9]), none)
    twice = PerRequest(np.arange(4), uneven.tokens, uneven.time_ns / 2, none)
    low, high = interval(uneven.rates(draws))
    assert 10 / 8 < low < 40 / 15 < high < 10
    assert interval(twice.rates(draws) / uneven.rates(draws)) == (2.0, 2.0)  # paired: no noise between them
    assert (drawn(4, 0) == drawn(4, 0)).all() and drawn(4, 0).shape == (2000, 4)


# --- the whole ---


def test_the_claim_is_what_its_command_gives(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--trace",
        small,
        "--model",
        "mixtral-8x7b",
        "--hardware",
        "rtx4090",
        "--vram",
        "24GB",
        "--context",
        "8192",
    ]
    flags += ["--max-lossy-weight", "0.05", "--candidates", "40", "--workers", "1", "--seed", "3"]
    flags += ["--time-limit", "0", "--ram", "128GB"]
    assert recommend.main([*flags, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    out = json.loads(printed)
    words = shlex.split(out["command"])
    assert words[:3] == ["python", "-m", "sim.run"] and run.main([*words[3:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["tokens_per_s"] == out["best"]["tokens_per_s"] and again["time_ns"] == out["best"]["time_ns"]
    assert (
        again["memory"]["fits"] and again["memory"]["slots"] == out["memory"]["slots"] * out["memory"]["expert_bytes"]
    )
    assert again["spec"]["calibration"] == 0.25 and out["judged"]["requests"] == again["requests"] == 4
    lost = again["quality"]["substituted_weight"] + again["quality"]["dropped_weight"]
    assert lost == out["best"]["lost_router_weight"] <= 0.05
    assert out["best"]["open_loop"] == any("OPEN LOOP" in note for note in out["notes"]) == (lost > 0)
    assert any("SYNTHETIC" in note for note in out["notes"])
    for rival in out["beats"].values():
        low, high = rival["ratio_interval"]
        assert low <= rival["ratio"] <= high and rival["tokens_per_s"] <= out["best"]["tokens_per_s"]
    plain = [
        "--trace",
        small,
        "--hardware",
        "rtx4090",
        "--cache",
        f"{again['memory']['slots']}B",
        "--calibration",
        "0.25",
    ]
    assert run.main([*plain, "--seed", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_per_s"] == out["beats"]["lru + fetch"]["tokens_per_s"]


@pytest.mark.parametrize("sample", npz.sample_names())
def test_the_command_gives_the_same_number_of_every_shipped_sample(sample: str) -> None:
    """Also of one that brings a calibration of its own: the command says what was set aside."""
    base = {"trace": sample, "hardware": "rtx4090", "max_steps": 120, "ram": "128GB"}
    out = Recommendation(Wish(base, context=8192, candidates=20, max_lossy_weight=0.05)).search(here)
    spec = run.spec_of(run.parser().parse_args(shlex.split(out["command"])[3:]))
    again = run.simulate(spec)[0]
    assert spec.calibration == 0.25 and again["steps"] == 120
    assert (again["time_ns"], again["tokens_per_s"]) == (out["best"]["time_ns"], out["best"]["tokens_per_s"])


def test_lossless_unless_asked_and_the_same_twice(small: str) -> None:
    wish = Wish(
        {"trace": small, "hardware": "rtx4090", "ram": "128GB"},
        context=4096,
        candidates=24,
        fixed={"eviction": "fifo", "miss": "fetch"},
    )
    out = Recommendation(wish).search(here)
    assert out["best"]["lost_router_weight"] == 0 and not out["best"]["open_loop"]
    bounds = out["bounds"]
    assert bounds["is_lossless_gpu"] and bounds["time_ns"] == out["best"]["time_ns"]
    assert bounds["lossless_gpu_ns"] == bounds["own_class"]["lossless_ns"] <= bounds["time_ns"]
    assert json.dumps(Recommendation(wish).search(here)) == json.dumps(out)
    from sim.search.advice import text

    told = text(out)
    assert "beats        lru + fetch" in told and "x as fast" in told and out["command"] in told
    assert "SYNTHETIC" in told and "answers misses otherwise" not in told
    assert "any lossless policy on the GPU, oracles included, that keeps what it fetches" in told
    assert told.count("as fast is possible: at least") == sum(name in bounds["own_class"] for name in BOUNDS)
    assert "24 different candidates of at most 24" in told


def test_a_bound_is_never_said_to_be_beaten() -> None:
    """A bound of 2 s: the best of its class takes 3 s, so 1.5 x as fast is possible; one outside it takes 1.5 s."""
    from sim.search.advice import _bounds

    inside = {"time_ns": 3 * 10**9, "own_class": {"lossless_ns": 2 * 10**9}, "lossless_gpu_ns": 2 * 10**9}
    (line,) = _bounds({"bounds": {**inside, "is_lossless_gpu": True}})
    assert "at best 1.50 x as fast is possible: at least 2.000 s for" in line
    outside = {"time_ns": 15 * 10**8, "own_class": {"executed_ns": 10**9}, "lossless_gpu_ns": 2 * 10**9}
    (other,) = _bounds({"bounds": {**outside, "is_lossless_gpu": False}})  # its own work bounds nobody else
    assert other.split(maxsplit=1)[1].endswith(
        "than 2.000 s; this one answers misses otherwise and takes 1.500 s, i.e. 25% less time"
    )
    assert "i.e. 50% more time" in _bounds({"bounds": {**outside, "time_ns": 3 * 10**9, "is_lossless_gpu": False}})[0]


def test_the_answer_after_the_time_limit_is_of_what_was_compared(small: str) -> None:
    """Ten of the candidates over the first length, then time is over: the command says --max-steps and gives the same
    number."""
    wish = Wish(
        {"trace": small, "hardware": "rtx4090", "engine": "ideal", "ram": "128GB"},
        context=4096,
        candidates=24,
        time_limit_s=7.0,
    )
    recommendation = Recommendation(wish)
    out = recommendation.search(lambda runs: here(runs[:10]))
    steps, search = recommendation.setting.steps, out["search"]
    assert (search["ended"], search["compared"], search["candidates"], search["whole"]) == ("time-limit", 10, 10, 0)
    assert (search["compared_steps"], search["steps"]) == (64, len(steps)) and len(steps) > 64
    words = shlex.split(out["command"])
    assert words[words.index("--max-steps") + 1] == "64"
    again = run.simulate(run.spec_of(run.parser().parse_args(words[3:])))[0]
    assert again["time_ns"] == out["best"]["time_ns"] and again["steps"] == 64
    from sim.search.advice import text

    told = "7 s ended the search: the answer is the best of the 10 candidates that were done over the first 64 of "
    assert told + f"{len(steps)} steps; everything here is of those steps alone" in text(out)
    with pytest.raises(SpecError, match="time-limit: 7 s: the time was over: 0 runs were done over the first"):
        Recommendation(wish).search(lambda runs: [])


def test_one_request_alone_has_no_fitted_policy_and_no_interval(tmp_path: Path) -> None:
    npz.write(tmp_path / "t.npz", generate(replace(PRESETS["mixtral-8x7b"], requests=1, generation=(20, 20)), 1))
    base = {"trace": str(tmp_path / "t.npz"), "hardware": "rtx4090", "ram": "128GB"}
    wish = Wish(base, context=4096, candidates=12)
    out = Recommendation(wish).search(here)
    assert out["best"]["tokens_per_s_over_requests"] is None and out["spec"]["calibration"] is None
    assert any("one request" in note for note in out["notes"])


def test_commands_say_every_field() -> None:
    fields = {
        "trace": "a b.npz", "cache": "3B", "cache_scope": "global", "as_decode": True, "calibration": 0.1,
        "eviction": "decayed", "set": {"decayed.decay": 0.8}, "prefetch_budget": 2, "max_steps": 7,
    }  # fmt: skip
    spec = RunSpec.of(fields)
    words = shlex.split(command(spec))
    assert run.spec_of(run.parser().parse_args(words[3:])) == spec


def test_fields_of_a_candidate() -> None:
    candidate: Candidate = {"eviction": "decayed", "decayed.decay": 0.8, "prefetch_budget": None}
    assert fields_of(candidate) == {"eviction": "decayed", "set": {"decayed.decay": 0.8}}
