"""What a call is given that is neither text nor number: traces in memory, functions, classes, tables, each by a name.

A spec holds names alone. Within one call two things never share one, whatever they call themselves: the second is
NAME-2.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim import catalog
from sim.errors import SpecError
from sim.memo import Memo
from sim.policies.kinds import KINDS, Value
from sim.spec import RunSpec
from traces.format import npz
from traces.format.trace import RoutingTrace

POLICIES = KINDS[:-1]  # a placement is no function
DESCRIBED = ("model", "hardware", "engine")
TRACES = ("trace", "calibration")


@dataclass(frozen=True)
class Failed:
    """A run that could not be: its fields as they were asked for, and why, one line."""

    name: str
    fields: Mapping[str, Any]
    error: str


class Given:
    """The names of one call's things; it knows what is behind each until the call returns."""

    def __init__(self) -> None:
        self.traces: dict[str, RoutingTrace] = {}
        self._known: dict[tuple[str, str], object] = {}  # what a name stands for, by kind and name

    def plain(self, field: str, value: Any) -> tuple[Any, dict[str, Value]]:
        """(a value of a field as text or number, parameters that it brings: of a policy's instance, as `set` has them).
        Raises SpecError or CatalogError, one line, for a thing that the field cannot be."""
        if isinstance(value, np.generic | np.ndarray) and not value.ndim:
            value = value.item()
        if field in TRACES and isinstance(value, RoutingTrace):
            return self._trace(value), {}
        if isinstance(value, Path):
            return str(value), {}
        if field in TRACES and not isinstance(value, str | int | float):
            right = "a file, a sample's name, or a trace" + ("" if field == "trace" else ", or a fraction")
            raise SpecError(f"{field}: {type(value).__name__}: must be {right}")
        if field in POLICIES and not isinstance(value, str):
            return self._policy(field, value)
        if field in DESCRIBED and not isinstance(value, str):
            return self._described(field, value), {}
        return value, {}

    def provide(self, spec: RunSpec, memo: Memo) -> None:
        """Put the traces of a run that are in memory where `sim.prepare` looks for a trace of their name."""
        from sim.prepare import Opened  # late: with it comes the core

        for name in (spec.trace, spec.calibration):
            if isinstance(name, str) and (trace := self.traces.get(name)) is not None:
                memo(Opened(name), lambda trace=trace: (trace, npz.content_hash(trace)))  # type: ignore[misc]

    def _trace(self, trace: RoutingTrace) -> str:
        name = self._name("trace", trace.name or f"{trace.model} (in memory)", id(trace))
        self.traces[name] = trace
        return name

    def _policy(self, kind: str, thing: Any) -> tuple[str, dict[str, Value]]:
        from sim.policies.in_memory import hold, identity, own_name, parameters
        from sim.policies.registry import TABLES

        name = self._name(kind, own_name(kind, thing), identity(thing))
        found, mine = hold(kind, thing, TABLES[kind], name)
        return found, parameters(found, mine)

    def _described(self, kind: str, thing: Any) -> str:
        """Tables without a name are told apart; two with one name are not."""
        if not isinstance(thing, Mapping):
            name = catalog.hold(kind, thing)
        elif "name" not in thing:
            name = catalog.hold(kind, {**thing, "name": self._name(kind, f"my-{kind}", repr(thing))})
        else:
            name = catalog.hold(kind, thing)
        if self._known.setdefault((kind, name), repr(thing)) != repr(thing):
            raise catalog.CatalogError(f"{kind}: two different ones are called {name}; give each a `name` of its own")
        return name

    def _name(self, kind: str, wanted: str, what: object) -> str:
        """The name, or one with a number behind it where another thing of this call has it."""
        for name in _numbered(wanted):
            if self._known.setdefault((kind, name), what) == what:
                return name
        raise AssertionError("names do not end")


def _numbered(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
