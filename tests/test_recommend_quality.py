"""What the closed-loop study says of a run, looked up by model, policy, parameters and capacity."""

import json
from pathlib import Path
from typing import Any

import pytest

from sim.search.advice import _lossy
from sim.search.measured_quality import measured
from sim.spec import RunSpec


def row(cache: float, miss: str, rise: float, rerank: str = "none", **params: Any) -> dict[str, Any]:
    quality = {"bits_per_byte_percent": [rise, rise / 2, rise * 2]}
    return {"cache": cache, "arm": miss, "miss": miss, "rerank": rerank, "params": params, "quality": quality}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = [row(0.5, "buddy", 20), row(0.75, "buddy", 5), row(0.5, "buddy-b", 30, rho=2)]
    rows.append(row(0.5, "fetch", 1, "cache-prior", strength=0.1))
    (tmp_path / "closed_loop_m.json").write_text(json.dumps({"model": "m", "rows": rows}))
    other = [row(0.5, "buddy", 7)]
    (tmp_path / "closed_loop_other.json").write_text(json.dumps({"model": "other", "rows": other}))
    return tmp_path


def found(study: Path, share: float, model: str = "m", **fields: Any) -> list[float] | None:
    out = measured(model, RunSpec.of({"trace": "t.npz", **fields}), share, study)
    return None if out is None else out["bits_per_byte_percent"]


def test_the_row_of_the_same_policy_with_no_more_room(study: Path) -> None:
    # a rise of 20 % with half of the experts; with .8 of them the row at .75 counts: 5 %
    assert found(study, 0.6, miss="buddy") == pytest.approx([20, 10, 40])
    assert found(study, 0.8, miss="buddy") == pytest.approx([5, 2.5, 10])
    assert found(study, 0.4, miss="buddy") is None


def test_parameters_must_be_the_same_and_defaults_do_not_matter(study: Path) -> None:
    assert found(study, 0.5, miss="buddy", set={"buddy.rho": 3}) == pytest.approx([20, 10, 40])  # the default
    assert found(study, 0.5, miss="buddy", set={"buddy.rho": 4}) is None
    assert found(study, 0.5, miss="buddy-b", set={"buddy-b.rho": 2}) == pytest.approx([30, 15, 60])
    assert found(study, 0.5, miss="buddy-b") is None
    assert found(study, 0.5, rerank="cache-prior", set={"cache-prior.strength": 0.1}) == pytest.approx([1, 0.5, 2])


def test_another_model_or_no_study(study: Path, tmp_path: Path) -> None:
    assert found(study, 0.6, "other", miss="buddy") == pytest.approx([7, 3.5, 14])
    assert found(study, 0.6, "a/m", miss="buddy") is None  # a file of that name, but of another model
    assert found(study, 0.6, "third", miss="buddy") is None
    assert found(tmp_path / "none", 0.6, miss="buddy") is None


def test_the_kept_study_is_found_and_told() -> None:
    out = measured("tiny-moe", RunSpec.of({"trace": "tiny-moe.npz", "miss": "buddy"}), 0.5)
    assert out is not None and out["cache"] == 0.5
    said = _lossy({"open_loop": True, "lost_router_weight": 0.05, "closed_loop": out})
    assert "open loop: 5.00%" in said and "measured in closed loop with 0.5 of the experts: bits per byte +" in said
