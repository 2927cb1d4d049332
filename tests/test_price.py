"""What 1,000 tokens cost and use: by hand, and nothing that runs is changed by it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.comparing.comparison import compare
from analysis.comparing.formats import FORMATS
from analysis.reading.load import load
from sim import run
from sim.outcome.price import priced, told
from sim.simulation import simulate
from sim.spec import RunSpec

COMMON = {"trace": "mixtral.npz", "max_steps": 40}
PRICE = {"price_per_hour": 0.72, "watts": 300.0, "idle_watts": 60.0}


def summary(**parts: int) -> dict[str, Any]:
    """36 s of which the GPU waits 20 and is told what comes next for 4; 500 tokens."""
    ns = {"dense": 5, "decide": 4, "experts": 6, "stall": 18, "cpu_wait": 2, "head": 1}
    return {"time_ns": 36 * 10**9, "tokens": 500, "breakdown_ns": {part: s * 10**9 for part, s in ns.items()}, **parts}


def test_by_hand() -> None:
    """36 s are 0.01 h: 0.0072 for 500 tokens, 0.0144 for 1,000. Busy 12 s at 300 W are 3,600 Ws, idle 24 s at 60 W
    1,440: 5,040 Ws are 1.4 Wh of 500 tokens, 2.8 of 1,000; at 300 W all the time 36 x 300 Ws are 3 Wh, 6 of 1,000."""
    spec = RunSpec.of({"trace": "", **PRICE})
    found = priced(spec, summary())
    assert found["cost"] == {"per_1k_tokens": pytest.approx(0.0144)}
    assert found["energy"] == {"wh_per_1k_tokens": pytest.approx(2.8), "idle_ns": 24 * 10**9}
    assert priced(spec.model_copy(update={"idle_watts": None}), summary())["energy"]["wh_per_1k_tokens"] == 6.0
    assert priced(spec, summary(tokens=0))["cost"] == {"per_1k_tokens": None}
    assert priced(RunSpec.of({"trace": ""}), summary()) == {}
    cost, energy = told(summary() | found | {"spec": spec.saved()})
    assert cost == "cost         0.0144 per 1,000 generated tokens, at 0.72 an hour"
    assert energy.endswith("2.8 Wh per 1,000 generated tokens: GPU busy 33.3% of the time at 300 W, else 60 W")


def test_it_changes_nothing_that_runs() -> None:
    (plain, bare), (other, record) = (simulate(RunSpec.of({**COMMON, **more})) for more in ({}, PRICE))
    assert np.array_equal(bare.steps["end_ns"], record.steps["end_ns"])
    assert other["spec"] == plain["spec"] | PRICE
    assert {name: value for name, value in other.items() if name not in ("cost", "energy", "spec")} == {
        name: value for name, value in plain.items() if name != "spec"
    }


def test_every_way_out_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trace", "mixtral.npz", "--max-steps", "40"]
    asked = ["--price-per-hour", "0.72", "--watts", "300", "--idle-watts", "60"]
    assert run.main([*flags, *asked, "--json", "--out", str(tmp_path / "a")]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]["per_1k_tokens"]
    assert run.main([*flags, *asked[:2], "--cache", "6", "--out", str(tmp_path / "b")]) == 0
    assert "at 0.72 an hour" in capsys.readouterr().out
    runs = load([tmp_path / "a", tmp_path / "b"])
    found = compare(runs)
    assert found.rows[0]["per_1k_tokens"] == cost and found.rows[1]["wh_per_1k_tokens"] is None
    assert "cost of 1,000 tokens" in FORMATS["table"](found) and "per_1k_tokens" in FORMATS["csv"](found)
    assert run.main([*flags, "--out", str(tmp_path / "c")]) == 0
    assert "per_1k_tokens" not in compare(load([tmp_path / "c"])).rows[0]


def test_a_row_of_a_sweep_has_it_and_gives_it_back() -> None:
    from sim.sweeps.config import Configuration
    from sim.sweeps.rows import row_of, summary_of

    spec = RunSpec.of({**COMMON, **PRICE})
    out, _ = simulate(spec)
    row = row_of(Configuration("id", spec), out)
    assert row["cost.per_1k_tokens"] == out["cost"]["per_1k_tokens"] and row["spec.watts"] == 300.0
    assert summary_of(row, "here")["energy"] == out["energy"]


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--idle-watts", "60"], "idle_watts: 60: goes with --watts"),
        (["--watts", "0"], "watts: 0.0: must be above 0"),
        (["--price-per-hour", "nan"], "price_per_hour: nan"),
    ],
)
def test_what_is_wrong_is_one_line(flags: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--trace", "mixtral.npz", *flags]) == 2
    assert wrong in capsys.readouterr().err
