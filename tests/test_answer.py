"""The sentence that a comparison comes to, by hand: who wins, by how much, under which marks, and who does not."""

from typing import Any

import pytest

from analysis.comparing.answer import answer, held_back, leaders
from analysis.comparing.comparison import compare, told_conditions
from analysis.pages import compare_figures
from analysis.pages.first_screen import BARS, fastest_first, first_screen
from analysis.reading.run import Run
from analysis.showing import palette
from tests.runs_by_hand import made, record


def fast(name: str, speed: float | None, **changes: Any) -> Run:
    """A run without a record: of a speed, and of nothing else that is known."""
    return made(name, None, tokens_per_s=speed, **changes)


def paired(name: str, ns: int, requests: int = 8, **changes: Any) -> Run:
    """A run whose requests of 2 tokens all take 2 * ns: intervals of its ratios are points."""
    return made(name, record([[ns, ns]] * requests), **changes)


def said(*runs: Run, baseline: str | int = 0) -> str:
    return answer(compare(runs, baseline))


# --- who wins ---


def test_one_run_is_its_speed_and_what_holds_it_back() -> None:
    found = compare([fast("lru", 2.5, verdict="link-bound: the link is busy; more slots help")])
    assert answer(found) == "lru generates 2.50 tokens/s: it is link-bound."
    assert held_back(found) == "What holds lru back: link-bound: the link is busy; more slots help"


def test_the_winner_over_the_baseline_and_over_the_next() -> None:
    # 200, 160 and 100 ns a token: 5, 6.25 and 10 M tokens/s; 200 / 100 = 2, 160 / 100 = 1.6
    runs = [paired("base", 200), paired("mid", 160), paired("top", 100)]
    lead = "2.00 x [2.00 x, 2.00 x] base, +60.0% [+60.0%, +60.0%] over the next, mid"
    assert said(*runs) == f"top wins: 10,000,000 tokens/s, {lead}."
    # the baseline that wins is set against the next alone
    assert said(*runs, baseline="top") == "top wins: 10,000,000 tokens/s, +60.0% [+60.0%, +60.0%] over mid."


def test_an_interval_is_turned_round_with_its_ratio() -> None:
    # of the requests (100, 100 against 125, 250 ns) the ratio is 200 / 375; resampled it lies in [100 / 250, 100 / 125]
    runs = [made("slow", record([[125], [250]])), made("quick", record([[100], [100]]))]
    row = compare(runs).rows[0]
    assert row["against_best"] == pytest.approx(200 / 375 - 1)
    assert (row["against_best_low"], row["against_best_high"]) == pytest.approx((0.4 - 1, 0.8 - 1))
    assert "+87.5% [+25.0%, +150.0%] over slow" in said(*runs)


def test_without_records_there_are_no_intervals_and_it_is_said() -> None:
    assert said(fast("a", 1.0), fast("b", 1.5)) == "b wins: 1.50 tokens/s, +50.0% over a (no intervals)."


def test_no_generated_tokens() -> None:
    found = compare([fast("a", None), fast("b", None)])
    assert answer(found) == "No run generated a token: there is no tokens/s to compare."
    assert held_back(found) == ""
    assert "b generates 2.00 tokens/s" in said(fast("a", None), fast("b", 2.0))


def test_marks_go_with_the_winner() -> None:
    other = fast("b", 2.0, trace={"real": False})
    assert said(fast("a", 1.0), other) == "b wins: 2.00 tokens/s, 2.00 x a (synthetic, no intervals)."


# --- ties ---


def test_within_a_hundredth_nobody_wins() -> None:
    text = said(fast("a", 1.0), fast("b", 2.0), fast("c", 1.99))
    assert text == "No winner: b at 2.00 tokens/s and c at 1.99 cannot be told apart; b is 2.00 x a (no intervals)."


def test_an_interval_that_holds_one_is_a_tie() -> None:
    # each is faster in one of two requests: 200 against 210 ns in all, resampled [100 / 160, 100 / 50]
    runs = [made("a", record([[50], [160]])), made("b", record([[100], [100]]))]
    assert said(*runs).startswith("No winner: b at 10,000,000 tokens/s and a at 9,523,810 cannot be told apart")


