"""Every notebook runs from top to bottom as a plain script, is one that marimo takes, and says what is synthetic."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests import captures
from tests.forked import Forks
from tests.gen import random_trace
from traces.format import npz

if importlib.util.find_spec("marimo") is None:
    pytest.skip("marimo is not installed", allow_module_level=True)
pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "analysis" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
NAMES = ("buddy_tradeoff", "check_the_simulator", "design_miss_policy", "explore_trace", "size_a_cache")


def test_the_notebooks_are_there() -> None:
    assert tuple(path.stem for path in NOTEBOOKS) == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, commands: Forks) -> None:
    """From another folder, on the shipped sample; nothing is left beside it."""
    before = sorted(FOLDER.iterdir())
    done = commands.call(path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(FOLDER.iterdir()) == before and not list(tmp_path.iterdir())


def test_marimo_finds_nothing_wrong(commands: Forks) -> None:
    done = commands.call("marimo", "check", "--strict", *NOTEBOOKS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_trace_is_one_word_away(tmp_path: Path, commands: Forks) -> None:
    """Here one without logits, lookahead and a model that the catalog knows."""
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(4), tokens=120, layers=2, requests=6))
    done = commands.call(FOLDER / "explore_trace.py", "--trace", tmp_path / "t.npz")
    assert done.returncode == 0, done.stderr


def test_a_capture_without_logits_leaves_out_what_needs_them(commands: Forks) -> None:
    capture = captures.FOLDER / "olmoe-1b-7b.npz"
    if not capture.exists():
        pytest.skip("no captures in ../shared/traces")
    done = commands.call(FOLDER / "buddy_tradeoff.py", "--trace", capture)
    assert done.returncode == 0, done.stderr


def test_it_becomes_a_jupyter_notebook(tmp_path: Path, commands: Forks) -> None:
    """With its outputs, and the loud word on a synthetic trace among them."""
    pytest.importorskip("nbformat")
    out = tmp_path / "explore_trace.ipynb"
    done = commands.call("marimo", "export", "ipynb", FOLDER / "explore_trace.py", "-o", out, "--include-outputs")
    assert done.returncode == 0, done.stderr
    notebook = json.loads(out.read_text())
    shown = json.dumps([cell.get("outputs", []) for cell in notebook["cells"]])
    assert "SYNTHETIC" in shown and "Traceback" not in shown
