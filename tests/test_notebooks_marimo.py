"""A notebook opened in a real browser by `marimo run` and `marimo edit`: it shows its figures, asks no other host for
anything and raises no error on the console, as where there is no network."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browsers import CHROMIUM, WHY_NOT, Tab, browser

if importlib.util.find_spec("marimo") is None:
    pytest.skip("marimo is not installed", allow_module_level=True)
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason=WHY_NOT),
]
ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "analysis" / "notebooks" / "explore_trace.py"
PATIENCE_S = 120
FIGURES = 6


@contextmanager
def served(how: str, *words: str) -> Iterator[str]:
    """The address of a notebook that marimo serves on this computer alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "marimo", how, "--headless", "--no-token", "--host", "127.0.0.1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--port", str(port), str(NOTEBOOK), "--", *words],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            _answers(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _answers(port: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(10 * PATIENCE_S):
        assert server.poll() is None, "marimo does not start"
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("marimo does not answer")


def shown(tab: Tab) -> None:
    """Wait until every figure is drawn; one that is not seen need not be there yet."""
    for _ in range(10 * PATIENCE_S):
        if tab.page.evaluate(DRAWN) >= FIGURES:
            tab.page.wait_for_timeout(300)  # what is asked for with a figure comes right after it
            return
        tab.page.wait_for_timeout(100)
    raise AssertionError("the figures never came")


# Figures are drawn in trees of their own. Counts them, and shows the first that is not drawn.
DRAWN = """() => {
    const found = (tree, what) => [...tree.querySelectorAll("*")].flatMap((each) =>
        [...(each.matches(what) ? [each] : []), ...(each.shadowRoot ? found(each.shadowRoot, what) : [])]);
    const drawn = (each) => found(each.shadowRoot || each, ".main-svg").length > 0;
    const all = [...document.querySelectorAll("marimo-lazy, marimo-plotly")];
    const missing = all.find((each) => !drawn(each));
    if (missing) (found(missing.shadowRoot || missing, "div").at(-1) || missing).scrollIntoView({block: "center"});
    return all.filter(drawn).length;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


def test_run(chromium: Any) -> None:
    """And again, when all of it is there at once."""
    with served("run", "--trace", "tiny-moe.npz") as address:
        tab = Tab(chromium)
        for _ in range(2):
            tab.page.goto(address)
            shown(tab)
            assert "tiny-moe.npz: a capture of a real model" in tab.page.inner_text("body")
        tab.page.close()
        assert (tab.errors, tab.refused) == ([], [])


def test_edit(chromium: Any) -> None:
    """Opened, and all of its cells run: Ctrl-Shift-R."""
    with served("edit") as address:
        tab = Tab(chromium)
        tab.page.goto(address)
        tab.page.wait_for_selector("[data-testid=cell-editor]", timeout=1000 * PATIENCE_S)
        tab.page.keyboard.press("Control+Shift+R")
        shown(tab)
        tab.page.close()
        assert (tab.errors, tab.refused) == ([], [])
