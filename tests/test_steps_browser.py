"""A step and a sweep in a real browser: one axis for all runs, a choice that works without a mouse, what hovering says.

As tests/test_report_browser.py, whose browser and pictures these are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.pages.page import render
from analysis.pages.step_section import steps
from analysis.pages.sweep_section import swept
from analysis.reading.load import load
from tests.runs_by_hand import simulated
from tests.test_report_browser import CHROMIUM, SHOTS, Opened, browser  # noqa: F401  a fixture

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium at /usr/bin/chromium or on the path")
RUNS = {
    "ahead": ["--prefetch", "gate-lookahead", "--prefetch-budget", "1", "--record", "full"],
    "streams": ["--miss", "stream", "--merge", "runs", "--ram", "64GB", "--record", "full"],
    "wide": ["--cache", "6", "--record", "full"],
    "belady": ["--eviction", "belady", "--record", "full"],
    "more": ["--cache", "6", "--prefetch", "gate-lookahead", "--prefetch-budget", "2"],
    "less": ["--cache", "6", "--prefetch", "gate-lookahead", "--prefetch-budget", "1"],
}
PARTS = {"step": 5, "sweep": 2}  # options of each select


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    runs = load(simulated(folder, "lru", **RUNS).values(), 6)
    section = swept(runs)
    assert section is not None
    out = folder / "steps.html"
    out.write_text(render([steps(runs, "lru"), section], [], "Steps and sweeps"))
    return out


@pytest.fixture(
    scope="module", params=[((1280, 900), "light"), ((390, 844), "dark")], ids=lambda param: str(param[0][0])
)
def opened(request: pytest.FixtureRequest, browser: Any, page: Path) -> Iterator[Opened]:  # noqa: F811
    found = Opened(browser, page, *request.param)
    yield found
    found.tab.close()


def test_all_that_is_shown_is_drawn_and_nothing_sticks_out(opened: Opened, page: Path) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    width = opened.tab.viewport_size["width"]
    opened.tab.screenshot(path=SHOTS / f"steps-{width}.png", full_page=True)
    marks = "plot.querySelectorAll('.barlayer .point path, .scatterlayer path').length"
    found = opened.js(f"() => [...document.querySelectorAll('.plot:not([hidden] *)')].map((plot) => {marks})")
    assert len(found) == int(opened.js("document.documentElement.dataset.drawn")) >= 2 and all(found)
    assert opened.js("document.documentElement.scrollWidth <= innerWidth")
    inside = """() => [...document.querySelectorAll('.plot:not([hidden] *)')].every((plot) =>
        [...plot.querySelectorAll('.ytick text, .xtick text, .annotation-text')].every((text) => {
            const [a, b] = [text.getBoundingClientRect(), plot.getBoundingClientRect()];
            return a.left >= b.left - 1 && a.right <= b.right + 1; }))"""
    assert opened.js(inside)
    assert opened.said == [] and opened.asked == [page.as_uri()]


@pytest.mark.parametrize("section", PARTS)
def test_a_choice_without_a_mouse(opened: Opened, section: str) -> None:
    """Down changes what is shown; the focus stays, and one option's panels are there at a time."""
    select = opened.tab.locator(f"#{section} select").first
    options = opened.js(f"() => [...document.querySelector('#{section} select').options].map((one) => one.value)")
    assert 2 <= len(options) <= PARTS[section]
    panels = f"[...document.querySelectorAll('#{section} [data-among]:not([hidden])')]"
    shown = f"() => {panels}.map((one) => one.dataset.option)"
    assert set(opened.js(shown)) == {options[0]}
    select.focus()
    opened.tab.keyboard.press("ArrowDown")
    assert set(opened.js(shown)) == {options[1]}
    opened.until(f"() => {panels}.every((one) => one.querySelector('.plot path'))", bool)
    assert opened.js("document.activeElement.tagName") == "SELECT"
    opened.tab.keyboard.press("ArrowUp")
    assert set(opened.js(shown)) == {options[0]} and opened.said == []


def test_hovering_says_what_when_and_for_which_copy(opened: Opened) -> None:
    """Of a stall: where, for which copy, from when to when."""
    found = opened.js("""() => {
        const plot = document.querySelector('#step .plot:not([hidden] *)');
        const stall = plot.data.findIndex((trace) => trace.name.startsWith('stall: fetch'));
        Plotly.Fx.hover(plot, [{ curveNumber: stall, pointNumber: 0 }]);
        return [...plot.querySelectorAll('.hoverlayer text')].map((text) => text.textContent).join(' ');
    }""")
    assert "stall: fetch under way, layer" in found and "waits for the copy of expert" in found
    assert " to " in found and found.endswith("ns")
