"""Runs against one of them, from Python."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.api.frames import runs_of
from analysis.api.runs import simulate_many
from analysis.comparing import comparison
from sim.errors import SpecError


def compare(results: Any, /, *, baseline: str | int = 0, seed: int = 0, **common: Any) -> pd.DataFrame:
    """Each run against one of them: `python -m analysis.compare` from Python.

        sim.compare([sim.simulate("mixtral.npz", cache=n, name=f"cache {n}") for n in (2, 4)])
        sim.compare({"lru": {}, "mine": {"eviction": my_eviction}}, trace="mixtral.npz", cache=3)

    results: a frame of `simulate_many`, results, folders of `python -m sim.run --out`, or cases to be run first, with
    what they have in `common`. baseline: a name, or a place from 0. seed: of the bootstrap's draws.

    Returns a row per run, as simulate_many has it, with differences from the baseline: `*_change` (tokens/s and h2d
    relative, 0.1 = a tenth more; tpot in ms), their `*_low` and `*_high` (95 % interval, paired over requests; NaN
    where runs cannot be paired, and `not_paired` says why), pareto_best, conditions (runs of one number are
    alternatives of each other), marks. `.attrs` has notes, which must be read with it, baseline and statistic.
    Raises UserError, one line.
    """
    if isinstance(results, dict) and all(isinstance(fields, dict) for fields in results.values()):
        results = simulate_many(results, **common)
    elif common:
        raise SpecError(f"{next(iter(common))}: is for cases that are to be run; these runs are done")
    runs = runs_of(results)
    found = comparison.compare(runs, baseline, seed)
    rows = []
    for run, row in zip(runs, found.rows, strict=True):
        figures = {
            name: np.nan if v is None else v for name, v in row.items() if name not in ("settings", "run", "index")
        }
        rows.append(row["settings"] | figures | {"marks": ", ".join(row["marks"]), "result": run})
    out = pd.DataFrame(rows, index=pd.Index([run.name for run in runs], name="run"))
    out["not_paired"] = [row["not_paired"] for row in found.rows]
    out.attrs |= {"notes": found.notes, "baseline": found.baseline, "statistic": found.statistic}
    return out
