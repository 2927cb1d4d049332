"""A real browser that reaches this computer alone, and what a page in it said and asked for. None where there is none:
it needs Debian's Chromium (`apt-get install chromium`) and playwright."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLACES = ("/usr/bin/chromium", shutil.which("chromium"), shutil.which("chromium-browser"))
CHROMIUM = next((place for place in PLACES if place and os.access(place, os.X_OK)), None)
WHY_NOT = "no chromium at /usr/bin/chromium or on the path, or playwright is not installed"
HERE = ("file:", "data:", "blob:", "http://127.0.0.1")


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's, or None."""
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Tab:
    """A tab of a width. errors: of the console and of scripts; refused: addresses of other hosts that were asked for;
    asked: all addresses."""

    def __init__(self, browser: Any, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.errors: list[str] = []
        self.refused: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.route("**/*", self._alone)

    def _alone(self, route: Any) -> None:
        if route.request.url.startswith(HERE):
            return route.continue_()
        self.refused.append(route.request.url)
        return route.abort()