def engine(name: str, speed: float, interval: tuple[float, float] | None) -> Run:
    return fast(name, speed, spec={"engine": name}, tokens_per_s_interval=interval and list(interval))


def test_engines_tie_where_the_intervals_of_their_costs_overlap() -> None:
    runs = [engine("slow", 2.0, (1.5, 2.5)), engine("x", 10.0, (8.0, 12.0)), engine("y", 9.0, (7.0, 11.0))]
    text = said(*runs)
    assert (
        text
        == "No winner: x at 10.00 tokens/s (80 %: 8.00-12.00) and y at 9.00 cannot be told apart; x is 5.00 x slow."
    )
    # nobody knows how far off this one is: its speed lies in the interval of the fastest
    assert "x at 10.00 tokens/s (80 %: 8.00-12.00) and z at 8.50" in said(*runs[:2], engine("z", 8.5, None))
    assert said(*runs[:2], engine("z", 7.0, None)).startswith("x wins: 10.00 tokens/s (80 %: 8.00-12.00), 5.00 x slow")


def test_many_that_tie_are_counted() -> None:
    text = said(*(fast(name, 5.0) for name in "abcde"))
    assert text == "No winner: a at 5.00 tokens/s, b at 5.00 and 3 more cannot be told apart."


def test_a_small_lead_without_an_interval_is_no_win() -> None:
    assert said(fast("a", 1.0), fast("b", 1.04)).endswith(
        "b at 1.04 tokens/s and a at 1.00 cannot be told apart (no intervals)."
    )
    one = said(paired("a", 103, 1), paired("b", 100, 1))
    assert one.startswith("No winner: b at") and one.endswith("cannot be told apart (on 1 request, no intervals).")
    assert said(paired("a", 200, 1), paired("b", 100, 1)).endswith("2.00 x a (on 1 request, no intervals).")
    assert said(paired("a", 200, 3), paired("b", 100, 3)).endswith("2.00 x [2.00 x, 2.00 x] a (on 3 requests).")


def test_a_difference_that_is_sure_but_small_is_named_as_small() -> None:
    """1,000 against 1,005 ns in each of 8 requests: the interval is a point that is not 1."""
    assert said(paired("a", 1005), paired("b", 1000)).endswith(
        "b at 1,000,000 tokens/s and a at 995,025 are within 1 %."
    )


def test_a_ratio_says_that_one_of_its_sides_is_not_calibrated() -> None:
    unsure = fast("a", 1.0)
    unsure.summary["marks"] = unsure.summary["marks"] | {"catalog_costs": True}
    assert "not calibrated" in unsure.marks
    sure = engine("b", 3.0, (2.5, 3.5))
    assert said(unsure, sure).startswith("b wins: 3.00 tokens/s (80 %: 2.50-3.50), 3.00 x a (a not calibrated")


# --- who cannot win ---


def test_an_oracle_never_wins_and_is_named_but_not_as_a_limit() -> None:
    oracle = fast("belady", 9.0, spec={"eviction": "belady"})
    text = said(fast("a", 1.0), fast("b", 1.5), oracle)
    future = "belady (oracle), which no engine can be, reaches 9.00 tokens/s."
    assert text == f"b wins: 1.50 tokens/s, +50.0% over a (no intervals); {future}"
    # an oracle as the baseline is no alternative either
    assert said(fast("a", 1.0), fast("b", 1.5), oracle, baseline="belady").startswith("b wins: 1.50 tokens/s, +50.0%")
    assert said(fast("a", 1.0), oracle) == f"a generates 1.00 tokens/s: it is -; {future}"
    assert said(oracle) == f"No run here can win: {future}"
    better = fast("min", 9.5, spec={"eviction": "min"})
    assert "min (oracle), the best of 2 oracles here, which no engine can be, reaches 9.50" in said(oracle, better)
    assert held_back(compare([fast("a", 1.0), oracle])).startswith("What holds a back")


def test_what_does_not_fit_never_wins() -> None:
    big = fast("big", 9.0, memory={"slots": 1, "fits": False})
    text = said(fast("a", 1.0), fast("b", 1.5), big)
    assert text.startswith("b wins") and text.endswith("; big, 9.00 tokens/s, does not fit into its memory.")
    slow = fast("big", 1.2, memory={"slots": 1, "fits": False})
    assert "big" not in said(fast("a", 1.0), fast("b", 1.5), slow)  # it would not have won


