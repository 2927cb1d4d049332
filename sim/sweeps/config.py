"""A sweep's file and the configurations it stands for, in a stable order, each with a stable id."""

import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from sim.errors import SpecError
from sim.policies import KINDS, meant
from sim.spec import RunSpec
from sim.sweeps.axes import DEFAULT, Axis, axes_of


@dataclass(frozen=True)
class Run:
    """One configuration: its spec, or the fields as given and why they make none. id: of what was resolved."""

    id: str
    spec: RunSpec | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def read(path: str | Path) -> dict[str, Any]:
    """The tables of a sweep's file. Raises SpecError, one line, where it cannot be read or is no TOML."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SpecError(f"config: {path}: {(error.strerror or 'cannot be read').lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"config: {path}: is no TOML: {error}") from None


def expand(tables: Mapping[str, Any], where: str = "config") -> list[Run]:
    """Every configuration of a sweep's tables, once each, in order: the last axis fastest, seeds fastest of all.

    A parameter (`set`) belongs to the configurations that use its policy; in the others it is left out, so that those
    which differ in nothing else are one. Values that make no spec give a Run with an error; raises SpecError, one
    line, for tables that are no sweep.
    """
    try:
        axes = axes_of(tables)
        if not any("trace" in axis.fields for axis in axes):
            raise SpecError('trace: missing; give trace = "FILE", or the name of a shipped sample such as mixtral.npz')
        runs: dict[str, Run] = {}
        used: set[str] = set()
        for values in itertools.product(*(axis.values for axis in axes)):
            run = _run(_fields(axes, values, used))
            runs.setdefault(run.id, run)
        _refuse_unused(axes, used)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    return list(runs.values())


def _fields(axes: Iterable[Axis], values: Iterable[tuple[Any, ...]], used: set[str]) -> dict[str, Any]:
    """The fields of one point of the grid; adds to `used` the parameters that one of its policies has."""
    given: dict[str, Any] = {}
    for axis, point in zip(axes, values, strict=True):
        given |= dict(zip(axis.fields, point, strict=True))
    fields = {name: value for name, value in given.items() if not name.startswith("set.") and value != DEFAULT}
    chosen = {kind: str(fields.get(kind, RunSpec.model_fields[kind].default)) for kind in KINDS}
    parameters = {name: value for name, value in given.items() if name.startswith("set.")}
    mine = {name: value for name, value in parameters.items() if _has(chosen, name.removeprefix("set."))}
    used |= set(mine)
    if any(value != DEFAULT for value in mine.values()):
        fields["set"] = {name.removeprefix("set."): value for name, value in mine.items() if value != DEFAULT}
    return fields


def _has(chosen: Mapping[str, str], key: str) -> bool:
    """Whether a chosen policy has this parameter; so it is said where one cannot be looked at: its run says why."""
    try:
        return any(key.rpartition(".")[2] in known for known in meant(chosen, key).values())
    except SpecError:
        return True


def _refuse_unused(axes: Iterable[Axis], used: set[str]) -> None:
    for axis in axes:
        for name in axis.fields:
            if name.startswith("set.") and name not in used:
                policy = name.removeprefix("set.").rpartition(".")[0]
                raise SpecError(f"{name}: no configuration uses a policy {policy!r} with such a parameter")


def _run(fields: dict[str, Any]) -> Run:
    try:
        spec = RunSpec.of(fields)
    except SpecError as error:
        return Run(identity(fields), None, fields, str(error))
    return Run(identity(spec.model_dump()), spec)


def identity(fields: Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of the fields as canonical JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:16]
