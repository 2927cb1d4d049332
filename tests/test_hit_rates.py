"""Published hit rates: as they are read, run and compared."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import SpecError
from sim.experiments import __main__ as experiments
from sim.experiments.hit_rates import EVIDENCE, Case, Figure, pairs, rank_correlation, read
from sim.machines import compiled
from sim.prepare import prepare
from sim.spec import RunSpec
from tests.gen import random_trace
from traces.format import npz

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "evidence" / "hit_rates.json"
HEAD = "table,model,capacity,policy,value,rounding,cache,eviction,set,skip_prompts,not_set_up\n"


def case(policy: str, published: float, simulated: float, rounding: float = 0.5) -> Case:
    return Case(Figure("t", "m", "c", policy, published, rounding=rounding), "trace", "captured", simulated)


# --- what is shipped


def test_every_figure_is_a_run_or_says_why_it_is_none() -> None:
    figures = read(EVIDENCE)
    assert len(figures) > 300
    for figure in figures:
        assert bool(figure.fields.get("eviction")) != bool(figure.not_set_up), figure
        if not figure.not_set_up:
            spec = RunSpec.of({"trace": "t.npz", **figure.fields})
            assert spec.params("eviction") is not None and 0 <= figure.value <= 100 and figure.source
            assert spec.calibration == 0.1 if spec.eviction == "static" else spec.calibration is None


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="no ../shared/evidence/hit_rates.json")
def test_the_figures_are_those_that_were_collected() -> None:
    """Each table's shares of hits, as a multiset, of both files."""
    tables = json.loads(PUBLISHED.read_text())["tables"]
    theirs = Counter(
        round(row["hit_percent"], 3)
        for table in tables
        for row in table["rows"]
        if isinstance(row.get("hit_percent"), int | float)
    )
    assert Counter(round(figure.value, 3) for figure in read(EVIDENCE) if figure.metric == "hit %") == theirs


# --- how figures are compared


def test_pairs_that_change_places() -> None:
    """a 50 and b 48 differ by 2, more than both are rounded (1): told apart, and inverted, for now b has 2 more. b and
    c differ by 0.8: not told apart. a and c: told apart, and right."""
    a, b, c = case("a", 50, 60), case("b", 48, 62), case("c", 47.2, 59)
    apart, inverted = pairs([c, b, a])
    assert apart == 2 and [(x.figure.policy, y.figure.policy) for x, y in inverted] == [("a", "b")]
    assert pairs([a, case("d", 49, 70)]) == (0, [])


def test_rank_correlation() -> None:
    """Ranks 0 1 2 3 and 1 0 2 3: 1 - 6 (1 + 1) / (4 x 15) = 0.8. With equal ones ranks 0, 1.5, 1.5 and 0, 1, 2:
    deviations -1, .5, .5 and -1, 0, 1: 1.5 / sqrt(1.5 x 2)."""
    assert rank_correlation([1, 2, 3, 4], [20, 10, 30, 40]) == pytest.approx(0.8)
    assert rank_correlation([1, 5, 5], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3.0))
    assert rank_correlation([1, 2], [7, 7]) is None


# --- runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A capture of a model of the catalog, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    trace = random_trace(
        np.random.default_rng(3), tokens=60, requests=3, layers=32, experts=8, k=2, model="mixtral-8x7b"
    )
    (tmp_path / "captures").mkdir()
    npz.write(tmp_path / "captures" / "mine.npz", trace)
    return tmp_path


def run(evidence: str, capsys: Any, *more: str) -> tuple[int, str, str]:
    Path("e.csv").write_text(HEAD + evidence)
    status = experiments.main(["hit-rates", "--evidence", "e.csv", "--captures", "captures", "--out", "out", *more])
    return status, *capsys.readouterr()


def test_a_figure_is_what_its_run_counts(folder: Path, capsys: Any) -> None:
    """Two policies on the capture; one that cannot run says why; what has no run, or no trace, is said below."""
    status, out, _ = run(
        "t,mixtral-8x7b,3,lru,40,0.5,3,lru,lru.touches=listed,yes,\n"
        "t,mixtral-8x7b,3,mrs,41,0.5,3,mrs,,yes,\n"
        "t,mixtral-8x7b,3,mine,42,0.5,,,,,its margin is not stated\n"
        "t,nobody's,3,lru,43,0.5,3,lru,,,\n",
        capsys,
    )
    assert status == 0
    spec = {"trace": "captures/mine.npz", "cache": 3, "set": {"lru.touches": "listed"}, "skip_prompts": True}
    layer = compiled.run(prepare(RunSpec.of(spec)).plan).layer
    share = 100 * layer["hits"].sum() / (layer["hits"].sum() + layer["misses"].sum())
    assert f"| lru | 40.0 | mine | {share:.1f} | {share - 40:+.1f} |" in out
    assert "| mrs | 41.0 | mine | - | - | - | not run: mrs: needs `logits`, which mine.npz does not have" in out
    assert "| t | mixtral-8x7b | 1 | its margin is not stated |" in out
    assert "| t | nobody's | 1 | no trace of the model |" in out
    rows = Path("out/hit-rates.csv").read_text().splitlines()[2:]
    assert len(rows) == 4 and sum("synthetic" in row for row in rows) == 2


@pytest.mark.parametrize(
    ("evidence", "flags", "said"),
    [
        ("t,m,3,lru,x,,,,,,\n", [], "e.csv: row 2: value = 'x': must be a number"),
        ("t,m,3,lru,4\n", [], "e.csv: row 2: has not as many columns as the first line"),
        ("t,m,3,,4,,,,,,\n", [], "e.csv: row 2: table, model, policy and value must be given"),
        ("t,m,3,lru,4,,,,,,no\n", ["--table", "u"], "table: 'u' is unknown; known: t"),
        ("t,m,3,lru,4,,,,,,no\n", ["--captures", "nowhere"], "captures: nowhere: no such folder"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder: Path, evidence: str, flags: list[str], said: str, capsys: Any) -> None:
    status, out, err = run(evidence, capsys, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1) and said in err and not Path("out").exists()


def test_columns_that_nobody_knows(folder: Path) -> None:
    Path("e.csv").write_text("table,model,policy,value,capacities\n")
    with pytest.raises(SpecError, match="column 'table': missing"):
        read(Path("e.csv"))
    Path("e.csv").write_text("table,model,policy,value,capacities\na,b,c,1,2\n")
    with pytest.raises(SpecError, match="column 'capacities': is no field of a run"):
        read(Path("e.csv"))
