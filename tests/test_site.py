"""The documentation as a site: it builds without a warning, asks nobody for anything, and forgets no page."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.blocks import DOCS, ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra: docs)")
import yaml

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RESULTS = ROOT / "analysis" / "results"
ASKED_FOR = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("use", "href")}


def build(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """`make docs` into a folder, without a network: whoever asks a proxy that is not there gets nothing."""
    env = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder), *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Links(HTMLParser):
    """What a browser fetches for a page by itself, and its other links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in ASKED_FOR:
                self.fetched.append(str(value))
            elif (tag, name) == ("a", "href"):
                self.links.append(str(value))


def test_no_page_asks_anybody_for_anything(site: Path) -> None:
    """Scripts, styles, fonts and images lie beside the pages."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        fetched = _Links(page.read_text()).fetched
        assert len(fetched) > 3 and not [link for link in fetched if re.match(r"(https?:)?//", link)], page
        missing = [link for link in fetched if not (page.parent / link.split("?")[0].split("#")[0]).exists()]
        assert not missing or page.name == "404.html", (page, missing)
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text()), style


def test_every_page_of_docs_is_there_and_first_the_readme_and_the_first_hour(site: Path) -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == {path.stem for path in (site / "docs").glob("*.html")}
    links = _Links((site / "index.html").read_text()).links
    assert "docs/first-hour.html" in links and "docs/modelled.html" in links and "VALIDATION.html" in links


def test_the_reference_is_made_of_docstrings(site: Path) -> None:
    text = (site / "docs" / "api.html").read_text()
    for name in ("sim.simulate", "sim.compare", "sim.Result", "traces.open", "traces.capture"):
        assert f'id="{name.rpartition(".")[0]}' in text or f"{name}\n" in text, name
    assert "sim.core.view.View" in text and "traces.format.trace.RoutingTrace" in text


def test_the_search_reads_from_files_and_knows_the_pages(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ") and "docs/policies.html" in index
    assert "iframe-worker.js" in (site / "index.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_from_disk_a_search_finds_and_nobody_is_asked(site: Path, width: int) -> None:
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((site / "docs" / "first-hour.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        tab.evaluate("document.querySelector('[data-md-toggle=search]').click()")
        tab.locator("[data-md-component=search-query]").focus()
        tab.keyboard.type("belady")
        tab.wait_for_selector(".md-search-result__item", state="attached")
        browser.close()
    assert not said and not [url for url in asked if not url.startswith("file:")]


def hook() -> Any:
    spec = importlib.util.spec_from_file_location("site_hook", DOCS / "site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_that_nobody_lists_is_an_error() -> None:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.nav import get_navigation

    config, made = MkDocsConfig(), hook()
    config.load_dict({"site_name": "x", "nav": ["README.md"], "docs_dir": str(DOCS)})
    assert not [error for error in config.validate()[0]]
    names = ["README.md", "docs/policies.md"]
    files = Files([File(name, str(ROOT), "/nowhere", False) for name in names])
    with pytest.raises(PluginError, match=r"not in the nav of mkdocs\.yml: docs/policies\.md"):
        made.on_nav(get_navigation(files, config), config, files)


def test_a_link_to_what_the_site_does_not_have_is_refused(tmp_path: Path) -> None:
    """So code is named and not linked: of the site's own settings every kind of broken link stops the build."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert set(settings["validation"].values()) == {"warn"}
    assert not [path for form in hook().FILES for path in ROOT.glob(form) if path.suffix == ".py"]


# --- what the new pages say ---


def test_a_headline_of_a_result_stands_in_its_file() -> None:
    """docs/results.md: each command, quotation and row of a section stands in the page that the section ends with."""
    sections = (DOCS / "results.md").read_text().split("\n## ")[1:]
    told = {}
    for section in sections:
        named = re.findall(r"\((\.\./analysis/results/[\w-]+\.md)\)", section)
        if not named:
            continue
        text = (DOCS / named[-1]).read_text()
        lines = [line for line in section.splitlines() if line.startswith(("> ", "|", "    python"))]
        assert [line for line in lines if line.removeprefix("> ").strip() not in text] == [], named
        told[Path(named[-1]).name] = len(lines)
    assert set(told) == {path.name for path in RESULTS.glob("*.md")} and min(told.values()) >= 2


def test_the_tests_that_hold_a_result_are_there() -> None:
    named = set(re.findall(r"`(tests/\w+\.py)`", (DOCS / "results.md").read_text()))
    assert len(named) > 8 and not [name for name in named if not (ROOT / name).exists()]


def test_errors_on_the_page_of_what_is_modelled_are_those_of_the_results() -> None:
    page = (DOCS / "modelled.md").read_text().replace("\n", " ")
    published = (RESULTS / "published.md").read_text()
    for phase, judged in (("decode", 217), ("prefill", 38)):
        line = re.search(
            rf"{phase}, machine left out: median (\S+) %, nine tenths within (\S+) %.*\({judged} ", published
        )
        assert line and page.count(f"{line[1]} %") >= 1 and f"{line[2]} %" in page
    known = re.search(r"link is known, machine left out: median (\S+) %.*\(5 judged rows of 1 ", published)
    assert known and f"one machine, five rows) the median is {known[1]} %" in page
    record = (RESULTS / "validation_cpu.md").read_text()
    for what, said in (("median", "the median error is"), ("worst", "and the worst")):
        found = re.search(rf"\| {what} error of the time per token, without sign \| (\S+)% ", record)
        assert found and f"{said} {found[1]} %" in page
    generic = re.search(
        r"Mean distance without the own row: overlap (\S+) .*?LRU (\S+) ", (RESULTS / "generic.md").read_text()
    )
    assert (
        generic
        and f"{float(generic[1]):.2f} in the overlap of consecutive tokens and {float(generic[2]):.2f} in LRU" in page
    )


# --- how to cite ---


def test_how_to_cite_is_valid_and_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cited)
    assert all(author.get("name") for author in cited["authors"]) and cited["type"] == "software"
    assert (cited["title"], cited["version"], cited["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
