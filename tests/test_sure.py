"""How sure a speed is: which interval holds, where it is shown, and who ties."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.comparing.comparison import compare
from analysis.comparing.formats import table as compared
from analysis.curves.curve import setting_of
from analysis.curves.formats import notes
from analysis.pages.engine_section import engines as section
from analysis.reading.load import load
from sim import catalog
from sim.catalog import intervals
from sim.catalog.intervals import DECODE, PREFILL, Interval, interval
from sim.errors import CatalogError
from sim.experiments.__main__ import main as experiment
from sim.outcome.how_sure import NOT_CALIBRATED, overlap
from sim.outcome.marks import UNSURE
from sim.outcome.table import table
from sim.prepare import prepare
from sim.search.advice import text
from sim.search.judging import Wish
from sim.search.recommendation import Recommendation
from sim.search.ties import away, tie
from sim.search.within_engine import WithinEngine
from sim.simulation import simulate, write
from sim.spec import RunSpec
from sim.sweeps.answer import answer
from sim.sweeps.config import Configuration
from sim.sweeps.rows import PAIRS, Row, pair_of, row_of, summary_of
from sim.sweeps.session import inspect
from sim.sweeps.worker import Task, Worker
from tests.gen import random_trace
from tests.runs_by_hand import FIXED
from tests.test_measured import TABLES, TERMS
from traces.format import npz

pytestmark = pytest.mark.machine
KNOWN = {"rows": 9, "machines": 3, "source": "by hand"}
WIDE, NEAR = Interval("llama.cpp", DECODE, 0.5, 2.0, **KNOWN), Interval("llama.cpp", DECODE, 0.9, 1.1, **KNOWN)
PROMPTS = replace(WIDE, phase=PREFILL, low=0.25, high=3.0)
FAMILY = replace(WIDE, low=0.75, high=1.5, family=True)
OF_A_FILE = 'like = "llama.cpp"\n'


def shipped(monkeypatch: pytest.MonkeyPatch, *rows: Interval) -> None:
    monkeypatch.setattr(intervals, "table", lambda: rows)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six requests of Mixtral's shape: 64 rows of prompts and 96 of decoding in all, more or less."""
    shape: dict[str, Any] = {"tokens": 160, "layers": 32, "experts": 8, "k": 2, "prompt": 0.6, "skew": 1.5}
    made = random_trace(np.random.default_rng(3), requests=6, model="mixtral-8x7b", **shape)
    npz.write(path := tmp_path_factory.mktemp("traces") / "t.npz", made)
    return str(path)


def fields_of(trace: str, **more: Any) -> dict[str, Any]:
    return {"trace": trace, "hardware": "rtx4090", "precision": "q4", "vram": "8GB", "context": 200, **more}


def run(trace: str, **more: Any) -> dict[str, Any]:
    return simulate(RunSpec.of(fields_of(trace, **more)))[0]


def speed_line(out: dict[str, Any]) -> str:
    return next(line for line in table(out).splitlines() if line.startswith("tokens/s"))


# --- which one ---


def test_no_row_is_a_placeholder() -> None:
    assert [row for row in intervals.table() if "placeholder" in row.source or not row.rows or not row.machines] == []


def test_every_row_names_an_engine_once_for_each_phase_and_kind_of_host() -> None:
    rows = [(row.engine, row.phase, row.host) for row in intervals.table()]
    assert rows and len(set(rows)) == len(rows)
    assert all(catalog.find("engine", row.engine) == row.engine and row.source for row in intervals.table())


def host(kind: str) -> Any:
    """An rtx4090 whose host's read rate was measured, or follows from its nominal peak."""
    machine = catalog.hardware("rtx4090")
    assert machine.host is not None and machine.host.read_gb_per_s is not None
    nominal = machine.host.model_copy(update={"read_gb_per_s": None, "peak_gb_per_s": 80.0})
    return machine if kind == "measured" else machine.model_copy(update={"host": nominal})


