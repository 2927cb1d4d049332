"""What `import sim` offers over several runs: light to import, so that what is not installed is one line."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.api.runs import simulate_many
from analysis.reading.run import Run
from sim.errors import SpecError
from traces.extras import needed

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def compare(results: Any, /, *, baseline: str | int = 0, seed: int = 0, **common: Any) -> "pd.DataFrame":
    """Each run against one of them: `python -m analysis.compare` from Python.

        sim.compare([sim.simulate("mixtral.npz", cache=n, name=f"cache {n}") for n in (2, 4)])
        sim.compare({"lru": {}, "mine": {"eviction": my_eviction}}, trace="mixtral.npz", cache=3)

    results: a frame of `simulate_many`, results, folders of `python -m sim.run --out`, or cases to be run first, with
    what they have in `common`. baseline: a name, or a place from 0. seed: of the bootstrap's draws.

    Returns a row per run, as simulate_many has it, with differences from the baseline: `*_change` (tokens/s and h2d
    relative, 0.1 = a tenth more; tpot in ms), their `*_low` and `*_high` (95 % interval, paired over requests; NaN
    where runs cannot be paired, and `not_paired` says why), pareto_best, conditions (runs of one number are
    alternatives of each other), marks. `.attrs` has notes, which must be read with it, baseline and statistic.
    Needs pandas. Raises UserError, one line.
    """
    needed("pandas", "compare")
    from analysis.api.compared import compared

    if isinstance(results, Mapping) and not any(isinstance(each, Run) for each in results.values()):
        results = simulate_many(results, **common)
    elif common:
        raise SpecError(f"{next(iter(common))}: is for cases that are to be run; these runs are done")
    return compared(results, baseline, seed)


def figure(results: Any, kind: str = "speed", **options: Any) -> "go.Figure":
    """A figure of runs: those of the report, by the name of its kind (an unknown one lists them).

        sim.figure(frame, "along", x="cache")    sim.figure([run, other], "time")

    results: a frame of `simulate_many` or `compare`, results, or folders of `python -m sim.run --out`. options: of
    "speed" and "pareto" the baseline (a name, or a place from 0); of "along" x (the setting along the axis, default:
    the first number that differs), y (a column, default tokens_per_s) and by (what has a line of its own, default: the
    policies). What must be said of the runs stands above the figure. Needs pandas and plotly. Raises UserError.
    """
    needed("pandas", "figure")
    needed("plotly", "figure")
    from analysis.api.drawn import drawn

    return drawn(results, kind, options)
