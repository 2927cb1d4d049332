"""From the arguments of `simulate_many` to runs with names: named cases, and lists as axes, as in a sweep's file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analysis.api.fields import is_axis, refuse_no_field
from analysis.api.given import DESCRIBED, POLICIES, Given
from sim.errors import SpecError
from sim.spec import RunSpec
from sim.sweeps.axes import DEFAULT

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One run that is to be done. spec: or why there is none; fields: as they were asked for."""

    name: str
    spec: RunSpec | str
    fields: Fields


def refuse_no_trace(fields: Fields) -> None:
    """Raises SpecError."""
    if not fields.get("trace"):
        raise SpecError("trace: missing; give trace=FILE, or the name of a shipped sample such as mixtral.npz")


def cases_of(cases: Mapping[str, Fields] | None, common: Fields, given: Given) -> list[Case]:
    """Every run, in order, each with a name of its own. Raises SpecError, one line."""
    named = {"": {}} if cases is None else cases
    if not isinstance(named, Mapping) or not all(isinstance(fields, Mapping) for fields in named.values()):
        raise SpecError("cases: must be {name: {field: value}}; a list of values is an axis: cache=[2, 3, 4]")
    every = _flat(common)  # once: what an iterator gives it gives once
    rest = {key: value for key, value in every.items() if not key.startswith("set.")}
    shared = {key: value for key, value in every.items() if key.startswith("set.")}
    flat = {str(name): _case(rest, fields) for name, fields in named.items()}
    for parameter, value in shared.items():
        for name in _users(flat, parameter, given):
            flat[name] = {**flat[name], parameter: flat[name].get(parameter, value)}
    return _unique(case for name, fields in flat.items() for case in _grid(name, fields, given))


def _case(rest: Fields, fields: Fields) -> dict[str, Any]:
    """A case's own fields over those of all; None takes one of these away."""
    return {key: value for key, value in rest.items() if key not in fields} | _flat(fields)


def _flat(fields: Fields) -> dict[str, Any]:
    """Fields that are given, parameters as `set.POLICY.PARAM`."""
    refuse_no_field(fields, many=True)
    out = {key: value for key, value in fields.items() if key != "set"}
    out |= {f"set.{key}": value for key, value in (fields.get("set") or {}).items()}
    return {key: list(value) if is_axis(value) else value for key, value in out.items() if value is not None}


def _users(flat: Mapping[str, Fields], parameter: str, given: Given) -> list[str]:
    """The cases that use the policy of a parameter that is given to all; all, where none does: they say what is wrong.
    As in a sweep a parameter is of those that use it."""
    from sim.sweeps.config import uses  # late: with it comes the core

    found = [name for name, fields in flat.items() if uses(_tables(fields, given), parameter)]
    return found or list(flat)


def _grid(name: str, fields: Fields, given: Given) -> Iterator[Case]:
    """The runs of one case, whose lists are axes; named after it, and after the axes."""
    from sim.sweeps.config import expand

    refuse_no_trace(fields)
    tables = _tables(fields, given)
    together = {next(iter(each)): each for each in tables.get("zip", ())}  # by the policy that brings parameters
    ranged = [field for field, value in fields.items() if isinstance(value, list) or _is_range(field, value)]
    axes = [each for field in ranged for each in together.get(field, [field])]
    for run in expand(tables, name or "simulate_many"):
        asked = dict(run.fields) if run.spec is None else run.spec.model_dump()
        values = asked | {f"set.{key}": value for key, value in asked.get("set", {}).items()}
        said = [name, *(_label(axis, values.get(axis)) for axis in axes)]
        yield Case(", ".join(filter(None, said)) or "run", run.spec or run.error, asked)


def _is_range(field: str, value: Any) -> bool:
    """Whether it is an axis as a sweep's file may have it: {"from": 2, "to": 8, "step": 2}."""
    return field not in DESCRIBED and isinstance(value, Mapping)


def _tables(fields: Fields, given: Given) -> dict[str, Any]:
    """As sim.sweeps.axes takes them: a policy that brings parameters is an axis together with these."""
    tables: dict[str, Any] = {}
    for field, value in fields.items():
        every = value if isinstance(value, list) else [value]
        pairs = [(DEFAULT, {}) if each is None else given.plain(field, each) for each in every]
        more = dict.fromkeys(key for _, mine in pairs for key in mine)
        together = {field: [each for each, _ in pairs]}
        together |= {f"set.{key}": [mine.get(key, "default") for _, mine in pairs] for key in more}
        if more:
            tables.setdefault("zip", []).append(together)
        else:
            tables[field] = together[field] if isinstance(value, list) else together[field][0]
    return tables


def _label(axis: str, value: Any) -> str:
    """`lru`, `cache 4`, `buddy.tau 0.6`; nothing of a parameter for which a run has no use."""
    if axis.startswith("set."):
        return "" if value is None else f"{axis.removeprefix('set.')} {value}"
    return str(value) if axis in POLICIES and value != "none" else f"{axis} {value}"


def _unique(cases: Iterator[Case]) -> list[Case]:
    """Runs of one name are numbered."""
    out: dict[str, Case] = {}
    for case in cases:
        name, n = case.name, 2
        while name in out:
            name, n = f"{case.name} ({n})", n + 1
        out[name] = replace(case, name=name)
    return list(out.values())
