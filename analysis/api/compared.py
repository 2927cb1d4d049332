"""Runs against one of them, as a frame."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.api.frames import runs_of
from analysis.comparing import comparison
from sim.errors import SpecError


def compared(results: Any, baseline: str | int, seed: int) -> pd.DataFrame:
    """See analysis.api.offered.compare."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise SpecError(f"seed: {seed!r}: must be a whole number, at least 0")
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
