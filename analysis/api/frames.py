"""Runs as pandas frames: one row each, or each against one of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.comparing.comparison import compare as compared
from analysis.comparing.comparison import row_of
from analysis.reading.run import Run, differing, settings

FIRST = ("tokens_per_s", "tokens_per_s_low", "tokens_per_s_high", "tpot_ms", "hit_rate", "lost_weight", "h2d_gb")
OF_A_PAIR = ("paired_requests", "not_paired")


def frame_of(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, index its name; columns: the settings that differ, figures, marks, result."""
    fields = differing(runs)
    rows = []
    for run in runs:
        found = {k: v for k, v in row_of(run, run, None).items() if "_change" not in k and k not in OF_A_PAIR}
        mine = settings(run)
        first = {field: mine.get(field) for field in fields} | {key: found[key] for key in FIRST}
        rows.append(first | found | {"marks": ", ".join(run.marks), "result": run})
    return pd.DataFrame(rows, index=pd.Index([run.name for run in runs], name="run"))


def runs_of(given: Any) -> list[Run]:
    """The runs of a frame of `simulate_many`, of a list of results, or of one."""
    if isinstance(given, Run):
        return [given]
    if isinstance(given, pd.DataFrame):
        return [replace(run, name=str(name)) for name, run in given["result"].items() if isinstance(run, Run)]
    return list(given)


def compare(results: "pd.DataFrame | Iterable[Run]", baseline: str | int = 0) -> pd.DataFrame:
    """Each run against one of them, as `python -m analysis.compare`."""
    found = compared(runs_of(results), baseline)
    rows = []
    for row in found.rows:
        figures = {key: value for key, value in row.items() if key not in ("settings", "run", "index")}
        rows.append({**row["settings"], **figures, "marks": ", ".join(row["marks"])})
    out = pd.DataFrame(rows, index=pd.Index([row["run"] for row in found.rows], name="run"))
    out.attrs |= {"notes": found.notes, "baseline": found.baseline, "statistic": found.statistic}
    return out
