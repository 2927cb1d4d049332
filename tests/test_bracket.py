"""The bracket of an open-loop replay: worked by hand, its laws, what is said of it."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.outcome import closed_loop
from sim.outcome.closed_loop import ANSWERS, FIGURES, RERANKING, bracket, kept, ranges, share_of, told, words
from sim.simulation import simulate
from sim.spec import RunSpec

FACTORS = {
    ANSWERS: {"bytes": [-16.0, 8.0], "hits": [-4.0, 12.0]},
    RERANKING: {"bytes": [-2.5, 0.0], "hits": [0.0, 1.25]},
}


def replay(**changed: Any) -> dict[str, Any]:
    """Of 400 slots 300 hit; of 100 misses 75 fetched, 20 substituted, 5 dropped; the link works half of the time."""
    return {
        "slots_wanted": 400, "wanted": 400, "hits": 300, "misses": 100, "substituted": 20, "dropped": 5, "low": 0,
        "transfers": {"demand": 75, "prefetch": 0, "promoted": 9}, "h2d_bytes": {"demand": 7500, "prefetch": 0},
        "link_busy_ns": 500, "time_ns": 1000, "breakdown_ns": {"experts": 100}, **changed,
    }  # fmt: skip


def pairs(out: dict[str, Any], reranks: bool = False) -> dict[str, tuple[int, int]]:
    return {name: (ends["low"], ends["high"]) for name, ends in bracket(out, reranks, FACTORS).items()}


# --- worked by hand


def test_a_bracket_worked_by_hand() -> None:
    # 25 of 400 slots are 1/16: -1 .. +.5 % of the misses in bytes, -.25 .. +.75 % in hits
    # bytes: 75 landed beside 25 that did not, 100/75 times that: -1.33 .. +.67 %; time half of it: -.67 .. +.33;
    # hits: 100 misses to 300 hits, a third: -.08 .. +.25
    assert share_of(replay()) == 1 / 16
    assert pairs(replay()) == {"bytes": (-2, 1), "time": (-1, 1), "hits": (-1, 1)}
    # a twentieth as many are fetched: 25 and 3 stand for 28 / 3 times: -9.33 .. +4.67 %, time as much on a busy link
    few = replay(transfers={"demand": 3}, h2d_bytes={"demand": 300}, link_busy_ns=1000)
    assert pairs(few) == {"bytes": (-10, 5), "time": (-10, 5), "hits": (-1, 1)}


def test_reranking_adds_its_own() -> None:
    # nobody answers otherwise, 100 of 400 land: 4 times -2.5 .. 0 % of bytes, half of that of time, 5/3 % of hits
    none = replay(substituted=0, dropped=0, transfers={"demand": 100})
    assert pairs(none, True) == {"bytes": (-10, 0), "time": (-5, 0), "hits": (0, 2)}
    # beside -1 .. +.5, and 4/3 of both: -14.67 .. +.67, half of it, and (-.25 .. 5.75) / 3
    assert pairs(replay(), True) == {"bytes": (-15, 1), "time": (-8, 1), "hits": (-1, 2)}


def test_what_fetches_nothing_fetches_nothing_there_either() -> None:
    none = replay(substituted=95, transfers={"demand": 0}, h2d_bytes={"demand": 0}, link_busy_ns=0)
    found = pairs(none)
    # a quarter of the slots: -1 .. +3 % of the misses, a third of that of the hits;
    # time has a tenth of -1 .. +3 % of the 5 dropped, of the 395 that are executed
    assert found == {"bytes": (0, 0), "time": (-1, 1), "hits": (-1, 1)}
    stood_in = replay(substituted=100, dropped=0, transfers={"demand": 0}, link_busy_ns=0)
    assert pairs(stood_in)["time"] == (0, 0)


def test_who_drops_executes_fewer() -> None:
    """100 of 400 are dropped, a quarter: -1 .. +3 % of these are hits there and run, of 300 a third: at half of the
    time that is -.17 .. +.5 %."""
    dropped = replay(substituted=0, dropped=100, transfers={"demand": 0}, link_busy_ns=0, breakdown_ns={"experts": 500})
    assert pairs(dropped)["time"] == (-1, 1)
    most = replay(hits=100, misses=300, substituted=0, dropped=300, transfers={"demand": 0}, link_busy_ns=0,
                  breakdown_ns={"experts": 1000})  # fmt: skip
    assert pairs(most)["time"] == (-9, 27)  # three quarters: -3 .. +9 % of 300, of 100


def test_copies_and_late_answers_count() -> None:
    assert share_of(replay(low=50, deferred=25)) == 0.25 and share_of(replay(deferred=None)) == 1 / 16


def test_no_figure_falls_by_more_than_all_of_it() -> None:
    found = pairs(replay(substituted=399, transfers={"demand": 1}, h2d_bytes={"demand": 100}, link_busy_ns=1000))
    assert found["bytes"][0] == found["time"][0] == -100


# --- laws


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 300), st.booleans())
def test_laws_of_a_bracket(one: int, other: int, landed: int, reranks: bool) -> None:
    """0 lies within, nothing answered otherwise gives nothing, and who answers more otherwise has no narrower one."""
    few, many = (replay(substituted=n, dropped=0, transfers={"demand": landed}) for n in sorted((one, other)))
    less, more = pairs(few, reranks), pairs(many, reranks)
    for name in FIGURES:
        assert more[name][0] <= less[name][0] <= 0 <= less[name][1] <= more[name][1]
        assert reranks or one * other or less[name] == (0, 0)
        low, high = pairs(few)[name]  # without re-ranking
        assert less[name][0] <= low and high <= less[name][1]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 100), st.floats(-9, 0), st.floats(0, 9))
def test_rounded_outward(substituted: int, low: float, high: float) -> None:
    out = replay(substituted=substituted, dropped=0)
    factors = {kind: {"bytes": [low, high], "hits": [low, high]} for kind in (ANSWERS, RERANKING)}
    scale = closed_loop.scales(out)["bytes"]["bytes"] * share_of(out)
    found = bracket(out, False, factors)["bytes"]
    assert found["low"] <= scale * low < found["low"] + 1 and found["high"] - 1 < scale * high <= found["high"]


# --- what is said


def test_a_lossy_run_says_it_and_a_lossless_one_nothing() -> None:
    common = {"trace": "tiny-moe", "cache": 0.5, "max_steps": 40, "calibration": 0.5}
    lossless, _ = simulate(RunSpec.of(common))
    assert "closed_loop" not in lossless and not any("CLOSED LOOP" in note for note in lossless["notes"])
    for fields in ({"miss": "next-ranked"}, {"rerank": "cache-prior"}):
        out, _ = simulate(RunSpec.of(common | fields))
        said = out["closed_loop"]
        notes = [note for note in out["notes"] if "LOOP" in note]
        assert notes[0].startswith("OPEN LOOP") and notes[1] == words(said, "rerank" in fields)
        assert said["share"] == out["substituted"] / out["slots_wanted"] and ranges(said) in notes[1]
        assert ("re-ranked" in notes[1]) == ("rerank" in fields)


def test_of_nothing_answered_otherwise_the_closed_loop_is_the_same() -> None:
    """With room for every expert no buddy stands in."""
    out, _ = simulate(RunSpec.of({"trace": "tiny-moe", "cache": 1.0, "max_steps": 20, "miss": "drop"}))
    assert out["closed_loop"]["share"] == 0 and "the same figures" in words(out["closed_loop"], False)
    assert all(out["closed_loop"][f"{name}_percent"] == {"low": 0, "high": 0} for name in FIGURES)


def test_the_line_says_how_much_and_how_far_that_is_known() -> None:
    said = told(replay(), False)
    assert "(6.2 % of the slots answered otherwise; fitted at batch 1 on " in words(said, False)
    assert ", more than was measured;" in words({**said, "share": 1.0}, False)
    assert ranges({f"{name}_percent": {"low": -9, "high": i} for i, name in enumerate(FIGURES)}) == (
        "H2D bytes -9 .. +0 %, time -9 .. +1 %, hits -9 .. +2 %"
    )


def test_the_kept_factors_hold_zero() -> None:
    for kind in (ANSWERS, RERANKING):
        for name in closed_loop.FACTORS:
            low, high = kept()[kind][name]
            assert low <= 0 <= high
    assert kept()["fitted_on"] and 0 < kept()["measured_to"] < 1