def lossy(name: str, speed: float, lost: float | None, **changes: Any) -> Run:
    return fast(name, speed, quality={"substituted_weight": lost}, substituted=1, **changes)


def test_a_lossy_winner_says_what_it_loses_and_who_loses_nothing() -> None:
    text = said(fast("a", 1.0), fast("b", 1.2), lossy("drop", 3.0, 0.3))
    tail = "it loses 30.0% of the router weight, and b is the fastest that loses nothing, 1.20."
    assert text == f"drop wins: 3.00 tokens/s, 3.00 x a (open-loop, no intervals); {tail}"
    assert "it loses an unknown share of the router weight." in said(lossy("drop", 3.0, None), lossy("x", 1.0, 0.1))
    part = fast("low", 3.0, low=2, quality={"substituted_weight": 0.1}, substituted=1)
    assert "it loses at least 10.0% of the router weight" in said(fast("a", 1.0), part)


def test_of_equals_the_one_that_loses_nothing_leads() -> None:
    found = compare([lossy("drop", 3.0, 0.3), fast("a", 3.0)])
    assert [row["run"] for row in leaders(found)] == ["a"]


# --- runs that are no alternatives ---


def test_unlike_settings_are_never_set_against_each_other() -> None:
    runs = [
        fast("a", 1.0),
        fast("b", 2.0),
        fast("c", 9.0, spec={"hardware": "h100"}),
        fast("d", 5.0, trace={"hash": "b" * 64}, spec={"trace": "other.npz"}),
        fast("e", 5.02, trace={"hash": "b" * 64}, spec={"trace": "other.npz"}),
    ]
    found = compare(runs)
    assert answer(found) == (
        "No alternatives of each other, so the fastest of each kind: t, h: b, 2.00 tokens/s; "
        "t, h100: c, 9.00 tokens/s; other, h: e and d tie at 5.02 tokens/s."
    )
    assert held_back(found) == "What holds them back: b -, c - and e -"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": {"precision": "q4"}}, "q4"),
        ({"spec": {"batch": 4}}, "batch 4"),
        ({"spec": {"calibration": 0.3}}, "calibration 0.3, seed 0"),
        ({"spec": {"as_decode": True}}, "prompts as decode steps"),
        ({"machine": "torch"}, "measured"),
        ({"trace": {"hash": "b" * 64}}, "b" * 8),
    ],
)
def test_what_tells_kinds_apart_is_said(change: dict[str, Any], words: str) -> None:
    runs = [fast("a", 1.0), fast("b", 2.0, **change)]
    rows = compare(runs).rows
    assert rows[1]["work"] == words and rows[0]["work"] not in ("", words)
    assert told_conditions([runs[0], runs[0]], [0, 0]) == ["", ""]


def test_engines_and_chunks_are_a_choice() -> None:
    runs = [fast("a", 1.0), fast("b", 2.0, spec={"engine": "llama.cpp", "prefill_chunk": 64})]
    assert said(*runs).startswith("b wins: 2.00 tokens/s, 2.00 x a")
    assert any(note.startswith("MIXED engines: ideal and llama.cpp") for note in compare(runs).notes)


def test_many_kinds_are_counted() -> None:
    runs = [fast(f"r{i}", 1.0, spec={"batch": i}) for i in range(9)]
    assert answer(compare(runs)).endswith("batch 1: r1, 1.00 tokens/s; and 7 more kinds.")


def test_marks_of_all_kinds_are_said_once() -> None:
    made_up = {"trace": {"real": False}}
    runs = [fast("a", 1.0, **made_up), lossy("b", 2.0, 0.5, **made_up, spec={"batch": 4})]
    told = "batch 1: a, 1.00 tokens/s; batch 4: b, 2.00 tokens/s (open-loop), it loses 50.0% of the router weight"
    assert said(*runs) == f"No alternatives of each other, so the fastest of each kind: {told}; all synthetic."


def test_of_each_kind_the_fastest_that_loses_nothing_is_named_beside_a_lossy_one() -> None:
    text = said(fast("a", 1.0), lossy("b", 2.0, 0.5), fast("c", 9.0, spec={"batch": 4}))
    lossless = "it loses 50.0% of the router weight, and a is the fastest that loses nothing, 1.00"
    assert f"batch 1: b, 2.00 tokens/s (open-loop), {lossless}; batch 4: c, 9.00 tokens/s." in text