@pytest.mark.parametrize("order", range(6))
def test_the_most_specific_row_holds_in_whatever_order_they_stand(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    """Its own kind of host before any host; its own engine before one that it is like, whatever the host."""
    own = replace(NEAR, host="measured", family=True)
    fork = replace(WIDE, engine="llama.cpp+cache", low=0.3, family=True)
    shipped(monkeypatch, *list(permutations([FAMILY, own, fork]))[order])
    assert interval("llama.cpp", host("measured"), DECODE) == own
    assert interval("llama-cpp", host("nominal"), DECODE) == FAMILY  # by another of its names
    assert interval("llama.cpp+pool", host("measured"), DECODE) == fork  # like llama.cpp+cache, like llama.cpp
    assert interval("ik_llama.cpp", host("measured"), DECODE) == own
    assert interval("hf-v5", host("measured"), DECODE) is None
    assert interval("llama.cpp", host("nominal"), PREFILL) is None


def test_a_file_like_an_engine_is_of_its_family_and_not_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even if it is called as that engine is."""
    (mine := tmp_path / "llama.cpp.toml").write_text(OF_A_FILE)
    shipped(monkeypatch, WIDE)
    assert interval(str(mine), host("measured"), DECODE) is None
    shipped(monkeypatch, WIDE, replace(FAMILY, host="measured"))
    assert interval(str(mine), host("measured"), DECODE) == replace(FAMILY, host="measured")


def test_what_a_file_states_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine's before a machine's; but the costs of a machine that was measured are not an engine's."""
    (mine := tmp_path / "mine.toml").write_text(f"{OF_A_FILE}interval = [0.97, 1.03]\n")
    (box := tmp_path / "box.toml").write_text(f"interval = [0.99, 1.01]\n{TERMS}{TABLES}")
    shipped(monkeypatch, WIDE)
    own = catalog.hardware("rtx4090").model_copy(update={"interval": (0.8, 1.2)})
    found = [
        interval(engine, machine, phase)
        for engine, machine in ((str(mine), own), ("llama.cpp", own), (str(mine), catalog.hardware(str(box))))
        for phase in (DECODE, PREFILL)
    ]
    right = [(0.97, 1.03), (0.97, 1.03), (0.8, 1.2), (0.8, 1.2), (0.99, 1.01), (0.99, 1.01)]
    assert [(each.low, each.high) for each in found if each] == right
    box.write_text(f"{TERMS}{TABLES}")
    assert interval("llama.cpp", catalog.hardware(str(box)), DECODE) is None


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (
            "hardware",
            f"interval = [0.9, 1.1]\n{FIXED}",
            "interval: not beside [fixed], which replaces every other cost",
        ),
        ("hardware", f"interval = [1.1, 0.9]\n{TERMS}{TABLES}", "interval = [1.1, 0.9]: must be [low, high]"),
        ("engine", f"{OF_A_FILE}interval = [0, 1]\n", "interval.0 = 0: "),
        ("engine", f"{OF_A_FILE}interval = 0.9\n", "interval = 0.9: "),
    ],
)
def test_a_file_that_states_no_interval_is_one_line(kind: str, body: str, why: str, tmp_path: Path) -> None:
    (file := tmp_path / "mine.toml").write_text(body)
    with pytest.raises(CatalogError) as refusal:
        getattr(catalog, kind)(str(file))
    assert why in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"engine": "lama.cpp"}, "engine = 'lama.cpp': must be an engine of the catalog"),
        ({"phase": "prompt"}, "phase = 'prompt': must be decode or prefill"),
        ({"host": "fast"}, "host = 'fast': must be measured or nominal"),
        ({"low": 3.0}, "low = 3.0: must lie above 0 and not above high = 2.0"),
        ({"row": 1}, "got an unexpected keyword argument 'row'"),
    ],
)
def test_a_row_that_is_wrong_is_one_line(change: dict[str, Any], why: str) -> None:
    right = {"engine": "llama.cpp", "phase": DECODE, "low": 0.5, "high": 2.0, **KNOWN}
    assert intervals._row("here", right) == WIDE
    with pytest.raises(CatalogError) as refusal:
        intervals._row("here", right | change)
    assert str(refusal.value) == f"here: {why}"


# --- where it is shown ---


