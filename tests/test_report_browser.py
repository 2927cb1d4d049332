"""The report in a real browser, from disk: nothing asked for, nothing on the console, every figure drawn.

Screenshots are kept under out/browser. Needs Debian's Chromium (`apt-get install chromium`) and playwright.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.pages.report import DETAILED, report
from analysis.reading.load import load
from sim import profile
from tests.runs_by_hand import simulated, written
from tests.test_report import HOSTILE
from traces.format import npz

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PLACES = (
    "/usr/bin/chromium",
    shutil.which("chromium"),
    shutil.which("chromium-browser"),
    shutil.which("google-chrome"),
)
CHROMIUM = next((place for place in PLACES if place and os.access(place, os.X_OK)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium at /usr/bin/chromium or on the path")
SHOTS = Path(__file__).parent.parent / "out" / "browser"
SIZES = ((1280, 900), (390, 844))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section: full and summary-only records, prefetches, loss, a measured run, similarity."""
    folder = tmp_path_factory.mktemp("browser")
    prefetch = ["--prefetch", "gate-lookahead", "--prefetch-budget", "1", "--miss", "drop", "--record", "full"]
    runs = simulated(folder, "lru", "drop", prefetch=prefetch)
    device = shutil.copytree(runs["lru"], folder / "device")
    value = json.loads((device / "summary.json").read_text()) | {"machine": "torch"}
    written(device, value)
    hostile = json.loads((runs["drop"] / "summary.json").read_text())
    hostile["trace"] |= {"source": HOSTILE}
    hostile["spec"] |= {"eviction": HOSTILE}
    runs |= {"device": device, "hostile": written(folder / HOSTILE.replace("/", "_"), hostile)}
    square = np.random.default_rng(0).uniform(0, 0.9, (4, 8, 8))
    square = (square + square.transpose(0, 2, 1)) / 2
    np.einsum("lii->li", square)[...] = 1
    npz.write_arrays(folder / "s.npz", {}, {"similarity": square.astype(np.float32)})
    assert profile.main(["--trace", str(folder / "t.npz"), "--out", str(folder / "b.npz")]) == 0
    out = folder / "report.html"
    out.write_text(report(load(runs.values(), DETAILED), 0, None, str(folder / "b.npz"), str(folder / "s.npz")))
    return out


@pytest.fixture(scope="module")
def many(page: Path) -> Path:
    """A report of 60 runs that are alternatives of each other, with everything that makes a first screen long."""
    lru, drop = load([page.parent / "lru", page.parent / "drop"])
    names = [f"{'a-name-that-says-everything-' * 3}{i}" for i in range(60)]
    runs = [replace(lru, name=name, summary=lru.summary | {"tokens_per_s": 1e6 + i}) for i, name in enumerate(names)]
    runs[7] = replace(drop, name=names[7], summary=drop.summary | {"tokens_per_s": 9e8})
    marks = lru.summary["marks"] | {"oracle": True, "catalog_costs": True}
    runs[9] = replace(lru, name=names[9], summary=lru.summary | {"tokens_per_s": 9e9, "marks": marks})
    out = page.parent / "many.html"
    out.write_text(report(runs))
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """The report in a tab of a width, and everything that it said or asked for."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int], scheme: str) -> None:
        self.tab = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-drawn]", timeout=120_000)

    def js(self, code: str) -> Any:
        return self.tab.evaluate(code)

    def until(self, code: str, holds: Callable[[Any], bool]) -> None:
        """Wait for it; the page's own policy forbids what playwright would poll with."""
        for _ in range(600):
            if holds(self.js(code)):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"never came: {code}")


@pytest.fixture(scope="module", params=SIZES)
def opened(request: pytest.FixtureRequest, browser: Any, page: Path) -> Iterator[Opened]:
    found = Opened(browser, page, request.param, "light")
    yield found
    found.tab.close()


# Elements of a figure that show data: bars; points, lines and areas; the image that a heatmap is.
DATA = ".barlayer .point path, .scatterlayer path, .heatmaplayer image"
DRAWN = f"""() => Array.from(document.querySelectorAll('.plot:not([hidden] *)')).map((plot) => {{
    const marks = Array.from(plot.querySelectorAll('{DATA}'));
    const size = (mark) => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height;
    const seen = marks.filter((mark) => size(mark) > 0);
    const box = plot.getBoundingClientRect();
    return [plot.id, seen.length, box.width, box.height];
}})"""
LUMINANCE = "(text) => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number); return 0.21 * r + 0.72 * g + 0.07 * b; }"
THEME = f"""() => {{ const light = {LUMINANCE};
    return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector('.plot .xtick text')).fill].map(light); }}"""


