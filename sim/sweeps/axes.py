"""The axes of a sweep, from the tables of its TOML file.

    field = value              the same in every configuration
    field = [a, b, ...]        an axis; "default" in it stands for the field's default
    field = {from, to, step}   the same as a list, both ends included; {from, to, times} multiplies, {from, to, count}
                               divides into equal parts
    [[zip]]                    a table of axes of one length that go through their values together
    repeats = N                seed, seed + 1, ... seed + N - 1 for every configuration

A field is one of RunSpec's, or `set.POLICY.PARAM`. Axes keep the order of the file; the last one runs fastest.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sim.errors import SpecError, unknown
from sim.spec import LARGEST, RunSpec

DEFAULT = "default"
MOST = 1_000_000  # configurations of one sweep: more is a range with a digit too many
_WAYS = ("step", "times", "count")
_RANGE = {"from", "to", *_WAYS}


@dataclass(frozen=True)
class Axis:
    """Fields that go through their values together: values[i] holds one value per field."""

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def axes_of(tables: Mapping[str, Any]) -> list[Axis]:
    """The axes of a sweep's file, in its order, seeds last. Raises SpecError, one line, without the file's name."""
    axes: list[Axis] = []
    for key, value in tables.items():
        name = _field(key)
        if name == "zip":
            axes += [_zipped(i, table) for i, table in enumerate(_tables(value), 1)]
        elif name != "repeats":
            axes += [Axis((field,), tuple((v,) for v in _values(field, given))) for field, given in _named(name, value)]
    _refuse_twice([field for axis in axes for field in axis.fields])
    if "repeats" in tables:
        axes = _repeated(axes, tables["repeats"])
    if math.prod(len(axis.values) for axis in axes) > MOST:
        raise SpecError(f"{math.prod(len(axis.values) for axis in axes):,} configurations; at most {MOST:,} are run")
    return axes


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's tables with each field under its one name, parameters as set.POLICY.PARAM, zips alike. Raises
    SpecError."""
    out: dict[str, Any] = {}
    for key, value in tables.items():
        name = _field(key)
        if name == "zip":
            out[name] = [flat(table) for table in _tables(value)]
        else:
            out |= {name: value} if name == "repeats" else dict(_named(name, value))
    return out


def _field(key: str) -> str:
    """A field may be spelt as its flag is; a policy's name in a parameter's is its own."""
    return key if key.startswith("set.") else key.replace("-", "_")


def _tables(value: Any) -> list[Mapping[str, Any]]:
    tables = value if isinstance(value, list) else [value]
    if not tables or not all(isinstance(table, Mapping) for table in tables):
        raise SpecError("zip: must be a table of axes: [[zip]]")
    return tables


def _zipped(number: int, table: Mapping[str, Any]) -> Axis:
    """One [[zip]] table as an axis of several fields."""
    columns = {}
    for key, value in table.items():
        for field, given in _named(_field(key), value):
            columns[field] = _values(field, given)
    lengths = {field: len(values) for field, values in columns.items()}
    if not lengths or len(set(lengths.values())) > 1:
        found = ", ".join(f"{field} {n}" for field, n in lengths.items()) or "nothing"
        raise SpecError(f"zip {number}: axes must be of one length; found {found}")
    return Axis(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(field, what is given for it); parameters may stand as "set.buddy.tau", or in tables [set], [set.buddy]."""
    if name == "set" or name.startswith("set."):
        yield from _parameters(name, value)
    elif name in RunSpec.model_fields:
        yield name, value
    else:
        raise unknown("field", name, [*RunSpec.model_fields, "zip", "repeats"])


def _parameters(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and not (value and set(value) <= _RANGE):
        for key, inner in value.items():
            yield from _parameters(f"{name}.{key}", inner)
    elif name.count(".") < 2:
        raise SpecError(f"{name}: must name a parameter: set.POLICY.PARAM")
    else:
        yield name, value


def _values(field: str, given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return _range(field, given)
    values = given if isinstance(given, list) else [given]
    if not values:
        raise SpecError(f"{field}: an empty list; at least one value is required")
    for value in values:
        if not isinstance(value, (str, bool, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise SpecError(f"{field}: {value!r}: must be text, a finite number, true or false")
    return values


def _range(field: str, table: Mapping[str, Any]) -> list[int] | list[float]:
    """Values of a range. Whole numbers stay whole: `step = 2` gives slots, `step = 2.0` would be a fraction's."""
    for key in table:
        if key not in _RANGE:
            raise unknown(f"{field}: key of a range", key, _RANGE)
    ways = [way for way in _WAYS if way in table]
    if "from" not in table or "to" not in table or len(ways) != 1:
        raise SpecError(f"{field}: a range is {{ from = A, to = B, step = S }}, with times or count in place of step")
    numbers = [table["from"], table["to"], table[ways[0]]]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= LARGEST:
            raise SpecError(f"{field}: {number!r}: a range takes finite numbers")
    first, last, by = (Fraction(repr(number)) for number in numbers)  # as written: ten steps of 0.1 are 1
    values = _spaced(field, first, last, ways[0], by)
    if not all(isinstance(number, int) for number in numbers):
        return [float(value) for value in values]
    if any(value.denominator > 1 for value in values):
        raise SpecError(f"{field}: {numbers[2]} values from {numbers[0]} to {numbers[1]} are not all whole")
    return [int(value) for value in values]


def _spaced(field: str, first: Fraction, last: Fraction, way: str, by: Fraction) -> list[Fraction]:
    if way == "count":
        if by.denominator > 1 or not 2 <= by <= MOST:
            raise SpecError(f"{field}: count: {by}: must be a whole number from 2")
        return [first + (last - first) * i / (int(by) - 1) for i in range(int(by))]
    wrong = by <= 0 if way == "step" else by <= 1 or first <= 0
    if last < first or wrong:
        rule = "step above 0" if way == "step" else "from above 0, times above 1"
        raise SpecError(f"{field}: from {first} to {last} with {way} {by}: needs from <= to, {rule}")
    if way == "step" and (last - first) / by >= MOST:
        raise SpecError(f"{field}: {(last - first) // by + 1:,} values; at most {MOST:,} are run")
    values = [first]
    while (following := values[-1] + by if way == "step" else values[-1] * by) <= last and len(values) <= MOST:
        values.append(following)
    return values


def _refuse_twice(fields: list[str]) -> None:
    for field in fields:
        if fields.count(field) > 1:
            raise SpecError(f"{field}: given twice; a field is one axis, alone or in one zip")


def _repeated(axes: list[Axis], repeats: Any) -> list[Axis]:
    """With seeds for `repeats` runs of every configuration, counted from the sweep's one seed."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= MOST:
        raise SpecError(f"repeats: {repeats!r}: must be a whole number from 1")
    seeds = [axis for axis in axes if "seed" in axis.fields]
    if any(len(axis.values) > 1 for axis in seeds):
        raise SpecError("repeats: seed is an axis of its own; give one of the two")
    first = seeds[0].values[0][0] if seeds else 0
    if not isinstance(first, int):
        raise SpecError(f"seed: {first!r}: must be a whole number")
    return [axis for axis in axes if axis not in seeds] + [Axis(("seed",), tuple((first + i,) for i in range(repeats)))]
