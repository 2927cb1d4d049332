"""Every notebook prints what it finds, judges enough requests, becomes a page and a Jupyter notebook that need no
network, and is one that marimo takes."""

import importlib.util
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces
from analysis import notebook
from analysis.comparing.leading import against_baseline, alike
from tests import captures
from tests.browsers import Tab, browser
from tests.forked import Forks
from tests.gen import random_trace
from traces.format import npz

if importlib.util.find_spec("marimo") is None:
    pytest.skip("marimo is not installed", allow_module_level=True)
pytestmark = pytest.mark.machine
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "analysis" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
NAMES = (
    "buddy_tradeoff",
    "check_the_simulator",
    "design_miss_policy",
    "explore_trace",
    "first_questions",
    "size_a_cache",
)
CHANGE = r"[+-]\d+\.\d% \([+-]\d+\.\d% \.\. [+-]\d+\.\d%\)"
# what each finds: sentences with figures in them, whatever the figures are
FINDS = {
    "buddy_tradeoff": r"With tau at 0\.95 buddies take\s+\d+\.\d% of the weight",
    "check_the_simulator": r"It says 245 ns, stall 200, hits 1, misses 2",
    "design_miss_policy": rf"\*\*buddy\*\*, \d+\.\d% of the weight lost, does {CHANGE}: \w+",
    "explore_trace": r"shares \*\*\d+%\*\* of its experts with the\s+token before it",
    "first_questions": rf"- belady \(oracle\): \d+\.\d+ tokens/s, {CHANGE}: faster than mine",
    "size_a_cache": r"There is \*\*no knee\*\*",
}
COMPARED = ("buddy_tradeoff", "design_miss_policy", "first_questions", "size_a_cache")


