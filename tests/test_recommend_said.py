"""What a recommendation says beside its figures: what they leave open, how settings differ, what would make room."""

import re
from dataclasses import replace
from typing import Any

import pytest

from sim import recommend
from sim.search.advice import text
from sim.search.judging import NoAnswer, Wish
from sim.search.recommendation import Recommendation
from sim.search.within_engine import WithinEngine
from sim.sweeps.session import cores
from tests.test_recommend_answer import GB, asked, here
from tests.test_recommend_answer import small as small


@pytest.fixture(scope="module", params=[None, "ideal"], ids=["engines", "policies"])
def out(request: pytest.FixtureRequest, small: str) -> dict[str, Any]:
    return asked(small, request.param)


def test_what_the_figures_leave_open_is_said(out: dict[str, Any]) -> None:
    """Who is fastest in a tie, that support is not checked, and what dense weights a policy was counted with."""
    shown, tied = text(out), [row for row in out["table"] if row["tie"]]
    fastest = max(tied, key=lambda row: row["tokens_per_s"], default=None)
    told = fastest is not None and fastest is not tied[0]
    assert told == ("fastest of the tie: " in shown)
    assert not told or f"fastest of the tie: {fastest['name']}, {fastest['tokens_per_s']:,.2f}\n" in shown
    engines = any(row["kind"] != "policy" for row in out["table"])
    assert shown.count("not checked: whether an engine supports this GPU and this model") == engines
    policies = any(row["kind"] == "policy" for row in out["table"])
    assert policies == ("policies (no overhead, dense weights in bf16)" in shown)


def test_settings_of_a_table_differ_in_name_and_figures(small: str) -> None:
    out = asked(small, "llama.cpp", candidates=32)
    rows = out["table"]
    assert len({row["differs"] for row in rows}) == len(rows) > 2
    figures = [(row["tokens_per_s"], row["prompt_tokens_per_s"], row["vram_bytes"], row["ram_bytes"]) for row in rows]
    assert len(set(figures)) == len(rows)
    assert all(row["differs"] in text(out) for row in rows)


def test_what_is_changed_exists_and_says_of_what(small: str) -> None:
    """No card is larger than the largest; a link twice as fast is of the rate that the engine's copies get."""
    what = [row["what"] for row in asked(small, "llama.cpp", vram=192, candidates=1)["would_help"]]
    assert not any("VRAM" in each for each in what)
    found = re.search(r"a link 2 x as fast, ([\d.]+) GB/s \(of ([\d.]+) that", " ".join(what))
    assert found is not None and float(found[1]) == pytest.approx(2 * float(found[2]), rel=0.01)


@pytest.mark.parametrize("engine", [None, "ktransformers"])
def test_kv_entries_that_leave_room_do(engine: str | None, small: str) -> None:
    base = {"trace": small, "hardware": "rtx4090", "precision": "q4-k-m"} | ({"engine": engine} if engine else {})
    wish, kind = Wish(base, 1 << 18, 12 * GB, candidates=1, straight=True), WithinEngine if engine else Recommendation
    try:
        said = str(kind(wish).search(here)["refusal"])
    except NoAnswer as error:
        said = str(error)
    found = re.search(r"KV entries that leave room: .*--context (\d+)", said)
    assert found is not None, said
    assert kind(replace(wish, context=int(found[1]))).search(here)["answer"]["vram_bytes"] <= 12 * GB


def test_more_workers_than_cores_are_said_and_not_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    class Evaluator:
        def __init__(self, workers: int, *given: Any) -> None:
            begun.append(workers)
            raise KeyboardInterrupt

    monkeypatch.setattr("sim.search.evaluate.Evaluator", Evaluator)
    assert recommend.main(["--trace", "mixtral.npz", "--workers", "500"]) == 130
    assert begun == [cores()] and f"500: this machine has {cores()} cores" in capsys.readouterr().err
