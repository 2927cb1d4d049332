"""A sweep's file and the configurations it stands for, in a stable order, each with a stable id."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any

from sim.engines import behaving
from sim.errors import SpecError
from sim.policies.kinds import BULK, KINDS, parametrised
from sim.policies.registry import meant
from sim.spec import RunSpec
from sim.sweeps.axes import DEFAULT, Axis, axes_of

HAS, USED, UNUSED = "has", "used", "unused"


@dataclass(frozen=True)
class Configuration:
    """One configuration: its spec, or the fields as given and why they make none. id: of what was resolved."""

    id: str
    spec: RunSpec | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def expand(tables: Mapping[str, Any], where: str = "config") -> list[Configuration]:
    """Every configuration of a sweep's tables, once each, in order: the last axis fastest, seeds fastest of all.

    A parameter (`set`) belongs to the configurations that use its policy; in the others it is left out, so that those
    which differ in nothing else are one. Values that make no spec give one with an error; raises SpecError, one line,
    for tables that are no sweep.
    """
    try:
        axes = axes_of(tables)
        if not any("trace" in axis.fields for axis in axes):
            raise SpecError('trace: missing; give trace = "FILE", or the name of a shipped sample such as mixtral.npz')
        runs: dict[str, Configuration] = {}
        had = _had(axes)
        for given in _points(axes):
            run = _run(_fields(given, had))
            runs.setdefault(run.id, run)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    return list(runs.values())


def swept(tables: Mapping[str, Any]) -> set[str]:
    """The fields that have several values, a parameter as `set`."""
    return {name.split(".")[0] for axis in axes_of(tables) if len(axis.values) > 1 for name in axis.fields}


def uses(tables: Mapping[str, Any], parameter: str) -> bool:
    """Whether some configuration of these tables uses the policy that a parameter (set.POLICY.PARAM) is of."""
    return any(_look(_chosen(given), parameter) != UNUSED for given in _points(axes_of(tables)))


def _points(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Each point of the grid: field -> value."""
    for values in itertools.product(*(axis.values for axis in axes)):
        given: dict[str, Any] = {}
        for axis, point in zip(axes, values, strict=True):
            given |= dict(zip(axis.fields, point, strict=True))
        yield given


def _had(axes: Sequence[Axis]) -> set[str]:
    """The parameters that a policy of some configuration has. Raises SpecError for one whose policy nobody uses."""
    names = {name for axis in axes for name in axis.fields if name.startswith("set.")}
    looked = {name: {_look(_chosen(given), name) for given in _points(axes)} for name in names}
    for name, found in looked.items():
        if found == {UNUSED}:
            raise SpecError(f"{name}: no configuration uses a policy {name[4:].rpartition('.')[0]!r}")
    return {name for name, found in looked.items() if HAS in found}


def _fields(given: dict[str, Any], had: set[str]) -> dict[str, Any]:
    """The fields of one point. Of the parameters those that its policies have; one that nobody has goes to whoever it
    names, whose run says what is wrong with it."""
    fields = {name: value for name, value in given.items() if not name.startswith("set.") and value != DEFAULT}
    chosen = _chosen(given)
    takes = {name: _look(chosen, name) for name in given if name.startswith("set.")}
    mine = [name for name, look in takes.items() if look == HAS or (look == USED and name not in had)]
    parameters = {name.removeprefix("set."): given[name] for name in mine if given[name] != DEFAULT}
    return fields | ({"set": parameters} if parameters else {})


def _chosen(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The policy of each kind that may have parameters."""
    kinds = (*KINDS, BULK)
    defaults = {kind: RunSpec.model_fields[kind].default for kind in kinds} | _engines(given, kinds)
    chosen = defaults | {kind: str(given[kind]) for kind in kinds if given.get(kind, DEFAULT) != DEFAULT}
    bulk = chosen.pop(BULK)
    return tuple(parametrised(chosen, bulk).items())


def _engines(given: Mapping[str, Any], kinds: Iterable[str]) -> dict[str, Any]:
    """The policies that the engine of a point sets."""
    name = given.get("engine", DEFAULT)
    engine = None if name == DEFAULT or given.get("engine_as_costs") is True else behaving(str(name))
    return {} if engine is None else {kind: engine.sets[kind] for kind in kinds if kind in engine.sets}


@cache
def _look(chosen: tuple[tuple[str, str], ...], parameter: str) -> str:
    """Whether a chosen policy HAS a parameter, only has its name (USED), or neither."""
    key = parameter.removeprefix("set.")
    try:
        known = meant(dict(chosen), key)
    except SpecError:  # a policy that does not load: its run says why
        return HAS
    if not known:
        return UNUSED
    return HAS if any(key.rpartition(".")[2] in names for names in known.values()) else USED


def _run(fields: dict[str, Any]) -> Configuration:
    try:
        spec = RunSpec.of(fields)
    except SpecError as error:
        return Configuration(identity(fields), None, fields, str(error))
    return Configuration(identity(spec), spec)


def identity(of: RunSpec | Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of the fields, whatever version they are of, as canonical JSON."""
    fields = of.saved(("version",)) if isinstance(of, RunSpec) else of
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:16]
