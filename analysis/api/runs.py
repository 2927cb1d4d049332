"""Runs from Python: one, or many side by side."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.api.extras import needed
from analysis.api.result import Result
from sim.errors import SpecError
from sim.memo import Kept, Memo, afresh
from sim.policies.kinds import KINDS
from sim.simulation import simulate as run_spec
from sim.spec import RunSpec
from traces.format.trace import RoutingTrace
from traces.progress import doing

if TYPE_CHECKING:
    import pandas as pd

MEMO_BYTES = 1_000_000_000
RECORDS = ("summary", "full")


def simulate(trace: Any = None, *, name: str = "", record: str = "summary", **flags: Any) -> Result:
    """Simulate one run."""
    return _run({"trace": trace, **flags}, name, record, afresh)


def _run(fields: Mapping[str, Any], name: str, record: str, memo: Memo, where: str = "") -> Result:
    if record not in RECORDS:
        raise SpecError(f"record: {record!r}: must be summary or full")
    spec, in_memory = _asked(fields, where)
    summary, found = run_spec(spec, record == "full", memo, **in_memory)
    made = Result("", "", summary, found, record == "full")
    return made.named(name or made.policy)


def _asked(fields: Mapping[str, Any], where: str) -> tuple[RunSpec, dict[str, Any]]:
    """The spec, and what of it is in memory (`sim.prepare.prepare`)."""
    given, held = {key: value for key, value in fields.items() if value is not None}, {}
    for key in ("trace", "calibration"):
        value = given.get(key)
        if isinstance(value, RoutingTrace):
            held[key], given[key] = value, value.name or f"{value.model} (in memory)"
        elif isinstance(value, Path):
            given[key] = str(value)
    _hold_policies(given)
    if not given.get("trace"):
        raise SpecError(f"{where}trace: missing; give trace=FILE, or the name of a shipped sample such as mixtral.npz")
    return RunSpec.of(given, where), held


def _hold_policies(given: dict[str, Any]) -> None:
    """Functions and classes become names, under which the run finds them."""
    for kind in KINDS[:-1]:
        if kind in given and not isinstance(given[kind], str):
            from sim.policies.in_memory import hold, parameters
            from sim.policies.registry import TABLES

            given[kind], mine = hold(kind, given[kind], TABLES[kind])
            given["set"] = {**parameters(given[kind], mine), **given.get("set", {})}


def simulate_many(
    cases: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    record: str = "summary",
    errors: str = "raise",
    **common: Any,
) -> "pd.DataFrame":
    """Many runs, a row each."""
    needed("simulate_many", "pandas")
    from analysis.api.frames import frame_of

    memo = Kept(MEMO_BYTES)
    every = dict(cases.items()) if cases is not None else dict(_grid(common))
    runs = []
    for i, (name, fields) in enumerate(every.items(), 1):
        doing(f"run {i} of {len(every)}: {name}")
        runs.append(_run({**common, **fields}, name, record, memo, f"{name}: "))
    return frame_of(runs)


def _grid(common: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, fields) of each combination of the fields that are lists; the last runs fastest."""
    axes = {key: value for key, value in common.items() if isinstance(value, (list, tuple))}
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values, strict=True))
        yield ", ".join(f"{key} {value}" for key, value in fields.items()) or "run", fields
