"""The contract of a report's sections: each one renders on each kind of run, and says in words what it lacks."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.comparing.comparison import compare
from analysis.pages.page import render
from analysis.pages.report import DETAILED, SECTIONS, Told
from analysis.pages.trace_sections import find_trace
from analysis.reading.load import load
from analysis.reading.run import Run
from tests.runs_by_hand import simulated
from tests.test_report import Page

MORE = {
    "one prompt step": ["--max-steps", "1", "--record", "full"],
    "one decode step": ["--max-steps", "1", "--as-decode", "--record", "full"],
    "all there": ["--cache", "8", "--record", "full"],
    "lossy": ["--miss", "drop", "--record", "full"],
    "streams": ["--miss", "stream", "--merge", "runs", "--whole-layer", "--record", "full", "--ram", "64GB"],
    "admits": ["--miss", "cpu-admit", "--link-share", "0.5", "--cpu-visit-us", "1", "--record", "full"],
    "engine": ["--engine", "llama.cpp+cache"],
    "windows": ["--speculate", "3", "--accept", "0.6", "--draft-ns", "4", "--record", "full"],
    "prefetch": ["--prefetch", "gate-lookahead", "--record", "full", "--warmup-steps", "5"],
}
KINDS = {
    **{name: [name] for name in MORE},
    "without a record": ["lru", "lossy"],
    "rows of a sweep": ["lru", "prefetch"],
    "rules in a sweep": ["admits", "lru"],
    "engine in a sweep": ["engine", "lru"],
    "windows in a sweep": ["windows", "lru"],
    "measured": ["lru"],
    "many": ["lru", *MORE],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return simulated(tmp_path_factory.mktemp("sections"), "lru", **MORE)


def of_kind(kind: str, runs: dict[str, Path]) -> list[Run]:
    found = load([runs[name] for name in KINDS[kind]], DETAILED)
    if kind == "without a record":
        return [replace(run, record=None, full=False) for run in found]
    if kind.endswith("a sweep"):
        lacking = {"by_layer": None, "bounds": {}, "quality": {"substituted_weight": None, "dropped_weight": None}}
        return [Run(run.name, "", run.summary | lacking) for run in found]
    if kind == "measured":
        return [*found, replace(found[0], name="device", summary=found[0].summary | {"machine": "torch"})]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_renders_on_every_kind_of_run(section: str, kind: str, runs: dict[str, Path]) -> None:
    found = of_kind(kind, runs)
    compared = compare(found)
    made = SECTIONS[section](Told(found, compared, found, compared, find_trace(found[0], None)))
    if made is None:
        shown = {
            "measured": ("measured",),
            "misses": ("streams", "admits", "many", "rules in a sweep", "engine", "engine in a sweep"),
            "engines": ("engine", "engine in a sweep", "many"),
            "sweep": ("many",),
            "speculation": ("windows", "windows in a sweep", "many"),
        }
        assert kind not in shown[section]
        return
    assert made.key == section and (made.panels or made.remarks)
    page = Page(render([made], [], "a page"))
    text = "".join(page.texts["main"])
    assert made.heading in text
    shown = [words for tag in ("th", "td", "dt", "dd", "h2", "h3", "p", "li") for words in page.texts.get(tag, [])]
    assert not [words for words in shown if re.search(r"\b(None|nan|NaN|NaT|inf|Infinity)\b", words)]
    assert all(run.name in text for run in found) or section not in ("short", "time", "cache")
    assert len(page.figures) == sum(panel.figure is not None for panel in made.panels)