def test_a_kind_in_which_nobody_can_win_is_named() -> None:
    big = fast("big", 9.0, memory={"slots": 1, "fits": False}, spec={"batch": 4})
    tail = "batch 4: none can win: big, 9.00 tokens/s, does not fit into its memory."
    assert said(fast("a", 1.0), big).endswith(f"batch 1: a, 1.00 tokens/s; {tail}")
    assert said(big, fast("n", None)).endswith("batch 1: none can win: no run generated a token.")


# --- the first screen's chart ---


def test_what_the_first_chart_leaves_out_is_said_as_it_is() -> None:
    runs = [fast(f"r{i}", 1.0 + i) for i in range(30)]
    assert " 21 more runs are under Speed." in first_screen(compare(runs)).panel.caption
    few = ["lru"] * 12  # of the 30 so many are drawn below
    assert " Of all 30 runs 9 are drawn here and 12 under Speed." in first_screen(compare(runs), few).panel.caption


def test_bars_stand_by_kind_and_a_kind_is_named_once() -> None:
    runs = [fast(f"r{i}", 1.0 + i, spec={"batch": 1 + i % 2}) for i in range(6)]
    drawn = compare_figures.speed(compare(runs))
    assert list(drawn.data[0].y) == ["r0", "r2", "r4", "r1", "r3", "r5"]
    assert [note.text for note in drawn.layout.annotations] == ["batch 1", "batch 2"]
    assert "shares of the fastest of their kind" in first_screen(compare(runs)).panel.title


def test_the_chart_holds_the_best_of_each_kind_and_the_baseline_the_fastest_first() -> None:
    runs = [fast(f"r{i}", 1.0 + i) for i in range(30)]
    shown = [row["run"] for row in fastest_first(compare(runs, "r3")).rows]
    assert shown == [*(f"r{i}" for i in range(29, 29 - BARS + 1, -1)), "r3"]
    kinds = [fast(f"k{i}", 1.0, spec={"batch": 2 + i}) for i in range(3)]
    assert {"k0", "k1", "k2"} <= {row["run"] for row in fastest_first(compare([*kinds, *runs])).rows}


def test_bars_of_unlike_runs_are_shares_of_the_fastest_of_their_kind() -> None:
    runs = [fast("a", 1.0), fast("b", 4.0), fast("c", 9.0, spec={"hardware": "h100"})]
    bars = compare_figures.speed(fastest_first(compare(runs))).data[0]
    assert list(bars.x) == [100.0, 25.0, 100.0] and [each[0] for each in bars.customdata] == [4.0, 1.0, 9.0]


def test_whiskers_of_several_engines_are_those_of_their_costs() -> None:
    found = compare([engine("x", 10.0, (8.0, 13.0)), engine("y", 9.0, None)])
    below, above = compare_figures.whiskers(found)
    assert below.tolist() == [2.0, 0.0] and above.tolist() == [3.0, 0.0]
    assert compare_figures.about_speed(found) == "Whiskers: 80 % interval of the engine's costs."


def test_an_oracles_bar_is_hatched_and_says_so() -> None:
    found = first_screen(compare([fast("a", 1.0), fast("belady", 9.0, spec={"eviction": "belady"})]))
    assert found.panel.figure is not None
    patterns = {bar.name: bar.marker.pattern.shape for bar in found.panel.figure.data if bar.type == "bar"}
    assert patterns["reads the future: no choice"] == "/" and patterns["can be had, nothing lost"] is None
    assert " 9.00 (oracle)" in found.panel.figure.data[-1].text


def test_a_policy_has_one_colour_wherever_it_is_drawn() -> None:
    """The first screen's bars are sorted; colours are by the order of the runs, as in every other figure."""
    found = compare([fast("a", 1.0), fast("b", 9.0, spec={"eviction": "lfu"})])
    drawn = first_screen(found, [row["policy"] for row in found.rows]).panel.figure
    assert drawn is not None and list(drawn.data[0].y) == ["b", "a"]
    assert list(drawn.data[0].marker.color) == [*palette.SEQUENCE[1::-1]]
