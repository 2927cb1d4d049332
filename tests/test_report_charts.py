"""The report's charts say what is there: no knee where there is none, no dot under a mark, no name on another."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.comparing.comparison import compare
from analysis.curves.curve import HARDLY, Curve, rows
from analysis.pages import compare_figures, curve, figures, labels, tables
from analysis.pages.page import render
from analysis.pages.panels import Panel, Section
from analysis.pages.policy_sections import quality
from tests.runs_by_hand import made, record
from tests.test_report import Page


def a_curve(misses: list[int]) -> Curve:
    both, zeros = np.array([[misses], [[0] * len(misses)]]), np.zeros(len(misses), np.int64)
    return Curve(np.arange(1, len(misses) + 1), both, np.array([100, 0]), 10, 100, 5, zeros, 1, None)


@pytest.mark.parametrize(
    ("misses", "marks"), [([100, 40, 20, 10, 0], ["cliff", "knee"]), ([100, 70, 47, 24, 0], ["cliff"])]
)
def test_a_knee_is_drawn_only_where_there_is_one(misses: list[int], marks: list[str]) -> None:
    """Sharpness 0.35, and 0.05 (hits 30 where the straight line has 25)."""
    found = a_curve(misses)
    assert (found.knee()[1] >= HARDLY) == ("knee" in marks)
    setting: Any = SimpleNamespace(plan=SimpleNamespace(slots=[1], expert_bytes=1))
    lines = rows(setting, found, ())
    assert [name for row in lines for name in row["marks"]] == marks
    assert [note.text for note in curve.figure(lines).layout.annotations] == marks


def test_dots_of_requests_lie_below_the_marks() -> None:
    runs = [made("a", record([[100, 100], [200, 200]])), made("b", record([[50, 60]]))]
    fig = figures.tpot(tables.latencies(runs), {"a": np.array([1e-4, 2e-4]), "b": np.array([5e-5])}, ["p", "q"])
    dots = [trace for trace in fig.data if trace.showlegend is False]
    marks = [trace for trace in fig.data if trace.showlegend is not False]
    assert {trace.name for trace in marks} == {"mean", "p50", "p95", "p99"}
    for row, trace in enumerate(dots):  # rows go downwards
        assert all(y > mark.y[row] for y in trace.y for mark in marks)
        assert all(abs(y - row) < 0.5 for y in trace.y)


def test_nothing_lossy_has_no_front() -> None:
    runs = [made("a", None, tokens_per_s=1.0), made("b", None, tokens_per_s=2.0)]
    section = quality(runs, compare(runs))
    assert section.panels == [] and section.remarks == ["No run is lossy: nothing is substituted or dropped."]


def test_names_of_points_at_one_place_are_on_different_sides() -> None:
    runs = [made(f"r{i}", None, tokens_per_s=1.0) for i in range(6)]
    points = [trace for trace in compare_figures.pareto(compare(runs)).data if trace.mode != "lines"]
    at = [side for trace in points for side, text in zip(trace.textposition, trace.text, strict=True) if text]
    assert len(at) == len(set(at)) == 4  # of six, four have room


def test_a_name_lies_on_no_other_name_and_no_other_marker() -> None:
    """Three points nearly at one place, and one at their left: three names have room, none on the left one's side."""
    losses, speeds = (0.0, 10.5, 20.7, 22.26, 22.25, 22.25, 29.7), (69.0, 180.0, 362.0, 371.0, 371.5, 372.0, 659.0)
    names = ["fetch", "tau 0.95", "tau 0.8", "tau 0.6", "tau 0.4", "tau 0", "drop"]
    rows = [
        {"run": name, "lost_weight": loss / 100, "tokens_per_s": speed}
        for name, loss, speed in zip(names, losses, speeds, strict=True)
    ]
    sides = compare_figures._sides(rows, dict(zip(names, names, strict=True)))
    assert sides["tau 0.8"].endswith("left") and {"fetch", "tau 0.95", "drop"} <= set(sides)
    near = [sides[name] for name in names[3:6] if name in sides]
    assert near and all(side.endswith("right") for side in near)


def test_what_all_names_begin_with_is_left_out_where_they_are_long() -> None:
    names = ["a-long-beginning-of-names/lru", "a-long-beginning-of-names/lfu"]
    assert labels.short_labels(names, 22) == ["…lru", "…lfu"] and labels.short_labels(names) == names
    assert labels.short_labels(["ab-lru", "ab-lfu"]) == ["ab-lru", "ab-lfu"]
    assert labels.short_labels(["x" * 50, "x" * 50]) == [f"{'x' * 20}…{'x' * 19} #{i}" for i in range(2)]


def test_a_name_at_an_axis_of_a_phone_has_two_lines() -> None:
    names = ["a100-pcie4 0.25 belady drop", "a100-pcie4 0.25 lru drop"]
    fig = figures.rows_canvas(names, "x", row=22)
    assert list(fig.layout.yaxis.categoryarray) == names[::-1]
    narrow = fig.layout.meta["narrow"]
    assert narrow["yaxis"]["ticktext"] == ["a100-pcie4 0.25<br>belady drop", "a100-pcie4 0.25<br>lru drop"]
    assert narrow["height"] >= 2 * figures.ROW
    assert figures.rows_canvas(["ab"] * 9, "x", row=22).layout.meta["narrow"]["height"] < 66 + 9 * figures.ROW


def test_a_logarithmic_axis_says_so() -> None:
    steps = {"a": np.array([1.0, 100.0]), "b": np.array([1.0, 2.0])}
    assert figures.step_times(steps, ["p", "q"]).layout.xaxis.title.text == "duration of a decode step (ms) (log)"
    assert "(log)" not in figures.step_times({"b": steps["b"]}, ["q"]).layout.xaxis.title.text


def test_a_run_without_copies_says_that_nothing_was_copied() -> None:
    at, zeros = np.arange(4.0), np.zeros(3)
    still = figures.over_time(at, {}, {"demand": zeros}, 2)
    assert [note.text for note in still.layout.annotations] == ["nothing was copied"]
    assert any(trace.yaxis == "y2" for trace in still.data), "else plotly draws no axes there"
    assert not figures.over_time(at, {}, {"demand": zeros + 1}, 2).layout.annotations


def test_marks_are_seen_and_notes_one_click_away() -> None:
    notes = [
        "SYNTHETIC traces: all runs",
        "MIXED traces: a, b",
        "DOES NOT FIT into it: a",
        "intervals of a are over few",
    ]
    page = Page(render([Section("s", "S", [Panel("p", "t", "c", table=(["run"], [["a"]]))])], notes, "title"))
    summary, *_ = page.texts["summary"]
    assert " ".join(summary.split()) == "SYNTHETIC MIXED traces DOES NOT FIT 1 more note in full"
    assert all(note in page.texts["details"][0] for note in notes)
    many = [f"MIXED {what}: a, b" for what in ("traces", "hardware", "precision")]
    assert " ".join(Page(render([], many, "title")).texts["summary"][0].split()) == "MIXED settings in full"
