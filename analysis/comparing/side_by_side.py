"""Runs made side by side in Python, ready for analysis.compare: what the notebooks race policies with."""

from collections.abc import Mapping
from typing import Any

from analysis.reading.run import Run
from sim.simulation import simulate
from sim.spec import RunSpec


def race(cases: Mapping[str, Mapping[str, Any]], full: bool = False, **common: Any) -> list[Run]:
    """One run per case, in order. cases: name -> the fields of RunSpec in which it differs from `common`, where the
    case's win; full: keep every visit, execution, transfer and answer.

    Runs judge the same requests, and so can be paired, as long as `calibration` and `seed` are common. Raises UserError
    for what is wrong with a spec.
    """
    runs = []
    for name, fields in cases.items():
        summary, record = simulate(RunSpec.of({**common, **fields}, f"{name}: "), full)
        runs.append(Run(name, "", summary, record, full))
    return runs
