"""Runs from Python: one, or many side by side."""

import inspect
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from analysis.api.cases import Case, Fields, cases_of, refuse_no_trace
from analysis.api.fields import is_axis, refuse_no_field
from analysis.api.given import Failed, Given
from analysis.api.result import Result
from sim.errors import SpecError
from sim.memo import Kept, Memo
from sim.simulation import simulate as simulated
from sim.spec import RunSpec
from traces.errors import UserError
from traces.extras import needed
from traces.progress import doing, watched

if TYPE_CHECKING:
    import pandas as pd

MEMO_BYTES = 1_000_000_000
Record = Literal["summary", "full"]


def simulate(trace: Any = None, *, name: str = "", record: Record = "summary", **flags: Any) -> Result:
    """Simulate one run: `python -m sim.run` from Python. A flag is an argument, with underscores for hyphens.

        run = sim.simulate(trace="mixtral.npz", cache=6, miss="buddy", calibration=0.3, set={"buddy.tau": 0.6})
        run.tokens_per_s, run.interval, run.marks

    trace: a file, the name of a shipped sample, or a trace in memory (`traces.open`, `traces.capture`); calibration
    likewise, or the fraction of the requests that is set aside. eviction, miss, rerank, prefetch: a name, or a
    function, a class or an instance of your own (docs/policies.md), which is called by its `__name__`. model, hardware,
    engine: a name, a file, a table, or what sim.catalog gives. set: parameters of policies, `{"POLICY.PARAM": value}`.
    None is as good as not given.
    name: what tables and legends call it (default: its policies). record: "full" keeps every visit, execution, transfer
    and answer, which some figures and `python -m analysis.timeline` need.

    Times are simulated; what is lossy, synthetic or not calibrated stands in `marks` and `notes`. Raises UserError, one
    line, for whatever is wrong: SpecError for a field, TraceError for a trace, CatalogError for a description.
    """
    given = Given()
    with watched():
        spec = RunSpec.of(_plain({"trace": trace, **flags}, given))
        return _run(spec, given, Kept(MEMO_BYTES), name, record)


def _plain(fields: Fields, given: Given) -> dict[str, Any]:
    """A run's fields as text and numbers. Raises SpecError for a name that is no field, and without a trace."""
    out: dict[str, Any] = {}
    brought: dict[str, Any] = {}
    refuse_no_field(fields)
    for field, value in fields.items():
        if is_axis(value):
            right = _requests(value) if field == "requests" else "one value is required here"
            raise SpecError(f"{field}: {value!r}: a list is an axis of sim.simulate_many; {right}")
        if value is not None:
            out[field], mine = given.plain(field, value)
            brought |= mine
    refuse_no_trace(out)
    return {**out, "set": {**brought, **out["set"]} if "set" in out else brought} if brought else out


def _requests(value: Any) -> str:
    """How the requests of a list are asked for in one run."""
    return f"requests={','.join(map(str, value))!r} runs these"


def _run(spec: RunSpec, given: Given, memo: Memo, name: str, record: str) -> Result:
    if record not in ("summary", "full"):
        raise SpecError(f"record: {record!r}: must be summary or full")
    given.provide(spec, memo)
    summary, found = simulated(spec, record == "full", memo)
    run = Result(name, "", summary, found, record == "full")
    return run if name else run.named(run.policy)


def simulate_many(
    cases: Mapping[str, Fields] | None = None,
    /,
    *,
    record: Record = "summary",
    errors: Literal["raise", "keep"] = "raise",
    **common: Any,
) -> "pd.DataFrame":
    """Many runs in one process, which shares what they have in common (the trace, its steps, what is fitted).

        sim.simulate_many(cache=[2, 3, 4], eviction=["lru", "lfu", my_eviction], trace="mixtral.npz")
        sim.simulate_many({"fetch": {}, "buddy": {"miss": "buddy"}}, trace="mixtral.npz", calibration=0.3)

    cases: name -> fields of that run, which win over `common`. A list (range, array, whatever can be gone through) is
    an axis, as in a file of `python -m sim.sweep`: every combination is run, the last axis fastest; None in it is the
    default. `set={"buddy.tau": [0.4, 0.6]}` is one, too, and a parameter belongs to the runs that use its policy. Of
    functions with one name the second is NAME-2.

    Returns a row per run, its index the run's name: the settings that differ, tokens_per_s with its interval (what 80 %
    of real engines do, NaN where nobody knows), tpot_ms, hit_rate, lost_weight (of the router's, as a share), h2d_gb
    (1e9 bytes), ..., marks, and `result`, the `Result`. `.attrs["notes"]` says what must be said with them.
    errors: "raise" stops at the first run that cannot be; "keep" gives it a row with its `error`.
    One core: for thousands of runs `python -m sim.sweep` uses all, and goes on where it was killed. Needs pandas.
    Raises UserError, one line that begins with the run's name.
    """
    needed("pandas", "simulate_many")
    from analysis.api.frames import frame_of

    if errors not in ("raise", "keep"):
        raise SpecError(f"errors: {errors!r}: must be raise or keep")
    given, memo = Given(), Kept(MEMO_BYTES)
    with watched():
        every, found = cases_of(cases, common, given), []
        for i, case in enumerate(every, 1):
            doing(f"run {i} of {len(every)}: {case.name}")
            found.append(_tried(case, given, memo, record, errors == "keep"))
    return frame_of(found, errors == "keep")


def _tried(case: Case, given: Given, memo: Memo, record: str, keep: bool) -> Result | Failed:
    """A run; one that cannot be is kept with why, or raises."""
    try:
        if isinstance(case.spec, str):
            raise SpecError(case.spec)
        return _run(case.spec, given, memo, case.name, record)
    except UserError as error:
        if not keep:
            raise type(error)(f"{case.name}: {error}") from None
        return Failed(case.name, case.fields, str(error))


def _signature() -> inspect.Signature:
    """What help and completion show of `simulate`: the fields of a run, by name."""
    shown = inspect.signature(simulate)
    own = [each for each in shown.parameters.values() if each.kind is not each.VAR_KEYWORD]
    kind, fields = inspect.Parameter.KEYWORD_ONLY, RunSpec.model_fields.items()
    flags = [inspect.Parameter(name, kind, default=None if f.is_required() else f.default) for name, f in fields]
    return shown.replace(parameters=[*own, *flags[1:]])


def _fields() -> str:
    """A line for each field of a run: its name, what it is, and its default."""
    fields = RunSpec.model_fields.items()
    told = {name: "" if f.is_required() or f.default is None else f" (default: {f.default!r})" for name, f in fields}
    lines = (f"{name}: {f.description}{'' if 'default' in str(f.description) else told[name]}" for name, f in fields)
    wrapped = (textwrap.fill(line, 112, initial_indent=" " * 8, subsequent_indent=" " * 12) for line in lines)
    return "\n".join(["    Fields:", *wrapped, ""])


simulate.__signature__ = _signature()  # type: ignore[attr-defined]  # for people; RunSpec checks what is given
simulate.__doc__ = f"{simulate.__doc__}\n{_fields()}"