def test_the_notebooks_are_there() -> None:
    assert tuple(path.stem for path in NOTEBOOKS) == NAMES == tuple(FINDS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_prints_what_it_finds_and_becomes_a_page(path: Path, tmp_path: Path, commands: Forks, chromium: Any) -> None:
    """From another folder, on the shipped sample; nothing is left beside it, and nobody is asked for anything."""
    before = sorted(FOLDER.iterdir())
    done = commands.call(path, "--html", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(FOLDER.iterdir()) == before and [file.name for file in tmp_path.iterdir()] == ["page.html"]
    said = done.stdout
    assert said.startswith("# ") and re.search(FINDS[path.stem], said), said
    assert re.search(r"^    python -m analysis\.notebook|`python -m analysis\.notebook", said, re.M), (
        "how to run it again"
    )
    if path.stem in COMPARED:
        assert "SYNTHETIC" in said and "FEW requests" not in said, "at least 8 requests are judged"
    page = (tmp_path / "page.html").read_text()
    assert page.count('<div class="plot"') == said.count("\n(figure: ") > 0
    for width in (1280, 390) if chromium else ():
        tab = Tab(chromium, width)
        tab.page.goto((tmp_path / "page.html").as_uri())
        tab.page.wait_for_selector("html[data-drawn]", timeout=120_000)
        drawn, wide = tab.page.evaluate(SEEN)
        assert drawn == said.count("\n(figure: ") and wide <= width
        assert (tab.errors, tab.refused, len(tab.asked)) == ([], [], 1)
        tab.page.close()


SEEN = """() => [Array.from(document.querySelectorAll('.plot .main-svg:first-child')).length,
                 document.documentElement.scrollWidth]"""


def test_marimo_finds_nothing_wrong(commands: Forks) -> None:
    done = commands.call("marimo", "check", "--strict", *NOTEBOOKS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_trace_is_one_word_away(tmp_path: Path, commands: Forks) -> None:
    """Here one without logits, lookahead and a model that the catalog knows."""
    npz.write(tmp_path / "t.npz", random_trace(np.random.default_rng(4), tokens=120, layers=2, requests=6))
    done = commands.call("analysis.notebook", "explore_trace", "--trace", "t.npz", cwd=tmp_path)
    assert done.returncode == 0 and "t.npz: test-model" in done.stdout, done.stderr
    assert "## 5. Foresight\n\nNo `lookahead` here" in done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_all_of_them_take_it_in_one_cell(path: Path) -> None:
    """Which `--trace` replaces; and its figures are shown so that marimo's page asks no CDN."""
    cells = [cell.split("def _(", 1)[1] for cell in path.read_text().split("@app.cell")[1:]]
    assert "shown(" in path.read_text()
    assert (
        sum(bool(re.search(r"^    TRACE = trace_asked\(.*\n    return \(TRACE,\)$", cell, re.M)) for cell in cells) == 1
    )
    assert "torch" not in path.read_text() and path.read_text().endswith(GUARD)


GUARD = """if __name__ == "__main__":
    from analysis.notebook import main

    raise SystemExit(main(app=app, file=__file__))
"""


def test_a_capture_without_logits_leaves_out_what_needs_them(commands: Forks) -> None:
    capture = captures.FOLDER / "olmoe-1b-7b.npz"
    if not capture.exists():
        pytest.skip("no captures in ../shared/traces")
    done = commands.call("analysis.notebook", "buddy_tradeoff", "--trace", capture)
    assert done.returncode == 0, done.stderr
    assert "matched-next-ranked" not in done.stdout and "SYNTHETIC" not in done.stdout


def test_without_weights_what_can_run_is_raced_and_buddies_are_refused(tmp_path: Path, commands: Forks) -> None:
    npz.write(tmp_path / "t.npz", replace(traces.open("tiny-moe.npz"), weights=None, logits=None))
    done = commands.call("analysis.notebook", "design_miss_policy", "--trace", "t.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "LEFT OUT: buddy: buddy: needs `weights`" in done.stdout and re.search(r"1  drop +drop ", done.stdout)
    assert "LEFT OUT: thrifty, 0.3, thrifty, 0.5, thrifty, always: thrifty: needs" in done.stdout
    assert "## Yours was left out" in done.stdout and "## Keep it" not in done.stdout
    for kept in ([], ["--ipynb", "made.ipynb"]):
        done = commands.call("analysis.notebook", "buddy_tradeoff", "--trace", "t.npz", *kept, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: buddy_tradeoff: t.npz has no `weights`")


def test_size_a_cache_prints_the_commands_of_its_figures(tmp_path: Path, commands: Forks) -> None:
    """LRU's and min's tokens/s of its table, and the same size, from the commands that it ends with."""
    done = commands.call("analysis.notebook", "size_a_cache", "--trace", "tiny-moe.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^    python -m (sim\.run .*)$", done.stdout, re.M)
    for name, line in zip(("lru", "min"), lines, strict=True):
        row = re.search(rf"^    \d +{name} +{name} +none +([\d.,]+) ", done.stdout, re.M)
        again = commands.call(*shlex.split(line), "--json", cwd=tmp_path)
        assert row and f"{json.loads(again.stdout)['tokens_per_s']:,.2f}" == row[1], again.stderr
    curve = re.search(r"^    python -m (analysis\.miss_curve .*) --out curve.html$", done.stdout, re.M)
    assert (
        curve
        and "--hardware a100-pcie4 --engine ideal --precision bf16"
        in curve[1]
        == lines[0].replace("sim.run --trace", "analysis.miss_curve").partition(" --cache")[0]
    )


def test_without_marimo_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "marimo", None)
    assert notebook.main(["explore_trace"]) == 2
    assert capsys.readouterr().err.startswith("error: a notebook needs marimo, which is not installed: pip install")


@pytest.mark.parametrize(
    ("change", "low", "high", "said"),
    [
        (0.006, 0.002, 0.01, "a tie"),  # within 1 %, however sure
        (-0.006, -0.008, -0.004, "a tie"),
        (0.05, -0.01, 0.11, "a tie"),  # luck of the requests
        (-0.05, -0.11, 0.01, "a tie"),
        (0.05, 0.01, 0.09, "faster"),
        (-0.05, -0.09, -0.01, "slower"),
        (0.05, None, None, "a tie"),  # so near, and nobody knows how surely
        (0.06, None, None, "faster"),
    ],
)
def test_notebooks_call_a_tie_what_a_comparison_does(
    change: float, low: float | None, high: float | None, said: str
) -> None:
    row = {"tokens_per_s_change": change, "tokens_per_s_change_low": low, "tokens_per_s_change_high": high}
    assert against_baseline(row).endswith(f": {said}")
    slow = 1 / (1 + change) if change > 0 else 1 + change  # the slower of the two against the faster
    ends = None if low is None or high is None else (1 + low, 1 + high)
    if ends and change > 0:
        ends = (1 / ends[1], 1 / ends[0])
    assert alike(slow, ends) == (said == "a tie")


def test_a_policy_of_ones_own_is_kept_by_what_the_notebook_prints(tmp_path: Path, commands: Forks) -> None:
    """The file and the commands that it ends with, carried out."""
    done = commands.call("analysis.notebook", "design_miss_policy", "--trace", "tiny-moe.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = done.stdout.split("## Keep it")[1]
    source, lines = kept.split("writes it):\n\n")[1].split("\n\nThen:\n\n")
    (tmp_path / "thrifty.py").write_text(textwrap.dedent(source))
    asked = [line.split()[2:] for line in textwrap.dedent(lines.split("\n\n")[0]).splitlines()]
    assert [words[0] for words in asked] == ["sim.run", "sim.run", "analysis.compare", "analysis.notebook"]
    for module, *words in asked[:3]:
        done = commands.call(module, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "thrifty" in done.stdout and "/tmp" not in done.stdout


def test_it_becomes_a_jupyter_notebook(tmp_path: Path, commands: Forks) -> None:
    """With its outputs, figures as plotly's JSON, the trace by name, and cells that run where marimo does not."""
    pytest.importorskip("nbformat")
    words = ("analysis.notebook", "explore_trace", "--trace", "tiny-moe.npz", "--ipynb", "made.ipynb")
    done = commands.call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notebook = json.loads((tmp_path / "made.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    figures = [output["data"]["application/vnd.plotly.v1+json"] for output in outputs if len(output["data"]) == 1
               and "application/vnd.plotly.v1+json" in output["data"]]  # fmt: skip
    shown = json.dumps(outputs)
    assert len(figures) == 6 and all(figure["data"] and figure["layout"] for figure in figures)
    assert "a real capture" in shown and "Traceback" not in shown and "marimo-plotly" not in shown
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "TRACE = 'tiny-moe.npz'" in code
    done = commands.run(ROOT, "\n".join([*code, "print(TRACE, trace.n_experts)"]))
    assert done == (0, "tiny-moe.npz 32\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("analysis.notebook explore_trac", "notebook 'explore_trac' is unknown; did you mean explore_trace?"),
        ("analysis.notebook", "NAME: missing; one of buddy_tradeoff,"),
        ("analysis.notebook no.py", "no.py: no such file"),
        ("analysis.notebook explore_trace --trace mixtal.npz", "mixtal.npz: no such file or shipped sample"),
        ("analysis.notebook explore_trace --html none/page.html", "out: none/page.html: its folder is not there"),
        (
            "analysis.notebook explore_trace --html plain.py",
            "out: plain.py: is there already; give another name, or --f",
        ),
        (
            "analysis.notebook explore_trace --ipynb bare.py",
            "out: bare.py: is there already; give another name, or --f",
        ),
        ("analysis.notebook plain.py", "plain.py: is no notebook: it has no `app`"),
        ("analysis.notebook bare.py --trace mixtral.npz", "bare.py: no cell of it is called TRACE"),
        (f"{FOLDER / 'explore_trace.py'} --trce t.npz", "--trce: unknown argument; did you mean --trace?"),
    ],
)
def test_what_is_wrong_is_one_line(words: str, error: str, tmp_path: Path, commands: Forks) -> None:
    (tmp_path / "plain.py").write_text("x = 1\n")
    bare = "import marimo\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    x = 1\n    return (x,)\n"
    (tmp_path / "bare.py").write_text(bare)
    done = commands.call(*shlex.split(words), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {error}")