def test_a_run_says_between_what_its_speeds_lie(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    """A quarter to three times the prompts' rate, half to twice the decode's."""
    shipped(monkeypatch, WIDE, PROMPTS)
    out = run(trace, engine="llama.cpp")
    decode, prompts = out["tokens_per_s"], out["prompt_tokens_per_s"]
    assert out["tokens_per_s_interval"] == [0.5 * decode, 2 * decode]
    assert out["prompt_tokens_per_s_interval"] == [0.25 * prompts, 3 * prompts]
    first, second = f"(80 %: {decode / 2:,.2f}-{decode * 2:,.2f})", f"(80 %: {prompts / 4:,.2f}-{prompts * 3:,.2f})"
    assert f"{decode:,.2f} generated {first}, {prompts:,.2f} of prompts {second}, " in speed_line(out)
    assert NOT_CALIBRATED not in table(out)


def test_of_one_phase_alone_the_other_is_not_calibrated(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    shipped(monkeypatch, WIDE)
    out = run(trace, engine="llama.cpp")
    assert out["prompt_tokens_per_s_interval"] is None
    assert f"{out['prompt_tokens_per_s']:,.2f} of prompts (not calibrated), " in speed_line(out)
    assert not speed_line(out).endswith(NOT_CALIBRATED)


def test_an_engine_s_costs_alone_are_not_what_was_published(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    """Nor are a policy's on an engine without overhead; what a file states of its costs holds all the same."""
    shipped(monkeypatch, replace(WIDE, engine="ideal"), WIDE)
    for more in ({"engine": "llama.cpp", "engine_as_costs": True, "cache": 4}, {"cache": 4}):
        out = run(trace, **more)
        assert out["tokens_per_s_interval"] is None and "prompt_tokens_per_s_interval" not in out
        assert speed_line(out).endswith(f"; {NOT_CALIBRATED}") and out["marks"]["catalog_costs"] is True


def test_durations_outright_have_none_and_no_words(trace: str, tmp_path: Path) -> None:
    (box := tmp_path / "h.toml").write_text(FIXED)
    spec = {"trace": trace, "hardware": str(box), "engine": "llama.cpp", "cache": "layers:9"}
    out = simulate(RunSpec.of(spec))[0]
    assert out["tokens_per_s_interval"] is None is out["prompt_tokens_per_s_interval"]
    assert "calibrated" not in table(out) and "80 %" not in table(out) and out["marks"]["catalog_costs"] is False


def test_a_row_of_a_sweep_has_it_and_its_answer_says_it(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    shipped(monkeypatch, WIDE)
    rows = []
    for engine in ("llama.cpp", "hf-v5"):
        spec = RunSpec.of(fields_of(trace, engine=engine))
        out = simulate(spec)[0]
        rows.append(row_of(Configuration("x", spec), out))
        assert [summary_of(rows[-1], "here")[key] for key in PAIRS] == [out[key] for key in PAIRS]
        assert pair_of(rows[-1], "tokens_per_s_interval") == out["tokens_per_s_interval"]
    mine, other = rows
    assert (
        mine["tokens_per_s_interval.low"] == 0.5 * mine["tokens_per_s"] and other["tokens_per_s_interval.low"] is None
    )
    assert answer(rows).count(f"! {UNSURE}") == 1 and UNSURE not in answer([mine])
    assert f"tokens/s (80 %: {mine['tokens_per_s'] / 2:,.2f}-{mine['tokens_per_s'] * 2:,.2f})" in answer(rows)


def test_comparisons_and_reports_say_it(monkeypatch: pytest.MonkeyPatch, trace: str, tmp_path: Path) -> None:
    shipped(monkeypatch, WIDE)
    for engine in ("llama.cpp", "hf-v5"):
        out, record = simulate(RunSpec.of(fields_of(trace, engine=engine)))
        write(tmp_path / engine, out, record, "none")
    runs = load([tmp_path / "llama.cpp", tmp_path / "hf-v5"])
    assert [run.unsure for run in runs] == [False, True]
    found, speed = compare(runs), runs[0].summary["tokens_per_s"]
    assert [row["tokens_per_s_low"] for row in found.rows] == [speed / 2, None]
    told = compared(found)
    assert f"{speed / 2:,.2f}-{speed * 2:,.2f}" in told and "80 % between" in told
    assert f"! {UNSURE}: hf-v5" in told
    made = section(runs)
    assert made is not None and made.panels[0].table is not None
    cells = {row[0]: row[1] for row in made.panels[0].table[1]}
    assert cells["llama.cpp"] == f"{speed:,.2f} (80 %: {speed / 2:,.2f}-{speed * 2:,.2f})" and "(" not in cells["hf-v5"]
    alone = compared(compare(runs[1:]))
    assert "80 %" not in alone and f"! {UNSURE}: all runs" in alone


def test_a_miss_curve_says_it(trace: str, tmp_path: Path) -> None:
    (mine := tmp_path / "mine.toml").write_text(f"{OF_A_FILE}interval = [0.97, 1.03]\n")
    (box := tmp_path / "h.toml").write_text(FIXED)
    of = {"trace": trace, "hardware": "rtx4090", "precision": "q4"}
    assert notes(setting_of(of))[-1] == UNSURE
    assert notes(setting_of(of | {"engine": str(mine)}))[-1] == "80 %: between 0.97 and 1.03 times these tokens/s"
    assert UNSURE not in notes(setting_of(of | {"hardware": str(box)}))


# --- ties ---


def test_intervals_overlap_or_do_not() -> None:
    """[1, 2] touches [2, 3], holds [1.2, 1.3], and is held by [0, 9]; of what nobody knows nobody can tell."""
    for pair, right in (([2.0, 3.0], True), ([1.2, 1.3], True), ([0.0, 9.0], True), ([2.1, 3.0], False), (None, False)):
        assert overlap([1.0, 2.0], pair) == overlap(pair, [1.0, 2.0]) == right


def told(name: str, pair: Sequence[float] | None, steps: int, kind: str = "engine", costs: str = "") -> dict[str, Any]:
    return {"name": name, "tokens_per_s_interval": pair, "away": steps, "kind": kind, "costs_of": costs or name}


def test_of_a_tie_the_simplest_is_preferred() -> None:
    """The fastest of those nearest to a default; an engine that exists before one of a paper, that before a policy."""
    best, far, none = told("best", [9, 12], 1), told("far", [1, 8], 0), told("none", None, 0)
    near, later = told("near", [8, 11], 0), told("later", [8, 10], 0)
    paper, policy = told("paper", [9, 13], 0, "unreleased"), told("policy", [9, 14], 0, "policy", "ideal")
    assert tie(best, [best, far, none]) is None and tie(none, [none, best]) is None and tie(None, []) is None
    rows = [policy, paper, best, near, later, far, none]
    assert tie(best, rows) == {"between": ["best", "policy", "paper", "near", "later"], "simplest": "near"}
    assert tie(best, [policy, paper, best]) == {"between": ["best", "policy", "paper"], "simplest": "paper"}
    assert tie(best, [policy, best]) == {"between": ["best", "policy"], "simplest": "policy"}


def test_two_of_one_engine_share_their_error_and_never_tie() -> None:
    one, other = told("a", [1, 2], 0, "policy", "ideal"), told("b", [1, 2], 0, "policy", "ideal")
    assert tie(one, [one, other]) is None


def test_steps_away_from_a_default_by_hand(trace: str) -> None:
    """What is resident follows from the memory; pool is a variant of cache, which is one of llama.cpp, whose costs
    alone are those of `fused`. Of a policy: lru, fetch, and residents that nobody had to choose."""

    def steps(**more: Any) -> int:
        return away(RunSpec.of(fields_of(trace, **more)))

    assert (steps(engine="llama.cpp"), steps(engine="llama.cpp+cache"), steps(engine="llama.cpp+pool")) == (0, 1, 2)
    assert (steps(engine="llama.cpp", bulk_rows="64"), steps(engine="llama.cpp", bulk="none")) == (1, 1)
    assert steps(engine="llama.cpp+cache", set={"cpu-admit.inserts": 1}) == 2
    assert (steps(cache=4), steps(cache=0.25, eviction="lfu", miss="cpu"), steps(batch=2, seed=3)) == (0, 2, 0)
    assert steps(miss="cpu-admit", set={"cpu-admit.inserts": 1}) == 2


def here(runs: Sequence[Configuration]) -> Sequence[Row]:
    return Worker(inspect(runs)[0]).run(Task(runs)).rows


def wish(trace: str, **more: Any) -> Wish:
    return Wish({"trace": trace, "hardware": "rtx4090", "precision": "q4", **more}, 200, 8 * 10**9, candidates=2)


def test_a_recommendation_says_who_ties_and_which_is_the_simplest(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    """With intervals this wide all of llama.cpp's family tie with whoever of it is the fastest engine."""
    shipped(monkeypatch, replace(FAMILY, low=0.1, high=10.0))
    plain = Recommendation(wish(trace)).search(here)
    assert plain["best_engine"]["tokens_per_s_interval"] is not None
    family = {"llama.cpp", "llama.cpp-no-mmap", "ik_llama.cpp", "llama.cpp+cache", "llama.cpp+pool"}
    known = [row for row in plain["engines"] if row["error"] is None and row["tokens_per_s_interval"]]
    assert family <= {row["name"] for row in known}
    assert plain["tie"]["between"][0] == plain["best_engine"]["name"] and plain["tie"]["simplest"] == "llama.cpp"
    assert set(plain["tie"]["between"]) == {row["name"] for row in known}
    said, row = text(plain), next(row for row in known if row["name"] == "llama.cpp")
    assert said.startswith("llama.cpp: ") and "= a tie: " in said and said.splitlines()[1].strip() == row["command"]
    assert f"tokens/s ({NOT_CALIBRATED})" in said


def test_settings_of_one_engine_have_intervals_and_no_tie(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    shipped(monkeypatch, WIDE, PROMPTS)
    out = WithinEngine(wish(trace, engine="llama.cpp")).search(here)
    best = out["best"]
    assert best["tokens_per_s_interval"] == [0.5 * best["tokens_per_s"], 2 * best["tokens_per_s"]]
    assert "tie" not in out and "a tie" not in text(out)
    assert f"{best['tokens_per_s']:,.2f} tokens/s (80 %: {best['tokens_per_s'] / 2:,.2f}-" in text(out)
    assert all(row["tokens_per_s_interval"][1] == 2 * row["tokens_per_s"] for row in out["ranked"])


def test_engines_side_by_side_say_who_ties(
    monkeypatch: pytest.MonkeyPatch, trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """hf-v5 is far slower than half of either."""
    shipped(monkeypatch, replace(FAMILY, high=2.0), replace(WIDE, engine="hf-v5"))
    words = ["--trace", trace, "--vram", "8GB", "--context", "200", "--engines", "llama.cpp,llama.cpp+cache,hf-v5"]
    assert experiment(["engines", *words, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    said = (tmp_path / "out" / "engines.md").read_text()
    head = ". A tie, because their 80 % intervals overlap: "
    assert {tuple(sorted(line.partition(head)[2].split(", "))) for line in said.splitlines() if head in line} == {
        ("llama.cpp", "llama.cpp+cache")
    }
    rows = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("runs/*/summary.json")]
    assert "| 80 % from | 80 % to |" in said and len(rows) == 4
    for out in rows:
        for end in out["tokens_per_s_interval"] or ():
            assert f"| {end:,.2f} |" in said


def test_what_a_device_took_is_not_uncertain(monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    """A replay on the machine whose catalog costs a simulated run would have: no interval, and no words."""
    from runtime.replaying.opened import Options
    from runtime.replaying.replays import summary_of as replayed

    shipped(monkeypatch, WIDE, PROMPTS)
    spec = RunSpec.of(fields_of(trace, engine="llama.cpp"))
    _, record = simulate(spec)
    out = replayed(prepare(spec), record, {"what": "a test"}, Options())
    assert out["tokens_per_s_interval"] is None is out["prompt_tokens_per_s_interval"]
    assert "80 %" not in table(out) and NOT_CALIBRATED not in table(out)
