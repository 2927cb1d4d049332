"""What may stand as a field of a run, and what is meant by a word that is none."""

from collections.abc import Iterable, Mapping
from typing import Any

from sim.errors import SpecError
from sim.spec import RunSpec
from traces.format.trace import RoutingTrace

OF_SWEEPS = ("zip", "repeats")
SAID_OTHERWISE = {
    "out": "run.save(DIR) keeps a run",
    "force": "run.save(DIR, force=True) replaces a run that is there",
    "json": "json.dumps(run.summary)",
    "format": "python -m sim.run --format prints what other tools read",
    "config": "**tomllib.load(file) gives a file's fields",
    "goodput": "python -m sim.run --format aiperf --goodput adds it to what other tools read",
    "describe": "python -m sim.run --describe NAME",
    "baseline": "is of sim.compare",
}


def is_axis(value: Any) -> bool:
    """Whether it stands for several values: whatever can be gone through, but text, tables, traces, and policies."""
    if isinstance(value, str | bytes | Mapping | RoutingTrace) or hasattr(value, "model_dump") or callable(value):
        return False
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0


def refuse_no_field(fields: Mapping[str, Any], many: bool = False) -> None:
    """Raises SpecError, one line, for a word that is no field but is said in another way, and for a `set` that is no
    table. many: of `simulate_many`."""
    for name in fields:
        if many and name in OF_SWEEPS:
            raise SpecError(f"{name}: is of a sweep's file; python -m sim.sweep takes it")
        if not isinstance(name, str):
            raise SpecError(f"field: {name!r}: must be text")
        if name not in RunSpec.model_fields and (instead := _instead(name, many)):
            raise SpecError(f"{name}: is no field of a run; {instead}")
    given = fields.get("set")
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(f"set: {given!r}: must be a table of parameters: set={{'buddy.tau': 0.6}}")


def _instead(name: str, many: bool) -> str:
    if name == "name" and many:
        return "name runs as cases: sim.simulate_many({'my name': {...}}, ...)"
    if name.startswith("list_"):
        return "sim.catalog.names('model') lists, and python -m sim.run --list-policies"
    return SAID_OTHERWISE.get(name) or _parameter(name)


def _parameter(name: str) -> str:
    """Of a word that is a parameter of policies."""
    from sim.policies.registry import TABLES  # late: with it comes the core

    having = [policy.name for table in TABLES.values() for policy in table.values() if name in policy.parameters]
    first = "buddy" if "buddy" in having else having[0] if having else ""
    return f"it is a parameter of a policy: set={{'{first}.{name}': ...}}" if first else ""