def test_every_figure_is_drawn(opened: Opened, page: Path) -> None:
    found = opened.js(DRAWN)
    assert len(found) == int(opened.js("document.documentElement.dataset.drawn")) >= 20
    for key, marks, width, height in found:
        assert marks > 0 and width > 200 and height > 100, key
    assert opened.said == []
    assert opened.asked == [page.as_uri()]


OTHER = {"dark": "light", "light": "dark"}
FIRST = "Array.from(document.querySelectorAll('#answer-h, .mark, #answer .plot .main-svg, #held-back'), {})"
BOX = "(seen) => { const box = seen.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; }"


def assert_first_screen(opened: Opened) -> None:
    """The answer, its marks, the chart with its bars, and what holds the winner back, in what is seen at first."""
    opened.js("scrollTo(0, 0)")
    size = opened.tab.viewport_size
    boxes = opened.js(FIRST.format(BOX))
    kinds = opened.js(FIRST.format("(seen) => seen.id || seen.getAttribute('class')"))
    assert {"answer-h", "mark", "held-back"} <= set(kinds) and any("main-svg" in kind for kind in kinds)
    for kind, (left, top, right, bottom) in zip(kinds, boxes, strict=True):
        assert left >= 0 and top >= 0 and right <= size["width"] and bottom <= size["height"], kind
    assert opened.js("document.querySelectorAll('#answer .plot .barlayer .point').length") > 0


