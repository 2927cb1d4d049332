"""The first screen of a report: the answer, one chart, and what holds the winner back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.comparing.answer import answer, held_back, leaders
from analysis.comparing.comparison import Comparison
from analysis.pages import compare_figures
from analysis.pages.panels import First, Panel
from analysis.showing.words import figure

BARS = 9  # of the chart: as many as a phone shows beside the sentence
LETTERS = 30  # of a run's name in the sentence, which may wrap; more leave no room for the chart on a phone
AGAIN = 20  # of a name that the sentence has said


def first_screen(found: Comparison, policies: Sequence[str] = ()) -> First:
    """Of all runs; policies: of the figures below, in their order, for the colours."""
    shown = fastest_first(found)
    left = len(found.rows) - len(shown.rows)
    below, every = len(policies) or len(found.rows), len(found.rows)
    rest = f" {left} more runs are under Speed." if left else ""
    if below < every:
        rest = f" Of all {every:,} runs {len(shown.rows)} are drawn here and {below} under Speed."
    panel = Panel(
        "first",
        compare_figures.title_of_speed(shown),
        compare_figures.about_speed(shown) + rest,
        compare_figures.speed(shown, True, policies),
        (["run", "tokens/s"], [[row["run"], figure(row["tokens_per_s"], 3)] for row in shown.rows]),
        wide=True,
    )
    return First(answer(found, LETTERS), panel, held_back(found, AGAIN))


def fastest_first(found: Comparison, most: int = BARS) -> Comparison:
    """At most `most` of the runs: the best of each kind, the baseline, then the fastest; the fastest first, runs that
    are alternatives of each other together."""
    kinds = list(dict.fromkeys(row["conditions"] for row in found.rows))
    heads = [row["index"] for row in leaders(found)]

    def standing(row: dict[str, Any]) -> tuple[bool, bool, float]:
        return row["run"] == found.baseline, row["index"] in heads, row["tokens_per_s"] or 0.0

    room = most - (min(len(kinds), most // 2) if len(kinds) > 1 else 0)  # each kind has a line for its name
    kept = sorted(found.rows, key=standing, reverse=True)[:room]
    kept.sort(key=lambda row: (kinds.index(row["conditions"]), -(row["tokens_per_s"] or 0.0)))
    return replace(found, rows=kept)