def test_light_and_dark(opened: Opened) -> None:
    """By the system's scheme, at once, and by the button; both kept as pictures."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    width = opened.tab.viewport_size["width"]
    for scheme in ("dark", "light"):
        opened.tab.emulate_media(color_scheme=scheme)
        opened.until(THEME, (lambda it: it[2] > 128) if scheme == "dark" else (lambda it: it[2] < 128))
        assert opened.js("document.getElementById('theme').textContent") == f"Switch to {OTHER[scheme]}"
        opened.tab.screenshot(path=SHOTS / f"first-{width}-{scheme}.png")
        assert_first_screen(opened)
        back, ink, tick = opened.js(THEME)
        assert (back < 60 and ink > 200 and tick > 200) if scheme == "dark" else (back > 200 and ink < 60 and tick < 60)
        opened.tab.screenshot(path=SHOTS / f"report-{width}-{scheme}.png", full_page=True)
    button = opened.tab.locator("#theme")
    for named, now, holds in (
        ("Switch to dark", "Switch to light", lambda it: it[2] > 128),
        ("Switch to light", "Switch to dark", lambda it: it[2] < 128),
    ):
        assert button.text_content() == named  # what it does, whoever chose what is seen
        button.click()
        opened.until(THEME, holds)
        assert button.text_content() == now
    assert opened.said == []


def test_nothing_sticks_out(opened: Opened) -> None:
    """No sideways scrolling of the page, no figure wider than its card, and text that can be read."""
    assert opened.js("document.documentElement.scrollWidth <= innerWidth")
    wide = """() => Array.from(document.querySelectorAll('.plot .main-svg')).filter(
        (svg) => svg.getBoundingClientRect().right > svg.closest('.panel').getBoundingClientRect().right + 1).length"""
    assert opened.js(wide) == 0
    assert opened.js("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    small = """() => Math.min(...Array.from(document.querySelectorAll('.plot .xtick text, .plot .ytick text'),
        (text) => parseFloat(getComputedStyle(text).fontSize)))"""
    assert opened.js(small) >= 8  # the 2 and the 5 between powers of ten; every other is 11 or more


# What of a page cannot be read, once everything is unfolded: tables wider than their frames, cells that are cut, texts
# of figures that stick out of them or lie on each other, other texts that leave their box.
UNREADABLE = """() => {
    const box = (seen) => seen.getBoundingClientRect();
    const words = (seen) => seen.textContent.trim().slice(0, 40);
    const out = [];
    for (const frame of document.querySelectorAll('.frame')) {
        if (frame.closest('[hidden]')) continue;  // of an option that is not chosen
        if (frame.clientWidth === 0 || frame.scrollWidth > frame.clientWidth) out.push(['table', words(frame)]);
        for (const cell of frame.querySelectorAll('td, th')) {
            const seen = !cell.closest('.stacked thead');
            if (seen && cell.scrollWidth > cell.clientWidth + 1) out.push(['cell', words(cell)]);
        }
    }
    for (const plot of document.querySelectorAll('.plot')) {
        const whole = box(plot);
        const texts = Array.from(plot.querySelectorAll('text')).filter((text) => words(text) && box(text).width > 0);
        for (const [i, text] of texts.entries()) {
            const a = box(text);
            const across = a.left < whole.left - 1 || a.right > whole.right + 1;
            if (across || a.top < whole.top - 1 || a.bottom > whole.bottom + 1)
                out.push(['outside', plot.id, words(text)]);
            for (const other of texts.slice(i + 1)) {
                const b = box(other);
                if (a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
                    out.push(['overlap', plot.id, words(text), words(other)]);
            }
        }
    }
    for (const text of document.querySelectorAll('h1, h2, p, dt, dd, .legend li, .mark, .panel > h3')) {
        if (text.clientWidth > 2 && text.scrollWidth > text.clientWidth + 1) out.push(['cut', words(text)]);
        if (box(text).right > innerWidth + 1) out.push(['off the page', words(text)]);
    }
    return out;
}"""


def fold(opened: Opened, away: bool) -> None:
    opened.js(f"document.querySelectorAll('details').forEach((fold) => {{ fold.open = {str(not away).lower()}; }})")
    opened.tab.wait_for_timeout(300)  # tables are fitted when their folds have told that they are open


def test_everything_can_be_read(opened: Opened) -> None:
    fold(opened, away=False)
    assert opened.js(UNREADABLE) == []
    assert opened.js("document.querySelectorAll('.stacked').length") > 0
    fold(opened, away=True)


@pytest.mark.parametrize("size", SIZES)
def test_long_names_and_many_runs_leave_the_first_screen_whole(browser: Any, many: Path, size: tuple[int, int]) -> None:
    """60 rows, names of 90 letters, an oracle, a tie, loss, intervals: the most that a first screen has to hold."""
    found = Opened(browser, many, size, "light")
    SHOTS.mkdir(parents=True, exist_ok=True)
    found.tab.screenshot(path=SHOTS / f"many-{size[0]}.png")
    assert_first_screen(found)
    fold(found, away=False)
    assert found.js(UNREADABLE) == [] and found.said == [] and found.asked == [many.as_uri()]
    found.tab.close()


def test_the_keyboard_is_enough(opened: Opened) -> None:
    """Tab goes by the skip link, the button, the sections; focus shows; a layer is chosen without a mouse."""
    opened.js("() => { document.body.tabIndex = -1; document.body.focus(); }")
    reached = []
    for _ in range(6):
        opened.tab.keyboard.press("Tab")
        outline = opened.js("getComputedStyle(document.activeElement).outlineStyle")
        reached.append((opened.js("document.activeElement.textContent.trim()"), outline))
    skip, button, notes, *rest = [text for text, _ in reached]
    assert (skip, button) == ("Skip to the figures", "Switch to dark") and notes.startswith("MIXED")
    assert rest == ["The same as a table", "What was run", "In short"]
    assert all(outline == "solid" for _, outline in reached)
    select = opened.tab.locator("select[data-for]").first
    key, before = select.get_attribute("data-for"), select.input_value()
    shown = f"() => document.getElementById('{key}').querySelector('image').outerHTML"
    image = opened.js(shown)
    select.focus()
    opened.tab.keyboard.press("ArrowDown")
    assert select.input_value() != before
    opened.until(shown, lambda it: it != image)
    assert opened.said == []


def test_text_of_files_does_nothing(opened: Opened) -> None:
    assert opened.js("window.pwned") is None
    assert opened.js("document.querySelectorAll('main img, main script, main b').length") == 0
    assert opened.js("Array.from(document.querySelectorAll('.plot a')).length") == 0
    shown = opened.js("Array.from(document.querySelectorAll('.plot .ytick text'), (text) => text.textContent)")
    assert any(text.startswith("<_scri") for text in shown)  # as letters
